//! A batch: the fence, the positions and the writes in one step.

use std::sync::Arc;

use fjall::OwnedWriteBatch;

use super::index::{Key, KeyState, Table, Values};
use super::rows::{self, KeyRow, SumTotals, Value};
use super::{Inner, Limits, put_position};
use crate::mapping::{Elements, KeyWrite, Metric, OTHER, Totals, WriteBatch, Writes, increments as parts_of};
use crate::store::{Applied, Outcome, Quarantined, StoreResult};
use traqq_core::courtesy::Courtesy;
use traqq_core::hll::Hll;
use traqq_core::model::Span;
use traqq_disk::Open;

const OVERFLOW: &str = "increment or decrement would overflow";

/// What a key becomes once the batch is written.
struct Change<'b> {
    key: Arc<Key>,
    row: KeyRow,
    values: New<'b>,
}

enum New<'b> {
    Counts(Vec<(&'b str, i64)>),
    Sums(Vec<(&'b str, (i64, i64))>),
    Registers(Vec<(&'b str, Hll)>),
}

/// A batch on its way into the database.
struct Step<'s> {
    store: &'s Inner,
    open: &'s Arc<Open>,
    limits: Limits,
    next_number: u32,
    batch: OwnedWriteBatch,
    applied: Applied,
    now: i64,
}

/// The caller holds the right to write.
pub fn commit(store: &Inner, open: &Arc<Open>, plan: &str, batch: &WriteBatch) -> StoreResult<Outcome> {
    let known = store.known(open)?;
    let stored_plan = known.meta.as_ref().map(|meta| &*meta.plan).unwrap_or_default();
    if stored_plan != plan {
        return Ok(Outcome::PlanChanged(stored_plan.to_owned()));
    }
    let holds = |span: &Span| known.positions.get(&span.partition) == Some(&span.from);
    if !batch.spans.iter().all(holds) {
        let stored =
            batch.spans.iter().map(|span| (span.partition.clone(), known.positions.get(&span.partition).copied()));
        return Ok(Outcome::Fenced(stored.collect()));
    }
    let (limits, next_number) = (known.limits, known.next_number);
    // Questions look at it meanwhile.
    drop(known);
    let now = (store.clock)();
    let mut step = Step { store, open, limits, next_number, batch: open.batch(), applied: Applied::default(), now };
    for span in &batch.spans {
        put_position(open, &mut step.batch, &span.partition, span.to);
    }
    let mut changes = Vec::with_capacity(batch.writes.len());
    // Between two keys, never while readers wait for one.
    let mut courtesy = Courtesy::every(1);
    for write in &batch.writes {
        courtesy.pause();
        if write.expires_at.is_some_and(|expiry| expiry <= step.now) {
            step.applied.keys_expired += 1;
        } else {
            changes.push(step.apply(write)?);
        }
    }
    let Step { batch: rows, applied, next_number, .. } = step;
    store.database.commit(open, rows, false)?;
    for change in changes {
        courtesy.pause();
        change.settle(store);
    }
    let mut known = store.known(open)?;
    known.next_number = next_number;
    known.positions.extend(batch.spans.iter().map(|span| (span.partition.clone(), span.to)));
    let quarantined =
        applied.quarantined.iter().map(|quarantined| (quarantined.key.clone(), quarantined.error.clone()));
    known.quarantined.extend(quarantined);
    drop(known);
    store.index.evict();
    Ok(Outcome::Applied(applied))
}

impl<'b> Change<'b> {
    /// Shows the new values to readers: key by key, because readers would wait for a whole batch.
    /// The positions come last, so whoever has seen those sees all of it.
    fn settle(self, store: &Inner) {
        fn put<V>(table: &mut Table<V>, values: Vec<(&str, V)>) {
            for (label, value) in values {
                match table.get_mut(label) {
                    Some(known) => *known = value,
                    None => _ = table.insert(label.into(), value),
                }
            }
        }
        let mut state = self.key.lock();
        self.key.set_row(&mut state, self.row);
        state.version = store.index.next_version();
        match (&mut state.values, self.values) {
            (Some(Values::Counts(table)), New::Counts(values)) => put(table, values),
            (Some(Values::Sums(table)), New::Sums(values)) => put(table, values),
            (Some(Values::Registers(table)), New::Registers(values)) => put(table, values),
            (held, values) => {
                // Nothing was held: what this batch touched is a beginning.
                *held = Some(match values {
                    New::Counts(values) => Values::Counts(values.into_iter().map(owned).collect()),
                    New::Sums(values) => Values::Sums(values.into_iter().map(owned).collect()),
                    New::Registers(values) => Values::Registers(values.into_iter().map(owned).collect()),
                });
            }
        }
        store.index.weigh(&mut state);
    }
}

fn owned<V>((label, value): (&str, V)) -> (Box<str>, V) {
    (label.into(), value)
}

impl Step<'_> {
    fn apply<'b>(&mut self, write: &'b KeyWrite) -> StoreResult<Change<'b>> {
        let name = self.store.key_name(write.bucket, &write.metric);
        let found = self.store.index.get(&name);
        let key = match found {
            Some(key) if !key.lock().row.has_expired(self.now) => key,
            Some(_) => {
                self.store.remove_key(self.open, &name)?;
                self.create(&name, write)
            }
            None => self.create(&name, write),
        };
        let state = key.lock();
        let mut row = state.row;
        let is_sum = matches!(write.metric, Metric::Sum { .. });
        let values_before = row.values;
        let mut is_sound = true;
        let values = match &write.writes {
            Writes::Count(values) | Writes::Top(values) => {
                let limit = self.limits.values_per_key;
                let increments = values.iter().map(|(label, count)| (&**label, *count));
                New::Counts(self.fold(
                    &state,
                    &mut row,
                    limit,
                    increments,
                    table_of_counts,
                    |value: &mut i64, more| {
                        is_sound &= add(value, more);
                        true
                    },
                )?)
            }
            Writes::Sum(values, totals) => {
                let limit = self.limits.values_per_key;
                is_sound &= add_totals(&mut row.totals, totals);
                let increments = values.iter().map(|(label, sum, count)| (&**label, (*sum, *count)));
                New::Sums(self.fold(
                    &state,
                    &mut row,
                    limit,
                    increments,
                    table_of_sums,
                    |value: &mut (i64, i64), (sum, count)| {
                        parts_of(sum).for_each(|part| is_sound &= add(&mut value.0, part));
                        is_sound &= add(&mut value.1, count);
                        true
                    },
                )?)
            }
            Writes::Unique(elements) => {
                self.applied.elements_sent += elements.len() as u64;
                let registers = std::iter::once(("", elements));
                New::Registers(self.fold(&state, &mut row, usize::MAX, registers, table_of_registers, raise)?)
            }
            Writes::UniqueBy(values) => {
                let limit = self.limits.values_per_key_bitmap_by;
                self.applied.elements_sent += values.iter().map(|(_, elements)| elements.len() as u64).sum::<u64>();
                let registers = values.iter().map(|(label, elements)| (&**label, elements));
                New::Registers(self.fold(&state, &mut row, limit, registers, table_of_registers, raise)?)
            }
        };
        drop(state);
        if is_sum || row.values != values_before {
            self.batch.insert(self.open.tree(rows::TREE), rows::named(rows::KEYS, &name), row.encode());
        }
        if !is_sound {
            self.batch.insert(self.open.tree(rows::TREE), rows::named(rows::QUARANTINE, &name), OVERFLOW);
            self.applied.quarantined.push(Quarantined { key: name, error: OVERFLOW.to_owned() });
        }
        Ok(Change { key, row, values })
    }

    fn create(&mut self, name: &str, write: &KeyWrite) -> Arc<Key> {
        let number = self.next_number;
        self.next_number += 1;
        let row = KeyRow { number, expires_at: write.expires_at, values: 0, totals: SumTotals::default() };
        self.batch.insert(self.open.tree(rows::TREE), rows::NEXT, self.next_number.to_le_bytes());
        self.batch.insert(self.open.tree(rows::TREE), rows::named(rows::KEYS, name), row.encode());
        self.store.index.create(name, row, Values::empty(&write.metric))
    }

    /// Adds increments to the values of a key; those beyond its limit to [`OTHER`]. `add` says
    /// whether that changed anything. Returns the values that are new or changed.
    fn fold<'b, V: Value + Default, I>(
        &mut self,
        state: &KeyState,
        row: &mut KeyRow,
        limit: usize,
        increments: impl Iterator<Item = (&'b str, I)>,
        table: impl Fn(&Values) -> Option<&Table<V>>,
        mut add: impl FnMut(&mut V, I) -> bool,
    ) -> StoreResult<Vec<(&'b str, V)>> {
        let held = state.values.as_ref().and_then(table);
        let find = |label: &str| -> StoreResult<Option<V>> {
            match held.and_then(|table| table.get(label)) {
                Some(value) => Ok(Some(value.clone())),
                None if state.is_complete => Ok(None),
                None => self.store.value(self.open, row.number, label),
            }
        };
        let mut values: Vec<(&str, V)> = Vec::with_capacity(increments.size_hint().0);
        let mut other: Option<V> = None;
        let mut folded = 0;
        let mut count = row.values as usize;
        for (label, increment) in increments {
            let known = if label == OTHER { None } else { find(label)? };
            let is_other = label == OTHER || (known.is_none() && count >= limit);
            if is_other {
                folded += u64::from(label != OTHER);
                let other = match &mut other {
                    Some(other) => other,
                    None => other.insert(find(OTHER)?.unwrap_or_default()),
                };
                add(other, increment);
                continue;
            }
            let is_new = known.is_none();
            count += usize::from(is_new);
            let mut value = known.unwrap_or_default();
            if add(&mut value, increment) || is_new {
                values.push((label, value));
            }
        }
        values.extend(other.map(|other| (OTHER, other)));
        row.values = count as u32;
        self.applied.values_folded += folded;
        for (label, value) in &values {
            self.batch.insert(self.open.tree(rows::TREE), rows::value(row.number, label), value.encode());
        }
        Ok(values)
    }
}

fn table_of_counts(values: &Values) -> Option<&Table<i64>> {
    if let Values::Counts(table) = values { Some(table) } else { None }
}

fn table_of_sums(values: &Values) -> Option<&Table<(i64, i64)>> {
    if let Values::Sums(table) = values { Some(table) } else { None }
}

fn table_of_registers(values: &Values) -> Option<&Table<Hll>> {
    if let Values::Registers(table) = values { Some(table) } else { None }
}

fn raise(registers: &mut Hll, elements: &Elements) -> bool {
    elements.iter().filter(|element| registers.add(element)).count() > 0
}

/// `false` when it would overflow; the value stays as it was.
fn add(value: &mut i64, increment: i64) -> bool {
    let sum = value.checked_add(increment);
    *value = sum.unwrap_or(*value);
    sum.is_some()
}

fn add_totals(totals: &mut SumTotals, batch: &Totals) -> bool {
    let mut is_sound = add(&mut totals.count, batch.count);
    parts_of(batch.sum).for_each(|part| is_sound &= add(&mut totals.sum, part));
    let (min, max) = totals.bounds.unwrap_or((batch.min, batch.max));
    totals.bounds = Some((min.min(batch.min), max.max(batch.max)));
    is_sound
}
