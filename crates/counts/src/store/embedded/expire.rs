//! Removes keys: those whose time is over, which nobody sees any more by then, since reads and
//! commits look at the expiry themselves; and all of them.

use std::sync::Arc;
use std::time::Duration;

use super::{EmbeddedStore, Inner, put_meta, rows};
use crate::store::meta::DROPPED;
use crate::store::{Meta, StoreResult};
use traqq_disk::{Open, Upkeep};

const EVERY: Duration = Duration::from_secs(60);
/// Values removed in one step.
const STEP: usize = 10_000;

impl EmbeddedStore {
    /// Removes expired keys now and then.
    pub fn upkeep(&self) -> Upkeep {
        let inner = Arc::clone(&self.inner);
        Upkeep::start("expire", EVERY, move || inner.expire().map(|_| ()))
    }
}

impl Inner {
    /// Removes every key that has expired; returns how many.
    pub(super) fn expire(&self) -> StoreResult<usize> {
        let now = (self.clock)();
        let mut removed = 0;
        for (name, row) in self.index.rows() {
            if row.has_expired(now) {
                // Held, so that no commit brings the key back meanwhile.
                let _writing = self.writing();
                let (open, known) = self.current()?;
                drop(known);
                if self.index.get(&name).is_some_and(|key| key.lock().row == row) {
                    self.remove_key(&open, &name)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Says in meta that the store is being removed, if there is one.
    pub(super) fn begin_removal(&self) -> StoreResult<()> {
        let _writing = self.writing();
        let (open, known) = self.current()?;
        let Some(meta) = known.meta.clone() else { return Ok(()) };
        drop(known);
        let mut batch = open.batch();
        put_meta(&open, &mut batch, &Meta { plan: DROPPED.to_owned(), ..meta });
        self.write(&open, batch)?;
        self.forget();
        Ok(())
    }

    /// Removes every row, meta last; how many keys those were.
    pub(super) fn remove_all(&self) -> StoreResult<u64> {
        let _writing = self.writing();
        let open = self.database.get()?;
        let (mut batch, mut keys) = (open.batch(), 0);
        for row in open.tree(rows::TREE).iter() {
            let name = row.key().map_err(|error| self.failed(&open, error))?;
            if &*name == rows::META {
                continue;
            }
            keys += u64::from(name.starts_with(rows::KEYS));
            batch.remove(open.tree(rows::TREE), name);
            if batch.len() >= STEP {
                self.write(&open, std::mem::replace(&mut batch, open.batch()))?;
            }
        }
        self.write(&open, std::mem::replace(&mut batch, open.batch()))?;
        batch.remove(open.tree(rows::TREE), rows::META);
        self.write(&open, batch)?;
        // In memory nothing is believed any more.
        self.forget();
        Ok(keys)
    }

    /// Removes a key: its values first, so that what is cut off in the middle is found again.
    pub(super) fn remove_key(&self, open: &Arc<Open>, name: &str) -> StoreResult<()> {
        let Some(key) = self.index.get(name) else { return Ok(()) };
        let number = key.lock().row.number;
        let mut batch = open.batch();
        for row in open.tree(rows::TREE).prefix(rows::values(number)) {
            batch.remove(open.tree(rows::TREE), row.key().map_err(|error| self.failed(open, error))?);
            if batch.len() >= STEP {
                self.write(open, std::mem::replace(&mut batch, open.batch()))?;
            }
        }
        batch.remove(open.tree(rows::TREE), rows::named(rows::KEYS, name));
        batch.remove(open.tree(rows::TREE), rows::named(rows::QUARANTINE, name));
        self.write(open, batch)?;
        self.known(open)?.quarantined.remove(name);
        self.index.remove(name);
        Ok(())
    }
}
