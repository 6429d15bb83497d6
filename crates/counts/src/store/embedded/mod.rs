//! The store of a single machine: counts and positions in the data directory, beside the local log
//! and in the same journal.
//!
//! - `rows`    the tree `store`, row by row
//! - `index`   what of it is in memory
//! - `commit`  a batch: fence, positions and writes in one step
//! - `read`    queries
//! - `sums`    values added up over many buckets
//! - `restore` writes what another store held
//! - `expire`  removes keys whose time is over
//!
//! There is one lane, and one process. What a batch adds is read from memory when its key was used
//! lately, and value by value from disk when it was not: adding one never reads a whole key.

mod commit;
mod expire;
mod index;
mod read;
mod restore;
pub mod rows;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use async_trait::async_trait;
use fjall::OwnedWriteBatch;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use self::index::Index;
use self::rows::{KeyRow, Value};
use self::sums::Remembered;
use super::keys::Keys;
use super::{
    KeyDump, KeySize, Meta, Outcome, Positions, Quarantined, Read, Reply, Session, Store, StoreError, StoreResult,
    StoredKey, SumBounds, Sums,
};
use crate::mapping::{Metric, WriteBatch};
use traqq_core::courtesy::Turn;
use traqq_core::model::{Bucket, Checkpoint, TopicPartition};
use traqq_disk::{Database, DatabaseError, Open};

/// What the names of keys begin with, as in Redis.
const PREFIX: &str = "traqq";

const COMMIT_NICE: i32 = 10;

/// Limits on the values of one key, from the rules in meta.
#[derive(Clone, Copy, Default)]
struct Limits {
    values_per_key: usize,
    values_per_key_bitmap_by: usize,
}

/// What is on disk besides keys and values, in memory.
#[derive(Default)]
struct Known {
    /// The opening of the database that this was read under; 0 when it must be read again.
    epoch: u64,
    meta: Option<Meta>,
    limits: Limits,
    positions: Positions,
    quarantined: BTreeMap<String, String>,
    next_number: u32,
}

struct Inner {
    database: Arc<Database>,
    keys: Keys,
    index: Index,
    remembered: Remembered,
    clock: fn() -> i64,
    /// Held for a few instructions.
    known: Mutex<Known>,
    /// The right to write: held from what is read for a write until it is on disk and in memory.
    writing: Mutex<()>,
}

/// The embedded store; clones are the same store.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

impl EmbeddedStore {
    /// `memory_bytes` bounds the values held in memory; `clock` gives epoch seconds, by which keys
    /// expire.
    pub fn open(database: &Arc<Database>, memory_bytes: usize, clock: fn() -> i64) -> StoreResult<Self> {
        let inner = Inner {
            database: Arc::clone(database),
            keys: Keys::new(PREFIX, None),
            index: Index::new(memory_bytes),
            remembered: Remembered::default(),
            clock,
            known: Mutex::default(),
            writing: Mutex::default(),
        };
        drop(inner.current()?);
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Retry(line) => Self::Reconnect(line),
            DatabaseError::InUse(line) | DatabaseError::Stop(line) => Self::Stop(line),
        }
    }
}

impl Inner {
    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database and what is known of it; read again if the database was opened anew.
    fn current(&self) -> StoreResult<(Arc<Open>, MutexGuard<'_, Known>)> {
        let open = self.database.get()?;
        let known = self.known(&open)?;
        Ok((open, known))
    }

    fn known(&self, open: &Arc<Open>) -> StoreResult<MutexGuard<'_, Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.epoch != open.epoch {
            *known = self.load(open)?;
        }
        Ok(known)
    }

    /// After a write that failed nothing in memory is believed.
    fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).epoch = 0;
    }

    fn failed(&self, open: &Arc<Open>, error: fjall::Error) -> StoreError {
        self.database.failed(open, error).into()
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::stop(format!(
            "{}: {what} is not what was written; restore the directory from a backup, or begin anew with another data.directory",
            self.database.directory().display()
        ))
    }

    fn load(&self, open: &Arc<Open>) -> StoreResult<Known> {
        let failed = |error| self.failed(open, error);
        let get = |row: &[u8]| open.tree(rows::TREE).get(row).map_err(failed);
        let mut known = Known { epoch: open.epoch, ..Known::default() };
        if let Some(row) = get(rows::META)? {
            let fields: BTreeMap<String, String> =
                serde_json::from_slice(&row).map_err(|_| self.damaged("the store's meta"))?;
            known.set_meta(Meta::of_fields(&fields)?)?;
        }
        known.next_number = get(rows::NEXT)?
            .map(|row| row[..].try_into().map(u32::from_le_bytes).map_err(|_| self.damaged("a number")))
            .transpose()?
            .unwrap_or(0);
        for row in open.tree(rows::TREE).prefix(rows::POSITIONS) {
            let (name, value) = row.into_inner().map_err(failed)?;
            let position = || {
                let partition: TopicPartition = rows::name_of(&name, rows::POSITIONS)?.parse().ok()?;
                let checkpoint: Checkpoint = std::str::from_utf8(&value).ok()?.parse().ok()?;
                Some((partition, checkpoint))
            };
            let (partition, checkpoint) = position().ok_or_else(|| self.damaged("a position"))?;
            known.positions.insert(partition, checkpoint);
        }
        for row in open.tree(rows::TREE).prefix(rows::QUARANTINE) {
            let (name, error) = row.into_inner().map_err(failed)?;
            let name = rows::name_of(&name, rows::QUARANTINE).ok_or_else(|| self.damaged("a key in quarantine"))?;
            known.quarantined.insert(name.to_owned(), String::from_utf8_lossy(&error).into_owned());
        }
        self.index.clear();
        for row in open.tree(rows::TREE).prefix(rows::KEYS) {
            let (name, row) = row.into_inner().map_err(failed)?;
            let key = || Some((rows::name_of(&name, rows::KEYS)?, KeyRow::decode(&row)?));
            let (name, row) = key().ok_or_else(|| self.damaged("a key"))?;
            self.index.load(name, row);
        }
        Ok(known)
    }

    /// The name of a key in the documented layout.
    fn key_name(&self, bucket: Bucket, metric: &Metric) -> String {
        self.keys.of_metric(bucket, metric).swap_remove(0)
    }

    fn value<V: Value>(&self, open: &Arc<Open>, number: u32, label: &str) -> StoreResult<Option<V>> {
        let row = open.tree(rows::TREE).get(rows::value(number, label)).map_err(|error| self.failed(open, error))?;
        row.map(|row| V::decode(&row).ok_or_else(|| self.damaged("a value"))).transpose()
    }

    /// Writes a batch; the caller holds the right to.
    fn write(&self, open: &Arc<Open>, batch: OwnedWriteBatch) -> StoreResult<()> {
        let written = self.database.commit(open, batch, false);
        if written.is_err() {
            self.forget();
        }
        Ok(written?)
    }

    fn commit(&self, epoch: u64, plan: &str, batch: &WriteBatch) -> StoreResult<Outcome> {
        let _writing = self.writing();
        let open = self.database.get()?;
        if open.epoch != epoch {
            return Err(StoreError::reconnect("the data directory was opened anew"));
        }
        let outcome = commit::commit(self, &open, plan, batch);
        if outcome.is_err() {
            self.forget();
        }
        outcome
    }
}

impl Known {
    fn set_meta(&mut self, meta: Meta) -> StoreResult<()> {
        let rules = meta.valid_rules()?.rules.events;
        self.limits = Limits {
            values_per_key: rules.max_values_per_key,
            values_per_key_bitmap_by: rules.max_values_per_key_bitmap_by,
        };
        self.meta = Some(meta);
        Ok(())
    }
}

fn put_meta(open: &Open, batch: &mut OwnedWriteBatch, meta: &Meta) {
    let fields: BTreeMap<String, String> = meta.to_fields().into_iter().collect();
    batch.insert(open.tree(rows::TREE), rows::META, serde_json::to_vec(&fields).expect("strings are JSON"));
}

fn put_position(open: &Open, batch: &mut OwnedWriteBatch, partition: &TopicPartition, checkpoint: Checkpoint) {
    batch.insert(open.tree(rows::TREE), rows::named(rows::POSITIONS, &partition.to_string()), checkpoint.to_string());
}

#[async_trait]
impl Store for EmbeddedStore {
    fn lanes(&self) -> usize {
        1
    }

    async fn meta(&self) -> StoreResult<Option<Meta>> {
        Ok(self.inner.current()?.1.meta.clone())
    }

    async fn create(&self, meta: &Meta) -> StoreResult<Meta> {
        let _writing = self.inner.writing();
        let (open, known) = self.inner.current()?;
        if let Some(existing) = &known.meta {
            return Ok(existing.clone());
        }
        drop(known);
        let positions = meta.first_positions();
        let mut batch = open.batch();
        put_meta(&open, &mut batch, meta);
        for (partition, checkpoint) in &positions {
            put_position(&open, &mut batch, partition, *checkpoint);
        }
        self.inner.write(&open, batch)?;
        let mut known = self.inner.known(&open)?;
        known.set_meta(meta.clone())?;
        known.positions = positions;
        Ok(meta.clone())
    }

    /// There is one lane, whose meta is the store's.
    async fn begin_lane(&self, _lane: usize, _meta: &Meta) -> StoreResult<()> {
        Ok(())
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
        let _writing = self.inner.writing();
        let (open, known) = self.inner.current()?;
        let meta = known.meta.clone();
        drop(known);
        let Some(mut meta) = meta else {
            return Err(StoreError::reconnect("the store is empty"));
        };
        let mut batch = open.batch();
        let mut positions = Vec::new();
        for (partition, start) in starts {
            if !meta.starts.contains_key(partition) {
                meta.starts.insert(partition.clone(), *start);
                put_position(&open, &mut batch, partition, Checkpoint::start(*start));
                positions.push((partition.clone(), Checkpoint::start(*start)));
            }
        }
        put_meta(&open, &mut batch, &meta);
        self.inner.write(&open, batch)?;
        let mut known = self.inner.known(&open)?;
        known.meta = Some(meta);
        known.positions.extend(positions);
        Ok(())
    }

    async fn replace_rules(&self, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool> {
        let _writing = self.inner.writing();
        let (open, known) = self.inner.current()?;
        let stored =
            known.meta.as_ref().filter(|stored| Some(&*stored.plan) == expected_plan || stored.plan == meta.plan);
        let Some(stored) = stored else {
            return Err(StoreError::stop("the mapping was changed by somebody else meanwhile"));
        };
        let (meta, changed) = (Meta { starts: stored.starts.clone(), ..meta.clone() }, stored.plan != meta.plan);
        drop(known);
        let mut batch = open.batch();
        put_meta(&open, &mut batch, &meta);
        self.inner.write(&open, batch)?;
        self.inner.known(&open)?.set_meta(meta)?;
        Ok(changed)
    }

    async fn extend(&self, _lane: usize, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
        self.inner.extend(expiries)
    }

    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>> {
        assert_eq!(lane, 0, "the embedded store has one lane");
        let (open, known) = self.inner.current()?;
        let plan = known.meta.as_ref().map(|meta| meta.plan.clone()).unwrap_or_default();
        drop(known);
        Ok(Box::new(EmbeddedSession::start(&self.inner, open.epoch, plan)))
    }

    async fn positions(&self, _lane: usize) -> StoreResult<Positions> {
        Ok(self.inner.current()?.1.positions.clone())
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> StoreResult<bool> {
        let _writing = self.inner.writing();
        let (open, known) = self.inner.current()?;
        if known.positions.get(partition).copied() != from {
            return Ok(false);
        }
        drop(known);
        let mut batch = open.batch();
        put_position(&open, &mut batch, partition, to);
        self.inner.write(&open, batch)?;
        self.inner.known(&open)?.positions.insert(partition.clone(), to);
        Ok(true)
    }

    async fn quarantined(&self, _lane: usize) -> StoreResult<Vec<Quarantined>> {
        let (_, known) = self.inner.current()?;
        let pair = |(key, error): (&String, &String)| Quarantined { key: key.clone(), error: error.clone() };
        Ok(known.quarantined.iter().map(pair).collect())
    }

    async fn keys(&self, _lane: usize) -> StoreResult<Vec<StoredKey>> {
        self.inner.stored_keys()
    }

    async fn restore_keys(&self, _lane: usize, keys: &[KeyDump]) -> StoreResult<()> {
        self.inner.restore(keys)
    }

    async fn restore_quarantine(&self, _lane: usize, quarantined: &[Quarantined]) -> StoreResult<()> {
        self.inner.restore_quarantine(quarantined)
    }

    async fn size(&self) -> StoreResult<u64> {
        drop(self.inner.current()?);
        Ok(self.inner.index.rows().len() as u64)
    }

    async fn begin_removal(&self) -> StoreResult<()> {
        self.inner.begin_removal()
    }

    async fn remove_all(&self) -> StoreResult<u64> {
        self.inner.remove_all()
    }

    async fn sums(&self, _lane: usize, reads: &[Read], bounds: &SumBounds<'_>) -> StoreResult<Option<Sums>> {
        let open = self.inner.database.get()?;
        self.inner.sums(&open, reads, bounds).await
    }

    fn size_of_key(&self, bucket: Bucket, metric: &Metric) -> Option<KeySize> {
        let key = self.inner.index.get(&self.inner.key_name(bucket, metric));
        let size = |key: Arc<index::Key>| KeySize { values: key.values() as usize, is_in_memory: key.is_at_hand() };
        Some(key.map_or(KeySize { values: 0, is_in_memory: true }, size))
    }

    async fn read(&self, _lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>> {
        let open = self.inner.database.get()?;
        let (turn, mut replies) = (Turn::begin(), Vec::with_capacity(reads.len()));
        for read in reads {
            replies.push(self.inner.read(&open, read)?);
            turn.pause().await;
        }
        Ok(replies)
    }
}

/// Commits on a thread of its own, in the order they were asked for.
struct EmbeddedSession {
    store: Arc<Inner>,
    commits: mpsc::Sender<(Arc<WriteBatch>, oneshot::Sender<StoreResult<Outcome>>)>,
}

impl EmbeddedSession {
    fn start(store: &Arc<Inner>, epoch: u64, plan: String) -> Self {
        let (commits, queue) = mpsc::channel::<(Arc<WriteBatch>, oneshot::Sender<StoreResult<Outcome>>)>();
        let inner = Arc::clone(store);
        let run = move || {
            // Readers wait for none of it, unless for the processor.
            let _ = rustix::process::nice(COMMIT_NICE);
            while let Ok((batch, answer)) = queue.recv() {
                let outcome = inner.commit(epoch, &plan, &batch);
                let is_applied = matches!(outcome, Ok(Outcome::Applied(_)));
                // What comes after a batch that was not applied is void, and fenced off by its
                // positions besides.
                if answer.send(outcome).is_err() || !is_applied {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("commit".to_owned()).spawn(run).expect("a thread can be started");
        Self { store: Arc::clone(store), commits }
    }
}

#[async_trait]
impl Session for EmbeddedSession {
    async fn stored(&mut self) -> StoreResult<Option<(Meta, Positions)>> {
        let (_, known) = self.store.current()?;
        Ok(known.meta.clone().map(|meta| (meta, known.positions.clone())))
    }

    async fn commit(&mut self, batch: Arc<WriteBatch>) -> BoxFuture<'static, StoreResult<Outcome>> {
        let (answer, wait) = oneshot::channel();
        let broken = || Err(StoreError::reconnect("the session ended"));
        if self.commits.send((batch, answer)).is_err() {
            return futures_util::future::ready(broken()).boxed();
        }
        async move { wait.await.unwrap_or_else(|_| broken()) }.boxed()
    }
}
