//! The threads that fold. Jobs go in, batches come out, in any order; the loop puts them back in
//! order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::budget::{Budget, Permit};
use super::chance;
use super::config::Config;
use super::execution::Execution;
use super::projection::{Batch, Fold, Projection};
use traqq_core::model::{Part, RecordBatch, Span};

/// What a fold thread yields to the threads that answer; of this process only, where the system
/// knows threads.
const FOLD_NICE: i32 = 10;
/// How long a fold takes by the clock of a simulation, so that jobs overtake each other.
const SIMULATED_FOLD: Duration = Duration::from_millis(10);

pub struct Job {
    pub lane: usize,
    /// A job of an epoch that is over is not worth folding.
    pub epoch: u64,
    pub sequence: u64,
    pub parts: Vec<BudgetedPart>,
    /// What it is expected to come to when it is folded.
    pub expected: Permit,
}

/// Records and their share of the budget, which comes back as soon as they are folded.
pub struct BudgetedPart {
    part: Part,
    _permit: Permit,
}

impl BudgetedPart {
    pub const fn new(part: Part, permit: Permit) -> Self {
        Self { part, _permit: permit }
    }

    pub const fn records(&self) -> &RecordBatch {
        &self.part.records
    }

    /// What the records cover.
    pub fn range(&self) -> Span {
        let Part { records, from } = &self.part;
        Span { partition: records.partition.clone(), from: *from, to: records.checkpoint_after(*from) }
    }
}

impl AsRef<Part> for BudgetedPart {
    fn as_ref(&self) -> &Part {
        &self.part
    }
}

pub struct Done<B> {
    pub lane: usize,
    pub epoch: u64,
    pub sequence: u64,
    /// `None` when the fold panicked, which is a bug. What is folded keeps its part of the budget
    /// until it is committed.
    pub folded: Option<Vec<(B, Permit)>>,
}

pub struct Pool<P: Projection> {
    jobs: Jobs<P>,
    /// The current epoch of each lane.
    epochs: Arc<Vec<AtomicU64>>,
}

enum Jobs<P: Projection> {
    Threads(mpsc::Sender<Job>),
    Tasks(Arc<Mutex<Bench<P>>>),
}

impl<P: Projection> Pool<P> {
    pub fn start(
        projection: &P,
        config: &Config,
        lanes: usize,
        folded: &Arc<Budget>,
        done: &UnboundedSender<Done<P::Batch>>,
        execution: Execution,
    ) -> Self {
        let epochs: Arc<Vec<AtomicU64>> = Arc::new((0..lanes).map(|_| AtomicU64::new(0)).collect());
        let bench = || Bench {
            fold: projection.fold(),
            epochs: Arc::clone(&epochs),
            budget: Arc::clone(folded),
            done: done.clone(),
        };
        if execution == Execution::Tasks {
            return Self { jobs: Jobs::Tasks(Arc::new(Mutex::new(bench()))), epochs };
        }
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..config.threads() {
            let (mut bench, queue) = (bench(), Arc::clone(&queue));
            std::thread::Builder::new()
                .name(format!("fold-{index}"))
                .spawn(move || {
                    // Questions to this process are answered between two batches, not behind them.
                    let _ = rustix::process::nice(FOLD_NICE);
                    loop {
                        // The lock is held while waiting: the others queue up behind it, which is
                        // what they would do anyway.
                        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        if !job.is_ok_and(|job| bench.work(job)) {
                            return;
                        }
                    }
                })
                .expect("a thread can be started");
        }
        Self { jobs: Jobs::Threads(jobs), epochs }
    }

    pub fn submit(&self, job: Job) {
        match &self.jobs {
            // Threads that are gone have panicked, which the loop is about to hear.
            Jobs::Threads(jobs) => _ = jobs.send(job),
            Jobs::Tasks(bench) => {
                let bench = Arc::clone(bench);
                tokio::spawn(async move {
                    tokio::time::sleep(chance::most_of(SIMULATED_FOLD)).await;
                    bench.lock().unwrap_or_else(PoisonError::into_inner).work(job);
                });
            }
        }
    }

    pub fn set_epoch(&self, lane: usize, epoch: u64) {
        self.epochs[lane].store(epoch, Ordering::Relaxed);
    }
}

/// What one thread folds with.
struct Bench<P: Projection> {
    fold: P::Fold,
    epochs: Arc<Vec<AtomicU64>>,
    /// Of what is folded.
    budget: Arc<Budget>,
    done: UnboundedSender<Done<P::Batch>>,
}

impl<P: Projection> Bench<P> {
    /// `false` when there is nothing more to do.
    fn work(&mut self, Job { lane, epoch, sequence, parts, expected }: Job) -> bool {
        if self.epochs[lane].load(Ordering::Relaxed) != epoch {
            return true;
        }
        let fold = std::panic::AssertUnwindSafe(|| self.fold.fold(parts));
        let folded = std::panic::catch_unwind(fold).ok();
        let hold = |batch: P::Batch| {
            let permit = self.budget.take(batch.bytes());
            (batch, permit)
        };
        let folded: Option<Vec<(P::Batch, Permit)>> = folded.map(|folded| folded.into_iter().map(hold).collect());
        drop(expected);
        let is_broken = folded.is_none();
        self.done.send(Done { lane, epoch, sequence, folded }).is_ok() && !is_broken
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::super::fake::{Fake, Memory, Seen, part};
    use super::super::plain::PlainBatch;
    use super::*;

    type Folded = Done<PlainBatch<Seen>>;

    fn pool(threads: usize, records: &Arc<Budget>) -> (Pool<Fake>, Arc<Budget>, UnboundedReceiver<Folded>) {
        let config = Config { fold_threads: threads, ..Config::default() };
        let folded = Budget::part_of(records, 1 << 20);
        let (done_in, done) = unbounded_channel();
        let fake = Fake::new(&Memory::default(), "1");
        (Pool::start(&fake, &config, 2, &folded, &done_in, Execution::Threads), folded, done)
    }

    fn job(records: &Arc<Budget>, folded: &Arc<Budget>, lane: usize, sequence: u64, values: &[&str]) -> Job {
        let parts = vec![part(records, 0, 0, values), part(records, 1, 5, values)];
        Job { lane, epoch: 1, sequence, parts, expected: folded.take(1000) }
    }

    #[tokio::test]
    async fn every_job_is_folded_and_memory_is_held_for_what_it_came_to() {
        let records = Budget::new("test", 1 << 20);
        let (pool, folded, mut done) = pool(3, &records);
        [0, 1].iter().for_each(|lane| pool.set_epoch(*lane, 1));
        (0..20).for_each(|sequence| pool.submit(job(&records, &folded, 0, sequence, &["a", "b", "a"])));
        let mut sequences = Vec::new();
        let mut held = Vec::new();
        for _ in 0..20 {
            let Done { sequence, folded, .. } = done.recv().await.unwrap();
            let batches = folded.unwrap();
            assert_eq!(batches[0].0.value, Seen::from([("a".to_owned(), 4), ("b".to_owned(), 2)]));
            sequences.push(sequence);
            held.extend(batches);
        }
        sequences.sort_unstable();
        assert_eq!(sequences, (0..20).collect::<Vec<_>>());
        // Records have given theirs back, and so has what was expected.
        assert_eq!(folded.room(Duration::ZERO), (1 << 20) - 20 * 60);
        assert_eq!(records.room(Duration::ZERO), (1 << 20) - 20 * 60);
        drop(held);
        assert_eq!(records.room(Duration::ZERO), 1 << 20);
    }

    #[tokio::test]
    async fn a_job_of_an_epoch_that_is_over_is_dropped_with_its_memory() {
        let records = Budget::new("test", 1 << 20);
        let (pool, folded, mut done) = pool(1, &records);
        pool.set_epoch(0, 2);
        pool.set_epoch(1, 1);
        pool.submit(job(&records, &folded, 0, 0, &["old"]));
        pool.submit(job(&records, &folded, 1, 7, &["new"]));
        let first = done.recv().await.unwrap();
        assert_eq!((first.lane, first.sequence), (1, 7));
        drop(first);
        assert_eq!(records.room(Duration::ZERO), 1 << 20);
    }

    #[tokio::test]
    async fn a_fold_that_panics_is_told() {
        let records = Budget::new("test", 1 << 20);
        let (pool, folded, mut done) = pool(1, &records);
        pool.set_epoch(0, 1);
        pool.submit(job(&records, &folded, 0, 0, &["panic"]));
        assert!(done.recv().await.unwrap().folded.is_none());
    }
}
