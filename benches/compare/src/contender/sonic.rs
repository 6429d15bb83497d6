//! sonic-rs. It picks its instructions when it is compiled: build with `-C target-cpu=native` to
//! see it at its best.

use std::borrow::Cow;

use sonic_rs::{JsonNumberTrait, JsonType, JsonValueTrait, LazyValue, Object, PointerTree, to_object_iter};

use super::Contender;
use super::typed::Typed;
use crate::fields::{AMOUNT, Fields, NAMES, Scalar, TS, slot};

/// `None` where the escapes of a string make no text.
fn scalar<'a>(value: &'a LazyValue<'_>) -> Option<Scalar<'a>> {
    Some(match value.get_type() {
        JsonType::String => Scalar::Text(Cow::Borrowed(value.as_str()?)),
        JsonType::Number => Scalar::NumberText(value.as_raw_str()),
        JsonType::Boolean => Scalar::Bool(value.as_bool()?),
        JsonType::Null | JsonType::Object | JsonType::Array => Scalar::Absent,
    })
}

fn read_lazy(slots: &[Option<LazyValue<'_>>], read: impl FnOnce(Fields<'_>)) -> bool {
    let mut fields = Fields::default();
    for (field, value) in fields.iter_mut().zip(slots) {
        let Some(scalar) = value.as_ref().map_or(Some(Scalar::Absent), scalar) else { return false };
        *field = scalar;
    }
    read(fields);
    true
}

pub struct SonicGetMany(PointerTree);

impl Default for SonicGetMany {
    fn default() -> Self {
        let mut tree = PointerTree::new();
        NAMES.iter().for_each(|name| tree.add_path([*name]));
        Self(tree)
    }
}

impl Contender for SonicGetMany {
    const NAME: &'static str = "sonic_rs_get_many";
    const NOTE: &'static str = "checked get_many; ends at the last field wanted";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        sonic_rs::get_many(document, &self.0).is_ok_and(|slots| read_lazy(&slots, read))
    }
}

#[derive(Default)]
pub struct SonicObjectIter;

impl Contender for SonicObjectIter {
    const NAME: &'static str = "sonic_rs_object_iter";
    const NOTE: &'static str = "checked to_object_iter over all members, LazyValue slots";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let mut slots: [Option<LazyValue<'_>>; NAMES.len()] = Default::default();
        for member in to_object_iter(document) {
            let Ok((name, value)) = member else { return false };
            if let Some(slot) = slot(&name) {
                slots[slot] = Some(value);
            }
        }
        read_lazy(&slots, read)
    }
}

#[derive(Default)]
pub struct SonicTyped;

impl Contender for SonicTyped {
    const NAME: &'static str = "sonic_rs_typed";
    const NOTE: &'static str = "from_slice, borrowed labels, LazyValue numbers";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let Ok(event) = sonic_rs::from_slice(document) else { return false };
        let Typed::<LazyValue<'_>> { mut labels, amount, ts } = event;
        for (slot, value) in [(AMOUNT, &amount), (TS, &ts)] {
            let Some(scalar) = value.as_ref().map_or(Some(Scalar::Absent), scalar) else { return false };
            labels[slot] = scalar;
        }
        read(labels);
        true
    }
}

#[derive(Default)]
pub struct SonicValue;

impl Contender for SonicValue {
    const NAME: &'static str = "sonic_rs_value";
    const NOTE: &'static str = "from_slice to Value, members in order; floats as f64";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let Ok(members) = sonic_rs::from_slice::<Object>(document) else { return false };
        let mut fields = Fields::default();
        for (name, value) in members.iter() {
            let Some(slot) = slot(name) else { continue };
            fields[slot] = if let Some(text) = value.as_str() {
                Scalar::Text(Cow::Borrowed(text))
            } else if let Some(number) = value.as_number() {
                match (number.as_i64(), number.as_u64(), number.as_f64()) {
                    (Some(number), _, _) => Scalar::Integer(number),
                    (_, Some(number), _) => Scalar::Unsigned(number),
                    (_, _, Some(number)) => Scalar::Float(number),
                    _ => Scalar::Absent,
                }
            } else {
                value.as_bool().map_or(Scalar::Absent, Scalar::Bool)
            };
        }
        read(fields);
        true
    }
}
