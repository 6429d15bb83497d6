//! The log as others use it: events go in, readers are handed out, dead letters are kept.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, mpsc};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::block::Block;
use super::config::Config;
use super::rows;
use super::shared::{Inner, Shared};
use super::watermark::Watermark;
use super::{LocalConsumer, writer};
use crate::{
    AppendError, Appended, Appender, BrokerError, Events, Idempotency, Message, ProduceError, Producer, RequestCounts,
};
use traqq_core::error::ErrorLine;
use traqq_core::model::{RecordBatch, TopicPartition};
use traqq_disk::{Database, DatabaseError, DatabaseResult};

const WRITER_NICE: i32 = 10;
const DEAD_LETTERS: &str = "dead-letters";
/// Bytes of idempotency keys that are remembered. A UUID takes 131, so that there is room for a
/// million requests a day; who sends more puts more events into one. Beyond it new keys are
/// refused, long before they fill the disk.
const KEYS_BYTES_MAX: u64 = 128 << 20;

/// The local log; clones are the same log.
#[derive(Clone)]
pub struct LocalLog {
    shared: Arc<Shared>,
    requests: mpsc::Sender<writer::Request>,
}

impl LocalLog {
    /// `reserves` when positions are kept elsewhere than in this database; `clock` gives epoch
    /// milliseconds.
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
            .map_err(|error| DatabaseError::Stop(ErrorLine::of(format!("{}: {error}", directory.display()), error)))?;
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

    /// The first reader, which every log has. Its group is that of the configuration.
    pub fn consumer(&self) -> LocalConsumer {
        LocalConsumer::new(Arc::clone(&self.shared), None)
    }

    /// A further reader, with positions of its own under this name, which is remembered: from now
    /// on nothing is removed from the log that it has not committed, whether or not it runs, until
    /// [`Self::forget_reader`].
    pub fn reader(&self, name: &str) -> DatabaseResult<LocalConsumer> {
        if name.is_empty() || name.contains('\0') {
            return Err(DatabaseError::stop(format!("{name:?} is no name for a reader of the log")));
        }
        let open = self.shared.database.get()?;
        let mut batch = open.batch();
        batch.insert(open.tree(rows::TREE), rows::reader(name), []);
        self.shared.database.commit(&open, batch, true)?;
        Ok(LocalConsumer::new(Arc::clone(&self.shared), Some(name.to_owned())))
    }

    /// Forgets a reader and its positions: the log is not kept for it any more.
    pub fn forget_reader(&self, name: &str) -> DatabaseResult<()> {
        let open = self.shared.database.get()?;
        let mut batch = open.batch();
        for row in open.tree(rows::TREE).prefix(rows::reader(name)) {
            let key = row.key().map_err(|error| self.shared.database.failed(&open, error))?;
            batch.remove(open.tree(rows::TREE), key);
        }
        self.shared.database.commit(&open, batch, true)
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
        for row in open.tree(rows::TREE).range(rows::letter(0)..rows::letter(end)).rev() {
            let (key, value) = row.into_inner().map_err(|error| self.shared.database.failed(&open, error))?;
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

    /// Says that a store has counted up to here. Should the log end earlier, it has lost its tail:
    /// those offsets are not used again. Returns how many records are missing.
    pub fn raise(&self, partition: &TopicPartition, position: i64) -> DatabaseResult<i64> {
        self.shared.raise(partition.partition, position)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> writer::Request,
    ) -> Result<T, AppendError> {
        let (done, answer) = oneshot::channel();
        let gone = || AppendError::retry("the log is closed");
        self.requests.send(request(done)).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl From<DatabaseError> for BrokerError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Retry(line) => Self::Retry(line),
            DatabaseError::InUse(line) | DatabaseError::Stop(line) => Self::Stop(line),
        }
    }
}

impl From<DatabaseError> for AppendError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Retry(line) | DatabaseError::InUse(line) | DatabaseError::Stop(line) => Self::Retry(line),
        }
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
            .map_err(|error| ProduceError::Retry(ErrorLine::from_error(error).within("dead letters")))
    }
}
