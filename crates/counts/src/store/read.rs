//! What a query asks of a store.

use crate::mapping::Pattern;
use traqq_core::hll::Hll;
use traqq_core::model::Bucket;

/// One read of one lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// Every value of a counter: [`Reply::Values`].
    Counts {
        bucket: Bucket,
        of: Pattern,
    },
    /// The sums by value, in units of 10^-6: [`Reply::Values`].
    Sums {
        bucket: Bucket,
        of: Pattern,
        add_key: String,
    },
    /// The counts that belong to the sums: [`Reply::Values`].
    SumCounts {
        bucket: Bucket,
        of: Pattern,
        add_key: String,
    },
    /// `sum`, `count`, `min` and `max` over all values: [`Reply::Values`].
    SumTotals {
        bucket: Bucket,
        of: Pattern,
        add_key: String,
    },
    /// Registers: [`Reply::Registers`].
    Unique {
        bucket: Bucket,
        of: Pattern,
    },
    UniqueBy {
        bucket: Bucket,
        of: Pattern,
        by: Pattern,
        value: String,
    },
    /// The values that have registers of their own: [`Reply::Labels`].
    UniqueByValues {
        bucket: Bucket,
        of: Pattern,
        by: Pattern,
    },
    /// The first `limit` of a leaderboard, highest first: [`Reply::Values`].
    TopFirst {
        bucket: Bucket,
        of: Pattern,
        limit: usize,
    },
    /// Members with at least this count, at most `limit`, highest first: [`Reply::Values`].
    TopAtLeast {
        bucket: Bucket,
        of: Pattern,
        count: i64,
        limit: usize,
    },
    /// The counts of these members, those present: [`Reply::Values`].
    TopScores {
        bucket: Bucket,
        of: Pattern,
        members: Vec<String>,
    },
    /// Of what [`Read::Counts`], [`Read::Sums`] or [`Read::SumCounts`] read, these labels, those
    /// present: [`Reply::Values`].
    Only {
        read: Box<Self>,
        labels: Vec<String>,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    Values(Vec<(String, i64)>),
    Labels(Vec<String>),
    Registers(Box<Hll>),
    /// The key holds something that is not this metric.
    Unreadable(String),
}

/// A key that could not take a write; its counts are incomplete from then on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantined {
    /// As the store names it.
    pub key: String,
    pub error: String,
}

impl Reply {
    /// What it holds in memory, about.
    pub fn bytes(&self) -> usize {
        const VALUE: usize = 48;
        const LABEL: usize = 40;
        match self {
            Self::Values(values) => values.iter().map(|(label, _)| label.len() + VALUE).sum(),
            Self::Labels(labels) => labels.iter().map(|label| label.len() + LABEL).sum(),
            Self::Registers(registers) => size_of::<Hll>() + registers.heap_bytes(),
            Self::Unreadable(error) => error.len(),
        }
    }

    /// How many values it names.
    pub const fn values(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Labels(labels) => labels.len(),
            Self::Registers(_) | Self::Unreadable(_) => 1,
        }
    }
}

impl Read {
    /// Whether the reply may name so many values that not many should be on their way at once.
    pub const fn is_wide(&self) -> bool {
        const FEW: usize = 1000;
        match self {
            Self::Counts { .. } | Self::Sums { .. } | Self::SumCounts { .. } | Self::UniqueByValues { .. } => true,
            Self::TopFirst { limit, .. } | Self::TopAtLeast { limit, .. } => *limit > FEW,
            Self::SumTotals { .. }
            | Self::Unique { .. }
            | Self::UniqueBy { .. }
            | Self::TopScores { .. }
            | Self::Only { .. } => false,
        }
    }

    pub fn bucket(&self) -> Bucket {
        match self {
            Self::Only { read, .. } => read.bucket(),
            Self::Counts { bucket, .. }
            | Self::Sums { bucket, .. }
            | Self::SumCounts { bucket, .. }
            | Self::SumTotals { bucket, .. }
            | Self::Unique { bucket, .. }
            | Self::UniqueBy { bucket, .. }
            | Self::UniqueByValues { bucket, .. }
            | Self::TopFirst { bucket, .. }
            | Self::TopAtLeast { bucket, .. }
            | Self::TopScores { bucket, .. } => *bucket,
        }
    }
}
