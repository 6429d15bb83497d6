//! A seeded generator for the tests of this module (Marsaglia's xorshift64*).

pub(super) struct Xorshift(u64);

impl Xorshift {
    /// `seed` is not zero.
    pub(super) fn new(seed: u64) -> Self {
        assert_ne!(seed, 0);
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In `[0, end)`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}
