//! The Redis store against a real Redis, with the memory store as the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::aio::MultiplexedConnection;
use redis::cmd;
use tempfile::TempDir;
use traqq_core::model::{Bucket, BucketKind, Checkpoint, Fingerprint, RecordBatch, Span, TopicPartition};
use traqq_core::model::{Part, Secret};
use traqq_counts::compile::{Folder, Plan};
use traqq_counts::mapping::metrics_of;
use traqq_counts::mapping::{Elements, KeyWrite, Metric, OTHER, Pattern, Rules, Totals, WriteBatch, Writes};
use traqq_counts::store::dump::{export, import};
use traqq_counts::store::embedded::EmbeddedStore;
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::redis::{Config, RedisStore, lane_tags};
use traqq_counts::store::{Applied, Meta, Outcome, Quarantined, Read, Reply, Session, Store, StoreError, StoreResult};
use traqq_disk::{Config as DataConfig, Database};

use crate::proxy::{Direction, Proxy};
use crate::servers::{Redis, poll_until};

const DAY: i64 = 86_400;

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

pub fn config(url: &str, lanes: usize) -> Config {
    Config { url: Secret(url.to_owned()), prefix: "p".to_owned(), lanes, ..Config::default() }
}

pub fn plan(rules: &str) -> Arc<Plan> {
    let rules: Rules = serde_json::from_str(rules).unwrap();
    Arc::new(Plan::new(rules.validate().unwrap()))
}

pub fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

pub async fn raw(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Everything there is, byte for byte, with its expiry.
pub async fn dump(connection: &mut MultiplexedConnection) -> BTreeMap<Vec<u8>, (Vec<u8>, i64)> {
    let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query_async(connection).await.unwrap();
    let mut all = BTreeMap::new();
    for key in keys {
        let value = cmd("DUMP").arg(&key).query_async(connection).await.unwrap();
        let expiry = cmd("EXPIRETIME").arg(&key).query_async(connection).await.unwrap();
        all.insert(key, (value, expiry));
    }
    all
}

pub async fn commit(session: &mut Box<dyn Session>, batch: WriteBatch) -> StoreResult<Outcome> {
    session.commit(Arc::new(batch)).await.await
}

/// Every read of every metric in every bucket.
pub fn reads_of(metrics: &[Metric], buckets: &[Bucket], labels: &[&str]) -> Vec<Read> {
    let mut reads = Vec::new();
    for &bucket in buckets {
        for metric in metrics {
            match metric.clone() {
                Metric::Unique { of } => reads.push(Read::Unique { bucket, of }),
                Metric::UniqueBy { of, by } => {
                    reads.push(Read::UniqueByValues { bucket, of: of.clone(), by: by.clone() });
                    for value in labels.iter().chain(&[OTHER]) {
                        let value = (*value).to_owned();
                        reads.push(Read::UniqueBy { bucket, of: of.clone(), by: by.clone(), value });
                    }
                }
                Metric::Count { of } => reads.extend(whole_and_in_part(Read::Counts { bucket, of }, labels)),
                Metric::Sum { of, add_key } => {
                    let add_key = add_key.to_string();
                    let sums = Read::Sums { bucket, of: of.clone(), add_key: add_key.clone() };
                    let counts = Read::SumCounts { bucket, of: of.clone(), add_key: add_key.clone() };
                    reads.extend([sums, counts].into_iter().flat_map(|read| whole_and_in_part(read, labels)));
                    reads.push(Read::SumTotals { bucket, of, add_key });
                }
                Metric::Top { of } => {
                    for limit in [1, 2, 1000] {
                        reads.push(Read::TopFirst { bucket, of: of.clone(), limit });
                        reads.push(Read::TopAtLeast { bucket, of: of.clone(), count: 3, limit });
                    }
                    let members = labels.iter().map(|label| (*label).to_owned()).collect();
                    reads.push(Read::TopScores { bucket, of, members });
                }
            }
        }
    }
    reads
}

fn whole_and_in_part(read: Read, labels: &[&str]) -> [Read; 2] {
    let labels: BTreeSet<&str> = labels.iter().copied().chain([OTHER, "nowhere"]).collect();
    let labels = labels.into_iter().map(str::to_owned).collect();
    [read.clone(), Read::Only { read: Box::new(read), labels }]
}

#[derive(PartialEq, Debug)]
enum Comparable {
    Values(Vec<(String, i64)>),
    Labels(Vec<String>),
    /// Index and rank of the registers that are not zero.
    Registers(Vec<(usize, u8)>),
    Unreadable(String),
}

/// An answer without the freedom it has: order where none is promised, and the encoding of
/// registers.
fn comparable(read: &Read, reply: Reply) -> Comparable {
    match reply {
        Reply::Values(mut values) => {
            if !matches!(read, Read::TopFirst { .. } | Read::TopAtLeast { .. }) {
                values.sort();
            }
            Comparable::Values(values)
        }
        Reply::Labels(mut labels) => {
            labels.sort();
            Comparable::Labels(labels)
        }
        Reply::Registers(registers) => {
            let ranks = registers.registers();
            Comparable::Registers(ranks.iter().copied().enumerate().filter(|(_, rank)| *rank > 0).collect())
        }
        Reply::Unreadable(error) => Comparable::Unreadable(error),
    }
}

pub async fn assert_same(ours: &dyn Store, reference: &dyn Store, reads: &[Read], context: &str) {
    assert_eq!(ours.lanes(), reference.lanes());
    let mut answers = 0;
    for lane in 0..ours.lanes() {
        let replies = ours.read(lane, reads).await.unwrap();
        let expected = reference.read(lane, reads).await.unwrap();
        for ((read, reply), expected) in reads.iter().zip(replies).zip(expected) {
            let (reply, expected) = (comparable(read, reply), comparable(read, expected));
            answers += usize::from(!matches!(&expected, Comparable::Values(values) if values.is_empty()));
            assert_eq!(reply, expected, "{context}: lane {lane}, {read:?}");
        }
    }
    assert!(answers > 0, "{context}: nothing to compare");
}

// ---- the same answers as the memory store -------------------------------------------------------

pub const LABELS: [&str; 9] = ["a", "b", "a:b", "100%", "a%3Ab", "x@y", "\\__other__", "über", "p\\~q~r"];
pub const RULES: &str = r#"{"mapping":{"bitmap":["ip"],"bitmap_by":[{"key":"geo","of":"ip"}],"add":["event","event~geo"],
    "add_value":[{"key":"event","add_key":"amount:x"}],"top":["url"],"auto_pairs":false},
    "events":{"max_values_per_key":3,"max_values_per_key_bitmap_by":2}}"#;

/// One write: metric, bucket, and for each value a label, an amount and a count.
pub type DrawnWrite = (usize, usize, Vec<(usize, i64, i64)>);

#[derive(Clone, Debug)]
struct Drawn {
    partition: i32,
    writes: Vec<DrawnWrite>,
    /// Whether everything in flight is awaited before this batch is sent.
    settles: bool,
}

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    let amount = prop_oneof![4 => -50_i64..50, 1 => prop_oneof![Just(1_i64 << 53), Just((1 << 53) + 1)], 1 => Just(-(1_i64 << 55) - 1)];
    let values = prop::collection::vec((0..LABELS.len(), amount, 1_i64..5), 1..6);
    let write = (0..6_usize, 0..3_usize, values);
    let batch = (0..4_i32, prop::collection::vec(write, 0..8), any::<bool>());
    prop::collection::vec(batch.prop_map(|(partition, writes, settles)| Drawn { partition, writes, settles }), 1..10)
}

pub fn elements<'e>(texts: impl IntoIterator<Item = &'e str>) -> Elements {
    let mut elements = Elements::default();
    texts.into_iter().for_each(|text| elements.push(text.as_bytes()));
    elements
}

pub fn drawn_buckets(now: i64) -> [(Bucket, Option<i64>); 3] {
    [
        (Bucket { kind: BucketKind::Day, start: 1_699_920_000 }, None),
        (Bucket { kind: BucketKind::Hour, start: 1_700_000_000 }, Some(now + 100_000)),
        (Bucket { kind: BucketKind::Minute, start: 60 }, Some(now - 10)),
    ]
}

pub fn drawn_write(metrics: &[Metric], now: i64, (metric, bucket, values): &DrawnWrite) -> KeyWrite {
    let mut seen = BTreeSet::new();
    let values: Vec<_> = values.iter().filter(|(label, ..)| seen.insert(*label)).collect();
    let metric = metrics[*metric].clone();
    let label = |index: usize| Box::from(LABELS[index]);
    let writes = match &metric {
        Metric::Unique { .. } => {
            let texts: BTreeSet<String> = values.iter().map(|(label, amount, _)| format!("{label} {amount}")).collect();
            Writes::Unique(elements(texts.iter().map(String::as_str)))
        }
        Metric::UniqueBy { .. } => Writes::UniqueBy(
            values.iter().map(|(l, amount, _)| (label(*l), elements([amount.to_string().as_str(), "e"]))).collect(),
        ),
        Metric::Count { .. } => Writes::Count(values.iter().map(|(l, _, count)| (label(*l), *count)).collect()),
        Metric::Top { .. } => Writes::Top(values.iter().map(|(l, _, count)| (label(*l), *count)).collect()),
        Metric::Sum { .. } => {
            let amounts = || values.iter().map(|(_, amount, _)| *amount);
            let totals = Totals {
                sum: amounts().map(i128::from).sum(),
                count: values.iter().map(|(_, _, count)| count).sum(),
                min: amounts().min().unwrap(),
                max: amounts().max().unwrap(),
            };
            Writes::Sum(
                values.iter().map(|(l, amount, count)| (label(*l), i128::from(*amount), *count)).collect(),
                totals,
            )
        }
    };
    let (bucket, expires_at) = drawn_buckets(now)[*bucket];
    KeyWrite { bucket, expires_at, metric, writes }
}

pub fn step(from: Checkpoint, records: i64) -> Checkpoint {
    let offset = from.position + records - 1;
    Checkpoint {
        position: offset + 1,
        last: Some(Fingerprint { offset, timestamp_ms: 1_700_000_000_000, hash: 0xdead_beef ^ offset as u64 }),
    }
}

async fn settle(
    in_flight: &mut Vec<(futures_util::future::BoxFuture<'static, StoreResult<Outcome>>, Applied)>,
    folded: &mut u64,
) {
    for (answer, expected) in in_flight.drain(..) {
        let Outcome::Applied(applied) = answer.await.unwrap() else { panic!("not applied") };
        *folded += applied.values_folded;
        assert_eq!((applied.values_folded, applied.keys_expired), (expected.values_folded, expected.keys_expired));
        // The memory store adds the elements of expired keys nowhere, Redis is sent them all the
        // same.
        assert!(applied.elements_sent + applied.elements_saved >= expected.elements_sent);
        assert!(applied.quarantined.is_empty(), "{applied:?}");
    }
}

/// The embedded store, to be closed and opened again at any time.
pub struct Embedded {
    directory: TempDir,
    memory_bytes: usize,
    open: Option<(EmbeddedStore, Box<dyn Session>)>,
}

impl Embedded {
    pub fn new(memory_bytes: usize) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), memory_bytes, open: None }
    }

    pub fn open_store(&self) -> EmbeddedStore {
        let config = DataConfig { directory: self.directory.path().join("data"), ..DataConfig::default() };
        loop {
            match Database::open(&config, 8 << 20, &[traqq_counts::store::embedded::rows::TREE]) {
                Ok(database) => return EmbeddedStore::open(&database, self.memory_bytes, now).unwrap(),
                // The session's thread lets go of it when its channel is closed.
                Err(error) if error.to_string().contains("in use") => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn reopen(&mut self) {
        self.open = None;
        let store = self.open_store();
        let session = store.session(0).await.unwrap();
        self.open = Some((store, session));
    }

    async fn commit(&mut self, batch: &Arc<WriteBatch>, expected: &Applied) {
        let (_, session) = self.open.as_mut().expect("it is open");
        let Outcome::Applied(applied) = session.commit(Arc::clone(batch)).await.await.unwrap() else {
            panic!("the embedded store refuses")
        };
        assert_eq!(applied, *expected);
    }
}

/// Commits the same batches to all stores, of which the memory store is the reference; returns how
/// many values were folded.
async fn case(url: &str, lanes: usize, batches: &[Drawn]) -> u64 {
    let mut connection = raw(url).await;
    let () = cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let now = now();
    let plan = plan(RULES);
    let metrics = metrics_of(&plan.rules.rules);
    let (ours, reference) = (RedisStore::new(&config(url, lanes)).unwrap(), MemoryStore::new(lanes));
    reference.set_now(now);
    let mut meta = Meta::new(&plan.rules, "g", lane_tags(lanes));
    let mut positions: Vec<Checkpoint> = (0..4).map(|n| Checkpoint::start(n * 10)).collect();
    meta.starts = (0..4).map(|n| (TopicPartition::new("t", n), i64::from(n) * 10)).collect();
    assert_eq!(ours.create(&meta).await.unwrap(), reference.create(&meta).await.unwrap());
    // With next to no memory every value is read from disk.
    let mut embedded = (lanes == 1).then(|| Embedded::new(if batches.len().is_multiple_of(2) { 1 } else { 1 << 20 }));
    if let Some(embedded) = &mut embedded {
        assert_eq!(embedded.open_store().create(&meta).await.unwrap(), meta);
        embedded.reopen().await;
    }
    let mut sessions = Vec::new();
    let mut expected_sessions = Vec::new();
    for lane in 0..lanes {
        sessions.push(ours.session(lane).await.unwrap());
        expected_sessions.push(reference.session(lane).await.unwrap());
    }
    let (mut in_flight, mut folded) = (Vec::new(), 0);
    for drawn in batches {
        if drawn.settles {
            settle(&mut in_flight, &mut folded).await;
        }
        let partition = TopicPartition::new("t", drawn.partition);
        let from = positions[drawn.partition as usize];
        let to = step(from, drawn.writes.len() as i64 + 1);
        positions[drawn.partition as usize] = to;
        let mut keys = BTreeSet::new();
        let writes = drawn.writes.iter().filter(|(metric, bucket, _)| keys.insert((*metric, *bucket)));
        let lane = partition.lane(lanes);
        let batch = Arc::new(WriteBatch {
            spans: vec![Span { partition, from, to }],
            writes: writes.map(|write| drawn_write(&metrics, now, write)).collect(),
        });
        let Ok(Outcome::Applied(expected)) = expected_sessions[lane].commit(Arc::clone(&batch)).await.await else {
            panic!("the reference refuses")
        };
        if let Some(embedded) = &mut embedded {
            embedded.commit(&batch, &expected).await;
            if drawn.settles {
                embedded.reopen().await;
            }
        }
        in_flight.push((sessions[lane].commit(batch).await, expected));
    }
    settle(&mut in_flight, &mut folded).await;
    for lane in 0..lanes {
        assert_eq!(ours.positions(lane).await.unwrap(), reference.positions(lane).await.unwrap());
    }
    let buckets: Vec<Bucket> = drawn_buckets(now).iter().map(|(bucket, _)| *bucket).collect();
    let reads = reads_of(&metrics, &buckets, &LABELS);
    assert_same(&ours, &reference, &reads, "drawn").await;
    if let Some(Embedded { open: Some((embedded, _)), .. }) = &embedded {
        assert_eq!(embedded.positions(0).await.unwrap(), reference.positions(0).await.unwrap());
        assert_same(embedded, &reference, &reads, "embedded").await;
        assert_moves(embedded, url, &reference, &reads).await;
    }
    assert_tracked(&mut connection, &drawn_buckets(now)).await;
    folded
}

/// From the embedded store to Redis and back: every answer stays the same.
async fn assert_moves(embedded: &EmbeddedStore, url: &str, reference: &MemoryStore, reads: &[Read]) {
    let mut file = Vec::new();
    let exported = export(embedded, &mut file).await.unwrap();
    let redis = RedisStore::new(&Config { prefix: "moved".to_owned(), ..config(url, 1) }).unwrap();
    for cut in [file.len() - 2, file.len() / 2, 10] {
        // Whatever is missing is noticed, and nobody counts upon it.
        import(&redis, &file[..cut]).await.unwrap_err();
        assert!(redis.meta().await.unwrap().unwrap().is_import());
    }
    assert_eq!(import(&redis, &file[..]).await.unwrap(), exported);
    assert!(import(&redis, &file[..]).await.unwrap_err().to_string().contains("has counts already"));
    assert_same(&redis, reference, reads, "moved to Redis").await;
    let mut back = Vec::new();
    assert_eq!(export(&redis, &mut back).await.unwrap(), exported);
    let site = Embedded::new(1 << 20);
    let again = site.open_store();
    assert_eq!(import(&again, &back[..]).await.unwrap(), exported);
    assert_same(&again, reference, reads, "moved back").await;
    let mut connection = raw(url).await;
    for store in [&redis as &dyn Store, &again] {
        assert_eq!(store.meta().await.unwrap(), reference.meta().await.unwrap());
        assert_eq!(store.positions(0).await.unwrap(), reference.positions(0).await.unwrap());
        assert_eq!(store.keys(0).await.unwrap(), embedded.keys(0).await.unwrap());
    }
    let keys: Vec<String> = cmd("KEYS").arg("moved*").query_async(&mut connection).await.unwrap();
    let () = cmd("DEL").arg(keys).query_async(&mut connection).await.unwrap();
}

/// Every data key is in its bucket's set and expires with it, and the set holds nothing else.
async fn assert_tracked(connection: &mut MultiplexedConnection, buckets: &[(Bucket, Option<i64>)]) {
    let mut data = BTreeSet::new();
    let mut tracked = BTreeSet::new();
    for (key, (_, expiry)) in dump(connection).await {
        let key = String::from_utf8(key).unwrap();
        let parts: Vec<&str> = key.split(':').collect();
        if ["meta", "ckpt", "quarantine"].contains(&parts[1]) {
            assert_eq!(expiry, -1, "{key}");
            continue;
        }
        let of_bucket = |(bucket, _): &&(Bucket, Option<i64>)| {
            (parts[2], parts[3]) == (&*bucket.kind.to_string(), &*bucket.start.to_string())
        };
        let expires_at = buckets.iter().find(of_bucket).unwrap().1;
        assert_eq!(expiry, expires_at.unwrap_or(-1), "{key}");
        if parts[1] == "k" {
            let members: BTreeSet<String> = cmd("SMEMBERS").arg(&key).query_async(connection).await.unwrap();
            assert!(members.iter().all(|member| member.split(':').nth(3) == Some(parts[3])), "{key}: {members:?}");
            tracked.extend(members);
        } else {
            data.insert(key);
        }
    }
    assert_eq!(data, tracked);
}

#[test]
fn random_batches_give_the_answers_of_the_memory_store() {
    let redis = Redis::start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folded = std::cell::Cell::new(0);
    for lanes in [1, 3] {
        let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
        TestRunner::new(config)
            .run(&drawn(), |batches| {
                folded.set(folded.get() + runtime.block_on(case(&redis.url(), lanes, &batches)));
                Ok(())
            })
            .unwrap();
    }
    assert!(folded.get() > 0, "no value was folded into {OTHER}");
}

/// More values than one command of the script takes, in front of the limit, at it and beyond it.
#[tokio::test]
async fn thousands_of_values_are_counted_as_the_memory_store_counts_them() {
    let redis = Redis::start(&[]);
    let plan = plan(r#"{"mapping":{"add":["event"],"top":["url"]},"events":{"max_values_per_key":2100}}"#);
    let (ours, reference) = (RedisStore::new(&config(&redis.url(), 1)).unwrap(), MemoryStore::new(1));
    reference.set_now(now());
    let partition = TopicPartition::new("t", 0);
    let mut meta = Meta::new(&plan.rules, "g", Vec::new());
    meta.starts = [(partition.clone(), 0)].into();
    assert_eq!(ours.create(&meta).await.unwrap(), reference.create(&meta).await.unwrap());
    let (mut session, mut expected_session) = (ours.session(0).await.unwrap(), reference.session(0).await.unwrap());
    let (bucket, expires_at) = drawn_buckets(now())[0];
    let (mut from, mut folded) = (Checkpoint::start(0), Vec::new());
    for values in [0..1, 0..500, 200..701, 400..1500, 1000..2150, 0..2400] {
        let values = || values.clone().map(|n| (format!("v{n}").into(), n % 7 + 1)).collect();
        let write = |(metric, writes)| KeyWrite { bucket, expires_at, metric, writes };
        let writes = [
            (Metric::Count { of: pattern("event") }, Writes::Count(values())),
            (Metric::Top { of: pattern("url") }, Writes::Top(values())),
        ];
        let spans = vec![Span { partition: partition.clone(), from, to: step(from, 1) }];
        from = spans[0].to;
        let batch = WriteBatch { spans, writes: writes.into_iter().map(write).collect() };
        let expected = commit(&mut expected_session, batch.clone()).await.unwrap();
        let applied = commit(&mut session, batch).await.unwrap();
        let (Outcome::Applied(applied), Outcome::Applied(expected)) = (applied, expected) else { panic!("refused") };
        assert_eq!(applied.values_folded, expected.values_folded);
        folded.push(applied.values_folded);
    }
    // Of each of the two.
    assert_eq!(folded, [0, 0, 0, 0, 2 * 50, 2 * 300]);
    let mut reads = reads_of(&metrics_of(&plan.rules.rules), &[bucket], &["v0", "v2399", OTHER]);
    reads.push(Read::TopFirst { bucket, of: pattern("url"), limit: 5000 });
    assert_same(&ours, &reference, &reads, "thousands").await;
}

/// Sorted contents of every key of a database, as redis-cli shows them.
fn contents(redis: &Redis, database: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let cli = |args: &[&str]| redis.cli(&[&["-n", database], args].concat());
    let keys = cli(&["KEYS", "*"]);
    let show = |key: &str| {
        let kind = cli(&["TYPE", key]);
        let (printed, width) = match kind.as_str() {
            "hash" => (cli(&["HGETALL", key]), 2),
            "zset" => (cli(&["ZRANGE", key, "0", "-1", "WITHSCORES"]), 2),
            "set" => (cli(&["SMEMBERS", key]), 1),
            _ => (cli(&["PFCOUNT", key]), 1),
        };
        let lines: Vec<&str> = printed.lines().collect();
        let mut entries: Vec<String> = lines.chunks(width).map(|entry| entry.join(" ")).collect();
        entries.sort();
        (key.to_owned(), (kind, entries))
    };
    keys.lines().filter(|key| !key.is_empty()).map(show).collect()
}

/// The worked example of docs/semantics.md, run as it stands there, leaves exactly the keys that we
/// write.
#[tokio::test]
async fn the_worked_example_of_the_documentation_is_what_is_written() {
    const DOCUMENT: &str = include_str!("../../docs/semantics.md");
    let redis = Redis::start(&[]);
    let plan = plan(
        r#"{"mapping":{"bitmap":["ip"],"add":["event","event~geo"],"add_value":[{"key":"event~geo","add_key":"amount"}],
            "top":["geo"]},"buckets":{"retention":{"d":"5000d"}}}"#,
    );
    let store = RedisStore::new(&Config { prefix: "myapp".to_owned(), ..config(&redis.url(), 1) }).unwrap();
    let partition = TopicPartition::new("events", 3);
    let mut meta = Meta::new(&plan.rules, "g", Vec::new());
    meta.starts = [(partition.clone(), 7)].into();
    store.create(&meta).await.unwrap();
    let (_, example) = DOCUMENT.split_once("For `{\"event\"").expect("the example's event");
    let (event, example) = example.split_once("` at 2023-11-14T22:13:20Z, UTC").expect("the example's time");
    let mut records = RecordBatch::new(partition.clone(), 0);
    records.push(7, 1_700_000_000_000, None, Some(format!("{{\"event\"{event}").as_bytes()));
    let folded = Folder::new(plan, usize::MAX).fold(&[Part { records, from: Checkpoint::start(7) }]);
    assert_eq!((folded.len(), folded[0].dead_letters.len()), (1, 0));
    let mut session = store.session(0).await.unwrap();
    let outcome = commit(&mut session, folded[0].batch.clone()).await.unwrap();
    assert!(matches!(&outcome, Outcome::Applied(applied) if applied.keys_expired == 0), "{outcome:?}");

    let (_, block) = example.split_once(":\n\n").expect("the example's commands");
    let mut keys = BTreeSet::new();
    for line in block.lines().map(str::trim).take_while(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let command = match words[..] {
            ["SADD", key, "<the", "keys", "above>"] => {
                let mut command = vec!["SADD", key];
                command.extend(keys.iter().copied());
                command
            }
            [name, key, field, value, "(and", "count", "1,", "min,", "max)"] => {
                keys.insert(key);
                redis.cli(&["-n", "1", "HSET", key, "count", "1", "min", value, "max", value]);
                vec![name, key, field, value]
            }
            _ => {
                keys.insert(words[1]);
                words
            }
        };
        redis.cli(&[&["-n", "1"], &command[..]].concat());
    }
    assert_eq!(keys.len(), 7);
    let documented = contents(&redis, "1");
    let mut written = contents(&redis, "0");
    let (_, checkpoint) = written.remove("myapp:ckpt").unwrap();
    assert!(checkpoint[0].starts_with("events/3 8 7 1700000000000 "), "{checkpoint:?}");
    let (_, meta) = written.remove("myapp:meta").unwrap();
    assert!(meta.contains(&"start:events/3 7".to_owned()), "{meta:?}");
    assert_eq!(written, documented);
    // The end of the day, the retention and one day more.
    let expiry = (1_699_920_000 + DAY + 5000 * DAY + DAY).to_string();
    for key in documented.keys() {
        assert_eq!(redis.cli(&["EXPIRETIME", key]), expiry, "{key}");
    }
}

// ---- the fence ----------------------------------------------------------------------------------

const SMALL: &str = r#"{"mapping":{"bitmap":["ip"],"add":["event"]}}"#;
pub const BUCKET: Bucket = Bucket { kind: BucketKind::Day, start: 1_699_920_000 };

pub fn part(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

/// A store with meta and the partitions t/0 and t/1 at 0.
pub async fn small_store(config: &Config) -> RedisStore {
    let store = RedisStore::new(config).unwrap();
    let mut meta = Meta::new(&plan(SMALL).rules, "g", lane_tags(config.lanes));
    meta.starts = [(part(0), 0), (part(1), 0)].into();
    store.create(&meta).await.unwrap();
    store
}

pub const fn key_write(metric: Metric, writes: Writes) -> KeyWrite {
    KeyWrite { bucket: BUCKET, expires_at: None, metric, writes }
}

fn small_writes(ips: &[&str]) -> Vec<KeyWrite> {
    vec![
        key_write(Metric::Unique { of: pattern("ip") }, Writes::Unique(elements(ips.iter().copied()))),
        key_write(Metric::Count { of: pattern("event") }, Writes::Count(vec![("a".into(), ips.len() as i64)])),
    ]
}

/// One record of one partition: `ip` and a count of one.
pub fn small(partition: i32, from: i64, ips: &[&str]) -> WriteBatch {
    let at = |position| if position == 0 { Checkpoint::start(0) } else { step(Checkpoint::start(0), position) };
    let span = Span { partition: part(partition), from: at(from), to: at(from + 1) };
    WriteBatch { spans: vec![span], writes: small_writes(ips) }
}

async fn counted(store: &RedisStore) -> i64 {
    match &store.read(0, &[Read::Counts { bucket: BUCKET, of: pattern("event") }]).await.unwrap()[..] {
        [Reply::Values(values)] => values.iter().map(|(_, count)| count).sum(),
        other => panic!("{other:?}"),
    }
}

async fn uniques(store: &RedisStore) -> Box<[u8; traqq_core::hll::REGISTERS]> {
    match &store.read(0, &[Read::Unique { bucket: BUCKET, of: pattern("ip") }]).await.unwrap()[..] {
        [Reply::Registers(registers)] => registers.registers(),
        other => panic!("{other:?}"),
    }
}

fn registers(ips: &[&str]) -> Box<[u8; traqq_core::hll::REGISTERS]> {
    let mut hll = traqq_core::hll::Hll::default();
    ips.iter().for_each(|ip| _ = hll.add(ip.as_bytes()));
    hll.registers()
}

async fn position(store: &RedisStore, partition: i32) -> i64 {
    store.positions(0).await.unwrap()[&part(partition)].position
}

#[tokio::test]
async fn a_batch_that_does_not_fit_writes_nothing() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    let mut connection = raw(&redis.url()).await;
    let mut session = store.session(0).await.unwrap();
    assert!(matches!(commit(&mut session, small(0, 0, &["1"])).await, Ok(Outcome::Applied(_))));
    let before = dump(&mut connection).await;
    let stored = small(0, 0, &[]).spans[0].to;

    // Behind, ahead, and at the position but after another record.
    let mut another = small(0, 1, &["2"]);
    another.spans[0].from.last.as_mut().unwrap().hash ^= 1;
    for batch in [small(0, 0, &["2"]), small(0, 2, &["2"]), another] {
        let mut session = store.session(0).await.unwrap();
        let outcome = commit(&mut session, batch).await.unwrap();
        assert_eq!(outcome, Outcome::Fenced(vec![(part(0), Some(stored))]));
    }
    // One span of two that does not hold refuses both.
    let mut both = small(0, 1, &["2"]);
    both.spans.push(small(1, 5, &[]).spans[0].clone());
    let mut session = store.session(0).await.unwrap();
    let fenced = Outcome::Fenced(vec![(part(0), Some(stored)), (part(1), Some(Checkpoint::start(0)))]);
    assert_eq!(commit(&mut session, both).await.unwrap(), fenced);
    // A partition without a checkpoint equals nothing.
    let mut session = store.session(0).await.unwrap();
    assert_eq!(commit(&mut session, small(9, 0, &["2"])).await.unwrap(), Outcome::Fenced(vec![(part(9), None)]));
    assert_eq!(dump(&mut connection).await, before);

    // Another plan.
    let mut session = store.session(0).await.unwrap();
    let plan: String = cmd("HGET").arg("p:meta").arg("plan").query_async(&mut connection).await.unwrap();
    let _: i64 = cmd("HSET").arg("p:meta").arg("plan").arg("other").query_async(&mut connection).await.unwrap();
    assert_eq!(commit(&mut session, small(0, 1, &["2"])).await.unwrap(), Outcome::PlanChanged("other".to_owned()));
    let _: i64 = cmd("HSET").arg("p:meta").arg("plan").arg(&plan).query_async(&mut connection).await.unwrap();
    assert_eq!(dump(&mut connection).await, before);
    // No meta at all, as after FLUSHALL.
    let mut session = store.session(0).await.unwrap();
    let () = cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    assert_eq!(commit(&mut session, small(0, 1, &["2"])).await.unwrap(), Outcome::PlanChanged(String::new()));
    assert!(dump(&mut connection).await.is_empty());
}

#[tokio::test]
async fn what_follows_a_failed_batch_is_refused() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    let mut connection = raw(&redis.url()).await;
    let mut session = store.session(0).await.unwrap();
    assert!(matches!(commit(&mut session, small(0, 0, &["1"])).await, Ok(Outcome::Applied(_))));
    // The first of three fails for want of the script; by the time the others arrive somebody has
    // loaded it again.
    let before = dump(&mut connection).await;
    let digest = {
        let () = cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
        let first = session.commit(Arc::new(small(0, 1, &["2"]))).await.await;
        assert!(matches!(&first, Err(StoreError::Reconnect(line)) if line.to_string().contains("script")), "{first:?}");
        store.session(0).await.unwrap()
    };
    drop(digest);
    let second = session.commit(Arc::new(small(0, 2, &["3"]))).await;
    let third = session.commit(Arc::new(small(0, 3, &["4"]))).await;
    let at = small(0, 0, &[]).spans[0].to;
    for answer in [second, third] {
        assert_eq!(answer.await.unwrap(), Outcome::Fenced(vec![(part(0), Some(at))]));
    }
    assert_eq!(dump(&mut connection).await, before);

    // Several on their way at once, the first one wrong.
    let mut session = store.session(0).await.unwrap();
    let mut answers = Vec::new();
    for from in [0, 2, 3] {
        answers.push(session.commit(Arc::new(small(0, from, &["2"]))).await);
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Outcome::Fenced(vec![(part(0), Some(at))]));
    }
    assert_eq!(dump(&mut connection).await, before);
    // And all of them right, in the order of the calls, though the answers are awaited backwards.
    let mut session = store.session(0).await.unwrap();
    let mut answers = Vec::new();
    for from in 1..40 {
        answers.push(session.commit(Arc::new(small(0, from, &["2"]))).await);
    }
    for answer in answers.into_iter().rev() {
        assert!(matches!(answer.await, Ok(Outcome::Applied(_))));
    }
    assert_eq!((position(&store, 0).await, counted(&store).await), (40, 40));
}

/// The connection is cut after every so many bytes of three batches or of their replies; what is
/// applied is always a whole batch, and who goes on from the stored position counts everything
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_anywhere_applies_whole_batches() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let direct = small_store(&config(&redis.url(), 1)).await;
    let store = RedisStore::new(&config(&proxy.url(), 1)).unwrap();
    let ips = ["1", "2", "3"];
    // How long the requests and replies of three batches are.
    let mut session = store.session(0).await.unwrap();
    let lengths = [Direction::Up, Direction::Down].map(|direction| proxy.passed(direction));
    let mut answers = Vec::new();
    for from in 0..3 {
        answers.push(session.commit(Arc::new(small(0, from, &[ips[from as usize]]))).await);
    }
    for answer in answers {
        assert!(matches!(answer.await, Ok(Outcome::Applied(_))));
    }
    drop(session);
    let lengths = [(Direction::Up, lengths[0]), (Direction::Down, lengths[1])]
        .map(|(direction, before)| (direction, proxy.passed(direction) - before));
    let (mut at, mut applied_by_position) = (3, BTreeMap::new());
    for (direction, length) in lengths {
        let stride = if direction == Direction::Up { 41 } else { 7 };
        for cut in (0..length).step_by(stride) {
            let mut session = store.session(0).await.unwrap();
            let (cuts, passed) = (proxy.cuts(), proxy.passed(direction));
            proxy.cut_after(direction, cut);
            let mut answers = Vec::new();
            for from in at..at + 3 {
                answers.push(session.commit(Arc::new(small(0, from, &[ips[(from % 3) as usize]]))).await);
            }
            let mut acknowledged = 0;
            for answer in answers {
                match answer.await {
                    Ok(Outcome::Applied(_)) => acknowledged += 1,
                    Err(StoreError::Reconnect(_)) => break,
                    other => panic!("{direction:?} {cut}: {other:?}"),
                }
            }
            // A batch is shorter if the one before it was acknowledged already: what it added need
            // not be sent.
            let is_shorter = || acknowledged == 3 && proxy.passed(direction) - passed <= cut;
            let is_cut = proxy.cuts() == cuts + 1;
            assert!(is_cut || is_shorter(), "{direction:?} {cut} of {length}, {acknowledged} acknowledged");
            proxy.resume();
            let ended = || {
                redis.cli(&["CLIENT", "LIST", "TYPE", "normal"]).lines().filter(|l| l.contains("cmd=evalsha")).count()
                    == 0
            };
            // What the server had received it may still be working on.
            poll_until(std::time::Duration::from_secs(10), "the cut connection is gone", || ended().then_some(()));
            let position = position(&direct, 0).await;
            assert_eq!(counted(&direct).await, position, "{direction:?} {cut}: half a batch");
            assert!((at + acknowledged..=at + 3).contains(&position), "{direction:?} {cut}: {position}");
            *applied_by_position.entry((direction == Direction::Up, position - at)).or_insert(0) += 1;
            at = position;
        }
    }
    // Every number of batches got through in one case or another; of lost replies, all three were
    // applied.
    for applied in 0..=2 {
        assert!(applied_by_position.contains_key(&(true, applied)), "{applied_by_position:?}");
    }
    assert!(applied_by_position.contains_key(&(false, 3)), "{applied_by_position:?}");
    assert_eq!(uniques(&direct).await, registers(&ips));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_does_not_come_ends_the_connection() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let direct = small_store(&config(&redis.url(), 1)).await;
    let store = RedisStore::new(&Config { response_timeout_ms: 150, ..config(&proxy.url(), 1) }).unwrap();
    let mut session = store.session(0).await.unwrap();
    proxy.stall();
    let first = session.commit(Arc::new(small(0, 0, &["1"]))).await;
    let second = session.commit(Arc::new(small(0, 1, &["1"]))).await;
    for answer in [first.await, second.await] {
        assert!(
            matches!(&answer, Err(StoreError::Reconnect(line)) if line.to_string().contains("timed out")),
            "{answer:?}"
        );
    }
    assert!(matches!(store.session(0).await, Err(StoreError::Reconnect(_))), "a session over a dead line");
    proxy.resume();
    // Both had been applied; a session of now finds itself behind them.
    let mut session = store.session(0).await.unwrap();
    assert_eq!(session.positions().await.unwrap()[&part(0)].position, 2);
    assert!(matches!(commit(&mut session, small(0, 0, &["1"])).await, Ok(Outcome::Fenced(_))));
    assert_eq!(counted(&direct).await, 2);
}

/// A session was once opened between FLUSHALL and the new meta: recording the server's identity
/// made a meta of one field, which kept the real one from being created and stopped every worker
/// for good.
#[tokio::test]
async fn a_session_on_an_empty_store_leaves_it_empty() {
    let redis = Redis::start(&[]);
    let store = RedisStore::new(&config(&redis.url(), 1)).unwrap();
    assert!(matches!(store.session(0).await, Err(StoreError::Retry(_))));
    assert_eq!(store.meta().await.unwrap(), None);
    assert_eq!(redis.cli(&["DBSIZE"]), "0");
    small_store(&config(&redis.url(), 1)).await;
    store.session(0).await.unwrap();
    let run_id = redis.cli(&["HGET", "p:meta", "clean_run_id"]);
    assert!(redis.cli(&["INFO", "server"]).contains(&format!("run_id:{run_id}\r")), "{run_id}");
}

#[tokio::test]
async fn a_key_of_another_type_is_quarantined_and_all_others_count() {
    let redis = Redis::start(&[]);
    let plan = plan(RULES);
    let metrics = metrics_of(&plan.rules.rules);
    let names = [
        "bmp:d:1699920000:ip",
        "bmv:d:1699920000:ip@geo",
        "add:d:1699920000:event",
        "add:d:1699920000:event~geo",
        "adv:d:1699920000:amount%3Ax:event",
        "adv:d:1699920000:amount%3Ax:event:n",
        "adv:d:1699920000:amount%3Ax:event:i",
        "top:d:1699920000:url",
        "bmp:d:1699920000:ip@geo:a%3Ab",
        "k:d:1699920000",
    ];
    for spoiled in names {
        redis.cli(&["FLUSHALL"]);
        let store = RedisStore::new(&config(&redis.url(), 1)).unwrap();
        let reference = MemoryStore::new(1);
        let mut meta = Meta::new(&plan.rules, "g", Vec::new());
        meta.starts = [(part(0), 0)].into();
        store.create(&meta).await.unwrap();
        reference.create(&meta).await.unwrap();
        let spoiled = format!("p:{spoiled}");
        redis.cli(&["RPUSH", &spoiled, "x"]);
        let writes = (0..6).map(|metric| drawn_write(&metrics, 0, &(metric, 0, vec![(0, 5, 1), (2, -7, 2)]))).collect();
        let batch = Arc::new(WriteBatch { spans: small(0, 0, &[]).spans, writes });
        let mut session = store.session(0).await.unwrap();
        let Outcome::Applied(applied) = session.commit(Arc::clone(&batch)).await.await.unwrap() else {
            panic!("{spoiled}")
        };
        reference.session(0).await.unwrap().commit(batch).await.await.unwrap();
        let named: BTreeSet<&str> = applied.quarantined.iter().map(|quarantined| &*quarantined.key).collect();
        assert!(named.contains(&*spoiled), "{spoiled}: {named:?}");
        let stored = store.quarantined(0).await.unwrap();
        let stored: BTreeSet<&str> = stored.iter().map(|quarantined| &*quarantined.key).collect();
        assert_eq!(stored, named);
        // Whatever is not named in the quarantine is exact.
        let all = reads_of(&metrics, &[BUCKET], &["a", "a:b"]);
        let sound: Vec<Read> =
            all.into_iter().filter(|read| !named.iter().any(|name| key_of(read) == name[2..])).collect();
        assert!(sound.len() >= 10, "{spoiled}");
        if !spoiled.contains("bmv") {
            assert_same(&store, &reference, &sound, &spoiled).await;
        }
        assert_eq!(position(&store, 0).await, 1);
    }
}

fn key_of(read: &Read) -> String {
    let start = read.bucket().start;
    match read {
        Read::Only { read, .. } => key_of(read),
        Read::Counts { of, .. } => format!("add:d:{start}:{of}"),
        Read::Sums { of, .. } => format!("adv:d:{start}:amount%3Ax:{of}"),
        Read::SumCounts { of, .. } => format!("adv:d:{start}:amount%3Ax:{of}:n"),
        Read::SumTotals { of, .. } => format!("adv:d:{start}:amount%3Ax:{of}:i"),
        Read::Unique { of, .. } => format!("bmp:d:{start}:{of}"),
        Read::UniqueBy { of, by, value, .. } => format!("bmp:d:{start}:{of}@{by}:{}", value.replace(':', "%3A")),
        Read::UniqueByValues { of, by, .. } => format!("bmv:d:{start}:{of}@{by}"),
        Read::TopFirst { of, .. } | Read::TopAtLeast { of, .. } | Read::TopScores { of, .. } => {
            format!("top:d:{start}:{of}")
        }
    }
}

/// A value that is no integer and a sum that overflows stop at their key.
#[tokio::test]
async fn values_that_cannot_be_added_to_are_quarantined() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    for (value, part) in [("x", "not an integer"), ("9223372036854775807", "overflow")] {
        redis.cli(&["HSET", "p:add:d:1699920000:event", "a", value]);
        let mut session = store.session(0).await.unwrap();
        let from = position(&store, 0).await;
        let Ok(Outcome::Applied(applied)) = commit(&mut session, small(0, from, &["1", value])).await else { panic!() };
        assert!(matches!(&applied.quarantined[..], [Quarantined { error, .. }] if error.contains(part)), "{applied:?}");
    }
    assert_eq!(uniques(&store).await, registers(&["1", "x", "9223372036854775807"]));
    let reply = store.read(0, &[Read::Counts { bucket: BUCKET, of: pattern("event") }]).await.unwrap();
    assert_eq!(reply, [Reply::Values(vec![("a".to_owned(), i64::MAX)])]);
}

/// Nothing of a batch is applied when memory runs out, and it can be sent again.
#[tokio::test]
async fn out_of_memory_refuses_a_batch_as_a_whole() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    let mut connection = raw(&redis.url()).await;
    let mut session = store.session(0).await.unwrap();
    let before = dump(&mut connection).await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = commit(&mut session, small(0, 0, &["1"])).await;
    assert!(matches!(&refused, Err(StoreError::Retry(line)) if line.to_string().contains("maxmemory")), "{refused:?}");
    assert_eq!(dump(&mut connection).await, before);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let mut session = store.session(0).await.unwrap();
    assert!(matches!(commit(&mut session, small(0, 0, &["1"])).await, Ok(Outcome::Applied(_))));
}

// ---- the shadow ---------------------------------------------------------------------------------

fn sent_and_saved(outcome: StoreResult<Outcome>) -> (u64, u64) {
    match outcome {
        Ok(Outcome::Applied(applied)) => (applied.elements_sent, applied.elements_saved),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn repeats_are_not_sent_and_registers_are_those_of_sending_all() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    let mut session = store.session(0).await.unwrap();
    let mut connection = raw(&redis.url()).await;
    let mut random = crate::model::Random(7);
    let (mut sent, mut saved) = (0, 0);
    for from in 0..60 {
        let ips: BTreeSet<String> = (0..500).map(|_| random.below(20_000).to_string()).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        let counts = sent_and_saved(commit(&mut session, small(0, from, &ips)).await);
        assert_eq!(counts.0 + counts.1, ips.len() as u64);
        sent += counts.0;
        saved += counts.1;
        let _: i64 = cmd("PFADD").arg("full").arg(&ips).query_async(&mut connection).await.unwrap();
        // The very same once more, on a partition of its own.
        assert_eq!(sent_and_saved(commit(&mut session, small(1, from, &ips)).await), (0, ips.len() as u64));
    }
    assert!(saved > sent, "sent {sent}, saved {saved}");
    let full: Vec<u8> = cmd("GET").arg("full").query_async(&mut connection).await.unwrap();
    assert!(uniques(&store).await == traqq_core::hll::Hll::decode(&full).unwrap().registers());
    // Without a shadow everything is sent.
    let plain = RedisStore::new(&Config { shadow_bytes_max: 0, ..config(&redis.url(), 1) }).unwrap();
    let mut session = plain.session(0).await.unwrap();
    assert_eq!(sent_and_saved(commit(&mut session, small(0, 60, &["1", "2"])).await), (2, 0));
    assert_eq!(sent_and_saved(commit(&mut session, small(0, 61, &["1", "2"])).await), (2, 0));
}

/// Positions and registers go back, the connection stays: what the shadow knows of is not in the
/// store any more.
#[tokio::test]
async fn a_shadow_of_a_store_that_went_back_is_refused() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    let mut connection = raw(&redis.url()).await;
    let mut session = store.session(0).await.unwrap();
    assert_eq!(sent_and_saved(commit(&mut session, small(0, 0, &["1"])).await), (1, 0));
    // What the store will go back to, while the shadow knows `2` by partition 1.
    let old = dump(&mut connection).await;
    assert_eq!(sent_and_saved(commit(&mut session, small(1, 0, &["2"])).await), (1, 0));
    for (key, (value, _)) in &old {
        let () = cmd("RESTORE").arg(key).arg(0).arg(value).arg("REPLACE").query_async(&mut connection).await.unwrap();
    }
    let restored = contents(&redis, "0");
    // Partition 0 has not moved: its fence holds, and only the shadow's guard is in the way of
    // leaving `2` out.
    let outcome = commit(&mut session, small(0, 1, &["2", "3"])).await.unwrap();
    assert_eq!(outcome, Outcome::ShadowStale);
    assert_eq!(contents(&redis, "0"), restored);
    let mut session = store.session(0).await.unwrap();
    assert_eq!(sent_and_saved(commit(&mut session, small(0, 1, &["2", "3"])).await), (2, 0));
    assert_eq!(uniques(&store).await, registers(&["1", "2", "3"]));
}

/// A key that vanished was once made anew by a batch whose elements were all unknown to the shadow,
/// and from then on the shadow was trusted again: elements counted before were left out for good.
#[tokio::test]
async fn a_shadow_of_a_key_that_is_gone_is_refused() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    for (from, vanish) in [(0, ["DEL", "p:bmp:d:1699920000:ip", ""]), (10, ["PEXPIRE", "p:bmp:d:1699920000:ip", "1"])] {
        for again in [&["1", "3"][..], &["3"][..]] {
            let from = from + if again.len() == 1 { 5 } else { 0 };
            let mut moved = store.positions(0).await.unwrap()[&part(0)];
            let target = if from == 0 { Checkpoint::start(0) } else { step(Checkpoint::start(0), from) };
            assert!(store.set_position(&part(0), Some(moved), target).await.unwrap());
            moved = target;
            let mut session = store.session(0).await.unwrap();
            assert_eq!(sent_and_saved(commit(&mut session, small(0, moved.position, &["1", "2"])).await), (2, 0));
            let command: Vec<&str> = vanish.into_iter().filter(|word| !word.is_empty()).collect();
            redis.cli(&command);
            poll_until(std::time::Duration::from_secs(5), "the key is gone", || {
                (redis.cli(&["EXISTS", "p:bmp:d:1699920000:ip"]) == "0").then_some(())
            });
            let outcome = commit(&mut session, small(0, from + 1, again)).await.unwrap();
            assert_eq!(outcome, Outcome::ShadowStale, "{vanish:?} {again:?}");
            let mut session = store.session(0).await.unwrap();
            assert_eq!(sent_and_saved(commit(&mut session, small(0, from + 1, again)).await).1, 0);
            assert_eq!(
                sent_and_saved(commit(&mut session, small(0, from + 2, &["1"])).await).1,
                u64::from(again.len() == 2)
            );
            let expected: Vec<&str> = again.iter().copied().chain(["1"]).collect();
            assert_eq!(uniques(&store).await, registers(&expected));
            redis.cli(&["DEL", "p:bmp:d:1699920000:ip"]);
        }
    }
}
