//! Reading one partition: a named pull consumer that begins where we say, and the order of what it delivers.
//!
//! The server numbers what it hands to a consumer. A number that is missing is a message that was lost between server and us: the
//! consumer is made anew behind the last message that arrived. What arrives again is left out.
//!
//! Whenever it is made anew, and after every reconnection, the last message that was handed over must still be the one that it was: a
//! server may have lost what it had not synced, and a stream may have been made again under its name.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};

use super::Arrival;
use super::link::Link;
use crate::broker::{BrokerError, BrokerResult};
use crate::model::{Fingerprint, RecordBatch, TopicPartition};

/// Records are handed on in batches of about this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// One pull asks for so many messages; with the next one that is half way, they fit the client's queue of 65,536.
const PULL_MESSAGES: usize = 20_000;
/// A pull lasts this long when nothing comes,
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// and the server is heard at least this often meanwhile.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Unacknowledged messages: what the worker may have in flight, and more.
const ACK_PENDING_MAX: i64 = 2_000_000;
/// Redelivery serves nobody: whoever reads next says where to begin.
const ACK_WAIT: Duration = Duration::from_secs(24 * 3600);
/// A partition without a message for so long moves its position to where the stream ended
const QUIET: Duration = Duration::from_secs(5);
/// so long ago, which is longer than any replica lags.
const SETTLED: Duration = Duration::from_secs(10);
/// Between attempts to read a partition.
const RETRY: Duration = Duration::from_millis(500);

pub struct Reader {
    pub link: Arc<Link>,
    pub partition: TopicPartition,
    /// `None` when the partition is all of the stream.
    pub filter: Option<String>,
    pub generation: u64,
    /// The first sequence to deliver, and how far the reader has come.
    pub next: Arc<AtomicI64>,
    /// Messages that the server still has for us.
    pub pending: Arc<AtomicI64>,
    /// The record applied last, to be delivered whatever it is now: the worker compares it.
    pub verify: Option<i64>,
    /// What was handed over last.
    pub last: Option<Fingerprint>,
    pub pull_bytes: usize,
    pub out: mpsc::Sender<Arrival>,
    pub paused: watch::Receiver<bool>,
}

/// The name of a partition's consumer.
pub fn consumer_name(group: &str, partition: i32) -> String {
    format!("{group}-{partition}")
}

impl Reader {
    pub async fn run(mut self) {
        loop {
            let Err(error) = self.read().await;
            let (is_over, arrival) = match error {
                BrokerError::Retry(text) => (false, Arrival::Trouble(format!("{}: {text}", self.partition))),
                // The worker opens it again, or stops it.
                BrokerError::Stop(text) => (true, Arrival::OutOfRange(format!("{}: {text}", self.partition))),
            };
            if self.out.send(arrival).await.is_err() || is_over {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Which connection to which server.
    fn session(&self) -> (String, u64) {
        let info = self.link.client.server_info();
        (info.server_id, info.client_id)
    }

    /// `Stop` when the stream is no longer the one that was read.
    async fn compare(&self, stream: &Stream) -> BrokerResult<()> {
        let Some(last) = self.last else { return Ok(()) };
        match stream.get_raw_message(last.offset as u64).await {
            Ok(message) => {
                let mut batch = self.batch();
                push(&mut batch, last.offset, millis(message.time), &message.payload, Some(&message.headers));
                if batch.get(0).fingerprint() == last {
                    return Ok(());
                }
                Err(BrokerError::Stop(format!("message {} is not the one that was read", last.offset)))
            }
            // Trimmed, or another stream: the position says which.
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                let text = format!("message {}, which was read last, is gone", last.offset);
                let is_trimmed = (last.offset as u64) < stream.cached_info().state.first_sequence;
                if is_trimmed && self.next() as u64 >= stream.cached_info().state.first_sequence {
                    return Ok(());
                }
                Err(BrokerError::Stop(text))
            }
            Err(error) => Err(self.link.retry("the message read last", &error)),
        }
    }

    async fn read(&mut self) -> BrokerResult<Infallible> {
        let link = Arc::clone(&self.link);
        let failed = |what: &str, error: &dyn std::fmt::Display| link.retry(what, error);
        let stream = link.stream().await.map_err(|error| BrokerError::Retry(error.to_string()))?;
        let session = self.session();
        self.compare(&stream).await?;
        if let Some(sequence) = self.verify {
            match stream.get_raw_message(sequence as u64).await {
                Ok(message) => {
                    let mut batch = self.batch();
                    push(&mut batch, sequence, millis(message.time), &message.payload, Some(&message.headers));
                    self.hand_over(batch, None).await?;
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(failed("the message applied last", &error)),
            }
            self.verify = None;
        }
        let name = consumer_name(&link.config.group, self.partition.partition);
        // It stands wherever somebody left it; the store knows better.
        let _ = stream.delete_consumer(&name).await;
        let config = pull::Config {
            durable_name: Some(name),
            description: Some("traqq".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next() as u64 },
            ack_policy: AckPolicy::All,
            ack_wait: ACK_WAIT,
            max_ack_pending: ACK_PENDING_MAX,
            filter_subject: self.filter.clone().unwrap_or_default(),
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed("consumer", &error))?;
        let pulls = consumer.stream().max_messages_per_batch(PULL_MESSAGES).max_bytes_per_batch(self.pull_bytes);
        let pulls = pulls.expires(PULL_EXPIRES).heartbeat(HEARTBEAT);
        let mut messages = pulls.messages().await.map_err(|error| failed("pull", &error))?;
        let mut delivered = 0;
        let mut batch = self.batch();
        let mut last_reply = None;
        let mut quiet_since: Option<(Instant, i64)> = None;
        loop {
            let message = match messages.next().now_or_never() {
                Some(message) => message,
                None if !batch.is_empty() => {
                    let full = std::mem::replace(&mut batch, self.batch());
                    self.hand_over(full, last_reply.take()).await?;
                    continue;
                }
                None => match tokio::time::timeout(QUIET, messages.next()).await {
                    Ok(message) => message,
                    Err(_) => {
                        quiet_since = self.settle(&stream, quiet_since).await?;
                        continue;
                    }
                },
            };
            let message = message.ok_or_else(|| failed("pull", &"ended"))?.map_err(|error| failed("pull", &error))?;
            if batch.is_empty() && self.session() != session {
                return Err(failed("pull", &"connected again; comparing what was read last"));
            }
            quiet_since = None;
            let info = message.info().map_err(|error| failed("a message without coordinates", &error))?;
            delivered += 1;
            if info.consumer_sequence != delivered {
                let text = format!(
                    "delivery {} came after {}; reading again from there",
                    info.consumer_sequence,
                    delivered - 1
                );
                if !batch.is_empty() {
                    self.hand_over(batch, last_reply.take()).await?;
                }
                return Err(failed("a message was lost on its way", &text));
            }
            let sequence = info.stream_sequence as i64;
            if sequence < self.next() {
                continue;
            }
            let published_ms = millis(info.published);
            let pending = info.pending as i64;
            push(&mut batch, sequence, published_ms, &message.payload, message.headers.as_ref());
            self.next.store(sequence + 1, Ordering::Relaxed);
            self.pending.store(pending, Ordering::Relaxed);
            if batch.bytes() >= BATCH_BYTES {
                last_reply = message.message.reply;
                let full = std::mem::replace(&mut batch, self.batch());
                self.hand_over(full, last_reply.take()).await?;
            } else {
                last_reply = message.message.reply;
            }
        }
    }

    fn next(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    fn batch(&self) -> RecordBatch {
        RecordBatch::new(self.partition.clone(), self.generation)
    }

    async fn hand_over(&mut self, batch: RecordBatch, reply: Option<async_nats::Subject>) -> BrokerResult<()> {
        if let Some(end) = batch.len().checked_sub(1) {
            self.last = Some(batch.get(end).fingerprint());
        }
        while *self.paused.borrow_and_update() {
            if self.paused.changed().await.is_err() {
                break;
            }
        }
        let sent = self.out.send(Arrival::Records(batch, reply)).await;
        sent.map_err(|_| self.link.retry("consumer", &"closed"))
    }

    /// Other partitions fill the stream while this one is quiet. Its position follows, or trimming would look like a loss.
    async fn settle(&mut self, stream: &Stream, since: Option<(Instant, i64)>) -> BrokerResult<Option<(Instant, i64)>> {
        let Some(filter) = &self.filter else { return Ok(None) };
        let failed = |error: &dyn std::fmt::Display| self.link.retry("a quiet partition", error);
        let Some((at, end)) = since else {
            let end = self.link.stream().await?.cached_info().state.last_sequence as i64 + 1;
            return Ok(Some((Instant::now(), end)));
        };
        if at.elapsed() < SETTLED || end <= self.next() {
            return Ok(if end <= self.next() { None } else { since });
        }
        // The leader answers, and it has had all that was before `end` for a while.
        match stream.get_first_raw_message_by_subject(filter, self.next() as u64).await {
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                self.next.store(end, Ordering::Relaxed);
                let mut batch = self.batch();
                batch.position = end;
                self.hand_over(batch, None).await?;
                Ok(None)
            }
            // It comes, or it was delivered and is lost on its way, which the next delivery shows.
            Ok(_) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn millis(time: async_nats::datetime::DateTime) -> i64 {
    (time.unix_timestamp_nanos() / 1_000_000) as i64
}

fn push(batch: &mut RecordBatch, sequence: i64, published_ms: i64, payload: &Bytes, headers: Option<&HeaderMap>) {
    match headers.filter(|headers| !headers.is_empty()) {
        None => batch.push(sequence, published_ms, None, Some(payload), std::iter::empty()),
        Some(headers) => {
            let all = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
            let names: Vec<(String, &[u8])> =
                all.map(|(name, value)| (header_name(name.as_ref()), value.as_str().as_bytes())).collect();
            let headers = names.iter().map(|(name, value)| (&**name, Some(*value)));
            batch.push(sequence, published_ms, None, Some(payload), headers);
        }
    }
}

/// CloudEvents names its attributes `ce-x` here and `ce_x` in Kafka, which is how the decoder knows them.
fn header_name(name: &str) -> String {
    match name.get(..3) {
        Some(prefix) if prefix.eq_ignore_ascii_case("ce-") => format!("ce_{}", name[3..].to_ascii_lowercase()),
        _ if name.eq_ignore_ascii_case("content-type") => "content-type".to_owned(),
        _ => name.to_owned(),
    }
}
