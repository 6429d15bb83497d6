//! An event as a serde type: what `#[derive(Deserialize)]` with borrowed fields makes, but for a
//! member that appears twice, where a derived type fails and this one keeps the last.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::fields::{AMOUNT, Fields, NAMES, Scalar, TS, slot};

/// `N` is what the parser offers to borrow a number's text with.
pub struct Typed<'a, N> {
    pub labels: Fields<'a>,
    pub amount: Option<N>,
    pub ts: Option<N>,
}

impl<'de, N: Deserialize<'de>> Deserialize<'de> for Typed<'de, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TypedVisitor(PhantomData))
    }
}

struct TypedVisitor<N>(PhantomData<N>);

impl<'de, N: Deserialize<'de>> Visitor<'de> for TypedVisitor<N> {
    type Value = Typed<'de, N>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an event")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut event = Typed { labels: Default::default(), amount: None, ts: None };
        while let Some(Name(slot)) = map.next_key()? {
            match slot {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(AMOUNT) => event.amount = Some(map.next_value()?),
                Some(TS) => event.ts = Some(map.next_value()?),
                Some(label) => event.labels[label] = map.next_value::<Scalar>()?,
            }
        }
        Ok(event)
    }
}

/// A member's name, as its place in the fields.
pub struct Name(pub Option<usize>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a name such as {}", NAMES[0])
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name(slot(name)))
    }
}
