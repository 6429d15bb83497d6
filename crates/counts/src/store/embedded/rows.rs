//! The rows of the tree `store`. A key of the documented layout is a row of its own; its values are
//! rows under its number.
//!
//! ```text
//! m                      meta: its fields as JSON
//! n                      number of the next key (4)
//! p <topic/partition>    checkpoint, as text
//! q <key>                why the key is in quarantine
//! k <key>                number (4), expiry (8, epoch seconds), values (4),
//!                        totals of a sum: bits (1), sum, count, min, max (8 each)
//! v <number 4> <label>   a count (8), a sum and its count (8 each), or the string of a HyperLogLog
//! ```
//!
//! Numbers are big-endian in keys and little-endian in values. A unique count has one value, whose
//! label is empty.

use traqq_core::hll::Hll;
use traqq_disk::Tree;

pub const TREE: Tree = Tree { name: "store", values: traqq_disk::Values::Small };

pub const META: &[u8] = b"m";
pub const NEXT: &[u8] = b"n";
pub const POSITIONS: &[u8] = b"p";
pub const QUARANTINE: &[u8] = b"q";
pub const KEYS: &[u8] = b"k";

const FOREVER: i64 = i64::MAX;
const KEY_BYTES: usize = 49;

pub fn named(prefix: &[u8], name: &str) -> Vec<u8> {
    [prefix, name.as_bytes()].concat()
}

/// The name behind a prefix.
pub fn name_of<'r>(row: &'r [u8], prefix: &[u8]) -> Option<&'r str> {
    std::str::from_utf8(row.strip_prefix(prefix)?).ok()
}

pub fn values(number: u32) -> [u8; 5] {
    let [a, b, c, d] = number.to_be_bytes();
    [b'v', a, b, c, d]
}

pub fn value(number: u32, label: &str) -> Vec<u8> {
    [&values(number), label.as_bytes()].concat()
}

/// The label of a value's row.
pub fn label_of(row: &[u8]) -> Option<&str> {
    std::str::from_utf8(row.get(values(0).len()..)?).ok()
}

/// What is known of a key besides its values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRow {
    pub number: u32,
    pub expires_at: Option<i64>,
    /// How many values it has, [`crate::mapping::OTHER`] not counted.
    pub values: u32,
    pub totals: SumTotals,
}

/// Of a sum over all values; `None` until something was added.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SumTotals {
    pub sum: i64,
    pub count: i64,
    pub bounds: Option<(i64, i64)>,
}

impl KeyRow {
    /// By the store's clock, in epoch seconds.
    pub fn has_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|expiry| expiry <= now)
    }

    pub fn encode(&self) -> [u8; KEY_BYTES] {
        let mut row = [0; KEY_BYTES];
        let (min, max) = self.totals.bounds.unwrap_or_default();
        row[..4].copy_from_slice(&self.number.to_le_bytes());
        row[4..12].copy_from_slice(&self.expires_at.unwrap_or(FOREVER).to_le_bytes());
        row[12..16].copy_from_slice(&self.values.to_le_bytes());
        row[16] = u8::from(self.totals.bounds.is_some());
        for (at, number) in [self.totals.sum, self.totals.count, min, max].into_iter().enumerate() {
            row[17 + at * 8..25 + at * 8].copy_from_slice(&number.to_le_bytes());
        }
        row
    }

    pub fn decode(row: &[u8]) -> Option<Self> {
        let row: &[u8; KEY_BYTES] = row.try_into().ok()?;
        let long = |at: usize| i64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes"));
        let short = |at: usize| u32::from_le_bytes(row[at..at + 4].try_into().expect("four bytes"));
        Some(Self {
            number: short(0),
            expires_at: Some(long(4)).filter(|expiry| *expiry != FOREVER),
            values: short(12),
            totals: SumTotals {
                sum: long(17),
                count: long(25),
                bounds: (row[16] != 0).then_some((long(33), long(41))),
            },
        })
    }
}

/// A value in a row.
pub trait Value: Sized + Clone {
    fn encode(&self) -> Vec<u8>;
    fn decode(row: &[u8]) -> Option<Self>;
    /// On the heap.
    fn heap_bytes(&self) -> usize;
}

impl Value for i64 {
    fn encode(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        Some(Self::from_le_bytes(row.try_into().ok()?))
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// A sum and its count.
impl Value for (i64, i64) {
    fn encode(&self) -> Vec<u8> {
        [self.0.to_le_bytes(), self.1.to_le_bytes()].concat()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (sum, count) = row.split_at_checked(8)?;
        Some((i64::decode(sum)?, i64::decode(count)?))
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Value for Hll {
    fn encode(&self) -> Vec<u8> {
        Self::encode(self)
    }

    fn decode(row: &[u8]) -> Option<Self> {
        Self::decode(row).ok()
    }

    fn heap_bytes(&self) -> usize {
        Self::heap_bytes(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_row_comes_back_as_it_went_in() {
        let plain = KeyRow { number: 7, expires_at: None, values: 3, totals: SumTotals::default() };
        let totals = SumTotals { sum: -5, count: 2, bounds: Some((i64::MIN, 9)) };
        for row in [plain, KeyRow { expires_at: Some(12), totals, ..plain }] {
            assert_eq!(KeyRow::decode(&row.encode()), Some(row));
        }
        assert_eq!(KeyRow::decode(&plain.encode()[1..]), None);
    }
}
