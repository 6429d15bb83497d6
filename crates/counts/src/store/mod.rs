//! Where projections live: a store applies a batch and the batch's new positions in one atomic
//! step.
//!
//! Two halves. [`Session`] is the write side of one lane: one ordered connection, several commits
//! in flight, each fenced by the positions before it. [`Store`] is everything else: meta,
//! positions, and reads for queries. The memory store is the reference in which the rules are
//! easiest to see; every other store must give the same answers.

mod apply;
pub mod dump;
pub mod embedded;
mod keys;
pub mod memory;
mod meta;
mod read;
pub mod redis;
pub mod removal;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

pub use apply::{AppliedRules, apply_rules, fitting_meta, meta_of_other_rules};
pub use dump::{Contents, KeyDump, StoredKey};
pub use meta::{LAYOUT, Meta, MetaError, Since, kind_name};
pub use read::{Quarantined, Read, Reply};

use crate::mapping::{Metric, WriteBatch};
use traqq_core::error::ErrorLine;
pub use traqq_core::model::Positions;
use traqq_core::model::{Bucket, Checkpoint, CheckpointError, Finding, TopicPartition};

/// Values added up by label.
pub type Sums = HashMap<String, i128, hashbrown::DefaultHashBuilder>;

/// How much may be added up.
pub struct SumBounds<'a> {
    /// Values that may be read.
    pub values_max: usize,
    /// Asked before a label is held that was not held before, with its length; `false` ends it all.
    pub admits: &'a (dyn Fn(usize) -> bool + Sync),
}

/// What became of a commit that the store answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Applied(Applied),
    /// A stored position was not the one the batch begins at; nothing was written.
    Fenced(Vec<(TopicPartition, Option<Checkpoint>)>),
    /// The store counts by another plan, whose hash this is; nothing was written.
    PlanChanged(String),
    /// The store knows less than the shadow of its registers did; nothing was written.
    ShadowStale,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Keys whose expiry had already passed by the store's clock.
    pub keys_expired: u64,
    /// Values counted under `__other__`.
    pub values_folded: u64,
    pub quarantined: Vec<Quarantined>,
    /// Elements of unique counts sent, and left out because they could raise nothing.
    pub elements_sent: u64,
    pub elements_saved: u64,
}

/// What reading a key may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeySize {
    /// 0 when there is no such key.
    pub values: usize,
    /// Reading it waits for no disk.
    pub is_in_memory: bool,
}

/// What to do about a failure, with the line that says so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store refuses for now (out of memory, loading, busy): the same again after a pause.
    #[error(transparent)]
    Retry(ErrorLine),
    /// The connection is gone or not to be trusted: a new one, then positions.
    #[error(transparent)]
    Reconnect(ErrorLine),
    /// Trying again cannot help; a person must act.
    #[error(transparent)]
    Stop(ErrorLine),
}

impl StoreError {
    pub fn retry(line: impl Into<ErrorLine>) -> Self {
        Self::Retry(line.into())
    }

    pub fn reconnect(line: impl Into<ErrorLine>) -> Self {
        Self::Reconnect(line.into())
    }

    pub fn stop(line: impl Into<ErrorLine>) -> Self {
        Self::Stop(line.into())
    }

    /// The label of the metric that counts it.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Retry(_) => "retry",
            Self::Reconnect(_) => "reconnect",
            Self::Stop(_) => "stop",
        }
    }
}

/// A position that is not one was written by nobody of ours.
impl From<CheckpointError> for StoreError {
    fn from(error: CheckpointError) -> Self {
        Self::Stop(ErrorLine::from_error(error))
    }
}

impl From<StoreError> for Finding {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stop(line) => Self::Bad(line.to_string()),
            StoreError::Retry(line) | StoreError::Reconnect(line) => Self::Unavailable(line.to_string()),
        }
    }
}

pub type StoreResult<T> = Result<T, StoreError>;

/// A prefix of a server, or a data directory. Called by many tasks at a time; no call blocks its
/// thread.
///
/// What every implementation must do alike is in `store/memory.rs`, the reference, and in the tests
/// of `tests/it/redis_store.rs`, which run over all of them. After [`StoreError::Retry`] and
/// [`StoreError::Reconnect`] nobody knows whether a call had an effect; each may be repeated.
#[async_trait]
pub trait Store: Send + Sync {
    /// How many parts there are that each change in one step. At least one; the same for the life
    /// of the store.
    fn lanes(&self) -> usize;

    /// Meta of the prefix; `None` when there is none, which is what an empty store looks like.
    async fn meta(&self) -> StoreResult<Option<Meta>>;

    /// A lane's own copy of it, which may be one of before: a node that failed over may have lost
    /// its tail.
    async fn lane_meta(&self, _lane: usize) -> StoreResult<Option<Meta>> {
        self.meta().await
    }

    /// Writes meta and the start position of every partition, unless there is a meta already;
    /// returns what is there then.
    async fn create(&self, meta: &Meta) -> StoreResult<Meta>;

    /// Begins one lane anew whose node lost everything, with the starts that `meta` records; one
    /// that has a meta is left alone.
    async fn begin_lane(&self, lane: usize, meta: &Meta) -> StoreResult<()>;

    /// Adds partitions that appeared after the first start. Those that their lane knows already are
    /// left alone.
    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()>;

    /// Makes these rules those of the store and of every lane, whose starts stay as they are;
    /// whether they were others anywhere. Fails if a stored plan is neither theirs nor
    /// `expected_plan`. `None` is for rules that are the store's already: then a lane may have any,
    /// because a node that lost its tail may have gone back behind the last change.
    async fn replace_rules(&self, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool>;

    /// Lets the keys of these buckets live until then, in epoch seconds; `None` is for ever.
    async fn extend(&self, lane: usize, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()>;

    /// Drops what may still lead to a server that was the primary once; what follows connects anew.
    async fn disconnect(&self) {}

    /// A new ordered connection to a lane.
    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>>;

    /// The stored positions of a lane.
    async fn positions(&self, lane: usize) -> StoreResult<Positions>;

    /// Sets a partition's checkpoint if it is `from` now; `false` when it is not.
    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> StoreResult<bool>;

    /// Keys of a lane whose counts are known to be incomplete.
    async fn quarantined(&self, lane: usize) -> StoreResult<Vec<Quarantined>>;

    /// The keys of a lane that belong to metrics of the rules in meta and have not expired.
    async fn keys(&self, lane: usize) -> StoreResult<Vec<StoredKey>>;

    /// Writes keys into a store that nobody counts in yet, in place of what they held.
    async fn restore_keys(&self, lane: usize, keys: &[KeyDump]) -> StoreResult<()>;

    async fn restore_quarantine(&self, lane: usize, quarantined: &[Quarantined]) -> StoreResult<()>;

    /// How many keys there are of any kind, whatever rules they belong to.
    async fn size(&self) -> StoreResult<u64> {
        Err(not_removable())
    }

    /// From here on no batch is taken and no worker begins: meta says that the store is being
    /// removed, in every lane that has one.
    async fn begin_removal(&self) -> StoreResult<()> {
        Err(not_removable())
    }

    /// Removes every key, in steps, and meta last; how many there were. What was cut off is done
    /// again.
    async fn remove_all(&self) -> StoreResult<u64> {
        Err(not_removable())
    }

    /// The values of all reads added up, where that is cheaper for the store than handing them out
    /// one by one; `None` where it is not, or where they are more than the bounds allow.
    async fn sums(&self, _lane: usize, _reads: &[Read], _bounds: &SumBounds<'_>) -> StoreResult<Option<Sums>> {
        Ok(None)
    }

    /// The key of a metric in a bucket, as far as it is known without asking anybody: what a
    /// question about it may cost. `None` when nothing is known.
    fn size_of_key(&self, _bucket: Bucket, _metric: &Metric) -> Option<KeySize> {
        None
    }

    /// Answers in the order of the reads.
    async fn read(&self, lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>>;
}

/// One in memory ends with its process.
fn not_removable() -> StoreError {
    StoreError::stop("this store cannot be removed")
}

/// The write side of one lane: one ordered connection. What it promises is that of a
/// [`worker::Session`](traqq_pipeline::Session): fenced, atomic, in order.
#[async_trait]
pub trait Session: Send {
    /// Meta and positions of the lane, of one moment: a position that is missing beside a start
    /// that is not was deleted by somebody, while a lane without a meta is empty. The starts are
    /// those of the lane, at least.
    async fn stored(&mut self) -> StoreResult<Option<(Meta, Positions)>>;

    async fn positions(&mut self) -> StoreResult<Positions> {
        Ok(self.stored().await?.map(|(_, positions)| positions).unwrap_or_default())
    }

    /// Sends a batch before it returns; the future is the answer. Batches are applied in the order
    /// of the calls. After any answer but [`Outcome::Applied`] the session must be dropped.
    async fn commit(&mut self, batch: Arc<WriteBatch>) -> BoxFuture<'static, StoreResult<Outcome>>;
}
