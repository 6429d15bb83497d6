//! What a plan sees in an event, for whoever writes the mapping. Slow; nothing is counted.

use std::sync::Arc;

use super::fold::{Folded, Folder};
use super::plan::Plan;
use crate::mapping::Pattern;
use traqq_core::decode::{Decoded, Raw, Reason, Shape, TimeSource, excerpt, is_number, micros, paths, trim};
use traqq_core::model::{Checkpoint, Part, Record, RecordBatch};

/// What one record holds: an event, or several.
pub struct Explained {
    pub events: Vec<Result<ExplainedEvent, Refused>>,
    /// Whether each is an event of one record of several.
    pub are_several: bool,
}

/// Why a record, or an event of it, would be a dead letter.
pub struct Refused {
    pub reason: Reason,
    /// Where and why, in a sentence.
    pub detail: String,
}

pub struct ExplainedEvent {
    pub name: String,
    /// Epoch second.
    pub second: i64,
    /// The field it was read from; `None`: the timestamp of the record.
    pub time_field: Option<String>,
    pub patterns: Vec<ExplainedPattern>,
    /// What the event has, as paths.
    pub paths: Vec<String>,
}

/// A pattern of the mapping, and what it finds in the event.
pub struct ExplainedPattern {
    /// The key of `[mapping]`.
    pub kind: &'static str,
    pub pattern: String,
    /// The value, or why the event does not count here.
    pub value: Result<String, Absent>,
}

pub struct Absent {
    pub field: String,
    pub why: &'static str,
}

const NO_SUCH_FIELD: &str = "no such field";

/// Explains one record after the other.
pub struct Explainer {
    plan: Arc<Plan>,
    folder: Folder,
}

impl Explainer {
    pub fn new(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        Self { folder: Folder::new(Arc::clone(&plan), usize::MAX), plan }
    }

    /// A batch of one record: what it holds, and what it becomes.
    pub fn explain(&mut self, records: RecordBatch) -> (Explained, Folded) {
        let mut explained = self.plan.explain(&records.get(0));
        let part = Part { records, from: Checkpoint::start(0) };
        let folded = self.folder.fold([part]).pop().expect("one record, one batch");
        // Of what only the fold judges, such as how old an event is.
        for letter in &folded.dead_letters {
            let refused = Refused { reason: letter.reason, detail: self.plan.reader.describe_letter(letter) };
            explained.events[letter.index.unwrap_or(0) as usize] = Err(refused);
        }
        (explained, folded)
    }
}

impl Plan {
    fn explain(&self, record: &Record<'_>) -> Explained {
        let mut slots = vec![Raw::Absent; self.reader.slots()];
        let mut shape = Shape::default();
        let decoded = self.reader.read(record, &mut shape, &mut slots);
        let value = record.value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        let texts = match decoded {
            Ok(Decoded::Several(texts)) => texts,
            decoded => {
                let event = self.explain_event(decoded, record, value, &slots);
                return Explained { events: vec![event], are_several: false };
            }
        };
        let each = texts.into_iter().map(|text| {
            let decoded = self.reader.read_one(text, record, &mut shape, &mut slots);
            let of_event = Record::of_value(text.as_bytes(), record.timestamp_ms);
            self.explain_event(decoded, &of_event, text, &slots)
        });
        Explained { events: each.collect(), are_several: true }
    }

    fn explain_event(
        &self,
        decoded: Result<Decoded<'_>, Reason>,
        record: &Record<'_>,
        text: &str,
        slots: &[Raw<'_>],
    ) -> Result<ExplainedEvent, Refused> {
        let refused = |reason| Refused { reason, detail: self.reader.describe(record, reason) };
        let is_cloud_event = decoded.map_err(refused)? == Decoded::CloudEvent;
        let second = self.reader.second(is_cloud_event, slots, record.timestamp_ms).map_err(refused)?;
        let time_field = match self.reader.time_source(is_cloud_event, slots) {
            TimeSource::Field(field) => Some(field.to_owned()),
            TimeSource::Record => None,
        };
        let name = self.value_of("event", slots).unwrap_or_default();
        Ok(ExplainedEvent { name, second, time_field, patterns: self.found(slots), paths: paths(text) })
    }

    fn found(&self, slots: &[Raw<'_>]) -> Vec<ExplainedPattern> {
        let mapping = &self.rules.rules.mapping;
        let single = |kind: &'static str, of: &Pattern| ExplainedPattern {
            kind,
            pattern: of.to_string(),
            value: self.values_of(of, slots),
        };
        let mut found: Vec<ExplainedPattern> = mapping.bitmap.iter().map(|of| single("bitmap", of)).collect();
        found.extend(mapping.bitmap_by.iter().map(|by| ExplainedPattern {
            kind: "bitmap_by",
            pattern: format!("{} by {}", by.of, by.key),
            value:
                self.values_of(&by.of, slots).and_then(|of| Ok(format!("{of} by {}", self.values_of(&by.key, slots)?))),
        }));
        found.extend(mapping.add.iter().map(|of| single("add", of)));
        found.extend(mapping.add_value.iter().map(|sum| {
            ExplainedPattern {
                kind: "add_value",
                pattern: format!("{} of {}", sum.add_key, sum.key),
                value: self
                    .values_of(&sum.key, slots)
                    .and_then(|key| Ok(format!("{} of {key}", self.amount(&sum.add_key, slots)?))),
            }
        }));
        found.extend(mapping.top.iter().map(|of| single("top", of)));
        found
    }

    fn values_of(&self, pattern: &Pattern, slots: &[Raw<'_>]) -> Result<String, Absent> {
        let values: Result<Vec<String>, Absent> = pattern.fields().map(|field| self.value_of(field, slots)).collect();
        values.map(|values| values.join(" ~ "))
    }

    fn value_of(&self, field: &str, slots: &[Raw<'_>]) -> Result<String, Absent> {
        let raw = self.raw(field, slots);
        let why = match raw {
            Raw::Absent => NO_SUCH_FIELD,
            Raw::Null => "it is null",
            Raw::Text(_) => "it is empty",
            Raw::Number(_) => "it is too large a number",
            Raw::Bool(_) | Raw::Container => "it is an object or an array; name a field inside an object with a dot",
        };
        raw.text().map(|text| excerpt(&text)).ok_or_else(|| Absent { field: excerpt(field), why })
    }

    fn amount(&self, field: &str, slots: &[Raw<'_>]) -> Result<String, Absent> {
        let value = self.value_of(field, slots)?;
        let number = match self.raw(field, slots) {
            Raw::Number(text) => Some(&**text),
            Raw::Text(text) => Some(trim(text)).filter(|text| is_number(text)),
            _ => None,
        };
        let absent = |why| Absent { field: excerpt(field), why };
        let number = number.ok_or_else(|| absent("it is no number"))?;
        micros(number).map(|_| value).ok_or_else(|| absent("it is a million millions or more, which is not summed"))
    }

    fn raw<'s, 'a>(&self, field: &str, slots: &'s [Raw<'a>]) -> &'s Raw<'a> {
        let id = self.reader.names().iter().position(|known| **known == *field);
        id.map_or(&Raw::Absent, |id| self.reader.field(slots, id))
    }
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl Absent {
    /// The event has nothing of this name: the mapping may be wrong.
    pub fn is_unknown(&self) -> bool {
        self.why == NO_SUCH_FIELD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Rules;
    use traqq_core::model::TopicPartition;

    fn explain(mapping: &str, event: &str) -> Vec<String> {
        let rules: Rules = serde_json::from_str(&format!(r#"{{"mapping":{mapping}}}"#)).unwrap();
        let mut records = RecordBatch::new(TopicPartition::new("t", 0), 0);
        records.push(0, 1_700_000_000_000, None, Some(event.as_bytes()));
        let (explained, _) = Explainer::new(Plan::new(rules.validate().unwrap())).explain(records);
        let lines = explained.events.into_iter().flat_map(|event| match event {
            Err(refused) => vec![refused.detail],
            Ok(event) => {
                let head = format!("{} {} {:?}", event.name, event.second, event.time_field);
                let lines = event.patterns.into_iter().map(|found| match found.value {
                    Ok(value) => format!("{} {} = {value}", found.kind, found.pattern),
                    Err(absent) => format!("{} {}: {absent}", found.kind, found.pattern),
                });
                std::iter::once(head).chain(lines).collect()
            }
        });
        lines.collect()
    }

    #[test]
    fn every_pattern_says_what_it_finds() {
        let mapping = r#"{"bitmap":["ip"],"add":["event~items.*.sku"],"top":["d","d.e"],
            "add_value":[{"key":"event","add_key":"amount"},{"key":"event","add_key":"ip"}]}"#;
        let event = r#"{"type":"buy","ip":"1.2.3.4","amount":"5.50","ts":1700000000,"d":{"e":null}}"#;
        assert_eq!(
            explain(mapping, event),
            [
                "buy 1700000000 Some(\"ts\")",
                "bitmap ip = 1.2.3.4",
                "add event~items.*.sku: items.*.sku: no such field",
                "add_value amount of event = 5.50 of buy",
                "add_value ip of event: ip: it is no number",
                "top d: d: it is an object or an array; name a field inside an object with a dot",
                "top d.e: d.e: it is null",
            ]
        );
        let several = explain(r#"{"add":["event"]}"#, r#"[{"event":"a"},{"x":1}]"#);
        assert_eq!(several[..2], ["a 1700000000 None", "add event = a"]);
        assert!(several[2].contains("the event has x"), "{several:?}");
    }

    /// An event that the fold refuses was explained as one that counts.
    #[test]
    fn what_only_the_fold_refuses_is_refused() {
        for (event, part) in [
            (r#"{"event":"a","ts":"2099-01-01T00:00:00Z"}"#, "more than a day ahead"),
            (r#"{"event":"a","ts":1}"#, "older than every bucket"),
            (r#"[{"event":"a"},{"event":"b","ts":1}]"#, "older than every bucket"),
        ] {
            let lines = explain(r#"{"add":["event"]}"#, event);
            assert!(lines.last().is_some_and(|line| line.contains(part)), "{event}: {lines:?}");
        }
        let sum = r#"{"add_value":[{"key":"event","add_key":"amount"}]}"#;
        let lines = explain(sum, r#"{"event":"a","amount":1e12}"#);
        assert!(lines[1].contains("not summed"), "{lines:?}");
    }
}
