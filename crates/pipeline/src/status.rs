//! What a person may look at while workers run: readiness, partitions, totals, of each projection
//! by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;

use super::gauges;
use super::projection::{Batch, Intake, Observed, Projection};
use super::pulse::Pulse;
use super::run::lane_name;
use super::sender::DeadLetters;
use super::uncounted::{Line, Sighting, Tally, Uncounted};
use crate::names;
use traqq_core::decode::Reason;
use traqq_core::model::TopicPartition;

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

/// What may keep a worker from being ready, in the order in which it is shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Obstacle {
    /// It has begun, and not all of its lanes have a session yet.
    Start,
    /// It has been asked to stop.
    Drain,
    Broker,
    Lane(usize),
    DeadLetters,
    Partition(TopicPartition),
}

impl Obstacle {
    /// For those who are not told addresses and topics.
    const fn class(&self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Drain => "draining",
            Self::Broker => "broker",
            Self::Lane(_) => "store",
            Self::DeadLetters => "dead letters",
            Self::Partition(_) => "partition",
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start | Self::Drain => f.write_str("worker"),
            Self::Broker => f.write_str("broker"),
            Self::Lane(lane) => f.write_str(&lane_name(*lane)),
            Self::DeadLetters => f.write_str("dead letters"),
            Self::Partition(partition) => partition.fmt(f),
        }
    }
}

/// Why a process is not what a probe asks for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unfit {
    /// What is affected, for those who are not told addresses and topics: `starting`, `draining`,
    /// `broker`, `store`, `partition`, `dead letters` or `worker hangs`, joined by commas.
    pub class: String,
    /// For the operator.
    pub reason: String,
}

#[derive(Default)]
struct Inner {
    /// Why the worker is not ready.
    obstacles: BTreeMap<Obstacle, String>,
    partitions: BTreeMap<TopicPartition, PartitionStatus>,
    /// What became of records since the process started, by the names of the metrics without
    /// `traqq_` and `_total`.
    totals: BTreeMap<&'static str, u64>,
    uncounted: Uncounted,
}

/// The status of one projection.
pub struct Status {
    projection: &'static str,
    inner: Mutex<Inner>,
    /// Where dead letters go, for a person.
    dead_letters_to: String,
    pub(super) pulse: Pulse,
}

/// The counters that every projection has.
fn numbers(intake: Intake, batches: u64) -> [(&'static str, u64); 4] {
    let Intake { records, bytes, events } = intake;
    [(names::RECORDS, records), (names::BYTES, bytes), (names::EVENTS, events), (names::BATCHES, batches)]
}

/// Counters with a fixed set of labels are there from the start: a rate needs a zero to rise from.
pub fn announce<P: Projection>(dead_letters: &DeadLetters) {
    let reasons = Reason::ALL.map(|reason| (dead_letters.metric(), "reason", reason.name()));
    let classes = ["retry", "reconnect", "stop"].map(|class| (names::STORE_ERRORS, "class", class));
    let fences = ["ahead", "unchanged", "behind", "absent"].map(|stored| (names::FENCES, "stored", stored));
    let changes = ["assigned", "revoked", "lost"].map(|change| (names::REBALANCES, "change", change));
    for (metric, label, value) in reasons.into_iter().chain(classes).chain(fences).chain(changes) {
        metrics::counter!(metric, label => value, "projection" => P::NAME).increment(0);
    }
}

/// The name of a counter's total in the status.
fn total_name(metric: &'static str) -> &'static str {
    let name = metric.strip_prefix("traqq_").unwrap_or(metric);
    name.strip_suffix("_total").unwrap_or(name)
}

impl Status {
    /// `dead_letters_to` says where dead letters go, for a person.
    pub fn of<P: Projection>(dead_letters_to: &str) -> Self {
        let status = Self {
            projection: P::NAME,
            inner: Mutex::default(),
            dead_letters_to: dead_letters_to.to_owned(),
            pulse: Pulse::default(),
        };
        let none = [<P::Batch as Batch>::Stats::default().numbers(), P::Report::default().numbers()].concat();
        let all = numbers(Intake::default(), 0).into_iter().chain(none).chain([(names::DEAD_LETTERS, 0)]);
        status.lock().totals.extend(all.map(|(metric, none)| (total_name(metric), none)));
        status.obstruct(Obstacle::Start, "starting");
        status
    }

    /// The name of the projection.
    pub const fn projection(&self) -> &'static str {
        self.projection
    }

    /// Held for a few instructions; nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn obstruct(&self, obstacle: Obstacle, why: &str) {
        let mut inner = self.lock();
        inner.obstacles.insert(obstacle, why.to_owned());
        metrics::gauge!(names::READY, "projection" => self.projection).set(0.0);
    }

    pub fn clear(&self, obstacle: &Obstacle) {
        let mut inner = self.lock();
        inner.obstacles.remove(obstacle);
        metrics::gauge!(names::READY, "projection" => self.projection).set(if inner.obstacles.is_empty() {
            1.0
        } else {
            0.0
        });
    }

    pub fn readiness(&self) -> Result<(), Unfit> {
        let inner = self.lock();
        if inner.obstacles.is_empty() {
            return Ok(());
        }
        let classes: BTreeSet<&str> = inner.obstacles.keys().map(Obstacle::class).collect();
        let lines: Vec<String> = inner.obstacles.iter().map(|(obstacle, why)| format!("{obstacle}: {why}")).collect();
        Err(Unfit { class: classes.into_iter().collect::<Vec<_>>().join(", "), reason: lines.join("; ") })
    }

    /// `Err` says what hangs; only a restart helps.
    pub fn liveness(&self) -> Result<(), Unfit> {
        self.pulse.check().map_err(|hang| Unfit { class: "worker hangs".to_owned(), reason: hang.to_string() })
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

    /// Accounts for a batch that was applied, in the metrics and in the totals, and logs what of it
    /// was not counted.
    pub(super) fn applied(
        &self,
        intake: Intake,
        observed: impl IntoIterator<Item = (&'static str, u64)>,
        dead_letters: Tally,
        letters_metric: &'static str,
        now_ms: i64,
    ) {
        dead_letters.count_as(letters_metric, self.projection);
        let mut inner = self.lock();
        let Inner { totals, uncounted, .. } = &mut *inner;
        for (metric, more) in numbers(intake, 1).into_iter().chain(observed) {
            metrics::counter!(metric, "projection" => self.projection).increment(more);
            *totals.entry(total_name(metric)).or_default() += more;
        }
        let lines = uncounted.add(intake.events, dead_letters, now_ms);
        totals.insert(total_name(names::DEAD_LETTERS), uncounted.count());
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
        self.lock().totals.get(total_name(names::RECORDS)).copied().unwrap_or_default()
    }

    pub(super) fn set_partitions(&self, partitions: BTreeMap<TopicPartition, PartitionStatus>) {
        let in_state = |state| partitions.values().filter(|status| status.state == state).count();
        for (gauge, count) in [
            (names::PARTITIONS, partitions.len()),
            (names::PARTITIONS_STOPPED, in_state("stopped")),
            (names::PARTITIONS_UNREADABLE, in_state("unreadable")),
        ] {
            metrics::gauge!(gauge, "projection" => self.projection).set(count as f64);
        }
        self.lock().partitions = partitions;
    }

    /// A partition that was given back is not shown any more.
    pub(super) fn forget(&self, partition: &TopicPartition) {
        self.clear(&Obstacle::Partition(partition.clone()));
        self.lock().partitions.remove(partition);
    }

    pub fn partitions(&self) -> Vec<PartitionStatus> {
        self.lock().partitions.values().cloned().collect()
    }

    pub fn to_json(&self, now_ms: i64) -> serde_json::Value {
        let readiness = self.readiness();
        let inner = self.lock();
        let events = inner.totals.get(total_name(names::EVENTS)).copied().unwrap_or_default();
        let lag: i64 = inner.partitions.values().map(|partition| partition.lag_records).sum();
        serde_json::json!({
            "ready": readiness.is_ok(),
            "not_ready_because": readiness.err().map(|unfit| unfit.reason),
            "totals": inner.totals,
            "most_uncounted": inner.uncounted.is_most(events, now_ms),
            "dead_letters": { "to": self.dead_letters_to, "reasons": inner.uncounted.to_json() },
            "lag_records": lag,
            "partitions": inner.partitions.values().collect::<Vec<_>>(),
        })
    }
}

/// The status of a process: that of its projections. The first one is the one that was there before
/// there were others.
pub struct Statuses(Vec<Arc<Status>>);

impl Statuses {
    /// At least one.
    pub fn new(projections: Vec<Arc<Status>>) -> Self {
        assert!(!projections.is_empty(), "a process has a projection");
        Self(projections)
    }

    /// Those of all projections, with their names where there are several.
    fn all(&self, probe: impl Fn(&Status) -> Result<(), Unfit>) -> Result<(), Unfit> {
        let is_alone = self.0.len() == 1;
        let (mut classes, mut reasons) = (BTreeSet::new(), Vec::new());
        for status in &self.0 {
            if let Err(Unfit { class, reason }) = probe(status) {
                classes.insert(class);
                reasons.push(if is_alone { reason } else { format!("{}: {reason}", status.projection) });
            }
        }
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Unfit { class: classes.into_iter().collect::<Vec<_>>().join(", "), reason: reasons.join("; ") })
    }

    /// `Ok` when all projections are ready.
    pub fn readiness(&self) -> Result<(), Unfit> {
        self.all(Status::readiness)
    }

    /// `Err` says what hangs; only a restart helps.
    pub fn liveness(&self) -> Result<(), Unfit> {
        self.all(Status::liveness)
    }

    /// What is measured of each partition, as `/metrics` has it.
    pub fn partition_gauges(&self) -> String {
        let partitions = |status: &Arc<Status>| (status.projection, status.partitions());
        gauges::render(&self.0.iter().map(partitions).collect::<Vec<_>>())
    }

    /// The status of the first projection, and those of the others by their names in `projections`.
    pub fn to_json(&self, now_ms: i64) -> serde_json::Value {
        let mut all = self.0[0].to_json(now_ms);
        let readiness = self.readiness();
        all["ready"] = readiness.is_ok().into();
        all["not_ready_because"] = readiness.err().map(|unfit| unfit.reason).into();
        let others = self.0[1..].iter().map(|status| (status.projection.to_owned(), status.to_json(now_ms)));
        all["projections"] = others.collect::<serde_json::Map<_, _>>().into();
        all
    }
}
