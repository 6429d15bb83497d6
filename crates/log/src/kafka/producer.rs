//! Dead letters and events on their way in: an idempotent producer that waits for all replicas.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{FuturesOrdered, StreamExt};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _, PurgeConfig};
use tokio::time::Instant;

use super::config::{Config, invalid};
use super::lookout::partition_count;
use crate::{AppendError, Appended, Appender, Events, Idempotency, Message, ProduceError, Producer};
use traqq_core::error::{ConfigError, ErrorLine};

/// How long a dead letter may wait for room in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an event may; then its sender is told to come again.
const EVENT_QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
/// After so long without an acknowledgement it is looked at whether there can be one.
const HESITATION: Duration = Duration::from_secs(1);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// What one request has learned of the topic is good for the others that wait with it.
const LOOK_AGE_MAX: Duration = Duration::from_secs(1);
/// Events of one request that wait for their acknowledgement.
const EVENTS_IN_FLIGHT: usize = 4096;
const NO_KEYS: &str = "Idempotency-Key needs the local log: Kafka cannot remember keys, so a repeated request would count twice; \
                       send it without the header (at least once), or use broker.kind = \"local\"";

pub struct KafkaProducer {
    client: ClientConfig,
    /// Replaced after a fatal error, which an idempotent producer does not recover from.
    producer: Mutex<FutureProducer>,
    topic: String,
    key_field: Option<String>,
    /// The topic was not there when it was looked at last.
    is_missing: AtomicBool,
    last_look: LastLook,
}

/// Why there could be no acknowledgement when it was looked last. One looks at a time, and those
/// that wait meanwhile take its answer.
#[derive(Default)]
struct LastLook(tokio::sync::Mutex<Option<(Instant, Option<String>)>>);

impl LastLook {
    async fn or(&self, look: impl Future<Output = Option<String>>) -> Option<String> {
        let mut last = self.0.lock().await;
        if let Some((_, why)) = last.as_ref().filter(|(at, _)| at.elapsed() < LOOK_AGE_MAX) {
            return why.clone();
        }
        let why = look.await;
        *last = Some((Instant::now(), why.clone()));
        why
    }
}

impl KafkaProducer {
    /// `None` when dead letters are discarded.
    pub fn dead_letters(config: &Config) -> Result<Option<Self>, ConfigError> {
        config.dead_letters().map(|topic| Self::to(config, topic, None)).transpose()
    }

    /// `None` when it is not clear which topic events go to.
    pub fn ingest(config: &Config) -> Result<Option<Self>, ConfigError> {
        config.ingest_topic().map(|topic| Self::to(config, topic, config.key_field.clone())).transpose()
    }

    fn to(config: &Config, topic: String, key_field: Option<String>) -> Result<Self, ConfigError> {
        let client = config.producer_client();
        let producer = Mutex::new(client.create().map_err(invalid)?);
        Ok(Self {
            client,
            producer,
            topic,
            key_field,
            is_missing: AtomicBool::new(false),
            last_look: LastLook::default(),
        })
    }

    /// Held for a few instructions; nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, FutureProducer> {
        self.producer.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Why there can be no acknowledgement: the client waits half a minute for a topic that is
    /// gone. `None` if there can, or if nobody answers who would know.
    async fn missing(&self) -> Option<String> {
        let why = self.last_look.or(self.look()).await;
        // What waits would come into a topic that is made anew, long after its sender was told
        // otherwise.
        if why.is_some() {
            self.lock().purge(PurgeConfig::default().queue().non_blocking());
        }
        self.is_missing.store(why.is_some(), Ordering::Relaxed);
        why
    }

    async fn look(&self) -> Option<String> {
        let (producer, topic) = (self.lock().clone(), self.topic.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let metadata = producer.client().fetch_metadata(Some(&topic), LOOK_TIMEOUT).ok()?;
            partition_count(&metadata, &topic).err().map(|absent| absent.to_string())
        });
        looked.await.ok().flatten()
    }

    /// An error as a person reads it.
    async fn explained(&self, error: &KafkaError) -> String {
        match error {
            KafkaError::MessageProduction(
                RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::MessageTimedOut,
            ) => {
                let why = self.missing().await;
                if why.is_none() && !self.is_reached().await {
                    self.replace(error);
                }
                why.unwrap_or_else(|| error.to_string())
            }
            KafkaError::MessageProduction(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                format!("{error}; grant this user WRITE on it")
            }
            error => error.to_string(),
        }
    }

    fn renew(&self, error: &KafkaError) {
        let mut producer = self.lock();
        // Another message may have met the same error first.
        if producer.client().fatal_error().is_none() {
            return;
        }
        self.replace_held(&mut producer, error);
    }

    /// Whether anybody answers; a client whose broker was shut out by its cluster may have
    /// forgotten all brokers.
    async fn is_reached(&self) -> bool {
        let (producer, topic) = (self.lock().clone(), self.topic.clone());
        let asked = tokio::task::spawn_blocking(move || producer.client().fetch_metadata(Some(&topic), LOOK_TIMEOUT));
        asked.await.is_ok_and(|answered| answered.is_ok_and(|metadata| !metadata.brokers().is_empty()))
    }

    fn replace(&self, error: &KafkaError) {
        self.replace_held(&mut self.lock(), error);
    }

    fn replace_held(&self, producer: &mut FutureProducer, error: &KafkaError) {
        tracing::warn!(%error, topic = self.topic, "a producer failed for good; making another");
        match self.client.create() {
            Ok(fresh) => *producer = fresh,
            Err(error) => tracing::error!(error = %invalid(error), "cannot make a producer"),
        }
    }
}

#[async_trait]
impl Producer for KafkaProducer {
    async fn send(&self, message: &Message) -> Result<(), ProduceError> {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (name, value) in &message.headers {
            headers = headers.insert(Header { key: name, value: value.as_deref() });
        }
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&self.topic).headers(headers);
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        record.timestamp = message.timestamp_ms.filter(|ms| *ms >= 0);
        let producer = self.lock().clone();
        let mut sent = std::pin::pin!(producer.send(record, QUEUE_TIMEOUT));
        let sent = loop {
            match tokio::time::timeout(HESITATION, &mut sent).await {
                Ok(sent) => break sent,
                Err(_) => {
                    if let Some(why) = self.missing().await {
                        return Err(ProduceError::retry(format!("dead-letter topic {}: {why}", self.topic)));
                    }
                }
            }
        };
        match sent {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(match error {
                KafkaError::MessageProduction(
                    RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::MessageBatchTooLarge
                    | RDKafkaErrorCode::InvalidMessageSize
                    | RDKafkaErrorCode::InvalidRecord
                    | RDKafkaErrorCode::InvalidTimestamp
                    | RDKafkaErrorCode::PolicyViolation,
                ) => ProduceError::Refused(ErrorLine::from_error(error)),
                _ => {
                    self.renew(&error);
                    let why = self.explained(&error).await;
                    ProduceError::Retry(ErrorLine::of(format!("dead-letter topic {}: {why}", self.topic), error))
                }
            }),
        }
    }
}

#[async_trait]
impl Appender for KafkaProducer {
    fn key_field(&self) -> Option<&str> {
        self.key_field.as_deref()
    }

    /// At least once: what is answered with an error may be in the topic in part.
    async fn append(&self, events: Events, idempotency: Option<Idempotency>) -> Result<Appended, AppendError> {
        if idempotency.is_some() {
            return Err(AppendError::KeysUnsupported(NO_KEYS.to_owned()));
        }
        if self.is_missing.load(Ordering::Relaxed)
            && let Some(why) = self.missing().await
        {
            return Err(AppendError::retry(format!("topic {}: {why}", self.topic)));
        }
        let producer = self.lock().clone();
        // A send in flight is larger than a small event, and beyond what the client's queue takes
        // it only waits.
        let (mut events, mut in_flight, mut answered) = (events.iter(), FuturesOrdered::new(), 0);
        loop {
            while in_flight.len() < EVENTS_IN_FLIGHT
                && let Some((key, value)) = events.next()
            {
                let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&self.topic).payload(value);
                record.key = key;
                in_flight.push_back(producer.send(record, EVENT_QUEUE_TIMEOUT));
            }
            let sent = match tokio::time::timeout(HESITATION, in_flight.next()).await {
                Ok(Some(sent)) => sent,
                Ok(None) => return Ok(Appended::New),
                Err(_) => match self.missing().await {
                    Some(why) => return Err(AppendError::retry(in_part(&self.topic, &why))),
                    None => continue,
                },
            };
            let index = answered;
            answered += 1;
            let Err((error, _)) = sent else { continue };
            return Err(match error {
                KafkaError::MessageProduction(
                    RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::MessageBatchTooLarge
                    | RDKafkaErrorCode::InvalidMessageSize,
                ) => AppendError::Refused { index, reason: format!("topic {}: {error}", self.topic) },
                _ => {
                    self.renew(&error);
                    let text = in_part(&self.topic, &self.explained(&error).await);
                    AppendError::Retry(ErrorLine::of(text, error))
                }
            });
        }
    }
}

fn in_part(topic: &str, why: &str) -> String {
    format!("topic {topic}: {why}; some of these events may be in it")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_share_one_look_at_the_topic() {
        let (last, looks) = (LastLook::default(), AtomicUsize::new(0));
        let look = || async {
            tokio::time::sleep(LOOK_TIMEOUT).await;
            looks.fetch_add(1, Ordering::Relaxed);
            Some("gone".to_owned())
        };
        let answers = futures_util::future::join_all((0..50).map(|_| last.or(look()))).await;
        assert!(answers.iter().all(|why| why.as_deref() == Some("gone")));
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::sleep(LOOK_AGE_MAX).await;
        last.or(look()).await;
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
