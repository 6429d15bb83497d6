//! serde_json: typed, raw slots, and the `Value` that the published crate starts from.
//!
//! From a slice it checks the UTF-8 of what it hands over, not of what it skips; so there are forms
//! that check the document first.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Deserializer, Value};

use super::Contender;
use super::typed::{Name, Typed};
use crate::fields::{AMOUNT, Fields, NAMES, Scalar, TS};

#[derive(Default)]
pub struct SerdeTyped;

impl Contender for SerdeTyped {
    const NAME: &'static str = "serde_json_typed";
    const NOTE: &'static str = "from_slice, borrowed labels, &RawValue numbers";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        serde_json::from_slice(document).is_ok_and(|event| read_typed(event, read))
    }
}

#[derive(Default)]
pub struct SerdeTypedUtf8;

impl Contender for SerdeTypedUtf8 {
    const NAME: &'static str = "serde_json_typed_utf8";
    const NOTE: &'static str = "simdutf8, then from_str, borrowed labels, &RawValue numbers";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        simdutf8::basic::from_utf8(document)
            .is_ok_and(|text| serde_json::from_str(text).is_ok_and(|event| read_typed(event, read)))
    }
}

fn read_typed(event: Typed<'_, &RawValue>, read: impl FnOnce(Fields<'_>)) -> bool {
    let Typed { mut labels, amount, ts } = event;
    for (slot, raw) in [(AMOUNT, amount), (TS, ts)] {
        let Some(scalar) = raw.map_or(Some(Scalar::Absent), |raw| Scalar::from_raw(raw.get())) else { return false };
        labels[slot] = scalar;
    }
    read(labels);
    true
}

#[derive(Default)]
pub struct RawSlots;

impl Contender for RawSlots {
    const NAME: &'static str = "serde_json_raw_slots";
    const NOTE: &'static str = "from_slice, DeserializeSeed into eight &RawValue";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let mut slots = [None; NAMES.len()];
        let mut deserializer = Deserializer::from_slice(document);
        let parsed = Slots(&mut slots).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        parsed.is_ok() && read_slots(slots, read)
    }
}

#[derive(Default)]
pub struct RawSlotsUtf8;

impl Contender for RawSlotsUtf8 {
    const NAME: &'static str = "serde_json_raw_slots_utf8";
    const NOTE: &'static str = "simdutf8, then from_str, DeserializeSeed into eight &RawValue";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let Ok(text) = simdutf8::basic::from_utf8(document) else { return false };
        let mut slots = [None; NAMES.len()];
        let mut deserializer = Deserializer::from_str(text);
        let parsed = Slots(&mut slots).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        parsed.is_ok() && read_slots(slots, read)
    }
}

fn read_slots(slots: [Option<&RawValue>; NAMES.len()], read: impl FnOnce(Fields<'_>)) -> bool {
    let mut fields = Fields::default();
    for (field, raw) in fields.iter_mut().zip(slots) {
        let Some(scalar) = raw.map_or(Some(Scalar::Absent), |raw| Scalar::from_raw(raw.get())) else { return false };
        *field = scalar;
    }
    read(fields);
    true
}

struct Slots<'s, 'de>(&'s mut [Option<&'de RawValue>; NAMES.len()]);

impl<'de> DeserializeSeed<'de> for Slots<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Slots<'_, 'de> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an event")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(Name(slot)) = map.next_key()? {
            match slot {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(slot) => self.0[slot] = Some(map.next_value()?),
            }
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct SerdeValue;

impl Contender for SerdeValue {
    const NAME: &'static str = "serde_json_value";
    const NOTE: &'static str = "from_slice to Value, get by name";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let Ok(Value::Object(members)) = serde_json::from_slice(document) else { return false };
        read(NAMES.map(|name| match members.get(name) {
            Some(Value::String(text)) => Scalar::Text(Cow::Borrowed(text)),
            Some(Value::Bool(value)) => Scalar::Bool(*value),
            Some(Value::Number(number)) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), _, _) => Scalar::Integer(number),
                (_, Some(number), _) => Scalar::Unsigned(number),
                (_, _, Some(number)) => Scalar::Float(number),
                _ => Scalar::Absent,
            },
            _ => Scalar::Absent,
        }));
        true
    }
}
