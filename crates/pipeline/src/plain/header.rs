//! A header for ledgers that have nothing more to say of themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::projection::{Compared, Header};
use traqq_core::model::{TopicPartition, TopicPartitionError};

/// Whose ledger it is, what it is made of, and where each partition began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlainHeader {
    /// The consumer group that writes it.
    pub group: String,
    /// What its rows are like; changes when old rows and new ones do not go together.
    pub shape: String,
    pub starts: BTreeMap<TopicPartition, i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlainHeaderError {
    #[error("the ledger's header is not what was written")]
    Json(#[from] serde_json::Error),
    #[error("the ledger's header")]
    Partition(#[from] TopicPartitionError),
}

#[derive(Serialize, Deserialize)]
struct Text {
    group: String,
    shape: String,
    starts: BTreeMap<String, i64>,
}

impl PlainHeader {
    pub fn new(group: &str, shape: &str) -> Self {
        Self { group: group.to_owned(), shape: shape.to_owned(), starts: BTreeMap::new() }
    }

    /// How a stored header differs from this one, as
    /// [`Projection::difference`](super::super::Projection::difference) says it.
    pub fn difference(&self, stored: &Self, compared: Compared) -> Option<String> {
        let of = |what, stored: &str, ours: &str| {
            (stored != ours).then(|| format!("the ledger's {what} is {stored:?}, and {ours:?} here"))
        };
        let group = of("group", &stored.group, &self.group);
        group.or_else(|| (compared == Compared::Everything).then(|| of("shape", &stored.shape, &self.shape)).flatten())
    }

    /// One line, which [`Self::parse`] reads.
    pub fn to_json(&self) -> String {
        let starts = self.starts.iter().map(|(partition, start)| (partition.to_string(), *start)).collect();
        let text = Text { group: self.group.clone(), shape: self.shape.clone(), starts };
        serde_json::to_string(&text).expect("strings and numbers are JSON")
    }

    pub fn parse(json: &str) -> Result<Self, PlainHeaderError> {
        let Text { group, shape, starts } = serde_json::from_str(json)?;
        let start = |(partition, start): (String, i64)| Ok((partition.parse()?, start));
        let starts = starts.into_iter().map(start).collect::<Result<_, TopicPartitionError>>()?;
        Ok(Self { group, shape, starts })
    }
}

impl Header for PlainHeader {
    fn starts(&self) -> &BTreeMap<TopicPartition, i64> {
        &self.starts
    }

    fn starts_mut(&mut self) -> &mut BTreeMap<TopicPartition, i64> {
        &mut self.starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_written_and_compared_as_asked() {
        let mut stored = PlainHeader::new("g", "v1");
        stored.starts.insert(TopicPartition::new("a/b", 3), 7);
        assert_eq!(PlainHeader::parse(&stored.to_json()).unwrap(), stored);
        assert!(PlainHeader::parse("{}").is_err());
        for (group, shape, identity, everything) in
            [("g", "v1", false, false), ("g", "v2", false, true), ("h", "v1", true, true)]
        {
            let ours = PlainHeader::new(group, shape);
            let differs = |compared| ours.difference(&stored, compared).is_some();
            assert_eq!((differs(Compared::Identity), differs(Compared::Everything)), (identity, everything));
        }
    }
}
