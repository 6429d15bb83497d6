//! The data directory: one database in which the local log and what is kept of it live together,
//! each in a [`Tree`] of its own.
//!
//! One journal takes every write in order, and a batch of writes is in it whole or not at all. What
//! must not come apart is in one tree: the store has counts, positions and meta side by side.
//! Whatever a crash takes away, it takes from the end of a tree, so that a position can never be
//! newer or older than the counts it stands for.
//!
//! ```text
//! traqq-data/
//!   format        the version of this layout
//!   database/     fjall: the journal, and the trees (`log`, `store`)
//! ```
//!
//! A write that fails leaves the database closed, because nobody knows what of it arrived. After a
//! full disk it is opened again as soon as there is room, under a new epoch: whoever keeps
//! something in memory about it compares epochs and reads again. After any other failure it stays
//! closed until a restart: the system drops what it could not sync and calls the next sync a
//! success, so that an event could be acknowledged behind one that is lost. A person looks at the
//! disk first.

mod age;
mod config;
pub mod private;
mod upkeep;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use fjall::{CompressionType, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch, PersistMode};

pub use age::AgeClock;
pub use config::{Config, Durability};
pub use upkeep::Upkeep;

use traqq_core::error::ErrorLine;
use traqq_core::panics::contained;

/// The version of the directory's layout and of every row in it.
const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
const DATABASE: &str = "database";
/// What may be in the directory; the second is of the local log.
const ENTRIES: [&str; 3] = [FORMAT_FILE, "acknowledged", DATABASE];
const FORMAT_PREFIX: &str = "traqq data directory, format ";

/// `periodic` is no later than this.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// How long free space is believed.
const SPACE_AGE_MAX: Duration = Duration::from_millis(50);
/// Between attempts to open a database that failed.
const REOPEN_EVERY: Duration = Duration::from_millis(500);
/// How long somebody who has the database open may take to close it.
const CLOSING_MAX: Duration = Duration::from_millis(500);
/// Of one tree, before it is written; each has one, and up to three more that wait.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// On disk: small, so that merging some does not hold up for long what is to be written.
const TABLE_BYTES: u64 = 16 << 20;
/// Tables in memory that wait to be written, before writers wait for them.
const SEALED_MAX: usize = 2;
const STALL: Duration = Duration::from_millis(2);
/// How long a writer waits for tables to be written.
const STALL_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot take this now: the disk is full, or it is being opened again.
    #[error(transparent)]
    Retry(ErrorLine),
    /// Another process has it open.
    #[error(transparent)]
    InUse(ErrorLine),
    /// A person must act.
    #[error(transparent)]
    Stop(ErrorLine),
}

impl DatabaseError {
    pub fn retry(line: impl Into<ErrorLine>) -> Self {
        Self::Retry(line.into())
    }

    pub fn stop(line: impl Into<ErrorLine>) -> Self {
        Self::Stop(line.into())
    }
}

pub type DatabaseResult<T> = Result<T, DatabaseError>;

/// A tree of rows in the database. Whoever keeps something there has a constant of this, which says
/// what it is on disk; it never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tree {
    pub name: &'static str,
    pub values: Values,
}

/// What the values of a tree are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Values {
    /// Small: they stand beside their keys.
    Small,
    /// Blocks that are compressed already: they stand apart, so that merging tables does not move
    /// them.
    Blocks,
}

/// A database that is open, until something fails.
pub struct Open {
    database: fjall::Database,
    trees: Vec<(Tree, Keyspace)>,
    /// Goes up with every opening.
    pub epoch: u64,
}

enum State {
    Open(Arc<Open>),
    /// Waits until nobody uses the failed one any more.
    Failed {
        old: Weak<Open>,
        epoch: u64,
        tried_at: Instant,
        why: ErrorLine,
        /// Until a restart.
        is_latched: bool,
    },
}

pub struct Database {
    directory: PathBuf,
    durability: Durability,
    reserve_bytes: u64,
    cache_bytes: u64,
    trees: Vec<Tree>,
    state: Mutex<State>,
    space: Mutex<(Instant, u64)>,
    is_dirty: AtomicBool,
}

impl Database {
    /// Opens the directory, or makes it. `memory_bytes` is what block cache and write buffers may
    /// take; `trees` are those that will be asked for, others that are there stay as they are.
    pub fn open(config: &Config, memory_bytes: usize, trees: &[Tree]) -> DatabaseResult<Arc<Self>> {
        let directory = &config.directory;
        check_format(directory)?;
        let cache_bytes = (memory_bytes / 4) as u64;
        let open = open(directory, cache_bytes, trees, 1)?;
        private::close_to_others(&directory.join(DATABASE), None)
            .and_then(|()| private::close_to_others(directory, Some(&ENTRIES)))
            .map_err(|error| DatabaseError::Stop(at(directory, error)))?;
        let database = Arc::new(Self {
            directory: directory.clone(),
            durability: config.durability,
            reserve_bytes: config.reserve_bytes,
            cache_bytes,
            trees: trees.to_vec(),
            state: Mutex::new(State::Open(Arc::new(open))),
            space: Mutex::new((Instant::now(), free_bytes(directory)?)),
            is_dirty: AtomicBool::new(false),
        });
        if config.durability == Durability::Periodic {
            let weak = Arc::downgrade(&database);
            std::thread::Builder::new()
                .name("sync".to_owned())
                .spawn(move || {
                    while let Some(database) = weak.upgrade() {
                        database.sync_if_dirty();
                        drop(database);
                        std::thread::sleep(SYNC_EVERY / 2);
                    }
                })
                .expect("a thread can be started");
        }
        Ok(database)
    }

    /// The format of a directory that nobody uses; `None` when there is no directory yet. Changes
    /// nothing.
    pub fn inspect(config: &Config) -> DatabaseResult<Option<u32>> {
        let directory = &config.directory;
        let database = directory.join("database");
        if !database.exists() {
            return Ok(None);
        }
        if is_locked(&database) {
            return Err(DatabaseError::InUse(explain(directory, fjall::Error::Locked)));
        }
        check_format(directory)?;
        Ok(Some(FORMAT))
    }

    /// Whether a process has it open.
    pub fn is_in_use(config: &Config) -> bool {
        let place = config.directory.join(DATABASE);
        // It is another user's, who may be using it.
        let is_closed = matches!(fs::File::open(place.join("lock")), Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied);
        is_closed || is_locked(&place)
    }

    /// Whether others of this machine may enter where the data is.
    pub fn is_open_to_others(config: &Config) -> bool {
        [config.directory.clone(), config.directory.join(DATABASE)]
            .iter()
            .all(|place| private::is_open_to_others(place))
    }

    /// Room on the disk of a directory, or of the nearest one above it that exists.
    pub fn free_bytes(config: &Config) -> DatabaseResult<u64> {
        let directory = std::path::absolute(&config.directory)
            .map_err(|error| DatabaseError::Stop(at(&config.directory, error)))?;
        let existing = directory.ancestors().find(|place| place.exists()).unwrap_or(&directory);
        free_bytes(existing)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// A panic while the lock was held leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The database, to be held for one piece of work.
    pub fn get(&self) -> DatabaseResult<Arc<Open>> {
        let mut state = self.lock();
        match &mut *state {
            State::Open(open) => Ok(Arc::clone(open)),
            State::Failed { old, epoch, tried_at, why, is_latched } => {
                let is_due = !*is_latched && tried_at.elapsed() >= REOPEN_EVERY;
                if !is_due || old.strong_count() > 0 {
                    return Err(DatabaseError::Retry(why.clone()));
                }
                *tried_at = Instant::now();
                // A disk that is still full would only fail again, in the middle of something.
                if free_bytes(&self.directory)? < self.reserve_bytes / 2 {
                    return Err(DatabaseError::Retry(why.clone()));
                }
                let open = Arc::new(open(&self.directory, self.cache_bytes, &self.trees, *epoch + 1)?);
                tracing::warn!(directory = %self.directory.display(), "the data directory is open again");
                *state = State::Open(Arc::clone(&open));
                Ok(open)
            }
        }
    }

    /// Whether there is room for more; `Err` says how much is missing.
    pub fn check_space(&self) -> DatabaseResult<()> {
        let mut space = self.space.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if space.0.elapsed() > SPACE_AGE_MAX {
            *space = (Instant::now(), free_bytes(&self.directory)?);
        }
        if space.1 >= self.reserve_bytes {
            return Ok(());
        }
        Err(DatabaseError::retry(format!(
            "the disk of {} is full: {} MiB are free and {} are kept in reserve; free some space, or lower data.reserve_bytes",
            self.directory.display(),
            space.1 >> 20,
            self.reserve_bytes >> 20
        )))
    }

    /// Writes a batch whole or not at all. An acknowledged batch is as durable as is configured
    /// when `is_acknowledged`; others may be lost with everything behind them, never alone.
    pub fn commit(&self, open: &Arc<Open>, batch: OwnedWriteBatch, is_acknowledged: bool) -> DatabaseResult<()> {
        self.wait_for_room(open)?;
        let mode = match (self.durability, is_acknowledged) {
            (Durability::None, _) => None,
            (Durability::EveryWrite, true) => Some(PersistMode::SyncData),
            _ => Some(PersistMode::Buffer),
        };
        batch.durability(mode).commit().map_err(|error| self.write_failed(open, error))?;
        self.is_dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Memory is bounded: while tables wait to be written, so do the writers.
    fn wait_for_room(&self, open: &Arc<Open>) -> DatabaseResult<()> {
        let since = Instant::now();
        while open.trees.iter().any(|(_, rows)| rows.sealed_memtable_count() > SEALED_MAX) {
            open.database.persist(PersistMode::Buffer).map_err(|error| self.write_failed(open, error))?;
            if since.elapsed() > STALL_MAX {
                let text = format!("the disk of {} is too slow for what is written", self.directory.display());
                return Err(DatabaseError::retry(text));
            }
            std::thread::sleep(STALL);
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> DatabaseResult<()> {
        let open = self.get()?;
        self.is_dirty.store(false, Ordering::Release);
        open.database.persist(PersistMode::SyncAll).map_err(|error| self.write_failed(&open, error))
    }

    fn sync_if_dirty(&self) {
        if self.is_dirty.swap(false, Ordering::AcqRel) {
            let open = match &*self.lock() {
                State::Open(open) => Arc::clone(open),
                State::Failed { .. } => return,
            };
            if let Err(error) = open.database.persist(PersistMode::SyncData) {
                self.write_failed(&open, error);
            }
        }
    }

    /// What an error means. Afterwards the database is closed, unless what is on the disk is
    /// damaged.
    pub fn failed(&self, open: &Arc<Open>, error: fjall::Error) -> DatabaseError {
        self.close(open, error, false)
    }

    fn write_failed(&self, open: &Arc<Open>, error: fjall::Error) -> DatabaseError {
        let is_latched = leaves_doubt(&error);
        self.close(open, error, is_latched)
    }

    fn close(&self, open: &Arc<Open>, error: fjall::Error, is_latched: bool) -> DatabaseError {
        if is_damage(&error) {
            return DatabaseError::Stop(explain(&self.directory, error));
        }
        let mut line = explain(&self.directory, error);
        if is_latched {
            line = line.followed_by(
                "; writing failed, and nothing is taken until a restart: look at the disk, then restart traqq",
            );
        }
        let mut state = self.lock();
        match &*state {
            State::Open(current) if current.epoch == open.epoch => {
                if is_latched {
                    tracing::error!(text = line.text(), "closing the data directory until a restart");
                } else {
                    tracing::error!(
                        text = line.text(),
                        "closing the data directory; it is opened again as soon as that is possible"
                    );
                }
                let (old, epoch) = (Arc::downgrade(open), open.epoch);
                *state = State::Failed { old, epoch, tried_at: Instant::now(), why: line.clone(), is_latched };
            }
            // Others see what the first failure has left behind.
            State::Failed { why, is_latched: true, .. } => line.clone_from(why),
            _ => {}
        }
        DatabaseError::Retry(line)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            tracing::warn!(%error, "the data directory was not synced at the end");
        }
    }
}

impl Open {
    pub fn batch(&self) -> OwnedWriteBatch {
        self.database.batch()
    }

    /// The rows of a tree, which the database was opened with.
    pub fn tree(&self, tree: Tree) -> &Keyspace {
        let found = self.trees.iter().find(|(known, _)| known.name == tree.name);
        &found.expect("a tree is named when the database is opened").1
    }
}

/// The database panics over some kinds of damage to its journal; that is damage like any other.
fn open(directory: &Path, cache_bytes: u64, trees: &[Tree], epoch: u64) -> DatabaseResult<Open> {
    contained(|| try_open(directory, cache_bytes, trees, epoch)).unwrap_or_else(|why| {
        let text = damaged(directory, &format!("its journal is not what was written: {why}"));
        Err(DatabaseError::Stop(ErrorLine::of(text, why)))
    })
}

fn damaged(directory: &Path, what: &str) -> String {
    format!(
        "{} is damaged ({what}); restore it from a backup, or begin anew with another data.directory",
        directory.display()
    )
}

fn try_open(directory: &Path, cache_bytes: u64, trees: &[Tree], epoch: u64) -> DatabaseResult<Open> {
    let failed = |error: fjall::Error| {
        let may_pass = matches!(error, fjall::Error::Io(_) | fjall::Error::Locked) && !is_certain_damage(&error);
        let line = explain(directory, error);
        if epoch > 1 && may_pass { DatabaseError::Retry(line) } else { DatabaseError::Stop(line) }
    };
    let place = directory.join("database");
    // Whoever has it open changes it under our eyes. Somebody who is closing it is done in a
    // moment.
    let since = Instant::now();
    while is_locked(&place) && since.elapsed() < CLOSING_MAX {
        std::thread::sleep(STALL);
    }
    if is_locked(&place) {
        return Err(failed(fjall::Error::Locked));
    }
    verify::verify(&place).map_err(|error| {
        let is_certain = epoch == 1 || error.kind() == std::io::ErrorKind::InvalidData;
        let line = ErrorLine::of(damaged(directory, &format!("{error}: not what was written")), error);
        if is_certain { DatabaseError::Stop(line) } else { DatabaseError::Retry(line) }
    })?;
    let database = fjall::Database::builder(place)
        .cache_size(cache_bytes)
        .journal_compression(CompressionType::None)
        // Of two, the first one spins while the second one merges.
        .worker_threads(1)
        .open()
        .map_err(failed)?;
    let mut opened = Vec::with_capacity(trees.len());
    for tree in trees {
        let rows = database.keyspace(tree.name, || options(tree.values)).map_err(failed)?;
        opened.push((*tree, rows));
    }
    Ok(Open { database, trees: opened, epoch })
}

fn options(values: Values) -> KeyspaceCreateOptions {
    let tables = fjall::compaction::Leveled::default().with_table_target_size(TABLE_BYTES);
    let options =
        KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES).compaction_strategy(Arc::new(tables));
    match values {
        Values::Small => options,
        Values::Blocks => {
            let apart = KvSeparationOptions::default().compression(CompressionType::None).file_target_size(128 << 20);
            options.with_kv_separation(Some(apart))
        }
    }
}

/// Whether somebody has the database open.
fn is_locked(database: &Path) -> bool {
    fs::File::open(database.join("lock")).is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

fn is_certain_damage(error: &fjall::Error) -> bool {
    !matches!(error, fjall::Error::Locked) && is_damage(error)
}

/// Whether a failed write leaves open what of it, and of the writes before it, is on the disk. A
/// full disk has refused it; a poisoned database has failed to make a table of what is in its
/// journal, and the journal is read again.
fn leaves_doubt(error: &fjall::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            !matches!(error.kind(), StorageFull | QuotaExceeded)
        }
        _ => false,
    }
}

/// Whether data on the disk is not what was written.
fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => says_damage(error),
        fjall::Error::Poisoned => false,
        _ => true,
    }
}

/// Whether reading failed for what is in a file, or for a file that is not there.
fn says_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

fn explain(directory: &Path, error: fjall::Error) -> ErrorLine {
    let place = directory.display();
    let text = match &error {
        fjall::Error::Locked => {
            format!("{place} is in use by another traqq; stop it, or set data.directory to another place")
        }
        fjall::Error::Poisoned => format!("{place}: a write failed before"),
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) if !says_damage(error) => {
            format!("{place}: {error}")
        }
        error => damaged(directory, &format!("{error:?}")),
    };
    ErrorLine::of(text, error)
}

/// An error about a file or a directory.
fn at(place: &Path, error: impl std::error::Error + Send + Sync + 'static) -> ErrorLine {
    ErrorLine::of(format!("{}: {error}", place.display()), error)
}

fn free_bytes(directory: &Path) -> DatabaseResult<u64> {
    let stat = rustix::fs::statvfs(directory).map_err(|error| DatabaseError::Retry(at(directory, error)))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Refuses a directory of another format, and marks a new one.
fn check_format(directory: &Path) -> DatabaseResult<()> {
    let stop = |error: std::io::Error| DatabaseError::Stop(at(directory, error));
    let file = directory.join(FORMAT_FILE);
    let is_new = !directory.join("database").exists();
    match fs::read(&file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found: Option<u32> = text.trim().strip_prefix(FORMAT_PREFIX).and_then(|number| number.parse().ok());
            match found {
                Some(FORMAT) => Ok(()),
                Some(other) => Err(DatabaseError::stop(format!(
                    "{} has format {other}, and this version of traqq reads format {FORMAT}; use the version that wrote it, and move its \
                     counts with `traqq store export`",
                    directory.display()
                ))),
                // A crash of an earlier version between making the file and filling it.
                None if is_new && text.is_empty() => mark(&file).map_err(stop),
                None => Err(DatabaseError::stop(format!(
                    "{} is not what was written: it should say {FORMAT_PREFIX:?} and a number; is data.directory right?",
                    file.display()
                ))),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_new => {
            private::create_directory(directory).map_err(stop)?;
            mark(&file).map_err(stop)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(DatabaseError::stop(format!(
            "{} is missing though there is a database beside it; restore it, or set data.directory to another place",
            file.display()
        ))),
        Err(error) => Err(stop(error)),
    }
}

fn mark(file: &Path) -> std::io::Result<()> {
    private::replace(file, format!("{FORMAT_PREFIX}{FORMAT}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const TREE: Tree = Tree { name: "log", values: Values::Blocks };
    const OTHER: Tree = Tree { name: "other", values: Values::Small };

    /// A projection that is added later, or left out for a while, finds what it has kept; the
    /// others do not notice.
    #[test]
    fn trees_come_and_go_and_keep_their_rows() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { directory: directory.path().join("data"), ..Config::default() };
        for (round, trees) in [&[TREE][..], &[TREE, OTHER], &[TREE], &[OTHER, TREE]].into_iter().enumerate() {
            let database = Database::open(&config, 1 << 20, trees).unwrap();
            let open = database.get().unwrap();
            let mut batch = open.batch();
            for tree in trees {
                batch.insert(open.tree(*tree), [round as u8], tree.name);
            }
            database.commit(&open, batch, true).unwrap();
        }
        let database = Database::open(&config, 1 << 20, &[TREE, OTHER]).unwrap();
        let open = database.get().unwrap();
        let keys = |tree| open.tree(tree).iter().map(|row| row.key().unwrap()[0]).collect::<Vec<u8>>();
        assert_eq!((keys(TREE), keys(OTHER)), (vec![0, 1, 2, 3], vec![1, 3]));
    }

    /// A process that is killed while it writes leaves the beginning of a write, and zeros behind
    /// it: the journal's room is taken ahead.
    #[test]
    fn a_write_that_was_cut_off_at_any_byte_is_whole_or_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let config = |name: &str| Config { directory: directory.path().join(name), ..Config::default() };
        let journal = |name: &str| directory.path().join(name).join("database/0.jnl");
        let end = |name: &str| {
            let bytes = fs::read(journal(name)).unwrap();
            bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
        };
        let write = |database: &Database, values: &[&str]| {
            let open = database.get().unwrap();
            let mut batch = open.batch();
            values.iter().for_each(|value| batch.insert(open.tree(TREE), *value, value.repeat(3)));
            database.commit(&open, batch, true).unwrap();
        };
        let database = Database::open(&config("first"), 1 << 20, &[TREE]).unwrap();
        write(&database, &["a", "b"]);
        let before = end("first");
        write(&database, &["c", "dd"]);
        let after = end("first");
        let copy = |name: &str| {
            let from = directory.path().join("first");
            let status = std::process::Command::new("cp").arg("-r").arg(from).arg(directory.path().join(name)).status();
            assert!(status.unwrap().success());
        };
        for cut in before..=after {
            let name = cut.to_string();
            copy(&name);
            let zeros = vec![0; (after - cut) as usize];
            fs::File::options().write(true).open(journal(&name)).unwrap().write_all_at(&zeros, cut).unwrap();
            let database = Database::open(&config(&name), 1 << 20, &[TREE])
                .unwrap_or_else(|error| panic!("cut at {cut} of {after}: {error}"));
            let open = database.get().unwrap();
            let keys: Vec<Vec<u8>> = open.tree(TREE).iter().map(|row| row.key().unwrap().to_vec()).collect();
            let expected: &[&[u8]] = if cut == after { &[b"a", b"b", b"c", b"dd"] } else { &[b"a", b"b"] };
            assert_eq!(keys, expected, "cut at {cut} of {after}");
            drop((open, database));
            fs::remove_dir_all(directory.path().join(&name)).unwrap();
        }
    }
}
