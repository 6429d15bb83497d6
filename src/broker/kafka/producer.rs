//! Dead letters: an idempotent producer that waits for all replicas.

use std::time::Duration;

use async_trait::async_trait;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::config::Config;
use crate::broker::{Message, ProduceError, Producer};

/// How long a message may wait for room in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

pub struct KafkaProducer {
    producer: FutureProducer,
    topic: String,
}

impl KafkaProducer {
    /// `None` when dead letters are discarded.
    pub fn new(config: &Config) -> Result<Option<Self>, String> {
        let Some(topic) = config.dead_letters() else { return Ok(None) };
        let producer =
            config.producer_client().create().map_err(|error| format!("broker.kafka.properties: {error}"))?;
        Ok(Some(Self { producer, topic }))
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
        match self.producer.send(record, QUEUE_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(match error {
                KafkaError::MessageProduction(
                    RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize,
                ) => ProduceError::TooLarge(error.to_string()),
                _ => ProduceError::Retry(format!("dead-letter topic {}: {error}", self.topic)),
            }),
        }
    }
}
