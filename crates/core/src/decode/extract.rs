//! Extracts named fields from a JSON object while validating all of it.
//!
//! The scanner drives: names that nobody asked for are skipped, wanted values are taken as text. A
//! path such as `device.type` costs a second look at the text of `device`, and only when somebody
//! asked for it. Nothing here recurses deeper than a path has dots.

use std::borrow::Cow;

use super::scan::{Scanned, Scanner, Spelled, Text};
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

    fn from_scanned(scanned: Scanned<'a>) -> Self {
        match scanned {
            Scanned::Null => Self::Null,
            Scanned::Bool(value) => Self::Bool(value),
            Scanned::Number(text) => Self::Number(Cow::Borrowed(text)),
            Scanned::Text(text) => Self::Text(unescape(text)),
            Scanned::Array | Scanned::Object(_) => Self::Container,
        }
    }
}

fn unescape(text: Text<'_>) -> Cow<'_, str> {
    if !text.has_escapes {
        return Cow::Borrowed(text.inside);
    }
    let quoted = format!("\"{}\"", text.inside);
    Cow::Owned(serde_json::from_str(&quoted).expect("the scanner validated the escapes"))
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

    pub const fn event_field(&self) -> FieldId {
        self.event
    }

    /// Gives the field `event` another value than the record's.
    pub fn set_event<'a>(&self, slots: &mut [Raw<'a>], value: Raw<'a>) {
        slots[self.slots_of[self.event].0] = value;
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
    pub fn extract<'a>(&self, text: &'a str, shape: &mut Shape, slots: &mut [Raw<'a>]) -> Result<(), Reason> {
        slots.fill(Raw::Absent);
        let mut scanner = Scanner::new(text);
        if scanner.peek() != Some(b'{') {
            return Err(validate(text).err().unwrap_or(Reason::NotAnObject));
        }
        self.fill_root(&mut scanner, shape, slots)?;
        scanner.end()
    }

    /// The outermost object, whose keys are guessed.
    fn fill_root<'a>(&self, scanner: &mut Scanner<'a>, shape: &mut Shape, slots: &mut [Raw<'a>]) -> Result<(), Reason> {
        scanner.open_object()?;
        let mut before = START;
        let mut is_first = true;
        while scanner.member(is_first)? {
            is_first = false;
            let (target, this) = match shape.guess(before, scanner) {
                Some(known) => known,
                None => {
                    let key = scanner.key()?;
                    let target = self.target(0, key);
                    (target, shape.learn(before, key, target))
                }
            };
            before = this;
            match target {
                Some(target) => self.store(target, scanner.value()?, slots)?,
                None => scanner.skip_value()?,
            }
        }
        Ok(())
    }

    fn target(&self, node: usize, key: Text<'_>) -> Option<Target> {
        let node = &self.nodes[node];
        if key.has_escapes { node.find(&unescape(key)) } else { node.find(key.inside) }
    }

    fn store<'a>(&self, target: Target, value: Scanned<'a>, slots: &mut [Raw<'a>]) -> Result<(), Reason> {
        if let Some(slot) = target.slot {
            slots[slot] = Raw::from_scanned(value);
        }
        if let Some(node) = target.node {
            for &slot in &self.nodes[node].inner_slots {
                slots[slot] = Raw::Absent;
            }
            if let Scanned::Object(text) = value {
                self.fill(node, &mut Scanner::new(text), slots)?;
            }
        }
        Ok(())
    }

    fn fill<'a>(&self, node: usize, scanner: &mut Scanner<'a>, slots: &mut [Raw<'a>]) -> Result<(), Reason> {
        scanner.open_object()?;
        let mut is_first = true;
        while scanner.member(is_first)? {
            is_first = false;
            match self.target(node, scanner.key()?) {
                Some(target) => self.store(target, scanner.value()?, slots)?,
                None => scanner.skip_value()?,
            }
        }
        Ok(())
    }
}

/// In front of the first key.
const START: usize = 0;
const SHAPE_KEYS_MAX: usize = 256;
const SHAPE_KEY_BYTES_MAX: usize = 64;

/// The keys of the events seen so far, and which one came after which: events of one producer have
/// their keys in one order, and comparing a key with the expected one is far cheaper than finding
/// its end and looking it up. A guess is only ever taken when the bytes are the same, so a wrong
/// one costs time and nothing else. One for each fold thread.
#[derive(Default)]
pub struct Shape {
    /// Index 0 is [`START`].
    keys: Vec<ShapeKey>,
}

#[derive(Clone, Default)]
struct ShapeKey {
    spelled: Spelled,
    target: Option<Target>,
    /// The key that came after this one last time; [`START`] when none did.
    after: usize,
}

impl Shape {
    /// The key that is expected after `before`, if that is what stands there.
    fn guess(&self, before: usize, scanner: &mut Scanner<'_>) -> Option<(Option<Target>, usize)> {
        let index = self.keys.get(before)?.after;
        let key = &self.keys[index];
        (index != START && scanner.take_key(&key.spelled)).then_some((key.target, index))
    }

    /// Notes a key that was not expected; its index, or [`START`] when it is not kept.
    fn learn(&mut self, before: usize, key: Text<'_>, target: Option<Target>) -> usize {
        if key.has_escapes || key.inside.len() > SHAPE_KEY_BYTES_MAX {
            return START;
        }
        if self.keys.is_empty() {
            self.keys.push(ShapeKey::default());
        }
        let index = match self.keys.iter().position(|known| known.spelled.is(key.inside)) {
            Some(index) => index,
            None if self.keys.len() > SHAPE_KEYS_MAX => return START,
            None => {
                self.keys.push(ShapeKey { spelled: Spelled::new(key.inside), target, after: START });
                self.keys.len() - 1
            }
        };
        self.keys[before].after = index;
        index
    }
}

/// Whether a text is JSON at all, whatever its shape.
pub fn validate(text: &str) -> Result<(), Reason> {
    let mut scanner = Scanner::new(text);
    scanner.value()?;
    scanner.end()
}

/// The elements of an array, as text, one after the other. `Err` is the index of the first that is
/// malformed.
pub fn elements<'a>(text: &'a str, mut take: impl FnMut(&'a str)) -> Result<(), usize> {
    let mut index = 0;
    let counted = |element| {
        index += 1;
        take(element);
    };
    Scanner::new(text).array(counted).map_err(|_| index)
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
        extractor.extract(text, &mut Shape::default(), &mut slots)?;
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
    fn a_shape_changes_nothing_but_the_speed() {
        let extractor = Extractor::new(["a", "b", "d.e"]);
        let mut shape = Shape::default();
        let mut slots = vec![Raw::Absent; extractor.slots()];
        for event in [
            r#"{"a":"1","b":"2"}"#,
            r#"{"a":"1","b":"2"}"#,
            r#"{"b":"2","a":"1"}"#,
            r#"{ "a" :"1", "b": "2"}"#,
            r#"{"\u0061":"1","b":"2"}"#,
            r#"{"x":0,"a":"1","d":{"e":5},"b":"2"}"#,
            r#"{"a":"0","a":"1","b":"2"}"#,
        ] {
            for _ in 0..3 {
                extractor.extract(event, &mut shape, &mut slots).unwrap();
                assert_eq!(
                    (extractor.field(&slots, 0), extractor.field(&slots, 1)),
                    (&text("1"), &text("2")),
                    "{event}"
                );
            }
        }
        for broken in [r#"{"a":"1","b"}"#, r#"{"a":"1""b":"2"}"#, r#"{"a":"1","b":"2",}"#, r#"{,"a":"1"}"#] {
            assert_eq!(extractor.extract(broken, &mut shape, &mut slots), Err(Reason::InvalidJson), "{broken}");
        }
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
