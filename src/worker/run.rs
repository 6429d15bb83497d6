//! The loop of a worker.
//!
//! Records come from the driver, are gathered per lane, folded by the pool, put back in order and sent by the lane's task. Whatever
//! is in doubt (a fence, an error, a timeout, a lost connection) is settled one way: the lane's session, batches and shadows are
//! thrown away, the stored positions are read, and every partition of the lane that is still ours goes on from there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::budget::{Budget, Permit};
use super::config::{Config, OnLogGap};
use super::driver::{Command, Driver, Notice, Open};
use super::lane::{Committed, LaneSender, Sending};
use super::partition::{Arrival, Partition, State};
use super::pool::{Done, Job, Pool};
use super::start::{NotStarted, Starter};
use super::status::{PartitionStatus, Status};
use crate::broker::{BrokerError, Consumer, Event, Mark, Producer, Start};
use crate::compile::{Folded, Part, Plan};
use crate::model::{Checkpoint, RecordBatch, TopicPartition};
use crate::store::{Applied, Meta, Outcome, Positions, Session, Store, StoreError};
use crate::telemetry::names;

/// Notices waiting for the loop; their records are bounded in bytes by the budget.
const NOTICES_MAX: usize = 256;
const TICK: Duration = Duration::from_millis(10);
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A lane that cannot commit for this long makes the worker unready.
const UNREADY_AFTER: Duration = Duration::from_secs(3);

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
}

/// A person must act; the text says how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct WorkerError(pub String);

/// What a lane's connection task found.
struct View {
    lane: usize,
    epoch: u64,
    meta: Meta,
    positions: Positions,
    /// Absent when only partitions that wait are concerned.
    session: Option<Box<dyn Session>>,
}

enum Internal {
    View(View),
    Stop(String),
    /// An idle lane's positions, as the store has them.
    Checked {
        lane: usize,
        epoch: u64,
        activity: u64,
        positions: Positions,
    },
    Reopen {
        partition: TopicPartition,
        generation: u64,
    },
    Skipped {
        partition: TopicPartition,
        generation: u64,
        to: Checkpoint,
    },
}

struct Lane {
    epoch: u64,
    /// `None` while the lane resyncs.
    batches: Option<mpsc::UnboundedSender<Sending>>,
    tasks: Vec<JoinHandle<()>>,
    pending: Vec<(Part, Permit)>,
    pending_events: usize,
    pending_bytes: usize,
    oldest: Option<Instant>,
    next_sequence: u64,
    next_to_send: u64,
    folded: BTreeMap<u64, Vec<Folded>>,
    jobs: usize,
    /// Changes whenever anything is sent.
    activity: u64,
    checked_at: Instant,
    backoff: Backoff,
    down_since: Option<Instant>,
}

impl Lane {
    fn new() -> Self {
        Self {
            epoch: 0,
            batches: None,
            tasks: Vec::new(),
            pending: Vec::new(),
            pending_events: 0,
            pending_bytes: 0,
            oldest: None,
            next_sequence: 0,
            next_to_send: 0,
            folded: BTreeMap::new(),
            jobs: 0,
            activity: 0,
            checked_at: Instant::now(),
            backoff: Backoff::default(),
            down_since: None,
        }
    }

    fn clear(&mut self) {
        self.batches = None;
        self.tasks.drain(..).for_each(|task| task.abort());
        self.pending.clear();
        self.pending_events = 0;
        self.pending_bytes = 0;
        self.oldest = None;
        self.next_to_send = self.next_sequence;
        self.folded.clear();
        self.jobs = 0;
    }
}

/// Partitions to be given back once what is in flight is done.
struct Leaving {
    partitions: Vec<TopicPartition>,
    deadline: Instant,
}

struct Loop {
    worker: WorkerParts,
    driver: Driver,
    starter: Starter,
    pool: Pool,
    lanes: Vec<Lane>,
    partitions: HashMap<TopicPartition, Partition>,
    starts: BTreeMap<TopicPartition, i64>,
    generation: u64,
    leaving: Option<Leaving>,
    answers: mpsc::UnboundedSender<Committed>,
    internal: mpsc::UnboundedSender<Internal>,
    marked_at: Instant,
    status_at: Instant,
    is_draining: bool,
}

/// What the loop keeps of [`Worker`].
struct WorkerParts {
    config: Config,
    store: Arc<dyn Store>,
    producer: Option<Arc<dyn Producer>>,
    status: Arc<Status>,
    now_ms: fn() -> i64,
}

impl Worker {
    /// Counts until it is told to stop, or until a person must act.
    pub async fn run(self) -> Result<(), WorkerError> {
        self.config.check().map_err(WorkerError)?;
        let Self { config, plan, group, prefix, tags, start, store, consumer, producer, status, mut shutdown, now_ms } =
            self;
        let budget = Budget::new(config.in_flight_bytes_max());
        let (notices_in, mut notices) = mpsc::channel(NOTICES_MAX);
        let (done_in, mut done) = mpsc::unbounded_channel();
        let (answers, mut committed) = mpsc::unbounded_channel();
        let (internal_in, mut internal) = mpsc::unbounded_channel();
        let driver = Driver::start(consumer, budget, notices_in);
        let lanes = store.lanes();
        let pool = Pool::start(&plan, config.threads(), config.batch_operations, lanes, &done_in);
        let starter = Starter {
            store: Arc::clone(&store),
            driver: driver.clone(),
            plan,
            group,
            prefix,
            tags,
            start,
            on_empty_store: config.on_empty_store,
        };
        let mut this = Loop {
            worker: WorkerParts { config, store, producer, status, now_ms },
            driver,
            starter,
            pool,
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            partitions: HashMap::new(),
            starts: BTreeMap::new(),
            generation: 0,
            leaving: None,
            answers,
            internal: internal_in,
            marked_at: Instant::now(),
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
            // wins; every branch deals with what it took at once and without waiting.
            let step = tokio::select! {
                Some(answer) = committed.recv() => this.on_committed(answer),
                Some(message) = internal.recv() => this.on_internal(message),
                Some(done) = done.recv() => this.on_folded(done),
                Some(notice) = notices.recv() => this.on_notice(notice),
                _ = tick.tick() => this.on_tick(),
                changed = shutdown.changed(), if !this.is_draining => {
                    if changed.is_err() || *shutdown.borrow() {
                        this.drain();
                    }
                    Ok(())
                }
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
    // ---- records -----------------------------------------------------------------------------------------------------

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
            Notice::Event(Event::Trouble(text), _) => {
                tracing::warn!(text, "broker");
            }
            Notice::Opened { partition, generation, result } => {
                return self.on_opened(partition, generation, result);
            }
            Notice::Ends(ends) => {
                for (partition, end) in ends {
                    if let Some(known) = self.partitions.get_mut(&partition) {
                        known.end = end;
                    }
                }
            }
            Notice::Failed(BrokerError::Stop(text)) => return Err(WorkerError(text)),
            Notice::Failed(BrokerError::Retry(text)) => tracing::warn!(text, "broker"),
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
                lane.pending_events += records.len();
                lane.pending_bytes += records.bytes();
                lane.oldest.get_or_insert_with(Instant::now);
                let permit = permit.expect("records come with a permit");
                lane.pending.push((Part { records, from }, permit));
                self.cut_if_due(lane_index);
            }
        }
    }

    fn cut_if_due(&mut self, index: usize) {
        let config = &self.worker.config;
        let lane = &self.lanes[index];
        let has_room = lane.jobs < config.batches_in_flight + config.threads();
        let age_max = Duration::from_millis(config.batch_age_ms);
        let is_due = lane.pending_events >= config.batch_events
            || lane.pending_bytes >= config.batch_bytes
            || lane.oldest.is_some_and(|oldest| oldest.elapsed() >= age_max)
            || self.leaving.is_some();
        if lane.batches.is_some() && has_room && is_due && !lane.pending.is_empty() {
            self.cut(index);
        }
    }

    fn cut(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let (parts, permits) = std::mem::take(&mut lane.pending).into_iter().unzip();
        lane.pending_events = 0;
        lane.pending_bytes = 0;
        lane.oldest = None;
        lane.jobs += 1;
        lane.activity += 1;
        let sequence = lane.next_sequence;
        lane.next_sequence += 1;
        self.pool.submit(Job { lane: index, epoch: lane.epoch, sequence, parts, permits });
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
        lane.folded.insert(done.sequence, folded);
        let Some(batches) = lane.batches.clone() else { return Ok(()) };
        while let Some(folded) = lane.folded.remove(&lane.next_to_send) {
            lane.next_to_send += 1;
            let count = folded.len();
            if count == 0 {
                lane.jobs -= 1;
            }
            for (index, folded) in folded.into_iter().enumerate() {
                // A sender that is gone has left an answer that leads to a resync.
                let _ = batches.send(Sending { folded, is_last: index + 1 == count });
            }
        }
        self.cut_if_due(done.lane);
        Ok(())
    }

    // ---- answers of the store ----------------------------------------------------------------------------------------

    fn on_committed(&mut self, committed: Committed) -> Result<(), WorkerError> {
        let Committed { lane, epoch, spans, stats, is_last, latency, result } = committed;
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
        self.worker.status.applied(stats.records, stats.events);
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

    // ---- the one rule for every doubt --------------------------------------------------------------------------------

    fn resync(&mut self, index: usize, why: &str) {
        let lane = &mut self.lanes[index];
        lane.epoch += 1;
        self.pool.set_epoch(index, lane.epoch);
        lane.clear();
        let wait = if lane.epoch == 1 { Duration::ZERO } else { lane.backoff.next() };
        if lane.epoch > 1 {
            metrics::counter!(names::RESYNCS).increment(1);
            tracing::warn!(lane = index, why, "going back to the stored positions");
        }
        lane.down_since.get_or_insert_with(Instant::now);
        for partition in self.partitions.values_mut().filter(|partition| partition.lane == index) {
            if !matches!(partition.state, State::Stopped(_)) {
                partition.state = State::Waiting;
            }
        }
        let task = connect(self.starter.clone(), self.internal.clone(), index, lane.epoch, wait);
        lane.tasks.push(tokio::spawn(task));
    }

    fn on_internal(&mut self, internal: Internal) -> Result<(), WorkerError> {
        match internal {
            Internal::View(view) => self.on_view(view),
            Internal::Stop(text) => return Err(WorkerError(text)),
            Internal::Checked { lane, epoch, activity, positions } => {
                self.on_checked(lane, epoch, activity, &positions);
            }
            Internal::Reopen { partition, generation } => {
                if self.partitions.get(&partition).is_some_and(|known| known.generation == generation) {
                    self.open(vec![partition]);
                }
            }
            Internal::Skipped { partition, generation, to } => {
                if let Some(known) = self.partitions.get_mut(&partition)
                    && known.generation == generation
                {
                    let skipped = to.position - known.from.position;
                    metrics::counter!(names::RECORDS_SKIPPED).increment(skipped.unsigned_abs());
                    tracing::warn!(%partition, skipped, "went on without records that the log no longer has");
                    known.from = to;
                    known.committed = to;
                    self.open(vec![partition]);
                }
            }
        }
        Ok(())
    }

    fn on_view(&mut self, view: View) {
        let View { lane: index, epoch, meta, positions, session } = view;
        if epoch != self.lanes[index].epoch {
            return;
        }
        self.starts.extend(meta.starts);
        let is_resync = session.is_some();
        if let Some(session) = session {
            let (batches, queue) = mpsc::unbounded_channel();
            let sender = LaneSender {
                lane: index,
                epoch,
                session,
                producer: self.worker.producer.clone(),
                in_flight_max: self.worker.config.batches_in_flight,
                answers: self.answers.clone(),
                status: Arc::clone(&self.worker.status),
            };
            let lane = &mut self.lanes[index];
            lane.batches = Some(batches);
            lane.tasks.push(tokio::spawn(sender.run(queue)));
            lane.down_since = None;
            lane.checked_at = Instant::now();
            self.worker.status.clear("worker");
            self.worker.status.clear(&lane_name(index));
        }
        let mut to_open = Vec::new();
        let mut unknown = Vec::new();
        let mut stopped = Vec::new();
        for (name, partition) in self.partitions.iter_mut().filter(|(_, partition)| partition.lane == index) {
            let is_concerned = partition.state == State::Waiting && !partition.is_leaving;
            if !is_concerned {
                continue;
            }
            match positions.get(name) {
                Some(stored) => {
                    if is_resync && stored.position < partition.committed.position {
                        metrics::counter!(names::ROLLBACKS).increment(1);
                        tracing::error!(
                            partition = %name, stored = stored.position, acknowledged = partition.committed.position,
                            "the store lost what it had acknowledged; replaying from its position"
                        );
                    }
                    partition.from = *stored;
                    partition.committed = *stored;
                    to_open.push(name.clone());
                }
                None if self.starts.contains_key(name) => stopped.push(name.clone()),
                None => unknown.push(name.clone()),
            }
        }
        for name in stopped {
            self.stop_partition(
                &name,
                format!(
                    "{name}: its checkpoint is gone from the store though its counts may be there: somebody deleted it; \
                     restore it, set one with `traqq position set {name} OFFSET`, or count under a new store.redis.prefix"
                ),
            );
        }
        if !to_open.is_empty() {
            self.open(to_open);
        }
        if !unknown.is_empty() {
            self.look_again(index, unknown);
        }
        self.leave_if_drained();
    }

    /// Asks the driver to read partitions from their checkpoints on.
    fn open(&mut self, names: Vec<TopicPartition>) {
        let mut opens = Vec::with_capacity(names.len());
        for name in names {
            let Some(partition) = self.partitions.get_mut(&name) else { continue };
            self.generation += 1;
            partition.generation = self.generation;
            partition.state = State::Opening;
            opens.push(Open {
                partition: name,
                checkpoint: partition.from,
                generation: partition.generation,
                is_seek: partition.is_open,
            });
        }
        self.driver.send(Command::Open(opens));
    }

    fn on_opened(
        &mut self,
        name: TopicPartition,
        generation: u64,
        result: Result<crate::broker::Watermarks, BrokerError>,
    ) -> Result<(), WorkerError> {
        let Some(partition) = self.partitions.get_mut(&name) else { return Ok(()) };
        if partition.generation != generation || partition.state != State::Opening {
            return Ok(());
        }
        let watermarks = match result {
            Ok(watermarks) => watermarks,
            Err(BrokerError::Stop(text)) => return Err(WorkerError(text)),
            Err(BrokerError::Retry(text)) => {
                tracing::warn!(text, partition = %name, "cannot open a partition yet");
                let internal = self.internal.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = internal.send(Internal::Reopen { partition: name, generation });
                });
                return Ok(());
            }
        };
        match partition.opened(&name, watermarks) {
            Ok(()) => {
                self.worker.status.clear(&name.to_string());
                self.mark(std::slice::from_ref(&name));
            }
            Err(_) if self.worker.config.on_log_gap == OnLogGap::Skip && partition.from.position < watermarks.low => {
                let (from, to) = (partition.from, Checkpoint::start(watermarks.low));
                let (store, internal) = (Arc::clone(&self.worker.store), self.internal.clone());
                tokio::spawn(async move {
                    let message = match store.set_position(&name, Some(from), to).await {
                        Ok(true) => Internal::Skipped { partition: name, generation, to },
                        Ok(false) | Err(_) => Internal::Reopen { partition: name, generation },
                    };
                    let _ = internal.send(message);
                });
            }
            Err(reason) => self.stop_partition(&name, reason),
        }
        Ok(())
    }

    /// Partitions that appeared after the first start begin at their first record.
    fn look_again(&mut self, lane: usize, unknown: Vec<TopicPartition>) {
        let (starter, internal, epoch) = (self.starter.clone(), self.internal.clone(), self.lanes[lane].epoch);
        let task = tokio::spawn(async move {
            let mut backoff = Backoff::default();
            loop {
                match adopt(&starter, lane, &unknown).await {
                    Ok((meta, positions)) => {
                        let _ = internal.send(Internal::View(View { lane, epoch, meta, positions, session: None }));
                        return;
                    }
                    Err(NotStarted::Stop(text)) => return drop(internal.send(Internal::Stop(text))),
                    Err(NotStarted::Retry(text)) => {
                        tracing::warn!(text, "cannot begin with new partitions yet");
                        tokio::time::sleep(backoff.next()).await;
                    }
                }
            }
        });
        self.lanes[lane].tasks.push(task);
    }

    fn stop_partition(&mut self, name: &TopicPartition, reason: String) {
        tracing::error!(partition = %name, reason, "partition stopped");
        self.worker.status.obstruct(&name.to_string(), &reason);
        self.driver.send(Command::Halt(name.clone()));
        if let Some(partition) = self.partitions.get_mut(name) {
            partition.state = State::Stopped(reason);
        }
    }

    /// An idle worker must notice too when the store rolls back.
    fn check_positions(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let every = Duration::from_millis(self.worker.config.position_check_ms);
        if lane.batches.is_none() || lane.jobs > 0 || !lane.pending.is_empty() || lane.checked_at.elapsed() < every {
            return;
        }
        lane.checked_at = Instant::now();
        let (store, internal) = (Arc::clone(&self.worker.store), self.internal.clone());
        let (epoch, activity) = (lane.epoch, lane.activity);
        tokio::spawn(async move {
            match store.positions(index).await {
                Ok(positions) => {
                    let _ = internal.send(Internal::Checked { lane: index, epoch, activity, positions });
                }
                Err(error) => tracing::warn!(%error, "cannot compare positions with the store"),
            }
        });
    }

    fn on_checked(&mut self, index: usize, epoch: u64, activity: u64, positions: &Positions) {
        let lane = &self.lanes[index];
        if lane.epoch != epoch || lane.activity != activity || !lane.pending.is_empty() {
            return;
        }
        let differs = |(name, partition): (&TopicPartition, &Partition)| {
            let is_settled = partition.lane == index && matches!(partition.state, State::Running | State::Verifying(_));
            is_settled && positions.get(name) != Some(&partition.committed)
        };
        if self.partitions.iter().any(differs) {
            self.resync(index, "the store's positions changed while nothing was sent");
        }
    }

    // ---- the group ---------------------------------------------------------------------------------------------------

    fn on_assigned(&mut self, names: Vec<TopicPartition>) {
        tracing::info!(partitions = ?names, "assigned");
        metrics::counter!(names::REBALANCES, "change" => "assigned").increment(names.len() as u64);
        let lanes = self.lanes.len();
        let mut by_lane: BTreeMap<usize, Vec<TopicPartition>> = BTreeMap::new();
        for name in names {
            let lane = name.lane(lanes);
            self.partitions.insert(name.clone(), Partition::new(lane));
            by_lane.entry(lane).or_default().push(name);
        }
        for (lane, names) in by_lane {
            // A lane that resyncs reads the positions anyway, and its view covers the new partitions.
            if self.lanes[lane].batches.is_some() {
                self.look_again(lane, names);
            }
        }
    }

    fn on_revoked(&mut self, names: Vec<TopicPartition>, lost: bool) {
        tracing::info!(partitions = ?names, lost, "revoked");
        let change = if lost { "lost" } else { "revoked" };
        metrics::counter!(names::REBALANCES, "change" => change).increment(names.len() as u64);
        if lost {
            self.driver.send(Command::Release(names.clone()));
            self.forget(&names);
            return;
        }
        self.leave(names);
    }

    fn leave(&mut self, names: Vec<TopicPartition>) {
        for name in &names {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.is_leaving = true;
            }
        }
        let deadline = Instant::now() + Duration::from_millis(self.worker.config.drain_timeout_ms);
        match &mut self.leaving {
            Some(leaving) => leaving.partitions.extend(names),
            None => self.leaving = Some(Leaving { partitions: names, deadline }),
        }
        for lane in 0..self.lanes.len() {
            self.cut_if_due(lane);
        }
        self.leave_if_drained();
    }

    fn leave_if_drained(&mut self) {
        let Some(leaving) = &self.leaving else { return };
        let is_drained = |name: &TopicPartition| {
            self.partitions
                .get(name)
                .is_none_or(|partition| partition.is_drained() || !matches!(partition.state, State::Running))
        };
        let is_late = Instant::now() >= leaving.deadline;
        if !is_late && !leaving.partitions.iter().all(is_drained) {
            return;
        }
        if is_late {
            tracing::warn!("what was in flight did not end in time; whoever comes next reads it again");
        }
        let names = self.leaving.take().map(|leaving| leaving.partitions).unwrap_or_default();
        self.mark(&names);
        if !self.is_draining {
            self.driver.send(Command::Release(names.clone()));
            self.forget(&names);
        }
    }

    fn forget(&mut self, names: &[TopicPartition]) {
        for name in names {
            if let Some(partition) = self.partitions.remove(name) {
                let lane = &mut self.lanes[partition.lane];
                lane.pending.retain(|(part, _)| part.records.partition != *name);
                lane.pending_events = lane.pending.iter().map(|(part, _)| part.records.len()).sum();
                lane.pending_bytes = lane.pending.iter().map(|(part, _)| part.records.bytes()).sum();
            }
            self.worker.status.clear(&name.to_string());
            for (gauge, value) in [(names::POSITION, 0.0), (names::LAG_RECORDS, 0.0), (names::LAG_SECONDS, 0.0)] {
                gauge_of(gauge, name).set(value);
            }
        }
    }

    fn marks(&self, names: &[TopicPartition]) -> Vec<Mark> {
        let mark = |name: &TopicPartition| {
            let partition = self.partitions.get(name)?;
            let start = *self.starts.get(name)?;
            let is_known = partition.is_open || partition.committed.last.is_some();
            let is_new = partition.marked != Some(partition.committed.position);
            (is_known && is_new).then(|| Mark {
                partition: name.clone(),
                position: partition.committed.position,
                note: self.starter.note(start),
            })
        };
        names.iter().filter_map(mark).collect()
    }

    /// Commits stored positions to the broker, for lag tools.
    fn mark(&mut self, names: &[TopicPartition]) {
        let marks = self.marks(names);
        if marks.is_empty() {
            return;
        }
        for mark in &marks {
            if let Some(partition) = self.partitions.get_mut(&mark.partition) {
                partition.marked = Some(mark.position);
            }
        }
        self.driver.send(Command::Commit(marks));
    }

    // ---- time --------------------------------------------------------------------------------------------------------

    fn on_tick(&mut self) -> Result<(), WorkerError> {
        for lane in 0..self.lanes.len() {
            self.cut_if_due(lane);
            self.check_positions(lane);
            if self.lanes[lane].down_since.is_some_and(|since| since.elapsed() >= UNREADY_AFTER) {
                self.worker.status.obstruct(&lane_name(lane), "cannot commit to the store");
            }
        }
        self.leave_if_drained();
        if self.marked_at.elapsed() >= Duration::from_millis(self.worker.config.broker_commit_ms) {
            self.marked_at = Instant::now();
            let names: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
            self.mark(&names);
        }
        if self.status_at.elapsed() >= STATUS_EVERY {
            self.status_at = Instant::now();
            self.publish_status();
        }
        Ok(())
    }

    fn publish_status(&self) {
        let now_ms = (self.worker.now_ms)();
        let mut statuses = BTreeMap::new();
        for (name, partition) in &self.partitions {
            let position = partition.committed.position;
            let lag_records = (partition.end - position).max(0);
            let seen_ms = partition.committed.last.map_or(now_ms, |last| last.timestamp_ms);
            let lag_seconds = if lag_records > 0 { (now_ms - seen_ms).max(0) as f64 / 1000.0 } else { 0.0 };
            let (state, reason) = match &partition.state {
                State::Waiting | State::Opening | State::Verifying(_) => ("opening", None),
                State::Running => ("running", None),
                State::Stopped(reason) => ("stopped", Some(reason.clone())),
            };
            gauge_of(names::POSITION, name).set(position as f64);
            gauge_of(names::LAG_RECORDS, name).set(lag_records as f64);
            gauge_of(names::LAG_SECONDS, name).set(lag_seconds);
            statuses.insert(
                name.clone(),
                PartitionStatus {
                    topic: name.topic.to_string(),
                    partition: name.partition,
                    state,
                    position,
                    end: partition.end,
                    lag_records,
                    lag_seconds,
                    reason,
                },
            );
        }
        let stopped = statuses.values().filter(|status| status.reason.is_some()).count();
        metrics::gauge!(names::PARTITIONS).set(statuses.len() as f64);
        metrics::gauge!(names::PARTITIONS_STOPPED).set(stopped as f64);
        self.worker.status.set_partitions(statuses);
    }

    // ---- the end -----------------------------------------------------------------------------------------------------

    fn drain(&mut self) {
        tracing::info!("draining");
        self.is_draining = true;
        self.worker.status.obstruct("worker", "draining");
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

/// Connects to a lane and reads its positions; tries until it can, or until a person must act.
async fn connect(starter: Starter, internal: mpsc::UnboundedSender<Internal>, lane: usize, epoch: u64, wait: Duration) {
    let mut backoff = Backoff::default();
    tokio::time::sleep(wait).await;
    loop {
        match view(&starter, lane, epoch).await {
            Ok(view) => return drop(internal.send(Internal::View(view))),
            Err(NotStarted::Stop(text)) => return drop(internal.send(Internal::Stop(text))),
            Err(NotStarted::Retry(text)) => {
                tracing::warn!(lane, text, "cannot start counting yet");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn view(starter: &Starter, lane: usize, epoch: u64) -> Result<View, NotStarted> {
    let meta = starter.establish().await?;
    let mut session = starter.store.session(lane).await?;
    let positions = session.positions().await?;
    Ok(View { lane, epoch, meta, positions, session: Some(session) })
}

async fn adopt(starter: &Starter, lane: usize, partitions: &[TopicPartition]) -> Result<(Meta, Positions), NotStarted> {
    let mut meta = starter.establish().await?;
    let new: Vec<TopicPartition> =
        partitions.iter().filter(|partition| !meta.starts.contains_key(partition)).cloned().collect();
    if !new.is_empty() {
        let asked = new.clone();
        let lows = starter.driver.ask(move |consumer| consumer.starts(Start::Earliest, &asked)).await?;
        let starts: Vec<(TopicPartition, i64)> = new.into_iter().zip(lows).collect();
        starter.store.adopt(&starts).await?;
        meta.starts.extend(starts);
    }
    Ok((meta, starter.store.positions(lane).await?))
}

fn fence_label(from: Option<i64>, stored: Option<Checkpoint>) -> &'static str {
    match (from, stored.map(|stored| stored.position)) {
        (_, None) => "absent",
        (Some(from), Some(stored)) if stored > from => "ahead",
        (Some(from), Some(stored)) if stored < from => "behind",
        _ => "unchanged",
    }
}

fn lane_name(lane: usize) -> String {
    format!("lane {lane}")
}

fn gauge_of(name: &'static str, partition: &TopicPartition) -> metrics::Gauge {
    metrics::gauge!(name, "topic" => partition.topic.to_string(), "partition" => partition.partition.to_string())
}
