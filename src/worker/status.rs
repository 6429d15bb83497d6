//! What a person may look at while a worker runs: readiness and partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;

use super::gauges;
use super::lane::DEAD_LETTERS;
use super::pulse::Pulse;
use super::uncounted::{Line, Sighting, Tally, Uncounted};
use crate::compile::FoldStats;
use crate::model::TopicPartition;
use crate::store::Applied;
use crate::telemetry::names;

#[derive(Clone, Default, PartialEq, Debug, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    /// `opening`, `running`, `unreadable`, or `stopped`, which ends only when somebody acts.
    pub state: &'static str,
    /// Next offset to apply.
    pub position: i64,
    pub end: i64,
    pub lag_records: i64,
    pub lag_seconds: f64,
    /// Why it is not read.
    pub reason: Option<String>,
}

/// What became of records since the process started; the names are those of the metrics.
#[derive(Clone, Copy, Default, Serialize)]
struct Totals {
    records: u64,
    events: u64,
    batches: u64,
    tombstones: u64,
    dead_letters: u64,
    /// Values that were no number though one was needed.
    values_skipped: u64,
    values_cut: u64,
    values_rounded: u64,
    values_folded: u64,
    buckets_expired: u64,
    keys_expired: u64,
}

#[derive(Default)]
struct Inner {
    /// Why the worker is not ready, by what is affected.
    obstacles: BTreeMap<String, String>,
    partitions: BTreeMap<TopicPartition, PartitionStatus>,
    totals: Totals,
    uncounted: Uncounted,
}

pub struct Status {
    inner: Mutex<Inner>,
    /// Where dead letters go, for a person.
    dead_letters_to: String,
    pub(super) pulse: Pulse,
}

impl Default for Status {
    fn default() -> Self {
        Self::new("discard")
    }
}

impl Status {
    /// `dead_letters_to` says where dead letters go.
    pub fn new(dead_letters_to: &str) -> Self {
        let inner = Mutex::default();
        let status = Self { inner, dead_letters_to: dead_letters_to.to_owned(), pulse: Pulse::default() };
        status.obstruct("worker", "starting");
        status
    }

    /// Held for a few instructions; nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn obstruct(&self, what: &str, why: &str) {
        let mut inner = self.lock();
        inner.obstacles.insert(what.to_owned(), why.to_owned());
        metrics::gauge!(names::READY).set(0.0);
    }

    pub fn clear(&self, what: &str) {
        let mut inner = self.lock();
        inner.obstacles.remove(what);
        metrics::gauge!(names::READY).set(if inner.obstacles.is_empty() { 1.0 } else { 0.0 });
    }

    pub fn readiness(&self) -> Result<(), String> {
        let inner = self.lock();
        if inner.obstacles.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = inner.obstacles.iter().map(|(what, why)| format!("{what}: {why}")).collect();
        Err(lines.join("; "))
    }

    /// The same for those who are not told addresses and topics: what is affected, as `starting`,
    /// `draining`, `broker`, `store`, `partition` or `dead letters`.
    pub fn affected(&self) -> String {
        let inner = self.lock();
        let class = |(what, why): (&String, &String)| match &**what {
            "worker" if why == "draining" => "draining",
            "worker" => "starting",
            "broker" => "broker",
            DEAD_LETTERS => DEAD_LETTERS,
            lane if lane.starts_with("lane ") => "store",
            _ => "partition",
        };
        let classes: BTreeSet<&str> = inner.obstacles.iter().map(class).collect();
        classes.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// `Err` says what hangs; only a restart helps.
    pub fn liveness(&self) -> Result<(), String> {
        self.pulse.check()
    }

    /// Counts the seconds in which this process runs, for [`Status::liveness`].
    pub fn watch(self: &Arc<Self>) {
        let status = Arc::downgrade(self);
        let count = move || {
            loop {
                std::thread::sleep(Pulse::TICK);
                let Some(status) = status.upgrade() else { return };
                status.tick();
            }
        };
        std::thread::Builder::new().name("pulse".to_owned()).spawn(count).expect("a thread can be started");
    }

    /// One second has gone by, as [`Status::watch`] counts them.
    pub fn tick(&self) {
        self.pulse.tick();
    }

    /// Accounts for a batch, and says what of it was not counted.
    pub(super) fn applied(&self, stats: &FoldStats, applied: &Applied, dead_letters: Tally, now_ms: i64) {
        let mut inner = self.lock();
        let Inner { totals, uncounted, .. } = &mut *inner;
        for (total, more) in [
            (&mut totals.records, stats.records),
            (&mut totals.events, stats.events),
            (&mut totals.batches, 1),
            (&mut totals.tombstones, stats.tombstones),
            (&mut totals.values_skipped, stats.values_skipped),
            (&mut totals.values_cut, stats.values_cut),
            (&mut totals.values_rounded, stats.values_rounded),
            (&mut totals.values_folded, applied.values_folded),
            (&mut totals.buckets_expired, stats.buckets_expired),
            (&mut totals.keys_expired, applied.keys_expired),
        ] {
            *total += more;
        }
        let lines = uncounted.add(stats.events, dead_letters, now_ms);
        totals.dead_letters = uncounted.count();
        drop(inner);
        for Line { reason, records, first } in lines {
            let Sighting { topic, partition, offset, timestamp_ms, index, detail } = first;
            tracing::warn!(
                reason = reason.name(),
                records,
                topic,
                partition,
                offset,
                timestamp_ms,
                index,
                detail,
                dead_letters_to = self.dead_letters_to,
                "records were not counted; the first is at this offset"
            );
        }
    }

    /// Records applied so far.
    pub(super) fn records(&self) -> u64 {
        self.lock().totals.records
    }

    pub(super) fn set_partitions(&self, partitions: BTreeMap<TopicPartition, PartitionStatus>) {
        self.lock().partitions = partitions;
    }

    /// A partition that was given back is not shown any more.
    pub(super) fn forget(&self, partition: &TopicPartition) {
        self.clear(&partition.to_string());
        self.lock().partitions.remove(partition);
    }

    /// What is measured of each partition, as `/metrics` has it.
    pub fn partition_gauges(&self) -> String {
        gauges::render(&self.lock().partitions.values())
    }

    pub fn partitions(&self) -> Vec<PartitionStatus> {
        self.lock().partitions.values().cloned().collect()
    }

    pub fn to_json(&self, now_ms: i64) -> serde_json::Value {
        let readiness = self.readiness();
        let inner = self.lock();
        let lag: i64 = inner.partitions.values().map(|partition| partition.lag_records).sum();
        serde_json::json!({
            "ready": readiness.is_ok(),
            "not_ready_because": readiness.err(),
            "totals": inner.totals,
            "most_uncounted": inner.uncounted.is_most(inner.totals.events, now_ms),
            "dead_letters": { "to": self.dead_letters_to, "reasons": inner.uncounted.to_json() },
            "lag_records": lag,
            "partitions": inner.partitions.values().collect::<Vec<_>>(),
        })
    }
}
