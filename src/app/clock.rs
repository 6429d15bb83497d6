//! The clocks of the process.

use std::time::{SystemTime, UNIX_EPOCH};

use traqq_disk::AgeClock;

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

pub fn now() -> i64 {
    now_ms() / 1000
}

/// The clock by which what is too old is removed.
pub fn age_ms() -> i64 {
    static CLOCK: AgeClock = AgeClock::new();
    CLOCK.believe(now_ms())
}

pub fn age() -> i64 {
    age_ms() / 1000
}
