//! What a person may look at while a worker runs: readiness and partitions.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::model::TopicPartition;
use crate::telemetry::names;

#[derive(Clone, Default, PartialEq, Debug, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    pub state: &'static str,
    /// Next offset to apply.
    pub position: i64,
    pub end: i64,
    pub lag_records: i64,
    pub lag_seconds: f64,
    /// Why it waits for an operator.
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
}

impl Default for Status {
    fn default() -> Self {
        let status = Self { inner: Mutex::default() };
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
