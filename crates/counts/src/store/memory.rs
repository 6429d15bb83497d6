//! The reference store: everything in one process's memory, under one lock.
//!
//! It serves tests and models, and shows the rules of a commit without a server in between. Faults
//! can be asked of it: a reply can be lost after the batch was applied, a state can be taken and
//! put back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    Applied, Contents, KeyDump, Meta, Outcome, Positions, Quarantined, Read, Reply, Session, Store, StoreError,
    StoreResult, StoredKey,
};
use crate::mapping::{KeyWrite, Metric, OTHER, Rules, WriteBatch, Writes, increments};
use traqq_core::hll::Hll;
use traqq_core::model::{Bucket, Checkpoint, TopicPartition};

#[derive(Clone, PartialEq, Debug)]
enum Value {
    Unique(Box<Hll>),
    UniqueBy(BTreeMap<String, Hll>),
    Count(HashMap<String, i64>),
    Sum { values: HashMap<String, (i64, i64)>, totals: BTreeMap<&'static str, i64> },
}

#[derive(Clone, Default)]
struct Lane {
    /// A copy of meta, as a lane of a cluster has it beside its positions; only its rules, plan and
    /// starts are looked at.
    meta: Option<Meta>,
    positions: Positions,
    keys: HashMap<(Bucket, Metric), Value>,
    expiries: HashMap<(Bucket, Metric), i64>,
    quarantined: BTreeMap<String, String>,
}

/// Everything the store holds, to be taken and put back.
#[derive(Clone, Default)]
pub struct State {
    meta: Option<Meta>,
    lanes: Vec<Lane>,
}

impl State {
    fn begin_lane(&mut self, index: usize, meta: &Meta) {
        let positions = meta.first_positions();
        let lanes = self.lanes.len();
        let lane = &mut self.lanes[index];
        if lane.meta.is_none() {
            let of_lane = positions.iter().filter(|(partition, _)| partition.lane(lanes) == index);
            lane.positions.extend(of_lane.map(|(partition, checkpoint)| (partition.clone(), *checkpoint)));
            lane.meta = Some(meta.clone());
        }
    }

    /// Another state of one lane alone, as the node of a cluster that fails over.
    pub fn with_lane_of(mut self, index: usize, other: &Self) -> Self {
        self.lanes[index] = other.lanes[index].clone();
        self
    }
}

/// What the next commit does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Applied, but the answer never arrives.
    LoseReply,
    /// The connection breaks before anything is applied.
    Break,
    /// The store refuses for now.
    Refuse,
}

#[derive(Default)]
struct Inner {
    state: State,
    now: i64,
    faults: Vec<Fault>,
}

#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    lanes: usize,
}

impl MemoryStore {
    pub fn new(lanes: usize) -> Self {
        let inner = Inner { state: State { meta: None, lanes: vec![Lane::default(); lanes] }, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), lanes }
    }

    /// A panic while the lock was held leaves nothing half done that a test would want to see.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn snapshot(&self) -> State {
        self.lock().state.clone()
    }

    /// Puts an older state back, as a power cut or a failover would.
    pub fn restore(&self, state: State) {
        self.lock().state = state;
    }

    /// The faults of the next commits, the first one first.
    pub fn inject(&self, faults: &[Fault]) {
        self.lock().faults.extend(faults);
    }

    /// The store's clock, in epoch seconds; keys whose expiry has passed are gone.
    pub fn set_now(&self, now: i64) {
        let mut inner = self.lock();
        inner.now = now;
        for lane in &mut inner.state.lanes {
            let expiries = &lane.expiries;
            lane.keys.retain(|key, _| expiries.get(key).is_none_or(|expiry| *expiry > now));
        }
    }

    /// Whether two stores hold the same counts, positions aside.
    pub fn same_counts(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.snapshot(), other.snapshot());
        ours.lanes.iter().map(|lane| &lane.keys).eq(theirs.lanes.iter().map(|lane| &lane.keys))
    }

    fn commit_now(&self, lane: usize, batch: &WriteBatch) -> StoreResult<Outcome> {
        let mut inner = self.lock();
        let fault = (!inner.faults.is_empty()).then(|| inner.faults.remove(0));
        match fault {
            Some(Fault::Break) => return Err(StoreError::reconnect("connection broken by request")),
            Some(Fault::Refuse) => return Err(StoreError::retry("refused by request")),
            Some(Fault::LoseReply) | None => {}
        }
        let now = inner.now;
        let state = &mut inner.state;
        let lane = &mut state.lanes[lane];
        let Some(meta) = &lane.meta else { return Ok(Outcome::PlanChanged(String::new())) };
        let rules: Rules = serde_json::from_str(&meta.rules).expect("rules were written as JSON");
        let holds = |span: &traqq_core::model::Span| lane.positions.get(&span.partition) == Some(&span.from);
        if !batch.spans.iter().all(holds) {
            let stored =
                batch.spans.iter().map(|span| (span.partition.clone(), lane.positions.get(&span.partition).copied()));
            return Ok(Outcome::Fenced(stored.collect()));
        }
        for span in &batch.spans {
            lane.positions.insert(span.partition.clone(), span.to);
        }
        let mut applied = Applied::default();
        for write in &batch.writes {
            if write.expires_at.is_some_and(|expiry| expiry <= now) {
                applied.keys_expired += 1;
            } else {
                lane.apply(write, &rules, &mut applied);
            }
        }
        match fault {
            Some(Fault::LoseReply) => Err(StoreError::reconnect("reply lost by request")),
            _ => Ok(Outcome::Applied(applied)),
        }
    }
}

impl Lane {
    fn apply(&mut self, write: &KeyWrite, rules: &Rules, applied: &mut Applied) {
        let key = (write.bucket, write.metric.clone());
        if let Some(expiry) = write.expires_at {
            self.expiries.entry(key.clone()).or_insert(expiry);
        }
        let value = self.keys.entry(key).or_insert_with(|| empty(&write.writes));
        let limit = rules.events.max_values_per_key;
        let sound = match (value, &write.writes) {
            (Value::Unique(registers), Writes::Unique(elements)) => {
                elements.iter().for_each(|element| _ = registers.add(element));
                applied.elements_sent += elements.len() as u64;
                true
            }
            (Value::UniqueBy(values), Writes::UniqueBy(writes)) => {
                for (label, elements) in writes {
                    let limit = rules.events.max_values_per_key_bitmap_by;
                    let count = values.len() - usize::from(values.contains_key(OTHER));
                    let label = admit(label, values.contains_key(&**label), count, limit, applied);
                    let registers = values.entry(label.to_owned()).or_default();
                    elements.iter().for_each(|element| _ = registers.add(element));
                    applied.elements_sent += elements.len() as u64;
                }
                true
            }
            (Value::Count(values), Writes::Count(writes) | Writes::Top(writes)) => {
                writes.iter().fold(true, |sound, (label, count)| {
                    let known = values.len() - usize::from(values.contains_key(OTHER));
                    let label = admit(label, values.contains_key(&**label), known, limit, applied);
                    add(values.entry(label.to_owned()).or_default(), *count) && sound
                })
            }
            (Value::Sum { values, totals }, Writes::Sum(writes, batch)) => {
                let mut sound = add(totals.entry("count").or_default(), batch.count);
                for part in increments(batch.sum) {
                    sound &= add(totals.entry("sum").or_default(), part);
                }
                let min = totals.entry("min").or_insert(batch.min);
                *min = batch.min.min(*min);
                let max = totals.entry("max").or_insert(batch.max);
                *max = batch.max.max(*max);
                for (label, sum, count) in writes {
                    let known = values.len() - usize::from(values.contains_key(OTHER));
                    let label = admit(label, values.contains_key(&**label), known, limit, applied);
                    let (value, counted) = values.entry(label.to_owned()).or_default();
                    for part in increments(*sum) {
                        sound &= add(value, part);
                    }
                    sound &= add(counted, *count);
                }
                sound
            }
            _ => unreachable!("a metric keeps its kind"),
        };
        if !sound {
            let key = format!("{:?} {:?}", write.bucket, write.metric);
            let error = "increment or decrement would overflow".to_owned();
            self.quarantined.insert(key.clone(), error.clone());
            applied.quarantined.push(Quarantined { key, error });
        }
    }
}

fn empty(writes: &Writes) -> Value {
    match writes {
        Writes::Unique(_) => Value::Unique(Box::default()),
        Writes::UniqueBy(_) => Value::UniqueBy(BTreeMap::new()),
        Writes::Count(_) | Writes::Top(_) => Value::Count(HashMap::new()),
        Writes::Sum(..) => Value::Sum { values: HashMap::new(), totals: BTreeMap::new() },
    }
}

fn admit<'l>(label: &'l str, is_known: bool, count: usize, limit: usize, applied: &mut Applied) -> &'l str {
    if is_known || count < limit {
        return label;
    }
    applied.values_folded += 1;
    OTHER
}

fn add(value: &mut i64, increment: i64) -> bool {
    match value.checked_add(increment) {
        Some(sum) => {
            *value = sum;
            true
        }
        None => false,
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn lanes(&self) -> usize {
        self.lanes
    }

    async fn meta(&self) -> StoreResult<Option<Meta>> {
        Ok(self.lock().state.meta.clone())
    }

    async fn create(&self, meta: &Meta) -> StoreResult<Meta> {
        let mut inner = self.lock();
        for lane in 0..self.lanes {
            inner.state.begin_lane(lane, meta);
        }
        Ok(inner.state.meta.get_or_insert_with(|| meta.clone()).clone())
    }

    async fn begin_lane(&self, lane: usize, meta: &Meta) -> StoreResult<()> {
        self.lock().state.begin_lane(lane, meta);
        Ok(())
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
        let mut inner = self.lock();
        let state = &mut inner.state;
        for (partition, start) in starts {
            let lane = &mut state.lanes[partition.lane(self.lanes)];
            for meta in [&mut lane.meta, &mut state.meta] {
                let Some(meta) = meta else { return Err(StoreError::reconnect("the store is empty")) };
                meta.starts.entry(partition.clone()).or_insert(*start);
            }
            lane.positions.entry(partition.clone()).or_insert(Checkpoint::start(*start));
        }
        Ok(())
    }

    async fn replace_rules(&self, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool> {
        let mut inner = self.lock();
        match &mut inner.state.meta {
            Some(stored) if Some(&*stored.plan) == expected_plan || stored.plan == meta.plan => {
                let with_starts = |starts: BTreeMap<TopicPartition, i64>| Meta { starts, ..meta.clone() };
                *stored = with_starts(std::mem::take(&mut stored.starts));
                let mut changed = false;
                for stored in inner.state.lanes.iter_mut().filter_map(|lane| lane.meta.as_mut()) {
                    changed |= stored.plan != meta.plan;
                    *stored = with_starts(std::mem::take(&mut stored.starts));
                }
                Ok(changed)
            }
            _ => Err(StoreError::stop("the mapping was changed by somebody else meanwhile")),
        }
    }

    async fn extend(&self, lane: usize, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
        let mut inner = self.lock();
        let lane = &mut inner.state.lanes[lane];
        for (bucket, expiry) in expiries {
            for key in lane.keys.keys().filter(|(of, _)| of == bucket) {
                match expiry {
                    Some(expiry) => lane.expiries.insert(key.clone(), *expiry),
                    None => lane.expiries.remove(key),
                };
            }
        }
        Ok(())
    }

    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>> {
        Ok(Box::new(MemorySession { store: self.clone(), lane, broken: false }))
    }

    async fn positions(&self, lane: usize) -> StoreResult<Positions> {
        Ok(self.lock().state.lanes[lane].positions.clone())
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> StoreResult<bool> {
        let mut inner = self.lock();
        let positions = &mut inner.state.lanes[partition.lane(self.lanes)].positions;
        let holds = positions.get(partition).copied() == from;
        if holds {
            positions.insert(partition.clone(), to);
        }
        Ok(holds)
    }

    async fn quarantined(&self, lane: usize) -> StoreResult<Vec<Quarantined>> {
        let quarantined = self.lock().state.lanes[lane].quarantined.clone();
        Ok(quarantined.into_iter().map(|(key, error)| Quarantined { key, error }).collect())
    }

    async fn keys(&self, lane: usize) -> StoreResult<Vec<StoredKey>> {
        let inner = self.lock();
        let lane = &inner.state.lanes[lane];
        let stored = |key: &(Bucket, Metric)| StoredKey {
            bucket: key.0,
            metric: key.1.clone(),
            expires_at: lane.expiries.get(key).copied(),
        };
        Ok(lane.keys.keys().map(stored).collect())
    }

    async fn restore_keys(&self, lane: usize, keys: &[KeyDump]) -> StoreResult<()> {
        let mut inner = self.lock();
        let lane = &mut inner.state.lanes[lane];
        for KeyDump { key, contents } in keys {
            let value = match contents.clone() {
                Contents::Counts(values) => Value::Count(values.into_iter().collect()),
                Contents::Sums(values, [sum, count, min, max]) => Value::Sum {
                    values: values.into_iter().map(|(label, sum, count)| (label, (sum, count))).collect(),
                    totals: [("sum", sum), ("count", count), ("min", min), ("max", max)].into(),
                },
                Contents::Unique(registers) => Value::Unique(registers),
                Contents::UniqueBy(values) => Value::UniqueBy(values.into_iter().collect()),
            };
            let name = (key.bucket, key.metric.clone());
            key.expires_at.map(|expiry| lane.expiries.insert(name.clone(), expiry));
            lane.keys.insert(name, value);
        }
        Ok(())
    }

    async fn restore_quarantine(&self, lane: usize, quarantined: &[Quarantined]) -> StoreResult<()> {
        let pairs = quarantined.iter().map(|quarantined| (quarantined.key.clone(), quarantined.error.clone()));
        self.lock().state.lanes[lane].quarantined.extend(pairs);
        Ok(())
    }

    async fn read(&self, lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>> {
        let inner = self.lock();
        Ok(reads.iter().map(|read| inner.state.lanes[lane].read(read)).collect())
    }
}

impl Lane {
    fn read(&self, read: &Read) -> Reply {
        let value = |metric: Metric| self.keys.get(&(read.bucket(), metric));
        let counts = |value: Option<&Value>| match value {
            Some(Value::Count(values)) => values.iter().map(|(label, count)| (label.clone(), *count)).collect(),
            _ => Vec::new(),
        };
        let sum = |of: &crate::mapping::Pattern, add_key: &str| {
            value(Metric::Sum { of: of.clone(), add_key: add_key.into() })
        };
        let top = |of: &crate::mapping::Pattern| {
            let mut members: Vec<(String, i64)> = counts(value(Metric::Top { of: of.clone() }));
            members.sort_by(|left, right| (right.1, &right.0).cmp(&(left.1, &left.0)));
            members
        };
        match read {
            Read::Counts { of, .. } => Reply::Values(counts(value(Metric::Count { of: of.clone() }))),
            Read::Sums { of, add_key, .. } => match sum(of, add_key) {
                Some(Value::Sum { values, .. }) => {
                    Reply::Values(values.iter().map(|(label, (sum, _))| (label.clone(), *sum)).collect())
                }
                _ => Reply::Values(Vec::new()),
            },
            Read::SumCounts { of, add_key, .. } => match sum(of, add_key) {
                Some(Value::Sum { values, .. }) => {
                    Reply::Values(values.iter().map(|(label, (_, count))| (label.clone(), *count)).collect())
                }
                _ => Reply::Values(Vec::new()),
            },
            Read::SumTotals { of, add_key, .. } => match sum(of, add_key) {
                Some(Value::Sum { totals, .. }) => {
                    Reply::Values(totals.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
                }
                _ => Reply::Values(Vec::new()),
            },
            Read::Unique { of, .. } => match value(Metric::Unique { of: of.clone() }) {
                Some(Value::Unique(registers)) => Reply::Registers(registers.clone()),
                _ => Reply::Registers(Box::default()),
            },
            Read::UniqueBy { of, by, value: label, .. } => {
                match value(Metric::UniqueBy { of: of.clone(), by: by.clone() }) {
                    Some(Value::UniqueBy(values)) => {
                        Reply::Registers(Box::new(values.get(label).cloned().unwrap_or_default()))
                    }
                    _ => Reply::Registers(Box::default()),
                }
            }
            Read::UniqueByValues { of, by, .. } => match value(Metric::UniqueBy { of: of.clone(), by: by.clone() }) {
                Some(Value::UniqueBy(values)) => Reply::Labels(values.keys().cloned().collect()),
                _ => Reply::Labels(Vec::new()),
            },
            Read::TopFirst { of, limit, .. } => {
                let mut members = top(of);
                members.truncate(*limit);
                Reply::Values(members)
            }
            Read::TopAtLeast { of, count, limit, .. } => {
                let mut members = top(of);
                members.retain(|(_, score)| score >= count);
                members.truncate(*limit);
                Reply::Values(members)
            }
            Read::TopScores { of, members: wanted, .. } => {
                let wanted: BTreeSet<&String> = wanted.iter().collect();
                let mut members = top(of);
                members.retain(|(member, _)| wanted.contains(member));
                Reply::Values(members)
            }
            Read::Only { read, labels } => match self.read(read) {
                Reply::Values(mut values) => {
                    values.retain(|(label, _)| labels.contains(label));
                    Reply::Values(values)
                }
                reply => reply,
            },
        }
    }
}

struct MemorySession {
    store: MemoryStore,
    lane: usize,
    broken: bool,
}

#[async_trait]
impl Session for MemorySession {
    async fn stored(&mut self) -> StoreResult<Option<(Meta, Positions)>> {
        let inner = self.store.lock();
        let lane = &inner.state.lanes[self.lane];
        Ok(lane.meta.clone().map(|meta| (meta, lane.positions.clone())))
    }

    async fn commit(&mut self, batch: Arc<WriteBatch>) -> BoxFuture<'static, StoreResult<Outcome>> {
        let answer = if self.broken {
            Err(StoreError::reconnect("the connection is broken"))
        } else {
            self.store.commit_now(self.lane, &batch)
        };
        self.broken = matches!(answer, Err(StoreError::Reconnect(_)));
        futures_util::future::ready(answer).boxed()
    }
}
