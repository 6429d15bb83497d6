//! Chance, where many would otherwise do the same at the same time. A simulation seeds it, and
//! everything happens again as it did.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
}

/// Makes what comes next on this thread follow from a number.
pub fn seed(seed: u64) {
    // Neighbouring seeds must not begin alike, and zero would stay zero.
    STATE.set(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
}

/// At least 0 and less than 1; xorshift64, good enough to spread waits.
fn fraction() -> f64 {
    let mut state = STATE.get();
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    STATE.set(state);
    (state >> 11) as f64 / (1_u64 << 53) as f64
}

/// Between half and all of it.
pub fn most_of(duration: Duration) -> Duration {
    duration / 2 + (duration / 2).mul_f64(fraction())
}
