//! What the brokers say of the topics, asked now and then on a thread of its own: one that does not
//! answer must not keep the group from being polled.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaRespErr;

use super::context::{Context, lock};
use super::topics::Topics;
use traqq_core::model::TopicPartition;

const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// After a question that was not answered.
const AGAIN: Duration = Duration::from_secs(1);

/// The topics as the brokers have them.
pub struct Seen {
    /// Those that are counted and exist, with the number of their partitions.
    pub counted: Vec<(String, i32)>,
    /// What keeps others from being counted, and what to do about it.
    pub problems: Vec<String>,
}

impl Seen {
    pub fn names(&self) -> BTreeSet<String> {
        self.counted.iter().map(|(name, _)| name.clone()).collect()
    }

    /// A topic that is being made has no partitions for a moment; where it begins is not known yet.
    pub fn partitions(&self) -> Result<Vec<TopicPartition>, Absent> {
        if let Some((topic, _)) = self.counted.iter().find(|(_, partitions)| *partitions == 0) {
            return Err(Absent::Empty(topic.clone()));
        }
        let each = |(topic, partitions): &(String, i32)| -> Vec<TopicPartition> {
            (0..*partitions).map(|partition| TopicPartition::new(topic, partition)).collect()
        };
        Ok(self.counted.iter().flat_map(each).collect())
    }
}

/// Asks for the topics that are named one by one, which says why one is not there, and for all of
/// them only for a pattern.
pub fn look<C: ClientContext>(client: &Client<C>, topics: &Topics, timeout: Duration) -> KafkaResult<Seen> {
    let mut seen = Seen { counted: Vec::new(), problems: Vec::new() };
    if let Some(pattern) = topics.pattern() {
        let metadata = client.fetch_metadata(None, timeout)?;
        let names = topics.counted(metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name));
        for name in names.difference(topics.named()) {
            let size = metadata.topics().iter().find(|topic| topic.name() == name).map_or(0, |t| t.partitions().len());
            seen.counted.push((name.clone(), size as i32));
        }
        if seen.counted.is_empty() {
            seen.problems.push(format!(
                "no topic matches broker.kafka.topic_pattern = {pattern:?} yet; it is counted as soon as there is one"
            ));
        }
    }
    for name in topics.named() {
        match partition_count(&client.fetch_metadata(Some(name), timeout)?, name) {
            Ok(partitions) => seen.counted.push((name.clone(), partitions)),
            Err(why) => seen.problems.push(format!("{why}, or correct broker.kafka.topics")),
        }
    }
    seen.counted.sort();
    Ok(seen)
}

/// Why a topic cannot be used, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Absent {
    #[error("there is no topic {0:?}; create it")]
    Missing(String),
    #[error("this user may not see topic {0:?}; grant it DESCRIBE and READ")]
    Hidden(String),
    #[error("topic {0:?} has no partitions yet")]
    Empty(String),
}

/// How many partitions a topic has.
pub fn partition_count(metadata: &Metadata, name: &str) -> Result<i32, Absent> {
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
        return Err(Absent::Missing(name.to_owned()));
    };
    match topic.error() {
        Some(
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
        ) => Err(Absent::Missing(name.to_owned())),
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => Err(Absent::Hidden(name.to_owned())),
        // It has no leader for a moment, which is not for a person to mend.
        Some(_) | None => Ok(topic.partitions().len() as i32),
    }
}

/// Ends with the value.
pub struct Lookout {
    seen: Arc<Mutex<Option<Seen>>>,
    _stop: mpsc::Sender<()>,
}

impl Lookout {
    pub fn start(consumer: &Arc<BaseConsumer<Context>>, topics: Topics, every: Duration) -> Self {
        let seen = Arc::new(Mutex::new(None));
        let (stop, stopped) = mpsc::channel();
        let (found, consumer) = (Arc::clone(&seen), Arc::downgrade(consumer));
        let run = move || {
            loop {
                let Some(consumer) = consumer.upgrade() else { return };
                let wait = match look(consumer.client(), &topics, ASK_TIMEOUT) {
                    Ok(seen) => {
                        *lock(&found) = Some(seen);
                        every
                    }
                    Err(error) => {
                        // The loop hears of brokers that are away by other ways.
                        tracing::debug!(%error, "looking for topics");
                        AGAIN.min(every)
                    }
                };
                drop(consumer);
                if stopped.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("kafka-topics".to_owned()).spawn(run).expect("a thread can be started");
        Self { seen, _stop: stop }
    }

    /// What was found since it was asked last.
    pub fn take(&self) -> Option<Seen> {
        lock(&self.seen).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_without_partitions_is_waited_for() {
        let seen = |counted: &[(&str, i32)]| Seen {
            counted: counted.iter().map(|(name, partitions)| ((*name).to_owned(), *partitions)).collect(),
            problems: Vec::new(),
        };
        assert_eq!(seen(&[("a", 1), ("b", 2)]).partitions().unwrap().len(), 3);
        assert_eq!(seen(&[("a", 1), ("b", 0)]).partitions(), Err(Absent::Empty("b".to_owned())));
        assert_eq!(seen(&[]).partitions().unwrap(), []);
    }
}
