//! Random numbers that are the same for the same seed, forever: SplitMix64 (Steele, Lea, Flood
//! 2014).

pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0, below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

/// Indexes with weights.
pub struct Weighted {
    cumulative: Vec<f64>,
}

impl Weighted {
    pub fn new(weights: impl IntoIterator<Item = f64>) -> Self {
        let mut sum = 0.0;
        let add = |weight| {
            sum += weight;
            sum
        };
        Self { cumulative: weights.into_iter().map(add).collect() }
    }

    /// Zipf's law: the weight of index `i` is `1 / (i + 1)^exponent`.
    pub fn zipf(count: usize, exponent: f64) -> Self {
        Self::new((1..=count).map(|rank| (rank as f64).powf(-exponent)))
    }

    pub fn pick(&self, random: &mut Random) -> usize {
        let sum = self.cumulative.last().copied().unwrap_or(0.0);
        let at = random.unit() * sum;
        self.cumulative.partition_point(|upper| *upper <= at).min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix() {
        let mut random = Random::new(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn zipf_falls_with_the_rank() {
        let (zipf, mut random) = (Weighted::zipf(100, 1.0), Random::new(1));
        let mut counts = [0; 100];
        (0..100_000).for_each(|_| counts[zipf.pick(&mut random)] += 1);
        // The first has 1 / H(100) = 19.3 % of all, the second half of that, the tenth a tenth.
        assert!((19_000..19_600).contains(&counts[0]), "{}", counts[0]);
        assert!((9_300..10_000).contains(&counts[1]), "{}", counts[1]);
        assert!((1_800..2_060).contains(&counts[9]), "{}", counts[9]);
        assert!(counts[99] > 100);
    }
}
