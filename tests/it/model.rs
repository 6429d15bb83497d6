//! The worker against the memory broker and the memory store, with faults: whatever happens, the
//! counts are those of one fold over the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use traqq_core::model::{Checkpoint, Part, RecordBatch, TopicPartition};
use traqq_counts::Counts;
use traqq_counts::compile::{Folded, Folder, Plan};
use traqq_counts::mapping::{Rules, Writes};
use traqq_counts::store::memory::{Fault, MemoryStore};
use traqq_counts::store::{Meta, Store};
use traqq_log::Start;
use traqq_log::memory::MemoryBroker;
use traqq_pipeline::{Config, DeadLetters, Execution, Status, Worker, WorkerError};

const TOPIC: &str = "events";
pub const NOW_MS: i64 = 1_700_000_000_000;

/// A small generator, so that a failing seed can be run again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn plan() -> Arc<Plan> {
    let rules: Rules = serde_json::from_str(
        r#"{"mapping":{"bitmap":["ip"],"bitmap_by":[{"key":"geo","of":"ip"}],"add":["event","geo"],
            "add_value":[{"key":"event","add_key":"amount"}],"top":["url"]},
            "buckets":{"hour":true,"retention":{"d":"forever","h":"forever","m":"forever"}}}"#,
    )
    .unwrap();
    Arc::new(Plan::new(rules.validate().unwrap()))
}

/// Counts of [`plan`] in a store.
pub fn counts(store: Arc<dyn Store>, prefix: &str) -> Arc<Counts> {
    let tags = traqq_counts::store::redis::lane_tags(store.lanes());
    Arc::new(Counts::new(plan(), store, "g", prefix, tags, Config::default().batch_operations))
}

pub fn status() -> Arc<Status> {
    Arc::new(Status::of::<Counts>("discard"))
}

pub fn event(random: &mut Random) -> Vec<u8> {
    let (event, geo, url) = (random.below(5), random.below(4), random.below(50));
    let (ip, amount) = (random.below(500), random.below(100_000));
    let second = NOW_MS / 1000 - random.below(3 * 86_400) as i64;
    match random.below(50) {
        0 => b"not json".to_vec(),
        _ => format!(
            r#"{{"event":"e{event}","geo":"g{geo}","url":"/{url}","ip":"10.0.0.{ip}","amount":{amount}.5,"ts":{second}}}"#
        )
        .into_bytes(),
    }
}

pub struct Harness {
    pub broker: MemoryBroker,
    pub store: MemoryStore,
    partitions: i32,
}

pub struct Running {
    pub member: u64,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    pub async fn stop(self) -> Result<(), WorkerError> {
        self.shutdown.send_replace(true);
        self.task.await.unwrap()
    }

    /// As kill -9 does: nothing is drained, nothing is said.
    pub fn kill(self, broker: &MemoryBroker) {
        self.task.abort();
        broker.expire(self.member);
    }
}

impl Harness {
    pub fn new(partitions: i32, lanes: usize) -> Self {
        Self { broker: MemoryBroker::new(TOPIC, partitions), store: MemoryStore::new(lanes), partitions }
    }

    pub fn partition(&self, partition: i32) -> TopicPartition {
        TopicPartition::new(TOPIC, partition)
    }

    pub fn worker(&self) -> Running {
        self.worker_with(|_| {})
    }

    pub fn worker_with(&self, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = Config {
            batch_events: 100,
            batch_age_ms: 5,
            fold_threads: 2,
            position_check_ms: 100,
            broker_commit_ms: 50,
            drain_timeout_ms: 2_000,
            ..Config::default()
        };
        change(&mut config);
        let consumer = self.broker.consumer();
        let member = consumer.member();
        let (shutdown, watch) = watch::channel(false);
        let worker = Worker {
            config,
            projection: counts(Arc::new(self.store.clone()), "p"),
            group: "g".to_owned(),
            start: Start::Earliest,
            consumer: Box::new(consumer),
            dead_letters: DeadLetters::Publish(Arc::new(self.broker.clone())),
            status: status(),
            shutdown: watch,
            now_ms: || NOW_MS,
            execution: Execution::Threads,
        };
        Running { member, shutdown, task: tokio::spawn(worker.run()) }
    }

    pub fn append(&self, random: &mut Random, count: usize) {
        for _ in 0..count {
            let partition = self.partition(random.below(self.partitions as u64) as i32);
            if random.below(20) == 0 {
                self.broker.append_hidden(&partition);
            } else {
                self.broker.append(&partition, NOW_MS, &event(random));
            }
        }
    }

    /// Adds a partition.
    pub fn grow(&mut self) {
        self.broker.append_hidden(&self.partition(self.partitions));
        self.partitions += 1;
    }

    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> {
        (0..self.partitions).map(|partition| self.partition(partition))
    }

    /// Whether the stored positions are at the ends of the log.
    pub async fn is_done(&self) -> bool {
        for index in 0..self.partitions {
            let partition = self.partition(index);
            let positions = self.store.positions(partition.lane(self.store.lanes())).await.unwrap();
            if positions.get(&partition).map(|stored| stored.position) != Some(self.broker.high(&partition)) {
                return false;
            }
        }
        true
    }

    pub async fn wait_until_done(&self, context: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_done().await {
            assert!(Instant::now() < deadline, "{context}: the positions do not reach the ends of the log");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A fold over the whole log by one thread, into a store of its own.
    pub async fn replay(&self) -> MemoryStore {
        use traqq_log::{Consumer, Event, Opening};
        let lanes = self.store.lanes();
        let reference = MemoryStore::new(lanes);
        let plan = plan();
        let mut meta = Meta::new(&plan.rules, "g", vec![String::new(); lanes]);
        meta.starts = (0..self.partitions).map(|index| (self.partition(index), 0)).collect();
        reference.create(&meta).await.unwrap();
        let mut folder = Folder::new(Arc::clone(&plan), usize::MAX);
        for index in 0..self.partitions {
            let partition = self.partition(index);
            let mut consumer = self.broker.consumer();
            consumer.open(&[Opening { partition: partition.clone(), offset: 0, position: 0, generation: 0 }]).unwrap();
            let events = consumer.poll(Duration::ZERO, usize::MAX).unwrap();
            consumer.close();
            let records: Vec<RecordBatch> = events
                .into_iter()
                .filter_map(|event| if let Event::Records(records) = event { Some(records) } else { None })
                .collect();
            let mut session = reference.session(partition.lane(lanes)).await.unwrap();
            for records in records {
                for folded in folder.fold(&[Part { records, from: Checkpoint::start(0) }]) {
                    let outcome = session.commit(Arc::new(folded.batch)).await.await.unwrap();
                    assert!(matches!(outcome, traqq_counts::store::Outcome::Applied(_)), "{outcome:?}");
                }
            }
        }
        reference
    }

    pub async fn assert_exact(&self, context: &str) {
        let reference = self.replay().await;
        assert!(self.store.same_counts(&reference), "{context}: the counts differ from a replay of the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_counts_a_log() {
    let harness = Harness::new(4, 1);
    harness.append(&mut Random(1), 5_000);
    let worker = harness.worker();
    harness.wait_until_done("one worker").await;
    worker.stop().await.unwrap();
    harness.assert_exact("one worker").await;
    assert!(!harness.broker.dead_letters().is_empty());
    let mark = &harness.broker.marks()[0];
    assert_eq!((mark.note.as_str(), mark.position), ("traqq prefix=p start=0", harness.broker.high(&mark.partition)));
}

/// Random schedules of everything that can go wrong, several workers, one and three lanes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_exact_whatever_happens() {
    for seed in 1..=12_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let harness = Harness::new(4, if seed % 3 == 0 { 3 } else { 1 });
        let mut workers = vec![harness.worker(), harness.worker()];
        let mut snapshots = Vec::new();
        for _ in 0..60 {
            let count = random.below(200) as usize;
            harness.append(&mut random, count);
            match random.below(9) {
                0 => harness.store.inject(&[Fault::LoseReply]),
                1 => harness.store.inject(&[Fault::Break, Fault::LoseReply]),
                2 => harness.store.inject(&[Fault::Refuse]),
                3 => snapshots.push(harness.store.snapshot()),
                4 if !snapshots.is_empty() => harness.store.restore(snapshots.pop().unwrap()),
                5 if workers.len() < 4 => workers.push(harness.worker()),
                6 if workers.len() > 1 => workers.remove(0).stop().await.unwrap(),
                7 if workers.len() > 1 => workers.remove(0).kill(&harness.broker),
                // A zombie: the group has given its partitions away, and it has not noticed.
                8 => harness.broker.expire(workers[0].member),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(random.below(20))).await;
        }
        let context = format!("seed {seed}");
        harness.wait_until_done(&context).await;
        for worker in workers {
            worker.stop().await.unwrap();
        }
        harness.assert_exact(&context).await;
    }
}

/// One new partition without a leader sent its lane back to the stored positions every few seconds,
/// and no other new one was begun with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_without_a_leader_keeps_no_other_waiting() {
    let (mut harness, mut random) = (Harness::new(2, 1), Random(3));
    harness.append(&mut random, 500);
    let worker = harness.worker();
    harness.wait_until_done("before").await;
    let (silent, other) = (harness.partition(2), harness.partition(3));
    harness.broker.set_silent(&silent, true);
    harness.grow();
    harness.grow();
    harness.append(&mut random, 500);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let positions = harness.store.positions(0).await.unwrap();
        assert!(!positions.contains_key(&silent), "{positions:?}");
        if positions.get(&other).map(|stored| stored.position) == Some(harness.broker.high(&other)) {
            break;
        }
        assert!(Instant::now() < deadline, "the other one waits: {positions:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    harness.broker.set_silent(&silent, false);
    harness.wait_until_done("it has a leader").await;
    worker.stop().await.unwrap();
    harness.assert_exact("it has a leader").await;
}

/// A producer whose clock counts nanoseconds.
#[test]
fn a_broker_timestamp_beyond_the_calendar_is_a_dead_letter() {
    let mut records = RecordBatch::new(TopicPartition::new(TOPIC, 0), 1);
    for (offset, timestamp) in
        [253_402_300_799_999, 253_402_300_800_000, NOW_MS * 1_000_000, i64::MAX].iter().enumerate()
    {
        records.push(offset as i64, *timestamp, None, Some(br#"{"event":"e"}"#));
    }
    records.push(4, i64::MAX, None, Some(br#"{"event":"e","ts":1700000000}"#));
    let folded = Folder::new(plan(), 1_000).fold(&[Part { records, from: Checkpoint::start(0) }]);
    let letters: Vec<(i64, &str)> =
        folded[0].dead_letters.iter().map(|letter| (letter.offset, letter.reason.name())).collect();
    assert_eq!(letters, [1, 2, 3].map(|offset| (offset, "time_unreadable")));
    assert_eq!(folded[0].stats.events, 2);
}

/// Each metric and bucket has a copy of a label: long ones, of which only the first copy was
/// counted, took ten times what they were taken for.
#[test]
fn a_batch_is_cut_before_its_labels_hold_too_much() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let rules = format!(r#"{{"mapping":{{"add":{names:?}}},"buckets":{{"hour":true}}}}"#);
    let rules: Rules = serde_json::from_str(&rules).unwrap();
    let plan = Arc::new(Plan::new(rules.validate().unwrap()));
    let mut records = RecordBatch::new(TopicPartition::new(TOPIC, 0), 1);
    for offset in 0..2000 {
        let long = "x".repeat(400);
        let fields: Vec<String> = names.iter().map(|name| format!(r#""{name}":"{offset}{long}""#)).collect();
        let value = format!(r#"{{"event":"e",{}}}"#, fields.join(","));
        records.push(offset, NOW_MS, None, Some(value.as_bytes()));
    }
    let folded = Folder::new(plan, 1_000_000).fold(&[Part { records, from: Checkpoint::start(0) }]);
    for Folded { batch, .. } in &folded {
        let labels = |writes: &Writes| match writes {
            Writes::Count(values) => values.iter().map(|(label, _)| label.len()).sum(),
            _ => 0,
        };
        assert!(batch.writes.iter().map(|key| labels(&key.writes)).sum::<usize>() < 20 << 20);
    }
    let held: usize = folded.iter().map(Folded::bytes).sum();
    // 21 patterns, two buckets, some 800 bytes on average.
    assert!(folded.len() >= 4 && held > 2000 * 21 * 2 * 600, "{} batches, {held} bytes", folded.len());
    assert_eq!(folded.iter().map(|folded| folded.stats.records).sum::<u64>(), 2000);
}

/// What is folded is held until it is committed: long elements and dead letters cut a batch as
/// operations do.
#[test]
fn a_batch_is_cut_before_it_holds_too_much() {
    let mut records = RecordBatch::new(TopicPartition::new(TOPIC, 0), 1);
    for offset in 0..64 {
        let long = "x".repeat(1 << 20);
        let value = match offset % 2 {
            0 => format!(r#"{{"event":"e","ip":"{offset}{long}"}}"#),
            _ => format!("not json {long}"),
        };
        records.push(offset, NOW_MS, None, Some(value.as_bytes()));
    }
    let folded = Folder::new(plan(), 20_000).fold(&[Part { records, from: Checkpoint::start(0) }]);
    assert!(folded.len() >= 4, "{} batches", folded.len());
    assert!(folded.iter().all(|folded| folded.bytes() < 20 << 20));
    assert_eq!(folded.iter().map(|folded| folded.stats.records).sum::<u64>(), 64);
}
