//! Any text: the scanner and serde_json agree on whether it is JSON and on what its fields are, and
//! the door and the fold on whether it is an event.
//!
//! serde_json skips over lone surrogates in what it does not read, and knows no bound on depth.

#![no_main]

use std::borrow::Cow;
use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde_json::value::RawValue;
use traqq_core::decode::{Extractor, Raw, Reason, Shape, is_number, micros, number_label, validate};
use traqq_fuzz::{fold, judge, record};

const NAMES: [&str; 6] = ["a", "d", "d.a", "d.e.f", "d.e", "event"];
const DEPTH_MAX: usize = 128;

#[derive(Deserialize)]
struct Members<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let is_valid = validate(text);
        match is_valid {
            Ok(()) => assert!(is_json(text)),
            Err(Reason::InvalidJson) => assert!(!is_json(text)),
            Err(reason) => {
                assert_eq!(reason, Reason::TooDeep);
                assert!(bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > DEPTH_MAX);
            }
        }
        fields(text, is_valid);
        number(text);
    }
    event(bytes);
});

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok() && !has_lone_surrogate(text)
}

/// Of a text that is JSON but for that, so that a backslash is always in a string.
fn has_lone_surrogate(text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        let unit = |text: &str| u32::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok();
        rest = match unit(escape) {
            None => &escape[2..],
            Some(0xd800..=0xdbff) if matches!(unit(&escape[6..]), Some(0xdc00..=0xdfff)) => &escape[12..],
            Some(0xd800..=0xdfff) => return true,
            Some(_) => &escape[6..],
        };
    }
    false
}

fn fields(text: &str, is_valid: Result<(), Reason>) {
    let extractor = Extractor::new(NAMES);
    let mut slots = vec![Raw::Absent; extractor.slots()];
    let mut shape = Shape::default();
    // What was learned from an event changes nothing for the next.
    for _ in 0..3 {
        let extracted = extractor.extract(text, &mut shape, &mut slots);
        match is_valid {
            Ok(()) if !text.trim_start().starts_with('{') => assert_eq!(extracted, Err(Reason::NotAnObject)),
            _ => assert_eq!(extracted, is_valid),
        }
        if extracted.is_err() {
            continue;
        }
        let members: Members<'_> = serde_json::from_str(text).expect("it is an object");
        for (id, name) in NAMES.iter().enumerate() {
            assert_eq!(*extractor.field(&slots, id), expected(&members, name), "{name}");
        }
    }
}

/// The literal key, else the path.
fn expected<'a>(members: &Members<'a>, name: &str) -> Raw<'a> {
    if let Some(value) = members.0.get(name) {
        return raw(value);
    }
    let Some((first, rest)) = name.split_once('.') else { return Raw::Absent };
    let inner = members.0.get(first).and_then(|value| serde_json::from_str::<Members<'_>>(value.get()).ok());
    inner.map_or(Raw::Absent, |inner| path(&inner, rest))
}

fn path<'a>(members: &Members<'a>, name: &str) -> Raw<'a> {
    let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    match (members.0.get(first), rest) {
        (None, _) => Raw::Absent,
        (Some(value), None) => raw(value),
        (Some(value), Some(rest)) => {
            serde_json::from_str::<Members<'_>>(value.get()).map_or(Raw::Absent, |inner| path(&inner, rest))
        }
    }
}

fn raw<'a>(value: &'a RawValue) -> Raw<'a> {
    match value.get().as_bytes()[0] {
        b'"' => Raw::Text(Cow::Owned(serde_json::from_str(value.get()).expect("a string"))),
        b'{' | b'[' => Raw::Container,
        b't' => Raw::Bool(true),
        b'f' => Raw::Bool(false),
        b'n' => Raw::Null,
        _ => Raw::Number(Cow::Borrowed(value.get())),
    }
}

fn number(text: &str) {
    let first = text.as_bytes().first().copied().unwrap_or_default();
    let is_json_number =
        (first == b'-' || first.is_ascii_digit()) && !text.ends_with([' ', '\t', '\n', '\r']) && is_json(text);
    assert_eq!(is_number(text), is_json_number);
    if !is_json_number {
        return;
    }
    if let Some(label) = number_label(text) {
        assert!(is_number(&label));
        assert_eq!(number_label(&label).as_deref(), Some(&*label), "a label is its own label");
    }
    let double: f64 = text.parse().expect("a number");
    match micros(text) {
        // Half a millionth for the rounding, and what a double of that size cannot tell apart.
        Some(micros) => assert!((micros.value as f64 - double * 1e6).abs() <= 0.51 + double.abs() * 1e6 / 1e15),
        None => assert!(double.abs() >= 999_999_999_999.0),
    }
}

fn event(bytes: &[u8]) {
    let (judged, folded) = (judge(bytes), fold(record(Some(bytes), std::iter::empty())));
    // The door takes a text apart before the limits on a record apply to it.
    if let [Err(Reason::TooLarge | Reason::TooDeep | Reason::TooManyEvents)] = folded[..] {
        return;
    }
    assert_eq!(judged.len(), folded.len());
    for pair in judged.into_iter().zip(folded) {
        match pair {
            // Only the fold knows the metrics.
            (judged, Err(Reason::TooManyMetrics)) => assert_eq!(judged, Ok(())),
            (judged, folded) => assert_eq!(judged, folded),
        }
    }
}
