//! The contract of rebalances.
//!
//! A consumer is a member of a group. It is owned by one thread, which calls it and does nothing
//! else that waits; a call may block as long as its text says, and meanwhile no other partition is
//! read. Partitions come and go as events of [`Consumer::poll`]:
//!
//! ```text
//!              Assigned            open              release
//!   not ours ----------> offered ---------> read ------------> not ours
//!                           ^      halt       |  open: moved
//!                           +-----------------+
//!                             Revoked: still read, and asked back
//!                             Revoked, lost: somebody else's already
//! ```
//!
//! - [`Event::Assigned`] offers partitions. Nothing of them is fetched until [`Consumer::open`]
//!   says from which offset, one at a time or many. Nobody waits for it: a ledger may be slow, and
//!   the membership must not depend on it.
//! - [`Event::Revoked`] asks for partitions back. Records of them may still arrive until
//!   [`Consumer::release`]; the group waits for that, for the drain bound of the worker
//!   (`worker.drain_timeout_ms`, at most 10 s). With `lost` they belong to somebody else already,
//!   and nobody waits.
//! - Every [`RecordBatch`] carries the generation under which its partition was opened last. After
//!   an opening no record of an older generation is delivered; should one be, the worker drops it.
//!
//! Where a worker stands is in its ledger and nowhere else. What is handed to [`Consumer::commit`]
//! tells others how far it is (lag tools, the retention of a log of our own), and holds a note from
//! which a ledger that was lost is begun again.

use std::time::Duration;

use super::{BrokerResult, Start};
use traqq_core::model::{RecordBatch, TopicPartition};

/// What happened to a consumer, in the order in which it did.
pub enum Event {
    Records(RecordBatch),
    /// Partitions are offered. One that was lost and offered again at once may be offered twice.
    Assigned(Vec<TopicPartition>),
    Revoked {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    /// The broker no longer has, or not yet, an offset that was asked for. The worker asks its
    /// ledger and opens again.
    OutOfRange,
    /// Positions did not reach the broker; they are worth sending again.
    CommitFailed(String),
    /// Something went wrong; polling goes on.
    Trouble(String),
}

/// What the log holds of a partition: `[low, high)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    pub low: i64,
    pub high: i64,
}

/// Where a partition is to be read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opening {
    pub partition: TopicPartition,
    /// The first record to deliver: that at the position, or the one applied last, which lies below
    /// it.
    pub offset: i64,
    /// The first record that is not counted yet.
    pub position: i64,
    pub generation: u64,
}

/// What is committed to the broker for a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub partition: TopicPartition,
    /// Offsets below it are applied.
    pub position: i64,
    /// Kept beside the offset and given back as it was, see [`note_of`](traqq_pipeline::note_of).
    pub note: String,
}

/// A member of a consumer group. The module says when which call comes.
pub trait Consumer: Send {
    /// Waits up to `timeout` for something to happen, and returns what has; nothing is fine. At
    /// most about `bytes_max` bytes of records: one fetch may overshoot. Records of a partition
    /// come in the order of the log, each once for an opening. This is also what keeps the
    /// membership alive: it is called every few milliseconds, also while fetching is paused.
    ///
    /// `Retry`: the log cannot be reached; the caller waits half a second and polls again. `Stop`:
    /// the worker ends.
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>>;

    /// Begins to fetch partitions that were offered, or moves those that are open; the record at
    /// [`Opening::offset`] comes first, or the first one behind it that there is. All or none:
    /// after an error none of them is taken for open, and the caller tries again.
    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()>;

    /// Stops fetching a partition that stays ours, until it is opened again or released. One that
    /// is not open is left alone.
    fn halt(&mut self, partition: &TopicPartition);

    /// Gives partitions back: the answer to `Revoked`, for which the group waits. Also called for
    /// what was lost.
    fn release(&mut self, partitions: &[TopicPartition]);

    /// Stops or resumes fetching of all partitions, those that are opened meanwhile included. What
    /// was fetched ahead may still come.
    fn pause(&mut self, paused: bool);

    /// Asks the broker what it holds of a partition. May block for seconds, and must give up after
    /// some.
    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks>;

    /// The ends of partitions as far as they are known without asking: for lag, so an old one does
    /// no harm.
    fn ends(&self) -> Vec<(TopicPartition, i64)>;

    /// Why nothing can be read, as far as that is known without asking; `None` while there is a
    /// connection. After some seconds it makes the worker unready. A broker that always answers
    /// `poll` with an error while it cannot be read need not say it here.
    fn away(&self) -> Option<String> {
        None
    }

    /// Partitions that are open and cannot be read, each with the reason, as far as that is known
    /// without asking. One that is being read, or has nothing to read, is not among them.
    fn unread(&self) -> Vec<(TopicPartition, String)> {
        Vec::new()
    }

    /// Commits positions for the group, each in place of the one before, which may be greater. With
    /// `wait` it returns when the broker has answered, otherwise at once, and
    /// [`Event::CommitFailed`] tells of a failure. Committing the same again is harmless.
    fn commit(&mut self, marks: &[Mark], wait: bool) -> BrokerResult<()>;

    /// Every partition of the topics that are subscribed to, also those that others have. May block
    /// for seconds.
    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>>;

    /// The offsets at which reading of these partitions begins, in their order. May block for
    /// seconds.
    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>>;

    /// What is committed for the group, where something is; also by others, whose notes may hold
    /// anything. May block for seconds.
    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>>;

    /// Leaves the group, so that the others need not wait for this member to be missed. The last
    /// call.
    fn close(&mut self);
}
