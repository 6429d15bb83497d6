//! What a person may look at while a worker runs: readiness and partitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;

use super::gauges;
use super::pulse::Pulse;
use crate::model::TopicPartition;
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

#[derive(Default)]
struct Inner {
    /// Why the worker is not ready, by what is affected.
    obstacles: BTreeMap<String, String>,
    partitions: BTreeMap<TopicPartition, PartitionStatus>,
    records: u64,
    events: u64,
    batches: u64,
}

pub struct Status {
    inner: Mutex<Inner>,
    pub(super) pulse: Pulse,
}

impl Default for Status {
    fn default() -> Self {
        let status = Self { inner: Mutex::default(), pulse: Pulse::default() };
        status.obstruct("worker", "starting");
        status
    }
}

impl Status {
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

    pub(super) fn applied(&self, records: u64, events: u64) {
        let mut inner = self.lock();
        inner.records += records;
        inner.events += events;
        inner.batches += 1;
    }

    /// Records applied so far.
    pub(super) fn records(&self) -> u64 {
        self.lock().records
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
        gauges::render(self.lock().partitions.values())
    }

    pub fn partitions(&self) -> Vec<PartitionStatus> {
        self.lock().partitions.values().cloned().collect()
    }

    pub fn to_json(&self) -> serde_json::Value {
        let readiness = self.readiness();
        let inner = self.lock();
        let lag: i64 = inner.partitions.values().map(|partition| partition.lag_records).sum();
        serde_json::json!({
            "ready": readiness.is_ok(),
            "not_ready_because": readiness.err(),
            "totals": { "records": inner.records, "events": inner.events, "batches": inner.batches },
            "lag_records": lag,
            "partitions": inner.partitions.values().collect::<Vec<_>>(),
        })
    }
}
