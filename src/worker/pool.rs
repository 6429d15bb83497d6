//! The threads that fold. Jobs go in, batches come out, in any order; the loop puts them back in order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use tokio::sync::mpsc::UnboundedSender;

use super::budget::{Budget, Permit};
use crate::compile::{Folded, Folder, Part, Plan};

/// What a fold thread yields to the threads that answer; of this process only, where the system knows threads.
const FOLD_NICE: i32 = 10;

pub struct Job {
    pub lane: usize,
    /// A job of an epoch that is over is not worth folding.
    pub epoch: u64,
    pub sequence: u64,
    pub parts: Vec<HeldPart>,
}

/// Records and their share of the budget, which comes back as soon as they are folded.
pub struct HeldPart {
    pub part: Part,
    _permit: Permit,
}

impl HeldPart {
    pub const fn new(part: Part, permit: Permit) -> Self {
        Self { part, _permit: permit }
    }
}

impl AsRef<Part> for HeldPart {
    fn as_ref(&self) -> &Part {
        &self.part
    }
}

pub struct Done {
    pub lane: usize,
    pub epoch: u64,
    pub sequence: u64,
    /// `None` when the fold panicked, which is a bug. What is folded keeps its part of the budget until it is committed.
    pub folded: Option<Vec<(Folded, Permit)>>,
}

pub struct Pool {
    jobs: mpsc::Sender<Job>,
    /// The current epoch of each lane.
    epochs: Arc<Vec<AtomicU64>>,
}

impl Pool {
    pub fn start(
        plan: &Arc<Plan>,
        threads: usize,
        operations_max: usize,
        lanes: usize,
        budget: &Arc<Budget>,
        done: &UnboundedSender<Done>,
    ) -> Self {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let epochs: Arc<Vec<AtomicU64>> = Arc::new((0..lanes).map(|_| AtomicU64::new(0)).collect());
        for index in 0..threads {
            let (plan, queue, done, epochs) = (Arc::clone(plan), Arc::clone(&queue), done.clone(), Arc::clone(&epochs));
            let budget = Arc::clone(budget);
            std::thread::Builder::new()
                .name(format!("fold-{index}"))
                .spawn(move || {
                    // Questions to this process are answered between two batches, not behind them.
                    let _ = rustix::process::nice(FOLD_NICE);
                    work(&plan, operations_max, &queue, &epochs, &budget, &done);
                })
                .expect("a thread can be started");
        }
        Self { jobs, epochs }
    }

    pub fn submit(&self, job: Job) {
        self.jobs.send(job).expect("fold threads live as long as the pool");
    }

    pub fn set_epoch(&self, lane: usize, epoch: u64) {
        self.epochs[lane].store(epoch, Ordering::Relaxed);
    }
}

fn work(
    plan: &Arc<Plan>,
    operations_max: usize,
    queue: &Mutex<mpsc::Receiver<Job>>,
    epochs: &[AtomicU64],
    budget: &Arc<Budget>,
    done: &UnboundedSender<Done>,
) {
    let mut folder = Folder::new(Arc::clone(plan), operations_max);
    loop {
        // The lock is held while waiting: the others queue up behind it, which is what they would do anyway.
        let job = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(Job { lane, epoch, sequence, parts }) = job else { return };
        if epochs[lane].load(Ordering::Relaxed) != epoch {
            continue;
        }
        let fold = std::panic::AssertUnwindSafe(|| folder.fold(parts));
        let folded = std::panic::catch_unwind(fold).ok();
        let hold = |folded: Folded| {
            let permit = budget.take(folded.bytes());
            (folded, permit)
        };
        let folded: Option<Vec<(Folded, Permit)>> = folded.map(|folded| folded.into_iter().map(hold).collect());
        let is_broken = folded.is_none();
        if done.send(Done { lane, epoch, sequence, folded }).is_err() || is_broken {
            return;
        }
    }
}
