//! The bookkeeping of one lane: records that wait for their batch to be cut, jobs that are folded,
//! batches that are under way.
//!
//! Jobs are numbered. They are folded in any order and sent in theirs. A doubt begins a new
//! *epoch*: whatever belongs to an older one is void when it comes back.
//!
//! Nothing here waits or sends; the loop does what is returned.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::budget::Permit;
use super::pool::BudgetedPart;
use super::projection::{Batch, CutPolicy};
use traqq_core::model::TopicPartition;

/// What a record comes to when it is folded, until one knows: much, so that the first batches are
/// small.
const RECORD_BYTES: usize = 1024;

/// When a batch is cut, of all lanes alike.
#[derive(Clone, Copy, Debug)]
pub struct Cutting {
    pub policy: CutPolicy,
    /// Jobs beyond those in flight, so that each thread has one.
    pub fold_threads: usize,
    /// What a job of records may come to when it is folded, as far as one knows before.
    pub folded_bytes_max: usize,
}

/// Records of one job.
pub struct Cut {
    pub epoch: u64,
    pub sequence: u64,
    pub parts: Vec<BudgetedPart>,
    /// What they are expected to come to when they are folded.
    pub folded_bytes: usize,
}

/// A batch whose turn it is.
pub struct Turn<B> {
    pub batch: B,
    pub permit: Permit,
    /// The last batch of its job.
    pub is_last: bool,
}

/// Records that wait for their batch to be cut.
#[derive(Default)]
struct Pending {
    parts: Vec<BudgetedPart>,
    events: usize,
    bytes: usize,
    oldest: Option<Instant>,
}

impl Pending {
    fn push(&mut self, part: BudgetedPart) {
        self.events += part.records().len();
        self.bytes += part.records().bytes();
        self.oldest.get_or_insert_with(Instant::now);
        self.parts.push(part);
    }

    /// The first parts, at least one and no more than so many events, and how many events they
    /// have.
    fn take(&mut self, events_max: usize) -> (Vec<BudgetedPart>, usize) {
        let (mut count, mut events, mut bytes) = (0, 0, 0);
        for part in &self.parts {
            let records = part.records();
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

    fn forget(&mut self, partition: &TopicPartition) {
        let Self { parts, events, bytes, .. } = self;
        parts.retain(|part| {
            let records = part.records();
            let is_kept = records.partition != *partition;
            if !is_kept {
                *events -= records.len();
                *bytes -= records.bytes();
            }
            is_kept
        });
    }
}

/// A lane that cannot commit.
struct Down {
    since: Instant,
    why: String,
}

pub struct Lane<B> {
    epoch: u64,
    /// There is a session, and batches may be sent.
    is_connected: bool,
    pending: Pending,
    next_sequence: u64,
    next_to_send: u64,
    /// Jobs that are folded and wait for earlier ones.
    folded: BTreeMap<u64, Vec<(B, Permit)>>,
    /// Cut and not answered.
    jobs: usize,
    /// What a record has come to lately when it was folded.
    record_bytes: usize,
    /// Changes whenever anything is sent.
    activity: u64,
    checked_at: Instant,
    backoff: Backoff,
    down: Option<Down>,
}

impl<B: Batch> Lane<B> {
    pub fn new() -> Self {
        Self {
            epoch: 0,
            is_connected: false,
            pending: Pending::default(),
            next_sequence: 0,
            next_to_send: 0,
            folded: BTreeMap::new(),
            jobs: 0,
            record_bytes: RECORD_BYTES,
            activity: 0,
            checked_at: Instant::now(),
            backoff: Backoff::default(),
            down: None,
        }
    }

    pub const fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Goes up with every doubt.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether something belongs to what goes on now.
    pub const fn is_current(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    /// Everything under way is void. Returns the new epoch, and how long to wait before the ledger
    /// is asked.
    pub fn desync(&mut self, why: &str) -> (u64, Duration) {
        self.epoch += 1;
        self.clear();
        let since = self.down.as_ref().map_or_else(Instant::now, |down| down.since);
        self.down = Some(Down { since, why: why.to_owned() });
        (self.epoch, if self.is_first_epoch() { Duration::ZERO } else { self.backoff.next() })
    }

    /// Nothing has been in doubt yet.
    pub const fn is_first_epoch(&self) -> bool {
        self.epoch <= 1
    }

    /// Forgets what is under way.
    pub fn clear(&mut self) {
        self.is_connected = false;
        self.pending = Pending::default();
        self.next_to_send = self.next_sequence;
        self.folded.clear();
        self.jobs = 0;
    }

    /// There is a session.
    pub fn connected(&mut self) {
        self.is_connected = true;
        self.down = None;
        self.checked_at = Instant::now();
    }

    /// Why there is still no session.
    pub fn waits(&mut self, why: String) {
        if let Some(down) = &mut self.down {
            down.why = why;
        }
    }

    /// Why nothing can be committed, once that has lasted.
    pub fn is_down(&self, after: Duration) -> Option<&str> {
        self.down.as_ref().filter(|down| down.since.elapsed() >= after).map(|down| &*down.why)
    }

    pub fn push(&mut self, part: BudgetedPart) {
        self.pending.push(part);
    }

    /// Records of a partition that is not ours any more.
    pub fn forget(&mut self, partition: &TopicPartition) {
        self.pending.forget(partition);
    }

    /// Cuts a job if one is due. `has_room` says whether there is memory for what it is folded
    /// into; `is_hurried` when nothing is to wait for a batch to fill.
    pub fn cut(&mut self, cutting: &Cutting, has_room: impl FnOnce() -> bool, is_hurried: bool) -> Option<Cut> {
        let CutPolicy { bytes_max, age_max, waits_for_idle_lane, in_flight_max, .. } = cutting.policy;
        if !self.is_connected || self.pending.parts.is_empty() {
            return None;
        }
        let is_idle = self.jobs == 0;
        let may_age = is_idle || !waits_for_idle_lane;
        let is_old = may_age && self.pending.oldest.is_some_and(|oldest| oldest.elapsed() >= age_max);
        let records_max = self.job_records_max(cutting);
        let is_due = self.pending.events >= records_max || self.pending.bytes >= bytes_max || is_old || is_hurried;
        let may_begin = is_idle || (self.jobs < in_flight_max + cutting.fold_threads && has_room());
        if !is_due || !may_begin {
            return None;
        }
        let (parts, records) = self.pending.take(records_max);
        self.jobs += 1;
        self.activity += 1;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Some(Cut { epoch: self.epoch, sequence, parts, folded_bytes: records * self.record_bytes })
    }

    /// Records of one job, which come to no more than a batch may, judged by the last ones.
    fn job_records_max(&self, cutting: &Cutting) -> usize {
        cutting.policy.records_max.min(cutting.folded_bytes_max / self.record_bytes)
    }

    /// Takes what a job was folded into, and returns the batches whose turn it is.
    pub fn folded(&mut self, epoch: u64, sequence: u64, batches: Vec<(B, Permit)>) -> Vec<Turn<B>> {
        if !self.is_current(epoch) {
            return Vec::new();
        }
        self.learn(&batches);
        self.folded.insert(sequence, batches);
        let mut turns = Vec::new();
        while let Some(batches) = self.folded.remove(&self.next_to_send) {
            self.next_to_send += 1;
            let count = batches.len();
            if count == 0 {
                self.jobs -= 1;
            }
            let turn = |(index, (batch, permit))| Turn { batch, permit, is_last: index + 1 == count };
            turns.extend(batches.into_iter().enumerate().map(turn));
        }
        turns
    }

    fn learn(&mut self, folded: &[(B, Permit)]) {
        let records: usize = folded.iter().map(|(batch, _)| batch.intake().records as usize).sum();
        let bytes: usize = folded.iter().map(|(batch, _)| batch.bytes()).sum();
        if let Some(each) = bytes.checked_div(records) {
            // What is larger is believed at once, what is smaller by and by.
            self.record_bytes = each.max(self.record_bytes / 2).max(1);
        }
    }

    /// A batch of this epoch was applied.
    pub fn applied(&mut self, is_last: bool) {
        self.backoff.reset();
        self.activity += 1;
        if is_last {
            self.jobs -= 1;
        }
    }

    /// Whether it is time to compare positions, as a lane with nothing under way must now and then.
    /// What is returned goes to [`Self::is_as_it_was`] with the positions.
    pub fn begin_check(&mut self, every: Duration) -> Option<(u64, u64)> {
        let is_due =
            self.is_connected && self.jobs == 0 && self.pending.parts.is_empty() && self.checked_at.elapsed() >= every;
        if is_due {
            self.checked_at = Instant::now();
        }
        is_due.then_some((self.epoch, self.activity))
    }

    /// Nothing has been read or sent since.
    pub fn is_as_it_was(&self, (epoch, activity): (u64, u64)) -> bool {
        self.epoch == epoch && self.activity == activity && self.pending.parts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::budget::Budget;
    use super::super::projection::{Intake, Observed};
    use super::*;
    use traqq_core::decode::DeadLetter;
    use traqq_core::model::{Checkpoint, Part, RecordBatch, Span};

    #[derive(Default)]
    struct Nothing;

    impl Observed for Nothing {
        fn numbers(&self) -> Vec<(&'static str, u64)> {
            Vec::new()
        }
    }

    /// A batch of so many records.
    struct Records(u64);

    impl Batch for Records {
        type Stats = Nothing;

        fn ranges(&self) -> &[Span] {
            &[]
        }

        fn bytes(&self) -> usize {
            self.0 as usize * 100
        }

        fn intake(&self) -> Intake {
            Intake { records: self.0, ..Intake::default() }
        }

        fn stats(&self) -> Nothing {
            Nothing
        }

        fn dead_letters(&self) -> &[DeadLetter] {
            &[]
        }
    }

    const AGE: Duration = Duration::from_millis(100);

    fn cutting(waits_for_idle_lane: bool) -> Cutting {
        let policy =
            CutPolicy { records_max: 10, bytes_max: 1 << 20, age_max: AGE, waits_for_idle_lane, in_flight_max: 2 };
        Cutting { policy, fold_threads: 1, folded_bytes_max: 1 << 20 }
    }

    fn part(budget: &Arc<Budget>, partition: i32, records: i64) -> BudgetedPart {
        let mut batch = RecordBatch::new(TopicPartition::new("t", partition), 1);
        (0..records).for_each(|offset| batch.push(offset, 0, None, Some(b"x")));
        let permit = budget.take(batch.bytes());
        BudgetedPart::new(Part { records: batch, from: Checkpoint::start(0) }, permit)
    }

    fn connected() -> Lane<Records> {
        let mut lane = Lane::new();
        lane.desync("start");
        lane.connected();
        lane
    }

    fn records(cut: Option<Cut>) -> Option<usize> {
        cut.map(|cut| cut.parts.iter().map(|part| part.records().len()).sum())
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_cut_when_it_is_full_old_or_hurried() {
        let budget = Budget::new("test", 1 << 20);
        for (parts, wait, hurried, expected) in [
            (&[4][..], Duration::ZERO, false, None),
            (&[4, 6], Duration::ZERO, false, Some(10)),
            (&[4, 7], Duration::ZERO, false, Some(4)),
            (&[30], Duration::ZERO, false, Some(30)),
            (&[4], AGE, false, Some(4)),
            (&[4], Duration::ZERO, true, Some(4)),
            (&[], AGE, true, None),
        ] {
            let mut lane = connected();
            parts.iter().for_each(|records| lane.push(part(&budget, 0, *records)));
            tokio::time::advance(wait).await;
            assert_eq!(records(lane.cut(&cutting(true), || true, hurried)), expected, "{parts:?} {wait:?} {hurried}");
        }
        assert_eq!(budget.room(Duration::ZERO), 1 << 20, "all is given back");
    }

    /// What comes while a batch is under way merges into the next one, unless the ledger answers
    /// late by intention.
    #[tokio::test(start_paused = true)]
    async fn age_counts_only_where_it_may() {
        let budget = Budget::new("test", 1 << 20);
        for (waits_for_idle_lane, expected) in [(true, None), (false, Some(1))] {
            let mut lane = connected();
            lane.push(part(&budget, 0, 10));
            assert!(lane.cut(&cutting(waits_for_idle_lane), || true, false).is_some());
            lane.push(part(&budget, 0, 1));
            tokio::time::advance(AGE).await;
            assert_eq!(records(lane.cut(&cutting(waits_for_idle_lane), || true, false)), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_has_as_many_jobs_as_it_may() {
        let budget = Budget::new("test", 1 << 20);
        let mut lane = connected();
        (0..6).for_each(|_| lane.push(part(&budget, 0, 10)));
        // An idle lane begins even without room, or it would never go on.
        assert!(lane.cut(&cutting(true), || false, false).is_some());
        assert!(lane.cut(&cutting(true), || false, false).is_none());
        assert!(lane.cut(&cutting(true), || true, false).is_some());
        assert!(lane.cut(&cutting(true), || true, false).is_some());
        assert!(lane.cut(&cutting(true), || true, false).is_none(), "two in flight, and one to fold");
        lane.applied(true);
        assert!(lane.cut(&cutting(true), || true, false).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_sent_in_the_order_in_which_they_were_cut() {
        let budget = Budget::new("test", 1 << 20);
        let mut lane = connected();
        let batches = |count: u64| (0..count).map(|_| (Records(1), budget.take(1))).collect::<Vec<_>>();
        let last = |turns: Vec<Turn<Records>>| turns.iter().map(|turn| turn.is_last).collect::<Vec<_>>();
        for _ in 0..3 {
            lane.push(part(&budget, 0, 10));
            lane.cut(&cutting(true), || true, false).unwrap();
        }
        assert!(lane.folded(1, 2, batches(1)).is_empty(), "two are before it");
        assert!(lane.folded(1, 1, batches(0)).is_empty());
        assert_eq!(last(lane.folded(1, 0, batches(2))), [false, true, true]);
        assert!(lane.begin_check(Duration::ZERO).is_none(), "two jobs are not answered");
        lane.applied(false);
        lane.applied(true);
        lane.applied(true);
        assert!(lane.begin_check(Duration::ZERO).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_doubt_what_was_under_way_is_void() {
        let budget = Budget::new("test", 1 << 20);
        let mut lane = connected();
        lane.push(part(&budget, 0, 10));
        let cut = lane.cut(&cutting(true), || true, false).unwrap();
        lane.push(part(&budget, 0, 3));
        let (epoch, wait) = lane.desync("the store is gone");
        assert!(epoch == 2 && wait > Duration::ZERO && !lane.is_connected());
        drop(cut);
        assert_eq!(budget.room(Duration::ZERO), 1 << 20, "nothing is held");
        assert!(lane.folded(1, 0, vec![(Records(1), budget.take(1))]).is_empty());
        assert_eq!(lane.is_down(Duration::ZERO), Some("the store is gone"));
        lane.connected();
        assert_eq!(lane.is_down(Duration::ZERO), None);
        lane.push(part(&budget, 1, 10));
        let cut = lane.cut(&cutting(true), || true, false).unwrap();
        assert_eq!((cut.epoch, cut.sequence), (2, 1));
        assert_eq!(lane.folded(2, 1, vec![(Records(1), budget.take(1))]).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_something_came_between_says_nothing() {
        let budget = Budget::new("test", 1 << 20);
        let mut lane = connected();
        assert!(lane.begin_check(AGE).is_none(), "it was read just now");
        tokio::time::advance(AGE).await;
        let token = lane.begin_check(AGE).unwrap();
        assert!(lane.is_as_it_was(token) && lane.begin_check(AGE).is_none());
        lane.push(part(&budget, 0, 1));
        assert!(!lane.is_as_it_was(token));
        lane.forget(&TopicPartition::new("t", 0));
        assert!(lane.is_as_it_was(token));
        lane.desync("a doubt");
        assert!(!lane.is_as_it_was(token));
    }

    /// Records that become much when they are folded are cut into smaller jobs.
    #[tokio::test(start_paused = true)]
    async fn a_job_is_as_large_as_its_batch_may_become() {
        let budget = Budget::new("test", 1 << 20);
        let cutting = Cutting { folded_bytes_max: 4 * RECORD_BYTES, ..cutting(true) };
        let mut lane = connected();
        (0..12).for_each(|_| lane.push(part(&budget, 0, 1)));
        let cut = lane.cut(&cutting, || true, false).unwrap();
        assert_eq!((cut.parts.len(), cut.folded_bytes), (4, 4 * RECORD_BYTES));
        // It has come to a tenth of that, which is believed by and by.
        lane.folded(1, 0, vec![(Records(4), budget.take(1))]);
        let cut = lane.cut(&cutting, || true, false).unwrap();
        assert_eq!(cut.parts.len(), 8);
    }
}
