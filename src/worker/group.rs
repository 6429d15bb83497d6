//! Partitions come and go; what is shown of them; what the broker is told.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::Command;
use super::partition::{Partition, State};
use super::pulse::Who;
use super::run::{Leaving, Loop, UNREADY_AFTER, WorkerError, lane_name};
use super::status::PartitionStatus;
use crate::broker::Mark;
use crate::model::TopicPartition;
use crate::telemetry::names;

const STATUS_EVERY: Duration = Duration::from_secs(1);
/// The loop waits for nobody: a tick comes every 10 ms, on a machine that is overloaded within
/// seconds.
const TICK_MAX: Duration = Duration::from_secs(60);
/// Positions are committed to the broker again now and then even if they have not moved: a commit that met a rebalance may be gone
/// without a word, and the broker forgets offsets that nobody renews.
const MARK_ALL_EVERY: Duration = Duration::from_secs(5);
/// What is given back to the group is drained for no longer, whatever `worker.drain_timeout_ms`
/// says: the group waits for a member for its rebalance timeout (15 s by default), and shuts it
/// out after that.
const REVOKE_DRAIN_MAX_MS: u64 = 10_000;

impl Loop {
    pub(super) fn on_assigned(&mut self, names: Vec<TopicPartition>) {
        tracing::info!(partitions = ?names, "assigned");
        metrics::counter!(names::REBALANCES, "change" => "assigned").increment(names.len() as u64);
        // One that was lost and offered again at once may be offered twice, the second time when it has been read already.
        self.forget(&names);
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

    pub(super) fn on_revoked(&mut self, names: Vec<TopicPartition>, lost: bool) {
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

    pub(super) fn leave(&mut self, names: Vec<TopicPartition>) {
        for name in &names {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.is_leaving = true;
            }
        }
        let stop_ms = self.worker.config.drain_timeout_ms;
        let drain_ms = if self.is_draining { stop_ms } else { stop_ms.min(REVOKE_DRAIN_MAX_MS) };
        let deadline = Instant::now() + Duration::from_millis(drain_ms);
        match &mut self.leaving {
            Some(leaving) => leaving.partitions.extend(names),
            None => self.leaving = Some(Leaving { partitions: names, deadline }),
        }
        for lane in 0..self.lanes.len() {
            self.cut_if_due(lane);
        }
        self.leave_if_drained();
    }

    pub(super) fn leave_if_drained(&mut self) {
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
        if self.is_draining {
            // What was read and is not counted; whoever comes next reads it again.
            let unfinished: i64 = self.partitions.values().map(Partition::unfinished).sum();
            tracing::info!(records = self.worker.status.records(), unfinished, "drained");
        } else {
            self.driver.send(Command::Release(names.clone()));
            self.forget(&names);
        }
    }

    pub(super) fn forget(&mut self, names: &[TopicPartition]) {
        for name in names {
            if let Some(partition) = self.partitions.remove(name) {
                self.lanes[partition.lane].pending.forget(name);
            }
            self.worker.status.forget(name);
        }
    }

    pub(super) fn marks(&self, names: &[TopicPartition]) -> Vec<Mark> {
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
    pub(super) fn mark(&mut self, names: &[TopicPartition]) {
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

    pub(super) fn on_tick(&mut self) -> Result<(), WorkerError> {
        if !self.is_draining {
            self.worker.status.pulse.expect(Who::Loop, TICK_MAX);
        }
        for lane in 0..self.lanes.len() {
            self.cut_if_due(lane);
            self.check_positions(lane);
            if let Some(down) = self.lanes[lane].down.as_ref().filter(|down| down.since.elapsed() >= UNREADY_AFTER) {
                let text = format!("cannot commit to the store: {}", down.why);
                self.worker.status.obstruct(&lane_name(lane), &text);
            }
        }
        self.leave_if_drained();
        if self.marked_at.elapsed() >= Duration::from_millis(self.worker.config.broker_commit_ms) {
            self.marked_at = Instant::now();
            if self.marked_all_at.elapsed() >= MARK_ALL_EVERY {
                self.marked_all_at = Instant::now();
                self.partitions.values_mut().for_each(|partition| partition.marked = None);
            }
            let names: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
            self.mark(&names);
        }
        if self.status_at.elapsed() >= STATUS_EVERY {
            self.status_at = Instant::now();
            self.judge_reading();
            self.publish_status();
        }
        Ok(())
    }

    pub(super) fn publish_status(&self) {
        let now_ms = (self.worker.now_ms)();
        let mut statuses = BTreeMap::new();
        for (name, partition) in &self.partitions {
            let position = partition.committed.position;
            let lag_records = (partition.end - position).max(0);
            let seen_ms = partition.committed.last.map_or(now_ms, |last| last.timestamp_ms);
            let lag_seconds = if lag_records > 0 { (now_ms - seen_ms).max(0) as f64 / 1000.0 } else { 0.0 };
            let (state, reason) = match &partition.state {
                State::Stopped(reason) => ("stopped", Some(reason.clone())),
                _ if partition.is_unread() => ("unreadable", partition.unread.as_ref().map(|(_, why)| why.clone())),
                State::Waiting | State::Opening | State::Verifying(_) => ("opening", None),
                State::Running => ("running", None),
            };
            statuses.insert(
                name.clone(),
                PartitionStatus {
                    topic: name.topic.to_string(),
                    partition: name.partition,
                    state,
                    position,
                    end: partition.end.max(position),
                    lag_records,
                    lag_seconds,
                    reason,
                },
            );
        }
        metrics::gauge!(names::PARTITIONS).set(statuses.len() as f64);
        for (gauge, state) in [(names::PARTITIONS_STOPPED, "stopped"), (names::PARTITIONS_UNREADABLE, "unreadable")] {
            let count = statuses.values().filter(|status| status.state == state).count();
            metrics::gauge!(gauge).set(count as f64);
        }
        self.worker.status.set_partitions(statuses);
    }
}
