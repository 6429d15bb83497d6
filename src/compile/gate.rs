//! What stands at the door: an event that would be a dead letter for what it is, is refused before the log has it.

use std::borrow::Cow;
use std::sync::Arc;

use super::fold::{BELIEVABLE_MS_MIN, DAY_MS, time_from};
use crate::decode::{self, CLOUD_EVENT_TIME, Decoded, Extractor, FieldId, Raw, Reason, Shape};
use crate::model::{BucketKind, EventRules, Record, Retention, ValidRules, Zone};

/// The part of the rules that the door looks at; shared by all doors.
pub struct GateRules {
    extractor: Extractor,
    rules: EventRules,
    zone: Zone,
    /// Kinds of buckets, and how long each is kept after its end, in milliseconds; `None` for ever.
    retention_ms: Vec<(BucketKind, Option<i64>)>,
    cloud_event_time: FieldId,
    time_fields: Vec<FieldId>,
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
        let events = &rules.rules.events;
        let mut names: Vec<&str> = Vec::new();
        let mut field = |name| match names.iter().position(|known| *known == name) {
            Some(known) => known,
            None => {
                names.push(name);
                names.len() - 1
            }
        };
        let cloud_event_time = field(CLOUD_EVENT_TIME);
        let time_fields = events.time_fields.iter().map(|name| field(name)).collect();
        let key = key_field.map(&mut field);
        let retention = |kind: &BucketKind| match rules.rules.buckets.retention.of(*kind) {
            Retention::Seconds(seconds) => (*kind, Some(seconds * 1000)),
            Retention::Forever => (*kind, None),
        };
        Self {
            extractor: Extractor::new(names.iter().copied()),
            rules: events.clone(),
            zone: rules.zone,
            retention_ms: rules.kinds.iter().map(retention).collect(),
            cloud_event_time,
            time_fields,
            key,
        }
    }

    fn is_too_old(&self, second: i64, now_ms: i64) -> bool {
        self.retention_ms.iter().all(|(kind, retention_ms)| {
            // The end of a bucket is not before the instant in it, so most events are judged without looking for it.
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

    /// Judges one event that arrived at `now_ms`, in epoch milliseconds.
    pub fn check<'a>(&mut self, value: &'a [u8], now_ms: i64) -> Result<Admitted<'a>, Reason> {
        let rules = &*self.rules;
        let mut slots = vec![Raw::Absent; rules.extractor.slots()];
        let record = Record::of_value(value, now_ms);
        let decoded = decode::decode(&rules.extractor, &rules.rules, &record, &mut self.shape, &mut slots)?;
        let is_cloud_event = decoded == Decoded::CloudEvent;
        match rules.extractor.event(&slots) {
            Raw::Text(name) if !decode::trim(name).is_empty() => {}
            _ => return Err(Reason::NoEvent),
        }
        let field = |field: &usize| rules.extractor.field(&slots, *field);
        let cloud_event_time = is_cloud_event.then_some(&rules.cloud_event_time);
        let second = time_from(cloud_event_time.into_iter().chain(&rules.time_fields).map(field), now_ms)?;
        // A clock that was never set judges nothing.
        let is_believable = now_ms >= BELIEVABLE_MS_MIN;
        if is_believable && second * 1000 > now_ms + DAY_MS {
            return Err(Reason::TimeInFuture);
        }
        if is_believable && rules.is_too_old(second, now_ms) {
            return Err(Reason::TooOld);
        }
        let key = rules.key.and_then(|key| match rules.extractor.field(&slots, key).clone() {
            Raw::Text(text) | Raw::Number(text) => Some(text),
            _ => None,
        });
        Ok(Admitted { key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pattern, Rules};

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
