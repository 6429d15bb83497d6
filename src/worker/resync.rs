//! The one rule for every doubt: go back to the stored positions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::config::OnLogGap;
use super::driver::{Command, Open};
use super::lane::{DEAD_LETTERS, LaneSender};
use super::partition::{Partition, State};
use super::run::{Down, Internal, Loop, View, WorkerError, lane_name};
use super::start::{NotStarted, Starter};
use crate::broker::{BrokerError, Start};
use crate::model::{Checkpoint, TopicPartition};
use crate::store::{Positions, StoreResult};
use crate::telemetry::names;

/// Attempts to begin with new partitions before all of the lane is in doubt.
const ADOPT_TRIES: usize = 4;
/// How long new partitions wait whose broker does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Loop {
    pub(super) fn resync(&mut self, index: usize, why: &str) {
        let lane = &mut self.lanes[index];
        lane.epoch += 1;
        self.pool.set_epoch(index, lane.epoch);
        lane.clear();
        // Whoever said so is gone; the next dead letter will say it again.
        self.worker.status.clear(DEAD_LETTERS);
        let wait = if lane.epoch == 1 { Duration::ZERO } else { lane.backoff.next() };
        if lane.epoch > 1 {
            metrics::counter!(names::RESYNCS).increment(1);
            tracing::warn!(lane = index, why, "going back to the stored positions");
        }
        let since = lane.down.as_ref().map_or_else(Instant::now, |down| down.since);
        lane.down = Some(Down { since, why: why.to_owned() });
        for partition in self.partitions.values_mut().filter(|partition| partition.lane == index) {
            if !matches!(partition.state, State::Stopped(_)) {
                partition.state = State::Waiting;
            }
        }
        let (starter, internal, epoch) = (self.starter.clone(), self.internal.clone(), lane.epoch);
        lane.tasks.push(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let attempt = || view(&starter, index, epoch);
            send_view(&internal, index, "cannot start counting yet", usize::MAX, attempt).await;
        }));
    }

    pub(super) fn on_internal(&mut self, internal: Internal) -> Result<(), WorkerError> {
        match internal {
            Internal::View(view) => self.on_view(*view),
            Internal::Waiting { lane, why } => {
                if let Some(down) = &mut self.lanes[lane].down {
                    down.why = why;
                }
            }
            Internal::Stop(text) => return Err(WorkerError(text)),
            Internal::Checked { lane, epoch, activity, positions } => {
                self.on_checked(lane, epoch, activity, positions);
            }
            Internal::Reopen { partition, generation } => {
                // A resync in between opens it by itself, from where the store stands.
                let is_due = |known: &Partition| known.generation == generation && known.state == State::Opening;
                if self.partitions.get(&partition).is_some_and(is_due) {
                    self.open(vec![partition]);
                }
            }
            Internal::Doubt { lane, epoch, why } => {
                if epoch == self.lanes[lane].epoch {
                    self.resync(lane, why);
                }
            }
            Internal::Skipped { partition, generation, to } => {
                if let Some(known) = self.partitions.get_mut(&partition)
                    && known.generation == generation
                    && known.state == State::Opening
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

    pub(super) fn on_view(&mut self, view: View) {
        let View { lane: index, epoch, meta, positions, session } = view;
        if epoch != self.lanes[index].epoch {
            return;
        }
        let lanes = self.lanes.len();
        self.starts.retain(|partition, _| partition.lane(lanes) != index);
        self.starts.extend(meta.starts.into_iter().filter(|(partition, _)| partition.lane(lanes) == index));
        let is_resync = session.is_some();
        if let Some(session) = session {
            let (batches, queue) = mpsc::unbounded_channel();
            let sender = LaneSender {
                lane: index,
                epoch,
                session,
                plan: Arc::clone(&self.starter.plan),
                producer: self.worker.producer.clone(),
                in_flight_max: self.worker.config.batches_in_flight,
                answers: self.answers.clone(),
                status: Arc::clone(&self.worker.status),
            };
            let lane = &mut self.lanes[index];
            lane.batches = Some(batches);
            lane.tasks.push(tokio::spawn(sender.run(queue)));
            lane.down = None;
            lane.checked_at = Instant::now();
            self.worker.status.clear(&lane_name(index));
            if !self.is_draining && self.lanes.iter().all(|lane| lane.batches.is_some()) {
                self.worker.status.clear("worker");
            }
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
        if !is_resync && !stopped.is_empty() {
            // Meta and positions were not read in one step: the store may have been emptied in between.
            return self.resync(index, "a checkpoint is missing");
        }
        for name in stopped {
            self.stop_partition(
                &name,
                format!(
                    "its checkpoint is gone from the store though its counts may be there: somebody deleted it; \
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
    pub(super) fn open(&mut self, names: Vec<TopicPartition>) {
        let mut opens = Vec::with_capacity(names.len());
        for name in names {
            let Some(partition) = self.partitions.get_mut(&name) else { continue };
            self.generation += 1;
            partition.generation = self.generation;
            partition.state = State::Opening;
            opens.push(Open { partition: name, checkpoint: partition.from, generation: partition.generation });
        }
        self.driver.send(Command::Open(opens));
    }

    pub(super) fn on_opened(
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
                partition.unopened = Some(text);
                let (internal, wait) = (self.internal.clone(), partition.backoff.next());
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
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
                let (lane, epoch) = (partition.lane, self.lanes[partition.lane].epoch);
                tokio::spawn(async move {
                    let message = match store.set_position(&name, Some(from), to).await {
                        Ok(true) => Internal::Skipped { partition: name, generation, to },
                        // Somebody else moved it, or this did and the reply was lost: the store knows.
                        Ok(false) | Err(_) => Internal::Doubt { lane, epoch, why: "a position could not be moved" },
                    };
                    let _ = internal.send(message);
                });
            }
            Err(reason) => self.stop_partition(&name, reason),
        }
        Ok(())
    }

    /// Partitions that appeared after the first start begin at their first record.
    pub(super) fn look_again(&mut self, lane: usize, unknown: Vec<TopicPartition>) {
        let (starter, internal, epoch) = (self.starter.clone(), self.internal.clone(), self.lanes[lane].epoch);
        self.lanes[lane].tasks.push(tokio::spawn(async move {
            let attempt = || adopt(&starter, lane, epoch, &unknown);
            if !send_view(&internal, lane, "cannot begin with new partitions yet", ADOPT_TRIES, attempt).await {
                // The lane may have lost what it stood on, and nobody else would notice while it has nothing to commit.
                let _ = internal.send(Internal::Doubt { lane, epoch, why: "new partitions cannot begin" });
            }
        }));
    }

    pub(super) fn stop_partition(&mut self, name: &TopicPartition, reason: String) {
        tracing::error!(partition = %name, reason, "partition stopped");
        self.worker.status.obstruct(&name.to_string(), &reason);
        self.driver.send(Command::Halt(name.clone()));
        if let Some(partition) = self.partitions.get_mut(name) {
            partition.state = State::Stopped(reason);
        }
    }

    /// An idle worker must notice too when the store rolls back.
    pub(super) fn check_positions(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let every = Duration::from_millis(self.worker.config.position_check_ms);
        if lane.batches.is_none()
            || lane.jobs > 0
            || !lane.pending.parts.is_empty()
            || lane.checked_at.elapsed() < every
            || lane.check.as_ref().is_some_and(|check| !check.is_finished())
        {
            return;
        }
        lane.checked_at = Instant::now();
        let (store, internal) = (Arc::clone(&self.worker.store), self.internal.clone());
        let (epoch, activity) = (lane.epoch, lane.activity);
        lane.check = Some(tokio::spawn(async move {
            let positions = store.positions(index).await;
            let _ = internal.send(Internal::Checked { lane: index, epoch, activity, positions });
        }));
    }

    pub(super) fn on_checked(&mut self, index: usize, epoch: u64, activity: u64, positions: StoreResult<Positions>) {
        let lane = &self.lanes[index];
        if lane.epoch != epoch || lane.activity != activity || !lane.pending.parts.is_empty() {
            return;
        }
        let positions = match positions {
            Ok(positions) => positions,
            // With nothing to commit this is how it is found out that the store cannot be reached.
            Err(error) => {
                metrics::counter!(names::STORE_ERRORS, "class" => error.class()).increment(1);
                return self.resync(index, &error.to_string());
            }
        };
        let differs = |(name, partition): (&TopicPartition, &Partition)| {
            let is_settled = partition.lane == index && matches!(partition.state, State::Running | State::Verifying(_));
            is_settled && positions.get(name) != Some(&partition.committed)
        };
        if self.partitions.iter().any(differs) {
            self.resync(index, "the store's positions changed while nothing was sent");
        }
    }
}

/// Sends what an attempt finds, or that a person must act; `false` after so many tries without either.
async fn send_view<F>(
    internal: &mpsc::UnboundedSender<Internal>,
    lane: usize,
    complaint: &str,
    tries: usize,
    attempt: impl Fn() -> F,
) -> bool
where
    F: Future<Output = Result<View, NotStarted>>,
{
    let mut backoff = Backoff::default();
    for _ in 0..tries {
        let found = match attempt().await {
            Ok(view) => Internal::View(Box::new(view)),
            Err(NotStarted::Stop(text)) => Internal::Stop(text),
            Err(NotStarted::Retry(text)) => {
                tracing::warn!(lane, text, "{complaint}");
                let _ = internal.send(Internal::Waiting { lane, why: text });
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        // A loop that is gone needs no answer.
        let _ = internal.send(found);
        return true;
    }
    false
}

/// Connects to a lane and reads its positions.
async fn view(starter: &Starter, lane: usize, epoch: u64) -> Result<View, NotStarted> {
    starter.store.disconnect().await;
    starter.establish().await?;
    let mut session = starter.store.session(lane).await?;
    // The store may have been emptied since, and begun anew by somebody else.
    let Some((meta, positions)) = session.stored().await? else {
        starter.begin_again(lane).await?;
        return Err(NotStarted::Retry(format!("{}: was empty", lane_name(lane))));
    };
    let meta = starter.accept(meta)?;
    Ok(View { lane, epoch, meta, positions, session: Some(session) })
}

/// Reads the positions of new partitions, which begin at their first record. One whose broker does not answer is left out: it will be
/// asked for again, and is no doubt of the lane.
async fn adopt(starter: &Starter, lane: usize, epoch: u64, partitions: &[TopicPartition]) -> Result<View, NotStarted> {
    let mut meta = starter.establish().await?;
    let known = starter.store.positions(lane).await?;
    let mut starts = Vec::new();
    let mut silent = None;
    for partition in partitions.iter().filter(|partition| !known.contains_key(partition)) {
        let asked = [partition.clone()];
        let low = match starter.driver.ask(move |consumer| consumer.starts(Start::Earliest, &asked)).await {
            Ok(lows) => lows[0],
            Err(BrokerError::Retry(text)) => {
                silent = Some(text);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // A partition that others know of may have been lost by its lane, with all that was counted of it.
        starts.push((partition.clone(), meta.starts.get(partition).copied().unwrap_or(low)));
    }
    if let Some(text) = silent {
        tracing::warn!(lane, text, "cannot begin with new partitions yet");
        if starts.is_empty() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    starter.store.adopt(&starts).await?;
    meta.starts.extend(starts);
    let positions = starter.store.positions(lane).await?;
    Ok(View { lane, epoch, meta, positions, session: None })
}
