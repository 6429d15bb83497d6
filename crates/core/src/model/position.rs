//! Where a projection stands in the log.
//!
//! A [`Checkpoint`] is what a store keeps for one partition: the next offset to apply and the
//! fingerprint of the last record that was applied. Its text form is compared byte for byte by the
//! fence, so it has exactly one spelling:
//!
//! ```text
//! <position>                                            nothing applied yet
//! <position> <offset> <timestamp_ms> <hash, 16 hex>     after the record at <offset>
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: &str, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }

    /// The lane this partition belongs to: `(hash(topic) + partition) mod lanes`, the hash being
    /// FNV-1a of 64 bits.
    pub fn lane(&self, lanes: usize) -> usize {
        let hash = self
            .topic
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let lane = hash.wrapping_add(self.partition as u64) % lanes.max(1) as u64;
        lane as usize
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not `topic/partition`")]
pub struct TopicPartitionError(String);

impl FromStr for TopicPartition {
    type Err = TopicPartitionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.rsplit_once('/')
            .and_then(|(topic, partition)| Some(Self::new(topic, partition.parse().ok()?)))
            .ok_or_else(|| TopicPartitionError(text.to_owned()))
    }
}

/// Identifies one record of a log well enough to notice that it is another log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fingerprint {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub hash: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Checkpoint {
    /// The next offset to apply.
    pub position: i64,
    /// The last record applied; `None` until there is one.
    pub last: Option<Fingerprint>,
}

impl Checkpoint {
    pub const fn start(position: i64) -> Self {
        Self { position, last: None }
    }

    /// Where reading must begin so that the first record can be compared with the fingerprint.
    pub fn read_from(&self) -> i64 {
        self.last.map_or(self.position, |last| last.offset)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.position)?;
        if let Some(last) = self.last {
            write!(f, " {} {} {:016x}", last.offset, last.timestamp_ms, last.hash)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint {0:?} is malformed")]
pub struct CheckpointError(String);

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || CheckpointError(text.to_owned());
        let parts: Vec<&str> = text.split(' ').collect();
        let number = |part: &str| part.parse::<i64>().map_err(|_| malformed());
        let checkpoint = match parts[..] {
            [position] => Self::start(number(position)?),
            [position, offset, timestamp_ms, hash] => Self {
                position: number(position)?,
                last: Some(Fingerprint {
                    offset: number(offset)?,
                    timestamp_ms: number(timestamp_ms)?,
                    hash: u64::from_str_radix(hash, 16).map_err(|_| malformed())?,
                }),
            },
            _ => return Err(malformed()),
        };
        if checkpoint.to_string() == text { Ok(checkpoint) } else { Err(malformed()) }
    }
}

/// The checkpoints of some partitions.
pub type Positions = BTreeMap<TopicPartition, Checkpoint>;

/// What a batch covers of one partition: half-open, `[from, to)`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Span {
    pub partition: TopicPartition,
    pub from: Checkpoint,
    pub to: Checkpoint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_as_written() {
        let last = Fingerprint { offset: 41, timestamp_ms: -1, hash: 0xab };
        for checkpoint in [Checkpoint::start(0), Checkpoint { position: 43, last: Some(last) }] {
            assert_eq!(checkpoint.to_string().parse(), Ok(checkpoint));
        }
        assert_eq!(Checkpoint { position: 43, last: Some(last) }.to_string(), "43 41 -1 00000000000000ab");
    }

    #[test]
    fn a_malformed_checkpoint_is_refused() {
        for text in ["", "x", "1 2", "1 2 3 zz", "1 2 3 4 5"] {
            assert!(text.parse::<Checkpoint>().is_err(), "{text:?}");
        }
    }

    /// A checkpoint that somebody had set by hand to `+5` or `05` was read as 5, and every batch
    /// that began at 5 was refused by the fence, which compares texts, for ever. Found by fuzzing.
    #[test]
    fn another_spelling_is_refused() {
        for text in ["+5", "05", "-0", "1 2 3 ab", "1 2 3 00000000000000AB", "1 2 3 000000000000000ab"] {
            assert!(text.parse::<Checkpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn partitions_of_a_topic_spread_over_the_lanes() {
        let lanes: Vec<usize> = (0..4).map(|p| TopicPartition::new("events", p).lane(4)).collect();
        let mut sorted = lanes.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3], "{lanes:?}");
    }
}
