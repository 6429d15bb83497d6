//! What is in memory: every key with its row, and the values of those that were used lately.
//!
//! A key's values are all there (*complete*), or some of them are. A key that is born here is
//! complete from birth; another becomes so when it is read. Only the committer changes values,
//! after its batch is written, so what a reader finds is always what some prefix of the batches
//! left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use super::rows::{KeyRow, Value};
use crate::mapping::Metric;
use traqq_core::hll::Hll;

/// What a value costs besides the bytes of its label: its place in a table that is three quarters
/// full, and the label's own allocation.
const ENTRY_BYTES: usize = 80;
/// After an eviction this share of the memory is free.
const SPARE: usize = 4;

pub type Table<V> = HashMap<Box<str>, V, hashbrown::DefaultHashBuilder>;

/// Values by label.
#[derive(Clone, Debug)]
pub enum Values {
    Counts(Table<i64>),
    Sums(Table<(i64, i64)>),
    /// Of a unique count, under the empty label; of unique counts by value, under each.
    Registers(Table<Hll>),
}

impl Values {
    pub fn empty(metric: &Metric) -> Self {
        match metric {
            Metric::Count { .. } | Metric::Top { .. } => Self::Counts(Table::default()),
            Metric::Sum { .. } => Self::Sums(Table::default()),
            Metric::Unique { .. } | Metric::UniqueBy { .. } => Self::Registers(Table::default()),
        }
    }

    fn bytes(&self) -> usize {
        fn of<V: Value>(table: &Table<V>) -> usize {
            table.iter().map(|(label, value)| label.len() + value.heap_bytes() + ENTRY_BYTES).sum()
        }
        match self {
            Self::Counts(table) => of(table),
            Self::Sums(table) => of(table),
            Self::Registers(table) => of(table),
        }
    }
}

pub struct KeyState {
    pub row: KeyRow,
    /// `None` when nothing is held.
    pub values: Option<Values>,
    pub is_complete: bool,
    /// Changes with the values, and is no other key's.
    pub version: u64,
    bytes: usize,
    /// No longer in the index, though somebody may still hold it.
    is_gone: bool,
}

pub struct Key {
    state: Mutex<KeyState>,
    used_at: AtomicU64,
    /// What its row says, for those who must not wait for the state.
    values: AtomicU32,
}

impl Key {
    pub fn lock(&self) -> MutexGuard<'_, KeyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of its values are in memory; of one that is being written it is taken to be so.
    pub fn is_at_hand(&self) -> bool {
        match self.state.try_lock() {
            Ok(state) => state.is_complete,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().is_complete,
            Err(TryLockError::WouldBlock) => true,
        }
    }

    /// How many values it has.
    pub fn values(&self) -> u32 {
        self.values.load(Ordering::Relaxed)
    }

    /// It has another row.
    pub fn set_row(&self, state: &mut KeyState, row: KeyRow) {
        self.values.store(row.values, Ordering::Relaxed);
        state.row = row;
    }
}

type Keys = HashMap<Box<str>, Arc<Key>, hashbrown::DefaultHashBuilder>;

pub struct Index {
    keys: RwLock<Keys>,
    bytes: AtomicUsize,
    bytes_max: usize,
    turn: AtomicU64,
    versions: AtomicU64,
}

impl Index {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            keys: RwLock::default(),
            bytes: AtomicUsize::new(0),
            bytes_max,
            turn: AtomicU64::new(0),
            versions: AtomicU64::new(0),
        }
    }

    pub fn get(&self, name: &str) -> Option<Arc<Key>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(name)?;
        key.used_at.store(self.turn.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(Arc::clone(key))
    }

    /// Never 0.
    pub fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let keys = std::mem::take(&mut *self.keys.write().unwrap_or_else(PoisonError::into_inner));
        keys.values().for_each(|key| self.let_go(key));
    }

    /// A key as it is on disk.
    pub fn load(&self, name: &str, row: KeyRow) {
        self.put(name, row, None, false);
    }

    /// A key that did not exist.
    pub fn create(&self, name: &str, row: KeyRow, values: Values) -> Arc<Key> {
        self.put(name, row, Some(values), true)
    }

    fn put(&self, name: &str, row: KeyRow, values: Option<Values>, is_complete: bool) -> Arc<Key> {
        let version = self.next_version();
        let of_row = AtomicU32::new(row.values);
        let state = Mutex::new(KeyState { row, values, is_complete, version, bytes: 0, is_gone: false });
        let used_at = AtomicU64::new(self.turn.fetch_add(1, Ordering::Relaxed));
        let key = Arc::new(Key { state, used_at, values: of_row });
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(name.into(), Arc::clone(&key));
        key
    }

    pub fn remove(&self, name: &str) {
        let removed = self.keys.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(key) = removed {
            self.let_go(&key);
        }
    }

    /// Whoever still holds the key may go on, uncounted.
    fn let_go(&self, key: &Key) {
        let mut state = key.lock();
        state.is_gone = true;
        self.bytes.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
    }

    /// Counts what a key holds now, after its values changed.
    pub fn weigh(&self, state: &mut KeyState) {
        if state.is_gone {
            return;
        }
        let bytes = state.values.as_ref().map_or(0, Values::bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_sub(state.bytes, Ordering::Relaxed);
        state.bytes = bytes;
    }

    /// Lets go of the values that were not used for the longest time, if there are too many.
    pub fn evict(&self) {
        if self.bytes.load(Ordering::Relaxed) <= self.bytes_max {
            return;
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut by_age: Vec<&Arc<Key>> = keys.values().collect();
        by_age.sort_unstable_by_key(|key| key.used_at.load(Ordering::Relaxed));
        for key in by_age {
            if self.bytes.load(Ordering::Relaxed) <= self.bytes_max - self.bytes_max / SPARE {
                break;
            }
            let mut state = key.lock();
            state.values = None;
            state.is_complete = false;
            self.bytes.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
        }
    }

    /// Every key with its row.
    pub fn rows(&self) -> Vec<(Box<str>, KeyRow)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|(name, key)| (name.clone(), key.lock().row)).collect()
    }
}
