//! The registers in memory.
//!
//! Thousands of keys with a handful of elements each stand beside a few with millions. So a sketch
//! begins as a sorted list of the registers that were raised, 4 bytes each, and turns into one byte
//! per register when it has more than [`FEW_MAX`] of them. Registers never fall, so it never turns
//! back, and equal registers are always in equal forms.

use std::fmt;

use super::estimate::{Histogram, estimate};
use super::{Observation, RANK_MAX, REGISTERS, Ranks, observe};

/// At 1,024 the list has a quarter of the size of the array, and raising in it still costs tens of
/// nanoseconds.
const FEW_MAX: usize = 1024;

/// A HyperLogLog of 16,384 registers (standard error 0.81 %).
#[derive(Clone, PartialEq, Eq)]
pub struct Hll {
    form: Form,
}

#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// In the order of registers, each once, ranks above 0, at most [`FEW_MAX`].
    Few(Vec<Observation>),
    /// More than [`FEW_MAX`] ranks are above 0.
    Dense(Box<Ranks>),
}

impl Hll {
    #[must_use]
    pub const fn new() -> Self {
        Self { form: Form::Few(Vec::new()) }
    }

    pub(super) fn from_ranks(ranks: Box<Ranks>) -> Self {
        assert!(ranks.iter().all(|rank| *rank <= RANK_MAX));
        let raised = ranks.iter().filter(|rank| **rank > 0).count();
        if raised > FEW_MAX {
            return Self { form: Form::Dense(ranks) };
        }
        let mut few = Vec::with_capacity(raised);
        few.extend(observations_of(&ranks[..]));
        Self { form: Form::Few(few) }
    }

    /// Raises the observation's register to its rank; true if it was lower.
    ///
    /// # Panics
    ///
    /// If the register is not one of the 16,384, or the rank is above 63. [`observe`] gives
    /// neither.
    #[inline]
    pub fn raise(&mut self, seen: Observation) -> bool {
        match &mut self.form {
            Form::Dense(ranks) => {
                let rank = &mut ranks[usize::from(seen.register)];
                if seen.rank <= *rank {
                    return false;
                }
                assert!(seen.rank <= RANK_MAX);
                *rank = seen.rank;
                true
            }
            Form::Few(_) => self.raise_few(seen),
        }
    }

    fn raise_few(&mut self, seen: Observation) -> bool {
        let Form::Few(few) = &mut self.form else { unreachable!("the caller matched it") };
        assert!(usize::from(seen.register) < REGISTERS && seen.rank <= RANK_MAX);
        match few.binary_search_by_key(&seen.register, |own| own.register) {
            Ok(at) if seen.rank > few[at].rank => few[at].rank = seen.rank,
            Ok(_) => return false,
            Err(_) if seen.rank == 0 => return false,
            Err(at) if few.len() < FEW_MAX => few.insert(at, seen),
            Err(_) => {
                let mut ranks = spread(few);
                ranks[usize::from(seen.register)] = seen.rank;
                self.form = Form::Dense(ranks);
            }
        }
        true
    }

    /// Whether [`Hll::raise`] would answer true.
    #[inline]
    #[must_use]
    pub fn would_raise(&self, seen: Observation) -> bool {
        seen.rank > self.rank(seen.register)
    }

    /// The rank of one register, 0 if nothing raised it.
    #[inline]
    #[must_use]
    pub fn rank(&self, register: u16) -> u8 {
        match &self.form {
            Form::Dense(ranks) => ranks[usize::from(register)],
            Form::Few(few) => few.binary_search_by_key(&register, |own| own.register).map_or(0, |at| few[at].rank),
        }
    }

    /// Adds an element; true if that raised a register, which is when `PFADD` answers 1 for an
    /// existing key.
    #[inline]
    pub fn add(&mut self, element: &[u8]) -> bool {
        self.raise(observe(element))
    }

    /// Becomes the union of both, as `PFMERGE` does it.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.form, &other.form) {
            (Form::Dense(own), Form::Dense(others)) => {
                for (own, other) in own.iter_mut().zip(others.iter()) {
                    *own = (*own).max(*other);
                }
            }
            (Form::Few(own), Form::Dense(_)) => {
                let own = std::mem::take(own);
                self.form = other.form.clone();
                self.raise_all(&own);
            }
            (_, Form::Few(others)) => self.raise_all(others),
        }
    }

    fn raise_all(&mut self, observations: &[Observation]) {
        for seen in observations {
            self.raise(*seen);
        }
    }

    /// The estimate of how many distinct elements were added: what `PFCOUNT` answers.
    #[must_use]
    pub fn count(&self) -> u64 {
        estimate(&self.histogram())
    }

    fn histogram(&self) -> Histogram {
        let mut histogram = [0; 64];
        match &self.form {
            Form::Few(few) => {
                histogram[0] = (REGISTERS - few.len()) as u32;
                for seen in few {
                    histogram[usize::from(seen.rank)] += 1;
                }
            }
            Form::Dense(ranks) => {
                // Four histograms, so that neighbours of equal rank do not wait for each other's
                // increment.
                let mut lanes = [[0u32; 64]; 4];
                for four in ranks.as_chunks::<4>().0 {
                    for (lane, rank) in lanes.iter_mut().zip(four) {
                        lane[usize::from(rank & RANK_MAX)] += 1;
                    }
                }
                for (rank, registers) in histogram.iter_mut().enumerate() {
                    *registers = lanes.iter().map(|lane| lane[rank]).sum();
                }
            }
        }
        histogram
    }

    /// The registers above 0, in order.
    pub fn observations(&self) -> impl Iterator<Item = Observation> + '_ {
        let (few, ranks): (&[Observation], &[u8]) = match &self.form {
            Form::Few(few) => (few, &[]),
            Form::Dense(ranks) => (&[], &ranks[..]),
        };
        few.iter().copied().chain(observations_of(ranks))
    }

    /// A copy of every register, one byte each.
    #[must_use]
    pub fn registers(&self) -> Box<[u8; REGISTERS]> {
        match &self.form {
            Form::Few(few) => spread(few),
            Form::Dense(ranks) => ranks.clone(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(&self.form, Form::Few(few) if few.is_empty())
    }

    /// Bytes on the heap, at most 16,384.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Few(few) => few.capacity() * size_of::<Observation>(),
            Form::Dense(_) => REGISTERS,
        }
    }
}

impl Default for Hll {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = if matches!(self.form, Form::Few(_)) { "few" } else { "dense" };
        write!(f, "Hll({form}, {} registers raised, count {})", self.observations().count(), self.count())
    }
}

/// The count of the union of `hlls`: what `PFCOUNT` answers for several keys.
#[must_use]
pub fn union_count<'a>(hlls: impl IntoIterator<Item = &'a Hll>) -> u64 {
    let mut union = Hll::new();
    for hll in hlls {
        union.merge(hll);
    }
    union.count()
}

fn spread(few: &[Observation]) -> Box<Ranks> {
    let mut ranks = Box::new([0; REGISTERS]);
    for seen in few {
        ranks[usize::from(seen.register)] = seen.rank;
    }
    ranks
}

fn observations_of(ranks: &[u8]) -> impl Iterator<Item = Observation> + '_ {
    (0..).zip(ranks).filter(|(_, rank)| **rank > 0).map(|(register, &rank)| Observation { register, rank })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hll::xorshift::Xorshift;

    /// What a sketch is: an array of highest ranks.
    #[derive(Clone)]
    struct Model(Box<Ranks>);

    impl Model {
        fn new() -> Self {
            Self(Box::new([0; REGISTERS]))
        }

        fn raise(&mut self, seen: Observation) -> bool {
            let rank = &mut self.0[usize::from(seen.register)];
            let rises = seen.rank > *rank;
            *rank = seen.rank.max(*rank);
            rises
        }
    }

    fn check(hll: &Hll, model: &Model, seed: u64) {
        assert_eq!(hll.registers(), model.0, "seed {seed}");
        assert_eq!(*hll, Hll::from_ranks(model.0.clone()), "seed {seed}");
        assert!(hll.observations().eq(observations_of(&model.0[..])), "seed {seed}");
        assert_eq!(hll.is_empty(), model.0.iter().all(|rank| *rank == 0), "seed {seed}");
        let mut histogram = [0; 64];
        for rank in model.0.iter() {
            histogram[usize::from(*rank)] += 1;
        }
        assert_eq!(hll.histogram(), histogram, "seed {seed}");
    }

    fn random_pair(random: &mut Xorshift) -> (Hll, Model) {
        let (mut hll, mut model) = (Hll::new(), Model::new());
        let observations = 1 << random.below(14);
        let registers = 1 + random.below(REGISTERS as u64);
        for _ in 0..random.below(observations) {
            let seen = Observation { register: random.below(registers) as u16, rank: random.below(64) as u8 };
            assert_eq!(hll.would_raise(seen), seen.rank > model.0[usize::from(seen.register)]);
            assert_eq!(hll.raise(seen), model.raise(seen));
            assert_eq!(hll.rank(seen.register), model.0[usize::from(seen.register)]);
        }
        (hll, model)
    }

    #[test]
    fn agrees_with_the_model() {
        for seed in 1..=300 {
            let mut random = Xorshift::new(seed);
            let (hll, model) = random_pair(&mut random);
            check(&hll, &model, seed);
            let (mut merged, mut expected) = random_pair(&mut random);
            merged.merge(&hll);
            for (register, rank) in (0..).zip(model.0.iter()) {
                expected.raise(Observation { register, rank: *rank });
            }
            check(&merged, &expected, seed);
        }
    }

    #[test]
    fn merges_in_any_order_to_the_same() {
        for seed in 1..=100 {
            let mut random = Xorshift::new(seed);
            let [a, b, c] = [(); 3].map(|()| random_pair(&mut random).0);
            let union = |order: [&Hll; 3]| {
                let mut union = Hll::new();
                order.into_iter().for_each(|hll| union.merge(hll));
                union
            };
            assert_eq!(union([&a, &b, &c]), union([&c, &b, &a]), "seed {seed}");
            assert_eq!(union([&a, &b, &c]), union([&union([&b, &a, &b]), &c, &a]), "seed {seed}");
            assert_eq!(union_count([&a, &b, &c]), union([&b, &c, &a]).count(), "seed {seed}");
        }
    }

    #[test]
    fn turns_dense_above_1024_registers() {
        let mut hll = Hll::new();
        for register in (0..1024).rev() {
            assert!(hll.raise(Observation { register: register * 16, rank: 1 }));
        }
        assert_eq!(hll.heap_bytes(), 4096);
        assert!(hll.raise(Observation { register: 16, rank: 2 }));
        assert_eq!(hll.heap_bytes(), 4096);
        assert!(hll.raise(Observation { register: 1, rank: 1 }));
        assert_eq!(hll.heap_bytes(), 16_384);
        assert_eq!(hll.observations().count(), 1025);
        assert_eq!(format!("{hll:?}"), "Hll(dense, 1025 registers raised, count 1057)");
    }

    #[test]
    fn an_empty_one_allocates_nothing() {
        assert_eq!((Hll::new().heap_bytes(), Hll::new().count()), (0, 0));
        assert!(Hll::new().is_empty() && !Hll::new().raise(Observation { register: 5, rank: 0 }));
    }

    #[test]
    #[should_panic(expected = "seen.register")]
    fn refuses_a_register_that_does_not_exist() {
        Hll::new().raise(Observation { register: 16_384, rank: 1 });
    }
}
