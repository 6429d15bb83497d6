//! HyperLogLog, byte-compatible with Redis 7: the same hash, the same registers, the same estimate,
//! the same string.
//!
//! A pure module: bytes in, bytes out. What Redis holds under a key after `PFADD` can be decoded
//! here, raised, merged, counted and written back, and register for register nobody can tell which
//! side did the work.
//!
//! ```text
//! header, 16 bytes
//!   offset  bytes
//!        0      4  "HYLL"
//!        4      1  encoding: 0 dense, 1 sparse
//!        5      3  written as zero, never read (neither by Redis)
//!        8      8  cached cardinality, u64 little-endian; bit 63 set: stale, count again
//!
//! dense body, 12,288 bytes: register i is bits [6i, 6i + 6), from the lowest bit of the first byte
//!   byte 0    byte 1    byte 2    byte 3              (the highest bit on the left,
//!   11000000  22221111  33333322  55444444  ...        the digit says which register)
//!
//! sparse body: opcodes which together cover exactly 16,384 registers, in order
//!   ZERO   00llllll            l + 1 registers of 0                1..=64
//!   XZERO  01hhhhhh llllllll   (h << 8 | l) + 1 registers of 0     1..=16,384
//!   VAL    1vvvvvll            l + 1 registers of v + 1            1..=4 registers, values 1..=32
//! ```
//!
//! Sources: the formats, the choice between them and the split of the hash into register and rank:
//! Redis, `src/hyperloglog.c`, 7.0. The estimate: O. Ertl, "New cardinality estimation algorithms
//! for HyperLogLog sketches" (2017, arXiv:1702.01284). The hash: A. Appleby, `MurmurHash64A`, in
//! its little-endian form.
//!
//! ```text
//! element --murmur--> u64 --observation--> (register, rank) --sketch--> registers
//!
//! registers --estimate--> count
//! registers <--format (dense, sparse)--> bytes
//! ```

mod dense;
mod estimate;
mod format;
mod murmur;
mod observation;
mod sketch;
mod sparse;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod xorshift;

pub use format::Malformed;
pub use murmur::murmur64a;
pub use observation::{Observation, observe};
pub use sketch::{Hll, union_count};

/// How many low bits of the hash pick the register.
const REGISTER_BITS: u32 = 14;

/// How many registers a sketch has.
pub const REGISTERS: usize = 1 << REGISTER_BITS;

/// How many bits of the hash are left for the rank.
const RANK_BITS: u32 = 64 - REGISTER_BITS;

/// The highest rank that the six bits of a dense register hold. The hash itself ends at
/// `RANK_BITS + 1`, 51; a string edited by hand may hold more, and Redis accepts it.
const RANK_MAX: u8 = 63;

/// Every register, one byte each.
type Ranks = [u8; REGISTERS];
