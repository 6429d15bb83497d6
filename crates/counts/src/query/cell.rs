//! One metric over one bucket, or merged over many; lanes are always merged.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use futures_util::future::{try_join, try_join3};

use super::answer::{Cell, CountRow, Data, Decimal, Reason, SumRow, UNIQUE_ERROR, UniqueRow, Value};
use super::memory::{MEMBER_BYTES, PART_BYTES, ROW_BYTES, StepMemory};
use super::{Order, QueryError, QueryResult, READS_AT_ONCE, Run, VALUES_AT_ONCE};
use crate::mapping::{Metric, OTHER, Pattern};
use crate::store::{Read, Reply, SumBounds, Sums};
use traqq_core::hll::Hll;
use traqq_core::model::{Bucket, BucketSpan};

/// What a label takes for each list that it is in, and for being asked about there.
const LIST_BYTES: usize = 56;

#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub metric: &'a Metric,
    /// One value only, as its stored label.
    pub value: Option<&'a str>,
    pub order: Order,
    pub limit: usize,
}

/// What was found, and what was wrong with it.
pub(super) struct Found {
    pub data: Data,
    pub capped: bool,
    pub unreadable: BTreeSet<i64>,
}

impl Run<'_> {
    /// The metric over the spans, which are one bucket or the buckets of a range in order.
    pub async fn cell(&self, ask: Ask<'_>, spans: &[BucketSpan]) -> QueryResult<Cell> {
        let known = &self.question.known;
        let mut missing: BTreeMap<Reason, usize> = BTreeMap::new();
        let mut live = Vec::with_capacity(spans.len());
        let since = known.since(ask.metric, self.question.kind);
        for span in spans {
            match known.missing(since, span, self.question.now) {
                Some(reason) => *missing.entry(reason).or_default() += 1,
                None => live.push(*span),
            }
        }
        if live.is_empty() {
            let (reason, _) = missing.first_key_value().expect("there is a span");
            return Ok(Cell::missing(*reason));
        }
        let buckets: Vec<Bucket> = live.iter().map(|span| span.bucket).collect();
        let (found, incomplete) = try_join(self.find_data(ask, &buckets), self.incomplete()).await?;
        if !found.unreadable.is_empty() {
            missing.insert(Reason::Unreadable, found.unreadable.len());
            if found.unreadable.len() == live.len() {
                return Ok(Cell::missing(Reason::Unreadable));
            }
        }
        let is_touched = |bucket: &Bucket| incomplete.touches(*bucket, ask.metric, ask.value);
        self.spend_rows(found.data.rows())?;
        Ok(Cell {
            data: Some(found.data),
            reason: None,
            missing,
            capped: found.capped,
            incomplete: !found.unreadable.is_empty() || buckets.iter().any(is_touched),
            partial: since.is_some_and(|since| live[0].bucket.start < since && since < live[0].end),
        })
    }

    async fn find_data(&self, ask: Ask<'_>, buckets: &[Bucket]) -> QueryResult<Found> {
        match ask.metric {
            Metric::Unique { of } => self.unique(of, buckets).await,
            Metric::UniqueBy { of, by } => self.unique_by(ask, of, by, buckets).await,
            Metric::Count { of } => self.count(ask, of, buckets).await,
            Metric::Sum { of, add_key } => self.sum(ask, of, add_key, buckets).await,
            Metric::Top { of } => match ask.value {
                Some(value) => self.score(of, value, buckets).await,
                None => {
                    let ranked = self.top(of, buckets, ask.limit).await?;
                    ranked.held.keep(rows_bytes(&ranked.members, of))?;
                    let row = |(label, count)| count_row(label, of, count);
                    let values = ranked.members.into_iter().map(row).collect();
                    let data = Data::Top { exact: ranked.exact, values };
                    Ok(Found { data, capped: ranked.capped, unreadable: ranked.unreadable })
                }
            },
        }
    }

    /// Asks every lane for every bucket, a few at a time; each reply goes to `take`, the unreadable
    /// ones' buckets are returned.
    pub async fn each(
        &self,
        buckets: &[Bucket],
        read: impl Fn(Bucket) -> Read + Send + Sync,
        mut take: impl FnMut(Reply) -> QueryResult<()> + Send,
    ) -> QueryResult<BTreeSet<i64>> {
        let lanes = self.store.lanes();
        self.spend_keys(buckets.len() * lanes)?;
        let mut unreadable = BTreeSet::new();
        let is_wide = buckets.first().is_some_and(|bucket| read(*bucket).is_wide());
        let (mut at_once, mut left) = (if is_wide { 1 } else { READS_AT_ONCE }, buckets);
        while !left.is_empty() {
            let (chunk, rest) = left.split_at((at_once / lanes).clamp(1, left.len()));
            left = rest;
            let (mut largest, mut largest_bytes) = (1, 1);
            let asked: Vec<(usize, Bucket)> =
                chunk.iter().flat_map(|bucket| (0..lanes).map(|lane| (lane, *bucket))).collect();
            let reads = asked.iter().map(|(lane, bucket)| (*lane, read(*bucket))).collect();
            let (replies, mut held) = self.read(reads).await?;
            for ((_, bucket), reply) in asked.iter().zip(replies) {
                let bytes = reply.bytes();
                (largest, largest_bytes) = (largest.max(reply.values()), largest_bytes.max(bytes));
                // Its labels become those of whoever takes it.
                held.give_back(bytes);
                match reply {
                    Reply::Unreadable(_) => _ = unreadable.insert(bucket.start),
                    reply => take(reply)?,
                }
            }
            at_once = READS_AT_ONCE.min(VALUES_AT_ONCE / largest).min(self.replies_bytes_max() / largest_bytes);
        }
        Ok(unreadable)
    }

    /// Adds up values by label; of one value and of what is counted together only, if one is asked
    /// for.
    async fn add_up(
        &self,
        value: Option<&str>,
        buckets: &[Bucket],
        read: impl Fn(Bucket) -> Read + Send + Sync,
    ) -> QueryResult<Added<'_>> {
        // The same label twice would count twice.
        let labels: Option<Vec<String>> =
            value.map(|value| BTreeSet::from([value, OTHER]).into_iter().map(str::to_owned).collect());
        let read = |bucket| match &labels {
            Some(labels) => Read::Only { read: Box::new(read(bucket)), labels: labels.clone() },
            None => read(bucket),
        };
        if let Some((sums, held)) = self.sums_at_once(buckets, &read, self.limits.members_max).await? {
            self.check_members(sums.len())?;
            return Ok(Added { sums, held, unreadable: BTreeSet::new() });
        }
        let (mut sums, mut held) = (Sums::default(), self.memory.step());
        let unreadable = self
            .each(buckets, read, |reply| {
                let Reply::Values(values) = reply else { return Err(unexpected()) };
                for (label, value) in values {
                    let length = label.len();
                    match sums.entry(label) {
                        Entry::Occupied(mut sum) => *sum.get_mut() += i128::from(value),
                        Entry::Vacant(place) => {
                            held.take_for_label(length + MEMBER_BYTES)?;
                            place.insert(i128::from(value));
                        }
                    }
                }
                self.check_members(sums.len())
            })
            .await?;
        Ok(Added { sums, held, unreadable })
    }

    /// What the stores have added up themselves, if they do that, and what it holds.
    pub async fn sums_at_once(
        &self,
        buckets: &[Bucket],
        read: &(impl Fn(Bucket) -> Read + Send + Sync),
        values_max: usize,
    ) -> QueryResult<Option<(Sums, StepMemory<'_>)>> {
        let reads: Vec<Read> = buckets.iter().map(|bucket| read(*bucket)).collect();
        let taken = Mutex::new((self.memory.step(), None));
        let admits = |length: usize| {
            let (held, refusal) = &mut *taken.lock().unwrap_or_else(PoisonError::into_inner);
            held.take_for_label(length + MEMBER_BYTES).map_err(|error| *refusal = Some(error)).is_ok()
        };
        let bounds = SumBounds { values_max, admits: &admits };
        let mut all: Option<Sums> = None;
        for lane in 0..self.store.lanes() {
            let Some(sums) = self.store.sums(lane, &reads, &bounds).await? else {
                all = None;
                break;
            };
            match &mut all {
                None => all = Some(sums),
                Some(all) => sums.into_iter().for_each(|(label, value)| *all.entry(label).or_default() += value),
            }
        }
        let (held, refusal) = taken.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let Some(sums) = all else { return Ok(None) };
        self.spend_keys(reads.len() * self.store.lanes())?;
        Ok(Some((sums, held)))
    }

    pub fn check_members(&self, members: usize) -> QueryResult<()> {
        if members <= self.limits.members_max {
            return Ok(());
        }
        Err(QueryError::TooLarge(format!(
            "merging would hold more than {} values; shorten the range, or ask without merge",
            self.limits.members_max
        )))
    }

    async fn unique(&self, of: &Pattern, buckets: &[Bucket]) -> QueryResult<Found> {
        let (union, unreadable) = self.union(buckets, |bucket| Read::Unique { bucket, of: of.clone() }).await?;
        let data = Data::Unique { unique: union.count(), error: UNIQUE_ERROR };
        Ok(Found { data, capped: false, unreadable })
    }

    async fn union(
        &self,
        buckets: &[Bucket],
        read: impl Fn(Bucket) -> Read + Send + Sync,
    ) -> QueryResult<(Hll, BTreeSet<i64>)> {
        let mut union = Hll::new();
        let unreadable = self
            .each(buckets, read, |reply| {
                let Reply::Registers(registers) = reply else { return Err(unexpected()) };
                union.merge(&registers);
                Ok(())
            })
            .await?;
        Ok((union, unreadable))
    }

    /// The lists in which each label of a `bitmap_by` has registers.
    async fn labels(&self, of: &Pattern, by: &Pattern, buckets: &[Bucket]) -> QueryResult<Labels<'_>> {
        let lists: Vec<(usize, Bucket)> =
            buckets.iter().flat_map(|bucket| (0..self.store.lanes()).map(|lane| (lane, *bucket))).collect();
        self.spend_keys(lists.len())?;
        let (mut labels, mut unreadable) = (BTreeMap::<String, Vec<(usize, Bucket)>>::new(), BTreeSet::new());
        let mut held = self.memory.step();
        for chunk in lists.chunks(READS_AT_ONCE) {
            let read = |bucket| Read::UniqueByValues { bucket, of: of.clone(), by: by.clone() };
            let reads = chunk.iter().map(|(lane, bucket)| (*lane, read(*bucket))).collect();
            let (replies, mut of_replies) = self.read(reads).await?;
            for (list, reply) in chunk.iter().zip(replies) {
                of_replies.give_back(reply.bytes());
                let Reply::Labels(found) = reply else {
                    unreadable.insert(list.1.start);
                    continue;
                };
                for label in found {
                    held.take_for_label(
                        LIST_BYTES + if labels.contains_key(&label) { 0 } else { label.len() + MEMBER_BYTES },
                    )?;
                    labels.entry(label).or_default().push(*list);
                }
            }
            self.check_members(labels.len())?;
        }
        Ok(Labels { labels, held, unreadable })
    }

    async fn unique_by(&self, ask: Ask<'_>, of: &Pattern, by: &Pattern, buckets: &[Bucket]) -> QueryResult<Found> {
        let Labels { labels, mut held, mut unreadable } = self.labels(of, by, buckets).await?;
        let capped = labels.contains_key(OTHER);
        let wanted: Vec<(&String, &(usize, Bucket))> = labels
            .iter()
            .filter(|(label, _)| ask.value.is_none_or(|value| value == *label))
            .flat_map(|(label, lists)| lists.iter().map(move |list| (label, list)))
            .collect();
        self.spend_keys(wanted.len())?;
        let mut counts: Vec<(String, i128)> = Vec::new();
        // Labels come in order, so that one union at a time is held.
        let mut union: Option<(&String, Hll)> = None;
        let finish = |union: Option<(&String, Hll)>, counts: &mut Vec<(String, i128)>| {
            counts.extend(union.map(|(label, union)| (label.clone(), union.count().into())));
        };
        for chunk in wanted.chunks(READS_AT_ONCE) {
            let read = |label: &String, bucket| Read::UniqueBy {
                bucket,
                of: of.clone(),
                by: by.clone(),
                value: label.clone(),
            };
            let reads = chunk.iter().map(|(label, (lane, bucket))| (*lane, read(label, *bucket))).collect();
            let (replies, _of_replies) = self.read(reads).await?;
            for ((label, (_, bucket)), reply) in chunk.iter().zip(replies) {
                if union.as_ref().is_none_or(|(current, _)| current != label) {
                    finish(union.take(), &mut counts);
                    held.take_for_label(label.len() + ROW_BYTES)?;
                    union = Some((*label, Hll::new()));
                }
                match (reply, &mut union) {
                    (Reply::Registers(registers), Some((_, union))) => union.merge(&registers),
                    _ => _ = unreadable.insert(bucket.start),
                }
            }
        }
        finish(union, &mut counts);
        if ask.value.is_some() {
            let unique = counts.first().map_or(0, |(_, unique)| *unique as u64);
            return Ok(Found { data: Data::Unique { unique, error: UNIQUE_ERROR }, capped, unreadable });
        }
        let values_seen = counts.len();
        let row = |(label, unique): (String, i128)| UniqueRow {
            other: label == OTHER,
            value: Value::of_label(label, by),
            unique: unique as u64,
        };
        let counts = ranked(counts, ask);
        held.keep(rows_bytes(&counts, by))?;
        let values = counts.into_iter().map(row).collect();
        Ok(Found { data: Data::UniqueBy { values_seen, error: UNIQUE_ERROR, values }, capped, unreadable })
    }

    async fn count(&self, ask: Ask<'_>, of: &Pattern, buckets: &[Bucket]) -> QueryResult<Found> {
        let read = |bucket| Read::Counts { bucket, of: of.clone() };
        let Added { sums: counts, held, unreadable } = self.add_up(ask.value, buckets, read).await?;
        let capped = counts.contains_key(OTHER);
        if let Some(value) = ask.value {
            let count = counts.get(value).copied().unwrap_or(0);
            return Ok(Found { data: Data::CountOne { count }, capped, unreadable });
        }
        let (count, values_seen) = (counts.values().sum(), counts.len());
        let values = ranked(counts.into_iter().collect(), ask);
        held.keep(rows_bytes(&values, of))?;
        let values = values.into_iter().map(|(label, count)| count_row(label, of, count)).collect();
        Ok(Found { data: Data::Count { count, values_seen, values }, capped, unreadable })
    }

    async fn sum(&self, ask: Ask<'_>, of: &Pattern, add_key: &str, buckets: &[Bucket]) -> QueryResult<Found> {
        let names = || (of.clone(), add_key.to_owned());
        let read_sums = |bucket| {
            let (of, add_key) = names();
            Read::Sums { bucket, of, add_key }
        };
        let read_counts = |bucket| {
            let (of, add_key) = names();
            Read::SumCounts { bucket, of, add_key }
        };
        let read_totals = |bucket| {
            let (of, add_key) = names();
            Read::SumTotals { bucket, of, add_key }
        };
        let mut totals = Totals::default();
        let take = |reply| {
            let Reply::Values(values) = reply else { return Err(unexpected()) };
            totals.add(&values);
            Ok(())
        };
        let asked = try_join3(
            self.add_up(ask.value, buckets, read_sums),
            self.add_up(ask.value, buckets, read_counts),
            // One value has no minimum and maximum of its own.
            self.each(if ask.value.is_none() { buckets } else { &[] }, read_totals, take),
        );
        let (Added { sums, mut held, mut unreadable }, added, of_totals) = asked.await?;
        let counts = added.sums;
        held.absorb(added.held);
        unreadable.extend(added.unreadable);
        unreadable.extend(of_totals);
        let capped = sums.contains_key(OTHER);
        let count_of = |label: &str| counts.get(label).copied().unwrap_or(0);
        if let Some(value) = ask.value {
            let sum = Decimal(sums.get(value).copied().unwrap_or(0));
            return Ok(Found { data: Data::SumOne { sum, count: count_of(value) }, capped, unreadable });
        }
        let values_seen = sums.len();
        let row = |(label, sum): (String, i128)| SumRow {
            other: label == OTHER,
            sum: Decimal(sum),
            count: count_of(&label),
            value: Value::of_label(label, of),
        };
        let values = ranked(sums.into_iter().collect(), ask);
        held.keep(rows_bytes(&values, of))?;
        let values = values.into_iter().map(row).collect();
        let Totals { sum, count, min, max } = totals;
        let bound = |bound: Option<i64>| bound.map(|bound| Decimal(bound.into()));
        let data = Data::Sum { sum: Decimal(sum), count, min: bound(min), max: bound(max), values_seen, values };
        Ok(Found { data, capped, unreadable })
    }

    /// The count of one member of a leaderboard.
    async fn score(&self, of: &Pattern, value: &str, buckets: &[Bucket]) -> QueryResult<Found> {
        let members: Vec<String> = BTreeSet::from([value, OTHER]).into_iter().map(str::to_owned).collect();
        let read = |bucket| Read::TopScores { bucket, of: of.clone(), members: members.clone() };
        let Added { sums: counts, unreadable, .. } = self.add_up(None, buckets, read).await?;
        let data = Data::CountOne { count: counts.get(value).copied().unwrap_or(0) };
        Ok(Found { data, capped: counts.contains_key(OTHER), unreadable })
    }
}

/// Values added up by label.
struct Added<'r> {
    sums: Sums,
    held: StepMemory<'r>,
    unreadable: BTreeSet<i64>,
}

/// The lists in which each label has registers.
struct Labels<'r> {
    labels: BTreeMap<String, Vec<(usize, Bucket)>>,
    held: StepMemory<'r>,
    unreadable: BTreeSet<i64>,
}

#[derive(Default)]
struct Totals {
    sum: i128,
    count: i128,
    min: Option<i64>,
    max: Option<i64>,
}

impl Totals {
    fn add(&mut self, values: &[(String, i64)]) {
        for (name, value) in values {
            match &**name {
                "sum" => self.sum += i128::from(*value),
                "count" => self.count += i128::from(*value),
                "min" => self.min = Some(self.min.map_or(*value, |min| min.min(*value))),
                "max" => self.max = Some(self.max.map_or(*value, |max| max.max(*value))),
                _ => {}
            }
        }
    }
}

impl Data {
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::UniqueBy { values, .. } => values.len(),
            Self::Count { values, .. } | Self::Top { values, .. } => values.len(),
            Self::Sum { values, .. } => values.len(),
            Self::Unique { .. } | Self::CountOne { .. } | Self::SumOne { .. } => 1,
        }
    }
}

fn count_row(label: String, of: &Pattern, count: i128) -> CountRow {
    CountRow { other: label == OTHER, value: Value::of_label(label, of), count }
}

/// What rows of these labels hold.
fn rows_bytes(values: &[(String, i128)], of: &Pattern) -> usize {
    let parts = if of.is_single() { 0 } else { of.as_str().split('~').count() * PART_BYTES };
    values.iter().map(|(label, _)| label.len() + ROW_BYTES + parts).sum()
}

/// The first `limit` in order.
fn ranked(mut values: Vec<(String, i128)>, ask: Ask<'_>) -> Vec<(String, i128)> {
    match ask.order {
        Order::Desc => {
            values.sort_unstable_by(|left, right| (Reverse(left.1), &left.0).cmp(&(Reverse(right.1), &right.0)));
        }
        Order::Asc => values.sort_unstable_by(|left, right| (left.1, &left.0).cmp(&(right.1, &right.0))),
        Order::Name => values.sort_unstable(),
    }
    values.truncate(ask.limit);
    values
}

pub(super) fn unexpected() -> QueryError {
    QueryError::Unavailable("the store answered with something else than was asked for".into())
}
