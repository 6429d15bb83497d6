//! A pattern: one to four field names joined by `~`, sorted by their bytes, so that `geo~event` and
//! `event~geo` are one.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub const FIELDS_MAX: usize = 4;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("pattern {0:?} has an empty field name; write one to four names joined by `~`")]
    EmptyField(String),
    #[error("pattern {0:?} has {1} fields; the most is {FIELDS_MAX}")]
    TooManyFields(String, usize),
    #[error("pattern {0:?} names the field {1:?} twice")]
    RepeatedField(String, String),
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let mut fields: Vec<&str> = text.split('~').map(str::trim).collect();
        if fields.iter().any(|field| field.is_empty()) {
            return Err(PatternError::EmptyField(text.to_owned()));
        }
        if fields.len() > FIELDS_MAX {
            return Err(PatternError::TooManyFields(text.to_owned(), fields.len()));
        }
        fields.sort_unstable();
        if let Some(twice) = fields.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(PatternError::RepeatedField(text.to_owned(), twice[0].to_owned()));
        }
        Ok(Self(fields.join("~").into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.split('~')
    }

    pub fn is_single(&self) -> bool {
        !self.0.contains('~')
    }

    /// The pattern over the fields of both.
    pub fn pair(&self, other: &Self) -> Result<Self, PatternError> {
        Self::parse(&format!("{self}~{other}"))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        Self::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_sorted_so_that_order_does_not_matter() {
        assert_eq!(Pattern::parse("geo~event"), Pattern::parse("event~geo"));
        assert_eq!(Pattern::parse("geo~event").unwrap().as_str(), "event~geo");
    }

    #[test]
    fn malformed_patterns_are_named() {
        for (text, part) in
            [("", "empty"), ("a~", "empty"), ("a~~b", "empty"), ("a~b~c~d~e", "5 fields"), ("a~b~a", "twice")]
        {
            let message = Pattern::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text:?}: {message}");
        }
    }
}
