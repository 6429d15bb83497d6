//! The worker over the memory broker and a real Redis, with what goes wrong with a Redis: whatever
//! happens, the store holds a single fold over the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::cmd;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use traqq_core::model::{Bucket, BucketKind};
use traqq_counts::mapping::metrics_of;
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::redis::{Config as RedisConfig, RedisStore, lane_tags};
use traqq_counts::store::{Read, Reply, Store};
use traqq_log::Start;
use traqq_pipeline::{Config, DeadLetters, Execution, OnEmptyStore, Status, Worker, WorkerError};

use crate::model::{Harness, Random, counts, event, plan, status};
use crate::proxy::{Direction, Proxy};
use crate::redis_store::{assert_same, config, pattern, raw, reads_of};
use crate::servers::Redis;

const NOW_MS: i64 = 1_700_000_000_000;
const PARTITIONS: i32 = 4;
const LABELS: [&str; 4] = ["g0", "g1", "g2", "g3"];

pub struct Bench {
    pub redis: Redis,
    proxy: Proxy,
    /// The log; its store is not used.
    log: Harness,
    /// Past the proxy.
    pub direct: Arc<RedisStore>,
    lanes: usize,
    random: Random,
}

pub struct Running {
    member: u64,
    shutdown: watch::Sender<bool>,
    status: Arc<Status>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        self.task.await.unwrap().unwrap();
    }

    /// The message of a worker that ends by itself.
    pub async fn ended(self) -> String {
        let result = tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("the worker ends");
        result.unwrap().unwrap_err().to_string()
    }

    pub async fn wait_until_unready(&self, part: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.status.readiness() {
                Err(fault) if fault.reason.contains(part) => return fault.reason,
                other => assert!(Instant::now() < deadline, "{part:?} is not said: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Bench {
    fn new(lanes: usize, seed: u64) -> Self {
        Self::over(Redis::start(&[]), lanes, seed)
    }

    pub fn over(redis: Redis, lanes: usize, seed: u64) -> Self {
        let proxy = Proxy::start(redis.port());
        let direct = Arc::new(RedisStore::new(&config(&redis.url(), lanes)).unwrap());
        Self { redis, proxy, log: Harness::new(PARTITIONS, lanes), direct, lanes, random: Random(seed) }
    }

    pub fn append(&mut self, count: usize) {
        self.log.append(&mut self.random, count);
    }

    pub fn worker(&self) -> Running {
        self.worker_with(|_, _| {})
    }

    /// A worker that reaches Redis by way of the proxy.
    pub fn worker_with(&self, change: impl FnOnce(&mut Config, &mut RedisConfig)) -> Running {
        let mut worker = Config {
            batch_events: 50,
            batch_age_ms: 2,
            batches_in_flight: 5,
            fold_threads: 1,
            position_check_ms: 100,
            broker_commit_ms: 50,
            drain_timeout_ms: 5_000,
            ..Config::default()
        };
        let mut redis = RedisConfig { response_timeout_ms: 2_000, ..config(&self.proxy.url(), self.lanes) };
        change(&mut worker, &mut redis);
        let consumer = self.log.broker.consumer();
        let member = consumer.member();
        let (shutdown, watch) = watch::channel(false);
        let status = status();
        let worker = Worker {
            config: worker,
            projection: counts(Arc::new(RedisStore::new(&redis).unwrap()), &redis.prefix),
            group: "g".to_owned(),
            start: Start::Earliest,
            consumer: Box::new(consumer),
            dead_letters: DeadLetters::Publish(Arc::new(self.log.broker.clone())),
            status: Arc::clone(&status),
            shutdown: watch,
            now_ms: || NOW_MS,
            execution: Execution::Threads,
        };
        Running { member, shutdown, status, task: tokio::spawn(worker.run()) }
    }

    async fn position(&self, index: i32) -> Option<i64> {
        let partition = self.log.partition(index);
        let positions = self.direct.positions(partition.lane(self.lanes)).await.unwrap();
        positions.get(&partition).map(|stored| stored.position)
    }

    /// Records applied, all partitions together.
    pub async fn applied(&self) -> i64 {
        let mut sum = 0;
        for index in 0..PARTITIONS {
            sum += self.position(index).await.unwrap_or(0);
        }
        sum
    }

    pub async fn wait_for(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition().await {
            assert!(Instant::now() < deadline, "still not: {what}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    pub async fn wait_until_done(&self, what: &str) {
        self.wait_for(what, async || {
            for index in 0..PARTITIONS {
                if self.position(index).await != Some(self.log.broker.high(&self.log.partition(index))) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    pub async fn assert_exact(&self, context: &str) {
        self.assert_equals(&self.log.replay().await, |_| true, context).await;
    }

    async fn assert_equals(&self, reference: &MemoryStore, filter: impl Fn(&Read) -> bool, context: &str) {
        let reads: Vec<Read> = all_reads().into_iter().filter(filter).collect();
        assert_same(self.direct.as_ref(), reference, &reads, context).await;
    }
}

fn all_reads() -> Vec<Read> {
    let plan = plan();
    let mut buckets: Vec<Bucket> = Vec::new();
    for hour in 0..=74 {
        for kind in [BucketKind::Day, BucketKind::Hour] {
            buckets.push(plan.rules.zone.bucket_at(kind, NOW_MS / 1000 - hour * 3600).bucket);
        }
    }
    buckets.sort_unstable();
    buckets.dedup();
    reads_of(&metrics_of(&plan.rules.rules), &buckets, &LABELS)
}

/// Batches used to be cut by age however many were under way: the slower the store, the less was
/// merged, and three lanes sent twice the operations of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_batch_is_under_way_is_one_batch() {
    let mut bench = Bench::new(1, 0x51ed_2701);
    let worker = bench.worker_with(|config, _| {
        config.batch_events = 100_000;
        config.batches_in_flight = 64;
    });
    bench.append(10);
    bench.wait_until_done("the worker is there").await;
    bench.redis.cli(&["CONFIG", "RESETSTAT"]);
    bench.redis.cli(&["CLIENT", "PAUSE", "500", "WRITE"]);
    for _ in 0..40 {
        bench.append(10);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.wait_until_done("the store goes on").await;
    worker.stop().await;
    bench.assert_exact("after a pause").await;
    let stats = bench.redis.cli(&["INFO", "commandstats"]);
    let commits =
        stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse().ok());
    // One that met the pause, one with what came meanwhile, and a few around them.
    assert!((2..=8).contains(&commits.unwrap_or(0)), "{commits:?} commits of 400 records\n{stats}");
}

/// Connections cut at random in both directions with several batches in flight, the script
/// forgotten now and then, one and three lanes, two workers of which one or the other is a zombie
/// for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_at_random_lose_and_double_nothing() {
    for (lanes, seed) in [(1, 0x9e37_79b9), (3, 0x7f4a_7c15)] {
        let mut bench = Bench::new(lanes, seed);
        let workers = [bench.worker(), bench.worker()];
        let mut connection = raw(&bench.redis.url()).await;
        for _ in 0..15 {
            // Read before the cut is armed: the idle check of positions may run into it at once.
            let (cuts, began) = (bench.proxy.cuts(), Instant::now());
            match bench.random.below(3) {
                0 => bench.proxy.cut_after(Direction::Up, bench.random.below(20_000) as usize),
                _ => bench.proxy.cut_after(Direction::Down, bench.random.below(300) as usize),
            }
            if bench.random.below(2) == 0 {
                // A zombie: the group has given its partitions away, and it goes on until it
                // notices.
                bench.log.broker.expire(workers[bench.random.below(2) as usize].member);
            }
            if bench.random.below(3) == 0 {
                let () = cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
            }
            while bench.proxy.cuts() == cuts {
                assert!(began.elapsed() < Duration::from_secs(30), "nothing passes to be cut");
                assert!(!workers.iter().any(|worker| worker.task.is_finished()), "a worker gave up");
                bench.append(300);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            bench.wait_until_done("after a cut").await;
        }
        bench.proxy.resume();
        let context = format!("{lanes} lanes, seed {seed:x}, {} cuts", bench.proxy.cuts());
        bench.wait_until_done(&context).await;
        for worker in workers {
            worker.stop().await;
        }
        bench.assert_exact(&context).await;
    }
}

/// FLUSHALL under a running worker: it counts again from the recorded start, and is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_everything_is_counted_again() {
    for lanes in [1, 3] {
        let mut bench = Bench::new(lanes, 5);
        bench.append(3_000);
        let worker = bench.worker();
        bench.wait_until_done("before").await;
        bench.wait_for("the starts are marked at the broker", async || bench.log.broker.marks().len() == 4).await;
        for _ in 0..3 {
            bench.redis.cli(&["FLUSHALL"]);
            bench.append(500);
            bench.wait_until_done("after FLUSHALL").await;
        }
        bench.assert_exact("after FLUSHALL").await;
        // And nothing at all being sent: the idle check sees it.
        bench.redis.cli(&["FLUSHALL"]);
        bench.wait_until_done("after FLUSHALL in a quiet hour").await;
        worker.stop().await;
        bench.assert_exact("after FLUSHALL in a quiet hour").await;
    }
}

/// The node that keeps the store's own meta loses everything: since when a metric counts was
/// forgotten, and what the other lanes had not counted of it before was a smaller number where it
/// had been null.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_meta_of_a_lost_node_is_what_the_others_know() {
    let mut bench = Bench::new(3, 8);
    bench.append(500);
    let worker = bench.worker();
    bench.wait_until_done("before").await;
    bench.wait_for("the starts are marked at the broker", async || bench.log.broker.marks().len() == 4).await;
    worker.stop().await;
    let metas: Vec<String> =
        lane_tags(3).iter().map(|tag| format!("p{{{tag}}}:meta")).chain(["p:meta".to_owned()]).collect();
    let fields =
        [("since:add:geo", "1699999999 t/0:7"), ("gone:d", "1600000000:1600086400"), ("created", "1600000000")];
    for meta in &metas {
        fields.iter().for_each(|(name, value)| _ = bench.redis.cli(&["HSET", meta, name, value]));
    }
    let known = bench.direct.meta().await.unwrap().unwrap();
    assert_eq!((known.created, known.since.len(), known.gone.len()), (Some(1_600_000_000), 1, 1));
    let lost = bench.redis.cli(&["--raw", "KEYS", &format!("p{{{}}}:*", lane_tags(3)[0])]);
    lost.lines().chain(["p:meta"]).for_each(|key| _ = bench.redis.cli(&["DEL", key]));
    let worker = bench.worker();
    bench.wait_until_done("after").await;
    worker.stop().await;
    let again = bench.direct.meta().await.unwrap().unwrap();
    assert_eq!((again.created, again.since, again.gone), (known.created, known.since, known.gone));
    bench.assert_exact("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_told_to_stop_at_an_empty_store_stops() {
    let mut bench = Bench::new(1, 6);
    bench.append(500);
    let stop = |worker: &mut Config, _: &mut RedisConfig| worker.on_empty_store = OnEmptyStore::Stop;
    let worker = bench.worker_with(stop);
    bench.wait_until_done("before").await;
    bench.wait_for("the starts are marked at the broker", async || bench.log.broker.marks().len() == 4).await;
    bench.redis.cli(&["FLUSHALL"]);
    let message = worker.ended().await;
    assert!(message.contains("its data is gone") && message.contains("on_empty_store"), "{message}");
    let message = bench.worker_with(stop).ended().await;
    assert!(message.contains("its data is gone"), "{message}");
    assert_eq!(bench.redis.cli(&["DBSIZE"]), "0");
}

/// A deleted checkpoint stops its partitions; an operator sets one and a new worker goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_checkpoint_stops_the_partition() {
    let mut bench = Bench::new(1, 7);
    bench.append(1_000);
    let worker = bench.worker();
    bench.wait_until_done("before").await;
    let partition = bench.log.partition(2);
    let saved = bench.redis.cli(&["HGET", "p:ckpt", &partition.to_string()]);
    bench.redis.cli(&["HDEL", "p:ckpt", &partition.to_string()]);
    bench.append(1_000);
    let why = worker.wait_until_unready("events/2").await;
    assert!(why.contains("checkpoint is gone") && why.contains("traqq position set events/2"), "{why}");
    // The others go on.
    bench
        .wait_for("the other partitions are done", async || {
            for index in [0, 1, 3] {
                if bench.position(index).await != Some(bench.log.broker.high(&bench.log.partition(index))) {
                    return false;
                }
            }
            true
        })
        .await;
    assert_eq!(bench.position(2).await, None);
    worker.stop().await;
    bench.redis.cli(&["HSET", "p:ckpt", &partition.to_string(), &saved]);
    let worker = bench.worker();
    bench.wait_until_done("the checkpoint is back").await;
    worker.stop().await;
    bench.assert_exact("the checkpoint is back").await;
    // All of them at once.
    let worker = bench.worker();
    worker_is_ready(&worker).await;
    bench.redis.cli(&["DEL", "p:ckpt"]);
    bench.append(100);
    for index in 0..PARTITIONS {
        worker.wait_until_unready(&format!("events/{index}: ")).await;
    }
    worker.stop().await;
}

pub async fn worker_is_ready(worker: &Running) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(why) = worker.status.readiness() {
        assert!(Instant::now() < deadline, "{why}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_is_waited_for() {
    let mut bench = Bench::new(1, 8);
    bench.append(2_000);
    let worker = bench.worker();
    bench.wait_until_done("before").await;
    for round in 0..3 {
        bench.append(300);
        bench.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        bench.append(300);
        let refused = || {
            let stats = bench.redis.cli(&["INFO", "errorstats"]);
            let line = stats.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
            line.map_or(0, |count| count.trim().parse::<i64>().unwrap())
        };
        bench.wait_for("batches are refused", async || refused() > round).await;
        if round == 2 {
            worker.wait_until_unready("lane 0").await;
        }
        bench.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        bench.wait_until_done("there is memory again").await;
        bench.redis.cli(&["CONFIG", "RESETSTAT"]);
    }
    worker_is_ready(&worker).await;
    worker.stop().await;
    bench.assert_exact("there is memory again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_type_does_not_hold_up_the_rest() {
    let mut bench = Bench::new(1, 9);
    let day = Bucket { kind: BucketKind::Day, start: 1_699_920_000 };
    let spoiled = format!("p:add:d:{}:event~geo", day.start);
    bench.redis.cli(&["LPUSH", &spoiled, "x"]);
    bench.append(2_000);
    let worker = bench.worker();
    bench.wait_until_done("beside a list").await;
    let quarantined = bench.direct.quarantined(0).await.unwrap();
    assert_eq!(quarantined.len(), 1);
    assert!(quarantined[0].key == spoiled && quarantined[0].error.contains("WRONGTYPE"), "{quarantined:?}");
    let is_spoiled = |read: &Read| {
        let read = if let Read::Only { read, .. } = read { read } else { read };
        matches!(read, Read::Counts { bucket, of } if *bucket == day && *of == pattern("event~geo"))
    };
    let reference = bench.log.replay().await;
    bench.assert_equals(&reference, |read| !is_spoiled(read), "beside a list").await;
    let answer = bench.direct.read(0, &[Read::Counts { bucket: day, of: pattern("event~geo") }]).await.unwrap();
    assert!(matches!(&answer[..], [Reply::Unreadable(_)]), "{answer:?}");
    worker.stop().await;
}

/// Keys of unique counts vanish under the shadow. What was in them is gone; what comes afterwards
/// is counted in full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_counts_that_vanish_are_filled_again() {
    let mut bench = Bench::new(1, 10);
    bench.append(3_000);
    let worker = bench.worker();
    bench.wait_until_done("before").await;
    bench.assert_exact("before").await;
    let keys = bench.redis.cli(&["KEYS", "p:bmp:*:ip"]);
    let keys: Vec<&str> = keys.lines().collect();
    assert!(keys.len() > 70, "{keys:?}");
    let lengths = [0, 1, 2, 3].map(|index| bench.log.broker.high(&bench.log.partition(index)));
    bench.redis.cli(&[&["DEL"], &keys[..]].concat());
    // What a log of only the rest would leave in those keys.
    let rest = Harness::new(PARTITIONS, 1);
    for round in 0..6 {
        for _ in 0..300 {
            let partition = bench.log.partition(bench.random.below(PARTITIONS as u64) as i32);
            let event = event(&mut bench.random);
            bench.log.broker.append(&partition, NOW_MS, &event);
            rest.broker.append(&partition, NOW_MS, &event);
        }
        bench.wait_until_done(&format!("round {round} after {lengths:?}")).await;
    }
    worker.stop().await;
    let is_unique = |read: &Read| matches!(read, Read::Unique { .. });
    bench.assert_equals(&rest.replay().await, is_unique, "what came after").await;
    bench.assert_equals(&bench.log.replay().await, |read| !is_unique(read), "everything else").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_created_again_stops_and_a_trimmed_one_says_so() {
    let mut bench = Bench::new(1, 11);
    bench.append(2_000);
    let worker = bench.worker();
    bench.wait_until_done("before").await;
    worker.stop().await;
    let counted = bench.applied().await;
    // 0: shorter than it was. 1: as long again, with other records. 2: trimmed past the position.
    // 3: trimmed to it.
    let [zero, one, two, three] = [0, 1, 2, 3].map(|index| bench.log.partition(index));
    let highs = [0, 1, 2, 3].map(|index| bench.log.broker.high(&bench.log.partition(index)));
    let reference = bench.log.replay().await;
    bench.log.broker.recreate(&zero);
    bench.log.broker.append(&zero, NOW_MS, b"{}");
    bench.log.broker.recreate(&one);
    while bench.log.broker.high(&one) < highs[1] + 10 {
        bench.log.broker.append(&one, NOW_MS, &event(&mut bench.random));
    }
    for _ in 0..20 {
        bench.log.broker.append(&two, NOW_MS, b"{}");
    }
    bench.log.broker.trim(&two, highs[2] + 3);
    bench.log.broker.trim(&three, highs[3]);
    let worker = bench.worker();
    let why = worker.wait_until_unready("events/2").await;
    assert!(why.contains("3 records were removed before they were counted"), "{why}");
    let why = worker.wait_until_unready("events/0: ").await;
    assert!(why.contains(&format!("the log ends at 1, but the store stands at {}", highs[0])), "{why}");
    let why = worker.wait_until_unready("events/1: ").await;
    assert!(why.contains("is not the one that was counted last"), "{why}");
    assert!(!why.contains("events/3"), "{why}");
    assert_eq!(bench.applied().await, counted);
    bench.assert_equals(&reference, |_| true, "nothing of the other log").await;
    // The partition that was only trimmed goes on.
    bench.log.broker.append(&three, NOW_MS, b"{}");
    bench.wait_for("events/3 goes on", async || bench.position(3).await == Some(highs[3] + 1)).await;
    worker.stop().await;
}
