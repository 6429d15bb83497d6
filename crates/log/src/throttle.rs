//! Reports that come again with every record, kept back for a while and counted meanwhile.

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Throttle {
    count: u64,
    reported: Option<Instant>,
}

impl Throttle {
    /// There are so many more: how many to report now, if that is due.
    pub fn admit(&mut self, more: u64) -> Option<u64> {
        self.count += more;
        if self.count == 0 || self.reported.is_some_and(|at| at.elapsed() < EVERY) {
            return None;
        }
        self.reported = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_reported_and_those_behind_it_are_counted() {
        let mut throttle = Throttle::default();
        assert_eq!([throttle.admit(0), throttle.admit(3), throttle.admit(2)], [None, Some(3), None]);
        throttle.reported = Instant::now().checked_sub(EVERY);
        assert_eq!([throttle.admit(1), throttle.admit(0)], [Some(3), None]);
    }
}
