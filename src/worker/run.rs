//! The loop of a worker.
//!
//! Records come from the driver, are gathered per lane, folded by the pool, put back in order and sent by the lane's task. Whatever
//! is in doubt (a fence, an error, a timeout, a lost connection) is settled one way: the lane's session, batches and shadows are
//! thrown away, the stored positions are read, and every partition of the lane that is still ours goes on from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::budget::{Budget, Permit};
use super::config::Config;
use super::driver::{Command, Driver, Notice};
use super::execution::Execution;
use super::lane::{Committed, Sending};
use super::partition::{Arrival, Partition};
use super::pool::{Done, HeldPart, Job, Pool};
use super::reading::Reading;
use super::repeats::Repeats;
use super::start::Starter;
use super::status::Status;
use crate::broker::{BrokerError, Consumer, Event, Producer, Start};
use crate::compile::{Folded, Part, Plan};
use crate::model::{Checkpoint, RecordBatch, TopicPartition};
use crate::store::{Applied, Meta, Outcome, Positions, Session, Store, StoreError, StoreResult};
use crate::telemetry::names;

/// Notices waiting for the loop; their records are bounded in bytes by the budget.
const NOTICES_MAX: usize = 256;
const TICK: Duration = Duration::from_millis(10);
/// What a record comes to when it is folded, until one knows: much, so that the first batches are small.
const RECORD_BYTES: usize = 1024;
/// A lane that cannot commit for this long makes the worker unready.
pub(super) const UNREADY_AFTER: Duration = Duration::from_secs(3);

/// Everything a worker is made of.
pub struct Worker {
    pub config: Config,
    pub plan: Arc<Plan>,
    pub group: String,
    pub prefix: String,
    pub tags: Vec<String>,
    pub start: Start,
    pub store: Arc<dyn Store>,
    pub consumer: Box<dyn Consumer>,
    /// `None` when dead letters are discarded.
    pub producer: Option<Arc<dyn Producer>>,
    pub status: Arc<Status>,
    /// Turns true when the worker is to drain and stop.
    pub shutdown: watch::Receiver<bool>,
    /// The clock, in epoch milliseconds; lag in seconds is measured by it and nothing else is.
    pub now_ms: fn() -> i64,
    pub execution: Execution,
}

/// A person must act; the text says how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct WorkerError(pub String);

/// What a lane's connection task found.
pub(super) struct View {
    pub(super) lane: usize,
    pub(super) epoch: u64,
    pub(super) meta: Meta,
    pub(super) positions: Positions,
    /// Absent when only partitions that wait are concerned.
    pub(super) session: Option<Box<dyn Session>>,
}

/// A lane that cannot commit.
pub(super) struct Down {
    pub(super) since: Instant,
    pub(super) why: String,
}

pub(super) enum Internal {
    /// Why a lane still has no view.
    Waiting {
        lane: usize,
        why: String,
    },
    View(Box<View>),
    Stop(String),
    /// An idle lane's positions, as the store has them.
    Checked {
        lane: usize,
        epoch: u64,
        activity: u64,
        positions: StoreResult<Positions>,
    },
    Reopen {
        partition: TopicPartition,
        generation: u64,
    },
    /// What the lane stands on is not known.
    Doubt {
        lane: usize,
        epoch: u64,
        why: &'static str,
    },
    Skipped {
        partition: TopicPartition,
        generation: u64,
        to: Checkpoint,
    },
}

/// Records that wait for their batch to be cut.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) parts: Vec<HeldPart>,
    events: usize,
    bytes: usize,
    oldest: Option<Instant>,
}

impl Pending {
    fn push(&mut self, held: HeldPart) {
        self.events += held.part.records.len();
        self.bytes += held.part.records.bytes();
        self.oldest.get_or_insert_with(Instant::now);
        self.parts.push(held);
    }

    /// The first parts, at least one and no more than so many events, and how many events they have.
    fn take(&mut self, events_max: usize) -> (Vec<HeldPart>, usize) {
        let (mut count, mut events, mut bytes) = (0, 0, 0);
        for held in &self.parts {
            let records = &held.part.records;
            if count > 0 && events + records.len() > events_max {
                break;
            }
            (count, events, bytes) = (count + 1, events + records.len(), bytes + records.bytes());
        }
        let rest = self.parts.split_off(count);
        self.events -= events;
        self.bytes -= bytes;
        // Of the rest it is the time of somewhat older ones, which does no harm.
        self.oldest = self.oldest.filter(|_| !rest.is_empty());
        (std::mem::replace(&mut self.parts, rest), events)
    }

    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        let Self { parts, events, bytes, .. } = self;
        parts.retain(|held| {
            let records = &held.part.records;
            let is_kept = records.partition != *partition;
            if !is_kept {
                *events -= records.len();
                *bytes -= records.bytes();
            }
            is_kept
        });
    }
}

pub(super) struct Lane {
    pub(super) epoch: u64,
    /// `None` while the lane resyncs.
    pub(super) batches: Option<mpsc::UnboundedSender<Sending>>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) pending: Pending,
    pub(super) next_sequence: u64,
    pub(super) next_to_send: u64,
    pub(super) folded: BTreeMap<u64, Vec<(Folded, Permit)>>,
    pub(super) jobs: usize,
    /// What a record has come to lately when it was folded.
    record_bytes: usize,
    /// Changes whenever anything is sent.
    pub(super) activity: u64,
    pub(super) checked_at: Instant,
    /// The comparison of positions that was begun last.
    pub(super) check: Option<JoinHandle<()>>,
    pub(super) backoff: Backoff,
    pub(super) down: Option<Down>,
}

impl Lane {
    fn new() -> Self {
        Self {
            epoch: 0,
            batches: None,
            tasks: Vec::new(),
            pending: Pending::default(),
            next_sequence: 0,
            next_to_send: 0,
            folded: BTreeMap::new(),
            jobs: 0,
            record_bytes: RECORD_BYTES,
            activity: 0,
            checked_at: Instant::now(),
            check: None,
            backoff: Backoff::default(),
            down: None,
        }
    }

    /// Records of one job, which come to no more than a batch may, judged by the last ones.
    fn job_records_max(&self, config: &Config) -> usize {
        config.batch_events.min(config.expected_bytes_max() / self.record_bytes)
    }

    fn learn(&mut self, folded: &[(Folded, Permit)]) {
        let records: usize = folded.iter().map(|(folded, _)| folded.stats.records as usize).sum();
        let bytes: usize = folded.iter().map(|(folded, _)| folded.bytes()).sum();
        if let Some(each) = bytes.checked_div(records) {
            // What is larger is believed at once, what is smaller by and by.
            self.record_bytes = each.max(self.record_bytes / 2).max(1);
        }
    }

    pub(super) fn clear(&mut self) {
        self.batches = None;
        self.tasks.drain(..).for_each(|task| task.abort());
        self.pending = Pending::default();
        self.next_to_send = self.next_sequence;
        self.folded.clear();
        self.jobs = 0;
    }
}

/// Partitions to be given back once what is in flight is done.
pub(super) struct Leaving {
    pub(super) partitions: Vec<TopicPartition>,
    pub(super) deadline: Instant,
}

pub(super) struct Loop {
    pub(super) worker: WorkerParts,
    pub(super) driver: Driver,
    pub(super) starter: Starter,
    pub(super) pool: Pool,
    pub(super) folded: Arc<Budget>,
    pub(super) lanes: Vec<Lane>,
    pub(super) partitions: BTreeMap<TopicPartition, Partition>,
    pub(super) starts: BTreeMap<TopicPartition, i64>,
    pub(super) generation: u64,
    pub(super) leaving: Option<Leaving>,
    pub(super) answers: mpsc::UnboundedSender<Committed>,
    pub(super) internal: mpsc::UnboundedSender<Internal>,
    pub(super) marked_at: Instant,
    pub(super) marked_all_at: Instant,
    pub(super) reading: Reading,
    pub(super) troubles: Repeats,
    pub(super) status_at: Instant,
    pub(super) is_draining: bool,
}

/// What the loop keeps of [`Worker`].
pub(super) struct WorkerParts {
    pub(super) config: Config,
    pub(super) store: Arc<dyn Store>,
    pub(super) producer: Option<Arc<dyn Producer>>,
    pub(super) status: Arc<Status>,
    pub(super) now_ms: fn() -> i64,
}

impl Worker {
    /// Counts until it is told to stop, or until a person must act.
    pub async fn run(self) -> Result<(), WorkerError> {
        self.config.check().map_err(WorkerError)?;
        let Self {
            mut config,
            plan,
            group,
            prefix,
            tags,
            start,
            store,
            consumer,
            producer,
            status,
            mut shutdown,
            now_ms,
            execution,
        } = self;
        // Once: to ask the system takes longer than to cut a batch.
        config.fold_threads = config.threads();
        let budget = Budget::new(config.in_flight_bytes_max());
        let (notices_in, mut notices) = mpsc::channel(NOTICES_MAX);
        let (done_in, mut done) = mpsc::unbounded_channel();
        let (answers, mut committed) = mpsc::unbounded_channel();
        let (internal_in, mut internal) = mpsc::unbounded_channel();
        let driver = Driver::start(consumer, Arc::clone(&budget), notices_in, execution, Arc::clone(&status));
        let lanes = store.lanes();
        let folded = Budget::part_of(&budget, config.folded_bytes_max());
        let pool = Pool::start(&plan, &config, lanes, &folded, &done_in, execution);
        let starter = Starter {
            store: Arc::clone(&store),
            driver: driver.clone(),
            plan,
            group,
            prefix,
            tags,
            start,
            on_empty_store: config.on_empty_store,
            now_ms,
        };
        let mut this = Loop {
            worker: WorkerParts { config, store, producer, status, now_ms },
            driver,
            starter,
            pool,
            folded,
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            partitions: BTreeMap::new(),
            starts: BTreeMap::new(),
            generation: 0,
            leaving: None,
            answers,
            internal: internal_in,
            marked_at: Instant::now(),
            marked_all_at: Instant::now(),
            reading: Reading::default(),
            troubles: Repeats::default(),
            status_at: Instant::now(),
            is_draining: false,
        };
        for lane in 0..lanes {
            this.resync(lane, "start");
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let result = loop {
            // Cancel safety: receiving from a channel, waiting for a tick and watching a flag lose nothing when another branch
            // wins; every branch deals with what it took at once and without waiting. What is rare comes first, then what ends
            // something before what begins something.
            let step = tokio::select! {
                biased;
                changed = shutdown.changed(), if !this.is_draining => {
                    if changed.is_err() || *shutdown.borrow() {
                        this.drain();
                    }
                    Ok(())
                }
                _ = tick.tick() => this.on_tick(),
                Some(message) = internal.recv() => this.on_internal(message),
                Some(answer) = committed.recv() => this.on_committed(answer),
                Some(done) = done.recv() => this.on_folded(done),
                Some(notice) = notices.recv() => this.on_notice(notice),
            };
            if let Err(error) = step {
                break Err(error);
            }
            if this.is_draining && this.leaving.is_none() {
                break Ok(());
            }
        };
        this.close(&mut notices).await;
        result
    }
}

impl Loop {
    fn on_notice(&mut self, notice: Notice) -> Result<(), WorkerError> {
        match notice {
            Notice::Event(Event::Records(records), permit) => self.on_records(records, permit),
            Notice::Event(Event::Assigned(partitions), _) => self.on_assigned(partitions),
            Notice::Event(Event::Revoked { partitions, lost }, _) => self.on_revoked(partitions, lost),
            Notice::Event(Event::OutOfRange, _) => {
                for lane in 0..self.lanes.len() {
                    self.resync(lane, "an offset is out of the log's range");
                }
            }
            Notice::Event(Event::CommitFailed(text), _) => {
                // A rebalance refuses commits; the next round sends them again.
                tracing::debug!(text, "commit to the broker");
                self.partitions.values_mut().for_each(|partition| partition.marked = None);
            }
            Notice::Event(Event::Trouble(text), _) => self.on_trouble(&text),
            Notice::Failed(BrokerError::Retry(text)) => {
                self.on_trouble(&text);
                self.on_away(Some(text));
            }
            Notice::Opened { partition, generation, result } => {
                return self.on_opened(partition, generation, result);
            }
            Notice::Known { ends, away, unread } => self.on_known(ends, away, unread),
            Notice::Failed(BrokerError::Stop(text)) => return Err(WorkerError(text)),
        }
        Ok(())
    }

    fn on_records(&mut self, records: RecordBatch, permit: Option<Permit>) {
        let name = records.partition.clone();
        let Some(partition) = self.partitions.get_mut(&name) else { return };
        match partition.arrived(records) {
            Arrival::Drop => {}
            Arrival::Stop(reason) => self.stop_partition(&name, reason),
            Arrival::Take(records) => {
                let from = partition.from;
                partition.from = records.checkpoint_after(from);
                let lane_index = partition.lane;
                let lane = &mut self.lanes[lane_index];
                let permit = permit.expect("records come with a permit");
                lane.pending.push(HeldPart::new(Part { records, from }, permit));
                self.cut_if_due(lane_index);
            }
        }
    }

    pub(super) fn cut_if_due(&mut self, index: usize) {
        let config = &self.worker.config;
        let lane = &self.lanes[index];
        let is_idle = lane.jobs == 0;
        let has_room =
            is_idle || lane.jobs < config.batches_in_flight + config.threads() && self.folded.room(Duration::ZERO) > 0;
        let age_max = Duration::from_millis(config.batch_age_ms);
        let pending = &lane.pending;
        // Behind another batch it would wait all the same; what comes meanwhile merges into it, so a store that is slow gets fewer.
        let is_old = is_idle && pending.oldest.is_some_and(|oldest| oldest.elapsed() >= age_max);
        let is_due = pending.events >= lane.job_records_max(config)
            || pending.bytes >= config.batch_bytes_max()
            || is_old
            || self.leaving.is_some();
        if lane.batches.is_some() && has_room && is_due && !pending.parts.is_empty() {
            self.cut(index);
        }
    }

    fn cut(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let (parts, records) = lane.pending.take(lane.job_records_max(&self.worker.config));
        let expected = self.folded.take(records * lane.record_bytes);
        lane.jobs += 1;
        lane.activity += 1;
        let sequence = lane.next_sequence;
        lane.next_sequence += 1;
        self.pool.submit(Job { lane: index, epoch: lane.epoch, sequence, parts, expected });
    }

    fn on_folded(&mut self, done: Done) -> Result<(), WorkerError> {
        let Some(folded) = done.folded else {
            return Err(WorkerError(
                "folding a batch panicked; this is a bug, please report it with the log above".to_owned(),
            ));
        };
        let lane = &mut self.lanes[done.lane];
        if done.epoch != lane.epoch {
            return Ok(());
        }
        lane.learn(&folded);
        lane.folded.insert(done.sequence, folded);
        let Some(batches) = lane.batches.clone() else { return Ok(()) };
        while let Some(folded) = lane.folded.remove(&lane.next_to_send) {
            lane.next_to_send += 1;
            let count = folded.len();
            if count == 0 {
                lane.jobs -= 1;
            }
            for (index, (folded, permit)) in folded.into_iter().enumerate() {
                // A sender that is gone has left an answer that leads to a resync.
                let _ = batches.send(Sending { folded, permit, is_last: index + 1 == count });
            }
        }
        self.cut_if_due(done.lane);
        Ok(())
    }

    fn on_committed(&mut self, committed: Committed) -> Result<(), WorkerError> {
        let Committed { lane, epoch, spans, stats, dead_letters, is_last, latency, result } = committed;
        if epoch != self.lanes[lane].epoch {
            return Ok(());
        }
        let applied = match result {
            Ok(Outcome::Applied(applied)) => applied,
            Ok(Outcome::Fenced(stored)) => {
                for (partition, stored) in stored {
                    let from = spans.iter().find(|span| span.partition == partition).map(|span| span.from.position);
                    metrics::counter!(names::FENCES, "stored" => fence_label(from, stored)).increment(1);
                }
                self.resync(lane, "a batch was fenced off");
                return Ok(());
            }
            Ok(Outcome::ShadowStale) => {
                metrics::counter!(names::FENCES, "stored" => "shadow").increment(1);
                self.resync(lane, "the register shadow was stale");
                return Ok(());
            }
            Ok(Outcome::PlanChanged(_)) => {
                // Either the store is empty now, or another mapping was applied: establishing again tells which.
                self.resync(lane, "the stored plan is not ours");
                return Ok(());
            }
            Err(error) => {
                metrics::counter!(names::STORE_ERRORS, "class" => error.class()).increment(1);
                if let StoreError::Stop(text) = error {
                    return Err(WorkerError(text));
                }
                self.resync(lane, &error.to_string());
                return Ok(());
            }
        };
        self.count(&applied, &stats, latency);
        self.worker.status.applied(&stats, &applied, dead_letters, (self.worker.now_ms)());
        for span in spans {
            if let Some(partition) = self.partitions.get_mut(&span.partition) {
                partition.committed = span.to;
            }
        }
        let lane_state = &mut self.lanes[lane];
        lane_state.backoff.reset();
        lane_state.activity += 1;
        if is_last {
            lane_state.jobs -= 1;
        }
        self.cut_if_due(lane);
        self.leave_if_drained();
        Ok(())
    }

    fn count(&self, applied: &Applied, stats: &crate::compile::FoldStats, latency: Duration) {
        for (name, value) in [
            (names::RECORDS, stats.records),
            (names::BYTES, stats.bytes),
            (names::EVENTS, stats.events),
            (names::TOMBSTONES, stats.tombstones),
            (names::OPERATIONS, stats.operations),
            (names::OPERATIONS_MERGED, stats.operations_merged),
            (names::VALUES_SKIPPED, stats.values_skipped),
            (names::VALUES_CUT, stats.values_cut),
            (names::VALUES_ROUNDED, stats.values_rounded),
            (names::BUCKETS_EXPIRED, stats.buckets_expired),
            (names::KEYS_EXPIRED, applied.keys_expired),
            (names::VALUES_FOLDED, applied.values_folded),
            (names::ELEMENTS_SENT, applied.elements_sent),
            (names::ELEMENTS_SAVED, applied.elements_saved + stats.elements - stats.elements_merged),
            (names::QUARANTINED, applied.quarantined.len() as u64),
            (names::BATCHES, 1),
        ] {
            metrics::counter!(name).increment(value);
        }
        metrics::histogram!(names::COMMIT_SECONDS).record(latency.as_secs_f64());
        for quarantined in &applied.quarantined {
            tracing::error!(
                key = quarantined.key,
                error = quarantined.error,
                "a key cannot take its counts; its answers are incomplete, `traqq doctor` names the way back"
            );
        }
    }

    fn drain(&mut self) {
        tracing::info!("draining");
        self.is_draining = true;
        self.worker.status.obstruct("worker", "draining");
        // It has a bound of its own.
        self.worker.status.pulse.end();
        let names = self.partitions.keys().cloned().collect();
        self.leave(names);
    }

    async fn close(&mut self, notices: &mut mpsc::Receiver<Notice>) {
        for partition in self.partitions.values_mut() {
            partition.marked = None;
        }
        let names: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
        let (closed, mut wait) = oneshot::channel();
        self.driver.send(Command::Close(self.marks(&names), closed));
        let deadline = tokio::time::sleep(Duration::from_millis(self.worker.config.drain_timeout_ms));
        tokio::pin!(deadline);
        loop {
            // Cancel safety: notices are only taken so that the driver, which may wait for room, gets to the command.
            tokio::select! {
                _ = &mut wait => break,
                () = &mut deadline => {
                    tracing::warn!("the consumer did not leave its group in time");
                    break;
                }
                _ = notices.recv() => {}
            }
        }
        for lane in &mut self.lanes {
            lane.clear();
        }
    }
}

fn fence_label(from: Option<i64>, stored: Option<Checkpoint>) -> &'static str {
    match (from, stored.map(|stored| stored.position)) {
        (_, None) => "absent",
        (Some(from), Some(stored)) if stored > from => "ahead",
        (Some(from), Some(stored)) if stored < from => "behind",
        _ => "unchanged",
    }
}

pub(super) fn lane_name(lane: usize) -> String {
    format!("lane {lane}")
}
