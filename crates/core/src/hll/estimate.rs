//! How many distinct elements a histogram of ranks stands for (Ertl 2017, algorithm 6; Redis's
//! `hllCount`).
//!
//! The operations and their order are Redis's, because the result is rounded to a whole number and
//! must be the same one.

use super::{RANK_BITS, RANK_MAX, REGISTERS};

/// How many registers have each rank.
pub(super) type Histogram = [u32; RANK_MAX as usize + 1];

/// 1 / (2 ln 2).
const ALPHA_INFINITE: f64 = 0.721_347_520_444_481_7;

/// Ranks above 51, which no hash gives, count as Redis counts them: not at all. Where so many
/// registers are at their end that the estimate leaves the range of Redis's integer reply, it stays
/// at the end of that range.
pub(super) fn estimate(histogram: &Histogram) -> u64 {
    let registers = REGISTERS as f64;
    let saturated = f64::from(histogram[RANK_BITS as usize + 1]);
    let mut z = registers * tau((registers - saturated) / registers);
    for rank in (1..=RANK_BITS as usize).rev() {
        z += f64::from(histogram[rank]);
        z *= 0.5;
    }
    z += registers * sigma(f64::from(histogram[0]) / registers);
    let estimate = (ALPHA_INFINITE * registers * registers / z).round();
    (estimate as u64).min(i64::MAX as u64)
}

/// Ertl's sigma: the part of the untouched registers. `x` is in `[0, 1]`; at 1 it is infinite, and
/// the estimate 0.
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

/// Ertl's tau: the part of the saturated registers. `x` is in `[0, 1]`.
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_at(rank: usize) -> Histogram {
        let mut histogram = [0; 64];
        histogram[rank] = REGISTERS as u32;
        histogram
    }

    #[test]
    fn is_zero_for_untouched_registers() {
        assert_eq!(estimate(&all_at(0)), 0);
    }

    #[test]
    fn doubles_with_every_rank() {
        for rank in 2..40 {
            let (lower, upper) = (estimate(&all_at(rank - 1)), estimate(&all_at(rank)));
            assert!(upper.abs_diff(2 * lower) <= 1, "{lower} {upper}");
        }
    }

    #[test]
    fn agrees_with_ertls_closed_forms() {
        // sigma(x) = x + sum of x^(2^k) 2^(k-1), tau(x) = (1 - x - sum of (1 - x^(2^-k))^2 2^-k) /
        // 3, k from 1.
        for x in [0.0, 0.1, 0.5, 0.9, 0.999] {
            let sum: f64 = (1..60).map(|k| f64::powf(x, 2f64.powi(k)) * 2f64.powi(k - 1)).sum();
            assert!((sigma(x) - (x + sum)).abs() <= 1e-9 * sigma(x), "{x}");
            let sum: f64 = (1..60).map(|k| (1.0 - f64::powf(x, 2f64.powi(-k))).powi(2) * 2f64.powi(-k)).sum();
            let expected = if x == 0.0 { 0.0 } else { (1.0 - x - sum) / 3.0 };
            assert!((tau(x) - expected).abs() <= 1e-12, "{x}");
        }
    }

    #[test]
    fn stays_in_the_range_of_a_reply_when_registers_are_saturated() {
        assert_eq!(estimate(&all_at(51)), i64::MAX as u64);
        assert_eq!(estimate(&all_at(63)), i64::MAX as u64);
        let mut half = all_at(51);
        (half[51], half[1]) = (8192, 8192);
        assert!(estimate(&half) < 100_000);
    }
}
