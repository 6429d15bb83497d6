//! The sparse body: runs of zeros, and runs of up to four equal ranks.

use super::{Malformed, Observation, REGISTERS, Ranks};

/// The highest rank that a VAL opcode holds.
const RANK_MAX: u8 = 32;

const ZERO_RUN_MAX: usize = 64;
const VAL_RUN_MAX: usize = 4;

/// The registers of `body`, which begins at `offset` of the string. Accepts what Redis accepts,
/// save one thing: if the string ends in the middle of an XZERO, Redis reads the zero byte behind
/// it.
pub(super) fn read(body: &[u8], offset: usize) -> Result<Box<Ranks>, Malformed> {
    let mut ranks = Box::new([0; REGISTERS]);
    let mut covered = 0;
    let mut at = 0;
    while let Some(&opcode) = body.get(at) {
        let malformed = |what| Malformed { at: offset + at, what };
        let (rank, run, length) = match opcode >> 6 {
            0 => (0, usize::from(opcode & 63) + 1, 1),
            1 => {
                let low = body.get(at + 1).ok_or(malformed("XZERO is cut"))?;
                (0, (usize::from(opcode & 63) << 8 | usize::from(*low)) + 1, 2)
            }
            _ => ((opcode >> 2 & 31) + 1, usize::from(opcode & 3) + 1, 1),
        };
        let run = ranks.get_mut(covered..covered + run).ok_or(malformed("opcode runs past the last register"))?;
        if rank > 0 {
            run.fill(rank);
        }
        covered += run.len();
        at += length;
    }
    if covered < REGISTERS {
        return Err(Malformed { at: offset + at, what: "opcodes end before the last register" });
    }
    Ok(ranks)
}

/// Appends the shortest opcodes for `observations`, which are in order, to `string`. None if a rank
/// is above [`RANK_MAX`] or the string would have more than `bytes_max` bytes.
pub(super) fn write(
    observations: impl Iterator<Item = Observation>,
    mut string: Vec<u8>,
    bytes_max: usize,
) -> Option<Vec<u8>> {
    let mut observations = observations.peekable();
    let mut covered = 0;
    while let Some(Observation { register, rank }) = observations.next() {
        assert!(rank > 0 && usize::from(register) >= covered);
        if rank > RANK_MAX || string.len() >= bytes_max {
            return None;
        }
        write_zeros(usize::from(register) - covered, &mut string);
        covered = usize::from(register) + 1;
        let mut run = 1;
        while run < VAL_RUN_MAX
            && observations.next_if(|next| usize::from(next.register) == covered && next.rank == rank).is_some()
        {
            covered += 1;
            run += 1;
        }
        string.push(0x80 | (rank - 1) << 2 | (run - 1) as u8);
    }
    write_zeros(REGISTERS - covered, &mut string);
    (string.len() <= bytes_max).then_some(string)
}

fn write_zeros(run: usize, string: &mut Vec<u8>) {
    match run {
        0 => {}
        1..=ZERO_RUN_MAX => string.push((run - 1) as u8),
        _ => string.extend_from_slice(&[0x40 | ((run - 1) >> 8) as u8, (run - 1) as u8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hll::xorshift::Xorshift;

    fn opcodes(observations: &[(u16, u8)]) -> Vec<u8> {
        let observations = observations.iter().map(|&(register, rank)| Observation { register, rank });
        write(observations, Vec::new(), usize::MAX).unwrap()
    }

    fn ranks(observations: &[(u16, u8)]) -> Box<Ranks> {
        let mut ranks = Box::new([0; REGISTERS]);
        for &(register, rank) in observations {
            ranks[usize::from(register)] = rank;
        }
        ranks
    }

    #[test]
    fn writes_each_opcode_at_its_ends() {
        assert_eq!(opcodes(&[]), [0x7f, 0xff]);
        assert_eq!(opcodes(&[(0, 1)]), [0x80, 0x7f, 0xfe]);
        assert_eq!(opcodes(&[(16_383, 32)]), [0x7f, 0xfe, 0xfc]);
        assert_eq!(opcodes(&[(64, 2), (16_383, 2)]), [0x3f, 0x84, 0x7f, 0xbd, 0x84]);
        assert_eq!(opcodes(&[(65, 2), (16_318, 2)]), [0x40, 0x40, 0x84, 0x7f, 0x7b, 0x84, 0x40, 0x40]);
        assert_eq!(opcodes(&[(16_319, 2)]), [0x7f, 0xbe, 0x84, 0x3f]);
        let five = [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3), (5, 4), (7, 4)];
        assert_eq!(opcodes(&five), [0x8b, 0x88, 0x8c, 0x00, 0x8c, 0x7f, 0xf7]);
    }

    #[test]
    fn writes_no_more_than_it_may() {
        let three = || (0..3).map(|n| Observation { register: n * 100, rank: 1 + n as u8 });
        let string = write(three(), vec![1, 2], usize::MAX).unwrap();
        for bytes_max in 0..string.len() {
            assert_eq!(write(three(), vec![1, 2], bytes_max), None, "{bytes_max}");
        }
        assert_eq!(write(three(), vec![1, 2], string.len()), Some(string));
        let high = Observation { register: 7, rank: 33 };
        assert_eq!(write([high].into_iter(), Vec::new(), usize::MAX), None);
    }

    #[test]
    fn reads_what_it_wrote() {
        for seed in 1..=200 {
            let mut random = Xorshift::new(seed);
            let spacing = 1 + random.below(300);
            let highest = 1 + random.below(32);
            let mut some = Vec::new();
            for register in 0..REGISTERS as u16 {
                if random.below(spacing) == 0 {
                    some.push((register, 1 + random.below(highest) as u8));
                }
            }
            assert_eq!(read(&opcodes(&some), 16).unwrap(), ranks(&some), "seed {seed}");
        }
    }

    #[test]
    fn reads_runs_split_in_ways_it_never_writes() {
        let body: Vec<u8> = std::iter::repeat_n(0x3f, 255).chain([0x84, 0x84, 0x85, 0x00, 0x00, 0x40, 0x39]).collect();
        let expected = ranks(&[(16_320, 2), (16_321, 2), (16_322, 2), (16_323, 2)]);
        assert_eq!(read(&body, 16).unwrap(), expected);
    }

    #[test]
    fn says_where_a_body_is_malformed() {
        let at = |body: &[u8]| read(body, 16).unwrap_err().at;
        assert_eq!(at(&[]), 16);
        assert_eq!(at(&[0x7f]), 16);
        assert_eq!(at(&[0x7f, 0xfe]), 18);
        assert_eq!(at(&[0x00, 0x7f, 0xff]), 17);
        assert_eq!(at(&[0x7f, 0xff, 0x00]), 18);
        assert_eq!(at(&[0x7f, 0xfe, 0x81]), 18);
    }
}
