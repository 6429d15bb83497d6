//! What stands at the door: an event that would be a dead letter for what it is, is refused before
//! the log has it.

use std::borrow::Cow;
use std::sync::Arc;

use super::fold::DAY_MS;
use crate::mapping::ValidRules;
use traqq_core::decode::EventRules;
use traqq_core::decode::{self, BELIEVABLE_MS_MIN, Decoded, EventReader, FieldId, Raw, Reason, Shape};
use traqq_core::model::{BucketKind, Record, Retention, Zone};

/// The part of the rules that the door looks at; shared by all doors.
pub struct GateRules {
    reader: EventReader,
    zone: Zone,
    /// Kinds of buckets, and how long each is kept after its end, in milliseconds; `None` for ever.
    retention_ms: Vec<(BucketKind, Option<i64>)>,
    key: Option<FieldId>,
}

/// One door; not for several threads at a time.
pub struct Gate {
    rules: Arc<GateRules>,
    shape: Shape,
}

/// An event that may go into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admitted<'a> {
    /// The value of the key field, if the event has one.
    pub key: Option<Cow<'a, str>>,
}

impl GateRules {
    /// `key_field` names the field whose value becomes the record's key.
    pub fn new(rules: &ValidRules, key_field: Option<&str>) -> Self {
        let retention = |kind: &BucketKind| match rules.rules.buckets.retention.of(*kind) {
            Retention::Seconds(seconds) => (*kind, Some(seconds * 1000)),
            Retention::Forever => (*kind, None),
        };
        Self {
            reader: EventReader::new(&rules.rules.events, key_field),
            zone: rules.zone,
            retention_ms: rules.kinds.iter().map(retention).collect(),
            // The only field that is asked for is the first.
            key: key_field.map(|_| 0),
        }
    }

    /// The header that holds the name of an event, if one is configured.
    pub fn name_header(&self) -> Option<&str> {
        Some(&*self.events().name_header).filter(|name| !name.is_empty())
    }

    /// How events are read.
    pub fn events(&self) -> &EventRules {
        self.reader.rules()
    }

    fn is_too_old(&self, second: i64, now_ms: i64) -> bool {
        self.retention_ms.iter().all(|(kind, retention_ms)| {
            // The end of a bucket is not before the instant in it, so most events are judged
            // without looking for it.
            retention_ms.is_some_and(|retention_ms| {
                second * 1000 + retention_ms <= now_ms
                    && self.zone.bucket_at(*kind, second).end * 1000 + retention_ms <= now_ms
            })
        })
    }
}

impl Gate {
    pub fn new(rules: &Arc<GateRules>) -> Self {
        Self { rules: Arc::clone(rules), shape: Shape::default() }
    }

    /// The part of a text that holds several events, if one does; each is to become a record of its
    /// own. `is_named`: all of it has a name already.
    pub fn several_in<'t>(&self, text: &'t str, is_named: bool) -> Option<&'t str> {
        self.rules.reader.several_in(text, is_named)
    }

    /// The event with another name, which stands in the record itself: not every log keeps headers.
    /// `None` when it is no object, or a CloudEvent, whose name is its type.
    pub fn with_name(&self, value: &[u8], name: &str) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(value).ok()?.trim_ascii();
        let inside = text.strip_prefix('{')?.strip_suffix('}')?;
        let field = self.rules.events().name_fields.first()?;
        if decode::validate(text).is_err() || decode::is_structured(text) {
            return None;
        }
        let comma = if inside.trim_ascii().is_empty() { "" } else { "," };
        let quoted = |text: &str| serde_json::Value::from(text);
        Some(format!("{{{inside}{comma}{}:{}}}", quoted(field), quoted(name)).into_bytes())
    }

    /// Judges one event that arrived at `now_ms`, in epoch milliseconds.
    pub fn check<'a>(&'a mut self, value: &'a [u8], now_ms: i64) -> Result<Admitted<'a>, Reason> {
        let rules = &*self.rules;
        let mut slots = vec![Raw::Absent; rules.reader.slots()];
        let record = Record::of_value(value, now_ms);
        let decoded = rules.reader.read(&record, &mut self.shape, &mut slots)?;
        if let Decoded::Several(_) = decoded {
            return Err(if value.trim_ascii().starts_with(b"[") { Reason::NotAnObject } else { Reason::NoEvent });
        }
        let second = rules.reader.second(decoded == Decoded::CloudEvent, &slots, now_ms)?;
        // A clock that was never set judges nothing.
        let is_believable = now_ms >= BELIEVABLE_MS_MIN;
        if is_believable && second * 1000 > now_ms + DAY_MS {
            return Err(Reason::TimeInFuture);
        }
        if is_believable && rules.is_too_old(second, now_ms) {
            return Err(Reason::TooOld);
        }
        let key = rules.key.and_then(|key| match rules.reader.field(&slots, key).clone() {
            Raw::Text(text) | Raw::Number(text) => Some(text),
            _ => None,
        });
        Ok(Admitted { key })
    }

    /// Why [`Self::check`] refused an event, for whoever sent it.
    pub fn describe(&self, value: &[u8], now_ms: i64, reason: Reason) -> String {
        self.rules.reader.describe(&Record::of_value(value, now_ms), reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Pattern, Rules};

    const NOW_MS: i64 = 1_700_000_000_000;

    fn check(event: &str) -> Result<Option<String>, Reason> {
        let mut rules = Rules::default();
        rules.mapping.add = vec![Pattern::parse("event").unwrap()];
        let rules = Arc::new(GateRules::new(&rules.validate().unwrap(), Some("user.id")));
        let mut gate = Gate::new(&rules);
        gate.check(event.as_bytes(), NOW_MS).map(|admitted| admitted.key.map(Cow::into_owned))
    }

    #[test]
    fn what_would_be_a_dead_letter_is_refused() {
        assert_eq!(check(r#"{"event":"a"}"#), Ok(None));
        assert_eq!(check(r#"{"event":"a","user":{"id":"u1"}}"#), Ok(Some("u1".to_owned())));
        assert_eq!(check(r#"{"event":"a","user.id":7,"ts":1700000000}"#), Ok(Some("7".to_owned())));
        for (event, reason) in [
            ("", Reason::InvalidJson),
            ("{\"event\":\"a\"", Reason::InvalidJson),
            ("[]", Reason::NotAnObject),
            ("{}", Reason::NoEvent),
            (r#"{"event":" "}"#, Reason::NoEvent),
            (r#"{"event":"a","ts":"soon"}"#, Reason::TimeUnreadable),
            (r#"{"event":"a","ts":1700100000}"#, Reason::TimeInFuture),
            (r#"{"event":"a","ts":1600000000}"#, Reason::TooOld),
        ] {
            assert_eq!(check(event), Err(reason), "{event}");
        }
    }
}
