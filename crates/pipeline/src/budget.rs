//! A bound on the bytes of records that are read and not yet folded, and of what is folded and not
//! yet committed.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::names;

pub struct Budget {
    projection: &'static str,
    /// What is taken here is taken there too.
    whole: Option<Arc<Self>>,
    bytes_max: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

/// Bytes taken from a budget, given back when dropped.
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
    _of_whole: Option<Box<Self>>,
}

impl Budget {
    /// `projection` is the label of its gauge.
    pub fn new(projection: &'static str, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { projection, whole: None, bytes_max, used: Mutex::new(0), freed: Condvar::new() })
    }

    pub fn part_of(whole: &Arc<Self>, bytes_max: usize) -> Arc<Self> {
        let (projection, whole) = (whole.projection, Some(Arc::clone(whole)));
        Arc::new(Self { projection, whole, bytes_max, used: Mutex::new(0), freed: Condvar::new() })
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
        let of_whole = self.whole.as_ref().map(|whole| Box::new(whole.take(bytes)));
        let mut used = self.lock();
        *used += bytes;
        self.show(*used);
        Permit { budget: Arc::clone(self), bytes, _of_whole: of_whole }
    }

    fn show(&self, used: usize) {
        if self.whole.is_none() {
            metrics::gauge!(names::IN_FLIGHT_BYTES, "projection" => self.projection).set(used as f64);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        *used -= self.bytes;
        self.budget.show(*used);
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_with_the_permit() {
        let budget = Budget::new("test", 10);
        let permit = budget.take(12);
        assert_eq!(budget.room(Duration::ZERO), 0);
        drop(permit);
        assert_eq!(budget.room(Duration::ZERO), 10);
    }

    #[test]
    fn what_a_part_takes_is_taken_from_the_whole() {
        let whole = Budget::new("test", 10);
        let part = Budget::part_of(&whole, 4);
        let permit = part.take(3);
        assert_eq!((part.room(Duration::ZERO), whole.room(Duration::ZERO)), (1, 7));
        drop(permit);
        assert_eq!((part.room(Duration::ZERO), whole.room(Duration::ZERO)), (4, 10));
    }
}
