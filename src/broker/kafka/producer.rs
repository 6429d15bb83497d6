//! Dead letters and events on their way in: an idempotent producer that waits for all replicas.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{FuturesOrdered, StreamExt};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::config::{Config, invalid};
use crate::broker::{AppendError, Appended, Appender, Events, Idempotency, Message, ProduceError, Producer};

/// How long a dead letter may wait for room in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an event may; then its sender is told to come again.
const EVENT_QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
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
}

impl KafkaProducer {
    /// `None` when dead letters are discarded.
    pub fn dead_letters(config: &Config) -> Result<Option<Self>, String> {
        config.dead_letters().map(|topic| Self::to(config, topic, None)).transpose()
    }

    /// `None` when it is not clear which topic events go to.
    pub fn ingest(config: &Config) -> Result<Option<Self>, String> {
        config.ingest_topic().map(|topic| Self::to(config, topic, config.key_field.clone())).transpose()
    }

    fn to(config: &Config, topic: String, key_field: Option<String>) -> Result<Self, String> {
        let client = config.producer_client();
        let producer = Mutex::new(client.create().map_err(invalid)?);
        Ok(Self { client, producer, topic, key_field })
    }

    /// Held for a few instructions; nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, FutureProducer> {
        self.producer.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn renew(&self, error: &KafkaError) {
        let mut producer = self.lock();
        // Another message may have met the same error first.
        if producer.client().fatal_error().is_none() {
            return;
        }
        tracing::warn!(%error, topic = self.topic, "a producer failed for good; making another");
        match self.client.create() {
            Ok(fresh) => *producer = fresh,
            Err(error) => tracing::error!(error = invalid(error), "cannot make a producer"),
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
        match producer.send(record, QUEUE_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(match error {
                KafkaError::MessageProduction(
                    RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize,
                ) => ProduceError::TooLarge(error.to_string()),
                _ => {
                    self.renew(&error);
                    ProduceError::Retry(format!("dead-letter topic {}: {error}", self.topic))
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
        let producer = self.lock().clone();
        // A send in flight is larger than a small event, and beyond what the client's queue takes it only waits.
        let (mut events, mut in_flight, mut answered) = (events.iter(), FuturesOrdered::new(), 0);
        loop {
            while in_flight.len() < EVENTS_IN_FLIGHT
                && let Some((key, value)) = events.next()
            {
                let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&self.topic).payload(value);
                record.key = key;
                in_flight.push_back(producer.send(record, EVENT_QUEUE_TIMEOUT));
            }
            let Some(sent) = in_flight.next().await else { return Ok(Appended::New) };
            let index = answered;
            answered += 1;
            let Err((error, _)) = sent else { continue };
            return Err(match error {
                KafkaError::MessageProduction(
                    RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize,
                ) => AppendError::Refused { index, reason: format!("topic {}: {error}", self.topic) },
                _ => {
                    self.renew(&error);
                    AppendError::Retry(format!("topic {}: {error}; some of these events may be in it", self.topic))
                }
            });
        }
    }
}
