//! What exactly is wrong with a record, for whoever sent it. Slow, and only asked about records
//! that are dead letters already.

use std::borrow::Cow;
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat};
use serde_json::Value;

use super::scan::Scanner;
use super::{Decoded, EventReader, Raw, Reason, Shape, TimeSource, limits};
use crate::model::Record;

/// Of a value that is shown.
const EXCERPT_CHARS_MAX: usize = 64;
/// Of the fields that are listed.
const PATHS_MAX: usize = 20;

impl EventReader {
    /// A sentence that says why the record, or an event out of one, was refused for `reason`: where
    /// it is wrong and what would be right. One line, no control characters.
    pub fn describe(&self, record: &Record<'_>, reason: Reason) -> String {
        let what = reason.explain();
        match self.particulars(record, reason) {
            Some(particulars) => format!("{what}: {particulars}"),
            None => what.to_owned(),
        }
    }

    fn particulars(&self, record: &Record<'_>, reason: Reason) -> Option<String> {
        let value = record.value.unwrap_or_default();
        let events = &self.rules;
        Some(match reason {
            Reason::TooLarge => format!("it has {}, the limit is {}", value.len(), events.max_event_bytes),
            Reason::InvalidUtf8 => {
                let at = std::str::from_utf8(limits::body(value)).err().map_or(0, |error| error.valid_up_to());
                match encoding_of(value) {
                    Some(encoding) => format!("it looks like {encoding}"),
                    None => format!("byte {at} (the first is 0) does not belong there"),
                }
            }
            Reason::TooDeep => format!("the limit is {} levels", events.max_depth),
            Reason::InvalidJson => syntax_error(std::str::from_utf8(limits::body(value)).ok()?),
            Reason::NotAnObject => format!("this is {}", kind_of(std::str::from_utf8(limits::body(value)).ok()?)),
            Reason::NoEvent => self.missing_name(record),
            Reason::NoTime if events.require_time => {
                format!("none of {} is there, and events.require_time is set", listed(&events.time_fields))
            }
            Reason::NoTime => {
                let record_has = match record.timestamp_ms {
                    ..0 => "its record has none".to_owned(),
                    ms => format!("the time of its record is {ms} ms, which is before the year 2000"),
                };
                format!("none of {} is there, and {record_has}", listed(&events.time_fields))
            }
            Reason::TimeUnreadable | Reason::TimeInFuture | Reason::TooOld => self.time_found(record, reason)?,
            Reason::TooManyMetrics => format!("the limit is {}", events.max_metrics_per_event),
            Reason::TooManyEvents => format!("the limit is {}", events.max_events_per_record),
        })
    }

    fn missing_name(&self, record: &Record<'_>) -> String {
        let value = record.value.unwrap_or_default();
        let mut text = String::new();
        if !self.rules.name_header.is_empty() {
            _ = write!(text, "there is no header {} with it, and ", excerpt(&self.rules.name_header));
        }
        _ = write!(text, "none of {} is a string with something in it", listed(&self.rules.name_fields));
        let paths = std::str::from_utf8(limits::body(value)).map(paths).unwrap_or_default();
        if !paths.is_empty() {
            _ = write!(text, "; the event has {}", paths.join(", "));
        }
        text
    }

    fn time_found(&self, record: &Record<'_>, reason: Reason) -> Option<String> {
        let mut slots = vec![Raw::Absent; self.slots()];
        // An event out of a record may have had its name from the record's header.
        let decoded = self.read(record, &mut Shape::default(), &mut slots);
        let is_cloud_event = decoded == Ok(Decoded::CloudEvent);
        let (name, value) = match self.time_source(is_cloud_event, &slots) {
            TimeSource::Field(name) => {
                let id = self.names().iter().position(|known| **known == *name)?;
                (name, shown(self.field(&slots, id)))
            }
            TimeSource::Record => ("the record's time", format!("{} ms", record.timestamp_ms)),
        };
        if reason == Reason::TimeUnreadable {
            return Some(format!("{} is {value}{}", excerpt(name), self.hint(&value)));
        }
        let second = self.second(is_cloud_event, &slots, record.timestamp_ms).ok()?;
        let (at, broker) = (instant(second * 1000), instant(record.timestamp_ms));
        Some(match reason {
            Reason::TimeInFuture => format!("{} is {value}, that is {at}; its record is of {broker}", excerpt(name)),
            _ => format!("{} is {value}, that is {at}", excerpt(name)),
        })
    }

    fn hint(&self, value: &str) -> &'static str {
        let is_date = value.len() == 12 && value.bytes().filter(|byte| *byte == b'-').count() == 2;
        let is_local = value.len() >= 21 && value.bytes().filter(|byte| *byte == b':').count() == 2;
        match (is_date, is_local && self.rules.time_zone_default.is_empty()) {
            (true, _) => ", a date without a time of day",
            (_, true) => "; a time without a zone needs events.time_zone_default",
            _ => "",
        }
    }
}

/// Where a text stops being JSON, and what was expected there.
fn syntax_error(text: &str) -> String {
    if text.trim_ascii().is_empty() {
        return "the value is empty".to_owned();
    }
    if text.starts_with('\u{feff}') {
        return "a byte order mark stands before it".to_owned();
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Err(error) => {
            let message = error.to_string();
            let expected = message.split(" at line ").next().unwrap_or_default();
            format!("line {}, column {}: {expected}", error.line(), error.column())
        }
        // The one thing that we refuse and others skip over.
        Ok(_) => {
            let mut scanner = Scanner::new(text);
            _ = scanner.skip_value();
            format!("byte {} (the first is 0): a \\u escape of half a surrogate pair", scanner.position())
        }
    }
}

/// Encodings that are taken for text by mistake, by their first bytes.
fn encoding_of(value: &[u8]) -> Option<&'static str> {
    Some(match value {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => return None,
    })
}

fn kind_of(text: &str) -> &'static str {
    match text.trim_ascii().as_bytes().first() {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn shown(raw: &Raw<'_>) -> String {
    match raw {
        Raw::Absent | Raw::Null => "null".to_owned(),
        Raw::Bool(value) => value.to_string(),
        Raw::Number(text) => cut(text).into_owned(),
        Raw::Text(text) => format!("{:?}", cut(text)),
        Raw::Container => "an object or an array".to_owned(),
    }
}

fn instant(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms);
    time.map_or_else(|| format!("{ms} ms"), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| excerpt(name)).collect();
    names.join(", ")
}

fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

/// A piece of an event to show to a person: short, and nothing in it commands a terminal.
pub fn excerpt(text: &str) -> String {
    cut(text).escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

/// The dotted paths of what an event has, as a mapping may name them.
pub fn paths(text: &str) -> Vec<String> {
    fn walk(value: &Value, prefix: &str, found: &mut Vec<String>) {
        let Value::Object(members) = value else { return };
        for (name, value) in members {
            if found.len() > PATHS_MAX {
                return;
            }
            let path = if prefix.is_empty() { excerpt(name) } else { format!("{prefix}.{}", excerpt(name)) };
            match value {
                Value::Object(inner) if !inner.is_empty() => walk(value, &path, found),
                Value::Array(_) => found.push(format!("{path} (an array)")),
                _ => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_str(text) {
        walk(&value, "", &mut found);
    }
    if found.len() > PATHS_MAX {
        found.truncate(PATHS_MAX);
        found.push("more".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::EventRules;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn describe(value: &[u8], reason: Reason) -> String {
        EventReader::new(&EventRules::default(), []).describe(&Record::of_value(value, NOW_MS), reason)
    }

    #[test]
    fn each_reason_says_where_and_why() {
        for (value, reason, part) in [
            ("{\"event\":\"a\"\n,}", Reason::InvalidJson, "line 2, column 2: key must be a string"),
            ("", Reason::InvalidJson, "the value is empty"),
            ("\u{feff}{}", Reason::InvalidJson, "byte order mark"),
            (r#"{"a":"\ud800"}"#, Reason::InvalidJson, "half a surrogate pair"),
            ("[1", Reason::InvalidJson, "EOF while parsing a list"),
            ("\"x\"", Reason::NotAnObject, "a string"),
            (
                r#"{"type":7,"d":{"a":1,"b":[]}}"#,
                Reason::NoEvent,
                "none of event, event_type, type, event_name, name is a string with something in it; \
                 the event has d.a, d.b (an array), type",
            ),
            (r#"{"event":"a","time":"soon\u001b"}"#, Reason::TimeUnreadable, r#"time is "soon\u{1b}""#),
            (r#"{"event":"a","ts":"2023-11-14"}"#, Reason::TimeUnreadable, "a date without a time of day"),
            (
                r#"{"event":"a","ts":1800000000}"#,
                Reason::TimeInFuture,
                "ts is 1800000000, that is 2027-01-15T08:00:00Z; its record is of 2023-11-14T22:13:20Z",
            ),
            (r#"{"event":"a","ts":1}"#, Reason::TooOld, "ts is 1, that is 1970-01-01T00:00:01Z"),
        ] {
            let text = describe(value.as_bytes(), reason);
            assert!(text.contains(part), "{value}: {text}");
            assert!(text.starts_with(reason.explain()) && !text.contains(char::is_control), "{text}");
        }
        assert!(describe(b"\xff\xfe{\0", Reason::InvalidUtf8).contains("UTF-16"));
        assert!(describe(b"{\"\xff\"}", Reason::InvalidUtf8).contains("byte 2 "));
    }
}
