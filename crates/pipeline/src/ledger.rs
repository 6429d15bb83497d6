//! Where a projection keeps its result and its positions: together, or nothing is exact.

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::budget::Permit;
use super::projection::Projection;
use traqq_core::model::{Checkpoint, Positions, TopicPartition};

/// A projection's result with its positions, a header, and one or more lanes.
///
/// A *lane* is the unit of atomicity: a partition belongs to one ([`TopicPartition::lane`]), and
/// what a batch of a lane writes and the positions it ends at become visible and durable in one
/// step. A ledger with one transaction for everything has one lane.
///
/// Called by several tasks at a time; calls may be repeated after an error of which nobody knows
/// whether it had an effect, so each is idempotent as its text says. No call blocks its thread.
#[async_trait]
pub trait Ledger<P: Projection>: Send + Sync {
    /// At least one, and the same for the life of the ledger.
    fn lanes(&self) -> usize;

    /// The header; `None` when there is none, which is what an empty ledger looks like.
    async fn header(&self) -> LedgerResult<Option<P::Header>>;

    /// A lane's own copy of the header, where lanes can be lost one by one. It may be one of
    /// before.
    async fn lane_header(&self, _lane: usize) -> LedgerResult<Option<P::Header>> {
        self.header().await
    }

    /// Writes the header and the start position of every partition in it, in one step, unless there
    /// is a header already; returns what is there then. Of several workers that begin at once, one
    /// wins, and all get the winner's.
    async fn create(&self, header: &P::Header) -> LedgerResult<P::Header>;

    /// Begins one lane anew which lost everything, at the starts in `header`. One that has a header
    /// is left alone.
    async fn begin_lane(&self, _lane: usize, _header: &P::Header) -> LedgerResult<()> {
        Ok(())
    }

    /// Adds partitions that appeared after the first start, to the header and to the positions.
    /// Those that are known already are left alone.
    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> LedgerResult<()>;

    /// The stored positions of a lane.
    async fn positions(&self, lane: usize) -> LedgerResult<Positions>;

    /// Sets a partition's checkpoint if it is `from` now, in one step; `false` when it is not.
    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> LedgerResult<bool>;

    /// A new connection to a lane. The one before may still have commits under way, which may be
    /// applied at any time: the fence is what makes them harmless.
    async fn session(&self, lane: usize) -> LedgerResult<Box<dyn Session<P>>>;

    /// Drops what may still lead to a server that was the right one once; what follows connects
    /// anew. Called in every doubt.
    async fn disconnect(&self) {}
}

/// One ordered connection to a lane, with several commits under way.
#[async_trait]
pub trait Session<P: Projection>: Send {
    /// The header and the positions of the lane, of one moment; `None` when the lane is empty. The
    /// first call of a session. A position that is missing beside a start that is not was deleted
    /// by somebody.
    async fn stored(&mut self) -> LedgerResult<Option<(P::Header, Positions)>>;

    /// Sends a batch before it returns; the future is the answer. It is polled until it is ready or
    /// the session is over, beside those of other batches.
    ///
    /// - *Fence*: applied only if the stored position of every range is exactly the one it begins
    ///   at ([`Checkpoint`] as a whole, not only its offset); else nothing is written and the
    ///   answer is [`Outcome::Fenced`].
    /// - *Atomic*: the whole batch and the ends of all its ranges, or nothing, whatever fails.
    /// - *In order*: batches are applied in the order of the calls. After any answer but
    ///   [`Outcome::Applied`] no later batch of the session may be applied, and the session is
    ///   dropped.
    /// - *Durable*: `Applied` is answered when the ledger promises to have it. Should it go back
    ///   behind that, positions and result go back together.
    ///
    /// A session may group batches and answer all of them when the group has landed. `permit` is
    /// the batch's share of the memory; it is dropped as soon as the batch needs none, which may be
    /// before the answer.
    async fn commit(&mut self, batch: P::Batch, permit: Permit)
    -> BoxFuture<'static, LedgerResult<Outcome<P::Report>>>;

    /// Lands now what waits for a group to fill: partitions are being given back, or the worker
    /// stops. The answers say what became of it. Nothing to do where every batch is sent at once.
    async fn flush(&mut self) {}
}

/// What became of a commit that was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<R> {
    Applied(R),
    /// A stored position was not the one the batch begins at; these are the stored ones. Nothing
    /// was written.
    Fenced(Vec<(TopicPartition, Option<Checkpoint>)>),
    /// What the batch was made by is no longer so; nothing was written.
    Stale(Stale),
}

/// What a batch was made by that is no longer so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale {
    /// The label `stored` of `traqq_fences_total`; one word.
    pub what: &'static str,
    /// For the log.
    pub why: &'static str,
}

/// Why, with its own causes.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

pub type LedgerResult<T> = Result<T, LedgerError>;

/// What to do about a failure of the ledger.
///
/// Shown, each is its cause.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It refuses for now (out of memory, loading, busy): the same again after a pause.
    #[error(transparent)]
    Retry(Cause),
    /// The connection is gone or not to be trusted: a new one, then positions.
    #[error(transparent)]
    Reconnect(Cause),
    /// Trying again cannot help; an operator must act, and the text says how.
    #[error(transparent)]
    Stop(Cause),
}

impl LedgerError {
    /// The label of the metric that counts it.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Retry(_) => "retry",
            Self::Reconnect(_) => "reconnect",
            Self::Stop(_) => "stop",
        }
    }
}
