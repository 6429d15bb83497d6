//! Dead letters: an idempotent producer that waits for all replicas.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::config::{Config, invalid};
use crate::broker::{Message, ProduceError, Producer};

/// How long a message may wait for room in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

pub struct KafkaProducer {
    client: ClientConfig,
    /// Replaced after a fatal error, which an idempotent producer does not recover from.
    producer: Mutex<FutureProducer>,
    topic: String,
}

impl KafkaProducer {
    /// `None` when dead letters are discarded.
    pub fn new(config: &Config) -> Result<Option<Self>, String> {
        let Some(topic) = config.dead_letters() else { return Ok(None) };
        let client = config.producer_client();
        let producer = Mutex::new(client.create().map_err(invalid)?);
        Ok(Some(Self { client, producer, topic }))
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
        tracing::warn!(%error, topic = self.topic, "the producer of dead letters failed for good; making another");
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
