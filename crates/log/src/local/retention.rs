//! Removes blocks that are old, or too many, and read by all readers; idempotency keys after a day;
//! dead letters as old as the log gets, or too many.

use std::sync::Arc;
use std::time::Duration;

use super::LocalLog;
use super::block::Block;
use super::rows::{self, KeyRow};
use super::shared::Shared;
use traqq_core::model::Retention;
use traqq_disk::{DatabaseResult, Upkeep};

const EVERY: Duration = Duration::from_secs(30);
/// How long a repeated request is recognised.
pub(super) const IDEMPOTENCY_MS: i64 = 24 * 3600 * 1000;
/// Dead letters that are kept: this many,
const LETTERS_MAX: usize = 100_000;
/// or bytes.
const LETTERS_BYTES_MAX: u64 = 1 << 30;
/// Rows removed in one step.
const STEP: usize = 1000;

impl LocalLog {
    /// Removes what may go now and then; `clock` gives epoch milliseconds, by which that is judged.
    pub fn upkeep(&self, clock: fn() -> i64) -> Upkeep {
        let shared = Arc::clone(self.shared());
        Upkeep::start("retention", EVERY, move || remove_old(&shared, clock()))
    }
}

/// Removes what may go.
pub fn remove_old(shared: &Shared, now: i64) -> DatabaseResult<()> {
    for number in 0..shared.config.partitions {
        while remove_blocks(shared, number, oldest_ms(shared, now))? {}
    }
    while remove_keys(shared, now)? {}
    while remove_letters(shared, now)? {}
    Ok(())
}

/// Removes blocks that are too many, however young, as far as all readers have them behind them.
pub fn make_room(shared: &Shared) -> DatabaseResult<()> {
    for number in 0..shared.config.partitions {
        while remove_blocks(shared, number, i64::MIN)? {}
    }
    Ok(())
}

/// `true` when there may be more.
fn remove_blocks(shared: &Shared, number: i32, oldest_ms: i64) -> DatabaseResult<bool> {
    let (open, inner) = shared.current()?;
    let bytes = inner.bytes();
    drop(inner);
    let failed = |error| shared.database.failed(&open, error);
    // Never what a reader has not had: what it commits follows the position that its result is
    // stored with, also back.
    let (_, Some(counted)) = shared.slowest(&open, number)? else { return Ok(false) };
    let mut too_much = bytes.saturating_sub(shared.config.retention_bytes);
    let (mut batch, mut removed, mut freed, mut low) = (open.batch(), 0, 0, None);
    for row in open.tree(rows::TREE).prefix(rows::block_prefix(number)) {
        let (key, value) = row.into_inner().map_err(failed)?;
        let last = rows::block_last(&key).ok_or_else(|| shared.damaged())?;
        let (arrival_ms, _) = Block::head(&value).ok_or_else(|| shared.damaged())?;
        // The last record applied stays, so that the log can be recognised by it.
        if last >= counted - 1 || (arrival_ms >= oldest_ms && too_much == 0) || removed == STEP {
            break;
        }
        too_much = too_much.saturating_sub(value.len() as u64);
        freed += value.len() as u64;
        removed += 1;
        low = Some(last + 1);
        batch.remove(open.tree(rows::TREE), key);
    }
    let Some(low) = low else { return Ok(false) };
    // The position that the mark follows must be on disk before what it stands for goes.
    shared.database.sync()?;
    shared.database.commit(&open, batch, false)?;
    let (current, mut inner) = shared.current()?;
    if current.epoch == open.epoch {
        let partition = &mut inner.partitions[number as usize];
        partition.low = low;
        partition.bytes = partition.bytes.saturating_sub(freed);
    }
    tracing::debug!(partition = number, blocks = removed, low, "removed from the local log");
    Ok(removed == STEP)
}

fn oldest_ms(shared: &Shared, now: i64) -> i64 {
    match shared.config.retention {
        Retention::Seconds(seconds) => now - seconds * 1000,
        Retention::Forever => i64::MIN,
    }
}

fn remove_letters(shared: &Shared, now: i64) -> DatabaseResult<bool> {
    let open = shared.database.get()?;
    let failed = |error| shared.database.failed(&open, error);
    let oldest_ms = oldest_ms(shared, now);
    let (mut bytes, mut first_kept) = (0, 0);
    for (kept, row) in open.tree(rows::TREE).prefix(rows::LETTERS).rev().enumerate() {
        let (key, value) = row.into_inner().map_err(failed)?;
        bytes += value.len() as u64;
        if kept >= LETTERS_MAX || bytes > LETTERS_BYTES_MAX {
            first_kept = rows::block_last(&key).ok_or_else(|| shared.damaged())? + 1;
            break;
        }
    }
    let (mut batch, mut removed) = (open.batch(), 0);
    for row in open.tree(rows::TREE).prefix(rows::LETTERS).take(STEP) {
        let (key, value) = row.into_inner().map_err(failed)?;
        let number = rows::block_last(&key).ok_or_else(|| shared.damaged())?;
        let (arrival_ms, _) = Block::head(&value).ok_or_else(|| shared.damaged())?;
        if number >= first_kept && arrival_ms >= oldest_ms {
            break;
        }
        batch.remove(open.tree(rows::TREE), key);
        removed += 1;
    }
    if removed > 0 {
        shared.database.commit(&open, batch, false)?;
    }
    Ok(removed == STEP)
}

fn remove_keys(shared: &Shared, now: i64) -> DatabaseResult<bool> {
    let (open, inner) = shared.current()?;
    let counted_after_ms = inner.keys_after_ms;
    drop(inner);
    let failed = |error| shared.database.failed(&open, error);
    let (mut batch, mut removed, mut freed) = (open.batch(), 0, 0);
    for row in open.tree(rows::TREE).prefix(rows::EXPIRIES).take(STEP) {
        let row = row.key().map_err(failed)?;
        let (when_ms, key) = rows::parse_expiry(&row).ok_or_else(|| shared.damaged())?;
        if when_ms > now - IDEMPOTENCY_MS {
            break;
        }
        if when_ms > counted_after_ms {
            let value = open.tree(rows::TREE).get(rows::idempotency(key)).map_err(failed)?;
            freed += value.map_or(0, |value| KeyRow::bytes(key, value.len()));
        }
        batch.remove(open.tree(rows::TREE), rows::idempotency(key));
        batch.remove(open.tree(rows::TREE), row.clone());
        removed += 1;
    }
    if removed > 0 {
        shared.database.commit(&open, batch, false)?;
        let (current, mut inner) = shared.current()?;
        if current.epoch == open.epoch {
            inner.keys_bytes = inner.keys_bytes.saturating_sub(freed);
        }
    }
    Ok(removed == STEP)
}
