//! What the log, its writer, its readers and retention share: where partitions begin and end, who
//! reads them, and the blocks that were written just now.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::block::Block;
use super::config::Config;
use super::retention::IDEMPOTENCY_MS;
use super::rows::{self, KeyRow};
use super::watermark::Watermark;
use crate::{BrokerError, Watermarks};
use traqq_core::model::TopicPartition;
use traqq_disk::{Database, DatabaseError, DatabaseResult, Open};

/// The name of the one topic.
pub const TOPIC: &str = "events";

/// What is known of a partition.
#[derive(Default)]
pub struct Partition {
    /// First offset there is.
    pub low: i64,
    /// Next offset to be given.
    pub next: i64,
    /// Offsets below this were reserved.
    pub reserved: i64,
    /// Blocks on disk.
    pub bytes: u64,
    /// Blocks just written, first offset and block, in order: readers take them from here and not
    /// from the disk.
    pub fresh: VecDeque<(i64, Block)>,
}

#[derive(Default)]
pub struct Inner {
    /// The opening of the database that this was read under.
    pub epoch: u64,
    pub partitions: Vec<Partition>,
    /// The readers of this process by their numbers: the next offset of each partition that one has
    /// open.
    pub readers: BTreeMap<u64, BTreeMap<i32, i64>>,
    pub fresh_bytes: usize,
    /// When there was last no room and what could be removed was,
    pub looked_for_room_at: Option<Instant>,
    /// and the reader that is furthest behind, if that was not enough.
    pub full_of: Option<String>,
    pub next_letter: u64,
    /// Of the rows of idempotency keys, without those that had expired when they were counted.
    pub keys_bytes: u64,
    /// Keys that were used later are counted.
    pub keys_after_ms: i64,
}

pub struct Shared {
    pub database: Arc<Database>,
    pub config: Config,
    /// Offsets must not be used twice, although the store does not share our journal.
    pub reserves: bool,
    pub fresh_bytes_max: usize,
    pub keys_bytes_max: u64,
    pub clock: fn() -> i64,
    pub watermark: Watermark,
    pub inner: Mutex<Inner>,
    pub appended: Condvar,
}

impl Shared {
    /// A panic while the lock was held leaves nothing half done.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The database and what is known of it; read again if the database was opened anew.
    pub fn current(&self) -> DatabaseResult<(Arc<Open>, MutexGuard<'_, Inner>)> {
        let open = self.database.get()?;
        let mut inner = self.lock();
        if inner.epoch != open.epoch {
            let mut loaded = self.load(&open)?;
            // Offsets that were given once are not given again, whether or not a record of theirs
            // is left.
            for (partition, before) in loaded.partitions.iter_mut().zip(&inner.partitions) {
                partition.next = partition.next.max(before.next);
            }
            loaded.readers = std::mem::take(&mut inner.readers);
            *inner = loaded;
        }
        Ok((open, inner))
    }

    /// Offsets below `end` are not given any more, also after the next opening; returns how many of
    /// them have no record.
    pub fn raise(&self, number: i32, end: i64) -> DatabaseResult<i64> {
        let (open, mut inner) = self.current()?;
        let Some(partition) = inner.partitions.get_mut(number as usize) else { return Ok(0) };
        let missing = (end - partition.next).max(0);
        if missing > 0 {
            let mut batch = open.batch();
            batch.insert(open.tree(rows::TREE), rows::reserved(number), end.to_be_bytes());
            self.database.commit(&open, batch, true)?;
            if partition.low == partition.next {
                partition.low = end;
            }
            partition.next = end;
            partition.reserved = partition.reserved.max(end);
        }
        Ok(missing)
    }

    /// Waits for something new, at most so long.
    pub fn wait(&self, inner: MutexGuard<'_, Inner>, timeout: Duration) {
        drop(self.appended.wait_timeout(inner, timeout));
    }

    pub fn settle_partitions(&self) -> DatabaseResult<()> {
        let open = self.database.get()?;
        let failed = |error| self.database.failed(&open, error);
        let stored = open.tree(rows::TREE).get(rows::PARTITIONS).map_err(failed)?;
        let stored = stored.and_then(|bytes| Some(i32::from_be_bytes(bytes[..].try_into().ok()?)));
        let wanted = self.config.partitions;
        match stored {
            Some(stored) if stored == wanted => return Ok(()),
            Some(stored) if stored > wanted => {
                return Err(DatabaseError::stop(format!(
                    "the log in {} has {stored} partitions, and broker.local.partitions = {wanted}; they cannot become fewer: set it to {stored}",
                    self.database.directory().display()
                )));
            }
            Some(_) | None => {}
        }
        let mut batch = open.batch();
        batch.insert(open.tree(rows::TREE), rows::PARTITIONS, wanted.to_be_bytes());
        self.database.commit(&open, batch, true)
    }

    fn load(&self, open: &Arc<Open>) -> DatabaseResult<Inner> {
        let failed = |error| self.database.failed(open, error);
        let mut partitions = Vec::new();
        for number in 0..self.config.partitions {
            let mut partition = Partition::default();
            let mut first = None;
            for row in open.tree(rows::TREE).prefix(rows::block_prefix(number)) {
                if first.is_none() {
                    let (key, value) = row.into_inner().map_err(failed)?;
                    let (_, count) = Block::head(&value).ok_or_else(|| self.damaged())?;
                    let last = rows::block_last(&key).ok_or_else(|| self.damaged())?;
                    first = Some(last + 1 - i64::from(count));
                    partition.bytes += value.len() as u64;
                } else {
                    partition.bytes += u64::from(row.size().map_err(failed)?);
                }
            }
            if let Some(row) = open.tree(rows::TREE).prefix(rows::block_prefix(number)).next_back() {
                let key = row.key().map_err(failed)?;
                partition.next = rows::block_last(&key).ok_or_else(|| self.damaged())? + 1;
            }
            let number_at = |key: Vec<u8>| -> DatabaseResult<i64> {
                let row = open.tree(rows::TREE).get(key).map_err(failed)?;
                Ok(row.and_then(|row| Some(i64::from_be_bytes(row.get(..8)?.try_into().ok()?))).unwrap_or(0))
            };
            partition.reserved = number_at(rows::reserved(number))?;
            // What was reserved may have been used, and lost.
            partition.next = partition.next.max(partition.reserved);
            partition.low = match first {
                Some(first) => first,
                None => partition.next.max(number_at(rows::mark(number))?),
            };
            partition.next = partition.next.max(partition.low);
            partitions.push(partition);
        }
        let last_letter = open.tree(rows::TREE).prefix(rows::LETTERS).next_back();
        let last_letter = last_letter.map(|row| row.key().map_err(failed)).transpose()?;
        let next_letter = last_letter.and_then(|key| rows::block_last(&key)).map_or(0, |last| last as u64 + 1);
        let keys_after_ms = (self.clock)() - IDEMPOTENCY_MS;
        let keys_bytes = self.count_keys(open, keys_after_ms)?;
        Ok(Inner { epoch: open.epoch, partitions, next_letter, keys_bytes, keys_after_ms, ..Inner::default() })
    }

    /// Bytes of the keys that were used after a time; what has expired is removed soon.
    fn count_keys(&self, open: &Arc<Open>, after_ms: i64) -> DatabaseResult<u64> {
        let mut bytes = 0;
        for row in open.tree(rows::TREE).prefix(rows::KEYS) {
            let (key, value) = row.into_inner().map_err(|error| self.database.failed(open, error))?;
            let key = key.strip_prefix(rows::KEYS).and_then(|key| std::str::from_utf8(key).ok());
            // One that cannot be read expires like the others, and only who uses its key is told.
            let (Some(key), Some(row)) = (key, KeyRow::decode(&value)) else { continue };
            if row.used_ms > after_ms {
                bytes += KeyRow::bytes(key, value.len());
            }
        }
        Ok(bytes)
    }

    /// The readers beside the first one that positions are kept for, whether or not they run.
    pub fn readers(&self, open: &Arc<Open>) -> DatabaseResult<Vec<String>> {
        let mut names = Vec::new();
        for row in open.tree(rows::TREE).prefix(rows::READERS) {
            let key = row.key().map_err(|error| self.database.failed(open, error))?;
            names.extend(rows::reader_of(&key).map(str::to_owned));
        }
        Ok(names)
    }

    /// The position that a reader has committed; `None` names the first one.
    pub fn committed(&self, open: &Arc<Open>, reader: Option<&str>, number: i32) -> DatabaseResult<Option<i64>> {
        let key = reader.map_or_else(|| rows::mark(number), |name| rows::reader_mark(name, number));
        let row = open.tree(rows::TREE).get(key).map_err(|error| self.database.failed(open, error))?;
        row.map(|row| rows::parse_mark(&row).map(|(position, _)| position).ok_or_else(|| self.damaged())).transpose()
    }

    /// Bytes of the blocks of a partition that end at an offset or behind it.
    pub fn bytes_from(&self, open: &Arc<Open>, number: i32, offset: i64) -> DatabaseResult<u64> {
        let mut bytes = 0;
        for row in open.tree(rows::TREE).range(rows::block(number, offset)..=rows::block(number, i64::MAX)) {
            bytes += u64::from(row.size().map_err(|error| self.database.failed(open, error))?);
        }
        Ok(bytes)
    }

    /// Whom retention waits for: the reader that is furthest behind, and its position; no position
    /// when it has none yet.
    pub fn slowest(&self, open: &Arc<Open>, number: i32) -> DatabaseResult<(Option<String>, Option<i64>)> {
        let mut slowest = (None, self.committed(open, None, number)?);
        for name in self.readers(open)? {
            let position = self.committed(open, Some(&name), number)?;
            // None is less than any position.
            if position < slowest.1 {
                slowest = (Some(name), position);
            }
        }
        Ok(slowest)
    }

    pub fn damaged(&self) -> DatabaseError {
        DatabaseError::stop(format!(
            "{}: a row of the log is not what was written; restore the directory from a backup, or begin anew with another data.directory",
            self.database.directory().display()
        ))
    }
}

impl Inner {
    /// The number of a new reader of this process.
    pub fn add_reader(&mut self) -> u64 {
        let number = self.readers.last_key_value().map_or(0, |(last, _)| last + 1);
        self.readers.insert(number, BTreeMap::new());
        number
    }

    /// Where a reader goes on; `None` when it does not read the partition.
    pub fn set_next(&mut self, reader: u64, number: i32, next: Option<i64>) {
        let Some(open) = self.readers.get_mut(&reader) else { return };
        match next {
            Some(next) => _ = open.insert(number, next),
            None => _ = open.remove(&number),
        }
    }

    /// The fresh block that holds `next`, which this reader reads now. The last one to read it
    /// takes it, the others have a copy; what all have behind them goes.
    pub fn fresh(&mut self, reader: u64, number: i32, next: i64) -> Option<(i64, Block)> {
        let others = self.readers.iter().filter(|(other, _)| **other != reader);
        let others = others.filter_map(|(_, open)| open.get(&number)).min().copied().unwrap_or(i64::MAX);
        let slowest = others.min(next);
        let fresh = &mut self.partitions[number as usize].fresh;
        let end = |(first, block): &(i64, Block)| first + i64::from(block.count);
        let mut freed = 0;
        while fresh.front().is_some_and(|block| end(block) <= slowest) {
            freed += fresh.pop_front().map_or(0, |(_, block)| block.payload_len());
        }
        let at = fresh.partition_point(|block| end(block) <= next);
        let found = fresh.get(at).filter(|(first, _)| *first <= next);
        let found = if found.is_some_and(|block| at == 0 && end(block) <= others) {
            let block = fresh.pop_front();
            freed += block.as_ref().map_or(0, |(_, block)| block.payload_len());
            block
        } else {
            found.cloned()
        };
        self.fresh_bytes -= freed;
        self.set_next(reader, number, Some(found.as_ref().map_or(next, end)));
        found
    }

    /// Bytes of all blocks on disk.
    pub fn bytes(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.bytes).sum()
    }

    pub fn watermarks(&self, partition: &TopicPartition) -> Result<Watermarks, BrokerError> {
        let known = usize::try_from(partition.partition).ok().and_then(|index| self.partitions.get(index));
        known.filter(|_| &*partition.topic == TOPIC).map_or_else(
            || Err(BrokerError::stop(format!("the local log has no partition {partition}"))),
            |known| Ok(Watermarks { low: known.low, high: known.next }),
        )
    }
}
