//! Reading one partition: a named pull consumer that begins where we say, and the order of what it
//! delivers.
//!
//! The server numbers what it hands to a consumer. A number that is missing is a message that was
//! lost between server and us: the consumer is made anew behind the last message that arrived. What
//! arrives again is left out.
//!
//! Consumers have the name of their partition, for people who look at them. So one that no longer
//! owns the partition and does not know it may make the consumer anew, to begin elsewhere, and what
//! it delivers would pass for ours. A pull belongs to one consumer, and dies with it: if the first
//! message of one is not the very next, the stream is asked what is.
//!
//! Whenever it is made anew, and after every reconnection, the last message that was handed over
//! must still be the one that it was: a server may have lost what it had not synced, and a stream
//! may have been made again under its name.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_nats::header::HeaderValue;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{ConsumerErrorKind, RetentionPolicy, Stream};
use async_nats::jetstream::{ErrorCode, consumer::Consumer};
use async_nats::{HeaderMap, StatusCode, Subject};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};

use super::Arrival;
use super::link::Link;
use super::raw::Stored;
use super::trouble::Trouble;
use crate::throttle::Throttle;
use crate::{BrokerError, BrokerResult};
use traqq_core::model::escape::shell;
use traqq_core::model::{Fingerprint, RecordBatch, TopicPartition};

/// Records are handed on in batches of about this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// One pull asks for so many messages at most, which is less than the client's queue holds.
const PULL_MESSAGES: usize = 20_000;
/// A pull lasts this long when nothing comes,
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// and the server is heard at least this often meanwhile.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Unacknowledged messages: what the worker may have in flight, and more.
pub const ACK_PENDING_MAX: i64 = 2_000_000;
/// Redelivery serves nobody: whoever reads next says where to begin.
const ACK_WAIT: Duration = Duration::from_secs(24 * 3600);
/// A partition without a message moves its position to where the stream ended so long ago, which is
/// longer than any replica lags.
const SETTLED: Duration = Duration::from_secs(10);
/// So many messages are read one by one behind one that the client cannot read, twice as many each
/// time that there is another one soon behind them,
const CROWD_MIN: u32 = 100;
/// up to so many: one by one they come a few thousand a second, and every end of the client also
/// interrupts the other partitions.
const CROWD_MAX: u32 = 25_600;
/// Soon is within this time.
const CROWD_MEMORY: Duration = Duration::from_secs(60);
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
    /// Why it cannot be read, until a message comes or there is none.
    pub trouble: Arc<Trouble>,
    /// The record applied last, to be delivered whatever it is now: the worker compares it.
    pub verify: Option<i64>,
    /// What was handed over last.
    pub last: Option<Fingerprint>,
    /// Where the attempt before was when the connection it read from ended, if it ended by that.
    pub cut_off_at: Option<i64>,
    /// Reading has ended before, for whatever reason.
    pub is_again: bool,
    /// The client to read with, once there was a message that the client cannot read: the next one
    /// ends this one, and not that of the other partitions.
    pub own_link: Option<Arc<Link>>,
    pub crowd: Crowd,
    pub unreadable: Unreadable,
    pub pull_bytes: usize,
    pub out: mpsc::Sender<Arrival>,
    pub paused: watch::Receiver<bool>,
}

/// How many messages are read one by one behind one that the client cannot read.
#[derive(Default)]
pub struct Crowd {
    size: u32,
    met: Option<Instant>,
}

impl Crowd {
    /// There was such a message.
    fn meet(&mut self, now: Instant) -> u32 {
        let is_soon = self.met.is_some_and(|met| now.duration_since(met) < CROWD_MEMORY);
        self.size = if is_soon { (self.size * 2).clamp(CROWD_MIN, CROWD_MAX) } else { CROWD_MIN };
        self.met = Some(now);
        self.size
    }
}

/// Messages that the client cannot read, reported now and then.
#[derive(Default)]
pub struct Unreadable(Throttle);

impl Unreadable {
    fn report(&mut self, partition: &TopicPartition, sequence: i64) {
        if let Some(messages) = self.0.admit(1) {
            tracing::warn!(
                %partition, messages, sequence,
                "messages have headers or subjects that the client of NATS cannot read; they are read one by one"
            );
        }
    }
}

/// A stream that is gone may come back while it is read.
fn passing(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::Stop(line) | BrokerError::Retry(line) => BrokerError::Retry(line),
    }
}

/// The name of a partition's consumer.
pub fn consumer_name(group: &str, partition: i32) -> String {
    format!("{group}-{partition}")
}

impl Reader {
    pub async fn run(mut self) {
        loop {
            let Err(error) = self.read().await;
            self.trouble.set(&error.to_string());
            let (is_over, arrival) = match error {
                BrokerError::Retry(text) => (false, Arrival::Trouble(format!("{}: {text}", self.partition))),
                // The worker opens it again, or stops it.
                BrokerError::Stop(text) => (true, Arrival::OutOfRange(format!("{}: {text}", self.partition))),
            };
            if self.out.send(arrival).await.is_err() || is_over {
                return;
            }
            // Another partition's message may have ended the client: there is no reason to wait. It
            // takes a connection to lose one.
            if self.cut_off_at.is_none() || self.own_link.is_some() {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// What the consumer is read with.
    fn reading_link(&self) -> &Arc<Link> {
        self.own_link.as_ref().unwrap_or(&self.link)
    }

    /// Which client, and which connection to which server.
    fn session(&self) -> (u64, String, u64) {
        let link = self.reading_link();
        let info = link.client().server_info();
        (link.number(), info.server_id, info.client_id)
    }

    /// `Stop` when the stream is no longer the one that was read.
    async fn compare(&self, stream: &Stream) -> BrokerResult<()> {
        let Some(last) = self.last else { return Ok(()) };
        match self.link.stored(last.offset, None).await? {
            Some(stored) if self.batch_of(&stored).get(0).fingerprint() == last => Ok(()),
            Some(_) => Err(BrokerError::stop(format!("message {} is not the one that was read", last.offset))),
            // Trimmed, or another stream: the position says which.
            None => {
                let first = stream.cached_info().state.first_sequence as i64;
                if last.offset < first && self.next() >= first {
                    return Ok(());
                }
                Err(BrokerError::stop(format!("message {}, which was read last, is gone", last.offset)))
            }
        }
    }

    /// A batch of one message that was asked for by itself.
    fn batch_of(&self, stored: &Stored) -> RecordBatch {
        let mut batch = self.batch();
        batch.push(stored.sequence, stored.published_ms, None, Some(&stored.payload));
        let mut headers = stored.headers();
        headers.sort_by(|(left, _), (right, _)| left.cmp(right));
        for (name, value) in headers {
            batch.push_header((&header_name(&name), Some(value.as_bytes())));
        }
        batch
    }

    /// The partition's first message from one on, as the stream's leader has it.
    async fn first(&self, from: i64) -> BrokerResult<Option<Stored>> {
        self.link.stored(from, Some(self.filter.as_deref().unwrap_or(">"))).await
    }

    /// Hands over what the client would end the connection over, again and again. With `is_stuck`
    /// the first messages are handed over whatever they look like: the connection ended where this
    /// attempt begins, and perhaps the client knows more reasons than we do.
    async fn pass_unreadable(&mut self, is_stuck: bool) -> BrokerResult<()> {
        // They come in crowds, from a producer that does not know better, or that does.
        let (mut left, mut crowd) = (if is_stuck { CROWD_MIN } else { 0 }, None);
        loop {
            let Some(stored) = self.first(self.next()).await? else {
                self.pending.store(0, Ordering::Relaxed);
                return Ok(());
            };
            if !stored.is_readable() {
                if self.own_link.is_none() {
                    let link = self.link.another().await.map_err(|error| self.link.failed("client", error))?;
                    self.own_link = Some(Arc::new(link));
                }
                left = *crowd.get_or_insert_with(|| self.crowd.meet(Instant::now()));
                self.unreadable.report(&self.partition, stored.sequence);
            } else if left == 0 {
                return Ok(());
            } else {
                left -= 1;
            }
            let batch = self.batch_of(&stored);
            self.hand_over(batch, None).await?;
            self.trouble.clear();
            let pending = self.pending.load(Ordering::Relaxed);
            self.pending.store((pending - 1).max(0), Ordering::Relaxed);
        }
    }

    async fn read(&mut self) -> BrokerResult<Infallible> {
        let link = Arc::clone(&self.link);
        let stream = link.stream().await.map_err(passing)?;
        // Should the connection end from here on, all of this is done again.
        let compared = self.session();
        self.compare(&stream).await?;
        if let Some(sequence) = self.verify {
            if let Some(stored) = self.link.stored(sequence, None).await? {
                let batch = self.batch_of(&stored);
                self.hand_over(batch, None).await?;
            }
            self.verify = None;
        }
        let is_again = std::mem::replace(&mut self.is_again, true);
        let cut_off_at = self.cut_off_at.take();
        if is_again {
            self.pass_unreadable(cut_off_at == Some(self.next())).await?;
        }
        let reading = Arc::clone(self.reading_link());
        let (session, stream) = match &self.own_link {
            None => (compared, stream),
            Some(own) => {
                let stream = own.stream().await.map_err(passing)?;
                let session = self.session();
                self.compare(&stream).await?;
                (session, stream)
            }
        };
        let consumer = self.consumer(&stream).await?;
        self.pending.store(consumer.cached_info().num_pending as i64, Ordering::Relaxed);
        // The server may bound what one pull asks for.
        let pull_max = usize::try_from(consumer.cached_info().config.max_batch).ok().filter(|max| *max > 0);
        let client = reading.client();
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let mut messages = subscribed.map_err(|error| link.failed("consumer", error))?;
        let mut average = Average::of(&stream);
        let (mut delivered, mut next) = (0, self.next());
        let (mut batch, mut last_reply) = (self.batch(), None);
        let mut quiet_since: Option<(Instant, i64)> = None;
        // A message that does not fit a pull is pulled alone.
        let mut is_alone = false;
        let mut pulls = 0_u64;
        loop {
            pulls += 1;
            // What the server says of a pull comes here, and may come late.
            let here = Subject::from(format!("{inbox}.{pulls}"));
            let asked = if is_alone { 1 } else { average.messages_in(self.pull_bytes) };
            let asked = asked.min(pull_max.unwrap_or(asked));
            let mut left = asked;
            let mut is_compared = false;
            let pull = pull::BatchConfig {
                batch: asked,
                max_bytes: if is_alone { 0 } else { self.pull_bytes },
                expires: Some(PULL_EXPIRES),
                idle_heartbeat: HEARTBEAT,
                ..pull::BatchConfig::default()
            };
            consumer.request_batch(pull, here.clone()).await.map_err(|error| link.failed("pull", error))?;
            is_alone = false;
            while left > 0 {
                let message = match messages.next().now_or_never() {
                    Some(message) => message,
                    None if !batch.is_empty() => {
                        let full = std::mem::replace(&mut batch, self.batch());
                        self.hand_over(full, last_reply.take()).await?;
                        continue;
                    }
                    None => match tokio::time::timeout(HEARTBEAT * 2, messages.next()).await {
                        Ok(message) => message,
                        Err(_) => return Err(link.retry("pull", "neither a message nor a heartbeat; reading again")),
                    },
                };
                let Some(message) = message else {
                    // What came before it is counted, or it would end the client once more.
                    if !batch.is_empty() {
                        self.hand_over(batch, last_reply.take()).await?;
                    }
                    self.cut_off_at = Some(self.next());
                    return Err(link.retry("pull", "the subscription ended"));
                };
                if batch.is_empty() && self.session() != session {
                    self.cut_off_at = Some(self.next());
                    return Err(link.retry("pull", "connected again; comparing what was read last"));
                }
                let place = message.reply.as_ref().and_then(|reply| Place::parse(reply));
                match message.status {
                    None | Some(StatusCode::OK) => {}
                    // A producer may write what it wants in front of its headers.
                    Some(_) if place.is_some() => {}
                    Some(StatusCode::IDLE_HEARTBEAT) => {
                        quiet_since = self.settle(quiet_since).await?;
                        next = next.max(self.next());
                        continue;
                    }
                    Some(_) if message.subject != here => continue,
                    Some(StatusCode::TIMEOUT) => break,
                    Some(StatusCode::REQUEST_TERMINATED) if is_complete(&message) => break,
                    Some(StatusCode::REQUEST_TERMINATED) if is_full(&message) => {
                        is_alone = left == asked;
                        break;
                    }
                    Some(status) => {
                        let text = format!("{status} {}", message.description.unwrap_or_default());
                        return Err(link.retry("pull", &text));
                    }
                }
                quiet_since = None;
                self.trouble.clear();
                let place = place.ok_or_else(|| link.retry("pull", "a message without coordinates"))?;
                delivered += 1;
                if place.delivery != delivered {
                    let text =
                        format!("delivery {} came for {delivered}; reading again from {}", place.delivery, self.next());
                    return Err(link.retry("a message was lost on its way", &text));
                }
                left -= 1;
                average.add(message.length);
                if place.sequence < next {
                    continue;
                }
                if !std::mem::replace(&mut is_compared, true)
                    && place.sequence > next
                    && let Some(first) = self.first(next).await?
                    && first.sequence < place.sequence
                {
                    let (came, due) = (place.sequence, first.sequence);
                    let text = format!("{came} came before {due}; reading again from {}", self.next());
                    return Err(link.retry("somebody else made the consumer anew", &text));
                }
                next = place.sequence + 1;
                push(&mut batch, place.sequence, place.published_ms, &message.payload, message.headers.as_ref());
                self.pending.store(place.pending, Ordering::Relaxed);
                last_reply = message.reply;
                if batch.bytes() >= BATCH_BYTES {
                    let full = std::mem::replace(&mut batch, self.batch());
                    self.hand_over(full, last_reply.take()).await?;
                }
            }
        }
    }

    /// The partition's consumer, made anew to begin at the next message.
    async fn consumer(&self, stream: &Stream) -> BrokerResult<Consumer<pull::Config>> {
        let name = consumer_name(&self.link.config.group, self.partition.partition);
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
        let is = |error: &ConsumerErrorKind, code| matches!(error, ConsumerErrorKind::JetStream(error) if error.error_code() == code);
        let mut made = stream.create_consumer(config.clone()).await;
        let keeps_all = stream.cached_info().config.retention == RetentionPolicy::Limits;
        if keeps_all && made.as_ref().is_err_and(|error| is(&error.kind(), ErrorCode::CONSUMER_MAX_PENDING_ACK_EXCESS))
        {
            // A limit of the stream, the account or the server. Acknowledgements are housekeeping:
            // without them there is nothing to limit, and NATS's own tools show what was delivered
            // instead of what was counted. Any other retention would remove what is delivered
            // before it is counted.
            let config = pull::Config { ack_policy: AckPolicy::None, max_ack_pending: 0, ..config };
            made = stream.create_consumer(config).await;
        }
        made.map_err(|error| {
            let place = &self.link.config.stream;
            if is(&error.kind(), ErrorCode::MAXIMUM_CONSUMERS_LIMIT) {
                let text = format!(
                    "{error}; raise max_consumers of stream {place} or of the account, or delete consumers that nobody needs \
                     (`nats consumer ls {}`)",
                    shell(place)
                );
                return self.link.failed_because("consumer", &text, error);
            }
            if is(&error.kind(), ErrorCode::CONSUMER_MAX_PENDING_ACK_EXCESS) {
                let text = format!(
                    "{error}; stream {place} removes what is acknowledged: give it retention by limits, or raise max_ack_pending of stream, \
                     account and server to {ACK_PENDING_MAX}"
                );
                return self.link.failed_because("consumer", &text, error);
            }
            self.link.failed("consumer", error)
        })
    }

    fn next(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    fn batch(&self) -> RecordBatch {
        RecordBatch::new(self.partition.clone(), self.generation)
    }

    async fn hand_over(&mut self, batch: RecordBatch, reply: Option<Subject>) -> BrokerResult<()> {
        if let Some(end) = batch.len().checked_sub(1) {
            self.last = Some(batch.get(end).fingerprint());
        }
        self.next.fetch_max(batch.position, Ordering::Relaxed);
        while *self.paused.borrow_and_update() {
            if self.paused.changed().await.is_err() {
                break;
            }
        }
        let sent = self.out.send(Arrival::Records(batch, reply)).await;
        sent.map_err(|_| self.link.retry("consumer", "closed"))
    }

    /// Nothing has come for a while. Either there is nothing: other partitions fill the stream
    /// while this one is quiet, and its position follows, or trimming would look like a loss. Or
    /// there is something, and the server does not deliver it: somebody paused the consumer, or
    /// acknowledgements do not reach it.
    async fn settle(&mut self, since: Option<(Instant, i64)>) -> BrokerResult<Option<(Instant, i64)>> {
        if self.trouble.get().is_some() && self.first(self.next()).await?.is_none() {
            self.trouble.clear();
        }
        let Some((at, end)) = since else {
            let end = self.link.stream().await?.cached_info().state.last_sequence as i64 + 1;
            return Ok(Some((Instant::now(), end)));
        };
        if end <= self.next() {
            return Ok(None);
        }
        if at.elapsed() < SETTLED {
            return Ok(since);
        }
        // The leader answers, and it has had all that was before `end` for a while.
        match self.first(self.next()).await? {
            None => {
                let mut batch = self.batch();
                batch.position = end;
                self.hand_over(batch, None).await?;
                Ok(None)
            }
            Some(first) if first.sequence < end => {
                let text = format!("message {} is there and does not come; making the consumer anew", first.sequence);
                Err(self.link.retry("consumer", &text))
            }
            // It has just been published.
            Some(_) => Ok(None),
        }
    }
}

/// Bytes of a message, to ask for as many as fit. The server's own bound on bytes is for those that
/// turn out larger.
struct Average {
    bytes: u64,
    messages: u64,
}

impl Average {
    /// What is in the stream says what to expect.
    fn of(stream: &Stream) -> Self {
        let state = &stream.cached_info().state;
        Self { bytes: state.bytes.max(1), messages: state.messages.max(1) }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.messages += 1;
    }

    /// Half of the bound, so that it is rarely met.
    fn messages_in(&self, bytes_max: usize) -> usize {
        (bytes_max as u64 / 2 * self.messages / self.bytes).clamp(1, PULL_MESSAGES as u64) as usize
    }
}

/// Where a message stands, from the subject that acknowledges it.
#[derive(PartialEq, Eq, Debug)]
struct Place {
    sequence: i64,
    /// The how manyth message this is to the consumer.
    delivery: u64,
    published_ms: i64,
    pending: i64,
}

impl Place {
    /// `$JS.ACK.<stream>.<consumer>.<attempts>.<sequence>.<delivery>.<nanoseconds>.<pending>`, or
    /// newer, with domain and account in front of the stream and room for more at the end (ADR-15).
    fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let skipped = if rest.bytes().filter(|byte| *byte == b'.').count() == 6 { 3 } else { 5 };
        let mut numbers = rest.split('.').skip(skipped).map(|number| number.parse::<i64>().ok());
        let mut number = || numbers.next().flatten();
        let (sequence, delivery, nanoseconds) = (number()?, number()?, number()?);
        Some(Self {
            sequence,
            delivery: u64::try_from(delivery).ok()?,
            published_ms: nanoseconds / 1_000_000,
            pending: number()?,
        })
    }
}

/// Whether a pull ended as it should, its messages or its bytes being used up.
fn is_complete(message: &async_nats::Message) -> bool {
    message.description.as_ref().is_some_and(|description| description.contains("Batch Completed"))
}

/// Whether a pull ended because the next message would be beyond its bytes.
fn is_full(message: &async_nats::Message) -> bool {
    message.description.as_ref().is_some_and(|description| description.contains("MaxBytes"))
}

fn push(batch: &mut RecordBatch, sequence: i64, published_ms: i64, payload: &Bytes, headers: Option<&HeaderMap>) {
    batch.push(sequence, published_ms, None, Some(payload));
    let Some(headers) = headers else { return };
    let mut named: Vec<(&str, &[HeaderValue])> =
        headers.iter().map(|(name, values)| (name.as_ref(), &values[..])).collect();
    // The client keeps them in no order; a record is to be the same whenever it is read.
    named.sort_unstable_by_key(|(name, _)| *name);
    for (name, values) in named {
        let name = header_name(name);
        values.iter().for_each(|value| batch.push_header((&name, Some(value.as_str().as_bytes()))));
    }
}

/// CloudEvents names its attributes `ce-x` here and `ce_x` in Kafka, which is how the decoder knows
/// them.
fn header_name(name: &str) -> String {
    match name.get(..3) {
        Some(prefix) if prefix.eq_ignore_ascii_case("ce-") => format!("ce_{}", name[3..].to_ascii_lowercase()),
        _ if name.eq_ignore_ascii_case("content-type") => "content-type".to_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_in_both_forms() {
        let place = Place { sequence: 17, delivery: 4, published_ms: 1_700_000_000_123, pending: 9 };
        let old = "$JS.ACK.events.traqq-0.1.17.4.1700000000123456789.9";
        assert_eq!(Place::parse(old), Some(place));
        let new = Place::parse("$JS.ACK._.hash.events.traqq-0.1.17.4.1700000000123456789.9.token").unwrap();
        assert_eq!((new.sequence, new.delivery, new.pending), (17, 4, 9));
        assert_eq!(Place::parse("$JS.ACK.events.traqq-0.1.x.4.1700000000123456789.9"), None);
        assert_eq!(Place::parse("_INBOX.x"), None);
    }

    #[test]
    fn the_crowd_grows_while_it_keeps_coming() {
        let (mut crowd, now) = (Crowd::default(), Instant::now());
        assert_eq!([crowd.meet(now), crowd.meet(now), crowd.meet(now + Duration::from_secs(59))], [100, 200, 400]);
        (0..20).for_each(|_| _ = crowd.meet(now + Duration::from_secs(60)));
        assert_eq!(crowd.meet(now + Duration::from_secs(61)), CROWD_MAX);
        assert_eq!(crowd.meet(now + Duration::from_secs(121)), CROWD_MIN);
    }

    #[test]
    fn pulls_ask_for_what_fits() {
        let average = |bytes, messages| Average { bytes, messages };
        assert_eq!(average(1000, 1).messages_in(1 << 20), 524);
        assert_eq!(average(1, 1).messages_in(8 << 20), PULL_MESSAGES);
        assert_eq!(average(10 << 20, 1).messages_in(1 << 20), 1);
    }

    #[test]
    fn headers_of_cloudevents_are_named_as_the_decoder_knows_them() {
        assert_eq!(header_name("Ce-Specversion"), "ce_specversion");
        assert_eq!(header_name("Content-Type"), "content-type");
        assert_eq!(header_name("X-Other"), "X-Other");
    }
}
