//! What writer, consumer and retention share.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::block::Block;
use super::config::Config;
use super::retention::IDEMPOTENCY_MS;
use super::rows::{self, KeyRow};
use super::watermark::Watermark;
use super::{LocalConsumer, writer};
use crate::broker::{
    AppendError, Appended, Appender, BrokerError, Events, Idempotency, Message, ProduceError, Producer, RequestCounts,
    Watermarks,
};
use crate::database::{Database, DatabaseError, DatabaseResult, Open};
use crate::model::{RecordBatch, TopicPartition};

/// The name of the one topic.
pub(super) const TOPIC: &str = "events";
const WRITER_NICE: i32 = 10;
const DEAD_LETTERS: &str = "dead-letters";
/// Bytes of idempotency keys that are remembered. A UUID takes 131, so that there is room for a
/// million requests a day; who sends more puts more events into one. Beyond it new keys are
/// refused, long before they fill the disk.
const KEYS_BYTES_MAX: u64 = 128 << 20;

/// What is known of a partition.
#[derive(Default)]
pub(super) struct Partition {
    /// First offset there is.
    pub low: i64,
    /// Next offset to be given.
    pub next: i64,
    /// Offsets below this were reserved.
    pub reserved: i64,
    /// Blocks on disk.
    pub bytes: u64,
    /// Blocks just written, first offset and block: the consumer takes them from here and reads nothing.
    pub fresh: VecDeque<(i64, Block)>,
}

#[derive(Default)]
pub(super) struct Inner {
    /// The opening of the database that this was read under.
    pub epoch: u64,
    pub partitions: Vec<Partition>,
    pub fresh_bytes: usize,
    pub next_letter: u64,
    /// Of the rows of idempotency keys, without those that had expired when they were counted.
    pub keys_bytes: u64,
    /// Keys that were used later are counted.
    pub keys_after_ms: i64,
}

pub(super) struct Shared {
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

/// The local log; clones are the same log.
#[derive(Clone)]
pub struct LocalLog {
    shared: Arc<Shared>,
    requests: mpsc::Sender<writer::Request>,
}

impl LocalLog {
    /// `reserves` when positions are kept elsewhere than in this database; `clock` gives epoch milliseconds.
    pub fn open(
        database: &Arc<Database>,
        config: &Config,
        reserves: bool,
        fresh_bytes_max: usize,
        clock: fn() -> i64,
    ) -> DatabaseResult<Self> {
        Self::open_with_keys(database, config, reserves, fresh_bytes_max, KEYS_BYTES_MAX, clock)
    }

    pub(super) fn open_with_keys(
        database: &Arc<Database>,
        config: &Config,
        reserves: bool,
        fresh_bytes_max: usize,
        keys_bytes_max: u64,
        clock: fn() -> i64,
    ) -> DatabaseResult<Self> {
        let directory = database.directory();
        let (watermark, acknowledged) = Watermark::open(directory)
            .map_err(|error| DatabaseError::Stop(format!("{}: {error}", directory.display())))?;
        let inner = Inner::default();
        let shared = Arc::new(Shared {
            database: Arc::clone(database),
            config: config.clone(),
            reserves,
            fresh_bytes_max,
            keys_bytes_max,
            clock,
            watermark,
            inner: Mutex::new(inner),
            appended: Condvar::new(),
        });
        shared.settle_partitions()?;
        for (number, end) in (0..config.partitions).zip(acknowledged) {
            let missing = shared.raise(number, end)?;
            if missing > 0 {
                tracing::error!(
                    partition = number, missing, directory = %directory.display(),
                    "acknowledged events are missing at the end of the log: the power was lost before they were on disk, or files are damaged"
                );
            }
        }
        let (requests, queue) = mpsc::channel();
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                // Whoever asks a question waits less for it than whoever sends a thousand events.
                let _ = rustix::process::nice(WRITER_NICE);
                writer::run(&writer, &queue);
            })
            .expect("a thread can be started");
        Ok(Self { shared, requests })
    }

    /// The one consumer of this log.
    pub fn consumer(&self) -> LocalConsumer {
        LocalConsumer::new(Arc::clone(&self.shared))
    }

    /// Dead letters, the last one first; those before a number, if one is given. Stops when `take`
    /// says so.
    pub fn dead_letters(
        &self,
        before: Option<i64>,
        mut take: impl FnMut(RecordBatch) -> ControlFlow<()>,
    ) -> DatabaseResult<()> {
        let open = self.shared.database.get()?;
        let end = before.map_or(u64::MAX, |before| before.max(0) as u64);
        for row in open.log.range(rows::letter(0)..rows::letter(end)).rev() {
            let (key, value) = row.into_inner().map_err(|error| self.shared.database.failed(&open, &error))?;
            let number = rows::block_last(&key).ok_or_else(|| self.shared.damaged())?;
            let block = Block::decode(&value).ok_or_else(|| self.shared.damaged())?;
            if take(block.into_batch(TopicPartition::new(DEAD_LETTERS, 0), 0, number)).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Bytes of the idempotency keys that are remembered.
    pub fn keys_bytes(&self) -> u64 {
        self.shared.lock().keys_bytes
    }

    /// Ends the writer; what comes after is refused.
    pub async fn close(&self) {
        let (done, ended) = oneshot::channel();
        if self.requests.send(writer::Request::Close(done)).is_ok() {
            let _ = ended.await;
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Says that a store has counted up to here. Should the log end earlier, it has lost its tail: those offsets are not used
    /// again. Returns how many records are missing.
    pub fn raise(&self, partition: &TopicPartition, position: i64) -> DatabaseResult<i64> {
        self.shared.raise(partition.partition, position)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> writer::Request,
    ) -> Result<T, AppendError> {
        let (done, answer) = oneshot::channel();
        let gone = || AppendError::Retry("the log is closed".to_owned());
        self.requests.send(request(done)).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Shared {
    /// A panic while the lock was held leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The database and what is known of it; read again if the database was opened anew.
    pub fn current(&self) -> DatabaseResult<(Arc<Open>, MutexGuard<'_, Inner>)> {
        let open = self.database.get()?;
        let mut inner = self.lock();
        if inner.epoch != open.epoch {
            let mut loaded = self.load(&open)?;
            // Offsets that were given once are not given again, whether or not a record of theirs is left.
            for (partition, before) in loaded.partitions.iter_mut().zip(&inner.partitions) {
                partition.next = partition.next.max(before.next);
            }
            *inner = loaded;
        }
        Ok((open, inner))
    }

    /// Offsets below `end` are not given any more, also after the next opening; returns how many of them have no record.
    fn raise(&self, number: i32, end: i64) -> DatabaseResult<i64> {
        let (open, mut inner) = self.current()?;
        let Some(partition) = inner.partitions.get_mut(number as usize) else { return Ok(0) };
        let missing = (end - partition.next).max(0);
        if missing > 0 {
            let mut batch = open.batch();
            batch.insert(&open.log, rows::reserved(number), end.to_be_bytes());
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

    fn settle_partitions(&self) -> DatabaseResult<()> {
        let open = self.database.get()?;
        let failed = |error| self.database.failed(&open, &error);
        let stored = open.log.get(rows::PARTITIONS).map_err(failed)?;
        let stored = stored.and_then(|bytes| Some(i32::from_be_bytes(bytes[..].try_into().ok()?)));
        let wanted = self.config.partitions;
        match stored {
            Some(stored) if stored == wanted => return Ok(()),
            Some(stored) if stored > wanted => {
                return Err(DatabaseError::Stop(format!(
                    "the log in {} has {stored} partitions, and broker.local.partitions = {wanted}; they cannot become fewer: set it to {stored}",
                    self.database.directory().display()
                )));
            }
            Some(_) | None => {}
        }
        let mut batch = open.batch();
        batch.insert(&open.log, rows::PARTITIONS, wanted.to_be_bytes());
        self.database.commit(&open, batch, true)
    }

    fn load(&self, open: &Arc<Open>) -> DatabaseResult<Inner> {
        let failed = |error| self.database.failed(open, &error);
        let mut partitions = Vec::new();
        for number in 0..self.config.partitions {
            let mut partition = Partition::default();
            let mut first = None;
            for row in open.log.prefix(rows::block_prefix(number)) {
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
            if let Some(row) = open.log.prefix(rows::block_prefix(number)).next_back() {
                let key = row.key().map_err(failed)?;
                partition.next = rows::block_last(&key).ok_or_else(|| self.damaged())? + 1;
            }
            let number_at = |key: Vec<u8>| -> DatabaseResult<i64> {
                let row = open.log.get(key).map_err(failed)?;
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
        let last_letter = open.log.prefix(rows::LETTERS).next_back();
        let last_letter = last_letter.map(|row| row.key().map_err(failed)).transpose()?;
        let next_letter = last_letter.and_then(|key| rows::block_last(&key)).map_or(0, |last| last as u64 + 1);
        let keys_after_ms = (self.clock)() - IDEMPOTENCY_MS;
        let keys_bytes = self.count_keys(open, keys_after_ms)?;
        Ok(Inner { epoch: open.epoch, partitions, fresh_bytes: 0, next_letter, keys_bytes, keys_after_ms })
    }

    /// Bytes of the keys that were used after a time; what has expired is removed soon.
    fn count_keys(&self, open: &Arc<Open>, after_ms: i64) -> DatabaseResult<u64> {
        let mut bytes = 0;
        for row in open.log.prefix(rows::KEYS) {
            let (key, value) = row.into_inner().map_err(|error| self.database.failed(open, &error))?;
            let key = key.strip_prefix(rows::KEYS).and_then(|key| std::str::from_utf8(key).ok());
            // One that cannot be read expires like the others, and only who uses its key is told.
            let (Some(key), Some(row)) = (key, KeyRow::decode(&value)) else { continue };
            if row.used_ms > after_ms {
                bytes += KeyRow::bytes(key, value.len());
            }
        }
        Ok(bytes)
    }

    pub fn damaged(&self) -> DatabaseError {
        DatabaseError::Stop(format!(
            "{}: a row of the log is not what was written; restore the directory from a backup, or begin anew with another data.directory",
            self.database.directory().display()
        ))
    }
}

impl Inner {
    pub fn watermarks(&self, partition: &TopicPartition) -> Result<Watermarks, BrokerError> {
        let known = usize::try_from(partition.partition).ok().and_then(|index| self.partitions.get(index));
        known.filter(|_| &*partition.topic == TOPIC).map_or_else(
            || Err(BrokerError::Stop(format!("the local log has no partition {partition}"))),
            |known| Ok(Watermarks { low: known.low, high: known.next }),
        )
    }
}

impl From<DatabaseError> for BrokerError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Retry(text) => Self::Retry(text),
            DatabaseError::Stop(text) => Self::Stop(text),
        }
    }
}

impl From<DatabaseError> for AppendError {
    fn from(error: DatabaseError) -> Self {
        Self::Retry(error.to_string())
    }
}

#[async_trait]
impl Appender for LocalLog {
    fn key_field(&self) -> Option<&str> {
        self.shared.config.partition_by.as_deref()
    }

    async fn replayed(&self, key: &str, fingerprint: u64) -> Result<Option<RequestCounts>, AppendError> {
        writer::replayed(&self.shared, key, fingerprint)
    }

    async fn append(&self, events: Events, idempotency: Option<Idempotency>) -> Result<Appended, AppendError> {
        self.ask(|done| writer::Request::Append { events, idempotency, done }).await
    }
}

/// Dead letters.
#[async_trait]
impl Producer for LocalLog {
    async fn send(&self, message: &Message) -> Result<(), ProduceError> {
        let message = message.clone();
        self.ask(|done| writer::Request::Letter { message, done })
            .await
            .map_err(|error| ProduceError::Retry(format!("dead letters: {error}")))
    }
}
