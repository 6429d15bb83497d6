//! What a parser has to hand over of an event: MEDIUM's fields, by traqq's rules.
//!
//! Strings unescaped; numbers as their text, or as a value where the parser keeps no text;
//! booleans; anything else is as absent. Of a member that appears twice the last counts, also when
//! the last is null.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

pub const NAMES: [&str; 8] = ["ip", "event", "utm_source", "geo", "utm_campaign", "amount", "url", "ts"];

/// The place of a member in [`Fields`].
pub fn slot(name: &str) -> Option<usize> {
    match name {
        "ip" => Some(0),
        "event" => Some(1),
        "utm_source" => Some(2),
        "geo" => Some(3),
        "utm_campaign" => Some(4),
        "amount" => Some(AMOUNT),
        "url" => Some(6),
        "ts" => Some(TS),
        _ => None,
    }
}

pub const AMOUNT: usize = 5;
pub const TS: usize = 7;

/// In the order of [`NAMES`].
pub type Fields<'a> = [Scalar<'a>; NAMES.len()];

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scalar<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    NumberText(&'a str),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
}

impl<'a> Scalar<'a> {
    /// From the raw text of a value already known to be valid JSON. `None` if it is a string whose
    /// escapes make no text (a lone surrogate).
    pub fn from_raw(raw: &'a str) -> Option<Self> {
        Some(match raw.as_bytes()[0] {
            b'"' if raw.contains('\\') => Scalar::Text(serde_json::from_str::<String>(raw).ok()?.into()),
            b'"' => Scalar::Text(raw[1..raw.len() - 1].into()),
            b'-' | b'0'..=b'9' => Scalar::NumberText(raw),
            b't' => Scalar::Bool(true),
            b'f' => Scalar::Bool(false),
            _ => Scalar::Absent,
        })
    }
}

/// The scalar with its kind in front, as conformance compares it; a number that kept no text in
/// shortest form.
impl fmt::Display for Scalar<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Absent => write!(out, "absent"),
            Scalar::Text(text) => write!(out, "text {text}"),
            Scalar::NumberText(number) => write!(out, "number {number}"),
            Scalar::Integer(number) => write!(out, "number {number}"),
            Scalar::Unsigned(number) => write!(out, "number {number}"),
            Scalar::Float(number) => write!(out, "number {number}"),
            Scalar::Bool(value) => write!(out, "bool {value}"),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(text.to_string().into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Unsigned(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Float(number))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Absent)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Absent)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<Self::Value, S::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Absent)
    }
}
