//! Extracts named fields from a JSON object while validating all of it.
//!
//! serde_json drives the parse: names that nobody asked for are skipped by its non-recursive `ignore_value`, wanted
//! values are taken as raw text. A path such as `device.type` costs a second look at the raw text of `device`, and
//! only when somebody asked for it. Nothing here recurses deeper than a path has dots.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Reason, label};

/// A field of the plan: an index into the names the extractor was made with.
pub type FieldId = usize;

/// A field's value as it stands in the record.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Raw<'a> {
    #[default]
    Absent,
    Null,
    Bool(bool),
    /// The text of a JSON number.
    Number(Cow<'a, str>),
    /// A string, escapes resolved, not trimmed.
    Text(Cow<'a, str>),
    /// An array or an object.
    Container,
}

impl<'a> Raw<'a> {
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    pub const fn is_string(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    fn from_json(raw: &'a str) -> Result<Self, Reason> {
        Ok(match raw.as_bytes()[0] {
            b'"' => Self::Text(unquote(raw)?),
            b'{' | b'[' => Self::Container,
            b't' => Self::Bool(true),
            b'f' => Self::Bool(false),
            b'n' => Self::Null,
            _ => Self::Number(Cow::Borrowed(raw)),
        })
    }
}

fn unquote(raw: &str) -> Result<Cow<'_, str>, Reason> {
    let inner = &raw[1..raw.len() - 1];
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).map(Cow::Owned).map_err(|_| Reason::InvalidJson)
}

/// What a key of an object leads to.
#[derive(Clone, Copy, Default)]
struct Target {
    slot: Option<usize>,
    node: Option<usize>,
}

/// The keys wanted of one object.
#[derive(Default)]
struct Node {
    keys: Vec<(Box<str>, Target)>,
    /// Slots filled from within this object, to be cleared when it appears again.
    inner_slots: Vec<usize>,
    /// Index into `keys` plus one, by [`bucket_of`]; the next in the chain is in `next`.
    heads: Vec<u16>,
    next: Vec<u16>,
}

const HEADS: usize = 128;

fn bucket_of(key: &[u8]) -> usize {
    let [first, .., last] = key else { return key.first().map_or(0, |&byte| byte as usize % HEADS) };
    (key.len() * 37 + *first as usize * 5 + *last as usize * 11) % HEADS
}

impl Node {
    fn find(&self, key: &str) -> Option<Target> {
        let mut at = self.heads[bucket_of(key.as_bytes())];
        while at != 0 {
            let index = at as usize - 1;
            let (name, target) = &self.keys[index];
            if **name == *key {
                return Some(*target);
            }
            at = self.next[index];
        }
        None
    }

    fn target(&mut self, key: &str) -> &mut Target {
        let index = self.keys.iter().position(|(name, _)| **name == *key).unwrap_or_else(|| {
            self.keys.push((key.into(), Target::default()));
            self.keys.len() - 1
        });
        &mut self.keys[index].1
    }

    fn index(&mut self) {
        self.heads = vec![0; HEADS];
        self.next = vec![0; self.keys.len()];
        for (index, (key, _)) in self.keys.iter().enumerate() {
            let head = &mut self.heads[bucket_of(key.as_bytes())];
            self.next[index] = std::mem::replace(head, index as u16 + 1);
        }
    }
}

/// Where the fields of a plan stand in an event, compiled once.
pub struct Extractor {
    nodes: Vec<Node>,
    names: Vec<Box<str>>,
    /// For each field the slot of its literal key and, if its name has dots, the slot of its path.
    slots_of: Vec<(usize, Option<usize>)>,
    slots: usize,
    event: FieldId,
    spec_version: FieldId,
}

impl Extractor {
    /// Names in the order of their ids; `event` is added when missing.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut extractor = Self {
            nodes: vec![Node::default()],
            names: Vec::new(),
            slots_of: Vec::new(),
            slots: 0,
            event: 0,
            spec_version: 0,
        };
        for name in names {
            extractor.add(name);
        }
        extractor.event = extractor.add("event");
        extractor.spec_version = extractor.add("specversion");
        extractor.nodes.iter_mut().for_each(Node::index);
        extractor
    }

    fn add(&mut self, name: &str) -> FieldId {
        if let Some(id) = self.names.iter().position(|known| **known == *name) {
            return id;
        }
        let literal = self.new_slot();
        self.nodes[0].target(name).slot = Some(literal);
        let path = name.contains('.').then(|| self.add_path(name));
        self.names.push(name.into());
        self.slots_of.push((literal, path));
        self.names.len() - 1
    }

    fn add_path(&mut self, name: &str) -> usize {
        let slot = self.new_slot();
        let mut parts: Vec<&str> = name.split('.').collect();
        let leaf = parts.pop().unwrap_or_default();
        let mut at = 0;
        for part in parts {
            let free = self.nodes.len();
            let next = *self.nodes[at].target(part).node.get_or_insert(free);
            if next == free {
                self.nodes.push(Node::default());
            }
            self.nodes[next].inner_slots.push(slot);
            at = next;
        }
        self.nodes[at].target(leaf).slot = Some(slot);
        slot
    }

    fn new_slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    /// How many slots [`Self::extract`] fills.
    pub fn slots(&self) -> usize {
        self.slots
    }

    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// The value of a field: the literal key if there is one, else what its path leads to.
    pub fn field<'s, 'a>(&self, slots: &'s [Raw<'a>], field: FieldId) -> &'s Raw<'a> {
        let (literal, path) = self.slots_of[field];
        match path {
            Some(path) if slots[literal].is_absent() => &slots[path],
            _ => &slots[literal],
        }
    }

    pub fn event<'s, 'a>(&self, slots: &'s [Raw<'a>]) -> &'s Raw<'a> {
        self.field(slots, self.event)
    }

    pub fn spec_version<'s, 'a>(&self, slots: &'s [Raw<'a>]) -> &'s Raw<'a> {
        self.field(slots, self.spec_version)
    }

    /// Replaces a field's value, whatever the record says.
    pub fn set<'a>(&self, slots: &mut [Raw<'a>], name: &str, value: Raw<'a>) {
        if let Some(field) = self.names.iter().position(|known| **known == *name) {
            slots[self.slots_of[field].0] = value;
        }
    }

    /// Fills the slots from a JSON object. All of the text is validated.
    pub fn extract<'a>(&self, text: &'a str, slots: &mut [Raw<'a>]) -> Result<(), Reason> {
        slots.fill(Raw::Absent);
        if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(validate(text).err().unwrap_or(Reason::NotAnObject));
        }
        self.fill(0, text, slots)?;
        reject_lone_surrogates(text)
    }

    fn fill<'a>(&self, node: usize, text: &'a str, slots: &mut [Raw<'a>]) -> Result<(), Reason> {
        let mut parser = serde_json::Deserializer::from_str(text);
        let visitor = ObjectVisitor { extractor: self, node: &self.nodes[node], slots };
        parser.deserialize_map(visitor).map_err(|_| Reason::InvalidJson)?;
        parser.end().map_err(|_| Reason::InvalidJson)
    }
}

/// Whether a text is JSON at all, whatever its shape.
pub fn validate(text: &str) -> Result<(), Reason> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let value: Result<&RawValue, _> = serde::Deserialize::deserialize(&mut parser);
    value.and_then(|_| parser.end()).map_err(|_| Reason::InvalidJson)?;
    reject_lone_surrogates(text)
}

/// serde_json lets lone surrogates pass in values it skips; they name no character, so they are refused everywhere.
fn reject_lone_surrogates(text: &str) -> Result<(), Reason> {
    let bytes = text.as_bytes();
    let mut expect_low_at = None;
    let mut from = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[from..]) {
        let at = from + found;
        if bytes.get(at + 1) != Some(&b'u') {
            from = at + 2;
            continue;
        }
        from = at + 6;
        let unit = text.get(at + 2..at + 6).and_then(|hex| u16::from_str_radix(hex, 16).ok());
        let is_low = matches!(unit, Some(0xDC00..=0xDFFF));
        if is_low != (expect_low_at == Some(at)) {
            return Err(Reason::InvalidJson);
        }
        expect_low_at = match unit {
            Some(0xD800..=0xDBFF) if bytes.get(from..from + 2) != Some(b"\\u") => return Err(Reason::InvalidJson),
            Some(0xD800..=0xDBFF) => Some(from),
            _ => None,
        };
    }
    Ok(())
}

struct ObjectVisitor<'e, 's, 'a> {
    extractor: &'e Extractor,
    node: &'e Node,
    slots: &'s mut [Raw<'a>],
}

impl<'a> Visitor<'a> for ObjectVisitor<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        use serde::de::Error;
        while let Some(target) = map.next_key_seed(KeySeed(self.node))? {
            let Some(target) = target else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&'a RawValue>()?.get();
            if let Some(slot) = target.slot {
                self.slots[slot] = Raw::from_json(raw).map_err(|_| M::Error::custom("string"))?;
            }
            if let Some(node) = target.node {
                for &slot in &self.extractor.nodes[node].inner_slots {
                    self.slots[slot] = Raw::Absent;
                }
                if raw.starts_with('{') {
                    self.extractor.fill(node, raw, self.slots).map_err(|_| M::Error::custom("object"))?;
                }
            }
        }
        Ok(())
    }
}

/// Finds a key among the wanted ones without allocating.
struct KeySeed<'e>(&'e Node);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<Target>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Option<Target>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.find(key))
    }
}

/// A field's value as text, trimmed; `None` when it does not count. Numbers are their label.
impl Raw<'_> {
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(label::trim(text)).filter(|text| !text.is_empty()).map(Cow::Borrowed),
            Self::Number(number) => super::number_label(number),
            Self::Bool(true) => Some(Cow::Borrowed("true")),
            Self::Bool(false) => Some(Cow::Borrowed("false")),
            Self::Absent | Self::Null | Self::Container => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract<'a>(names: &[&str], text: &'a str) -> Result<Vec<Raw<'a>>, Reason> {
        let extractor = Extractor::new(names.iter().copied());
        let mut slots = vec![Raw::Absent; extractor.slots()];
        extractor.extract(text, &mut slots)?;
        Ok((0..names.len()).map(|field| extractor.field(&slots, field).clone()).collect())
    }

    fn text(text: &str) -> Raw<'_> {
        Raw::Text(text.into())
    }

    #[test]
    fn takes_what_is_asked_for() {
        let event = r#"{"a":1.50,"b":"x","c":[1,{"a":2}],"d":{"e":{"f":"deep"}},"t":true,"n":null}"#;
        let found = extract(&["a", "b", "c", "d.e.f", "t", "n", "zz"], event).unwrap();
        let number = Raw::Number("1.50".into());
        assert_eq!(found, [number, text("x"), Raw::Container, text("deep"), Raw::Bool(true), Raw::Null, Raw::Absent]);
    }

    #[test]
    fn the_last_of_a_repeated_key_wins_with_nothing_left_of_the_first() {
        assert_eq!(extract(&["a"], r#"{"a":1,"a":"x"}"#).unwrap(), [text("x")]);
        let found = extract(&["d.a", "d.b"], r#"{"d":{"a":"1"},"d":{"b":"2"}}"#).unwrap();
        assert_eq!(found, [Raw::Absent, text("2")]);
        assert_eq!(extract(&["d.a"], r#"{"d":{"a":"1"},"d":5}"#).unwrap(), [Raw::Absent]);
    }

    #[test]
    fn a_literal_key_comes_before_the_path() {
        for event in [r#"{"d.a":"lit","d":{"a":"path"}}"#, r#"{"d":{"a":"path"},"d.a":"lit"}"#] {
            assert_eq!(extract(&["d.a"], event).unwrap(), [text("lit")]);
        }
        assert_eq!(extract(&["d.a"], r#"{"d":{"a":"x"},"d.a":null}"#).unwrap(), [Raw::Null]);
        assert_eq!(extract(&["d", "d.a"], r#"{"d":{"a":"x"}}"#).unwrap(), [Raw::Container, text("x")]);
    }

    #[test]
    fn escaped_keys_and_values_are_the_same_keys_and_values() {
        assert_eq!(extract(&["ab"], r#"{"\u0061b":"x\n\ud83d\ude00"}"#).unwrap(), [text("x\n\u{1F600}")]);
    }

    #[test]
    fn what_is_not_read_is_validated_too() {
        for event in [
            "",
            "{",
            r#"{"z":tru}"#,
            r#"{"z":01}"#,
            r#"{"z":NaN}"#,
            r#"{"z":[1,]}"#,
            r#"{"z":1,}"#,
            "{\"z\":\"a\nb\"}",
            r#"{"z":"\x"}"#,
            r#"{"z":"\ud800"}"#,
            r#"{"z":"\ud800\u0041"}"#,
            r#"{"z":"\udc00"}"#,
            r#"{"z":1} x"#,
            "{} {}",
            r#"{z:1}"#,
            r#"{"z":1e}"#,
            r#"{"z":.5}"#,
            r#"{"z":+1}"#,
            "\u{feff}{}",
            r#"[1"#,
            r#"{"z":"\ud83d\\ude00"}"#,
        ] {
            assert_eq!(extract(&["a"], event), Err(Reason::InvalidJson), "{event:?}");
        }
        for event in ["[1]", "1", "null", r#""x""#, " [] "] {
            assert_eq!(extract(&["a"], event), Err(Reason::NotAnObject), "{event:?}");
        }
        assert!(extract(&["a"], r#"{"z":1e999,"y":"\\ud800","x":"\ud83d\ude00"}"#).is_ok());
    }
}
