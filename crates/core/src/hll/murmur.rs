//! `MurmurHash64A` (A. Appleby, public domain), little-endian on every machine, as Redis has it.

const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
const SHIFT: u32 = 47;

/// The 64-bit hash of `bytes`.
#[inline]
#[must_use]
pub fn murmur64a(bytes: &[u8], seed: u64) -> u64 {
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let mut k = u64::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        k ^= k >> SHIFT;
        hash = (hash ^ k.wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        hash = (hash ^ last_word(bytes, rest)).wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> SHIFT;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> SHIFT)
}

/// The one to seven bytes of `rest`, the end of `bytes`, as a little-endian number. Two overlapping
/// loads instead of a loop over the bytes: where they overlap both hold the same bits, and `|`
/// keeps them.
#[inline]
fn last_word(bytes: &[u8], rest: &[u8]) -> u64 {
    if let Some(end) = bytes.last_chunk::<8>() {
        return u64::from_le_bytes(*end) >> (64 - 8 * rest.len());
    }
    if let (Some(low), Some(high)) = (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
        let high_at = 8 * (rest.len() - 4);
        return u64::from(u32::from_le_bytes(*low)) | u64::from(u32::from_le_bytes(*high)) << high_at;
    }
    let (middle, end) = (rest.len() / 2, rest.len() - 1);
    u64::from(rest[0]) | u64::from(rest[middle]) << (8 * middle) | u64::from(rest[end]) << (8 * end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hll::xorshift::Xorshift;

    /// The hash read one byte at a time, as its author's portable form does it.
    fn bytewise(bytes: &[u8], seed: u64) -> u64 {
        let number = |part: &[u8]| part.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
        for part in bytes.chunks(8) {
            if part.len() == 8 {
                let mut k = number(part).wrapping_mul(MULTIPLIER);
                k ^= k >> SHIFT;
                hash ^= k.wrapping_mul(MULTIPLIER);
            } else {
                hash ^= number(part);
            }
            hash = hash.wrapping_mul(MULTIPLIER);
        }
        hash ^= hash >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER);
        hash ^ (hash >> SHIFT)
    }

    #[test]
    fn gives_the_verification_value_of_smhasher() {
        let key: Vec<u8> = (0..=255).collect();
        let hashes: Vec<u8> =
            (0..256).flat_map(|length| murmur64a(&key[..length], 256 - length as u64).to_le_bytes()).collect();
        assert_eq!(murmur64a(&hashes, 0) as u32, 0x1f0d_3804);
    }

    #[test]
    fn reads_words_as_it_reads_bytes() {
        let mut random = Xorshift::new(1);
        for length in 0..100 {
            for _ in 0..20 {
                let bytes = random.bytes(length);
                let seed = random.next();
                assert_eq!(murmur64a(&bytes, seed), bytewise(&bytes, seed), "{bytes:?} seed {seed}");
            }
        }
    }
}
