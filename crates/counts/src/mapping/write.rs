//! What a batch of events became: one entry for each key, merged, values in the order of their
//! first occurrence.

use std::sync::Arc;

use super::Pattern;
use traqq_core::model::{Bucket, Span};

/// Sums, minima and maxima are integers in units of 1 / `VALUE_SCALE`.
pub const VALUE_SCALE: i64 = 1_000_000;

/// One metric of the mapping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Metric {
    /// Unique values of a pattern.
    Unique { of: Pattern },
    /// Unique values of `of` for each value of `by`.
    UniqueBy { of: Pattern, by: Pattern },
    /// A counter for each value.
    Count { of: Pattern },
    /// The sum and the count of a number for each value.
    Sum { of: Pattern, add_key: Arc<str> },
    /// A leaderboard of values.
    Top { of: Pattern },
}

impl Metric {
    /// The name the mapping knows this kind by.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unique { .. } => "bitmap",
            Self::UniqueBy { .. } => "bitmap_by",
            Self::Count { .. } => "add",
            Self::Sum { .. } => "add_value",
            Self::Top { .. } => "top",
        }
    }

    /// The pattern whose values label the answer.
    pub const fn pattern(&self) -> &Pattern {
        match self {
            Self::Unique { of } | Self::Count { of } | Self::Sum { of, .. } | Self::Top { of } => of,
            Self::UniqueBy { by, .. } => by,
        }
    }
}

/// Elements for a HyperLogLog, end to end in one buffer.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Elements {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Elements {
    pub fn push(&mut self, element: &[u8]) {
        self.bytes.extend_from_slice(element);
        self.ends.push(self.bytes.len() as u32);
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start as usize..end as usize])
    }
}

/// Over all values of a sum's key, in units of 1 / [`VALUE_SCALE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Totals {
    pub sum: i128,
    pub count: i64,
    pub min: i64,
    pub max: i64,
}

/// A sum as increments that each fit 64 bits: one, unless the batch alone is beyond them.
pub fn increments(sum: i128) -> impl Iterator<Item = i64> {
    let mut rest = Some(sum);
    std::iter::from_fn(move || {
        let sum = rest?;
        let part = sum.clamp(i64::MIN.into(), i64::MAX.into());
        rest = Some(sum - part).filter(|left| *left != 0);
        Some(part as i64)
    })
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Writes {
    Unique(Elements),
    UniqueBy(Vec<(Box<str>, Elements)>),
    /// Value, count.
    Count(Vec<(Box<str>, i64)>),
    /// Value, sum, count.
    Sum(Vec<(Box<str>, i128, i64)>, Totals),
    /// Member, count.
    Top(Vec<(Box<str>, i64)>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyWrite {
    pub bucket: Bucket,
    /// When the key expires, in epoch seconds; `None` for never.
    pub expires_at: Option<i64>,
    pub metric: Metric,
    pub writes: Writes,
}

impl KeyWrite {
    /// Field operations: what the store does one by one, an element of a HyperLogLog counting one.
    pub fn operations(&self) -> usize {
        match &self.writes {
            Writes::Unique(elements) => elements.len(),
            Writes::UniqueBy(values) => values.iter().map(|(_, elements)| 1 + elements.len()).sum(),
            Writes::Count(values) | Writes::Top(values) => values.len(),
            Writes::Sum(values, _) => values.len() * 2 + 4,
        }
    }
}

/// A merged batch of one lane: the writes, and the spans of the log they stand for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteBatch {
    pub spans: Vec<Span>,
    pub writes: Vec<KeyWrite>,
}

impl WriteBatch {
    pub fn operations(&self) -> usize {
        self.writes.iter().map(KeyWrite::operations).sum()
    }
}
