//! Folds records into a merged [`WriteBatch`].
//!
//! For each event: its fields are extracted, each label is numbered once, each combination of
//! numbers is numbered once, and from then on everything is counted under pairs of small integers.
//! Strings come back only when the batch is written out.

use std::borrow::Cow;
use std::sync::Arc;

use super::plan::{NodeId, Plan, SourceId};
use super::tables::{Keyed, Symbols, UniqueCell, pair};
use crate::mapping::{KeyWrite, Metric, Totals, WriteBatch, Writes};
use traqq_core::courtesy::Courtesy;
use traqq_core::decode::{self, BELIEVABLE_MS_MIN, DeadLetter, Decoded, Micros, Raw, Reason, Shape};
use traqq_core::hll::{Observation, observe};
use traqq_core::model::{BucketSpan, Checkpoint, Part, Record, Span, TopicPartition};

pub(super) const DAY_MS: i64 = 86_400_000;
/// Unmerged, a summed value is one to the sum, one to the count and one to the totals.
const OPERATIONS_OF_SUM: u64 = 3;
/// PFADD of many elements in one call, measured against HINCRBY.
const ELEMENTS_PER_OPERATION: u64 = 8;
/// Labels of one batch; beyond it the batch is cut.
const LABEL_BYTES_MAX: usize = 64 << 20;
/// Elements, dead letters and long labels of one batch; beyond it the batch is cut.
const HELD_BYTES_MAX: usize = 16 << 20;
/// What a field operation takes in memory, about: its label, the counters, and its share of what is
/// sent.
const BYTES_PER_OPERATION: usize = 96;
/// So much of it is for the label.
const BYTES_PER_LABEL: usize = 32;

/// What happened in a batch, for the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FoldStats {
    pub records: u64,
    pub bytes: u64,
    pub events: u64,
    pub tombstones: u64,
    /// Operations before merging.
    pub operations: u64,
    /// Field operations after merging.
    pub operations_merged: u64,
    /// Values that were no number, or had no label.
    pub values_skipped: u64,
    /// Labels that were cut.
    pub values_cut: u64,
    /// Summed values finer than 10^-6.
    pub values_rounded: u64,
    /// Buckets not written because their retention had passed.
    pub buckets_expired: u64,
    /// Elements of unique counts before and after merging.
    pub elements: u64,
    pub elements_merged: u64,
}

#[derive(Default)]
pub struct Folded {
    pub batch: WriteBatch,
    pub dead_letters: Vec<DeadLetter>,
    pub stats: FoldStats,
    /// Bytes of elements, dead letters and what labels are longer than is usual.
    held_bytes: usize,
}

impl Folded {
    /// What it takes in memory until it is committed, about.
    pub fn bytes(&self) -> usize {
        self.held_bytes + self.stats.operations_merged as usize * BYTES_PER_OPERATION
    }
}

/// Events between two offers of the processor: some 100 µs.
const FOLD_STEP: u32 = 100;

#[derive(Clone, Copy)]
enum Amount {
    Absent,
    Unusable,
    Value(Micros),
}

#[derive(Default)]
struct SumTable {
    values: Keyed<(i128, i64)>,
    /// By bucket.
    totals: Keyed<Totals>,
}

/// The memory of one fold thread.
pub struct Folder {
    plan: Arc<Plan>,
    operations_max: usize,
    /// By field.
    symbols: Vec<Symbols>,
    /// By node: the pairs of the parent's id and the field's.
    combinations: Vec<Keyed<()>>,
    uniques: Vec<Keyed<UniqueCell>>,
    unique_bys: Vec<Keyed<UniqueCell>>,
    counts: Vec<Keyed<i64>>,
    sums: Vec<SumTable>,
    buckets: Vec<BucketSpan>,
    out: Folded,
    shape: Shape,
    // Scratch of one event, kept for its memory.
    field_ids: Vec<u32>,
    node_ids: Vec<u32>,
    observations: Vec<Option<Observation>>,
    amounts: Vec<Amount>,
    live_buckets: Vec<u32>,
    /// The bucket of each kind that the last event fell into.
    last_buckets: Vec<Option<(BucketSpan, u32)>>,
    courtesy: Courtesy,
}

impl Folder {
    /// `operations_max`: field operations after which a batch is cut.
    pub fn new(plan: Arc<Plan>, operations_max: usize) -> Self {
        fn defaults<T: Default>(len: usize) -> Vec<T> {
            std::iter::repeat_with(T::default).take(len).collect()
        }
        let fields = plan.reader.names().len();
        Self {
            operations_max,
            symbols: defaults(fields),
            combinations: defaults(plan.nodes.len()),
            uniques: defaults(plan.uniques.len()),
            unique_bys: defaults(plan.unique_bys.len()),
            counts: defaults(plan.counts.len()),
            sums: defaults(plan.sums.len()),
            buckets: Vec::new(),
            out: Folded::default(),
            shape: Shape::default(),
            field_ids: vec![0; fields],
            node_ids: vec![0; plan.nodes.len()],
            observations: vec![None; plan.sources.len()],
            amounts: vec![Amount::Absent; plan.amounts.len()],
            live_buckets: Vec::new(),
            last_buckets: vec![None; plan.rules.kinds.len()],
            courtesy: Courtesy::every(FOLD_STEP),
            plan,
        }
    }

    /// Folds the parts in order into one batch, or several when it grows too large. Batches follow
    /// one another: where one ends the next begins. Each part is let go of as soon as it is folded.
    pub fn fold<P: AsRef<Part>>(&mut self, parts: impl IntoIterator<Item = P>) -> Vec<Folded> {
        let plan = Arc::clone(&self.plan);
        let mut folded = Vec::new();
        for part in parts {
            let part = part.as_ref();
            let mut slots = vec![Raw::Absent; plan.reader.slots()];
            let partition = &part.records.partition;
            let mut from = part.from;
            for record in part.records.iter() {
                self.courtesy.pause();
                self.record(&plan, partition, &record, &mut slots);
                if self.is_full() {
                    let to = Checkpoint { position: record.offset + 1, last: Some(record.fingerprint()) };
                    self.cover(partition, from, to);
                    from = to;
                    folded.push(self.finish(&plan));
                }
            }
            let to = part.records.checkpoint_after(from);
            if to != from {
                self.cover(partition, from, to);
            }
        }
        if !self.out.batch.spans.is_empty() {
            folded.push(self.finish(&plan));
        }
        folded
    }

    fn is_full(&self) -> bool {
        // An element of a HyperLogLog costs the store a fraction of a field operation.
        let stats = &self.out.stats;
        let fields = stats.operations_merged - stats.elements_merged;
        (fields + stats.elements_merged / ELEMENTS_PER_OPERATION) as usize >= self.operations_max
            || self.out.held_bytes > HELD_BYTES_MAX
            || (self.out.stats.records.is_multiple_of(1024)
                && self.symbols.iter().map(Symbols::bytes).sum::<usize>() > LABEL_BYTES_MAX)
    }

    fn cover(&mut self, partition: &TopicPartition, from: Checkpoint, to: Checkpoint) {
        let spans = &mut self.out.batch.spans;
        match spans.iter_mut().find(|span| span.partition == *partition) {
            Some(span) => {
                assert_eq!(span.to, from, "parts of a partition must follow one another");
                span.to = to;
            }
            None => spans.push(Span { partition: partition.clone(), from, to }),
        }
    }

    fn record<'a>(&mut self, plan: &'a Plan, partition: &TopicPartition, record: &Record<'a>, slots: &mut [Raw<'a>]) {
        let stats = &mut self.out.stats;
        stats.records += 1;
        stats.bytes += record.value.map_or(0, <[u8]>::len) as u64;
        let result = match plan.reader.read(record, &mut self.shape, slots) {
            Ok(Decoded::Tombstone) => {
                self.out.stats.tombstones += 1;
                return;
            }
            Ok(Decoded::Several(events)) => {
                for (index, text) in events.into_iter().enumerate() {
                    self.courtesy.pause();
                    let decoded = plan.reader.read_one(text, record, &mut self.shape, slots);
                    let result = decoded.and_then(|decoded| self.event(plan, &decoded, record.timestamp_ms, slots));
                    self.settle(result, |reason| DeadLetter::of_event(partition, record, index, text, reason));
                }
                return;
            }
            Ok(decoded) => self.event(plan, &decoded, record.timestamp_ms, slots),
            Err(reason) => Err(reason),
        };
        self.settle(result, |reason| DeadLetter::of_record(partition, record, reason));
    }

    fn settle(&mut self, result: Result<(), Reason>, letter: impl FnOnce(Reason) -> DeadLetter) {
        match result {
            Ok(()) => self.out.stats.events += 1,
            Err(reason) => {
                let letter = letter(reason);
                self.out.held_bytes += letter.bytes();
                self.out.dead_letters.push(letter);
            }
        }
    }

    fn event(&mut self, plan: &Plan, decoded: &Decoded<'_>, broker_ms: i64, slots: &[Raw<'_>]) -> Result<(), Reason> {
        let second = plan.reader.second(*decoded == Decoded::CloudEvent, slots, broker_ms)?;
        self.find_buckets(plan, second, broker_ms)?;
        self.number_fields(plan, slots);
        self.number_nodes(plan);
        self.observe_sources(plan, slots);
        self.read_amounts(plan, slots);
        if plan.must_count_metrics {
            self.check_metrics(plan)?;
        }
        for index in 0..self.live_buckets.len() {
            let bucket = self.live_buckets[index];
            self.count_uniques(plan, bucket, slots);
            self.count_values(plan, bucket);
            self.count_sums(plan, bucket);
        }
        Ok(())
    }

    /// Fills `live_buckets`, by the broker's clock and no other.
    fn find_buckets(&mut self, plan: &Plan, second: i64, broker_ms: i64) -> Result<(), Reason> {
        let is_believable = broker_ms >= BELIEVABLE_MS_MIN;
        if is_believable && second * 1000 > broker_ms.saturating_add(DAY_MS) {
            return Err(Reason::TimeInFuture);
        }
        self.live_buckets.clear();
        for (index, &kind) in plan.rules.kinds.iter().enumerate() {
            let (span, id) = match self.last_buckets[index] {
                Some((span, id)) if span.contains(second) => (span, id),
                _ => {
                    let span = plan.rules.zone.bucket_at(kind, second);
                    let known = self.buckets.iter().position(|known| *known == span);
                    let id = known.unwrap_or_else(|| {
                        self.buckets.push(span);
                        self.buckets.len() - 1
                    });
                    self.last_buckets[index] = Some((span, id as u32));
                    (span, id as u32)
                }
            };
            let has_passed = |retention_ms: i64| span.end * 1000 + retention_ms <= broker_ms;
            if is_believable && plan.retention_ms[index].is_some_and(has_passed) {
                self.out.stats.buckets_expired += 1;
            } else {
                self.live_buckets.push(id);
            }
        }
        if self.live_buckets.is_empty() { Err(Reason::TooOld) } else { Ok(()) }
    }

    fn number_fields(&mut self, plan: &Plan, slots: &[Raw<'_>]) {
        let chars_max = plan.rules.rules.events.max_value_length;
        for &field in &plan.label_fields {
            let raw = plan.reader.field(slots, field);
            self.field_ids[field] = match raw.text() {
                Some(text) => {
                    let cut = decode::cut(&text, chars_max);
                    self.out.stats.values_cut += u64::from(cut.was_cut);
                    self.symbols[field].id(cut.label)
                }
                None => {
                    self.out.stats.values_skipped += u64::from(matches!(raw, Raw::Number(_)));
                    0
                }
            };
        }
    }

    fn number_nodes(&mut self, plan: &Plan) {
        for (index, node) in plan.nodes.iter().enumerate() {
            let field_id = self.field_ids[node.field];
            self.node_ids[index] = match node.parent.map(|parent| self.node_ids[parent]) {
                None => field_id,
                Some(parent_id) if parent_id == 0 || field_id == 0 => 0,
                Some(parent_id) => {
                    let (at, _) = self.combinations[index].index_or_insert(pair(parent_id, field_id), || ());
                    at as u32 + 1
                }
            };
        }
    }

    fn observe_sources(&mut self, plan: &Plan, slots: &[Raw<'_>]) {
        for source in 0..plan.sources.len() {
            self.observations[source] = element(plan, source, slots).map(|element| observe(element.as_bytes()));
        }
    }

    fn read_amounts(&mut self, plan: &Plan, slots: &[Raw<'_>]) {
        for (amount, &field) in self.amounts.iter_mut().zip(&plan.amounts) {
            let micros = |text: &str| decode::micros(text).map_or(Amount::Unusable, Amount::Value);
            *amount = match plan.reader.field(slots, field) {
                Raw::Absent | Raw::Null => Amount::Absent,
                Raw::Bool(_) | Raw::Container => Amount::Unusable,
                Raw::Number(text) => micros(text),
                Raw::Text(text) => match decode::trim(text) {
                    "" => Amount::Absent,
                    text if decode::is_number(text) => micros(text),
                    _ => Amount::Unusable,
                },
            };
        }
    }

    fn check_metrics(&self, plan: &Plan) -> Result<(), Reason> {
        let has = |node: usize| self.node_ids[node] != 0;
        let observed = |source: SourceId| self.observations[source].is_some();
        let per_bucket = plan.uniques.iter().filter(|unique| observed(unique.source)).count()
            + plan.unique_bys.iter().filter(|by| observed(by.source) && has(by.node)).count()
            + plan.counts.iter().filter(|count| has(count.node)).map(|count| count.metrics.len()).sum::<usize>()
            + plan
                .sums
                .iter()
                .filter(|sum| has(sum.node) && matches!(self.amounts[sum.amount], Amount::Value(_)))
                .count();
        let limit = plan.rules.rules.events.max_metrics_per_event;
        if per_bucket * self.live_buckets.len() > limit { Err(Reason::TooManyMetrics) } else { Ok(()) }
    }

    fn count_uniques(&mut self, plan: &Plan, bucket: u32, slots: &[Raw<'_>]) {
        let Folded { stats, held_bytes, .. } = &mut self.out;
        let mut count = |table: &mut Keyed<UniqueCell>, key: u64, source: SourceId, observation: Observation| {
            stats.operations += 1;
            stats.elements += 1;
            let (index, is_new) = table.index_or_insert(key, UniqueCell::default);
            let cell = table.item_mut(index);
            if cell.raise(observation) {
                let element = element(plan, source, slots).expect("it was observed");
                cell.elements.push(element.as_bytes());
                *held_bytes += element.len();
                stats.elements_merged += 1;
                stats.operations_merged += 1 + u64::from(is_new);
            }
            is_new
        };
        for (table, unique) in self.uniques.iter_mut().zip(&plan.uniques) {
            if let Some(observation) = self.observations[unique.source] {
                count(table, u64::from(bucket), unique.source, observation);
            }
        }
        let mut long_labels = 0;
        for (table, by) in self.unique_bys.iter_mut().zip(&plan.unique_bys) {
            let id = self.node_ids[by.node];
            if let Some(observation) = self.observations[by.source].filter(|_| id != 0)
                && count(table, pair(bucket, id), by.source, observation)
            {
                long_labels += long_label_bytes(plan, &self.symbols, &self.field_ids, by.node);
            }
        }
        self.out.held_bytes += long_labels;
    }

    fn count_values(&mut self, plan: &Plan, bucket: u32) {
        for (table, count) in self.counts.iter_mut().zip(&plan.counts) {
            let id = self.node_ids[count.node];
            if id == 0 {
                continue;
            }
            let (index, is_new) = table.index_or_insert(pair(bucket, id), || 0);
            *table.item_mut(index) += 1;
            let metrics = count.metrics.len() as u64;
            self.out.stats.operations += metrics;
            if is_new {
                self.out.stats.operations_merged += metrics;
                self.out.held_bytes +=
                    long_label_bytes(plan, &self.symbols, &self.field_ids, count.node) * count.metrics.len();
            }
        }
    }

    fn count_sums(&mut self, plan: &Plan, bucket: u32) {
        let stats = &mut self.out.stats;
        // An event is remarked upon once, in however many buckets it counts.
        let remark = u64::from(self.live_buckets.first() == Some(&bucket));
        for (table, sum) in self.sums.iter_mut().zip(&plan.sums) {
            let id = self.node_ids[sum.node];
            if id == 0 {
                continue;
            }
            let micros = match self.amounts[sum.amount] {
                Amount::Absent => continue,
                Amount::Unusable => {
                    stats.values_skipped += remark;
                    continue;
                }
                Amount::Value(micros) => micros,
            };
            stats.values_rounded += remark * u64::from(micros.was_rounded);
            let (index, is_new) = table.values.index_or_insert(pair(bucket, id), || (0, 0));
            let value = table.values.item_mut(index);
            value.0 += i128::from(micros.value);
            value.1 += 1;
            let none = Totals { sum: 0, count: 0, min: i64::MAX, max: i64::MIN };
            let (index, is_first) = table.totals.index_or_insert(u64::from(bucket), || none);
            let totals = table.totals.item_mut(index);
            totals.sum += i128::from(micros.value);
            totals.count += 1;
            totals.min = totals.min.min(micros.value);
            totals.max = totals.max.max(micros.value);
            stats.operations += OPERATIONS_OF_SUM;
            if is_new {
                self.out.held_bytes += long_label_bytes(plan, &self.symbols, &self.field_ids, sum.node);
            }
            stats.operations_merged += if is_new { 2 } else { 0 } + if is_first { 4 } else { 0 };
        }
    }

    /// Writes the batch out and starts a new one.
    fn finish(&mut self, plan: &Plan) -> Folded {
        let mut writes = Vec::new();
        self.write_uniques(plan, &mut writes);
        self.write_counts(plan, &mut writes);
        self.write_sums(plan, &mut writes);
        self.symbols.iter_mut().for_each(Symbols::clear);
        self.combinations.iter_mut().for_each(Keyed::clear);
        self.buckets.clear();
        self.last_buckets.fill(None);
        let mut folded = std::mem::take(&mut self.out);
        folded.batch.writes = writes;
        folded
    }

    fn write_uniques(&mut self, plan: &Plan, writes: &mut Vec<KeyWrite>) {
        let mut tables = std::mem::take(&mut self.uniques);
        for (table, unique) in tables.iter_mut().zip(&plan.uniques) {
            for (bucket, cell) in table.drain() {
                writes.push(self.key_write(plan, bucket as usize, &unique.metric, Writes::Unique(cell.elements)));
            }
        }
        self.uniques = tables;
        let mut tables = std::mem::take(&mut self.unique_bys);
        for (table, by) in tables.iter_mut().zip(&plan.unique_bys) {
            let mut buckets = self.buckets_of(Vec::new);
            for (key, cell) in table.drain() {
                let label = self.label(plan, by.node, key as u32);
                buckets[(key >> 32) as usize].push((label, cell.elements));
            }
            self.push_writes(plan, &by.metric, buckets, Writes::UniqueBy, writes);
        }
        self.unique_bys = tables;
    }

    fn write_counts(&mut self, plan: &Plan, writes: &mut Vec<KeyWrite>) {
        for (table, count) in self.counts.iter().zip(&plan.counts) {
            let mut buckets = self.buckets_of(Vec::new);
            for (key, &value) in table.iter() {
                buckets[(key >> 32) as usize].push((self.label(plan, count.node, key as u32), value));
            }
            for (index, metric) in count.metrics.iter().enumerate() {
                let is_last = index + 1 == count.metrics.len();
                let buckets = if is_last { std::mem::take(&mut buckets) } else { buckets.clone() };
                let of_kind = if matches!(metric, Metric::Top { .. }) { Writes::Top } else { Writes::Count };
                self.push_writes(plan, metric, buckets, of_kind, writes);
            }
        }
        self.counts.iter_mut().for_each(Keyed::clear);
    }

    fn write_sums(&mut self, plan: &Plan, writes: &mut Vec<KeyWrite>) {
        for (table, sum) in self.sums.iter().zip(&plan.sums) {
            let mut buckets = self.buckets_of(Vec::new);
            for (key, &(value, count)) in table.values.iter() {
                buckets[(key >> 32) as usize].push((self.label(plan, sum.node, key as u32), value, count));
            }
            for (bucket, &totals) in table.totals.iter() {
                let values = std::mem::take(&mut buckets[bucket as usize]);
                writes.push(self.key_write(plan, bucket as usize, &sum.metric, Writes::Sum(values, totals)));
            }
        }
        for table in &mut self.sums {
            table.values.clear();
            table.totals.clear();
        }
    }

    fn buckets_of<T>(&self, make: impl FnMut() -> T) -> Vec<T> {
        std::iter::repeat_with(make).take(self.buckets.len()).collect()
    }

    fn push_writes<T>(
        &self,
        plan: &Plan,
        metric: &Metric,
        buckets: Vec<Vec<T>>,
        of_kind: impl Fn(Vec<T>) -> Writes,
        writes: &mut Vec<KeyWrite>,
    ) {
        for (bucket, values) in buckets.into_iter().enumerate() {
            if !values.is_empty() {
                writes.push(self.key_write(plan, bucket, metric, of_kind(values)));
            }
        }
    }

    fn key_write(&self, plan: &Plan, bucket: usize, metric: &Metric, writes: Writes) -> KeyWrite {
        let span = self.buckets[bucket];
        let expires_at = plan.rules.rules.buckets.retention.of(span.bucket.kind).expiry(&span);
        KeyWrite { bucket: span.bucket, expires_at, metric: metric.clone(), writes }
    }

    /// The stored label of a node's id.
    fn label(&self, plan: &Plan, node: usize, id: u32) -> Box<str> {
        let Some(mut parent) = plan.nodes[node].parent else {
            let label = self.symbols[plan.nodes[node].field].label(id);
            return if decode::is_reserved(label) { format!("\\{label}").into() } else { label.into() };
        };
        let mut labels = Vec::with_capacity(4);
        let (mut node, mut id) = (node, id);
        loop {
            let key = self.combinations[node].key(id);
            labels.push(self.symbols[plan.nodes[node].field].label(key as u32));
            (node, id) = (parent, (key >> 32) as u32);
            match plan.nodes[node].parent {
                Some(next) => parent = next,
                None => break,
            }
        }
        labels.push(self.symbols[plan.nodes[node].field].label(id));
        join(labels.into_iter().rev()).into()
    }
}

fn join<'l>(labels: impl Iterator<Item = &'l str>) -> String {
    let mut joined = String::new();
    for (index, label) in labels.enumerate() {
        if index > 0 {
            joined.push('~');
        }
        decode::escape_into(&mut joined, label);
    }
    joined
}

/// What a unique count hashes: the whole value, or the escaped values of several fields joined.
fn element<'s>(plan: &Plan, source: SourceId, slots: &'s [Raw<'_>]) -> Option<Cow<'s, str>> {
    let fields = &plan.sources[source].fields;
    if let [field] = fields[..] {
        return plan.reader.field(slots, field).text();
    }
    let texts: Option<Vec<Cow<'_, str>>> = fields.iter().map(|&field| plan.reader.field(slots, field).text()).collect();
    texts.map(|texts| Cow::Owned(join(texts.iter().map(|text| &**text))))
}

/// Bytes of the present event's label at a node beyond [`BYTES_PER_LABEL`]: each bucket and metric
/// has a copy of it.
fn long_label_bytes(plan: &Plan, symbols: &[Symbols], field_ids: &[u32], node: NodeId) -> usize {
    let parents = std::iter::successors(Some(&plan.nodes[node]), |node| node.parent.map(|parent| &plan.nodes[parent]));
    let bytes: usize = parents.map(|node| symbols[node.field].label(field_ids[node.field]).len()).sum();
    bytes.saturating_sub(BYTES_PER_LABEL)
}

#[cfg(test)]
mod tests {
    use traqq_core::model::{BucketKind, RecordBatch};

    use super::*;
    use crate::mapping::{Rules, metric_name};

    /// 2023-11-14 in UTC.
    const NOW_MS: i64 = 1_700_000_000_000;

    fn plan(rules: &str) -> Arc<Plan> {
        let rules: Rules = serde_json::from_str(rules).unwrap();
        Arc::new(Plan::new(rules.validate().unwrap()))
    }

    fn part(values: &[&str]) -> Part {
        let mut records = RecordBatch::new(TopicPartition::new("t", 0), 1);
        for (offset, value) in values.iter().enumerate() {
            records.push(offset as i64, NOW_MS, None, Some(value.as_bytes()));
        }
        Part { records, from: Checkpoint::start(0) }
    }

    /// What a batch adds to the day, a line for each key: labels in the order of their first
    /// occurrence.
    fn lines(batch: &WriteBatch) -> Vec<String> {
        let unique = |elements: &crate::mapping::Elements| elements.len().to_string();
        let line = |key: &KeyWrite| {
            let values: Vec<String> = match &key.writes {
                Writes::Unique(elements) => vec![unique(elements)],
                Writes::UniqueBy(values) => {
                    values.iter().map(|(label, of)| format!("{label}={}", unique(of))).collect()
                }
                Writes::Count(values) | Writes::Top(values) => {
                    values.iter().map(|(label, count)| format!("{label}={count}")).collect()
                }
                Writes::Sum(values, totals) => {
                    let all = format!("{} of {}, {} to {}", totals.sum, totals.count, totals.min, totals.max);
                    values.iter().map(|(label, sum, count)| format!("{label}={sum}/{count}")).chain([all]).collect()
                }
            };
            format!("{} {}", metric_name(&key.metric), values.join(" "))
        };
        let days = batch.writes.iter().filter(|key| key.bucket.kind == BucketKind::Day);
        let mut lines: Vec<String> = days.map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn events_become_merged_writes() {
        // A mapping, events, and what they add to their day.
        for (mapping, events, expected) in [
            (
                r#""add":["event"]"#,
                &[r#"{"event":"a"}"#, r#"{"event":"b"}"#, r#"{"event":"a"}"#][..],
                &["add:event a=2 b=1"][..],
            ),
            // A field that is absent, null, or no text counts nowhere.
            (
                r#""add":["event","geo"]"#,
                &[r#"{"event":"a","geo":"x"}"#, r#"{"event":"a","geo":null}"#, r#"{"event":"a","geo":[1]}"#],
                &["add:event a=3", "add:event~geo a~x=1", "add:geo x=1"],
            ),
            // Values of the separator and of the name for others are escaped, numbers and booleans
            // have one spelling.
            (
                r#""add":["v"],"auto_pairs":false"#,
                &[
                    r#"{"event":"e","v":"__other__"}"#,
                    r#"{"event":"e","v":1.0}"#,
                    r#"{"event":"e","v":true}"#,
                    r#"{"event":"e","v":" x "}"#,
                ],
                &[r"add:v \__other__=1 1=1 true=1 x=1"],
            ),
            (
                r#""add":["a~b"]"#,
                &[r#"{"event":"e","a":"x~y","b":"z"}"#, r#"{"event":"e","a":"x","b":"y~z"}"#],
                &[r"add:a~b x\~y~z=1 x~y\~z=1"],
            ),
            // A leaderboard and a counter of one pattern share the work.
            (r#""add":["url"],"top":["url"]"#, &[r#"{"event":"e","url":"/"}"#], &["add:url /=1", "top:url /=1"]),
            // Sums are exact in millionths; what is no number is left out.
            (
                r#""add_value":[{"key":"event","add_key":"n"}]"#,
                &[
                    r#"{"event":"a","n":0.1}"#,
                    r#"{"event":"a","n":"0.2"}"#,
                    r#"{"event":"b","n":-3}"#,
                    r#"{"event":"b","n":"x"}"#,
                    r#"{"event":"c"}"#,
                ],
                &["add_value:n:event a=300000/2 b=-3000000/1 -2700000 of 3, -3000000 to 200000"],
            ),
            // Of unique counts only what raises a register is kept.
            (
                r#""bitmap":["ip"],"bitmap_by":[{"key":"geo","of":"ip"}]"#,
                &[
                    r#"{"event":"e","ip":"1","geo":"x"}"#,
                    r#"{"event":"e","ip":"1","geo":"x"}"#,
                    r#"{"event":"e","ip":"2","geo":"y"}"#,
                ],
                &["bitmap:ip 2", "bitmap_by:ip@geo x=1 y=1"],
            ),
            // One record that holds several events.
            (
                r#""add":["event"]"#,
                &[r#"[{"event":"a"},{"event":"b"}]"#, r#"{"batch":[{"event":"a"}]}"#],
                &["add:event a=2 b=1"],
            ),
        ] {
            let folded =
                Folder::new(plan(&format!(r#"{{"mapping":{{{mapping}}}}}"#)), usize::MAX).fold(&[part(events)]);
            let [Folded { batch, dead_letters, .. }] = &folded[..] else { panic!("{} batches", folded.len()) };
            assert_eq!(lines(batch), expected, "{mapping}");
            assert!(dead_letters.is_empty(), "{dead_letters:?}");
            let span = &batch.spans[0];
            assert_eq!((span.from.position, span.to.position), (0, events.len() as i64));
        }
    }

    #[test]
    fn what_cannot_be_counted_is_a_dead_letter_and_stops_nothing() {
        let old = format!(r#"{{"event":"a","ts":{}}}"#, NOW_MS / 1000 - 500 * 86_400);
        let ahead = format!(r#"{{"event":"a","ts":{}}}"#, NOW_MS / 1000 + 2 * 86_400);
        let events = [
            "{",
            "[]",
            "{}",
            r#"{"event":"a","ts":"soon"}"#,
            &ahead,
            &old,
            r#"[{"event":"a"},{}]"#,
            r#"{"event":"a"}"#,
        ];
        let folded = Folder::new(plan(r#"{"mapping":{"add":["event"]}}"#), usize::MAX).fold(&[part(&events)]);
        let letters: Vec<(i64, Option<u32>, &str)> =
            folded[0].dead_letters.iter().map(|letter| (letter.offset, letter.index, letter.reason.name())).collect();
        assert_eq!(
            letters,
            [
                (0, None, "invalid_json"),
                (1, None, "not_an_object"),
                (2, None, "no_event"),
                (3, None, "time_unreadable"),
                (4, None, "time_in_future"),
                (5, None, "too_old"),
                (6, Some(1), "no_event"),
            ]
        );
        assert_eq!(lines(&folded[0].batch), ["add:event a=2"]);
        let FoldStats { records, events: counted, .. } = folded[0].stats;
        assert_eq!((records, counted), (8, 2));
    }

    /// Where one batch ends the next begins, and together they are what one would be.
    #[test]
    fn batches_that_are_cut_follow_one_another() {
        let events: Vec<String> = (0..50).map(|n| format!(r#"{{"event":"e{}","geo":"g{}"}}"#, n % 9, n % 4)).collect();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let plan = plan(r#"{"mapping":{"add":["event","geo"]}}"#);
        for operations_max in [1, 7, 30, usize::MAX] {
            let folded = Folder::new(Arc::clone(&plan), operations_max).fold(&[part(&events)]);
            let mut position = Checkpoint::start(0);
            let mut counted = 0;
            for Folded { batch, .. } in &folded {
                assert_eq!(batch.spans[0].from, position);
                position = batch.spans[0].to;
                let of_events = batch.writes.iter().filter(|key| metric_name(&key.metric) == "add:event");
                for key in of_events {
                    let Writes::Count(values) = &key.writes else { panic!("counts") };
                    counted += values.iter().map(|(_, count)| count).sum::<i64>();
                }
            }
            assert_eq!((position.position, counted), (50, 50), "{operations_max}");
            assert_eq!(folded.len() == 1, operations_max == usize::MAX, "{operations_max}");
        }
    }
}
