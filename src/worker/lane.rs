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
use super::status::Status;
use super::uncounted::Tally;
use crate::broker::{Message, ProduceError, Producer};
use crate::compile::{DeadLetter, FoldStats, Folded, Plan};
use crate::hll::murmur64a;
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

/// Where a dead letter came from and why it is one; the names do not change.
const HEADER_REASON: &str = "traqq-reason";
const HEADER_CLASS: &str = "traqq-class";
const HEADER_DETAIL: &str = "traqq-detail";
const HEADER_TOPIC: &str = "traqq-topic";
const HEADER_PARTITION: &str = "traqq-partition";
const HEADER_OFFSET: &str = "traqq-offset";
const HEADER_INDEX: &str = "traqq-index";
const HEADER_TIMESTAMP: &str = "traqq-timestamp-ms";
/// On an envelope, whose value is only the beginning of the record.
const HEADER_BYTES: &str = "traqq-value-bytes";
const HEADER_HASH: &str = "traqq-value-murmur64a";
/// The obstacle's name in the status.
pub(super) const DEAD_LETTERS: &str = "dead letters";
const ENVELOPE_BYTES: usize = 64 << 10;
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
    let mut message = to_message(letter, &detail);
    let mut backoff = Backoff::default();
    let mut envelope_bytes = ENVELOPE_BYTES;
    loop {
        match producer.send(&message).await {
            Ok(()) => return status.clear(DEAD_LETTERS),
            Err(ProduceError::TooLarge(error)) => {
                tracing::warn!(
                    partition = %letter.partition, offset = letter.offset, error,
                    "a dead letter is too large for its topic; sending its beginning"
                );
                if envelope_bytes == 0 {
                    status.obstruct(DEAD_LETTERS, &error);
                    tokio::time::sleep(backoff.next()).await;
                }
                message = to_envelope(letter, &detail, envelope_bytes);
                // Should even that be too much.
                envelope_bytes /= 2;
            }
            Err(ProduceError::Retry(error)) => {
                metrics::counter!(names::DEAD_LETTER_RETRIES).increment(1);
                status.obstruct(DEAD_LETTERS, &error);
                tracing::warn!(
                    error, reason = letter.reason.name(), partition = %letter.partition, offset = letter.offset,
                    "the dead-letter destination refuses; the partition waits"
                );
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

fn to_message(letter: &DeadLetter, detail: &str) -> Message {
    let mut headers = letter.headers.clone();
    for (name, value) in [
        (HEADER_REASON, letter.reason.name().to_owned()),
        (HEADER_CLASS, letter.reason.class().to_owned()),
        (HEADER_DETAIL, detail.to_owned()),
        (HEADER_TOPIC, letter.partition.topic.to_string()),
        (HEADER_PARTITION, letter.partition.partition.to_string()),
        (HEADER_OFFSET, letter.offset.to_string()),
        (HEADER_TIMESTAMP, letter.timestamp_ms.to_string()),
    ] {
        headers.push((name.to_owned(), Some(value.into_bytes())));
    }
    if let Some(index) = letter.index {
        headers.push((HEADER_INDEX.to_owned(), Some(index.to_string().into_bytes())));
    }
    Message { key: letter.key.clone(), value: letter.value.clone(), headers, timestamp_ms: None }
}

/// Coordinates, size, hash and beginning of a record that the destination will not take whole.
fn to_envelope(letter: &DeadLetter, detail: &str, bytes_max: usize) -> Message {
    let value = letter.value.as_deref().unwrap_or_default();
    let without_headers = DeadLetter { headers: Vec::new(), key: None, value: None, ..letter.clone() };
    let mut message = to_message(&without_headers, detail);
    message.value = Some(value[..value.len().min(bytes_max)].to_vec());
    for (name, value) in
        [(HEADER_BYTES, value.len().to_string()), (HEADER_HASH, format!("{:016x}", murmur64a(value, 0)))]
    {
        message.headers.push((name.to_owned(), Some(value.into_bytes())));
    }
    message
}
