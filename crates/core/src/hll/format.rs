//! Redis's string: a header and a dense or a sparse body. The byte map is in the module's opening
//! comment.

use std::fmt;

use super::{Hll, dense, sparse};

const MAGIC: &[u8; 4] = b"HYLL";
const HEADER_BYTES: usize = 16;

/// Redis's default of `hll-sparse-max-bytes`; it includes the header.
const SPARSE_BYTES_MAX: usize = 3000;

#[derive(Clone, Copy)]
enum Encoding {
    Dense = 0,
    Sparse = 1,
}

/// The bytes are not a HyperLogLog string of Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// Offset in bytes of what is wrong.
    pub at: usize,
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a HyperLogLog string: {} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for Malformed {}

impl Hll {
    /// Reads Redis's string, sparse or dense. The cached cardinality is not used.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the header or the length is wrong, or the opcodes do not cover exactly
    /// every register.
    pub fn decode(string: &[u8]) -> Result<Self, Malformed> {
        let malformed = |at, what| Malformed { at, what };
        let (header, body) =
            string.split_first_chunk::<HEADER_BYTES>().ok_or(malformed(string.len(), "header is cut"))?;
        if !header.starts_with(MAGIC) {
            return Err(malformed(0, "no magic"));
        }
        let ranks = match header[4] {
            0 => {
                let body = body.try_into().map_err(|_| malformed(string.len(), "dense body has another length"))?;
                dense::read(body)
            }
            1 => sparse::read(body, HEADER_BYTES)?,
            _ => return Err(malformed(4, "unknown encoding")),
        };
        Ok(Self::from_ranks(ranks))
    }

    /// Redis's string in the form that Redis itself would choose with its default settings: sparse
    /// while it can hold every rank in 3,000 bytes, then dense. The cached cardinality is valid.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.sparse_within(SPARSE_BYTES_MAX).unwrap_or_else(|| self.encode_dense())
    }

    /// Redis's string in its dense form, 12,304 bytes.
    #[must_use]
    pub fn encode_dense(&self) -> Vec<u8> {
        let mut string = self.header(Encoding::Dense, HEADER_BYTES + dense::BYTES);
        dense::write(&self.registers(), &mut string);
        string
    }

    /// Redis's string in its sparse form, of any length; none if a rank is above 32, which that
    /// form cannot hold.
    #[must_use]
    pub fn encode_sparse(&self) -> Option<Vec<u8>> {
        self.sparse_within(usize::MAX)
    }

    fn sparse_within(&self, bytes_max: usize) -> Option<Vec<u8>> {
        sparse::write(self.observations(), self.header(Encoding::Sparse, HEADER_BYTES + 2), bytes_max)
    }

    fn header(&self, encoding: Encoding, capacity: usize) -> Vec<u8> {
        let mut string = Vec::with_capacity(capacity);
        string.extend_from_slice(MAGIC);
        string.extend_from_slice(&[encoding as u8, 0, 0, 0]);
        string.extend_from_slice(&self.count().to_le_bytes());
        string
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hll::xorshift::Xorshift;
    use crate::hll::{Observation, REGISTERS};

    fn filled(elements: u64) -> Hll {
        let mut hll = Hll::new();
        for n in 0..elements {
            hll.add(&n.to_le_bytes());
        }
        hll
    }

    #[test]
    fn reads_what_it_wrote_in_every_form() {
        for elements in [0, 1, 2, 10, 100, 1000, 1020, 1060, 1100, 1500, 2000, 3000, 10_000, 100_000] {
            let hll = filled(elements);
            let string = hll.encode();
            assert_eq!(Hll::decode(&string), Ok(hll.clone()), "{elements}");
            assert_eq!(Hll::decode(&hll.encode_dense()), Ok(hll.clone()), "{elements}");
            assert_eq!(Hll::decode(&hll.encode_sparse().unwrap()), Ok(hll.clone()), "{elements}");
            assert_eq!(string[8..16], hll.count().to_le_bytes(), "{elements}");
        }
    }

    #[test]
    fn is_sparse_up_to_3000_bytes() {
        let mut hll = Hll::new();
        for register in 0..REGISTERS as u16 {
            let sparse = hll.encode_sparse().unwrap();
            let expected = if sparse.len() <= 3000 { sparse } else { hll.encode_dense() };
            assert_eq!(hll.encode(), expected);
            if register > 3000 {
                break;
            }
            hll.raise(Observation { register, rank: 1 + (register % 2) as u8 });
        }
        assert_eq!(hll.encode().len(), 12_304);
    }

    #[test]
    fn is_dense_when_a_rank_is_above_32() {
        let mut hll = Hll::new();
        hll.raise(Observation { register: 9, rank: 32 });
        assert_eq!(hll.encode()[4], 1);
        hll.raise(Observation { register: 9, rank: 33 });
        assert_eq!(hll.encode_sparse(), None);
        assert_eq!(hll.encode()[4], 0);
        assert_eq!(Hll::decode(&hll.encode()), Ok(hll));
    }

    #[test]
    fn refuses_a_wrong_header_or_length() {
        let what = |string: &[u8]| Hll::decode(string).unwrap_err().what;
        assert_eq!(what(b""), "header is cut");
        assert_eq!(what(b"HYLL\x01\0\0\0\0\0\0\0\0\0\0"), "header is cut");
        assert_eq!(what(b"HYLO\x01\0\0\0\0\0\0\0\0\0\0\0\x7f\xff"), "no magic");
        assert_eq!(what(b"HYLL\x02\0\0\0\0\0\0\0\0\0\0\0\x7f\xff"), "unknown encoding");
        assert_eq!(what(b"HYLL\x00\0\0\0\0\0\0\0\0\0\0\0\x7f\xff"), "dense body has another length");
        let mut longer = Hll::new().encode_dense();
        longer.push(0);
        assert_eq!(what(&longer), "dense body has another length");
        assert_eq!(Hll::decode(b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\x80\x7f\xff"), Ok(Hll::new()));
    }

    #[test]
    fn refuses_a_string_cut_anywhere() {
        for string in [filled(30).encode(), filled(1200).encode(), filled(20_000).encode()] {
            for end in 0..string.len() {
                assert!(Hll::decode(&string[..end]).is_err(), "{end} of {}", string.len());
            }
        }
    }

    #[test]
    fn answers_any_bytes_without_a_panic() {
        let originals = [filled(0).encode(), filled(30).encode(), filled(1200).encode(), filled(20_000).encode()];
        let (mut read, mut refused) = (0, 0);
        for seed in 1..=4000 {
            let mut random = Xorshift::new(seed);
            let mut string = originals[random.below(4) as usize].clone();
            for _ in 0..=random.below(4) {
                let at = random.below(string.len() as u64) as usize;
                string[at] ^= 1 << random.below(8);
            }
            if random.below(3) == 0 {
                let noise = random.below(200) as usize;
                let noise = random.bytes(noise);
                let at = 16 + random.below(string.len() as u64 - 15) as usize;
                string.splice(at..at, noise);
            }
            match Hll::decode(&string) {
                Ok(hll) => {
                    read += 1;
                    assert_eq!(Hll::decode(&hll.encode()), Ok(hll), "seed {seed}");
                }
                Err(_) => refused += 1,
            }
        }
        assert!(read > 100 && refused > 100, "{read} {refused}");
    }
}
