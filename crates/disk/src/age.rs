//! The clock that says what is too old to be kept.
//!
//! What is removed is gone. A clock that is years ahead for a minute (a bad battery, a wrong server
//! of time, a slip of the hand) would have everything removed that has a retention. So a jump ahead
//! is believed only when it has lasted; until then time goes on as the monotonic clock has it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a clock may have jumped before it is believed.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);
/// A clock is set ahead by as much as this without anybody asking.
const STEP_MS_MAX: i64 = 10 * 60 * 1000;

#[derive(Default)]
pub struct AgeClock {
    state: Mutex<Option<Believed>>,
}

struct Believed {
    ms: i64,
    /// When that was.
    at: Instant,
    jumped_at: Option<Instant>,
}

impl AgeClock {
    pub const fn new() -> Self {
        Self { state: Mutex::new(None) }
    }

    /// Epoch milliseconds, given what the system's clock says: that, unless it has jumped ahead.
    pub fn believe(&self, system_ms: i64) -> i64 {
        self.believe_at(system_ms, Instant::now())
    }

    fn believe_at(&self, system_ms: i64, at: Instant) -> i64 {
        // Held for a few instructions; nothing panics meanwhile.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(believed) = &mut *state else {
            *state = Some(Believed { ms: system_ms, at, jumped_at: None });
            return system_ms;
        };
        let expected_ms = believed.ms + at.saturating_duration_since(believed.at).as_millis() as i64;
        if system_ms > expected_ms + STEP_MS_MAX {
            if believed.jumped_at.is_none() {
                tracing::warn!(
                    seconds = (system_ms - expected_ms) / 1000,
                    "the clock has jumped ahead; nothing is removed for its age by that unless it lasts for an hour"
                );
            }
            let since = *believed.jumped_at.get_or_insert(at);
            if at.saturating_duration_since(since) < BELIEVED_AFTER {
                return expected_ms;
            }
        } else if system_ms < expected_ms {
            // Behind, nothing is removed too early; when it comes back that is no jump.
            believed.jumped_at = None;
            return system_ms;
        }
        *believed = Believed { ms: system_ms, at, jumped_at: None };
        system_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

    #[test]
    fn a_jump_ahead_is_believed_when_it_has_lasted() {
        let (clock, start) = (AgeClock::new(), Instant::now());
        let at = |system_ms: i64, s: u64| clock.believe_at(system_ms, start + Duration::from_secs(s));
        assert_eq!(at(1_000_000, 0), 1_000_000);
        assert_eq!(at(1_060_000, 60), 1_060_000);
        assert_eq!(at(1_120_000 + YEAR_MS, 120), 1_120_000);
        assert_eq!(at(1_180_000, 180), 1_180_000, "and back");
        assert_eq!(at(1_240_000 + YEAR_MS, 240), 1_240_000);
        assert_eq!(at(4_780_000 + YEAR_MS, 3_780), 4_780_000);
        assert_eq!(at(4_840_000 + YEAR_MS, 3_840), 4_840_000 + YEAR_MS, "an hour later");
        assert_eq!(at(4_900_000 + YEAR_MS, 3_900), 4_900_000 + YEAR_MS);
    }

    #[test]
    fn a_clock_that_is_behind_and_comes_back_has_not_jumped() {
        let (clock, start) = (AgeClock::new(), Instant::now());
        let at = |system_ms: i64, s: u64| clock.believe_at(system_ms, start + Duration::from_secs(s));
        assert_eq!(at(YEAR_MS, 0), YEAR_MS);
        assert_eq!(at(5_000, 60), 5_000);
        assert_eq!(at(YEAR_MS + 120_000, 120), YEAR_MS + 120_000);
    }
}
