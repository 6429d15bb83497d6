//! The loop of a worker.
//!
//! Records come from the driver, are gathered per lane, folded by the pool, put back in order and
//! sent by the lane's task. Whatever is in doubt (a fence, an error, a timeout, a lost connection)
//! is settled one way: the lane's session and batches are thrown away, the stored positions are
//! read, and every partition of the lane that is still ours goes on from there.
//!
//! What is known of partitions and lanes, and the rules for both, are in [`Partitions`] and
//! [`Lane`], which return what is to be done. This is where it is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::budget::{Budget, Permit};
use super::config::Config;
use super::driver::{Command, Driver, Notice};
use super::execution::Execution;
use super::lane::{Cutting, Lane, Turn};
use super::ledger::{Cause, LedgerError, LedgerResult, Outcome};
use super::partitions::{Effect, Partitions, Taken};
use super::pool::{BudgetedPart, Done, Job, Pool};
use super::projection::{Header, Observed, Projection};
use super::pulse::Who;
use super::repeats::Repeats;
use super::resync::{self, Skip, View};
use super::sender::{Committed, DeadLetters, LaneSender};
use super::start::{Starter, count_ledger_error, note_of};
use super::status::{Obstacle, Status};
use crate::names;
use traqq_core::model::{Checkpoint, Positions, RecordBatch, TopicPartition};
use traqq_log::{BrokerError, Consumer, Event, Start};

/// Notices waiting for the loop; their records are bounded in bytes by the budget.
const NOTICES_MAX: usize = 256;
const TICK: Duration = Duration::from_millis(10);
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A lane that cannot commit, or a log that cannot be reached, for this long makes the worker
/// unready.
const UNREADY_AFTER: Duration = Duration::from_secs(3);
/// The loop waits for nobody: a tick comes every 10 ms, on a machine that is overloaded within
/// seconds.
const TICK_MAX: Duration = Duration::from_secs(60);
/// Positions are committed to the broker again now and then even if they have not moved: a commit
/// that met a rebalance may be gone without a word, and the broker forgets offsets that nobody
/// renews.
const MARK_ALL_EVERY: Duration = Duration::from_secs(5);
/// What is given back to the group is drained for no longer, whatever `worker.drain_timeout_ms`
/// says: the group waits for a member for its rebalance timeout (15 s by default), and shuts it
/// out after that.
const REVOKE_DRAIN_MAX_MS: u64 = 10_000;

/// Everything a worker is made of.
pub struct Worker<P: Projection> {
    pub config: Config,
    pub projection: Arc<P>,
    /// The consumer group, for messages.
    pub group: String,
    /// Where reading begins on an empty ledger.
    pub start: Start,
    pub consumer: Box<dyn Consumer>,
    pub dead_letters: DeadLetters,
    pub status: Arc<Status>,
    /// Turns true when the worker is to drain and stop.
    pub shutdown: watch::Receiver<bool>,
    /// The clock, in epoch milliseconds; lag in seconds is measured by it and nothing else is.
    pub now_ms: fn() -> i64,
    pub execution: Execution,
}

/// An operator must act; the text says how.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WorkerError(#[from] pub Cause);

/// What tasks of the loop tell it.
pub enum Internal<P: Projection> {
    /// Why a lane still has no view.
    Waiting {
        lane: usize,
        why: String,
    },
    View(Box<View<P>>),
    Stop(Cause),
    /// An idle lane's positions, as the ledger has them.
    Checked {
        lane: usize,
        token: (u64, u64),
        positions: LedgerResult<Positions>,
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

/// What runs for a lane: its session's task, and questions to the ledger.
struct Running<B> {
    /// `None` while the lane resyncs.
    batches: Option<mpsc::UnboundedSender<Turn<B>>>,
    tasks: Vec<JoinHandle<()>>,
    /// The comparison of positions that was begun last.
    check: Option<JoinHandle<()>>,
}

impl<B> Running<B> {
    const fn new() -> Self {
        Self { batches: None, tasks: Vec::new(), check: None }
    }

    fn stop(&mut self) {
        self.batches = None;
        self.tasks.drain(..).for_each(|task| task.abort());
    }

    fn is_checking(&self) -> bool {
        self.check.as_ref().is_some_and(|check| !check.is_finished())
    }
}

/// Partitions to be given back once what is in flight is done.
struct Leaving {
    partitions: Vec<TopicPartition>,
    deadline: Instant,
}

struct Loop<P: Projection> {
    config: Config,
    projection: Arc<P>,
    dead_letters: DeadLetters,
    status: Arc<Status>,
    now_ms: fn() -> i64,
    driver: Driver,
    starter: Starter<P>,
    pool: Pool<P>,
    cutting: Cutting,
    folded: Arc<Budget>,
    lanes: Vec<Lane<P::Batch>>,
    running: Vec<Running<P::Batch>>,
    partitions: Partitions,
    leaving: Option<Leaving>,
    /// Whether partitions are leaving, for the lanes' tasks.
    hurry: watch::Sender<bool>,
    answers: mpsc::UnboundedSender<Committed<P>>,
    internal: mpsc::UnboundedSender<Internal<P>>,
    marked_at: Instant,
    marked_all_at: Instant,
    /// Since when the log cannot be read at all.
    away_since: Option<Instant>,
    troubles: Repeats,
    status_at: Instant,
    is_draining: bool,
}

impl<P: Projection> Worker<P> {
    /// Reads, folds and commits until it is told to stop, or until an operator must act.
    pub async fn run(self) -> Result<(), WorkerError> {
        self.config.check().map_err(Cause::from)?;
        let Self {
            mut config,
            projection,
            group,
            start,
            consumer,
            dead_letters,
            status,
            mut shutdown,
            now_ms,
            execution,
        } = self;
        // Once: to ask the system takes longer than to cut a batch.
        config.fold_threads = config.threads();
        let budget = Budget::new(P::NAME, config.in_flight_bytes_max());
        let (notices_in, mut notices) = mpsc::channel(NOTICES_MAX);
        let (done_in, mut done) = mpsc::unbounded_channel();
        let (answers, mut committed) = mpsc::unbounded_channel();
        let (internal_in, mut internal) = mpsc::unbounded_channel();
        let driver = Driver::start(consumer, Arc::clone(&budget), notices_in, execution, Arc::clone(&status));
        let lanes = projection.ledger().lanes();
        let folded = Budget::part_of(&budget, config.folded_bytes_max());
        let pool = Pool::start(projection.as_ref(), &config, lanes, &folded, &done_in, execution);
        let mut policy = projection.cut_policy(&config);
        policy.bytes_max = policy.bytes_max.min(config.batch_bytes_max());
        let cutting = Cutting { policy, fold_threads: config.threads(), folded_bytes_max: config.expected_bytes_max() };
        let ledger_name = projection.ledger_name().to_owned();
        let note = move |start| note_of(&ledger_name, start);
        let starter = Starter {
            projection: Arc::clone(&projection),
            driver: driver.clone(),
            group,
            start,
            on_empty_store: config.on_empty_store,
            now_ms,
        };
        let mut this = Loop {
            partitions: Partitions::new(lanes, config.on_log_gap, projection.remedies(), note),
            config,
            projection,
            dead_letters,
            status,
            now_ms,
            driver,
            starter,
            pool,
            cutting,
            folded,
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            running: (0..lanes).map(|_| Running::new()).collect(),
            leaving: None,
            hurry: watch::Sender::new(false),
            answers,
            internal: internal_in,
            marked_at: Instant::now(),
            marked_all_at: Instant::now(),
            away_since: None,
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
            // Cancel safety: receiving from a channel, waiting for a tick and watching a flag lose
            // nothing when another branch wins; every branch deals with what it took at once and
            // without waiting. What is rare comes first, then what ends something before what
            // begins something.
            let step = tokio::select! {
                biased;
                changed = shutdown.changed(), if !this.is_draining => {
                    if changed.is_err() || *shutdown.borrow() {
                        this.drain()
                    } else {
                        Ok(())
                    }
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

type Step = Result<(), WorkerError>;

impl<P: Projection> Loop<P> {
    fn on_notice(&mut self, notice: Notice) -> Step {
        match notice {
            Notice::Event(Event::Records(records), permit) => return self.on_records(records, permit),
            Notice::Event(Event::Assigned(partitions), _) => self.on_assigned(partitions),
            Notice::Event(Event::Revoked { partitions, lost }, _) => return self.on_revoked(partitions, lost),
            Notice::Event(Event::OutOfRange, _) => {
                for lane in 0..self.lanes.len() {
                    self.resync(lane, "an offset is out of the log's range");
                }
            }
            Notice::Event(Event::CommitFailed(text), _) => {
                // A rebalance refuses commits; the next round sends them again.
                tracing::debug!(text, "commit to the broker");
                self.partitions.commit_again();
            }
            Notice::Event(Event::Trouble(text), _) => self.on_trouble(&text),
            Notice::Failed(BrokerError::Retry(line)) => {
                self.on_trouble(line.text());
                self.on_away(Some(line.to_string()));
            }
            Notice::Opened { partition, generation, result } => {
                let effects = self.partitions.opened(&partition, generation, result);
                return self.execute(effects);
            }
            Notice::Known { ends, away, unread } => {
                self.partitions.known(ends, unread);
                self.on_away(away);
            }
            Notice::Failed(error @ BrokerError::Stop(_)) => return Err(WorkerError(error.into())),
        }
        Ok(())
    }

    fn on_records(&mut self, records: RecordBatch, permit: Option<Permit>) -> Step {
        match self.partitions.arrived(records) {
            Taken::Nothing(effects) => self.execute(effects),
            Taken::Part { lane, part, effects } => {
                let permit = permit.expect("records come with a permit");
                self.lanes[lane].push(BudgetedPart::new(part, permit));
                self.cut_if_due(lane);
                self.execute(effects)
            }
        }
    }

    fn on_assigned(&mut self, names: Vec<TopicPartition>) {
        tracing::info!(partitions = ?names, projection = P::NAME, "assigned");
        self.count_rebalance("assigned", names.len());
        // One that was lost and offered again at once may be offered twice, the second time when it
        // has been read already.
        self.forget(&names);
        for (lane, names) in self.partitions.assigned(names) {
            // A lane that resyncs reads the positions anyway, and its view covers the new
            // partitions.
            if self.lanes[lane].is_connected() {
                self.adopt(lane, names);
            }
        }
    }

    fn on_revoked(&mut self, names: Vec<TopicPartition>, lost: bool) -> Step {
        tracing::info!(partitions = ?names, lost, projection = P::NAME, "revoked");
        self.count_rebalance(if lost { "lost" } else { "revoked" }, names.len());
        if lost {
            self.driver.send(Command::Release(names.clone()));
            self.forget(&names);
            return Ok(());
        }
        self.leave(names)
    }

    fn count_rebalance(&self, change: &'static str, partitions: usize) {
        let counter = metrics::counter!(names::REBALANCES, "change" => change, "projection" => P::NAME);
        counter.increment(partitions as u64);
    }

    fn on_trouble(&mut self, text: &str) {
        metrics::counter!(names::BROKER_ERRORS, "projection" => P::NAME).increment(1);
        if let Some(kept_back) = self.troubles.hear(text) {
            tracing::warn!(text, kept_back, projection = P::NAME, "broker");
        }
    }

    /// A log that cannot be reached for a while makes the worker unready; a leader that moves does
    /// not.
    fn on_away(&mut self, away: Option<String>) {
        let Some(why) = away else {
            self.away_since = None;
            return self.status.clear(&Obstacle::Broker);
        };
        if self.away_since.get_or_insert_with(Instant::now).elapsed() >= UNREADY_AFTER {
            self.status.obstruct(Obstacle::Broker, &why);
        }
    }

    /// Sends a job to the fold threads if one is due.
    fn cut_if_due(&mut self, lane: usize) {
        let folded = &self.folded;
        let has_room = || folded.room(Duration::ZERO) > 0;
        let Some(cut) = self.lanes[lane].cut(&self.cutting, has_room, self.leaving.is_some()) else { return };
        let expected = self.folded.take(cut.folded_bytes);
        self.pool.submit(Job { lane, epoch: cut.epoch, sequence: cut.sequence, parts: cut.parts, expected });
    }

    fn on_folded(&mut self, done: Done<P::Batch>) -> Step {
        let Some(folded) = done.folded else {
            return Err(WorkerError(
                "folding a batch panicked; this is a bug, please report it with the log above".into(),
            ));
        };
        let turns = self.lanes[done.lane].folded(done.epoch, done.sequence, folded);
        if let Some(batches) = &self.running[done.lane].batches {
            // A sender that is gone has left an answer that leads to a resync.
            turns.into_iter().for_each(|turn| _ = batches.send(turn));
        }
        self.cut_if_due(done.lane);
        Ok(())
    }

    fn on_committed(&mut self, committed: Committed<P>) -> Step {
        let Committed { lane, epoch, ranges, intake, stats, dead_letters, is_last, latency, result } = committed;
        if !self.lanes[lane].is_current(epoch) {
            return Ok(());
        }
        let report = match result {
            Ok(Outcome::Applied(report)) => report,
            Ok(Outcome::Fenced(stored)) => {
                for (partition, stored) in stored {
                    let from =
                        ranges.iter().find(|range| range.partition == partition).map(|range| range.from.position);
                    count_fence::<P>(fence_label(from, stored));
                }
                self.resync(lane, "a batch was fenced off");
                return Ok(());
            }
            Ok(Outcome::Stale(stale)) => {
                count_fence::<P>(stale.what);
                self.resync(lane, stale.why);
                return Ok(());
            }
            Err(error) => {
                count_ledger_error::<P>(&error);
                if let LedgerError::Stop(cause) = error {
                    return Err(WorkerError(cause));
                }
                self.resync(lane, &error.to_string());
                return Ok(());
            }
        };
        metrics::histogram!(names::COMMIT_SECONDS, "projection" => P::NAME).record(latency.as_secs_f64());
        stats.log();
        report.log();
        let observed = stats.numbers().into_iter().chain(report.numbers());
        self.status.applied(intake, observed, dead_letters, self.dead_letters.metric(), (self.now_ms)());
        self.partitions.applied(&ranges);
        self.lanes[lane].applied(is_last);
        self.cut_if_due(lane);
        self.leave_if_drained()
    }

    /// Whatever is in doubt: nothing of what is under way counts any more, and the ledger is asked.
    fn resync(&mut self, lane: usize, why: &str) {
        let (epoch, wait) = self.lanes[lane].desync(why);
        self.pool.set_epoch(lane, epoch);
        self.running[lane].stop();
        // Whoever said so is gone; the next dead letter will say it again.
        self.status.clear(&Obstacle::DeadLetters);
        if !self.lanes[lane].is_first_epoch() {
            metrics::counter!(names::RESYNCS, "projection" => P::NAME).increment(1);
            tracing::warn!(lane, why, projection = P::NAME, "going back to the stored positions");
        }
        self.partitions.desynced(lane);
        let task = resync::resync(self.starter.clone(), self.internal.clone(), lane, epoch, wait);
        self.running[lane].tasks.push(tokio::spawn(task));
    }

    fn adopt(&mut self, lane: usize, partitions: Vec<TopicPartition>) {
        let epoch = self.lanes[lane].epoch();
        let task = resync::adopt(self.starter.clone(), self.internal.clone(), lane, epoch, partitions);
        self.running[lane].tasks.push(tokio::spawn(task));
    }

    fn on_internal(&mut self, internal: Internal<P>) -> Step {
        match internal {
            Internal::View(view) => return self.on_view(*view),
            Internal::Waiting { lane, why } => self.lanes[lane].waits(why),
            Internal::Stop(cause) => return Err(WorkerError(cause)),
            Internal::Checked { lane, token, positions } => self.on_checked(lane, token, positions),
            Internal::Reopen { partition, generation } => {
                let effect = self.partitions.open_again(partition, generation);
                return self.execute(effect);
            }
            Internal::Doubt { lane, epoch, why } => {
                if self.lanes[lane].is_current(epoch) {
                    self.resync(lane, why);
                }
            }
            Internal::Skipped { partition, generation, to } => {
                let effects = self.partitions.skipped(partition, generation, to);
                return self.execute(effects);
            }
        }
        Ok(())
    }

    fn on_view(&mut self, view: View<P>) -> Step {
        let View { lane, epoch, mut header, positions, session } = view;
        if !self.lanes[lane].is_current(epoch) {
            return Ok(());
        }
        let is_resync = session.is_some();
        if let Some(session) = session {
            let (batches, queue) = mpsc::unbounded_channel();
            let sender = LaneSender {
                lane,
                epoch,
                session,
                projection: Arc::clone(&self.projection),
                dead_letters: self.dead_letters.clone(),
                in_flight_max: self.cutting.policy.in_flight_max,
                is_hurried: self.hurry.subscribe(),
                answers: self.answers.clone(),
                status: Arc::clone(&self.status),
            };
            self.running[lane].batches = Some(batches);
            self.running[lane].tasks.push(tokio::spawn(sender.run(queue)));
            self.lanes[lane].connected();
            self.status.clear(&Obstacle::Lane(lane));
            if !self.is_draining && self.lanes.iter().all(Lane::is_connected) {
                self.status.clear(&Obstacle::Start);
            }
        }
        let starts = std::mem::take(header.starts_mut());
        let effects = self.partitions.snapshot(lane, is_resync, starts, &positions);
        self.execute(effects)?;
        self.leave_if_drained()
    }

    /// Does what partitions have come to.
    fn execute(&mut self, effects: impl IntoIterator<Item = Effect>) -> Step {
        for effect in effects {
            match effect {
                Effect::Open(opens) => self.driver.send(Command::Open(opens)),
                Effect::OpenAgain { partition, generation, after } => {
                    let internal = self.internal.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        let _ = internal.send(Internal::Reopen { partition, generation });
                    });
                }
                Effect::Halt(partition) => self.driver.send(Command::Halt(partition)),
                Effect::Commit(marks) => self.driver.send(Command::Commit(marks)),
                Effect::Obstruct(partition, why) => self.status.obstruct(Obstacle::Partition(partition), &why),
                Effect::Clear(partition) => self.status.clear(&Obstacle::Partition(partition)),
                Effect::Stopped(partition, reason) => {
                    tracing::error!(%partition, reason, projection = P::NAME, "partition stopped");
                    self.status.obstruct(Obstacle::Partition(partition), &reason);
                }
                Effect::RolledBack { partition, stored, acknowledged } => {
                    metrics::counter!(names::ROLLBACKS, "projection" => P::NAME).increment(1);
                    tracing::error!(
                        %partition, stored, acknowledged, projection = P::NAME,
                        "the store lost what it had acknowledged; replaying from its position"
                    );
                }
                Effect::Unverified { partition, offset, why } => {
                    tracing::info!(%partition, offset, "the last applied record was {why}; unverified");
                }
                Effect::Unopened(partition, error) => {
                    tracing::warn!(%error, %partition, projection = P::NAME, "cannot open a partition yet");
                }
                Effect::Skip { partition, lane, generation, from, to } => {
                    let skip = Skip { partition, generation, lane, epoch: self.lanes[lane].epoch(), from, to };
                    tokio::spawn(resync::skip(Arc::clone(&self.projection), self.internal.clone(), skip));
                }
                Effect::Skipped { partition, records } => {
                    metrics::counter!(names::RECORDS_SKIPPED, "projection" => P::NAME).increment(records);
                    tracing::warn!(%partition, skipped = records, projection = P::NAME, "went on without records that the log no longer has");
                }
                Effect::Adopt { lane, partitions } => self.adopt(lane, partitions),
                Effect::Desync { lane, why } => self.resync(lane, why),
                Effect::Fail(error) => return Err(WorkerError(error.into())),
            }
        }
        Ok(())
    }

    /// An idle worker must notice too when the ledger rolls back.
    fn check_positions(&mut self, lane: usize) {
        if self.running[lane].is_checking() {
            return;
        }
        let every = Duration::from_millis(self.config.position_check_ms);
        let Some(token) = self.lanes[lane].begin_check(every) else { return };
        let (projection, internal) = (Arc::clone(&self.projection), self.internal.clone());
        self.running[lane].check = Some(tokio::spawn(async move {
            let positions = projection.ledger().positions(lane).await;
            let _ = internal.send(Internal::Checked { lane, token, positions });
        }));
    }

    fn on_checked(&mut self, lane: usize, token: (u64, u64), positions: LedgerResult<Positions>) {
        if !self.lanes[lane].is_as_it_was(token) {
            return;
        }
        match positions {
            Ok(positions) if self.partitions.agree_with(lane, &positions) => {}
            Ok(_) => self.resync(lane, "the store's positions changed while nothing was sent"),
            // With nothing to commit this is how it is found out that the ledger cannot be reached.
            Err(error) => {
                count_ledger_error::<P>(&error);
                self.resync(lane, &error.to_string());
            }
        }
    }

    /// They are given back as soon as what was read of them is committed, or as it takes too long.
    fn leave(&mut self, names: Vec<TopicPartition>) -> Step {
        self.partitions.leave(&names);
        let stop_ms = self.config.drain_timeout_ms;
        let drain_ms = if self.is_draining { stop_ms } else { stop_ms.min(REVOKE_DRAIN_MAX_MS) };
        let deadline = Instant::now() + Duration::from_millis(drain_ms);
        match &mut self.leaving {
            Some(leaving) => leaving.partitions.extend(names),
            None => self.leaving = Some(Leaving { partitions: names, deadline }),
        }
        self.hurry.send_replace(true);
        for lane in 0..self.lanes.len() {
            self.cut_if_due(lane);
        }
        self.leave_if_drained()
    }

    fn leave_if_drained(&mut self) -> Step {
        let Some(leaving) = &self.leaving else { return Ok(()) };
        let is_late = Instant::now() >= leaving.deadline;
        if !is_late && !self.partitions.are_drained(&leaving.partitions) {
            return Ok(());
        }
        if is_late {
            tracing::warn!("what was in flight did not end in time; whoever comes next reads it again");
        }
        let names = self.leaving.take().map(|leaving| leaving.partitions).unwrap_or_default();
        let commit = self.partitions.commit(&names);
        self.execute(commit)?;
        if self.is_draining {
            // What was read and is not counted; whoever comes next reads it again.
            let unfinished = self.partitions.unfinished();
            tracing::info!(records = self.status.records(), unfinished, projection = P::NAME, "drained");
        } else {
            self.hurry.send_replace(false);
            self.driver.send(Command::Release(names.clone()));
            self.forget(&names);
        }
        Ok(())
    }

    fn forget(&mut self, names: &[TopicPartition]) {
        for name in names {
            if let Some(lane) = self.partitions.forget(name) {
                self.lanes[lane].forget(name);
            }
            self.status.forget(name);
        }
    }

    fn on_tick(&mut self) -> Step {
        if !self.is_draining {
            self.status.pulse.expect(Who::Loop, TICK_MAX);
        }
        for lane in 0..self.lanes.len() {
            self.cut_if_due(lane);
            self.check_positions(lane);
            if let Some(why) = self.lanes[lane].is_down(UNREADY_AFTER) {
                self.status.obstruct(Obstacle::Lane(lane), &format!("cannot commit to the store: {why}"));
            }
        }
        self.leave_if_drained()?;
        if self.marked_at.elapsed() >= Duration::from_millis(self.config.broker_commit_ms) {
            self.marked_at = Instant::now();
            if self.marked_all_at.elapsed() >= MARK_ALL_EVERY {
                self.marked_all_at = Instant::now();
                self.partitions.commit_again();
            }
            let commit = self.partitions.commit(&self.partitions.names());
            self.execute(commit)?;
        }
        if self.status_at.elapsed() >= STATUS_EVERY {
            self.status_at = Instant::now();
            let effects = self.partitions.judge(|lane| self.lanes[lane].is_connected());
            self.execute(effects)?;
            self.status.set_partitions(self.partitions.statuses((self.now_ms)()));
        }
        Ok(())
    }

    fn drain(&mut self) -> Step {
        tracing::info!(projection = P::NAME, "draining");
        self.is_draining = true;
        self.status.obstruct(Obstacle::Drain, "draining");
        self.status.clear(&Obstacle::Start);
        // It has a bound of its own.
        self.status.pulse.end();
        self.leave(self.partitions.names())
    }

    async fn close(&mut self, notices: &mut mpsc::Receiver<Notice>) {
        self.partitions.commit_again();
        let (closed, mut wait) = oneshot::channel();
        self.driver.send(Command::Close(self.partitions.marks(&self.partitions.names()), closed));
        let deadline = tokio::time::sleep(Duration::from_millis(self.config.drain_timeout_ms));
        tokio::pin!(deadline);
        loop {
            // Cancel safety: notices are only taken so that the driver, which may wait for room,
            // gets to the command.
            tokio::select! {
                _ = &mut wait => break,
                () = &mut deadline => {
                    tracing::warn!("the consumer did not leave its group in time");
                    break;
                }
                _ = notices.recv() => {}
            }
        }
        self.lanes.iter_mut().for_each(Lane::clear);
        self.running.iter_mut().for_each(Running::stop);
    }
}

fn count_fence<P: Projection>(stored: &'static str) {
    metrics::counter!(names::FENCES, "stored" => stored, "projection" => P::NAME).increment(1);
}

fn fence_label(from: Option<i64>, stored: Option<Checkpoint>) -> &'static str {
    match (from, stored.map(|stored| stored.position)) {
        (_, None) => "absent",
        (Some(from), Some(stored)) if stored > from => "ahead",
        (Some(from), Some(stored)) if stored < from => "behind",
        _ => "unchanged",
    }
}

pub fn lane_name(lane: usize) -> String {
    format!("lane {lane}")
}
