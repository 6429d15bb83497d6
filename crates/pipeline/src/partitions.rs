//! The partitions that this worker has: what is known of each, and what is to be done about it.
//!
//! Nothing here waits, sends or logs into the status by itself: what is to be done is returned as
//! [`Effect`]s, which the loop executes in order. The rules by which a partition begins, goes back
//! and stops are those of [`Cursor`].

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::config::OnLogGap;
use super::cursor::{Arrival, Cursor, Misfit, Opened, Phase};
use super::driver::Open;
use super::projection::Remedies;
use super::status::PartitionStatus;
use traqq_core::error::ErrorLine;
use traqq_core::model::{Checkpoint, Part, Positions, RecordBatch, Span, TopicPartition};
use traqq_log::{BrokerError, Mark, Watermarks};

/// A partition may be without a reader for so long before it is worth a word: its leader moves, its
/// consumer is made anew.
const UNREAD_AFTER: Duration = Duration::from_secs(10);

/// What is to be done about partitions.
#[derive(Debug)]
pub enum Effect {
    /// Read them from their checkpoints.
    Open(Vec<Open>),
    /// Ask for this opening again after a while.
    OpenAgain { partition: TopicPartition, generation: u64, after: Duration },
    /// Read it no more; it stays ours.
    Halt(TopicPartition),
    /// Commit offsets to the broker, as a hint for others.
    Commit(Vec<Mark>),
    /// The worker is not ready because of it,
    Obstruct(TopicPartition, String),
    /// or is as far as it is concerned.
    Clear(TopicPartition),
    /// It stopped until an operator acts.
    Stopped(TopicPartition, String),
    /// The ledger went back behind what it had acknowledged.
    RolledBack { partition: TopicPartition, stored: i64, acknowledged: i64 },
    /// The record that was applied last cannot be compared.
    Unverified { partition: TopicPartition, offset: i64, why: &'static str },
    /// Opening it failed for now.
    Unopened(TopicPartition, ErrorLine),
    /// Move its stored position to the log's first record, as the operator has chosen.
    Skip { partition: TopicPartition, lane: usize, generation: u64, from: Checkpoint, to: Checkpoint },
    /// So many records were passed over.
    Skipped { partition: TopicPartition, records: u64 },
    /// The ledger does not know them: begin with them.
    Adopt { lane: usize, partitions: Vec<TopicPartition> },
    /// What the lane stands on is not certain.
    Desync { lane: usize, why: &'static str },
    /// An operator must act before anything goes on.
    Fail(ErrorLine),
}

/// What became of records that arrived.
pub enum Taken {
    Part { lane: usize, part: Part, effects: Vec<Effect> },
    Nothing(Vec<Effect>),
}

#[derive(Default)]
struct Partition {
    lane: usize,
    cursor: Cursor,
    /// Whether its position was found to fit the log.
    is_open: bool,
    /// What was committed to the broker.
    marked: Option<i64>,
    /// End of the log as far as it is known.
    end: i64,
    /// Between attempts to open it.
    backoff: Backoff,
    /// Why the last attempt to open it failed.
    unopened: Option<String>,
    /// Since when it cannot be read, and why.
    unread: Option<(Instant, String)>,
    /// Why it stopped.
    stopped: Option<String>,
}

pub struct Partitions {
    lanes: usize,
    on_log_gap: OnLogGap,
    remedies: Remedies,
    /// The note that is committed beside an offset of a partition that began there.
    note: Box<dyn Fn(i64) -> String + Send>,
    partitions: BTreeMap<TopicPartition, Partition>,
    /// Where each partition began, by the ledger.
    starts: BTreeMap<TopicPartition, i64>,
    /// Partitions that are open and cannot be read, by the consumer.
    unread: BTreeMap<TopicPartition, String>,
    generation: u64,
}

impl Partitions {
    pub fn new(
        lanes: usize,
        on_log_gap: OnLogGap,
        remedies: Remedies,
        note: impl Fn(i64) -> String + Send + 'static,
    ) -> Self {
        Self {
            lanes,
            on_log_gap,
            remedies,
            note: Box::new(note),
            partitions: BTreeMap::new(),
            starts: BTreeMap::new(),
            unread: BTreeMap::new(),
            generation: 0,
        }
    }

    pub fn names(&self) -> Vec<TopicPartition> {
        self.partitions.keys().cloned().collect()
    }

    /// They are ours, and wait. Returns them by lane.
    pub fn assigned(&mut self, names: Vec<TopicPartition>) -> BTreeMap<usize, Vec<TopicPartition>> {
        let mut by_lane: BTreeMap<usize, Vec<TopicPartition>> = BTreeMap::new();
        for name in names {
            let lane = name.lane(self.lanes);
            self.partitions.insert(name.clone(), Partition { lane, ..Partition::default() });
            by_lane.entry(lane).or_default().push(name);
        }
        by_lane
    }

    /// It is not ours any more; the lane it had.
    pub fn forget(&mut self, name: &TopicPartition) -> Option<usize> {
        self.partitions.remove(name).map(|partition| partition.lane)
    }

    /// What is under way in the lane is void.
    pub fn desynced(&mut self, lane: usize) {
        self.of_lane(lane).for_each(|(_, partition)| partition.cursor.wait());
    }

    /// Takes what the ledger says of a lane: after a doubt of all its partitions, otherwise
    /// (`is_resync` false) of those that wait.
    pub fn snapshot(
        &mut self,
        lane: usize,
        is_resync: bool,
        starts: BTreeMap<TopicPartition, i64>,
        positions: &Positions,
    ) -> Vec<Effect> {
        let lanes = self.lanes;
        self.starts.retain(|partition, _| partition.lane(lanes) != lane);
        self.starts.extend(starts.into_iter().filter(|(partition, _)| partition.lane(lanes) == lane));
        let mut effects = Vec::new();
        let (mut known, mut unknown, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let starts = &self.starts;
        let waits =
            |partition: &Partition| partition.cursor.phase() == Phase::Waiting && !partition.cursor.is_leaving();
        for (name, partition) in self.partitions.iter_mut().filter(|(_, known)| known.lane == lane && waits(known)) {
            match positions.get(name) {
                Some(stored) => {
                    let before = partition.cursor.restore(*stored).filter(|_| is_resync);
                    effects.extend(before.map(|before| Effect::RolledBack {
                        partition: name.clone(),
                        stored: stored.position,
                        acknowledged: before.position,
                    }));
                    known.push(name.clone());
                }
                None if starts.contains_key(name) => lost.push(name.clone()),
                None => unknown.push(name.clone()),
            }
        }
        if !is_resync && !lost.is_empty() {
            // Header and positions were not read in one step: the ledger may have been emptied in
            // between.
            effects.push(Effect::Desync { lane, why: "a checkpoint is missing" });
            return effects;
        }
        for name in lost {
            let Remedies { begin_anew, set_position } = &self.remedies;
            let set =
                set_position.as_ref().map_or_else(String::new, |set| format!(" set one with `{set} {name} OFFSET`,"));
            let reason = format!(
                "its checkpoint is gone from the store though its counts may be there: somebody deleted it; restore it,{set} or {begin_anew}"
            );
            effects.extend(self.stop(&name, reason));
        }
        effects.extend(self.open(known));
        if !unknown.is_empty() {
            effects.push(Effect::Adopt { lane, partitions: unknown });
        }
        effects
    }

    fn open(&mut self, names: Vec<TopicPartition>) -> Option<Effect> {
        let mut opens = Vec::with_capacity(names.len());
        for name in names {
            let Some(partition) = self.partitions.get_mut(&name) else { continue };
            self.generation += 1;
            let checkpoint = partition.cursor.open(self.generation);
            opens.push(Open { partition: name, checkpoint, generation: self.generation });
        }
        (!opens.is_empty()).then_some(Effect::Open(opens))
    }

    /// The time has come that [`Effect::OpenAgain`] named. A doubt in between opens it by itself,
    /// from where the ledger stands.
    pub fn open_again(&mut self, name: TopicPartition, generation: u64) -> Option<Effect> {
        let is_due = self.partitions.get(&name).is_some_and(|known| known.cursor.is_opening(generation));
        if is_due { self.open(vec![name]) } else { None }
    }

    /// The consumer has begun to read it, or has not.
    pub fn opened(
        &mut self,
        name: &TopicPartition,
        generation: u64,
        result: Result<Watermarks, BrokerError>,
    ) -> Vec<Effect> {
        let Some(partition) = self.partitions.get_mut(name) else { return Vec::new() };
        let watermarks = match result {
            _ if !partition.cursor.is_opening(generation) => return Vec::new(),
            Ok(watermarks) => watermarks,
            Err(BrokerError::Stop(line)) => return vec![Effect::Fail(line)],
            Err(BrokerError::Retry(line)) => {
                partition.unopened = Some(line.to_string());
                let after = partition.backoff.next();
                return vec![
                    Effect::Unopened(name.clone(), line),
                    Effect::OpenAgain { partition: name.clone(), generation, after },
                ];
            }
        };
        partition.end = watermarks.high;
        match partition.cursor.opened(generation, watermarks) {
            Opened::Outdated => Vec::new(),
            Opened::Reads { unverified } => {
                partition.is_open = true;
                partition.unopened = None;
                partition.backoff.reset();
                let unverified = unverified.map(|last| Effect::Unverified {
                    partition: name.clone(),
                    offset: last.offset,
                    why: "trimmed",
                });
                let commit = self.commit(std::slice::from_ref(name));
                unverified.into_iter().chain([Effect::Clear(name.clone())]).chain(commit).collect()
            }
            Opened::Misfit(Misfit::Gap { low, .. }) if self.on_log_gap == OnLogGap::Skip => vec![Effect::Skip {
                partition: name.clone(),
                lane: partition.lane,
                generation,
                from: partition.cursor.from(),
                to: Checkpoint::start(low),
            }],
            Opened::Misfit(misfit) => self.misfit(name, misfit),
        }
    }

    /// The stored position was moved as [`Effect::Skip`] asked for.
    pub fn skipped(&mut self, name: TopicPartition, generation: u64, to: Checkpoint) -> Vec<Effect> {
        let Some(known) = self.partitions.get_mut(&name).filter(|known| known.cursor.is_opening(generation)) else {
            return Vec::new();
        };
        let records = (to.position - known.cursor.from().position).unsigned_abs();
        known.cursor.skip_to(to);
        let skipped = Effect::Skipped { partition: name.clone(), records };
        [skipped].into_iter().chain(self.open(vec![name])).collect()
    }

    pub fn arrived(&mut self, records: RecordBatch) -> Taken {
        let name = records.partition.clone();
        let Some(partition) = self.partitions.get_mut(&name) else { return Taken::Nothing(Vec::new()) };
        match partition.cursor.arrived(records) {
            Arrival::Drop => Taken::Nothing(Vec::new()),
            Arrival::Misfit(misfit) => Taken::Nothing(self.misfit(&name, misfit)),
            Arrival::Take { part, unverified } => {
                let unverified = unverified.map(|last| Effect::Unverified {
                    partition: name,
                    offset: last.offset,
                    why: "compacted away",
                });
                Taken::Part { lane: partition.lane, part, effects: unverified.into_iter().collect() }
            }
        }
    }

    fn misfit(&mut self, name: &TopicPartition, misfit: Misfit) -> Vec<Effect> {
        let reason = misfit.explain(name, &self.remedies);
        self.stop(name, reason)
    }

    fn stop(&mut self, name: &TopicPartition, reason: String) -> Vec<Effect> {
        if let Some(partition) = self.partitions.get_mut(name) {
            partition.cursor.stop();
            partition.stopped = Some(reason.clone());
        }
        vec![Effect::Stopped(name.clone(), reason), Effect::Halt(name.clone())]
    }

    /// The ledger has these ranges.
    pub fn applied(&mut self, ranges: &[Span]) {
        for range in ranges {
            if let Some(partition) = self.partitions.get_mut(&range.partition) {
                partition.cursor.applied(range.to);
            }
        }
    }

    /// Whether the positions of a lane that has nothing under way are those that were acknowledged.
    pub fn agree_with(&self, lane: usize, positions: &Positions) -> bool {
        let of_lane = self.partitions.iter().filter(|(_, partition)| partition.lane == lane);
        of_lane.into_iter().all(|(name, partition)| partition.cursor.agrees_with(positions.get(name)))
    }

    /// They are to be given back: nothing more of them is taken.
    pub fn leave(&mut self, names: &[TopicPartition]) {
        for name in names {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.cursor.leave();
            }
        }
    }

    /// Whether all that was taken of these is applied, where anything can still be.
    pub fn are_drained(&self, names: &[TopicPartition]) -> bool {
        let is_drained =
            |partition: &Partition| partition.cursor.is_drained() || partition.cursor.phase() != Phase::Running;
        names.iter().all(|name| self.partitions.get(name).is_none_or(is_drained))
    }

    /// Offsets that were taken and are not applied.
    pub fn unfinished(&self) -> i64 {
        self.partitions.values().map(|partition| partition.cursor.unfinished()).sum()
    }

    /// Where the log ends, and what of it cannot be read, as far as the consumer knows.
    pub fn known(&mut self, ends: Vec<(TopicPartition, i64)>, unread: Vec<(TopicPartition, String)>) {
        for (partition, end) in ends {
            if let Some(known) = self.partitions.get_mut(&partition) {
                known.end = end;
            }
        }
        self.unread = unread.into_iter().collect();
    }

    /// Looks at every partition for one that is not read though it should be; `is_connected` says
    /// it of a lane.
    pub fn judge(&mut self, is_connected: impl Fn(usize) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (name, partition) in &mut self.partitions {
            let cursor = &partition.cursor;
            let why = match cursor.phase() {
                Phase::Stopped => None,
                _ if cursor.is_leaving() || !is_connected(partition.lane) => None,
                Phase::Waiting => Some("where to begin is not known yet".to_owned()),
                Phase::Opening => {
                    Some(partition.unopened.clone().unwrap_or_else(|| "it is still being opened".to_owned()))
                }
                Phase::Verifying(_) | Phase::Running => self.unread.get(name).cloned(),
            };
            let Some(why) = why else {
                if partition.unread.take().is_some() && cursor.phase() != Phase::Stopped {
                    effects.push(Effect::Clear(name.clone()));
                }
                continue;
            };
            let since = partition.unread.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            partition.unread = Some((since, why.clone()));
            if partition.is_unread() {
                effects.push(Effect::Obstruct(name.clone(), format!("cannot be read: {why}")));
            }
        }
        effects
    }

    /// Offsets of these partitions that are worth committing to the broker; they are taken for
    /// committed.
    pub fn commit(&mut self, names: &[TopicPartition]) -> Option<Effect> {
        let marks = self.marks(names);
        for mark in &marks {
            if let Some(partition) = self.partitions.get_mut(&mark.partition) {
                partition.marked = Some(mark.position);
            }
        }
        (!marks.is_empty()).then_some(Effect::Commit(marks))
    }

    /// What was committed to the broker may not be there; it is worth committing again.
    pub fn commit_again(&mut self) {
        self.partitions.values_mut().for_each(|partition| partition.marked = None);
    }

    /// Offsets of these partitions that are worth committing to the broker.
    pub fn marks(&self, names: &[TopicPartition]) -> Vec<Mark> {
        let mark = |name: &TopicPartition| {
            let partition = self.partitions.get(name)?;
            let start = *self.starts.get(name)?;
            let committed = partition.cursor.committed();
            let is_known = partition.is_open || committed.last.is_some();
            let is_new = partition.marked != Some(committed.position);
            let position = committed.position;
            (is_known && is_new).then(|| Mark { partition: name.clone(), position, note: (self.note)(start) })
        };
        names.iter().filter_map(mark).collect()
    }

    /// What a person may see of each; `now_ms` is in epoch milliseconds.
    pub fn statuses(&self, now_ms: i64) -> BTreeMap<TopicPartition, PartitionStatus> {
        self.partitions.iter().map(|(name, partition)| (name.clone(), partition.status(name, now_ms))).collect()
    }

    fn of_lane(&mut self, lane: usize) -> impl Iterator<Item = (&TopicPartition, &mut Partition)> {
        self.partitions.iter_mut().filter(move |(_, partition)| partition.lane == lane)
    }
}

impl Partition {
    /// It has been without a reader for too long.
    fn is_unread(&self) -> bool {
        self.unread.as_ref().is_some_and(|(since, _)| since.elapsed() >= UNREAD_AFTER)
    }

    fn status(&self, name: &TopicPartition, now_ms: i64) -> PartitionStatus {
        let committed = self.cursor.committed();
        let position = committed.position;
        let lag_records = (self.end - position).max(0);
        let seen_ms = committed.last.map_or(now_ms, |last| last.timestamp_ms);
        let (state, reason) = match self.cursor.phase() {
            Phase::Stopped => ("stopped", self.stopped.clone()),
            _ if self.is_unread() => ("unreadable", self.unread.as_ref().map(|(_, why)| why.clone())),
            Phase::Waiting | Phase::Opening | Phase::Verifying(_) => ("opening", None),
            Phase::Running => ("running", None),
        };
        PartitionStatus {
            topic: name.topic.to_string(),
            partition: name.partition,
            state,
            position,
            end: self.end.max(position),
            lag_records,
            lag_seconds: if lag_records > 0 { (now_ms - seen_ms).max(0) as f64 / 1000.0 } else { 0.0 },
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANES: usize = 1;

    fn name(number: i32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    fn partitions(on_log_gap: OnLogGap) -> Partitions {
        let remedies = Remedies { begin_anew: "begin anew".to_owned(), set_position: Some("set".to_owned()) };
        let mut partitions = Partitions::new(LANES, on_log_gap, remedies, |start| format!("start={start}"));
        let by_lane = partitions.assigned(vec![name(0), name(1)]);
        assert_eq!(by_lane, BTreeMap::from([(0, vec![name(0), name(1)])]));
        partitions
    }

    fn at(positions: &[(i32, i64)]) -> Positions {
        positions.iter().map(|(number, position)| (name(*number), Checkpoint::start(*position))).collect()
    }

    fn starts(numbers: &[i32]) -> BTreeMap<TopicPartition, i64> {
        numbers.iter().map(|number| (name(*number), 0)).collect()
    }

    /// The effects without what they carry.
    fn kinds(effects: &[Effect]) -> Vec<String> {
        let kind = |effect: &Effect| format!("{effect:?}").split(['(', ' ']).next().unwrap_or_default().to_owned();
        effects.iter().map(kind).collect()
    }

    #[test]
    fn what_the_ledger_says_of_a_partition_decides_how_it_goes_on() {
        for (is_resync, started, positions, expected) in [
            (true, &[0, 1][..], &[(0, 5), (1, 7)][..], &["Open"][..]),
            // One that the ledger has not heard of.
            (true, &[0], &[(0, 5)], &["Open", "Adopt"]),
            // One whose position somebody deleted.
            (true, &[0, 1], &[(0, 5)], &["Stopped", "Halt", "Open"]),
            (false, &[0, 1], &[(0, 5)], &["Desync"]),
            (true, &[], &[], &["Adopt"]),
        ] {
            let mut partitions = partitions(OnLogGap::Stop);
            let effects = partitions.snapshot(0, is_resync, starts(started), &at(positions));
            assert_eq!(kinds(&effects), expected, "{is_resync} {started:?} {positions:?}");
        }
    }

    #[test]
    fn an_opening_leads_to_reading_to_another_attempt_or_to_the_operator() {
        let retry = || Err(BrokerError::retry("no leader"));
        let stop = || Err(BrokerError::stop("no access"));
        for (on_log_gap, result, expected) in [
            (OnLogGap::Stop, Ok(Watermarks { low: 0, high: 9 }), &["Clear", "Commit"][..]),
            (OnLogGap::Stop, Ok(Watermarks { low: 6, high: 9 }), &["Stopped", "Halt"]),
            (OnLogGap::Skip, Ok(Watermarks { low: 6, high: 9 }), &["Skip"]),
            (OnLogGap::Skip, Ok(Watermarks { low: 0, high: 4 }), &["Stopped", "Halt"]),
            (OnLogGap::Stop, retry(), &["Unopened", "OpenAgain"]),
            (OnLogGap::Stop, stop(), &["Fail"]),
        ] {
            let mut partitions = partitions(on_log_gap);
            partitions.snapshot(0, true, starts(&[0, 1]), &at(&[(0, 5), (1, 7)]));
            assert!(partitions.opened(&name(0), 99, result.clone()).is_empty(), "another generation");
            let effects = partitions.opened(&name(0), 1, result.clone());
            assert_eq!(kinds(&effects), expected, "{on_log_gap:?} {result:?}");
        }
    }

    #[test]
    fn a_skip_is_counted_and_opened_again_unless_a_doubt_came_first() {
        let mut partitions = partitions(OnLogGap::Skip);
        partitions.snapshot(0, true, starts(&[0, 1]), &at(&[(0, 5), (1, 7)]));
        assert!(partitions.skipped(name(0), 99, Checkpoint::start(8)).is_empty());
        let effects = partitions.skipped(name(0), 1, Checkpoint::start(8));
        assert!(
            matches!(&effects[..], [Effect::Skipped { records: 3, .. }, Effect::Open(opens)]
            if opens[0].checkpoint.position == 8),
            "{effects:?}"
        );
    }

    #[test]
    fn a_position_is_committed_once_and_again_when_the_broker_may_have_lost_it() {
        let mut partitions = partitions(OnLogGap::Stop);
        let names = [name(0), name(1)];
        partitions.snapshot(0, true, starts(&[0, 1]), &at(&[(0, 5), (1, 7)]));
        assert!(partitions.marks(&names).is_empty(), "nobody knows yet whether the log is the one that was counted");
        let effects = partitions.opened(&name(0), 1, Ok(Watermarks { low: 0, high: 9 }));
        assert!(
            matches!(&effects[..], [_, Effect::Commit(marks)]
            if marks[0].position == 5 && marks[0].note == "start=0"),
            "{effects:?}"
        );
        assert!(partitions.commit(&names).is_none());
        partitions.commit_again();
        assert!(matches!(partitions.commit(&names), Some(Effect::Commit(marks)) if marks.len() == 1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_not_read_for_long_is_said_and_taken_back() {
        let mut partitions = partitions(OnLogGap::Stop);
        let judge = |partitions: &mut Partitions| kinds(&partitions.judge(|_| true));
        assert!(partitions.judge(|_| false).is_empty(), "the lane is not there");
        assert!(judge(&mut partitions).is_empty());
        tokio::time::advance(UNREAD_AFTER).await;
        assert_eq!(judge(&mut partitions), ["Obstruct", "Obstruct"]);
        partitions.snapshot(0, true, starts(&[0, 1]), &at(&[(0, 5), (1, 7)]));
        partitions.opened(&name(0), 1, Ok(Watermarks { low: 0, high: 9 }));
        assert_eq!(judge(&mut partitions), ["Clear", "Obstruct"]);
        partitions.known(vec![(name(0), 12)], vec![(name(0), "no consumer".to_owned())]);
        tokio::time::advance(UNREAD_AFTER).await;
        assert_eq!(judge(&mut partitions), ["Obstruct"]);
        tokio::time::advance(UNREAD_AFTER).await;
        judge(&mut partitions);
        let status = &partitions.statuses(0)[&name(0)];
        assert_eq!(
            (status.state, status.lag_records, status.reason.as_deref()),
            ("unreadable", 7, Some("no consumer"))
        );
    }
}
