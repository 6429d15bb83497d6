//! The task that sends a lane's batches over one session: dead letters first, then the batch,
//! several in flight.
//!
//! It lives as long as the session. The first answer that is not "applied" ends it: the loop takes
//! over from there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::dead_letter::{beginning, whole};
use super::lane::Turn;
use super::ledger::{LedgerResult, Outcome, Session};
use super::projection::{Batch, Intake, Projection};
use super::status::{Obstacle, Status};
use super::uncounted::Tally;
use crate::names;
use traqq_core::decode::DeadLetter;
use traqq_core::error::ErrorLine;
use traqq_core::model::Span;
use traqq_log::{ProduceError, Producer};

/// What becomes of records, or events in them, that a projection cannot take. Of several
/// projections over one log one publishes them, and all count them with the same reasons.
#[derive(Clone)]
pub enum DeadLetters {
    /// Each is published before the batch that passes it is committed.
    Publish(Arc<dyn Producer>),
    /// Nobody wants them.
    Discard,
    /// Another projection of the log publishes them.
    LeftToAnother,
}

impl DeadLetters {
    /// Where they go, if anywhere.
    pub fn to(producer: Option<Arc<dyn Producer>>) -> Self {
        producer.map_or(Self::Discard, Self::Publish)
    }

    /// The counter that each is added to.
    pub(super) const fn metric(&self) -> &'static str {
        match self {
            Self::LeftToAnother => names::SKIPPED_EVENTS,
            Self::Publish(_) | Self::Discard => names::DEAD_LETTERS,
        }
    }
}

/// What became of a batch.
pub struct Committed<P: Projection> {
    pub lane: usize,
    pub epoch: u64,
    pub ranges: Vec<Span>,
    pub intake: Intake,
    pub stats: <P::Batch as Batch>::Stats,
    pub dead_letters: Tally,
    pub is_last: bool,
    pub latency: Duration,
    pub result: LedgerResult<Outcome<P::Report>>,
}

pub struct LaneSender<P: Projection> {
    pub lane: usize,
    pub epoch: u64,
    pub session: Box<dyn Session<P>>,
    pub projection: Arc<P>,
    pub dead_letters: DeadLetters,
    pub in_flight_max: usize,
    /// Nothing is to wait for a group to fill.
    pub is_hurried: watch::Receiver<bool>,
    pub answers: UnboundedSender<Committed<P>>,
    pub status: Arc<Status>,
}

/// Of the value in the first copy that is shorter than the record; each one after it has half.
const COPY_BYTES: usize = 64 << 10;
/// Dead letters handed to the producer at once: this many,
const LETTERS_IN_FLIGHT: usize = 1000;
/// or bytes.
const LETTER_BYTES_IN_FLIGHT: usize = 8 << 20;

impl<P: Projection> LaneSender<P> {
    pub async fn run(mut self, mut batches: UnboundedReceiver<Turn<P::Batch>>) {
        let mut in_flight: FuturesOrdered<BoxFuture<'static, Committed<P>>> = FuturesOrdered::new();
        let mut is_flushed = true;
        loop {
            let is_full = in_flight.len() >= self.in_flight_max;
            if !is_flushed && *self.is_hurried.borrow() && (is_full || batches.is_empty()) {
                self.session.flush().await;
                is_flushed = true;
            }
            // Cancel safety: neither `recv`, `next` nor `changed` loses anything when another
            // branch wins, and what a branch took is dealt with before the next turn.
            tokio::select! {
                biased;
                batch = batches.recv(), if !is_full => {
                    let Some(turn) = batch else { return };
                    in_flight.push_back(self.send(turn).await);
                    is_flushed = false;
                }
                Some(committed) = in_flight.next() => {
                    let is_applied = matches!(committed.result, Ok(Outcome::Applied(_)));
                    if self.answers.send(committed).is_err() || !is_applied {
                        return;
                    }
                }
                changed = self.is_hurried.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn send(&mut self, Turn { batch, permit, is_last }: Turn<P::Batch>) -> BoxFuture<'static, Committed<P>> {
        let letters = batch.dead_letters();
        if let DeadLetters::Publish(producer) = &self.dead_letters {
            bury(producer.as_ref(), self.projection.as_ref(), &self.status, letters).await;
        }
        let dead_letters = Tally::of(letters, |letter| self.projection.describe(letter));
        let (lane, epoch, ranges) = (self.lane, self.epoch, batch.ranges().to_vec());
        let (intake, stats) = (batch.intake(), batch.stats());
        let sent_at = Instant::now();
        let answer = self.session.commit(batch, permit).await;
        Box::pin(async move {
            let result = answer.await;
            let latency = sent_at.elapsed();
            Committed { lane, epoch, ranges, intake, stats, dead_letters, is_last, latency, result }
        })
    }
}

/// Returns when the destination has all of them; it never gives up, so their offsets are never
/// passed without them.
async fn bury<P: Projection>(producer: &dyn Producer, projection: &P, status: &Status, mut letters: &[DeadLetter]) {
    while !letters.is_empty() {
        let (chunk, rest) = letters.split_at(letters_at_once(letters));
        letters = rest;
        let published = chunk.iter().map(|letter| publish(producer, projection, status, letter));
        futures_util::future::join_all(published).await;
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

async fn publish<P: Projection>(producer: &dyn Producer, projection: &P, status: &Status, letter: &DeadLetter) {
    let detail = projection.describe(letter);
    let mut message = whole(letter, &detail);
    let mut backoff = Backoff::default();
    // Of the value in a copy that is sent instead; `None` for the whole.
    let mut copy_bytes: Option<usize> = None;
    loop {
        match producer.send(&message).await {
            Ok(()) => return status.clear(&Obstacle::DeadLetters),
            // Not even the shortest copy: this is for the operator to mend, and then all may pass.
            Err(ProduceError::Refused(error)) if copy_bytes == Some(0) => {
                refused(status, letter, &error);
                tokio::time::sleep(backoff.next()).await;
                (message, copy_bytes) = (whole(letter, &detail), None);
            }
            Err(ProduceError::Refused(error)) => {
                metrics::counter!(names::DEAD_LETTERS_SHORTENED, "projection" => status.projection())
                    .increment(u64::from(copy_bytes.is_none()));
                tracing::debug!(partition = %letter.partition, offset = letter.offset, %error, "sending less of a dead letter");
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

fn refused(status: &Status, letter: &DeadLetter, error: &ErrorLine) {
    metrics::counter!(names::DEAD_LETTER_RETRIES, "projection" => status.projection()).increment(1);
    status.obstruct(Obstacle::DeadLetters, error.text());
    tracing::warn!(
        %error, reason = letter.reason.name(), partition = %letter.partition, offset = letter.offset,
        "the dead-letter destination refuses; the partition waits"
    );
}
