//! The string of a HyperLogLog: what is read is written and read again, register for register, and
//! merges as sets do.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq_core::hll::{Hll, union_count};

fuzz_target!(|bytes: &[u8]| {
    let Ok(hll) = Hll::decode(bytes) else { return };
    let dense = hll.encode_dense();
    assert_eq!(Hll::decode(&dense).as_ref(), Ok(&hll));
    assert_eq!(Hll::decode(&hll.encode()).as_ref(), Ok(&hll));
    if let Some(sparse) = hll.encode_sparse() {
        assert_eq!(Hll::decode(&sparse).as_ref(), Ok(&hll));
    }
    let mut union = hll.clone();
    union.merge(&hll);
    assert_eq!(union, hll);
    let mut other = Hll::new();
    (0..20_u8).for_each(|element| _ = other.add(&[element]));
    union.merge(&other);
    let mut turned = other.clone();
    turned.merge(&hll);
    assert_eq!(union, turned);
    for seen in other.observations() {
        assert_eq!(union.rank(seen.register), hll.rank(seen.register).max(seen.rank));
    }
    assert_eq!(union_count([&hll, &other]), union.count());
});
