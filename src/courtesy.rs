//! Long work makes way for short work.
//!
//! A system that shares its processors fairly lets a busy thread finish its slice, a few milliseconds, whoever wakes meanwhile and however
//! low the busy thread's priority is. Threads that work on batches therefore offer their processor every 100 µs or so: a question is answered
//! then, not a slice later. An offer that nobody takes costs well under a microsecond.

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
