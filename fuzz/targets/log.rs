//! What the local log reads from disk, by the first byte: `b` a block, `w` the watermark, `t` the
//! row of an expiry.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq_core::model::TopicPartition;
use traqq_log::local::{Block, compressor, rows, watermark};

/// Larger blocks are refused by nothing, and cost only time here.
const PLAIN_BYTES_MAX: u32 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((b'b', row)) => block(row),
        Some((b'w', row)) => {
            if let Some(ends) = watermark::parse(row) {
                let again = watermark::encode(ends.iter().copied());
                assert_eq!(watermark::parse(&again), Some(ends));
            }
        }
        Some((b't', _)) => {
            if let Some((when_ms, key)) = rows::parse_expiry(bytes) {
                assert_eq!(rows::expiry(when_ms, key), bytes);
            }
        }
        _ => _ = rows::block_last(bytes),
    }
});

fn block(row: &[u8]) {
    let is_large = |length: &[u8; 4]| u32::from_le_bytes(*length) > PLAIN_BYTES_MAX;
    if row.get(13..).and_then(<[u8]>::first_chunk).is_some_and(is_large) {
        return;
    }
    let Some(block) = Block::decode(row) else { return };
    assert_eq!(Block::head(row), Some((block.arrival_ms, block.count)));
    let again = Block::decode(&block.encode(&mut compressor()));
    assert_eq!(again.as_ref(), Some(&block));
    let count = block.count as usize;
    let records = block.into_batch(TopicPartition::new("t", 0), 1, 40);
    assert_eq!((records.len(), records.position), (count, 40 + count as i64));
    for record in records.iter() {
        record.fingerprint();
        record.headers().for_each(drop);
    }
}
