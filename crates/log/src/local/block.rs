//! Blocks: how records lie on disk, many to a row.
//!
//! ```text
//! block   = codec (1 byte: 0 plain, 1 zstd), arrival (8, epoch ms), count (4), plain length (4),
//!           payload
//! payload = the records end to end, each as key, value, headers;
//!           then count * (key length (4), value length (4), headers length (4))
//! ```
//!
//! Numbers are little-endian; a length of 2^32 - 1 is a null. Checksums are the database's.

use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

use crate::Events;
use traqq_core::courtesy::Courtesy;
use traqq_core::model::{RecordBatch, RecordLengths, TopicPartition, are_headers};

const HEADER_BYTES: usize = 17;
const LENGTHS_BYTES: usize = 12;
const ABSENT: u32 = u32::MAX;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// Fast rather than small: of what an event costs on its way in and into the counts, this is a
/// fifth.
const ZSTD_LEVEL: i32 = -7;
/// Smaller payloads are not worth a compressor's start.
const COMPRESS_FROM: usize = 512;
const COMPRESS_STEP: usize = 64 << 10;

/// Records on their way into a block.
#[derive(Default)]
pub struct BlockBuilder {
    lengths: Vec<u8>,
    arena: Vec<u8>,
    count: u32,
}

/// A block in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    pub arrival_ms: i64,
    pub count: u32,
    payload: Vec<u8>,
}

impl BlockBuilder {
    /// Bytes of the payload so far.
    pub fn len(&self) -> usize {
        self.lengths.len() + self.arena.len()
    }

    /// A block of just these events, whose buffer moves along.
    pub fn of_events(events: Events) -> Self {
        let mut lengths = Vec::with_capacity(events.len() * LENGTHS_BYTES);
        for (key, value) in events.iter() {
            put_lengths(&mut lengths, lengths_of(key, value));
        }
        Self { count: events.len() as u32, lengths, arena: events.into_buffer() }
    }

    pub fn event(&mut self, key: Option<&[u8]>, value: &[u8]) {
        self.push(lengths_of(key, value), |arena| {
            arena.extend_from_slice(key.unwrap_or_default());
            arena.extend_from_slice(value);
        });
    }

    /// `put` appends key, value and headers to the arena.
    pub fn push(&mut self, lengths: RecordLengths, put: impl FnOnce(&mut Vec<u8>)) {
        put_lengths(&mut self.lengths, lengths);
        put(&mut self.arena);
        self.count += 1;
    }

    pub fn finish(mut self, arrival_ms: i64) -> Block {
        self.arena.extend_from_slice(&self.lengths);
        Block { arrival_ms, count: self.count, payload: self.arena }
    }
}

fn lengths_of(key: Option<&[u8]>, value: &[u8]) -> RecordLengths {
    RecordLengths { key: key.map(|key| key.len() as u32), value: Some(value.len() as u32), headers: 0 }
}

fn put_lengths(rows: &mut Vec<u8>, lengths: RecordLengths) {
    for length in [lengths.key.unwrap_or(ABSENT), lengths.value.unwrap_or(ABSENT), lengths.headers] {
        rows.extend_from_slice(&length.to_le_bytes());
    }
}

impl Block {
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    pub fn encode(&self, compressor: &mut Encoder<'_>) -> Vec<u8> {
        let compressed =
            (self.payload.len() >= COMPRESS_FROM).then(|| compress(compressor, &self.payload).ok()).flatten();
        let compressed = compressed.filter(|bytes| bytes.len() < self.payload.len());
        let (codec, payload) = compressed.as_deref().map_or((PLAIN, &*self.payload), |bytes| (ZSTD, bytes));
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.push(codec);
        bytes.extend_from_slice(&self.arrival_ms.to_le_bytes());
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Arrival and count, without unpacking.
    pub fn head(bytes: &[u8]) -> Option<(i64, u32)> {
        let head = bytes.get(..HEADER_BYTES)?;
        Some((i64::from_le_bytes(head[1..9].try_into().ok()?), u32::from_le_bytes(head[9..13].try_into().ok()?)))
    }

    /// `None` when these are not the bytes of a block.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (arrival_ms, count) = Self::head(bytes)?;
        let plain_len = u32::from_le_bytes(bytes[13..HEADER_BYTES].try_into().ok()?) as usize;
        let payload = &bytes[HEADER_BYTES..];
        let payload = match bytes[0] {
            PLAIN => payload.to_vec(),
            ZSTD => zstd::bulk::decompress(payload, plain_len).ok()?,
            _ => return None,
        };
        let block = Self { arrival_ms, count, payload };
        (block.payload.len() == plain_len && block.fits()).then_some(block)
    }

    /// Where the lengths begin, behind the records.
    fn lengths_at(&self) -> Option<usize> {
        self.payload.len().checked_sub(self.count as usize * LENGTHS_BYTES)
    }

    /// Whether the lengths are those of the records in front of them, and their headers can be
    /// read.
    fn fits(&self) -> bool {
        let Some(end) = self.lengths_at() else { return false };
        let (records, rows) = self.payload.split_at(end);
        let mut at = 0_usize;
        let has_next = |lengths: RecordLengths| {
            let headers_at = at + lengths.key.unwrap_or(0) as usize + lengths.value.unwrap_or(0) as usize;
            at = headers_at + lengths.headers as usize;
            records.get(headers_at..at).is_some_and(are_headers)
        };
        lengths(rows).all(has_next) && at == end
    }

    /// The records, the first of them at `offset`. The buffer moves along; nothing is copied.
    pub fn into_batch(self, partition: TopicPartition, generation: u64, offset: i64) -> RecordBatch {
        let end = self.lengths_at().expect("a block has lengths");
        let lengths: Vec<RecordLengths> = lengths(&self.payload[end..]).collect();
        RecordBatch::of_arena(partition, generation, offset, self.arrival_ms, self.payload, lengths.into_iter())
    }
}

fn lengths(bytes: &[u8]) -> impl Iterator<Item = RecordLengths> {
    let (rows, _) = bytes.as_chunks::<LENGTHS_BYTES>();
    rows.iter().map(|row| {
        let number = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        let part = |at: usize| Some(number(at)).filter(|length| *length != ABSENT);
        RecordLengths { key: part(0), value: part(4), headers: number(8) }
    })
}

pub fn compressor() -> Encoder<'static> {
    Encoder::new(ZSTD_LEVEL).expect("the level exists")
}

/// In steps, between which the processor is offered to others.
fn compress(compressor: &mut Encoder<'_>, payload: &[u8]) -> std::io::Result<Vec<u8>> {
    compressor.reinit()?;
    compressor.set_pledged_src_size(Some(payload.len() as u64))?;
    let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(payload.len()));
    let mut courtesy = Courtesy::every(1);
    for step in payload.chunks(COMPRESS_STEP) {
        let mut input = InBuffer::around(step);
        while input.pos() < step.len() {
            let end = packed.len();
            compressor.run(&mut input, &mut OutBuffer::around_pos(&mut packed, end))?;
        }
        courtesy.pause();
    }
    loop {
        let end = packed.len();
        if compressor.finish(&mut OutBuffer::around_pos(&mut packed, end), true)? == 0 {
            return Ok(packed);
        }
        packed.reserve(COMPRESS_STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use traqq_core::model::put_header;

    fn block(values: &[&[u8]]) -> Block {
        let mut builder = BlockBuilder::default();
        for value in values {
            builder.event(None, value);
        }
        builder.finish(7)
    }

    #[test]
    fn a_block_comes_back_as_it_went_in() {
        let long = [b'x'; 4000];
        for values in [&[b"a".as_slice(), b"", b"ccc"][..], &[&long, &long]] {
            let block = block(values);
            let bytes = block.encode(&mut compressor());
            assert_eq!(Block::head(&bytes), Some((7, values.len() as u32)));
            let decoded = Block::decode(&bytes).unwrap();
            assert_eq!(decoded, block);
            let batch = decoded.into_batch(TopicPartition::new("t", 0), 1, 40);
            assert_eq!(batch.position, 40 + values.len() as i64);
            let found: Vec<&[u8]> = batch.iter().map(|record| record.value.unwrap()).collect();
            assert_eq!(found, values);
        }
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let bytes = block(&[b"abc", &[b'x'; 2000]]).encode(&mut compressor());
        for len in 0..bytes.len() {
            assert_eq!(Block::decode(&bytes[..len]), None, "{len}");
        }
        let mut plain = block(&[b"abc"]).encode(&mut compressor());
        plain[HEADER_BYTES + 3 + 4] = 9;
        assert_eq!(Block::decode(&plain), None);
    }

    /// A block whose lengths fitted was taken for whole, and the first look at headers that were
    /// none, or at a name that was no text, ended the process. Found by fuzzing.
    #[test]
    fn headers_that_are_none_are_refused() {
        let with = |headers: &[u8]| {
            let mut builder = BlockBuilder::default();
            let lengths = RecordLengths { key: None, value: Some(1), headers: headers.len() as u32 };
            builder.push(lengths, |arena| {
                arena.push(b'v');
                arena.extend_from_slice(headers);
            });
            Block::decode(&builder.finish(7).encode(&mut compressor()))
        };
        let mut header = Vec::new();
        put_header(&mut header, ("name", Some(b"value")));
        put_header(&mut header, ("null", None));
        let batch = with(&header).unwrap().into_batch(TopicPartition::new("t", 0), 1, 0);
        assert_eq!(batch.get(0).headers().collect::<Vec<_>>(), [("name", Some(&b"value"[..])), ("null", None)]);
        for end in (1..header.len()).filter(|end| *end != 4 + 4 + 4 + 5) {
            assert_eq!(with(&header[..end]), None, "{end}");
        }
        header[4] = 0xff;
        assert_eq!(with(&header), None);
    }
}
