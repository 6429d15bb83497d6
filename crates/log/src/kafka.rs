//! Kafka, through librdkafka.
//!
//! The rebalance hook only notes what the group wants. An offer is answered at once, with nothing
//! to fetch, so that the group is never kept waiting; [`Consumer::open`] adds each partition with
//! our own offset when the store has said it. librdkafka's own committed offset is never where
//! reading begins.

mod assignment;
mod config;
mod context;
mod doctor;
mod lookout;
mod producer;
mod record;
mod renewal;
mod standing;
mod topics;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

pub use config::Config;
pub use doctor::{checks, examine};
pub use producer::KafkaProducer;
pub use topics::Topics;

use super::{BrokerError, BrokerResult, Consumer, Event, Mark, Opening, Start, Watermarks};
use assignment::{offsets, to_list, to_offsets, whole_assignment};
use context::{Context, Rebalance, give_back, lock};
use lookout::Lookout;
use record::{UnreadableNames, push};
use standing::Reading;
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::{RecordBatch, TopicPartition};
use traqq_core::panics::contained;

/// How long a question to the broker may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one partition may keep the others waiting: without a leader it never answers.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(1);
/// Records taken in one poll, so that commands are looked at in between.
const POLL_RECORDS_MAX: usize = 10_000;

pub struct KafkaConsumer {
    consumer: Arc<BaseConsumer<Context>>,
    config: Config,
    buffer_bytes_max: usize,
    brokers: String,
    group: String,
    topics: Topics,
    lookout: Lookout,
    /// The names that are subscribed to.
    subscribed: BTreeSet<String>,
    /// Of them, those that the last look did not find.
    missed: BTreeSet<String>,
    names: HashMap<String, Arc<str>>,
    /// What the group gave, and what of it the group wants back.
    assigned: BTreeSet<TopicPartition>,
    revoking: BTreeSet<TopicPartition>,
    /// Open partitions: generation, and the next offset as far as it was delivered.
    open: BTreeMap<TopicPartition, (u64, i64)>,
    /// Open, and not to be fetched until they are sought.
    halted: BTreeSet<TopicPartition>,
    is_paused: bool,
    /// Since when no broker has a connection.
    away_since: Option<Instant>,
    unreadable_names: UnreadableNames,
}

/// A client, and what looks for its topics.
fn connect(
    config: &Config,
    buffer_bytes_max: usize,
    topics: &Topics,
) -> Result<(Arc<BaseConsumer<Context>>, Lookout), ConfigError> {
    let consumer: BaseConsumer<Context> =
        config.client(buffer_bytes_max)?.create_with_context(Context::default()).map_err(config::invalid)?;
    let consumer = Arc::new(consumer);
    let lookout = Lookout::start(&consumer, topics.clone(), config.refresh_interval());
    Ok((consumer, lookout))
}

impl KafkaConsumer {
    /// Subscribes to the topics that are named, and to those that match the pattern when they are
    /// known; reaches the broker in the background.
    pub fn new(config: &Config, buffer_bytes_max: usize) -> Result<Self, ConfigError> {
        let topics = Topics::new(config)?;
        let (consumer, lookout) = connect(config, buffer_bytes_max, &topics)?;
        let mut this = Self {
            consumer,
            config: config.clone(),
            buffer_bytes_max,
            brokers: config.brokers.clone(),
            group: config.group.clone(),
            topics,
            lookout,
            subscribed: BTreeSet::new(),
            missed: BTreeSet::new(),
            names: HashMap::new(),
            assigned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            open: BTreeMap::new(),
            halted: BTreeSet::new(),
            is_paused: false,
            away_since: None,
            unreadable_names: UnreadableNames::default(),
        };
        this.subscribe(this.topics.named().clone())
            .map_err(|error| ConfigError::of(format!("broker.kafka.topics: {error}"), error))?;
        Ok(this)
    }

    /// The group shares its partitions anew when the names are others than before, and only then.
    fn subscribe(&mut self, names: BTreeSet<String>) -> KafkaResult<()> {
        // To subscribe to nothing would be to leave the group.
        if names.is_empty() || names == self.subscribed {
            return Ok(());
        }
        let list: Vec<&str> = names.iter().map(String::as_str).collect();
        self.consumer.subscribe(&list)?;
        if self.topics.pattern().is_some() {
            tracing::info!(topics = ?list, "subscribed");
        }
        self.subscribed = names;
        Ok(())
    }

    /// Follows topics that come and go. One that a single look does not find is kept: a broker that
    /// has just started may not have heard of it yet.
    fn follow(&mut self) -> KafkaResult<()> {
        let Some(seen) = self.lookout.take() else { return Ok(()) };
        let found = seen.names();
        let mut names: BTreeSet<String> = found.union(self.topics.named()).cloned().collect();
        let missing: BTreeSet<String> = self.subscribed.difference(&found).cloned().collect();
        names.extend(missing.difference(&self.missed).cloned());
        self.missed = missing;
        lock(&self.consumer.context().standing).topics_seen(seen.problems);
        self.subscribe(names)
    }

    /// Reads once more where it stands: librdkafka says that a broker refuses it, and not that it
    /// no longer does.
    fn ask_again_if_refused(&mut self) {
        if self.is_paused || !lock(&self.consumer.context().standing).is_to_ask_again(Instant::now()) {
            return;
        }
        for (partition, (_, next)) in self.open.iter().filter(|(partition, _)| !self.halted.contains(*partition)) {
            let offset = Offset::Offset(*next);
            if let Err(error) = self.consumer.seek(&partition.topic, partition.partition, offset, ASK_TIMEOUT) {
                tracing::debug!(%error, %partition, "reading once more");
            }
        }
    }

    fn retry(&self, what: &str, error: KafkaError) -> BrokerError {
        BrokerError::Retry(ErrorLine::of(format!("kafka {}: {what}: {error}", self.brokers), error))
    }

    fn take_rebalances(&mut self) -> Vec<Event> {
        let rebalances = std::mem::take(&mut *lock(&self.consumer.context().rebalances));
        let mut events = Vec::new();
        for rebalance in rebalances {
            match rebalance {
                Rebalance::Assign(partitions) => {
                    let answered = self.assign(&[], &[]);
                    events.extend(answered.err().map(|error| Event::Trouble(error.to_string())));
                    if !partitions.is_empty() {
                        self.assigned.extend(partitions.iter().cloned());
                        events.push(Event::Assigned(partitions));
                    }
                }
                Rebalance::Revoke(partitions, lost) => {
                    if lost {
                        partitions.iter().for_each(|partition| _ = self.assigned.remove(partition));
                    } else {
                        self.revoking.extend(partitions.iter().cloned());
                    }
                    events.push(Event::Revoked { partitions, lost });
                }
            }
        }
        let troubles = std::mem::take(&mut *lock(&self.consumer.context().troubles));
        events.extend(troubles.into_iter().map(Event::Trouble));
        let failed = std::mem::take(&mut *lock(&self.consumer.context().failed_commits));
        events.extend(failed.into_iter().map(Event::CommitFailed));
        events
    }

    fn error_event(&self, error: &KafkaError) -> BrokerResult<Option<Event>> {
        let trouble = || Ok(Some(Event::Trouble(format!("kafka {}: {error}", self.brokers))));
        let code = match error {
            KafkaError::PartitionEOF(_) => return Ok(None),
            KafkaError::MessageConsumptionFatal(code) => return Err(self.fatal(*code)),
            KafkaError::MessageConsumption(code) => *code,
            _ => return trouble(),
        };
        match code {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => Ok(Some(Event::OutOfRange)),
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                lock(&self.consumer.context().standing).reading_refused(Instant::now());
                trouble()
            }
            code => {
                if let Some(why) = standing::group_refusal(code) {
                    lock(&self.consumer.context().standing).group_failed(format!("{error}; {why}"));
                }
                trouble()
            }
        }
    }

    /// What the client does not recover from.
    fn fatal(&self, code: RDKafkaErrorCode) -> BrokerError {
        let (code, text) = self.consumer.client().fatal_error().unwrap_or_else(|| (code, code.to_string()));
        let remedy = standing::group_refusal(code).map(|why| format!("; {why}")).unwrap_or_default();
        BrokerError::stop(format!("kafka {}: group {:?}: {text}{remedy}", self.brokers, self.group))
    }

    /// Where the application stands, control records and aborted transactions included, of every
    /// open partition.
    fn positions(&self) -> KafkaResult<Vec<(TopicPartition, i64)>> {
        let positions = self.consumer.position()?;
        let elements = positions.elements();
        let known = elements.iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((TopicPartition::new(element.topic(), element.partition()), offset)),
            _ => None,
        });
        Ok(known.collect())
    }

    fn seek(&mut self, opening: &Opening) -> BrokerResult<()> {
        let (topic, partition) = (&opening.partition.topic, opening.partition.partition);
        if self.halted.remove(&opening.partition) && !self.is_paused {
            let resumed = self.consumer.resume(&to_list([&opening.partition]));
            resumed.map_err(|error| self.retry("resume", error))?;
        }
        self.consumer
            .seek(topic, partition, Offset::Offset(opening.offset), ASK_TIMEOUT)
            .map_err(|error| self.retry("seek", error))
    }

    /// Adds the partitions of `new` to those that are fetched; `openings` are these and the ones
    /// that were sought just before.
    fn assign(&self, new: &[&Opening], openings: &[Opening]) -> KafkaResult<()> {
        if matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
            let begin = new.iter().map(|opening| (&opening.partition, opening.offset));
            return self.consumer.incremental_assign(&to_offsets(begin)?);
        }
        self.consumer.assign(&to_offsets(whole_assignment(&self.open, openings))?)
    }
}

impl Consumer for KafkaConsumer {
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>> {
        let mut events = Vec::new();
        let mut batches: Vec<RecordBatch> = Vec::new();
        let (mut bytes, mut records) = (0, 0);
        let mut wait = timeout;
        // The batch the last record went to: records of a partition come in runs.
        let mut at = usize::MAX;
        while bytes < bytes_max && records < POLL_RECORDS_MAX {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    wait = Duration::ZERO;
                    let (topic, partition) = (message.topic(), message.partition());
                    let is_it = |batch: &RecordBatch| {
                        batch.partition.partition == partition && *batch.partition.topic == *topic
                    };
                    if !batches.get(at).is_some_and(is_it) {
                        at = match batches.iter().position(is_it) {
                            Some(at) => at,
                            None => {
                                let name = self.names.entry(topic.to_owned()).or_insert_with(|| topic.into());
                                let partition = TopicPartition { topic: Arc::clone(name), partition };
                                let generation = self.open.get(&partition).map_or(0, |(generation, _)| *generation);
                                batches.push(RecordBatch::new(partition, generation));
                                batches.len() - 1
                            }
                        };
                    }
                    bytes += push(&mut batches[at], &message, &mut self.unreadable_names);
                    records += 1;
                }
                Some(Err(error)) => events.extend(self.error_event(&error)?),
            }
        }
        // Without an answer the records' own offsets do.
        for (partition, position) in self.positions().unwrap_or_default() {
            let Some((generation, next)) = self.open.get(&partition) else { continue };
            let batch = match batches.iter_mut().find(|batch| batch.partition == partition) {
                Some(batch) => batch,
                None if position > *next => {
                    batches.push(RecordBatch::new(partition, *generation));
                    batches.last_mut().expect("just pushed")
                }
                None => continue,
            };
            batch.position = batch.position.max(position);
        }
        batches.retain(|batch| {
            let open = self.open.get_mut(&batch.partition);
            open.map(|(_, next)| *next = batch.position).is_some()
        });
        events.extend(batches.into_iter().map(Event::Records));
        events.extend(self.take_rebalances());
        self.ask_again_if_refused();
        events.extend(self.renew_if_cut_off());
        let followed = self.follow();
        events
            .extend(followed.err().map(|error| Event::Trouble(format!("kafka {}: subscribe: {error}", self.brokers))));
        Ok(events)
    }

    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()> {
        let (open, mut new): (Vec<&Opening>, Vec<&Opening>) =
            openings.iter().partition(|opening| self.open.contains_key(&opening.partition));
        for opening in open {
            if let Err(error) = self.seek(opening) {
                // After an offset that was out of range librdkafka has stopped the fetcher, and
                // refuses to seek.
                tracing::debug!(%error, partition = %opening.partition, "seeking; assigning it anew");
                if matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
                    let list = to_list([&opening.partition]);
                    self.consumer.incremental_unassign(&list).map_err(|error| self.retry("unassign", error))?;
                }
                self.open.remove(&opening.partition);
                new.push(opening);
            }
        }
        if !new.is_empty() {
            self.assign(&new, openings).map_err(|error| self.retry("assign", error))?;
        }
        for opening in openings {
            self.open.insert(opening.partition.clone(), (opening.generation, opening.offset));
        }
        if self.is_paused {
            self.pause(true);
        }
        Ok(())
    }

    fn halt(&mut self, partition: &TopicPartition) {
        if !self.open.contains_key(partition) {
            return;
        }
        self.halted.insert(partition.clone());
        if let Err(error) = self.consumer.pause(&to_list([partition])) {
            tracing::debug!(%error, %partition, "halting");
        }
    }

    fn release(&mut self, partitions: &[TopicPartition]) {
        // One that was offered and never opened is not in librdkafka's assignment, and naming it
        // there would be refused; the call is due all the same, because the group waits for it.
        let opened: Vec<&TopicPartition> =
            partitions.iter().filter(|partition| self.open.contains_key(partition)).collect();
        // librdkafka would know it for paused still when it comes back.
        let paused =
            to_list(opened.iter().copied().filter(|partition| self.is_paused || self.halted.contains(*partition)));
        if paused.count() > 0
            && let Err(error) = self.consumer.resume(&paused)
        {
            tracing::debug!(%error, "resuming what is given back");
        }
        let list = to_list(opened);
        for partition in partitions {
            if self.revoking.remove(partition) {
                self.assigned.remove(partition);
            }
            self.open.remove(partition);
            self.halted.remove(partition);
        }
        if let Err(error) = give_back(&self.consumer, &list) {
            tracing::warn!(%error, "giving partitions back");
        }
    }

    fn pause(&mut self, paused: bool) {
        self.is_paused = paused;
        let list = to_list(self.open.keys().filter(|partition| !self.halted.contains(partition)));
        let done = if paused { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        if let Err(error) = done {
            tracing::debug!(%error, paused, "pausing partitions");
        }
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks> {
        let (low, high) = self
            .consumer
            .fetch_watermarks(&partition.topic, partition.partition, WATERMARKS_TIMEOUT)
            .map_err(|error| self.retry("watermarks", error))?;
        lock(&self.consumer.context().ends).insert(partition.clone(), high);
        Ok(Watermarks { low, high })
    }

    fn ends(&self) -> Vec<(TopicPartition, i64)> {
        lock(&self.consumer.context().ends).iter().map(|(partition, end)| (partition.clone(), *end)).collect()
    }

    fn away(&self) -> Option<String> {
        let is_read = |partition: &&TopicPartition| !self.is_paused && !self.halted.contains(*partition);
        let reading = Reading {
            brokers: &self.brokers,
            group: &self.group,
            topics: self.subscribed.iter().map(String::as_str).collect(),
            has_partitions: !self.open.is_empty(),
            partitions: self.open.keys().filter(is_read).collect(),
        };
        lock(&self.consumer.context().standing).why(&reading, Instant::now())
    }

    fn unread(&self) -> Vec<(TopicPartition, String)> {
        let is_read = |partition: &&TopicPartition| !self.is_paused && !self.halted.contains(*partition);
        let partitions: Vec<&TopicPartition> = self.open.keys().filter(is_read).collect();
        lock(&self.consumer.context().standing).unread(&partitions, Instant::now())
    }

    fn commit(&mut self, marks: &[Mark], wait: bool) -> BrokerResult<()> {
        let mut list = TopicPartitionList::new();
        for mark in marks {
            let mut element = list.add_partition(&mark.partition.topic, mark.partition.partition);
            element.set_offset(Offset::Offset(mark.position)).map_err(|error| self.retry("commit", error))?;
            element.set_metadata(&mark.note);
        }
        let mode = if wait { CommitMode::Sync } else { CommitMode::Async };
        self.consumer.commit(&list, mode).map_err(|error| self.retry("commit", error))
    }

    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>> {
        let seen = lookout::look(self.consumer.client(), &self.topics, ASK_TIMEOUT)
            .map_err(|error| self.retry("cannot be reached", error))?;
        let found = seen.names();
        if self.topics.named().iter().any(|name| !found.contains(name)) {
            return Err(BrokerError::stop(format!("kafka {}: {}", self.brokers, seen.problems.join("; "))));
        }
        for problem in &seen.problems {
            tracing::warn!(problem, "topics");
        }
        seen.partitions().map_err(|absent| {
            BrokerError::Retry(ErrorLine::from_error(absent).within(&format!("kafka {}", self.brokers)))
        })
    }

    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>> {
        let mut starts = Vec::with_capacity(partitions.len());
        let asked: HashMap<TopicPartition, i64> = match start {
            Start::Earliest | Start::Latest => HashMap::new(),
            Start::Committed => {
                let committed = self.consumer.committed_offsets(to_list(partitions), ASK_TIMEOUT);
                offsets(&committed.map_err(|error| self.retry("committed offsets", error))?)
            }
            Start::TimeMs(ms) => {
                let mut list = to_list(partitions);
                list.set_all_offsets(Offset::Offset(ms)).map_err(|error| self.retry("start time", error))?;
                let found = self.consumer.offsets_for_times(list, ASK_TIMEOUT);
                offsets(&found.map_err(|error| self.retry("start time", error))?)
            }
        };
        for partition in partitions {
            let Watermarks { low, high } = self.watermarks(partition)?;
            starts.push(match (start, asked.get(partition)) {
                (_, Some(offset)) => *offset,
                (Start::Latest | Start::TimeMs(_), None) => high,
                (Start::Earliest | Start::Committed, None) => low,
            });
        }
        Ok(starts)
    }

    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>> {
        let committed = self
            .consumer
            .committed_offsets(to_list(partitions), ASK_TIMEOUT)
            .map_err(|error| self.retry("committed offsets", error))?;
        let elements = committed.elements();
        let marks = elements.iter().filter_map(|element| match element.offset() {
            Offset::Offset(position) => Some(Mark {
                partition: TopicPartition::new(element.topic(), element.partition()),
                position,
                // Any tool may write bytes there that are not UTF-8.
                note: contained(|| element.metadata().to_owned()).unwrap_or_default(),
            }),
            _ => None,
        });
        Ok(marks.collect())
    }

    fn close(&mut self) {
        let deadline = Instant::now() + ASK_TIMEOUT;
        self.consumer.context().is_closing.store(true, Ordering::SeqCst);
        // Rebalances the worker has not answered any more.
        lock(&self.consumer.context().rebalances).clear();
        if let Err(error) = self.consumer.close_queue() {
            tracing::debug!(%error, "closing the consumer");
            return;
        }
        while !self.consumer.closed() && Instant::now() < deadline {
            drop(self.consumer.poll(Duration::from_millis(100)));
        }
    }
}
