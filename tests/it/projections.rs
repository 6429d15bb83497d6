//! Projections beside the counts: over the same log, each with a group, a ledger and a pace of its
//! own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use traqq_core::decode::{DeadLetter, Reason};
use traqq_core::model::{Checkpoint, Positions, Record, Span, TopicPartition};
use traqq_counts::store::Store;
use traqq_counts::store::memory::MemoryStore;
use traqq_disk::{Config as DataConfig, Database};
use traqq_log::local::{Config as LogConfig, LocalLog, rows};
use traqq_log::memory::MemoryBroker;
use traqq_log::{Appender, Consumer, Events, Producer, Start};
use traqq_pipeline::plain::{PlainBatch, PlainFold, PlainHeader};
use traqq_pipeline::{
    Batch, Compared, Config, CutPolicy, DeadLetters, Execution, Ledger, LedgerError, LedgerResult, Outcome, Permit,
    Projection, Session, Status, Worker, WorkerError,
};

use crate::model::{NOW_MS, Random, counts, event, status};

/// By partition: how many records, and the sum of their lengths.
type Lengths = BTreeMap<TopicPartition, (u64, u64)>;

fn measure(batch: &mut PlainBatch<Lengths>, range: &Span, record: &Record<'_>) {
    let value = record.value.unwrap_or_default();
    if value == b"not json" {
        return batch.refuse(DeadLetter::of_record(&range.partition, record, Reason::InvalidJson));
    }
    batch.grow(100);
    let of = batch.value.entry(range.partition.clone()).or_default();
    *of = (of.0 + 1, of.1 + value.len() as u64);
}

/// What the ledger holds.
#[derive(Clone, Default, PartialEq, Debug)]
struct State {
    header: Option<PlainHeader>,
    positions: Positions,
    lengths: Lengths,
}

/// A batch that waits for its group, and who waits for the answer.
type Waiting = (PlainBatch<Lengths>, oneshot::Sender<LedgerResult<Outcome<()>>>);

#[derive(Default)]
struct Inner {
    state: State,
    groups: u64,
    largest: usize,
}

/// A ledger in memory that groups commits: batches wait for so many, or for a while, and land
/// together or not at all.
#[derive(Clone)]
struct Grouped {
    inner: Arc<Mutex<Inner>>,
    size: usize,
    wait: Duration,
    /// Nothing lands and nothing is answered.
    is_stalled: Arc<AtomicBool>,
}

impl Grouped {
    fn new(size: usize, wait: Duration) -> Self {
        Self { inner: Arc::default(), size, wait, is_stalled: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn state(&self) -> State {
        self.lock().state.clone()
    }

    fn position(&self, partition: &TopicPartition) -> i64 {
        self.lock().state.positions.get(partition).map_or(-1, |at| at.position)
    }

    /// All of the group, or nothing; says which.
    fn land(&self, group: Vec<Waiting>) -> bool {
        let mut inner = self.lock();
        let mut next = inner.state.clone();
        let mut fits = true;
        for (batch, _) in &group {
            for range in batch.ranges() {
                fits &= next.positions.get(&range.partition) == Some(&range.from);
                next.positions.insert(range.partition.clone(), range.to);
            }
            for (partition, (records, bytes)) in &batch.value {
                let of = next.lengths.entry(partition.clone()).or_default();
                *of = (of.0 + records, of.1 + bytes);
            }
        }
        if fits {
            inner.state = next;
            inner.groups += 1;
            inner.largest = inner.largest.max(group.len());
        }
        drop(inner);
        for (_, answer) in group {
            let outcome = if fits { Outcome::Applied(()) } else { Outcome::Fenced(Vec::new()) };
            let _ = answer.send(Ok(outcome));
        }
        fits
    }
}

#[async_trait]
impl Ledger<Lengthy> for Grouped {
    fn lanes(&self) -> usize {
        1
    }

    async fn header(&self) -> LedgerResult<Option<PlainHeader>> {
        Ok(self.lock().state.header.clone())
    }

    async fn create(&self, header: &PlainHeader) -> LedgerResult<PlainHeader> {
        let mut inner = self.lock();
        if inner.state.header.is_none() {
            let start = |(partition, start): (&TopicPartition, &i64)| (partition.clone(), Checkpoint::start(*start));
            inner.state.positions = header.starts.iter().map(start).collect();
            inner.state.header = Some(header.clone());
        }
        Ok(inner.state.header.clone().unwrap())
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> LedgerResult<()> {
        let mut inner = self.lock();
        for (partition, start) in starts {
            inner.state.positions.entry(partition.clone()).or_insert(Checkpoint::start(*start));
            let header = inner.state.header.as_mut().ok_or_else(|| LedgerError::Retry("no header".into()))?;
            header.starts.entry(partition.clone()).or_insert(*start);
        }
        Ok(())
    }

    async fn positions(&self, _lane: usize) -> LedgerResult<Positions> {
        Ok(self.lock().state.positions.clone())
    }

    async fn set_position(&self, _: &TopicPartition, _: Option<Checkpoint>, _: Checkpoint) -> LedgerResult<bool> {
        Ok(false)
    }

    async fn session(&self, _lane: usize) -> LedgerResult<Box<dyn Session<Lengthy>>> {
        let group = Arc::new(Mutex::new(Some(Vec::new())));
        Ok(Box::new(GroupSession { ledger: self.clone(), group }))
    }
}

/// What waits in a session; `None` once a group did not fit, after which nothing of it may land.
type Group = Arc<Mutex<Option<Vec<Waiting>>>>;

struct GroupSession {
    ledger: Grouped,
    group: Group,
}

impl GroupSession {
    fn land(ledger: &Grouped, group: &Group) {
        let mut group = group.lock().unwrap();
        let waiting = group.as_mut().map(std::mem::take).unwrap_or_default();
        if !waiting.is_empty() && !ledger.land(waiting) {
            *group = None;
        }
    }
}

#[async_trait]
impl Session<Lengthy> for GroupSession {
    async fn stored(&mut self) -> LedgerResult<Option<(PlainHeader, Positions)>> {
        let state = self.ledger.state();
        Ok(state.header.map(|header| (header, state.positions)))
    }

    async fn commit(
        &mut self,
        batch: PlainBatch<Lengths>,
        permit: Permit,
    ) -> BoxFuture<'static, LedgerResult<Outcome<()>>> {
        let (answer, answered) = oneshot::channel();
        // It is written down, and needs no memory from here on.
        drop(permit);
        let is_full = {
            let mut group = self.group.lock().unwrap();
            let Some(group) = group.as_mut() else {
                return futures_util::future::ready(Ok(Outcome::Fenced(Vec::new()))).boxed();
            };
            group.push((batch, answer));
            if group.len() == 1 && self.ledger.size > 1 {
                let (ledger, group) = (self.ledger.clone(), Arc::clone(&self.group));
                tokio::spawn(async move {
                    tokio::time::sleep(ledger.wait).await;
                    while ledger.is_stalled.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    Self::land(&ledger, &group);
                });
            }
            group.len() >= self.ledger.size
        };
        if is_full && !self.ledger.is_stalled.load(Ordering::Relaxed) {
            Self::land(&self.ledger, &self.group);
        }
        async move { answered.await.unwrap_or_else(|_| Err(LedgerError::Reconnect("the session is gone".into()))) }
            .boxed()
    }

    async fn flush(&mut self) {
        if !self.ledger.is_stalled.load(Ordering::Relaxed) {
            Self::land(&self.ledger, &self.group);
        }
    }
}

/// The projection: lengths of records.
struct Lengthy(Grouped);

impl Projection for Lengthy {
    const NAME: &'static str = "lengths";

    type Batch = PlainBatch<Lengths>;
    type Report = ();
    type Fold = PlainFold<Lengths>;
    type Header = PlainHeader;

    fn fold(&self) -> PlainFold<Lengths> {
        PlainFold::new(measure)
    }

    fn ledger(&self) -> &dyn Ledger<Self> {
        &self.0
    }

    fn ledger_name(&self) -> &str {
        "lengths"
    }

    fn new_header(&self, _now_ms: i64) -> PlainHeader {
        PlainHeader::new("lengths", "1")
    }

    fn difference(&self, stored: &PlainHeader, compared: Compared) -> Option<String> {
        self.new_header(0).difference(stored, compared)
    }

    fn cut_policy(&self, config: &Config) -> CutPolicy {
        CutPolicy { waits_for_idle_lane: false, in_flight_max: 1000, ..config.cut_policy() }
    }
}

struct Running {
    status: Arc<Status>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Result<(), WorkerError>>,
}

fn start<P: Projection>(
    projection: Arc<P>,
    consumer: impl Consumer + 'static,
    dead_letters: DeadLetters,
    status: Arc<Status>,
) -> Running {
    let (shutdown, watch) = watch::channel(false);
    let worker = Worker {
        config: Config {
            batch_events: 20,
            batch_age_ms: 20,
            fold_threads: 2,
            broker_commit_ms: 500,
            drain_timeout_ms: 5_000,
            ..Config::default()
        },
        projection,
        group: P::NAME.to_owned(),
        start: Start::Earliest,
        consumer: Box::new(consumer),
        dead_letters,
        status: Arc::clone(&status),
        shutdown: watch,
        now_ms: || NOW_MS,
        execution: Execution::Tasks,
    };
    Running { status, shutdown, task: tokio::spawn(worker.run()) }
}

fn lengths(ledger: &Grouped, consumer: impl Consumer + 'static) -> Running {
    let status = Arc::new(Status::of::<Lengthy>("left to the counts"));
    start(Arc::new(Lengthy(ledger.clone())), consumer, DeadLetters::LeftToAnother, status)
}

impl Running {
    async fn stop(self) {
        self.shutdown.send_replace(true);
        self.task.await.unwrap().unwrap();
    }
}

/// In simulated time, with the metrics of this test alone.
fn simulate(seed: u64, test: impl AsyncFnOnce(PrometheusHandle)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let recorder = PrometheusBuilder::new().build_recorder();
    traqq_pipeline::seed(seed);
    metrics::with_local_recorder(&recorder, || runtime.block_on(test(recorder.handle())));
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A counter or gauge, of a projection.
fn metric(metrics: &PrometheusHandle, name: &str, projection: &str) -> f64 {
    let label = format!("projection=\"{projection}\"");
    let of = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(&label);
    metrics.render().lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Members come and go, are thrown out, and are killed with batches under way that wait for their
/// group; the sums are those of the log.
#[test]
fn groups_of_commits_are_exact_whatever_happens() {
    for seed in 1..=200_u64 {
        simulate(seed, async |_| {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let broker = MemoryBroker::new("events", 3);
            let ledger = Grouped::new(1 + random.below(20) as usize, Duration::from_millis(10 + random.below(5_000)));
            let partitions: Vec<TopicPartition> = (0..3).map(|number| TopicPartition::new("events", number)).collect();
            let mut expected = Lengths::new();
            let mut running = Vec::new();
            for _ in 0..30 {
                for _ in 0..random.below(60) {
                    let partition = &partitions[random.below(3) as usize];
                    let value = event(&mut random);
                    broker.append(partition, NOW_MS, &value);
                    if value != b"not json" {
                        let of = expected.entry(partition.clone()).or_default();
                        *of = (of.0 + 1, of.1 + value.len() as u64);
                    }
                }
                match random.below(6) {
                    0 | 1 if running.len() < 3 => {
                        let consumer = broker.consumer();
                        running.push((consumer.member(), lengths(&ledger, consumer)));
                    }
                    2 if running.len() > 1 => running.remove(0).1.stop().await,
                    3 if !running.is_empty() => {
                        let (member, killed) = running.remove(0);
                        killed.task.abort();
                        broker.expire(member);
                    }
                    4 if !running.is_empty() => broker.expire(running[0].0),
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(random.below(1_000))).await;
            }
            let consumer = broker.consumer();
            running.push((consumer.member(), lengths(&ledger, consumer)));
            let is_done = || partitions.iter().all(|name| ledger.position(name) == broker.high(name));
            until(&format!("seed {seed}: all is read"), is_done).await;
            assert_eq!(ledger.state().lengths, expected, "seed {seed}");
            for (_, running) in running {
                running.stop().await;
            }
        });
    }
}

/// Withheld answers keep no memory, and nothing waits for a group to fill when a worker stops.
#[test]
fn a_group_gives_memory_back_before_it_lands_and_lands_at_once_when_the_worker_stops() {
    simulate(1, async |metrics| {
        let broker = MemoryBroker::new("events", 1);
        let partition = TopicPartition::new("events", 0);
        let ledger = Grouped::new(1000, Duration::from_secs(3600));
        let worker = lengths(&ledger, broker.consumer());
        for _ in 0..10 {
            for _ in 0..30 {
                broker.append(&partition, NOW_MS, b"0123456789");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((ledger.position(&partition), ledger.lock().groups), (0, 0), "no group is full");
        assert_eq!(metric(&metrics, "traqq_in_flight_bytes", "lengths"), 0.0);
        assert_eq!(metric(&metrics, "traqq_records_total", "lengths"), 0.0, "nothing was answered");
        let begun = tokio::time::Instant::now();
        worker.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        let (groups, largest) = {
            let inner = ledger.lock();
            (inner.groups, inner.largest)
        };
        assert!(groups == 1 && largest >= 10, "{groups} groups, {largest} batches in the largest");
        assert_eq!(ledger.state().lengths[&partition], (300, 3000));
        assert_eq!(metric(&metrics, "traqq_records_total", "lengths"), 300.0);
    });
}

/// Partitions that are given back are waited for by the whole group.
#[test]
fn a_group_lands_at_once_when_partitions_are_given_back() {
    simulate(2, async |_| {
        let broker = MemoryBroker::new("events", 2);
        let partitions = [0, 1].map(|number| TopicPartition::new("events", number));
        let ledger = Grouped::new(1000, Duration::from_secs(3600));
        let first = lengths(&ledger, broker.consumer());
        for partition in &partitions {
            (0..30).for_each(|_| _ = broker.append(partition, NOW_MS, b"x"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ledger.position(&partitions[0]), 0);
        // It takes one of the two.
        let second = lengths(&ledger, broker.consumer());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(partitions.iter().any(|name| ledger.position(name) == 30), "{:?}", ledger.state().positions);
        first.stop().await;
        second.stop().await;
        assert_eq!(ledger.state().lengths.values().map(|(records, _)| records).sum::<u64>(), 60);
    });
}

fn open_log(directory: &Path) -> LocalLog {
    let config = DataConfig { directory: directory.join("data"), ..DataConfig::default() };
    let database = Database::open(&config, 8 << 20, &[rows::TREE]).unwrap();
    LocalLog::open(&database, &LogConfig::default(), true, 1 << 20, || NOW_MS).unwrap()
}

/// One projection that stands still for minutes is nothing the other notices, but that the log is
/// kept for it; each has its own status, metrics and committed positions, and dead letters are
/// published once.
#[test]
fn a_projection_that_stalls_for_minutes_keeps_no_other_waiting() {
    simulate(3, async |metrics| {
        let directory = tempfile::tempdir().unwrap();
        let log = open_log(directory.path());
        let partition = TopicPartition::new("events", 0);
        let store = MemoryStore::new(1);
        let ledger = Grouped::new(5, Duration::from_millis(200));
        let published = MemoryBroker::new("dead-letters", 1);
        let letters: Arc<dyn Producer> = Arc::new(published.clone());
        let counting =
            start(counts(Arc::new(store.clone()), "p"), log.consumer(), DeadLetters::Publish(letters), status());
        let measuring = lengths(&ledger, log.reader("lengths").unwrap());
        let mut random = Random(7);
        let (mut appended, mut bad, mut bytes) = (0, 0, 0);
        let mut append = async |count: usize| {
            let mut events = Events::default();
            for _ in 0..count {
                let value = event(&mut random);
                if value == b"not json" {
                    bad += 1;
                } else {
                    bytes += value.len() as u64;
                }
                events.push(None, &value);
            }
            appended += count as i64;
            log.append(events, None).await.unwrap();
            (appended, bad, bytes)
        };
        let counted = async |position: i64| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            while store.positions(0).await.unwrap().get(&partition).map(|at| at.position) != Some(position) {
                assert!(tokio::time::Instant::now() < deadline, "the counts wait for {position}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (end, ..) = append(500).await;
        counted(end).await;
        until("both are there", || ledger.position(&partition) == end).await;
        ledger.is_stalled.store(true, Ordering::Relaxed);
        let stood = end;
        // Five minutes, in which the counts go on as if nothing were.
        let mut end = end;
        for _ in 0..60 {
            (end, ..) = append(50).await;
            counted(end).await;
            assert_eq!(counting.status.readiness(), Ok(()));
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        assert_eq!(ledger.position(&partition), stood);
        let (theirs, ours) = (counting.status.partitions(), measuring.status.partitions());
        assert_eq!((theirs[0].lag_records, ours[0].lag_records), (0, end - stood));
        ledger.is_stalled.store(false, Ordering::Relaxed);
        until("it catches up", || ledger.position(&partition) == end).await;
        let (end, bad, bytes) = append(100).await;
        counted(end).await;
        until("both are there", || ledger.position(&partition) == end).await;
        assert_eq!(ledger.state().lengths[&partition], (end as u64 - bad, bytes));
        assert!(bad > 10, "{bad}");
        assert_eq!(published.dead_letters().len() as u64, bad);
        for (name, projection, expected) in [
            ("traqq_dead_letters_total", "counts", bad),
            ("traqq_skipped_events_total", "counts", 0),
            ("traqq_dead_letters_total", "lengths", 0),
            ("traqq_skipped_events_total", "lengths", bad),
            ("traqq_events_total", "counts", end as u64 - bad),
            ("traqq_events_total", "lengths", end as u64 - bad),
            ("traqq_records_total", "lengths", end as u64),
        ] {
            assert_eq!(metric(&metrics, name, projection), expected as f64, "{name} of {projection}");
        }
        for running in [&counting, &measuring] {
            let json = running.status.to_json(NOW_MS);
            assert_eq!(json["totals"]["dead_letters"], bad);
            assert_eq!(json["dead_letters"]["reasons"][0]["reason"], "invalid_json");
        }
        // They are shown once a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let statuses = traqq_pipeline::Statuses::new(vec![Arc::clone(&counting.status), Arc::clone(&measuring.status)]);
        let json = statuses.to_json(NOW_MS);
        assert_eq!(json["projections"]["lengths"]["totals"]["records"], end);
        assert_eq!(json["totals"]["tombstones"], 0);
        let gauges = statuses.partition_gauges();
        assert_eq!(gauges.matches("# TYPE traqq_position gauge").count(), 1);
        for projection in ["counts", "lengths"] {
            let line =
                format!("traqq_position{{projection=\"{projection}\",topic=\"events\",partition=\"0\"}} {end}\n");
            assert!(gauges.contains(&line), "{gauges}");
        }
        counting.stop().await;
        measuring.stop().await;
        for (mut reader, prefix) in [(log.consumer(), "p"), (log.reader("lengths").unwrap(), "lengths")] {
            let committed = &reader.marks(std::slice::from_ref(&partition)).unwrap()[0];
            assert_eq!((committed.position, &*committed.note), (end, &*format!("traqq prefix={prefix} start=0")));
        }
        log.close().await;
    });
}
