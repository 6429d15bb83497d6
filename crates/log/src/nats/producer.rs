//! Dead letters and events on their way in. Each message carries an id, so that one that is sent
//! again within the stream's duplicate window is stored once; acknowledgements are awaited
//! together, bounded in flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, ErrorCode};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{Mutex, OnceCell};

use super::config::Config;
use super::headers::put;
use super::link::{Link, confirmed, ingest_subject, nobody_takes, origins};
use crate::{AppendError, Appended, Appender, Events, Idempotency, Message, ProduceError, Producer};
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::hll::murmur64a;

const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The key of a record, which a message of NATS does not have.
const KEY: &str = "traqq-key";
/// Attempts to publish an event,
const ATTEMPTS: usize = 3;
const RETRY: Duration = Duration::from_millis(200);
/// and how long a request's events may take: well within the two minutes for which a stream knows
/// an id by default.
const APPEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Events of one request that wait for their acknowledgement.
const EVENTS_IN_FLIGHT: usize = 4096;
/// Bytes of headers besides names and values.
const HEADER_BYTES: usize = 4;
/// Tokens of events without a key go round these many.
const SPREAD: u64 = 1024;
const TOKEN_MAX: usize = 64;
const TOKEN_SEED: u64 = 0x7472_6171_715f_6b65;
const NO_KEYS: &str = "Idempotency-Key needs the local log: JetStream knows ids for a few minutes only, so a later repetition would count \
                       twice; send it without the header (at least once), or use broker.kind = \"local\"";

pub struct NatsProducer {
    link: Link,
    to: To,
}

/// An event as a message.
struct Outgoing {
    /// Of the request's events.
    index: usize,
    subject: String,
    id: String,
    payload: Bytes,
}

/// Where events go.
struct Target {
    subject: String,
    /// The stream has messages of others, which may be those that events come into.
    has_origins: bool,
}

enum To {
    DeadLetters {
        subject: String,
        /// They are known not to come back to us. Until then one goes at a time.
        is_apart: Mutex<bool>,
    },
    Events {
        /// Known once the stream was seen.
        target: OnceCell<Target>,
        /// What ids begin with, and how many were given.
        run: String,
        ids: AtomicU64,
    },
}

impl NatsProducer {
    /// `None` when dead letters are discarded.
    pub async fn dead_letters(config: &Config) -> Result<Option<Self>, ConfigError> {
        let Some(subject) = config.dead_letters() else { return Ok(None) };
        Ok(Some(Self { link: Link::new(config).await?, to: To::DeadLetters { subject, is_apart: Mutex::new(false) } }))
    }

    pub async fn ingest(config: &Config) -> Result<Self, ConfigError> {
        let to = To::Events { target: OnceCell::new(), run: nuid(), ids: AtomicU64::new(0) };
        Ok(Self { link: Link::new(config).await?, to })
    }

    fn bytes_max(&self) -> usize {
        // Before the first connection nothing is known, and the server judges.
        Some(self.link.client().server_info().max_payload).filter(|bytes| *bytes > 0).unwrap_or(usize::MAX)
    }

    /// Returns when the stream has the message. Whoever begins it must go on polling it: it has a
    /// place among the publishes in flight, of which there are only so many, until it is answered.
    async fn publish(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Result<PublishAck, PublishError> {
        self.link.jetstream().publish_with_headers(subject, headers, payload).await?.await
    }

    async fn publish_event(&self, event: &Outgoing) -> Result<PublishAck, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE_ID, event.id.as_str());
        self.publish(event.subject.clone(), headers, event.payload.clone()).await
    }

    /// All of them, those that failed again unless that is in vain; why the last ones did not go.
    async fn publish_all(&self, target: &Target, mut left: Vec<Outgoing>) -> Result<(), AppendError> {
        let mut failure = None;
        let counted = &self.link.config.stream;
        let astray = OnceCell::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(RETRY).await;
            }
            let astray = &astray;
            let sends = left.into_iter().map(|event| async move {
                match self.publish_event(&event).await {
                    Ok(ack) if ack.stream != *counted && !target.has_origins => {
                        _ = astray.set((event.subject, ack.stream));
                    }
                    Ok(_) => {}
                    Err(error) => return Some((event, error)),
                }
                None
            });
            let failed: Vec<(Outgoing, PublishError)> =
                stream::iter(sends).buffered(EVENTS_IN_FLIGHT).filter_map(future::ready).collect().await;
            if let Some((subject, taker)) = astray.get() {
                return Err(AppendError::impossible(format!(
                    "subject {subject} is taken by stream {taker}, and {counted} is counted: correct broker.nats.ingest_subject; \
                     events of this request are in {taker}"
                )));
            }
            let Some((event, error)) = failed.last() else { return Ok(()) };
            if let Some((event, error)) = failed.iter().find(|(_, error)| self.is_too_large(error)) {
                return Err(AppendError::Refused { index: event.index, reason: full(error) });
            }
            if let Some(refusal) = self.link.complaints.refusal(&event.subject) {
                let (place, subject) = (self.link.config.place(), &event.subject);
                return Err(AppendError::impossible(format!("{place}: {refusal}; let this user publish to {subject}")));
            }
            if attempt + 1 == ATTEMPTS
                && let Some(reason) = self.never(&event.subject, error).await
            {
                return Err(AppendError::impossible(reason));
            }
            left = Vec::with_capacity(failed.len());
            for (event, error) in failed {
                left.push(event);
                failure = Some(error);
            }
        }
        let error = failure.expect("there is an attempt, and it failed");
        Err(AppendError::Retry(ErrorLine::of(full(&error), error)))
    }

    /// Why no event will ever go this way, should that be what an error comes from.
    async fn never(&self, subject: &str, error: &PublishError) -> Option<String> {
        // A server that does not answer this has no leader, or is gone, and comes back.
        let stream = self.link.stream().await.ok()?;
        let stream = &stream.cached_info().config;
        if let Err(reason) = ingest_subject(stream, &self.link.config) {
            return Some(reason.to_string());
        }
        // A mapping of the server may lead from a subject that no stream takes to one that the
        // stream does.
        if error.kind() != PublishErrorKind::StreamNotFound || self.link.config.partition_subject.is_some() {
            return None;
        }
        let jetstream = self.link.jetstream();
        let taken_by = confirmed(|| jetstream.stream_by_subject(subject), nobody_takes).await;
        taken_by.is_err_and(|error| nobody_takes(&error)).then(|| {
            format!(
                "no stream takes subject {subject}, and stream {} takes {}: correct broker.nats.ingest_subject",
                stream.name,
                stream.subjects.join(", ")
            )
        })
    }

    /// Dead letters that the counted stream takes are read, and become dead letters again. Asked
    /// before the first one goes: at the start the server may not have answered.
    async fn check_letters(&self, subject: &str) -> Result<(), ProduceError> {
        match self.link.jetstream().stream_by_subject(subject).await {
            Ok(stream) if stream == self.link.config.stream => Err(self.feeds_itself(subject)),
            // The acknowledgement tells, also to a user who may not ask.
            _ => Ok(()),
        }
    }

    /// Whether the stream will never take this very message. Whatever else it says may pass: a
    /// limit of the account is a refusal with the same status.
    fn is_too_large(&self, error: &PublishError) -> bool {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
        let codes = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
        // Without a connection the client judges by a default, and not by what the server takes.
        (error.kind() == PublishErrorKind::MaxPayloadExceeded && self.link.is_connected())
            || source.is_some_and(|error| codes.contains(&error.error_code()))
    }

    fn feeds_itself(&self, subject: &str) -> ProduceError {
        ProduceError::retry(super::doctor::feeds_itself(subject, &self.link.config.stream))
    }
}

/// An error with what the server answered.
fn full(error: &PublishError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Something no other process has.
pub(super) fn nuid() -> String {
    let seed = std::collections::hash_map::RandomState::new();
    let random =
        |salt: u32| std::hash::BuildHasher::hash_one(&seed, (salt, std::process::id(), std::time::SystemTime::now()));
    format!("{:016x}{:016x}", random(1), random(2))
}

fn header_bytes(headers: &HeaderMap) -> usize {
    let values = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    values.map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + HEADER_BYTES).sum::<usize>()
        + 16
}

#[async_trait]
impl Producer for NatsProducer {
    async fn send(&self, message: &Message) -> Result<(), ProduceError> {
        let To::DeadLetters { subject, is_apart } = &self.to else { unreachable!("events are appended") };
        let mut headers = HeaderMap::new();
        let mut id = String::new();
        for (name, value) in &message.headers {
            let value = value.as_deref().unwrap_or_default();
            // One record may have several, which differ in their index.
            if ["traqq-topic", "traqq-partition", "traqq-offset", "traqq-index"].contains(&&**name) {
                id.push_str(&String::from_utf8_lossy(value));
                id.push('/');
            }
            put(&mut headers, name, value);
        }
        if let Some(key) = &message.key {
            put(&mut headers, KEY, key);
        }
        headers.insert(MESSAGE_ID, id.as_str());
        let payload = Bytes::from(message.value.clone().unwrap_or_default());
        let bytes = payload.len() + header_bytes(&headers);
        if bytes > self.bytes_max() {
            return Err(ProduceError::refused(format!(
                "{bytes} bytes with headers, and the server takes {}",
                self.bytes_max()
            )));
        }
        let first = Some(is_apart.lock().await).filter(|is_apart| !**is_apart);
        if first.is_some() {
            self.check_letters(subject).await?;
        }
        let sent = self.publish(subject.clone(), headers, payload).await;
        let ack = sent.map_err(|error| match error.kind() {
            _ if self.is_too_large(&error) => ProduceError::Refused(ErrorLine::of(full(&error), error)),
            PublishErrorKind::StreamNotFound => {
                let text = format!(
                    "no stream takes dead-letter subject {subject}; create one with `traqq doctor --create`, or set broker.nats.dead_letter_subject"
                );
                ProduceError::Retry(ErrorLine::of(text, error))
            }
            _ => {
                let text = self.link.explain(&format!("dead-letter subject {subject}: {}", full(&error)));
                ProduceError::Retry(ErrorLine::of(text, error))
            }
        })?;
        // Subjects of streams may change at any time.
        let is_astray = ack.stream == self.link.config.stream;
        match first {
            Some(mut is_apart) => *is_apart = !is_astray,
            None if is_astray => *is_apart.lock().await = false,
            None => {}
        }
        if is_astray { Err(self.feeds_itself(subject)) } else { Ok(()) }
    }
}

/// The subject of an event.
fn subject_of(subject: &str, key: Option<&[u8]>, number: u64) -> String {
    let Some(prefix) = subject.strip_suffix(['*', '>']) else { return subject.to_owned() };
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    match key {
        None => format!("{prefix}{}", number % SPREAD),
        Some(key) if !key.is_empty() && key.len() <= TOKEN_MAX && key.iter().all(is_plain) => {
            format!("{prefix}{}", String::from_utf8_lossy(key))
        }
        // A token has no dots, wildcards or white space.
        Some(key) => format!("{prefix}{:016x}", murmur64a(key, TOKEN_SEED)),
    }
}

#[async_trait]
impl Appender for NatsProducer {
    fn key_field(&self) -> Option<&str> {
        self.link.config.key_field.as_deref()
    }

    /// At least once: what is answered with an error may be in the stream in part.
    async fn append(&self, events: Events, idempotency: Option<Idempotency>) -> Result<Appended, AppendError> {
        if idempotency.is_some() {
            return Err(AppendError::KeysUnsupported(NO_KEYS.to_owned()));
        }
        let To::Events { target, run, ids } = &self.to else { unreachable!("dead letters are sent") };
        let target = target
            .get_or_try_init(|| async {
                let stream =
                    self.link.stream().await.map_err(|error| AppendError::Retry(ErrorLine::from_error(error)))?;
                let stream = &stream.cached_info().config;
                let subject = ingest_subject(stream, &self.link.config).map_err(AppendError::impossible)?;
                Ok::<_, AppendError>(Target { subject, has_origins: origins(stream).next().is_some() })
            })
            .await?;
        let bytes_max = self.bytes_max();
        // One copy of the request's bytes, of which every message is a part.
        let mut rest = Vec::with_capacity(events.len());
        for (index, (key, value)) in events.iter().enumerate() {
            if value.len() + 128 > bytes_max {
                return Err(AppendError::Refused {
                    index,
                    reason: format!("the server takes {bytes_max} bytes with headers"),
                });
            }
            let number = ids.fetch_add(1, Ordering::Relaxed);
            rest.push(Outgoing {
                index,
                subject: subject_of(&target.subject, key, number),
                id: format!("{run}-{number}"),
                payload: Bytes::copy_from_slice(value),
            });
        }
        let place = &self.link.config.stream;
        let in_part = "some of these events may be in it";
        match tokio::time::timeout(APPEND_TIMEOUT, self.publish_all(target, rest)).await {
            Ok(Ok(())) => Ok(Appended::New),
            Ok(Err(AppendError::Retry(failure))) => {
                let line = failure.within(&format!("stream {place}")).followed_by(&format!("; {in_part}"));
                Err(AppendError::Retry(line))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(AppendError::retry(format!(
                "stream {place}: not all events were acknowledged in {} s; {in_part}",
                APPEND_TIMEOUT.as_secs()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_token_of_the_subject() {
        assert_eq!(subject_of("e.*", Some(b"user-1"), 0), "e.user-1");
        assert_eq!(subject_of("e.>", None, 1030), "e.6");
        assert_eq!(subject_of("events", Some(b"x"), 0), "events");
        let odd = subject_of("e.*", Some(b"a.b *"), 0);
        assert!(odd.len() == 2 + 16 && odd == subject_of("e.*", Some(b"a.b *"), 7), "{odd}");
        assert_eq!(subject_of("e.*", Some(b""), 0).len(), 18);
    }
}
