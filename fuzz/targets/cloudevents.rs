//! A record with headers, written like an HTTP message: `name: value` a line, an empty line, the
//! value. No header at all is the structured mode.
//!
//! An event in binary mode and the same one written as one JSON object have the same fields.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use traqq_core::decode::EventRules;
use traqq_core::decode::{Decoded, EventReader, Raw, Reason, Shape};
use traqq_core::model::{Header, RecordBatch};
use traqq_fuzz::{fold, record};

const NAMES: [&str; 8] = ["event", "a", "d.a", "ce.type", "ce.subject", "ce.time", "ce.x.y", "ts"];

fuzz_target!(|bytes: &[u8]| {
    let Some((headers, value)) = message(bytes) else { return };
    _ = fold(record(Some(value), headers.iter().copied()));
    let batch = record(Some(value), headers.iter().copied());
    let read = fields(&batch);
    if let Some(structured) = structured(&headers, value)
        && let Ok((true, binary)) = read
    {
        let batch = record(Some(structured.as_bytes()), std::iter::empty());
        assert_eq!(fields(&batch), Ok((true, binary)), "{structured}");
    }
});

/// `None` when a line is no header.
fn message(bytes: &[u8]) -> Option<(Vec<Header<'_>>, &[u8])> {
    let (mut headers, mut rest) = (Vec::new(), bytes);
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            return Some((headers, rest));
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?;
        // A name without a colon and a space has a value that is null.
        headers.push((name, line[colon + 1..].strip_prefix(b" ")));
    }
}

/// Whether it is a CloudEvent, and its fields.
fn fields(batch: &RecordBatch) -> Result<(bool, Vec<Raw<'static>>), Reason> {
    let reader = EventReader::new(&EventRules::default(), NAMES);
    let mut slots = vec![Raw::Absent; reader.slots()];
    let decoded = reader.read(&batch.get(0), &mut Shape::default(), &mut slots)?;
    let field = |id| match reader.field(&slots, id).clone() {
        // An attribute that is missing and one that is null count alike.
        Raw::Absent | Raw::Null => Raw::Absent,
        Raw::Bool(value) => Raw::Bool(value),
        Raw::Number(text) => Raw::Number(text.into_owned().into()),
        Raw::Text(text) => Raw::Text(text.into_owned().into()),
        Raw::Container => Raw::Container,
    };
    Ok((decoded == Decoded::CloudEvent, (0..NAMES.len()).map(field).collect()))
}

/// The event as one JSON object, where it can be written as one.
fn structured(headers: &[Header<'_>], value: &[u8]) -> Option<String> {
    let mut members = Vec::new();
    let mut has_type = false;
    for (name, value) in headers {
        match name.strip_prefix("ce_").or_else(|| name.strip_prefix("ce-")) {
            Some("event" | "data") => return None,
            Some(attribute) => {
                let text = std::str::from_utf8((*value)?).ok()?;
                has_type |= attribute == "type";
                members.push(format!("{}:{}", serde_json::json!(attribute), serde_json::json!(text)));
            }
            None if *name == "content-type" => return None,
            None => {}
        }
    }
    if !value.is_empty() {
        let data: &RawValue = serde_json::from_slice(value).ok()?;
        members.push(format!("\"data\":{}", data.get()));
    }
    // One level more.
    let depth = value.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
    (has_type && depth < EventRules::default().max_depth).then(|| format!("{{{}}}", members.join(",")))
}
