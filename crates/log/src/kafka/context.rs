//! What librdkafka calls: it notes what happened, and the consumer looks at it between two polls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};

use super::assignment::to_partitions;
use super::standing::Standing;
use traqq_core::model::TopicPartition;

/// What the group wants, noted by the hook.
pub(super) enum Rebalance {
    Assign(Vec<TopicPartition>),
    Revoke(Vec<TopicPartition>, bool),
}

#[derive(Default)]
pub struct Context {
    pub(super) rebalances: Mutex<Vec<Rebalance>>,
    /// While the consumer is being closed partitions are given back at once.
    pub(super) is_closing: AtomicBool,
    pub(super) ends: Mutex<BTreeMap<TopicPartition, i64>>,
    pub(super) standing: Mutex<Standing>,
    pub(super) troubles: Mutex<Vec<String>>,
    pub(super) failed_commits: Mutex<Vec<String>>,
}

/// Held for a few instructions; nothing panics meanwhile.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, message, "librdkafka");
        }
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}

/// Whether an error says why a connection failed, and not only that it did.
pub(super) fn is_reason(error: &KafkaError) -> bool {
    error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown)
}

/// A connection that was closed by the other end is no error, and said only here: what it says is
/// as an error would.
pub(super) fn failure<'m>(facility: &str, message: &'m str) -> Option<&'m str> {
    let text = message.strip_prefix("[thrd:").and_then(|rest| Some(rest.split_once("]: ")?.1));
    (facility == "FAIL").then(|| text.unwrap_or(message))
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(why) = failure(facility, message) {
            lock(&self.standing).connection_failed(why);
        }
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_reason(&error) {
            lock(&self.standing).connection_failed(reason);
        }
        lock(&self.troubles).push(format!("{error}: {reason}"));
    }

    fn stats(&self, statistics: Statistics) {
        lock(&self.standing).observe(&statistics, Instant::now());
        let mut ends = lock(&self.ends);
        for (topic, statistics) in &statistics.topics {
            for partition in statistics.partitions.values().filter(|partition| partition.hi_offset >= 0) {
                ends.insert(TopicPartition::new(topic, partition.partition), partition.hi_offset);
            }
        }
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let each = offsets.elements().iter().find_map(|element| element.error().err());
        if let Some(error) = result.err().or(each) {
            lock(&self.failed_commits).push(error.to_string());
        }
    }

    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = to_partitions(list);
        match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !self.is_closing.load(Ordering::SeqCst) => {
                lock(&self.rebalances).push(Rebalance::Assign(partitions));
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS if !self.is_closing.load(Ordering::SeqCst) => {
                lock(&self.rebalances).push(Rebalance::Revoke(partitions, consumer.assignment_lost()));
            }
            _ => {
                if let Err(error) = give_back(consumer, list) {
                    tracing::debug!(%error, "giving partitions back while closing");
                }
            }
        }
    }
}

/// An eager protocol gives back everything at once.
pub(super) fn give_back(consumer: &BaseConsumer<Context>, list: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_connection_is_told_without_the_thread_that_saw_it() {
        let why = "127.0.0.1:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused";
        assert_eq!(failure("FAIL", &format!("[thrd:127.0.0.1:9/bootstrap]: {why}")), Some(why));
        assert_eq!(failure("FAIL", why), Some(why));
        assert_eq!(failure("CONFWARN", why), None);
    }
}
