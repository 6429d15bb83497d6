//! The corpora. One seed gives one corpus, whatever the machine.

mod hostile;
mod random;
mod small;
mod standard;

pub use hostile::Hostile;
pub use random::Random;
pub use small::Small;
pub use standard::Standard;

/// 2026-11-02T00:00:00Z, a Monday: the corpus fills seven whole days of UTC.
pub const TS_MS_BEGIN: u64 = 1_793_577_600_000;
pub const TS_MS_SPAN: u64 = 7 * 86_400_000;

/// The values whose distinct counts are part of a corpus's description.
pub struct Drawn {
    pub ip: u32,
    pub user: usize,
    pub url: usize,
    pub event: usize,
    pub geo: usize,
}

/// The time of event `index` of `count`: ascending, with a jitter of up to half a minute either
/// way.
fn ts_ms(random: &mut Random, index: u64, count: u64) -> u64 {
    const JITTER_MS: u64 = 30_000;
    let even = TS_MS_SPAN * index / count;
    let jittered = (even + random.below(2 * JITTER_MS)).saturating_sub(JITTER_MS);
    TS_MS_BEGIN + jittered.min(TS_MS_SPAN - 1)
}
