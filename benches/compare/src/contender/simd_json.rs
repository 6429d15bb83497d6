//! simd-json. It parses in place, so each form first copies the document into a buffer of its own;
//! that is in the time.

use std::borrow::Cow;

use simd_json::value::borrowed;
use simd_json::{BorrowedValue, Buffers, Deserializer, INPUT_PADDING, Node, StaticNode, Tape};

use super::Contender;
use super::typed::Typed;
use crate::fields::{AMOUNT, Fields, NAMES, Scalar, TS, slot};

/// The document's copy with the padding behind it, and simd-json's own buffers.
struct Scratch {
    copy: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { copy: Vec::new(), buffers: Buffers::default(), tape: Tape::null() }
    }
}

impl Scratch {
    /// Parses into the tape and lends it to `read`.
    fn with_tape(&mut self, document: &[u8], read: impl FnOnce(&Tape<'_>) -> bool) -> bool {
        self.copy.clear();
        self.copy.extend_from_slice(document);
        self.copy.resize(document.len() + INPUT_PADDING, 0);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let parsed = simd_json::fill_tape_padded(&mut self.copy, document.len(), &mut self.buffers, &mut tape);
        let accepted = parsed.is_ok() && read(&tape);
        self.tape = tape.reset();
        accepted
    }
}

fn scalar<'a>(node: &StaticNode) -> Scalar<'a> {
    match *node {
        StaticNode::I64(number) => Scalar::Integer(number),
        StaticNode::U64(number) => Scalar::Unsigned(number),
        StaticNode::F64(number) => Scalar::Float(number),
        StaticNode::Bool(value) => Scalar::Bool(value),
        StaticNode::Null => Scalar::Absent,
    }
}

#[derive(Default)]
pub struct SimdTape(Scratch);

impl Contender for SimdTape {
    const NAME: &'static str = "simd_json_tape";
    const NOTE: &'static str = "padded copy, reused tape, members in order; floats as f64";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        self.0.with_tape(document, |tape| {
            let [Node::Object { .. }, members @ ..] = tape.0.as_slice() else { return false };
            let mut fields = Fields::default();
            let mut rest = members;
            while let [Node::String(name), value, ..] = rest {
                let (nodes, scalar) = match value {
                    Node::String(text) => (0, Scalar::Text(Cow::Borrowed(*text))),
                    Node::Static(node) => (0, scalar(node)),
                    Node::Object { count, .. } | Node::Array { count, .. } => (*count, Scalar::Absent),
                };
                if let Some(slot) = slot(name) {
                    fields[slot] = scalar;
                }
                rest = &rest[2 + nodes..];
            }
            read(fields);
            true
        })
    }
}

#[derive(Default)]
pub struct SimdBorrowed(Scratch);

impl Contender for SimdBorrowed {
    const NAME: &'static str = "simd_json_borrowed";
    const NOTE: &'static str = "copy, borrowed::to_value_with_buffers, get by name; floats as f64";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let Scratch { copy, buffers, .. } = &mut self.0;
        copy.clear();
        copy.extend_from_slice(document);
        let Ok(BorrowedValue::Object(members)) = borrowed::to_value_with_buffers(copy, buffers) else {
            return false;
        };
        read(NAMES.map(|name| match members.get(name) {
            Some(BorrowedValue::String(text)) => Scalar::Text(Cow::Borrowed(text)),
            Some(BorrowedValue::Static(node)) => scalar(node),
            _ => Scalar::Absent,
        }));
        true
    }
}

#[derive(Default)]
pub struct SimdTyped(Scratch);

impl Contender for SimdTyped {
    const NAME: &'static str = "simd_json_typed";
    const NOTE: &'static str = "copy, serde type from the deserializer; floats as f64";

    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool {
        let Scratch { copy, buffers, .. } = &mut self.0;
        copy.clear();
        copy.extend_from_slice(document);
        let Ok(mut deserializer) = Deserializer::from_slice_with_buffers(copy, buffers) else { return false };
        let Ok(event) = serde::Deserialize::deserialize(&mut deserializer) else { return false };
        let Typed::<Scalar> { mut labels, amount, ts } = event;
        labels[AMOUNT] = amount.unwrap_or_default();
        labels[TS] = ts.unwrap_or_default();
        read(labels);
        true
    }
}
