//! The threads that fold. Jobs go in, batches come out, in any order; the loop puts them back in order.

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

/// What a fold thread yields to the threads that answer; of this process only, where the system knows threads.
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
    /// `None` when the fold panicked, which is a bug. What is folded keeps its part of the budget until it is committed.
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
                        // The lock is held while waiting: the others queue up behind it, which is what they would do anyway.
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
