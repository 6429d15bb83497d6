//! The keys of the tree `log`. Numbers are big-endian, so that rows lie in their order.
//!
//! ```text
//! b <partition 4> <last offset 8>   a block of records
//! d <number 8>                      a block with one dead letter
//! i <idempotency key>               when (8), fingerprint of the body (8), the answer
//! t <when 8> <idempotency key>      its expiry
//! m <partition 4>                   position (8), note: what was committed, for retention and lag
//! r <partition 4>                   offsets below this may have been used (8)
//! p                                 number of partitions (4)
//! ```

pub const PARTITIONS: &[u8] = b"p";

pub fn block(partition: i32, last: i64) -> Vec<u8> {
    let mut key = block_prefix(partition);
    key.extend_from_slice(&(last as u64).to_be_bytes());
    key
}

pub fn block_prefix(partition: i32) -> Vec<u8> {
    with_partition(b'b', partition)
}

/// The last offset of a block.
pub fn block_last(key: &[u8]) -> Option<i64> {
    let (_, last) = key.split_last_chunk::<8>()?;
    Some(u64::from_be_bytes(*last) as i64)
}

pub const LETTERS: &[u8] = b"d";

pub fn letter(number: u64) -> Vec<u8> {
    [LETTERS, &number.to_be_bytes()].concat()
}

pub fn idempotency(key: &str) -> Vec<u8> {
    [b"i", key.as_bytes()].concat()
}

pub const EXPIRIES: &[u8] = b"t";

pub fn expiry(when_ms: i64, key: &str) -> Vec<u8> {
    [EXPIRIES, &(when_ms as u64).to_be_bytes(), key.as_bytes()].concat()
}

/// When, and the idempotency key.
pub fn parse_expiry(row: &[u8]) -> Option<(i64, &str)> {
    let (when, key) = row.strip_prefix(EXPIRIES)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*when) as i64, std::str::from_utf8(key).ok()?))
}

pub fn mark(partition: i32) -> Vec<u8> {
    with_partition(b'm', partition)
}

pub fn reserved(partition: i32) -> Vec<u8> {
    with_partition(b'r', partition)
}

fn with_partition(tag: u8, partition: i32) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend_from_slice(&partition.to_be_bytes());
    key
}
