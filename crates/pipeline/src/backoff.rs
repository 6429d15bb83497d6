//! How long to wait before the next try: doubling up to a cap, with jitter so that many workers do
//! not come back at once.

use std::time::Duration;

use super::chance::most_of;

const FIRST: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Between half and all of the doubled time.
    pub fn next(&mut self) -> Duration {
        let full = (FIRST * 2_u32.saturating_pow(self.failures.min(16))).min(CAP);
        self.failures += 1;
        most_of(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits[19] <= CAP && waits[19] >= CAP / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
