//! CloudEvents 1.0: structured (one JSON object) and binary mode (attributes in the headers `ce_*`
//! of Kafka, `ce-*` of NATS).
//!
//! Both are turned into the shape of a plain event: `type` becomes the field `event`, `time` is
//! looked at before the configured time fields, the members of the data are the properties, and
//! attribute `x` is the property `ce.x`.

use std::borrow::Cow;

use super::extract::validate;
use super::{EventRules, Extractor, Raw, Reason, Shape, limits};
use crate::model::Record;

/// The name under which the time attribute is looked up, in front of the configured time fields.
pub const TIME: &str = "ce.time";
const ATTRIBUTE_PREFIX: &str = "ce.";
/// Of the headers that are attributes: in Kafka, in NATS.
const HEADER_PREFIXES: [&str; 2] = ["ce_", "ce-"];

fn attribute_of(header: &str) -> Option<&str> {
    HEADER_PREFIXES.iter().find_map(|prefix| header.strip_prefix(prefix))
}

pub fn is_binary(record: &Record<'_>) -> bool {
    record.headers().any(|(name, _)| attribute_of(name) == Some("specversion"))
}

pub fn decode_binary<'a>(
    extractor: &Extractor,
    rules: &EventRules,
    record: &Record<'a>,
    shape: &mut Shape,
    slots: &mut [Raw<'a>],
) -> Result<(), Reason> {
    slots.fill(Raw::Absent);
    let value = record.value.unwrap_or_default();
    if value.len() > rules.max_event_bytes {
        return Err(Reason::TooLarge);
    }
    let is_json = record
        .headers()
        .find(|(name, _)| *name == "content-type")
        .is_none_or(|(_, value)| names_json(value.unwrap_or_default()));
    if is_json && !value.is_empty() {
        let text = limits::check(value, rules)?;
        match extractor.extract(text, shape, slots) {
            Ok(()) => {}
            Err(Reason::NotAnObject) => slots.fill(Raw::Absent),
            Err(reason) => return Err(reason),
        }
    }
    clear_attributes(extractor, slots);
    extractor.set(slots, "event", Raw::Absent);
    for (name, value) in record.headers() {
        let Some(attribute) = attribute_of(name) else { continue };
        let value = match value {
            None => Raw::Null,
            Some(bytes) => Raw::Text(Cow::Borrowed(std::str::from_utf8(bytes).map_err(|_| Reason::InvalidUtf8)?)),
        };
        if attribute == "type" {
            extractor.set(slots, "event", value.clone());
        }
        extractor.set(slots, &format!("{ATTRIBUTE_PREFIX}{attribute}"), value);
    }
    Ok(())
}

fn names_json(content_type: &[u8]) -> bool {
    let content_type = content_type.to_ascii_lowercase();
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    memchr::memmem::find(media_type, b"json").is_some()
}

/// `text` has been validated, and is an object with a string `specversion` and no `event`. `false`
/// when it is a plain event all the same: its slots are as they were.
pub fn decode_structured<'a>(
    extractor: &Extractor,
    text: &'a str,
    shape: &mut Shape,
    slots: &mut [Raw<'a>],
) -> Result<bool, Reason> {
    let wanted: Vec<&str> = attributes(extractor).collect();
    let envelope = Extractor::new(wanted.iter().copied().chain(["type"]));
    let mut attributes = vec![Raw::Absent; envelope.slots()];
    envelope.extract(text, &mut Shape::default(), &mut attributes)?;
    let attribute = |name: &str| {
        let field = envelope.names().iter().position(|known| **known == *name);
        field.map_or(Raw::Absent, |field| envelope.field(&attributes, field).clone())
    };
    let event_type = attribute("type");
    if !event_type.is_string() {
        return Ok(false);
    }
    match data_of(text)? {
        Some(data) if data.starts_with('{') => extractor.extract(data, shape, slots)?,
        Some(data) => {
            validate(data)?;
            slots.fill(Raw::Absent);
        }
        None => slots.fill(Raw::Absent),
    }
    clear_attributes(extractor, slots);
    for name in wanted {
        let value = attribute(name);
        if !value.is_absent() {
            extractor.set(slots, &format!("{ATTRIBUTE_PREFIX}{name}"), value);
        }
    }
    extractor.set(slots, "event", event_type);
    Ok(true)
}

/// The attributes that the plan asks for.
fn attributes(extractor: &Extractor) -> impl Iterator<Item = &str> {
    extractor.names().iter().filter_map(|name| name.strip_prefix(ATTRIBUTE_PREFIX))
}

/// A member `ce` of the data must not pass for an attribute.
fn clear_attributes<'a>(extractor: &Extractor, slots: &mut [Raw<'a>]) {
    for name in extractor.names().iter().filter(|name| name.starts_with(ATTRIBUTE_PREFIX)) {
        extractor.set(slots, name, Raw::Null);
    }
}

/// Whether an object that has been validated is a CloudEvent.
pub fn is_structured(text: &str) -> bool {
    let envelope = Extractor::new(["type"]);
    let mut slots = vec![Raw::Absent; envelope.slots()];
    envelope.extract(text, &mut Shape::default(), &mut slots).is_ok()
        && envelope.event(&slots).is_absent()
        && envelope.spec_version(&slots).is_string()
        && envelope.field(&slots, 0).is_string()
}

fn data_of(text: &str) -> Result<Option<&str>, Reason> {
    #[derive(serde::Deserialize)]
    struct Last<'a>(#[serde(borrow)] std::collections::HashMap<Cow<'a, str>, &'a serde_json::value::RawValue>);
    let members: Last<'_> = serde_json::from_str(text).map_err(|_| Reason::InvalidJson)?;
    Ok(members.0.get("data").map(|raw| raw.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In structured mode an attribute that the event does not have was looked up in its data: a
    /// member `ce` there set the time of the event, and its subject. Found by fuzzing, which
    /// compares both modes.
    #[test]
    fn a_member_of_the_data_is_no_attribute() {
        let event = r#"{"specversion":"1.0","type":"t","source":"s","data":{"ce":{"time":5,"subject":"x"},"ce.id":1}}"#;
        let extractor = Extractor::new(["ce.time", "ce.subject", "ce.id", "ce.source"]);
        let mut slots = vec![Raw::Absent; extractor.slots()];
        let decoded = decode_structured(&extractor, event, &mut Shape::default(), &mut slots);
        assert_eq!(decoded, Ok(true));
        let found = [0, 1, 2, 3].map(|field| extractor.field(&slots, field).clone());
        assert_eq!(found, [Raw::Null, Raw::Null, Raw::Null, Raw::Text("s".into())]);
    }
}
