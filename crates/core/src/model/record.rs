//! Records as a broker delivered them: their bytes lie end to end, so that a million records cost
//! some thousand allocations.

use std::ops::Range;

use super::{Checkpoint, Fingerprint, TopicPartition};
use crate::hll::murmur64a;

/// Never change this: checkpoints in stores carry fingerprints made with it.
const FINGERPRINT_SEED: u64 = 0x7472_6171_715f_6670;

const ABSENT: u32 = u32::MAX;

/// Enough for hundreds of records. In one piece that grows, all of them would be copied again and
/// again; pieces of one size are what an allocator has at hand.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Clone, Copy)]
struct Slot {
    offset: i64,
    timestamp_ms: i64,
    chunk: u32,
    start: u32,
    key_len: u32,
    value_len: u32,
    headers_len: u32,
}

/// Bytes of the parts of a record; `None` is null.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordLengths {
    pub key: Option<u32>,
    pub value: Option<u32>,
    pub headers: u32,
}

/// A header of a record; the value may be null.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

/// One record, borrowed from its batch.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub offset: i64,
    /// Milliseconds since the epoch; negative when the broker has none.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    headers: &'a [u8],
}

/// Consecutive records of one partition, with the position that follows them.
pub struct RecordBatch {
    pub partition: TopicPartition,
    /// Which assignment or seek these records were fetched under; records of an older one are void.
    pub generation: u64,
    /// The consumer's position after the last record: control records and aborted transactions
    /// included.
    pub position: i64,
    slots: Vec<Slot>,
    /// A record lies in one of them; they do not grow beyond [`CHUNK_BYTES`] while there is another
    /// record to add.
    chunks: Vec<Vec<u8>>,
}

impl RecordBatch {
    pub fn new(partition: TopicPartition, generation: u64) -> Self {
        Self { partition, generation, position: i64::MIN, slots: Vec::new(), chunks: Vec::new() }
    }

    /// Takes a buffer in which records stand end to end, each as key, value and headers
    /// ([`put_header`]). Their offsets follow one another from `offset` on.
    pub fn of_arena(
        partition: TopicPartition,
        generation: u64,
        offset: i64,
        timestamp_ms: i64,
        arena: Vec<u8>,
        lengths: impl ExactSizeIterator<Item = RecordLengths>,
    ) -> Self {
        let mut slots = Vec::with_capacity(lengths.len());
        let mut start = 0;
        for (index, RecordLengths { key, value, headers }) in lengths.enumerate() {
            let len = |part: Option<u32>| part.unwrap_or(0) as usize;
            let (key_len, value_len) = (key.unwrap_or(ABSENT), value.unwrap_or(ABSENT));
            slots.push(Slot {
                offset: offset + index as i64,
                timestamp_ms,
                chunk: 0,
                start: start as u32,
                key_len,
                value_len,
                headers_len: headers,
            });
            start += len(key) + len(value) + headers as usize;
        }
        assert!(start <= arena.len(), "lengths fit the arena they came with");
        assert!(u32::try_from(start).is_ok(), "an arena has less than 4 GiB");
        Self { partition, generation, position: offset + slots.len() as i64, slots, chunks: vec![arena] }
    }

    /// Appends a record without headers, and moves the position behind it.
    pub fn push(&mut self, offset: i64, timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        let (key_bytes, value_bytes) = (key.unwrap_or_default(), value.unwrap_or_default());
        let arena = self.chunk_for(key_bytes.len() + value_bytes.len());
        let start = arena.len() as u32;
        arena.extend_from_slice(key_bytes);
        arena.extend_from_slice(value_bytes);
        self.slots.push(Slot {
            offset,
            timestamp_ms,
            chunk: self.chunks.len() as u32 - 1,
            start,
            key_len: key.map_or(ABSENT, |key| key.len() as u32),
            value_len: value.map_or(ABSENT, |value| value.len() as u32),
            headers_len: 0,
        });
        self.position = offset + 1;
    }

    /// Adds a header to the last record.
    pub fn push_header(&mut self, header: Header<'_>) {
        let slot = self.slots.last_mut().expect("a header follows its record");
        let arena = self.chunks.last_mut().expect("its record is there");
        let before = arena.len();
        put_header(arena, header);
        slot.headers_len += (arena.len() - before) as u32;
    }

    /// Where a record of so many bytes goes.
    fn chunk_for(&mut self, bytes: usize) -> &mut Vec<u8> {
        if self.chunks.last().is_none_or(|chunk| chunk.len() + bytes > CHUNK_BYTES) {
            // The first grows as it must: most batches are small.
            let capacity = if self.chunks.is_empty() { bytes } else { bytes.max(CHUNK_BYTES) };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks.last_mut().expect("there is one now")
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum::<usize>() + self.slots.len() * size_of::<Slot>()
    }

    pub fn get(&self, index: usize) -> Record<'_> {
        let slot = self.slots[index];
        let arena = &self.chunks[slot.chunk as usize];
        let take = |range: Range<usize>| &arena[range];
        let start = slot.start as usize;
        let len = |len: u32| if len == ABSENT { 0 } else { len as usize };
        let key_end = start + len(slot.key_len);
        let value_end = key_end + len(slot.value_len);
        Record {
            offset: slot.offset,
            timestamp_ms: slot.timestamp_ms,
            key: (slot.key_len != ABSENT).then(|| take(start..key_end)),
            value: (slot.value_len != ABSENT).then(|| take(key_end..value_end)),
            headers: take(value_end..value_end + slot.headers_len as usize),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Drops the first `count` records.
    pub fn drop_front(&mut self, count: usize) {
        self.slots.drain(..count);
    }

    /// The checkpoint after this batch, when `before` was the one in front of it.
    pub fn checkpoint_after(&self, before: Checkpoint) -> Checkpoint {
        let last = match self.len() {
            0 => before.last,
            len => Some(self.get(len - 1).fingerprint()),
        };
        Checkpoint { position: self.position.max(before.position), last }
    }
}

impl<'a> Record<'a> {
    /// A record that is nowhere yet.
    pub const fn of_value(value: &'a [u8], timestamp_ms: i64) -> Self {
        Self { offset: 0, timestamp_ms, key: None, value: Some(value), headers: &[] }
    }

    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let mut rest = self.headers;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let name = take_bytes(&mut rest).unwrap_or_default();
            let name = std::str::from_utf8(name).expect("header names were strings when they were stored");
            Some((name, take_bytes(&mut rest)))
        })
    }

    pub fn has_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let key = murmur64a(self.key.unwrap_or_default(), FINGERPRINT_SEED);
        let hash = murmur64a(self.value.unwrap_or_default(), FINGERPRINT_SEED ^ key);
        Fingerprint { offset: self.offset, timestamp_ms: self.timestamp_ms, hash }
    }
}

/// Records of one partition to fold, and the checkpoint in front of them.
pub struct Part {
    pub records: RecordBatch,
    pub from: Checkpoint,
}

impl AsRef<Self> for Part {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// Writes a header as [`Record::headers`] reads it.
pub fn put_header(arena: &mut Vec<u8>, (name, value): Header<'_>) {
    put_bytes(arena, Some(name.as_bytes()));
    put_bytes(arena, value);
}

/// Whether [`Record::headers`] can read these bytes.
pub fn are_headers(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(Some(name)) = split_bytes(&mut bytes) else { return false };
        if std::str::from_utf8(name).is_err() || split_bytes(&mut bytes).is_none() {
            return false;
        }
    }
    true
}

fn put_bytes(arena: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let len = bytes.map_or(ABSENT, |bytes| bytes.len() as u32);
    arena.extend_from_slice(&len.to_le_bytes());
    arena.extend_from_slice(bytes.unwrap_or_default());
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    split_bytes(rest).expect("a length stands before every header part")
}

/// A part of a header, `None` inside when it is null; `None` outside when there is none.
fn split_bytes<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len);
    if len == ABSENT {
        *rest = tail;
        return Some(None);
    }
    let (bytes, tail) = tail.split_at_checked(len as usize)?;
    *rest = tail;
    Some(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_went_in() {
        let mut batch = RecordBatch::new(TopicPartition::new("t", 0), 1);
        let headers: [Header<'_>; 2] = [("a", Some(b"1")), ("b", None)];
        batch.push(5, 10, Some(b"key"), Some(b"value"));
        headers.into_iter().for_each(|header| batch.push_header(header));
        batch.push(9, 11, None, None);
        assert_eq!((batch.len(), batch.position), (2, 10));
        let first = batch.get(0);
        assert_eq!((first.key, first.value), (Some(&b"key"[..]), Some(&b"value"[..])));
        assert_eq!(first.headers().collect::<Vec<_>>(), headers);
        let second = batch.get(1);
        assert_eq!((second.key, second.value, second.headers().count()), (None, None, 0));
        batch.drop_front(1);
        assert_eq!(batch.get(0).offset, 9);
    }

    #[test]
    fn records_larger_and_smaller_than_a_chunk_lie_side_by_side() {
        let sizes = [10, CHUNK_BYTES - 20, 10, 0, 3 * CHUNK_BYTES, 1, CHUNK_BYTES];
        let value = |index: usize| vec![index as u8; sizes[index]];
        let mut batch = RecordBatch::new(TopicPartition::new("t", 0), 1);
        for index in 0..sizes.len() {
            batch.push(index as i64, 0, Some(b"key"), Some(&value(index)));
            batch.push_header(("name", Some(&[index as u8; 40])));
        }
        for (index, record) in batch.iter().enumerate() {
            assert_eq!((record.key, record.value), (Some(&b"key"[..]), Some(&*value(index))));
            assert_eq!(record.headers().collect::<Vec<_>>(), [("name", Some(&[index as u8; 40][..]))]);
        }
    }

    #[test]
    fn an_empty_batch_moves_the_position_and_keeps_the_fingerprint() {
        let mut batch = RecordBatch::new(TopicPartition::new("t", 0), 1);
        batch.position = 7;
        let before = Checkpoint { position: 4, last: Some(Fingerprint { offset: 3, timestamp_ms: 0, hash: 1 }) };
        assert_eq!(batch.checkpoint_after(before), Checkpoint { position: 7, ..before });
    }
}
