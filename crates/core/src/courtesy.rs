//! Long work makes way for short work.
//!
//! A system that shares its processors fairly lets a busy thread finish its slice, a few
//! milliseconds, whoever wakes meanwhile and however low the busy thread's priority is. Threads
//! that work on batches therefore offer their processor every 100 µs or so: a question is answered
//! then, not a slice later. An offer that nobody takes costs well under a microsecond.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a task keeps its thread.
const TURN_MAX: Duration = Duration::from_millis(1);

/// Counts steps of a batch.
pub struct Courtesy {
    steps: u32,
    done: u32,
}

impl Courtesy {
    /// Offers the processor once in so many steps.
    pub const fn every(steps: u32) -> Self {
        Self { steps, done: 0 }
    }

    /// Before each step.
    pub fn pause(&mut self) {
        self.done += 1;
        if self.done >= self.steps {
            self.done = 0;
            std::thread::yield_now();
        }
    }
}

/// The same for a task, which shares its thread with others: a question over much that never waits
/// for anything would keep them all from it, and its own deadline with them.
pub struct Turn {
    begun: Instant,
    /// Nanoseconds from there to the beginning of this turn.
    since: AtomicU64,
}

impl Turn {
    pub fn begin() -> Self {
        Self { begun: Instant::now(), since: AtomicU64::new(0) }
    }

    /// After each step. Many short turns in a row count as a long one.
    pub async fn pause(&self) {
        tokio::task::coop::consume_budget().await;
        if self.elapsed() >= self.since.load(Ordering::Relaxed) + TURN_MAX.as_nanos() as u64 {
            tokio::task::yield_now().await;
            self.since.store(self.elapsed(), Ordering::Relaxed);
        }
    }

    fn elapsed(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }
}
