//! A bound on the bytes of records that are read and not yet folded, and of what is folded and not yet committed.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::telemetry::names;

pub struct Budget {
    bytes_max: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

/// Bytes taken from a budget, given back when dropped.
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, used: Mutex::new(0), freed: Condvar::new() })
    }

    /// Held for a few instructions; nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The bytes that are free, after waiting for some at most this long.
    pub fn room(&self, wait: Duration) -> usize {
        let is_full = |used: &mut usize| *used >= self.bytes_max;
        let waited = self.freed.wait_timeout_while(self.lock(), wait, is_full);
        let (used, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        self.bytes_max.saturating_sub(*used)
    }

    /// Takes bytes that are already there, even beyond the bound: one poll may overshoot.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Permit {
        let mut used = self.lock();
        *used += bytes;
        metrics::gauge!(names::IN_FLIGHT_BYTES).set(*used as f64);
        Permit { budget: Arc::clone(self), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        *used -= self.bytes;
        metrics::gauge!(names::IN_FLIGHT_BYTES).set(*used as f64);
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_with_the_permit() {
        let budget = Budget::new(10);
        let permit = budget.take(12);
        assert_eq!(budget.room(Duration::ZERO), 0);
        drop(permit);
        assert_eq!(budget.room(Duration::ZERO), 10);
    }
}
