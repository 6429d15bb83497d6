//! Removes keys whose time is over. Nobody sees them any more by then: reads and commits look at the expiry themselves.

use std::sync::Arc;
use std::time::Duration;

use super::{EmbeddedStore, Inner, rows};
use crate::database::{Open, Upkeep};
use crate::store::StoreResult;

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

    /// Removes a key: its values first, so that what is cut off in the middle is found again.
    pub(super) fn remove_key(&self, open: &Arc<Open>, name: &str) -> StoreResult<()> {
        let Some(key) = self.index.get(name) else { return Ok(()) };
        let number = key.lock().row.number;
        let mut batch = open.batch();
        for row in open.store.prefix(rows::values(number)) {
            batch.remove(&open.store, row.key().map_err(|error| self.failed(open, &error))?);
            if batch.len() >= STEP {
                self.write(open, std::mem::replace(&mut batch, open.batch()))?;
            }
        }
        batch.remove(&open.store, rows::named(rows::KEYS, name));
        batch.remove(&open.store, rows::named(rows::QUARANTINE, name));
        self.write(open, batch)?;
        self.known(open)?.quarantined.remove(name);
        self.index.remove(name);
        Ok(())
    }
}
