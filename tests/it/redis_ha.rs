//! Redis Cluster and Sentinel: real servers that fail over, and slots that move, under the store
//! and under a worker.
//!
//! Events on their way through all of this are for `tests/chaos`; here each case stands alone.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use traqq_core::model::{Finding, Secret};
use traqq_counts::mapping::{Metric, Writes};
use traqq_counts::store::redis::{Config, RedisStore, checks, lane_tags};
use traqq_counts::store::{Meta, Outcome, Read, Reply, Session, Store, StoreError, StoreResult};

use crate::cli::{traqq, write_config};
use crate::process::{PATIENCE, Process, post};
use crate::redis_access::use_all;
use crate::redis_store::{BUCKET, commit, elements, key_write, now, part, pattern, plan, small};
use crate::servers::{Nodes, free_port, poll_until};

const LANES: usize = 3;
const RULES: &str = r#"{"mapping":{"add":["event"],"bitmap":["ip"],"bitmap_by":[{"key":"geo","of":"ip"}]}}"#;

fn cluster() -> (Nodes, Config) {
    let nodes = Nodes::up("redis-cluster");
    let config =
        Config { url: Secret(nodes.variable("REDIS_URL")), prefix: "p".to_owned(), lanes: LANES, ..Config::default() };
    (nodes, config)
}

/// The first partition of a lane.
fn in_lane(lane: usize) -> i32 {
    (0..).find(|number| part(*number).lane(LANES) == lane).unwrap()
}

async fn store(config: &Config) -> RedisStore {
    let store = RedisStore::new(config).unwrap();
    let mut meta = Meta::new(&plan(RULES).rules, "g", lane_tags(config.lanes));
    meta.starts = (0..LANES).map(|lane| (part(in_lane(lane)), 0)).collect();
    store.create(&meta).await.unwrap();
    store
}

fn cli(port: &str, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", port, "--raw"]).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the replica of a primary has acknowledged what the primary has written.
fn replica_has_all(primary: &str) -> bool {
    let role = cli(primary, &["ROLE"]);
    // "master", its offset, then of each replica the host, the port and the offset.
    let lines: Vec<&str> = role.lines().collect();
    matches!(lines[..], ["master", written, _, _, acknowledged] if acknowledged == written)
}

/// The keys that the primaries have: a replica may not be synchronised yet.
fn keys(nodes: &Nodes, pattern: &str) -> BTreeSet<String> {
    let ports = nodes.ports().into_iter().filter(|port| cli(port, &["ROLE"]).starts_with("master"));
    let printed: String = ports.map(|port| cli(&port, &["KEYS", pattern])).collect();
    // A server without any prints an empty line.
    printed.lines().filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

/// The directory of the primary that has a slot, and those of the others.
fn primaries(nodes: &Nodes, slot: u16) -> (usize, Vec<usize>) {
    let any = nodes.ports().into_iter().find(|port| cli(port, &["PING"]).contains("PONG")).unwrap();
    let mut owner = None;
    let mut others = BTreeSet::new();
    for line in cli(&any, &["CLUSTER", "NODES"]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = words[1].split('@').next().unwrap().rsplit(':').next().unwrap();
        let node = nodes.ports().iter().position(|known| known == port).unwrap();
        if !words[2].contains("master") || words[2].contains("fail") {
            continue;
        }
        let has_it = words[8..].iter().filter(|range| !range.starts_with('[')).any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse::<u16>().unwrap()..=last.parse().unwrap()).contains(&slot)
        });
        if has_it {
            owner = Some(node);
        } else {
            others.insert(node);
        }
    }
    (owner.expect("somebody has the slot"), others.into_iter().collect())
}

fn slot_of_lane(nodes: &Nodes, lane: usize) -> u16 {
    let key = format!("p{{{}}}:meta", lane_tags(LANES)[lane]);
    cli(&nodes.ports()[0], &["CLUSTER", "KEYSLOT", &key]).trim().parse().unwrap()
}

/// A batch that counts one event, with the value `geo` for a unique count by value.
fn batch(partition: i32, from: i64, geo: &str) -> traqq_counts::mapping::WriteBatch {
    let mut batch = small(partition, from, &[&from.to_string()]);
    let metric = Metric::UniqueBy { of: pattern("ip"), by: pattern("geo") };
    let ip = from.to_string();
    batch.writes.push(key_write(metric, Writes::UniqueBy(vec![(geo.into(), elements([ip.as_str()]))])));
    batch
}

async fn counted(store: &RedisStore, lane: usize) -> StoreResult<i64> {
    match &store.read(lane, &[Read::Counts { bucket: BUCKET, of: pattern("event") }]).await?[..] {
        [Reply::Values(values)] => Ok(values.iter().map(|(_, count)| count).sum()),
        other => panic!("{other:?}"),
    }
}

/// A new session as soon as there is one, and the position it finds.
async fn reopened(store: &RedisStore, lane: usize) -> (Box<dyn Session>, i64) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let opened = async {
            let mut session = store.session(lane).await?;
            let position = session.positions().await?[&part(in_lane(lane))].position;
            StoreResult::Ok((session, position))
        };
        match opened.await {
            Ok(found) => return found,
            Err(StoreError::Stop(error)) => panic!("{error}"),
            Err(error) if std::time::Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// While a slot moves, its keys are on two nodes. A batch is refused before anything of it is
/// written, also when all keys that it names first are still here and only one that the script
/// comes to in the middle is not; reads go on.
#[tokio::test]
async fn a_slot_that_moves_refuses_batches_whole_and_answers_reads() {
    let (nodes, config) = cluster();
    let store = store(&config).await;
    let (lane, partition) = (1, in_lane(1));
    let (mut session, _) = reopened(&store, lane).await;
    for from in 0..5 {
        assert!(matches!(commit(&mut session, batch(partition, from, "de")).await, Ok(Outcome::Applied(_))));
    }
    let slot = slot_of_lane(&nodes, lane).to_string();
    let (from, others) = primaries(&nodes, slot.parse().unwrap());
    let ports = nodes.ports();
    let (source, target) = (&ports[from], &ports[others[0]]);
    // The quarantine would be missing as well, had no key of the lane ever been quarantined.
    let tag = format!("p{{{}}}", lane_tags(LANES)[lane]);
    assert_eq!(cli(source, &["HSET", &format!("{tag}:quarantine"), "x", "y"]).trim(), "1");
    let id = |port: &str| cli(port, &["CLUSTER", "MYID"]).trim().to_owned();
    cli(target, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(source)]);
    cli(source, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(target)]);
    let migrate = |key: &str| cli(source, &["MIGRATE", "127.0.0.1", target, key, "0", "5000"]);
    let by_value = format!("{tag}:bmp:d:{}:ip@geo:de", BUCKET.start);
    assert!(migrate(&by_value).contains("OK"));
    let refused = commit(&mut session, batch(partition, 5, "de")).await;
    assert!(
        matches!(&refused, Err(StoreError::Retry(line)) if line.to_string().contains("moving the slot")),
        "{refused:?}"
    );
    assert_eq!(session.positions().await.unwrap()[&part(partition)].position, 5);
    assert_eq!(counted(&store, lane).await, Ok(5));
    let unique = Read::UniqueBy { bucket: BUCKET, of: pattern("ip"), by: pattern("geo"), value: "de".to_owned() };
    let [Reply::Registers(registers)] = &store.read(lane, &[unique]).await.unwrap()[..] else { panic!("registers") };
    assert_eq!(registers.count(), 5);
    // All of it; then the lane is found where it is now.
    loop {
        let keys = cli(source, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
        if keys.trim().is_empty() {
            break;
        }
        keys.lines().for_each(|key| assert!(migrate(key).contains("OK"), "{key}"));
    }
    assert_eq!(store.positions(lane).await.unwrap()[&part(partition)].position, 5, "asked where it is moving to");
    for port in [target, source] {
        cli(port, &["CLUSTER", "SETSLOT", &slot, "NODE", &id(target)]);
    }
    let moved = commit(&mut session, batch(partition, 5, "de")).await;
    assert!(
        matches!(&moved, Err(StoreError::Reconnect(line)) if line.to_string().contains("looking for who has")),
        "{moved:?}"
    );
    let (mut session, position) = reopened(&store, lane).await;
    assert_eq!(position, 5);
    assert!(matches!(commit(&mut session, batch(partition, 5, "de")).await, Ok(Outcome::Applied(_))));
    // The shared connection learns of it by the error that the first read gets.
    poll(async || counted(&store, lane).await == Ok(6)).await;
}

async fn poll(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "it does not come about");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A primary is killed: its replica takes over, what was counted and position agree there, and the
/// other lanes are not concerned.
#[tokio::test]
async fn a_replica_takes_over_a_lane() {
    let (mut nodes, config) = cluster();
    let store = store(&config).await;
    let (lane, partition) = (0, in_lane(0));
    let (mut session, _) = reopened(&store, lane).await;
    let (primary, _) = primaries(&nodes, slot_of_lane(&nodes, lane));
    for from in 0..100 {
        // A replica that had no time to run has nothing yet, on a machine that is busy.
        if from == 90 {
            poll(async || replica_has_all(&nodes.ports()[primary])).await;
        }
        assert!(matches!(commit(&mut session, batch(partition, from, "de")).await, Ok(Outcome::Applied(_))));
    }
    nodes.kill9(primary);
    let error = commit(&mut session, batch(partition, 100, "de")).await;
    assert!(matches!(error, Err(StoreError::Reconnect(_))), "{error:?}");
    let (mut session, position) = reopened(&store, lane).await;
    // Replication is asynchronous: the last batches may be gone, with their positions.
    assert!((90..=100).contains(&position), "{position}");
    poll(async || counted(&store, lane).await == Ok(position)).await;
    for from in position..150 {
        assert!(matches!(commit(&mut session, batch(partition, from, "de")).await, Ok(Outcome::Applied(_))));
    }
    assert_eq!(counted(&store, lane).await, Ok(150));
    nodes.restart(primary);
    let all = checks(&config, now()).await;
    assert!(all.iter().all(|check| !check.is_bad()), "{all:?}");
    assert_eq!(all.iter().filter(|check| check.name == "connection").count(), LANES, "{all:?}");
}

#[tokio::test]
async fn a_cluster_is_used_as_one_and_nothing_else() {
    let (nodes, config) = cluster();
    use_all(&config).await.unwrap();
    let one = Config { lanes: 1, ..config.clone() };
    let error = RedisStore::new(&one).err().unwrap();
    assert!(error.to_string().contains("store.redis.lanes = 1"), "{error}");
    let node = Config { url: Secret(format!("redis://127.0.0.1:{}", nodes.ports()[0])), lanes: 1, ..config.clone() };
    let all = checks(&node, now()).await;
    let finding = &all.iter().find(|check| check.name == "cluster").unwrap().finding;
    assert!(matches!(finding, Finding::Bad(line) if line.contains("redis-cluster://")), "{finding:?}");
    // A node that does not answer is not needed to find the others.
    let url = format!("redis-cluster://127.0.0.1:{},127.0.0.1:{}", free_port(), nodes.ports()[1]);
    let store = RedisStore::new(&Config { url: Secret(url), ..config.clone() }).unwrap();
    assert!(store.meta().await.unwrap().is_some());
    let nobody = Config { url: Secret(format!("redis-cluster://127.0.0.1:{}", free_port())), ..config };
    let all = checks(&nobody, now()).await;
    assert!(matches!(&all[..], [check] if matches!(&check.finding, Finding::Unavailable(_))), "{all:?}");
}

/// A worker with its lanes on three nodes: counts, answers, exports.
#[test]
fn a_worker_counts_in_a_cluster() {
    let (nodes, config) = cluster();
    let directory = tempfile::tempdir().unwrap();
    let http = free_port();
    let text = format!(
        "[broker.local]\npartitions = 8\npartition_by = \"ip\"\n[store.redis]\nurl = \"{}\"\nprefix = \"t\"\nlanes = {LANES}\n\
         [data]\ndirectory = \"{}\"\n[mapping]\nadd = [\"event\"]\nbitmap = [\"ip\"]\ntop = [\"url\"]\n\
         [server]\nhttp = \"127.0.0.1:{http}\"\ntcp = \"off\"\n",
        config.url.0,
        directory.path().join("data").display()
    );
    let file = write_config(directory.path(), &text);
    let worker = Process::start(&file);
    worker.wait_for_line("listening");
    let event =
        |n: usize| format!(r#"{{"event":"e{}","ip":"10.0.{}.{}","url":"/{}"}}"#, n % 3, n / 250, n % 250, n % 5);
    let lines: Vec<String> = (0..3_000).map(event).collect();
    for chunk in lines.chunks(100) {
        let answer = post(http, "content-type: application/x-ndjson\r\n", &chunk.join("\n"));
        assert!(answer.contains("\"accepted\":100"), "{answer}");
    }
    let find = |metric: &str| {
        let output = traqq().arg("--config").arg(&file).args(["find", metric]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    poll_until(PATIENCE, "all events", || find("add/event").contains("\n3,000\n").then_some(()));
    for (metric, expected) in [("add/event", "e2  1,000"), ("top/url", "/4  600"), ("bitmap/ip", "unique")] {
        assert!(find(metric).contains(expected), "{metric}: {}", find(metric));
    }
    let lanes = keys(&nodes, "t{*}:ckpt");
    assert_eq!(lanes.len(), LANES, "{lanes:?}");
    // A node that loses everything takes its lane with it, or the meta that all look at: what it
    // had is counted again.
    for port in nodes.ports() {
        if !cli(&port, &["FLUSHALL"]).contains("OK") {
            continue;
        }
        poll_until(PATIENCE, "all is counted again", || {
            let is_whole = |metric, expected| find(metric).contains(expected);
            (is_whole("add/event", "\n3,000\n") && is_whole("top/url", "/4  600")).then_some(())
        });
    }
    assert_eq!(worker.stop(), 0);
    // Moved to another prefix of the same cluster, as it would be to another store.
    let dump = directory.path().join("dump");
    let elsewhere = directory.path().join("elsewhere.toml");
    std::fs::write(&elsewhere, text.replace("prefix = \"t\"", "prefix = \"u\"")).unwrap();
    for (file, command) in [(&file, "export"), (&elsewhere, "import")] {
        let done = traqq().arg("--config").arg(file).args(["store", command]).arg(&dump).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let unprefixed = |prefix: &str| -> BTreeSet<String> {
        keys(&nodes, &format!("{prefix}{{*}}:*")).iter().map(|key| key[1..].to_owned()).collect()
    };
    assert!(unprefixed("t").len() > 9);
    assert_eq!(unprefixed("t"), unprefixed("u"));
}

/// Sentinels say who the primary is; when it is killed they name another one, and when it comes
/// back it is a replica.
#[tokio::test]
async fn sentinels_name_the_primary() {
    let mut nodes = Nodes::up("redis-sentinel");
    let url = nodes.variable("REDIS_URL");
    let config = Config { url: Secret(url.clone()), prefix: "p".to_owned(), ..Config::default() };
    let store = RedisStore::new(&config).unwrap();
    let mut meta = Meta::new(&plan(RULES).rules, "g", lane_tags(1));
    meta.starts = [(part(0), 0)].into();
    store.create(&meta).await.unwrap();
    let open = async || {
        let mut session = store.session(0).await?;
        let position = session.positions().await?[&part(0)].position;
        StoreResult::Ok((session, position))
    };
    let (mut session, _) = open().await.unwrap();
    for from in 0..50 {
        assert!(matches!(commit(&mut session, small(0, from, &["1"])).await, Ok(Outcome::Applied(_))));
    }
    nodes.kill9(0);
    assert!(matches!(commit(&mut session, small(0, 50, &["1"])).await, Err(StoreError::Reconnect(_))));
    let mut found = None;
    poll(async || {
        found = open().await.ok();
        found.is_some()
    })
    .await;
    let (mut session, position) = found.unwrap();
    assert!((40..=50).contains(&position), "{position}");
    assert!(matches!(commit(&mut session, small(0, position, &["1"])).await, Ok(Outcome::Applied(_))));
    // Back as a replica, it is not taken for the primary.
    nodes.restart(0);
    poll_until(PATIENCE, "the old primary is a replica", || {
        cli(&nodes.ports()[0], &["INFO", "replication"]).contains("role:slave").then_some(())
    });
    let all = checks(&config, now()).await;
    assert!(all.iter().all(|check| !check.is_bad()), "{all:?}");
    let wrong = Config { url: Secret(url.replace("#main", "#other")), ..config };
    let all = checks(&wrong, now()).await;
    let Finding::Bad(line) = &all[0].finding else { panic!("{all:?}") };
    assert!(line.contains("knows no primary named \"other\""), "{line}");
}
