//! Values added up over many buckets, without handing them out.
//!
//! What all reads but the last add up to is remembered until one of their keys changes: of a range
//! up to now, that is every bucket that is closed. A dashboard that asks the same again then reads
//! the bucket that is open.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Inner;
use super::index::{Key, Table, Values};
use crate::mapping::Metric;
use crate::store::{Read, StoreResult, SumBounds, Sums};
use traqq_core::courtesy::Turn;
use traqq_disk::Open;

/// Sums that are remembered,
const REMEMBERED_MAX: usize = 8;
/// of so many labels at most.
const LABELS_MAX: usize = 4096;

/// What was added up: the version of each key, 0 for one that is not there.
type Versions = Vec<(u64, Of)>;

/// The sums asked for lately, the last one first.
#[derive(Default)]
pub struct Remembered {
    sums: Mutex<VecDeque<(Versions, Arc<Added>)>>,
}

#[derive(Clone, Default)]
struct Added {
    sums: Sums,
    /// How many values went into them.
    values: usize,
}

/// Which number of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Its count, or its sum if it has one.
    Value,
    /// How many times something was added to its sum.
    Additions,
}

/// One read, understood.
struct Term {
    key: Option<Arc<Key>>,
    metric: Metric,
    of: Of,
}

impl Inner {
    /// `None` when the bounds do not allow it, or when these are no numbers.
    pub(super) async fn sums(
        &self,
        open: &Arc<Open>,
        reads: &[Read],
        bounds: &SumBounds<'_>,
    ) -> StoreResult<Option<Sums>> {
        let Some(terms) = reads.iter().map(|read| self.term(read)).collect::<Option<Vec<Term>>>() else {
            return Ok(None);
        };
        let Some((last, closed)) = terms.split_last() else { return Ok(Some(Sums::default())) };
        let now = (self.clock)();
        let versions =
            closed.iter().map(|term| (term.key.as_ref().map_or(0, |key| key.version(now)), term.of)).collect();
        let mut added = match self.remembered.get(&versions) {
            Some(added) if added.sums.keys().all(|label| (bounds.admits)(label.len())) => Added::clone(&added),
            Some(_) => return Ok(None),
            None => {
                let (mut added, mut versions) = (Added::default(), Versions::with_capacity(closed.len()));
                let turn = Turn::begin();
                for term in closed {
                    let Some(version) = self.add(open, &mut added, term, bounds)? else { return Ok(None) };
                    versions.push((version, term.of));
                    turn.pause().await;
                }
                self.remembered.put(versions, &added);
                added
            }
        };
        let is_told = added.values <= bounds.values_max && self.add(open, &mut added, last, bounds)?.is_some();
        self.index.evict();
        Ok(is_told.then_some(added.sums))
    }

    fn term(&self, read: &Read) -> Option<Term> {
        let (metric, of) = match read.clone() {
            Read::Counts { of, .. } => (Metric::Count { of }, Of::Value),
            Read::TopFirst { of, .. } => (Metric::Top { of }, Of::Value),
            Read::Sums { of, add_key, .. } => (Metric::Sum { of, add_key: add_key.as_str().into() }, Of::Value),
            Read::SumCounts { of, add_key, .. } => {
                (Metric::Sum { of, add_key: add_key.as_str().into() }, Of::Additions)
            }
            _ => return None,
        };
        Some(Term { key: self.index.get(&self.key_name(read.bucket(), &metric)), metric, of })
    }

    /// Adds a key's values, and returns its version; `None` when they are too many.
    fn add(
        &self,
        open: &Arc<Open>,
        added: &mut Added,
        term: &Term,
        bounds: &SumBounds<'_>,
    ) -> StoreResult<Option<u64>> {
        let Some(key) = &term.key else { return Ok(Some(0)) };
        let mut state = key.lock();
        if state.row.has_expired((self.clock)()) {
            return Ok(Some(0));
        }
        if !state.is_complete {
            self.complete(open, &mut state, &term.metric)?;
        }
        let is_told = match &state.values {
            Some(Values::Counts(table)) => added.add(table, bounds, |count| *count),
            Some(Values::Sums(table)) if term.of == Of::Value => added.add(table, bounds, |(sum, _)| *sum),
            Some(Values::Sums(table)) => added.add(table, bounds, |(_, additions)| *additions),
            _ => false,
        };
        Ok(is_told.then_some(state.version))
    }
}

impl Key {
    fn version(&self, now: i64) -> u64 {
        let state = self.lock();
        if state.row.has_expired(now) { 0 } else { state.version }
    }
}

impl Added {
    /// `false` when the bounds do not allow it.
    fn add<V>(&mut self, table: &Table<V>, bounds: &SumBounds<'_>, number: impl Fn(&V) -> i64) -> bool {
        self.values += table.len();
        if self.values > bounds.values_max {
            return false;
        }
        for (label, value) in table {
            let value = i128::from(number(value));
            match self.sums.get_mut(&**label) {
                Some(sum) => *sum += value,
                None if (bounds.admits)(label.len()) => _ = self.sums.insert(label.to_string(), value),
                None => return false,
            }
        }
        true
    }
}

impl Remembered {
    fn get(&self, versions: &Versions) -> Option<Arc<Added>> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let place = sums.iter().position(|(known, _)| known == versions)?;
        let found = sums.remove(place)?;
        let added = Arc::clone(&found.1);
        sums.push_front(found);
        Some(added)
    }

    fn put(&self, versions: Versions, added: &Added) {
        if added.sums.len() > LABELS_MAX || versions.is_empty() {
            return;
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.truncate(REMEMBERED_MAX - 1);
        sums.push_front((versions, Arc::new(added.clone())));
    }
}
