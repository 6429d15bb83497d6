//! Strings captured from Redis 7.0.15 after `PFADD` of `user:0`, `user:1`, ... and a `PFCOUNT`,
//! which makes the cached cardinality valid. They are kept and read forever.

use super::{Hll, Observation, observe};

/// (elements, what `PFCOUNT` answered, what `GET` answered)
const SPARSE: [(usize, u64, &[u8]); 4] = [
    (0, 0, b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\0\x7f\xff"),
    (1, 1, b"HYLL\x01\0\0\0\x01\0\0\0\0\0\0\0\x74\x54\x80\x4b\xa9"),
    (
        10,
        10,
        b"HYLL\x01\0\0\0\x0a\0\0\0\0\0\0\0\
          \x48\x52\x8c\x4c\xfa\x84\x49\x90\x80\x41\x1a\x80\x44\x01\x84\x50\x53\x80\x41\x15\x84\x19\x84\x17\x84\x46\x17\
          \x84\x44\x45",
    ),
    (1500, 1516, include_bytes!("golden/sparse.hyll")),
];

/// As above.
const DENSE: (usize, u64, &[u8]) = (10_000, 10_089, include_bytes!("golden/dense.hyll"));

/// What `PFCOUNT` answered after so many elements.
const COUNTS: [(usize, u64); 10] = [
    (0, 0),
    (1, 1),
    (10, 10),
    (100, 100),
    (1000, 1007),
    (1500, 1516),
    (1600, 1611),
    (1700, 1714),
    (10_000, 10_089),
    (1_000_000, 999_674),
];

fn users(elements: usize) -> Hll {
    let mut hll = Hll::new();
    for n in 0..elements {
        hll.add(format!("user:{n}").as_bytes());
    }
    hll
}

#[test]
fn reads_what_redis_wrote() {
    for (elements, count, string) in SPARSE.into_iter().chain([DENSE]) {
        let hll = Hll::decode(string).unwrap();
        assert_eq!(hll, users(elements), "{elements}");
        assert_eq!(hll.count(), count, "{elements}");
    }
}

#[test]
fn writes_what_redis_wrote() {
    for (elements, _, string) in SPARSE.into_iter().take(3).chain([DENSE]) {
        assert!(users(elements).encode() == string, "{elements}");
    }
    // Redis edits its opcodes in place and so leaves some runs split; ours is the shortest form of
    // the same.
    let (elements, _, string) = SPARSE[3];
    let shortest = users(elements).encode();
    assert!(shortest[..16] == string[..16] && shortest.len() <= string.len(), "{} {}", shortest.len(), string.len());
}

#[test]
fn counts_what_redis_counted() {
    for (elements, count) in COUNTS {
        assert_eq!(users(elements).count(), count, "{elements}");
    }
}

#[test]
fn observes_what_redis_observed() {
    let string = b"HYLL\x01\0\0\0\x04\0\0\0\0\0\0\0\x54\xc8\x84\x42\x67\x84\x4b\x54\x84\x4c\x80\x84\x50\xf4";
    let mut seen = [&b""[..], b"\0", b"\xff\xfe\0\x01", b"traqq"].map(observe);
    seen.sort_by_key(|seen| seen.register);
    assert!(Hll::decode(string).unwrap().observations().eq(seen));
    // The opcodes read by hand: an XZERO before each of four VALs of 2.
    let mut register = 0;
    for (zeros, seen) in [0x14c9, 0x268, 0xb55, 0xc81].into_iter().zip(seen) {
        register += zeros;
        assert_eq!(seen, Observation { register, rank: 2 });
        register += 1;
    }
}
