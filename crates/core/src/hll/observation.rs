//! What one element tells a sketch.

use super::{RANK_BITS, REGISTER_BITS, REGISTERS, murmur64a};

/// Redis's seed; another one would give another sketch of the same elements.
const SEED: u64 = 0xadc8_3b19;

/// One observation: which register, and how long the run of zeros was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    /// `0..16,384`.
    pub register: u16,
    /// Zeros before the first one, plus one: `1..=51` from a hash. A register is the highest rank
    /// it has seen, 0 if none.
    pub rank: u8,
}

/// What `element` tells: Redis's `hllPatLen`.
#[inline]
#[must_use]
pub fn observe(element: &[u8]) -> Observation {
    let hash = murmur64a(element, SEED);
    // The bit above the last one ends a run of nothing but zeros.
    let run = hash >> REGISTER_BITS | 1 << RANK_BITS;
    Observation { register: (hash & (REGISTERS as u64 - 1)) as u16, rank: run.trailing_zeros() as u8 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The eight bytes that hash to `hash`: each step of the hash taken back.
    fn element_of(hash: u64) -> [u8; 8] {
        const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
        const INVERSE: u64 = 0x5f7a_0ea7_e59b_19bd;
        let unshift = |n: u64| n ^ n >> 47;
        let state = unshift(unshift(hash).wrapping_mul(INVERSE)).wrapping_mul(INVERSE);
        let k = state ^ SEED ^ 8u64.wrapping_mul(MULTIPLIER);
        unshift(k.wrapping_mul(INVERSE)).wrapping_mul(INVERSE).to_le_bytes()
    }

    #[test]
    fn splits_the_hash_into_register_and_run() {
        for register in [0, 1, 0x2aaa, 0x3fff] {
            let observed = |run: u64| observe(&element_of(run << 14 | u64::from(register)));
            for rank in 1..=50u8 {
                assert_eq!(observed(1 << (rank - 1)), Observation { register, rank });
                assert_eq!(observed((u64::MAX >> 14) << (rank - 1)), Observation { register, rank });
            }
            assert_eq!(observed(0), Observation { register, rank: 51 });
        }
    }

    #[test]
    fn stays_within_its_ranges() {
        let mut ranks = [0u32; 64];
        for n in 0..200_000u64 {
            let seen = observe(&n.to_le_bytes());
            assert!(usize::from(seen.register) < REGISTERS && (1..=51).contains(&seen.rank));
            ranks[usize::from(seen.rank)] += 1;
        }
        assert!((99_000..101_000).contains(&ranks[1]) && (49_000..51_000).contains(&ranks[2]), "{ranks:?}");
    }
}
