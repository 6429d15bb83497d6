//! A validating scanner of JSON text that builds nothing.
//!
//! It exists because the fold's budget is one microsecond an event: the fastest library that
//! validates everything and keeps the text of numbers takes 0.8 of it on the benchmark's corpus,
//! this takes 0.35. RFC 8259, strictly, and lone surrogates are refused. Nothing recurses: open
//! containers are bits of one word, so depth is bounded by [`DEPTH_MAX`] whatever the caller
//! allows. `serde_json` is the reference in the tests, and unescapes what has escapes.

use wide::u8x16;

use super::Reason;

/// Bits of the stack of open containers.
pub const DEPTH_MAX: usize = 128;

/// Most keys and values end within one block, which makes the loop over blocks predictable.
const BLOCK: usize = 16;

/// Where the first byte stands that ends a run of plain string bytes: a quote, a backslash or a
/// control character.
#[inline]
fn first_special(block: [u8; BLOCK]) -> Option<usize> {
    let block = u8x16::new(block);
    let quote = block.simd_eq(u8x16::splat(b'"'));
    let backslash = block.simd_eq(u8x16::splat(b'\\'));
    let control = block.min(u8x16::splat(0x1f)).simd_eq(block);
    let found = (quote | backslash | control).to_bitmask();
    (found != 0).then_some(found.trailing_zeros() as usize)
}

/// A string's inside, quotes left out.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    pub inside: &'a str,
    pub has_escapes: bool,
}

/// A value that was scanned.
#[derive(Clone, Copy)]
pub enum Scanned<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Text<'a>),
    Array,
    /// With its text, braces included.
    Object(&'a str),
}

/// A key as it stands in a text, quotes and colon included. Most are no longer than a block and
/// compared at once.
#[derive(Clone, Default)]
pub struct Spelled {
    bytes: Box<[u8]>,
    /// The first block, and which bits of it there are.
    head: u128,
    mask: u128,
}

impl Spelled {
    /// `key` has nothing in it that must be escaped.
    pub fn new(key: &str) -> Self {
        let bytes = format!("\"{key}\":").into_bytes();
        let (mut head, mut mask) = ([0; BLOCK], [0; BLOCK]);
        for (index, &byte) in bytes.iter().take(BLOCK).enumerate() {
            (head[index], mask[index]) = (byte, 0xff);
        }
        Self { bytes: bytes.into(), head: u128::from_le_bytes(head), mask: u128::from_le_bytes(mask) }
    }

    pub fn is(&self, key: &str) -> bool {
        self.bytes.len() == key.len() + 3 && self.bytes[1..].starts_with(key.as_bytes())
    }
}

pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

type Scan<T> = Result<T, Reason>;

const fn invalid<T>() -> Scan<T> {
    Err(Reason::InvalidJson)
}

impl<'a> Scanner<'a> {
    pub const fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte after white space, not taken.
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                byte => return byte,
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Scan<()> {
        if self.peek() != Some(wanted) {
            return invalid();
        }
        self.at += 1;
        Ok(())
    }

    /// Bytes that were taken.
    pub const fn position(&self) -> usize {
        self.at
    }

    /// Nothing but white space is left.
    pub fn end(&mut self) -> Scan<()> {
        if self.peek().is_none() { Ok(()) } else { invalid() }
    }

    pub fn open_object(&mut self) -> Scan<()> {
        self.expect(b'{')
    }

    /// Whether another member of the object follows; takes the comma in front of it, or the closing
    /// brace. `is_first` is the caller's.
    pub fn member(&mut self, is_first: bool) -> Scan<bool> {
        match self.peek() {
            Some(b'}') => {
                self.at += 1;
                return Ok(false);
            }
            Some(b',') if !is_first => {
                self.at += 1;
                self.peek();
            }
            _ if is_first => {}
            _ => return invalid(),
        }
        if self.byte() == Some(b'"') { Ok(true) } else { invalid() }
    }

    /// The key of a member, with its colon.
    pub fn key(&mut self) -> Scan<Text<'a>> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    /// Takes a key if it is spelled exactly so.
    #[inline]
    pub fn take_key(&mut self, spelled: &Spelled) -> bool {
        let rest = &self.text.as_bytes()[self.at..];
        let is_it = match rest.first_chunk::<BLOCK>() {
            Some(block) if (u128::from_le_bytes(*block) ^ spelled.head) & spelled.mask != 0 => false,
            Some(_) if spelled.bytes.len() <= BLOCK => true,
            _ => rest.starts_with(&spelled.bytes),
        };
        if is_it {
            self.at += spelled.bytes.len();
        }
        is_it
    }

    /// The next value.
    pub fn value(&mut self) -> Scan<Scanned<'a>> {
        match self.peek() {
            Some(b'"') => self.string().map(Scanned::Text),
            Some(b'-' | b'0'..=b'9') => self.number().map(Scanned::Number),
            Some(b'{') => {
                let start = self.at;
                self.container()?;
                Ok(Scanned::Object(&self.text[start..self.at]))
            }
            Some(b'[') => self.container().map(|()| Scanned::Array),
            Some(b't') => self.word("true").map(|()| Scanned::Bool(true)),
            Some(b'f') => self.word("false").map(|()| Scanned::Bool(false)),
            Some(b'n') => self.word("null").map(|()| Scanned::Null),
            _ => invalid(),
        }
    }

    /// An array that is all of the text; every element's text, as it is found.
    pub fn array(&mut self, mut take: impl FnMut(&'a str)) -> Scan<()> {
        self.expect(b'[')?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return self.end();
        }
        loop {
            self.peek();
            let start = self.at;
            self.skip_value()?;
            take(&self.text[start..self.at]);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return self.end();
                }
                _ => return invalid(),
            }
        }
    }

    /// Passes over the next value.
    pub fn skip_value(&mut self) -> Scan<()> {
        match self.peek() {
            Some(b'"') => self.skip_string().map(|_| ()),
            Some(b'{' | b'[') => self.container(),
            _ => self.value().map(|_| ()),
        }
    }

    fn word(&mut self, word: &str) -> Scan<()> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return invalid();
        }
        self.at += word.len();
        Ok(())
    }

    /// A string, from its opening quote on.
    fn string(&mut self) -> Scan<Text<'a>> {
        let start = self.at + 1;
        let has_escapes = self.skip_string()?;
        Ok(Text { inside: &self.text[start..self.at - 1], has_escapes })
    }

    /// Passes over a string; whether it has escapes.
    fn skip_string(&mut self) -> Scan<bool> {
        let bytes = self.text.as_bytes();
        self.at += 1;
        let mut has_escapes = false;
        loop {
            while let Some(block) = bytes[self.at..].first_chunk::<BLOCK>() {
                if let Some(index) = first_special(*block) {
                    self.at += index;
                    break;
                }
                self.at += BLOCK;
            }
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(has_escapes);
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.escape()?;
                }
                None | Some(..0x20) => return invalid(),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Scan<()> {
        match self.text.as_bytes().get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => match self.unit()? {
                0xD800..=0xDBFF => match self.unit()? {
                    0xDC00..=0xDFFF => Ok(()),
                    _ => invalid(),
                },
                0xDC00..=0xDFFF => invalid(),
                _ => Ok(()),
            },
            _ => invalid(),
        }
    }

    /// One `\uXXXX`.
    fn unit(&mut self) -> Scan<u32> {
        let Some([b'\\', b'u', digits @ ..]) = self.text.as_bytes()[self.at..].first_chunk::<6>() else {
            return invalid();
        };
        let mut unit = 0;
        for digit in digits {
            unit = unit * 16 + (*digit as char).to_digit(16).ok_or(Reason::InvalidJson)?;
        }
        self.at += 6;
        Ok(unit)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Scan<&'a str> {
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        let has_leading_zero = self.byte() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || (has_leading_zero && whole > 1) {
            return invalid();
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return invalid();
            }
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return invalid();
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// An array or an object with all that is in it.
    fn container(&mut self) -> Scan<()> {
        // The lowest bit is the innermost container: 1 for an object.
        let mut stack = 0_u128;
        let mut depth = 0;
        // A value was just completed in the innermost container.
        let mut is_after_value = false;
        loop {
            let Some(byte) = self.peek() else { return invalid() };
            let is_object = stack & 1 == 1;
            match byte {
                b'}' | b']' if depth > 0 => {
                    // An opening bracket leaves `is_after_value` false: then this closes an empty
                    // container. A comma takes what must follow it at once, so that a closing
                    // bracket never stands behind one.
                    if is_object != (byte == b'}') {
                        return invalid();
                    }
                    self.at += 1;
                    stack >>= 1;
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                    is_after_value = true;
                    continue;
                }
                b',' if is_after_value => {
                    self.at += 1;
                    if matches!(self.peek(), Some(b'}' | b']')) {
                        return invalid();
                    }
                }
                _ if is_after_value => return invalid(),
                _ => {}
            }
            if depth > 0 && is_object {
                if self.peek() != Some(b'"') {
                    return invalid();
                }
                self.skip_string()?;
                self.expect(b':')?;
            }
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    if depth == DEPTH_MAX {
                        return Err(Reason::TooDeep);
                    }
                    self.at += 1;
                    stack = stack << 1 | u128::from(bracket == b'{');
                    depth += 1;
                    is_after_value = false;
                }
                Some(b'"') => {
                    self.skip_string()?;
                    is_after_value = true;
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                    is_after_value = true;
                }
                Some(b't' | b'f' | b'n') => {
                    self.value()?;
                    is_after_value = true;
                }
                _ => return invalid(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_valid(text: &str) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.value().and_then(|_| scanner.end()).is_ok()
    }

    /// What serde_json says, which takes lone surrogates for valid only in what it skips; these
    /// texts hold none.
    fn reference(text: &str) -> bool {
        serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
    }

    #[test]
    fn agrees_with_the_reference_on_every_short_text() {
        let alphabet: Vec<char> = "{}[]:,\"\\ue-+.01tn ".chars().collect();
        let words = ["true", "null", "\"a\"", "{}", "[]", "\\u0041", "1e5"];
        let pieces: Vec<String> =
            alphabet.iter().map(char::to_string).chain(words.iter().map(|word| (*word).to_owned())).collect();
        for a in &pieces {
            for b in &pieces {
                for c in &pieces {
                    for wrap in [["", ""], ["[", "]"], ["{\"k\":", "}"]] {
                        let text = format!("{}{a}{b}{c}{}", wrap[0], wrap[1]);
                        assert_eq!(is_valid(&text), reference(&text), "{text:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_special_byte_is_found_wherever_it_stands() {
        for position in 0..24 {
            for byte in 0..0x80_u8 {
                let mut inside = vec![b'x'; 24];
                inside[position] = byte;
                let text = format!("\"{}\"", String::from_utf8(inside).unwrap());
                assert_eq!(is_valid(&text), reference(&text), "{text:?}");
            }
        }
    }

    #[test]
    fn depth_beyond_the_stack_is_refused_without_recursion() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_valid(&nested(DEPTH_MAX)));
        assert!(matches!(Scanner::new(&nested(DEPTH_MAX + 1)).value(), Err(Reason::TooDeep)));
        assert!(matches!(Scanner::new(&"[".repeat(1_000_000)).value(), Err(Reason::TooDeep)));
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| format!("{f:e}")),
            any::<i64>().prop_map(|i| i.to_string()),
            any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[ {} ]", items.join(" ,\n"))),
                prop::collection::vec((any::<String>(), inner), 0..6).prop_map(|members| {
                    let members: Vec<String> = members
                        .iter()
                        .map(|(key, value)| format!("{}:\t{value}", serde_json::to_string(key).unwrap()))
                        .collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn accepts_what_is_valid(text in json()) {
            prop_assert!(is_valid(&text));
        }

        #[test]
        fn agrees_with_the_reference_after_damage(text in json(), at in any::<prop::sample::Index>(), with in "[ -~]?") {
            let mut damaged: Vec<char> = text.chars().collect();
            if !damaged.is_empty() {
                let at = at.index(damaged.len());
                damaged.splice(at..=at, with.chars());
            }
            let damaged: String = damaged.into_iter().collect();
            prop_assume!(!damaged.contains("\\u"));
            prop_assert_eq!(is_valid(&damaged), reference(&damaged));
        }
    }
}
