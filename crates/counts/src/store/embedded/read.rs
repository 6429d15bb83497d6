//! Queries: a key's values are brought into memory whole, and answered from there.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::Inner;
use super::index::{KeyState, Table, Values};
use super::rows::{self, Value};
use crate::mapping::Metric;
use crate::store::{Read, Reply, StoreResult};
use traqq_core::model::Bucket;
use traqq_disk::Open;

impl Inner {
    pub(super) fn read(&self, open: &Arc<Open>, read: &Read) -> StoreResult<Reply> {
        let bucket = read.bucket();
        match read {
            Read::Counts { of, .. } => {
                self.with(open, bucket, &Metric::Count { of: of.clone() }, Reply::none, |state| {
                    Reply::Values(counts(state).iter().map(|(label, count)| (label.to_string(), *count)).collect())
                })
            }
            Read::Sums { of, add_key, .. } => {
                let metric = Metric::Sum { of: of.clone(), add_key: add_key.as_str().into() };
                self.with(open, bucket, &metric, Reply::none, |state| {
                    Reply::Values(sums(state).iter().map(|(label, (sum, _))| (label.to_string(), *sum)).collect())
                })
            }
            Read::SumCounts { of, add_key, .. } => {
                let metric = Metric::Sum { of: of.clone(), add_key: add_key.as_str().into() };
                self.with(open, bucket, &metric, Reply::none, |state| {
                    Reply::Values(sums(state).iter().map(|(label, (_, count))| (label.to_string(), *count)).collect())
                })
            }
            Read::Only { read, labels } => self.only(open, read, labels),
            Read::SumTotals { of, add_key, .. } => {
                let metric = Metric::Sum { of: of.clone(), add_key: add_key.as_str().into() };
                Ok(self.totals(bucket, &metric))
            }
            Read::Unique { of, .. } => self.registers(open, bucket, &Metric::Unique { of: of.clone() }, ""),
            Read::UniqueBy { of, by, value, .. } => {
                self.registers(open, bucket, &Metric::UniqueBy { of: of.clone(), by: by.clone() }, value)
            }
            Read::UniqueByValues { of, by, .. } => {
                let metric = Metric::UniqueBy { of: of.clone(), by: by.clone() };
                self.with(
                    open,
                    bucket,
                    &metric,
                    || Reply::Labels(Vec::new()),
                    |state| {
                        let Some(Values::Registers(table)) = &state.values else { return Reply::Labels(Vec::new()) };
                        Reply::Labels(table.keys().map(ToString::to_string).collect())
                    },
                )
            }
            Read::TopFirst { of, limit, .. } => {
                self.with(open, bucket, &Metric::Top { of: of.clone() }, Reply::none, |state| {
                    Reply::Values(first(counts(state), i64::MIN, *limit))
                })
            }
            Read::TopAtLeast { of, count, limit, .. } => {
                self.with(open, bucket, &Metric::Top { of: of.clone() }, Reply::none, |state| {
                    Reply::Values(first(counts(state), *count, *limit))
                })
            }
            Read::TopScores { of, members, .. } => {
                self.with(open, bucket, &Metric::Top { of: of.clone() }, Reply::none, |state| {
                    let members: BTreeSet<&String> = members.iter().collect();
                    let score = |member: &&String| Some(((*member).clone(), *counts(state).get(member.as_str())?));
                    let mut scores: Vec<(String, i64)> = members.iter().filter_map(score).collect();
                    sort(&mut scores);
                    Reply::Values(scores)
                })
            }
        }
    }

    /// Labels of a counter or of sums.
    fn only(&self, open: &Arc<Open>, read: &Read, labels: &[String]) -> StoreResult<Reply> {
        let metric = match read {
            Read::Counts { of, .. } => Metric::Count { of: of.clone() },
            Read::Sums { of, add_key, .. } | Read::SumCounts { of, add_key, .. } => {
                Metric::Sum { of: of.clone(), add_key: add_key.as_str().into() }
            }
            other => unreachable!("{other:?} has no numbers by label"),
        };
        self.with(open, read.bucket(), &metric, Reply::none, |state| {
            let number = |label: &str| match read {
                Read::Counts { .. } => counts(state).get(label).copied(),
                Read::Sums { .. } => sums(state).get(label).map(|(sum, _)| *sum),
                _ => sums(state).get(label).map(|(_, additions)| *additions),
            };
            Reply::Values(labels.iter().filter_map(|label| Some((label.clone(), number(label)?))).collect())
        })
    }

    /// They stand beside the key and need none of its values.
    fn totals(&self, bucket: Bucket, metric: &Metric) -> Reply {
        let Some(key) = self.index.get(&self.key_name(bucket, metric)) else { return Reply::none() };
        let row = key.lock().row;
        match row.totals.bounds {
            Some((min, max)) if !row.has_expired((self.clock)()) => {
                let named = [("count", row.totals.count), ("max", max), ("min", min), ("sum", row.totals.sum)];
                Reply::Values(named.map(|(name, value)| (name.to_owned(), value)).into())
            }
            _ => Reply::none(),
        }
    }

    fn registers(&self, open: &Arc<Open>, bucket: Bucket, metric: &Metric, label: &str) -> StoreResult<Reply> {
        let none = || Reply::Registers(Box::default());
        self.with(open, bucket, metric, none, |state| {
            let Some(Values::Registers(table)) = &state.values else { return none() };
            table.get(label).map_or_else(none, |registers| Reply::Registers(Box::new(registers.clone())))
        })
    }

    /// Answers from a key with all its values in memory.
    fn with(
        &self,
        open: &Arc<Open>,
        bucket: Bucket,
        metric: &Metric,
        none: impl FnOnce() -> Reply,
        answer: impl FnOnce(&KeyState) -> Reply,
    ) -> StoreResult<Reply> {
        let Some(key) = self.index.get(&self.key_name(bucket, metric)) else { return Ok(none()) };
        let mut state = key.lock();
        if state.row.has_expired((self.clock)()) {
            return Ok(none());
        }
        if !state.is_complete {
            self.complete(open, &mut state, metric)?;
        }
        let reply = answer(&state);
        drop(state);
        self.index.evict();
        Ok(reply)
    }

    /// Reads the values that are missing. A commit waits for the key meanwhile, and then says what
    /// it changed.
    pub(super) fn complete(&self, open: &Arc<Open>, state: &mut KeyState, metric: &Metric) -> StoreResult<()> {
        let mut values = Values::empty(metric);
        match &mut values {
            Values::Counts(table) => self.load_values(open, state.row.number, table)?,
            Values::Sums(table) => self.load_values(open, state.row.number, table)?,
            Values::Registers(table) => self.load_values(open, state.row.number, table)?,
        }
        state.values = Some(values);
        state.is_complete = true;
        self.index.weigh(state);
        Ok(())
    }

    fn load_values<V: Value>(&self, open: &Arc<Open>, number: u32, table: &mut Table<V>) -> StoreResult<()> {
        for row in open.tree(rows::TREE).prefix(rows::values(number)) {
            let (name, value) = row.into_inner().map_err(|error| self.failed(open, error))?;
            let read = || Some((rows::label_of(&name)?, V::decode(&value)?));
            let (label, value) = read().ok_or_else(|| self.damaged("a value"))?;
            table.insert(label.into(), value);
        }
        Ok(())
    }
}

impl Reply {
    const fn none() -> Self {
        Self::Values(Vec::new())
    }
}

fn counts(state: &KeyState) -> &Table<i64> {
    match &state.values {
        Some(Values::Counts(table)) => table,
        _ => unreachable!("a counter's values are counts once they are complete"),
    }
}

fn sums(state: &KeyState) -> &Table<(i64, i64)> {
    match &state.values {
        Some(Values::Sums(table)) => table,
        _ => unreachable!("a sum's values are sums once they are complete"),
    }
}

/// The first `limit` members with at least this count, highest first.
fn first(table: &Table<i64>, at_least: i64, limit: usize) -> Vec<(String, i64)> {
    let mut members: Vec<(&str, i64)> =
        table.iter().filter(|(_, count)| **count >= at_least).map(|(member, count)| (&**member, *count)).collect();
    let order = |member: &(&str, i64)| Reverse((member.1, member.0.to_owned()));
    if limit < members.len() && limit > 0 {
        members.select_nth_unstable_by(limit - 1, |left, right| (right.1, right.0).cmp(&(left.1, left.0)));
    }
    members.truncate(limit);
    members.sort_unstable_by_key(order);
    members.into_iter().map(|(member, count)| (member.to_owned(), count)).collect()
}

fn sort(members: &mut [(String, i64)]) {
    members.sort_unstable_by(|left, right| (right.1, &right.0).cmp(&(left.1, &left.0)));
}
