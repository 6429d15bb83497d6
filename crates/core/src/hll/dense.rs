//! The dense body: four registers in three bytes.

use super::{REGISTERS, Ranks};

/// Length of the body in bytes.
pub(super) const BYTES: usize = REGISTERS / 4 * 3;

/// Every string of `BYTES` bytes is a dense body.
pub(super) fn read(body: &[u8; BYTES]) -> Box<Ranks> {
    let mut ranks = Box::new([0; REGISTERS]);
    for (four, three) in ranks.as_chunks_mut::<4>().0.iter_mut().zip(body.as_chunks::<3>().0) {
        let bits = u32::from_le_bytes([three[0], three[1], three[2], 0]);
        *four = [0, 6, 12, 18].map(|at| (bits >> at & 63) as u8);
    }
    ranks
}

/// Appends the body of `ranks`, each of which fits into six bits.
pub(super) fn write(ranks: &Ranks, string: &mut Vec<u8>) {
    let start = string.len();
    string.resize(start + BYTES, 0);
    let body = string[start..].as_chunks_mut::<3>().0;
    for (three, four) in body.iter_mut().zip(ranks.as_chunks::<4>().0) {
        let bits = four.iter().rev().fold(0, |bits, rank| bits << 6 | u32::from(*rank));
        let [low, middle, high, _] = bits.to_le_bytes();
        *three = [low, middle, high];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hll::xorshift::Xorshift;

    #[test]
    fn puts_registers_where_the_byte_map_says() {
        let mut ranks = [0; REGISTERS];
        ranks[..6].copy_from_slice(&[0b00_0001, 0b10_0010, 0b11_1111, 0b01_0101, 0b11_0011, 0b00_0111]);
        let mut body = Vec::new();
        write(&ranks, &mut body);
        assert_eq!(body.len(), BYTES);
        assert_eq!(body[..5], [0b1000_0001, 0b1111_1000, 0b0101_0111, 0b1111_0011, 0b0000_0001]);
    }

    #[test]
    fn reads_what_it_wrote() {
        for seed in 1..=20 {
            let mut random = Xorshift::new(seed);
            let mut ranks = Box::new([0; REGISTERS]);
            ranks.fill_with(|| random.below(64) as u8);
            let mut body = Vec::new();
            write(&ranks, &mut body);
            assert_eq!(read(body.as_slice().try_into().unwrap()), ranks, "seed {seed}");
        }
    }
}
