//! The keys of the tree `log`. Numbers are big-endian, so that rows lie in their order.
//!
//! ```text
//! b <partition 4> <last offset 8>   a block of records
//! d <number 8>                      a block with one dead letter
//! i <idempotency key>               when (8), fingerprint of the body (8), 1, accepted (8),
//!                                   rejected (8)
//! t <when 8> <idempotency key>      its expiry
//! m <partition 4>                   position (8), note: what the first reader committed
//! c <reader> 0                      another reader, whose positions are kept for
//! c <reader> 0 <partition 4>        position (8), note: what it committed
//! r <partition 4>                   offsets below this may have been used (8)
//! p                                 number of partitions (4)
//! ```
//!
//! Until version 0.3 the answer itself, a JSON object, stood in place of the last three numbers of
//! an idempotency key. Such rows are read until they expire.

use crate::RequestCounts;
use traqq_disk::{Tree, Values};

pub const TREE: Tree = Tree { name: "log", values: Values::Blocks };

/// Before the counts of a request, in place of the `{` of an answer.
const COUNTS: u8 = 1;

pub const PARTITIONS: &[u8] = b"p";

pub fn block(partition: i32, last: i64) -> Vec<u8> {
    let mut key = block_prefix(partition);
    key.extend_from_slice(&(last as u64).to_be_bytes());
    key
}

pub fn block_prefix(partition: i32) -> Vec<u8> {
    with_partition(b'b', partition)
}

/// The last offset of a block.
pub fn block_last(key: &[u8]) -> Option<i64> {
    let (_, last) = key.split_last_chunk::<8>()?;
    Some(u64::from_be_bytes(*last) as i64)
}

pub const LETTERS: &[u8] = b"d";

pub fn letter(number: u64) -> Vec<u8> {
    [LETTERS, &number.to_be_bytes()].concat()
}

pub const KEYS: &[u8] = b"i";

/// What was remembered for an idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRow {
    /// When it was used, in epoch milliseconds.
    pub used_ms: i64,
    pub fingerprint: u64,
    pub counts: RequestCounts,
}

impl KeyRow {
    const LEN: usize = 33;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut row = [COUNTS; Self::LEN];
        row[..8].copy_from_slice(&self.used_ms.to_be_bytes());
        row[8..16].copy_from_slice(&self.fingerprint.to_be_bytes());
        row[17..25].copy_from_slice(&self.counts.accepted.to_be_bytes());
        row[25..].copy_from_slice(&self.counts.rejected.to_be_bytes());
        row
    }

    pub fn decode(row: &[u8]) -> Option<Self> {
        let (used_ms, row) = row.split_first_chunk::<8>()?;
        let (fingerprint, row) = row.split_first_chunk::<8>()?;
        let counts = match row.split_first()? {
            (&COUNTS, row) => {
                let (accepted, rejected) = row.split_first_chunk::<8>()?;
                let rejected = rejected.try_into().ok()?;
                RequestCounts { accepted: u64::from_be_bytes(*accepted), rejected: u64::from_be_bytes(rejected) }
            }
            _ => {
                let answer: serde_json::Value = serde_json::from_slice(row).ok()?;
                RequestCounts { accepted: answer["accepted"].as_u64()?, rejected: answer["rejected"].as_u64()? }
            }
        };
        let (used_ms, fingerprint) = (i64::from_be_bytes(*used_ms), u64::from_be_bytes(*fingerprint));
        Some(Self { used_ms, fingerprint, counts })
    }

    /// Bytes of all rows of a key, with what stands in its own.
    pub const fn bytes(key: &str, row_len: usize) -> u64 {
        (1 + key.len() + row_len + EXPIRIES.len() + 8 + key.len()) as u64
    }

    /// The same of a key that is remembered now.
    pub const fn bytes_of(key: &str) -> u64 {
        Self::bytes(key, Self::LEN)
    }
}

pub fn idempotency(key: &str) -> Vec<u8> {
    [KEYS, key.as_bytes()].concat()
}

pub const EXPIRIES: &[u8] = b"t";

pub fn expiry(when_ms: i64, key: &str) -> Vec<u8> {
    [EXPIRIES, &(when_ms as u64).to_be_bytes(), key.as_bytes()].concat()
}

/// When, and the idempotency key.
pub fn parse_expiry(row: &[u8]) -> Option<(i64, &str)> {
    let (when, key) = row.strip_prefix(EXPIRIES)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*when) as i64, std::str::from_utf8(key).ok()?))
}

/// What the first reader committed.
pub fn mark(partition: i32) -> Vec<u8> {
    with_partition(b'm', partition)
}

pub const READERS: &[u8] = b"c";

/// A reader beside the first one; its name has no NUL.
pub fn reader(name: &str) -> Vec<u8> {
    [READERS, name.as_bytes(), &[0]].concat()
}

/// What such a reader committed.
pub fn reader_mark(name: &str, partition: i32) -> Vec<u8> {
    [&*reader(name), &partition.to_be_bytes()].concat()
}

/// The name, if this is the row of a reader and not of a position.
pub fn reader_of(key: &[u8]) -> Option<&str> {
    let name = key.strip_prefix(READERS)?.strip_suffix(&[0])?;
    // A partition's number has NULs too.
    std::str::from_utf8(name).ok().filter(|name| !name.contains('\0'))
}

/// The position in what was committed, and the note beside it.
pub fn parse_mark(row: &[u8]) -> Option<(i64, &[u8])> {
    let (position, note) = row.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*position), note))
}

pub fn reserved(partition: i32) -> Vec<u8> {
    with_partition(b'r', partition)
}

fn with_partition(tag: u8, partition: i32) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend_from_slice(&partition.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_now_and_by_earlier_versions() {
        let counts = RequestCounts { accepted: 3, rejected: u64::MAX };
        let row = KeyRow { used_ms: 1_700_000_000_000, fingerprint: u64::MAX - 1, counts };
        assert_eq!(KeyRow::decode(&row.encode()), Some(row));
        let answer = br#"{"accepted":1,"rejected":1,"errors":[{"index":0,"reason":"no_event","detail":"x"}]}"#;
        let earlier = [&7_i64.to_be_bytes()[..], &8_u64.to_be_bytes(), answer].concat();
        let counts = RequestCounts { accepted: 1, rejected: 1 };
        assert_eq!(KeyRow::decode(&earlier), Some(KeyRow { used_ms: 7, fingerprint: 8, counts }));
        for damaged in [&earlier[..15], &earlier[..16], &earlier[..20], &row.encode()[..32], b""] {
            assert_eq!(KeyRow::decode(damaged), None, "{damaged:?}");
        }
    }
}
