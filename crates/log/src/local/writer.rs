//! The thread that appends. What waits while it writes goes together in the next step: one batch,
//! one flush, one fsync.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use zstd::stream::raw::Encoder;

use super::block::{Block, BlockBuilder, compressor};
use super::retention::make_room;
use super::rows::{self, KeyRow};
use super::shared::{Partition, Shared};
use crate::{AppendError, Appended, Events, Idempotency, Message, RequestCounts};
use traqq_core::hll::murmur64a;
use traqq_core::model::{RecordLengths, put_header};
use traqq_disk::{DatabaseError, DatabaseResult, Open};

/// One step takes this many requests,
const REQUESTS_MAX: usize = 4096;
/// or bytes of records.
const GROUP_BYTES: usize = 4 << 20;
/// Events of one request are a block of their own from here on, which saves copying them.
const WHOLE_BYTES: usize = 128 << 10;
/// A block is cut at this many bytes before compression.
const BLOCK_BYTES: usize = 512 << 10;
/// A clock may go back by a week without any idempotency key being forgotten.
const CLOCK_BACK_MS_MAX: i64 = 7 * 24 * 3600 * 1000;
/// How often blocks are removed for what comes in, while the log is full.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// Offsets reserved at a time.
const RESERVE: i64 = 1_000_000;

pub enum Request {
    Append {
        events: Events,
        idempotency: Option<Idempotency>,
        done: oneshot::Sender<Result<Appended, AppendError>>,
    },
    Letter {
        message: Message,
        done: oneshot::Sender<Result<(), AppendError>>,
    },
    /// Ends the thread.
    Close(oneshot::Sender<()>),
}

/// Whom to tell when the step is done.
enum Waiting {
    Append(oneshot::Sender<Result<Appended, AppendError>>, Appended),
    Letter(oneshot::Sender<Result<(), AppendError>>),
}

/// What goes in one step.
struct Group {
    blocks: Vec<Vec<BlockBuilder>>,
    letters: Vec<Block>,
    keys: HashMap<String, Idempotency>,
    keys_bytes: u64,
    waiting: Vec<Waiting>,
    bytes: usize,
    arrival_ms: i64,
}

pub fn run(shared: &Arc<Shared>, queue: &mpsc::Receiver<Request>) {
    let mut compressor = compressor();
    let mut closing = None;
    while closing.is_none() {
        let Ok(first) = queue.recv() else { break };
        let mut group = Group {
            blocks: (0..shared.config.partitions).map(|_| Vec::new()).collect(),
            letters: Vec::new(),
            keys: HashMap::new(),
            keys_bytes: 0,
            waiting: Vec::new(),
            bytes: 0,
            arrival_ms: (shared.clock)(),
        };
        let mut taken = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            if let Request::Close(done) = request {
                closing = Some(done);
                break;
            }
            group.take(shared, request);
            taken += 1;
            let is_full = taken >= REQUESTS_MAX || group.bytes >= GROUP_BYTES;
            next = if is_full { None } else { queue.try_recv().ok() };
        }
        let written = if taken > 0 { write(shared, &mut group, &mut compressor) } else { Ok(()) };
        if let Err(error) = &written {
            tracing::warn!(%error, requests = taken, "the log cannot take events");
        }
        group.answer(&written);
    }
    give_back(shared);
    if let Some(done) = closing {
        let _ = done.send(());
    }
}

impl Group {
    fn take(&mut self, shared: &Arc<Shared>, request: Request) {
        match request {
            Request::Append { events, idempotency, done } => {
                match idempotency.map(|idempotency| self.remember(shared, idempotency)).transpose() {
                    Err(error) => _ = done.send(Err(error)),
                    Ok(Some(Some(counts))) => self.waiting.push(Waiting::Append(done, Appended::Replayed(counts))),
                    Ok(None | Some(None)) => {
                        self.put(events);
                        self.waiting.push(Waiting::Append(done, Appended::New));
                    }
                }
            }
            Request::Letter { message, done } => {
                let mut builder = BlockBuilder::default();
                let mut headers = Vec::new();
                message.headers.iter().for_each(|(name, value)| put_header(&mut headers, (name, value.as_deref())));
                let length = |part: &Option<Vec<u8>>| part.as_ref().map(|part| part.len() as u32);
                let lengths = RecordLengths {
                    key: length(&message.key),
                    value: length(&message.value),
                    headers: headers.len() as u32,
                };
                builder.push(lengths, |arena| {
                    arena.extend_from_slice(message.key.as_deref().unwrap_or_default());
                    arena.extend_from_slice(message.value.as_deref().unwrap_or_default());
                    arena.extend_from_slice(&headers);
                });
                self.bytes += builder.len();
                self.letters.push(builder.finish(self.arrival_ms));
                self.waiting.push(Waiting::Letter(done));
            }
            Request::Close(_) => unreachable!("handled by the caller"),
        }
    }

    fn put(&mut self, events: Events) {
        self.bytes += events.bytes();
        let partitions = self.blocks.len();
        if partitions == 1 && events.bytes() >= WHOLE_BYTES {
            self.blocks[0].push(BlockBuilder::of_events(events));
            return;
        }
        for (key, value) in events.iter() {
            let partition = match (partitions, key) {
                (1, _) | (_, None) => 0,
                (_, Some(key)) => (murmur64a(key, 0) % partitions as u64) as usize,
            };
            let blocks = &mut self.blocks[partition];
            if blocks.last().is_none_or(|block| block.len() >= BLOCK_BYTES) {
                blocks.push(BlockBuilder::default());
            }
            blocks.last_mut().expect("one was pushed").event(key, value);
        }
    }

    /// What became of this request before; `None` when it is new, and to be remembered.
    fn remember(&mut self, shared: &Shared, idempotency: Idempotency) -> Result<Option<RequestCounts>, AppendError> {
        let Idempotency { key, fingerprint, .. } = &idempotency;
        let earlier = match self.keys.get(key) {
            Some(earlier) if earlier.fingerprint != *fingerprint => Err(AppendError::KeyReused),
            Some(earlier) => Ok(Some(earlier.counts)),
            None => replayed(shared, key, *fingerprint),
        };
        if let Some(counts) = earlier? {
            return Ok(Some(counts));
        }
        let bytes = KeyRow::bytes_of(key);
        let stored = shared.current()?.1.keys_bytes;
        if stored + self.keys_bytes + bytes > shared.keys_bytes_max {
            return Err(AppendError::KeysFull(format!(
                "{stored} bytes of idempotency keys are remembered, each for a day, and there is no room for another; send \
                 more events with one key, or send this without a key and at most once"
            )));
        }
        self.keys_bytes += bytes;
        self.keys.insert(key.clone(), idempotency);
        Ok(None)
    }

    fn answer(self, written: &DatabaseResult<()>) {
        for waiting in self.waiting {
            // Whoever has stopped waiting does not want to know.
            match waiting {
                Waiting::Append(done, appended) => {
                    let _ = done.send(written.clone().map(|()| appended).map_err(AppendError::from));
                }
                Waiting::Letter(done) => _ = done.send(written.clone().map_err(AppendError::from)),
            }
        }
    }
}

/// What became of a request that was stored under this key.
pub fn replayed(shared: &Shared, key: &str, fingerprint: u64) -> Result<Option<RequestCounts>, AppendError> {
    let open = shared.database.get()?;
    let row =
        open.tree(rows::TREE).get(rows::idempotency(key)).map_err(|error| shared.database.failed(&open, error))?;
    let Some(row) = row else { return Ok(None) };
    let row = KeyRow::decode(&row).ok_or_else(|| shared.damaged())?;
    if row.fingerprint == fingerprint { Ok(Some(row.counts)) } else { Err(AppendError::KeyReused) }
}

/// The log takes no more than `retention_bytes` that a reader has not had: nothing is removed
/// before, so nothing comes in.
fn check_room(shared: &Shared) -> DatabaseResult<()> {
    let max = shared.config.retention_bytes;
    let (open, mut inner) = shared.current()?;
    if inner.bytes() < max {
        return Ok(());
    }
    if inner.looked_for_room_at.is_none_or(|at| at.elapsed() >= TRIM_EVERY) {
        drop(inner);
        make_room(shared)?;
        // What is unread is only counted where that was not enough.
        let behind = if shared.current()?.1.bytes() < max { None } else { unread(shared, &open, max)? };
        inner = shared.current()?.1;
        (inner.looked_for_room_at, inner.full_of) = (Some(Instant::now()), behind);
    }
    let Some(who) = &inner.full_of else { return Ok(()) };
    Err(DatabaseError::retry(format!(
        "the log is full: {who:?} has not read {} MiB of it, and broker.local.retention_bytes allows no more; see what keeps it from \
         going on, or raise the limit",
        max >> 20
    )))
}

/// The reader that is furthest behind, if so many bytes or more are unread.
fn unread(shared: &Shared, open: &Arc<Open>, max: u64) -> DatabaseResult<Option<String>> {
    let mut bytes = 0;
    let mut slowest = (i64::MAX, None);
    for number in 0..shared.config.partitions {
        let (reader, position) = shared.slowest(open, number)?;
        let position = position.unwrap_or(0);
        bytes += shared.bytes_from(open, number, position)?;
        if position < slowest.0 {
            slowest = (position, reader);
        }
    }
    Ok((bytes >= max).then(|| slowest.1.unwrap_or_else(|| shared.config.group.clone())))
}

fn write(shared: &Shared, group: &mut Group, compressor: &mut Encoder<'_>) -> DatabaseResult<()> {
    shared.database.check_space()?;
    if group.blocks.iter().any(|blocks| !blocks.is_empty()) {
        check_room(shared)?;
    }
    // Compressed before the lock is taken, which the consumer waits for.
    let mut blocks = Vec::new();
    for (partition, builders) in group.blocks.iter_mut().enumerate() {
        for builder in builders.drain(..) {
            let block = builder.finish(group.arrival_ms);
            let bytes = block.encode(compressor);
            blocks.push((partition, block, bytes));
        }
    }
    let (open, mut inner) = shared.current()?;
    let mut ends: Vec<i64> = inner.partitions.iter().map(|partition| partition.next).collect();
    let mut batch = open.batch();
    let mut placed = Vec::with_capacity(blocks.len());
    for (partition, block, bytes) in blocks {
        let first = ends[partition];
        ends[partition] += i64::from(block.count);
        let len = bytes.len() as u64;
        batch.insert(open.tree(rows::TREE), rows::block(partition as i32, ends[partition] - 1), bytes);
        placed.push((partition, first, block, len));
    }
    let first_letter = inner.next_letter;
    for (number, letter) in (first_letter..).zip(&group.letters) {
        batch.insert(open.tree(rows::TREE), rows::letter(number), letter.encode(compressor));
    }
    if !group.keys.is_empty() {
        let used_ms = key_time(shared, &open, group.arrival_ms)?;
        for Idempotency { key, fingerprint, counts } in group.keys.values() {
            let row = KeyRow { used_ms, fingerprint: *fingerprint, counts: *counts };
            batch.insert(open.tree(rows::TREE), rows::idempotency(key), row.encode());
            batch.insert(open.tree(rows::TREE), rows::expiry(used_ms, key), []);
        }
    }
    let reservations = if shared.reserves { reserve(shared, &open, &inner.partitions, &ends)? } else { Vec::new() };
    // Nobody else moves the ends, and whoever asks for them must not wait for the disk.
    drop(inner);
    shared.database.commit(&open, batch, true)?;
    inner = shared.lock();
    if inner.epoch != open.epoch {
        // Opened anew meanwhile, and read again from what is written.
        return Ok(());
    }
    for (partition, reserved) in reservations {
        inner.partitions[partition].reserved = reserved;
    }
    inner.next_letter += group.letters.len() as u64;
    inner.keys_bytes += group.keys_bytes;
    for (partition, first, block, bytes) in placed {
        let (payload, room) = (block.payload_len(), shared.fresh_bytes_max);
        inner.fresh_bytes += payload;
        let known = &mut inner.partitions[partition];
        known.next = first + i64::from(block.count);
        known.bytes += bytes;
        known.fresh.push_back((first, block));
        let mut dropped = 0;
        let mut fresh_bytes = inner.fresh_bytes;
        let known = &mut inner.partitions[partition];
        while fresh_bytes > room {
            let Some((_, block)) = known.fresh.pop_front() else { break };
            fresh_bytes -= block.payload_len();
            dropped += block.payload_len();
        }
        inner.fresh_bytes -= dropped;
    }
    shared.watermark.write(inner.partitions.iter().map(|partition| partition.next));
    drop(inner);
    shared.appended.notify_all();
    Ok(())
}

/// When a key that comes now was used: not before the newest one, so that a clock that has gone
/// back for a while has none forgotten too early. A key of a time that is further ahead than that
/// came in under a clock that was wrong.
fn key_time(shared: &Shared, open: &Arc<Open>, now_ms: i64) -> DatabaseResult<i64> {
    let ahead = rows::expiry(now_ms, "")..rows::expiry(now_ms.saturating_add(CLOCK_BACK_MS_MAX), "");
    let Some(row) = open.tree(rows::TREE).range(ahead).next_back() else { return Ok(now_ms) };
    let key = row.key().map_err(|error| shared.database.failed(open, error))?;
    rows::parse_expiry(&key).map(|(used_ms, _)| used_ms).ok_or_else(|| shared.damaged())
}

/// Writes down, durably, that offsets may be used, before they are.
fn reserve(
    shared: &Shared,
    open: &Arc<Open>,
    partitions: &[Partition],
    ends: &[i64],
) -> DatabaseResult<Vec<(usize, i64)>> {
    let short = |(index, end): (usize, &i64)| (*end > partitions[index].reserved).then_some((index, end + RESERVE));
    let reservations: Vec<(usize, i64)> = ends.iter().enumerate().filter_map(short).collect();
    if !reservations.is_empty() {
        put_reservations(shared, open, &reservations)?;
    }
    Ok(reservations)
}

fn put_reservations(shared: &Shared, open: &Arc<Open>, reservations: &[(usize, i64)]) -> DatabaseResult<()> {
    let mut batch = open.batch();
    for (partition, reserved) in reservations {
        batch.insert(open.tree(rows::TREE), rows::reserved(*partition as i32), reserved.to_be_bytes());
    }
    shared.database.commit(open, batch, true)?;
    shared.database.sync()
}

/// At the end: what was reserved and not used is free again.
fn give_back(shared: &Shared) {
    let result = (|| {
        if !shared.reserves {
            return Ok(());
        }
        let (open, inner) = shared.current()?;
        let ends: Vec<(usize, i64)> =
            inner.partitions.iter().enumerate().map(|(index, partition)| (index, partition.next)).collect();
        drop(inner);
        put_reservations(shared, &open, &ends)
    })();
    if let Err(error) = result {
        let error: DatabaseError = error;
        tracing::warn!(%error, "reserved offsets were not given back; the next start leaves a gap");
    }
}
