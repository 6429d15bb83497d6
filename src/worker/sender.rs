//! The task that sends a lane's batches over one session: dead letters first, then the batch, several in flight.
//!
//! It lives as long as the session. The first answer that is not "applied" ends it: the loop takes over from there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::budget::Permit;
use super::dead_letter::{beginning, whole};
use super::status::Status;
use super::uncounted::Tally;
use crate::broker::{ProduceError, Producer};
use crate::compile::{DeadLetter, FoldStats, Folded, Plan};
use crate::model::Span;
use crate::store::{Outcome, Session, StoreResult};
use crate::telemetry::names;

/// One batch on its way.
pub struct Sending {
    pub folded: Folded,
    pub permit: Permit,
    /// The last batch of its job.
    pub is_last: bool,
}

/// What became of one.
pub struct Committed {
    pub lane: usize,
    pub epoch: u64,
    pub spans: Vec<Span>,
    pub stats: FoldStats,
    pub dead_letters: Tally,
    pub is_last: bool,
    pub latency: Duration,
    pub result: StoreResult<Outcome>,
}

pub struct LaneSender {
    pub lane: usize,
    pub epoch: u64,
    pub session: Box<dyn Session>,
    /// Says what is wrong with dead letters.
    pub plan: Arc<Plan>,
    /// `None` when dead letters are discarded.
    pub producer: Option<Arc<dyn Producer>>,
    pub in_flight_max: usize,
    pub answers: UnboundedSender<Committed>,
    pub status: Arc<Status>,
}

/// The obstacle's name in the status.
pub(super) const DEAD_LETTERS: &str = "dead letters";
/// Of the value in the first copy that is shorter than the record; each one after it has half.
const COPY_BYTES: usize = 64 << 10;
/// Dead letters handed to the producer at once: this many,
const LETTERS_IN_FLIGHT: usize = 1000;
/// or bytes.
const LETTER_BYTES_IN_FLIGHT: usize = 8 << 20;

impl LaneSender {
    pub async fn run(mut self, mut batches: UnboundedReceiver<Sending>) {
        let mut in_flight: FuturesOrdered<BoxFuture<'static, Committed>> = FuturesOrdered::new();
        loop {
            // Cancel safety: neither `recv` nor `next` loses anything when the other branch wins, and what a branch took is
            // dealt with before the next turn.
            tokio::select! {
                biased;
                batch = batches.recv(), if in_flight.len() < self.in_flight_max => {
                    let Some(sending) = batch else { return };
                    in_flight.push_back(self.send(sending).await);
                }
                Some(committed) = in_flight.next() => {
                    let is_applied = matches!(committed.result, Ok(Outcome::Applied(_)));
                    if self.answers.send(committed).is_err() || !is_applied {
                        return;
                    }
                }
            }
        }
    }

    async fn send(&mut self, Sending { folded, permit, is_last }: Sending) -> BoxFuture<'static, Committed> {
        let Folded { batch, dead_letters, stats, .. } = folded;
        bury(self.producer.clone(), &self.plan, &self.status, &dead_letters).await;
        let dead_letters = Tally::of(&self.plan, &dead_letters);
        let (lane, epoch, spans) = (self.lane, self.epoch, batch.spans.clone());
        let sent_at = Instant::now();
        let answer = self.session.commit(Arc::new(batch)).await;
        Box::pin(async move {
            let result = answer.await;
            drop(permit);
            Committed { lane, epoch, spans, stats, dead_letters, is_last, latency: sent_at.elapsed(), result }
        })
    }
}

/// Returns when the destination has all of them; it never gives up, so their offsets are never passed without them.
async fn bury(producer: Option<Arc<dyn Producer>>, plan: &Plan, status: &Status, mut letters: &[DeadLetter]) {
    while !letters.is_empty() {
        let (chunk, rest) = letters.split_at(letters_at_once(letters));
        letters = rest;
        if let Some(producer) = &producer {
            let published = chunk.iter().map(|letter| publish(producer.as_ref(), plan, status, letter));
            futures_util::future::join_all(published).await;
        }
    }
}

/// How many letters go at once: at least one.
fn letters_at_once(letters: &[DeadLetter]) -> usize {
    let mut bytes = 0;
    let fits = |letter: &&DeadLetter| {
        bytes += letter.bytes();
        bytes <= LETTER_BYTES_IN_FLIGHT
    };
    letters.iter().take(LETTERS_IN_FLIGHT).take_while(fits).count().max(1)
}

async fn publish(producer: &dyn Producer, plan: &Plan, status: &Status, letter: &DeadLetter) {
    let detail = plan.describe(letter);
    let mut message = whole(letter, &detail);
    let mut backoff = Backoff::default();
    // Of the value in a copy that is sent instead; `None` for the whole.
    let mut copy_bytes: Option<usize> = None;
    loop {
        match producer.send(&message).await {
            Ok(()) => return status.clear(DEAD_LETTERS),
            // Not even the shortest copy: this is for the operator to mend, and then all may pass.
            Err(ProduceError::Refused(error)) if copy_bytes == Some(0) => {
                refused(status, letter, &error);
                tokio::time::sleep(backoff.next()).await;
                (message, copy_bytes) = (whole(letter, &detail), None);
            }
            Err(ProduceError::Refused(error)) => {
                metrics::counter!(names::DEAD_LETTERS_SHORTENED).increment(u64::from(copy_bytes.is_none()));
                tracing::debug!(partition = %letter.partition, offset = letter.offset, error, "sending less of a dead letter");
                let whole = letter.value.as_ref().map_or(0, Vec::len);
                let bytes = copy_bytes.map_or(whole.min(COPY_BYTES), |bytes| bytes / 2);
                (message, copy_bytes) = (beginning(letter, &detail, bytes), Some(bytes));
            }
            Err(ProduceError::Retry(error)) => {
                refused(status, letter, &error);
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

fn refused(status: &Status, letter: &DeadLetter, error: &str) {
    metrics::counter!(names::DEAD_LETTER_RETRIES).increment(1);
    status.obstruct(DEAD_LETTERS, error);
    tracing::warn!(
        error, reason = letter.reason.name(), partition = %letter.partition, offset = letter.offset,
        "the dead-letter destination refuses; the partition waits"
    );
}
