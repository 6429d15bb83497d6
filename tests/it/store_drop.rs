//! `traqq store drop`: everything of one prefix is removed, whatever stands in its keys, and
//! nothing of another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use redis::cmd;
use traqq_core::model::Checkpoint;
use traqq_counts::mapping::{Metric, Writes};
use traqq_counts::store::redis::{Config, RedisStore, lane_tags};
use traqq_counts::store::{Meta, Outcome, Store, StoreError, removal};

use crate::cli::traqq;
use crate::local::{NDJSON, Site, event};
use crate::process::PATIENCE;
use crate::redis_store::{commit, dump, elements, key_write, part, pattern, plan, raw, small};
use crate::scene::{Scene, events};
use crate::servers::{Nodes, Redis, poll_until};

const RULES: &str = r#"{"mapping":{"add":["event"],"top":["url"],"bitmap":["ip"],"bitmap_by":[{"key":"geo","of":"ip"}],
    "add_value":[{"key":"event","add_key":"amount"}]}}"#;
/// What stands in keys: line ends broke `xargs`, quotes and blanks too.
const LABELS: [&str; 6] = ["a\nb", "it's \"quoted\"", "a b\tc", "*?[x]\\", "\u{9b}\u{202e}\0", "日本語"];

fn run(config: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = traqq().arg("--config").arg(config).args(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned())
}

fn config(url: &str, prefix: &str, lanes: usize) -> Config {
    crate::redis_store::config(url, lanes).with_prefix(prefix)
}

trait WithPrefix {
    fn with_prefix(self, prefix: &str) -> Self;
}

impl WithPrefix for Config {
    fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }
}

/// A store in which every partition of ten has counted, with each label in the name of a key.
async fn filled(config: &Config) -> RedisStore {
    let store = RedisStore::new(config).unwrap();
    let mut meta = Meta::new(&plan(RULES).rules, "g", lane_tags(config.lanes));
    meta.starts = (0..10).map(|number| (part(number), 0)).collect();
    store.create(&meta).await.unwrap();
    for number in 0..10 {
        let mut batch = small(number, 0, &["1", "2"]);
        let metric = Metric::UniqueBy { of: pattern("ip"), by: pattern("geo") };
        let values = LABELS.map(|label| (label.into(), elements(["1.2.3.4"])));
        batch.writes.push(key_write(metric, Writes::UniqueBy(values.into())));
        let mut session = store.session(part(number).lane(config.lanes)).await.unwrap();
        assert!(matches!(commit(&mut session, batch).await, Ok(Outcome::Applied(_))));
    }
    store
}

/// Keys of others that begin like those of prefix `a`, or hold its name.
async fn strangers(url: &str) {
    let mut connection = raw(url).await;
    for key in
        ["a", "a:", "aa:meta", "a3:meta", "a:c:meta", "a:c:add:d:1:x", "a:x", "b:a:meta", "a{1}", "a[b", "A:meta"]
    {
        let set: String = cmd("SET").arg(key).arg("kept").query_async(&mut connection).await.unwrap();
        assert_eq!(set, "OK");
    }
}

#[tokio::test]
async fn everything_of_a_prefix_goes_and_nothing_of_another() {
    let redis = Redis::start(&[]);
    let url = redis.url();
    let mut connection = raw(&url).await;
    strangers(&url).await;
    for (prefix, lanes) in [("a2", 1), ("a:b", 2), ("b", 4)] {
        filled(&config(&url, prefix, lanes)).await;
    }
    let others = dump(&mut connection).await;
    for (prefix, lanes) in [("a", 1), ("a", 4), ("a]b^c-d\\e", 1), ("a]b^c-d\\e", 3), ("a.b", 1)] {
        let store = filled(&config(&url, prefix, lanes)).await;
        let before = dump(&mut connection).await;
        let added = before.len() - others.len();
        assert!(added > LABELS.len() + 3, "{prefix}");
        assert_eq!(removal::size(&store).await.unwrap(), Some(added as u64), "{prefix} with {lanes} lanes");
        assert_eq!(removal::remove(&store, Duration::ZERO).await.unwrap(), added as u64);
        assert_same(&dump(&mut connection).await, &others, prefix);
        assert_eq!(removal::size(&store).await.unwrap(), None);
        assert_eq!(removal::remove(&store, Duration::ZERO).await.unwrap(), 0, "again");
    }
}

type Dump = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

fn assert_same(found: &Dump, expected: &Dump, context: &str) {
    let names =
        |dump: &Dump| dump.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names(found), names(expected), "{context}");
    assert_eq!(found, expected, "{context}");
}

/// What was cut off in the middle is nobody's to count upon or to ask, and the same command ends
/// it.
#[tokio::test]
async fn a_removal_that_was_cut_off_is_done_again() {
    let redis = Redis::start(&[]);
    let url = redis.url();
    for lanes in [1, 3] {
        let config = config(&url, "a", lanes);
        let store = filled(&config).await;
        let lane = part(0).lane(lanes);
        let mut session = store.session(lane).await.unwrap();
        store.begin_removal().await.unwrap();
        let mut connection = raw(&url).await;
        let keys: Vec<Vec<u8>> = cmd("KEYS").arg("a*:add:*").query_async(&mut connection).await.unwrap();
        let removed: usize = cmd("UNLINK").arg(&keys).query_async(&mut connection).await.unwrap();
        assert_eq!(removed, keys.len());
        let error = traqq_counts::store::fitting_meta(&store).await.unwrap_err().to_string();
        assert!(error.contains("is being removed") && error.contains("traqq store drop"), "{error}");
        let refused = commit(&mut session, small(0, 1, &["3"])).await;
        assert!(matches!(refused, Ok(Outcome::PlanChanged(_))), "{refused:?}");
        assert!(
            matches!(store.session(lane).await.err(), Some(StoreError::Stop(text)) if text.to_string().contains("is being removed"))
        );
        // It is not begun by a worker, nor filled.
        let meta = Meta::new(&plan(RULES).rules, "g", lane_tags(lanes));
        assert!(store.create(&meta).await.unwrap().is_dropped());
        assert!(removal::remove(&store, PATIENCE).await.unwrap() > 0, "positions are not watched again");
        assert!(dump(&mut connection).await.is_empty());
    }
}

/// A worker that moves a position while it is looked at.
#[tokio::test]
async fn a_store_that_is_counted_into_is_not_removed() {
    let redis = Redis::start(&[]);
    let store = filled(&config(&redis.url(), "a", 2)).await;
    let before = dump(&mut raw(&redis.url()).await).await.len();
    let counting = async {
        loop {
            let stored = store.positions(part(3).lane(2)).await.unwrap()[&part(3)];
            let to = Checkpoint { position: stored.position + 1, ..stored };
            assert!(store.set_position(&part(3), Some(stored), to).await.unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let refused: Result<u64, StoreError> = tokio::select! {
        refused = removal::remove(&store, PATIENCE) => refused,
        () = counting => unreachable!("it goes on"),
    };
    assert!(refused.unwrap_err().to_string().contains("a worker counts into the store"));
    assert_eq!(dump(&mut raw(&redis.url()).await).await.len(), before);
    assert!(traqq_counts::store::fitting_meta(&store).await.is_ok());
    let other = RedisStore::new(&config(&redis.url(), "a", 3)).unwrap();
    let error = removal::size(&other).await.unwrap_err().to_string();
    assert!(error.contains("set store.redis.lanes = 2"), "{error}");
}

#[tokio::test]
async fn a_prefix_of_a_cluster_goes_from_every_node() {
    let nodes = Nodes::up("redis-cluster");
    let url = nodes.variable("REDIS_URL");
    let (kept, store) = (filled(&config(&url, "a2", 3)).await, filled(&config(&url, "a", 3)).await);
    let before = removal::size(&kept).await.unwrap();
    let keys = removal::size(&store).await.unwrap().unwrap();
    assert_eq!(removal::remove(&store, Duration::ZERO).await.unwrap(), keys);
    assert_eq!(removal::size(&store).await.unwrap(), None);
    assert_eq!(removal::size(&kept).await.unwrap(), before);
    assert!(traqq_counts::store::fitting_meta(&kept).await.unwrap().is_some());
}

#[tokio::test]
async fn a_prefix_goes_from_the_primary_that_sentinels_name() {
    let nodes = Nodes::up("redis-sentinel");
    let config = config(&nodes.variable("REDIS_URL"), "a", 2);
    let store = filled(&config).await;
    let keys = removal::size(&store).await.unwrap().unwrap();
    assert_eq!(removal::remove(&store, Duration::ZERO).await.unwrap(), keys);
    assert_eq!(removal::size(&store).await.unwrap(), None);
}

/// From outside, in front of Redis: it says what would go, is told to, and refuses beside a worker
/// that has nothing to do.
#[test]
fn a_prefix_is_dropped_when_it_is_meant_and_no_worker_runs() {
    let redis = Redis::start(&[]);
    let site = Site::new("", &format!("[store.redis]\nurl = \"{}\"\nprefix = \"t\"\n", redis.url()));
    redis.cli(&["SET", "t2:meta", "kept"]);
    let process = site.start();
    assert_eq!(site.post(NDJSON, event("a\nb", 1).as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    let before = redis.cli(&["DBSIZE"]);
    let (code, text) = run(&site.config, &["store", "drop", "--yes"]);
    assert_eq!((code, redis.cli(&["DBSIZE"])), (Some(1), before.clone()), "{text}");
    assert!(text.contains("stop it, and try again"), "{text}");
    assert_eq!(process.stop(), 0);
    let (code, text) = run(&site.config, &["store", "drop"]);
    let keys = before.parse::<usize>().unwrap() - 1;
    assert!(
        text.contains(&format!("prefix \"t\": {keys} keys, and where counting stands, would be removed")),
        "{text}"
    );
    assert!(code == Some(2) && text.contains("--yes") && redis.cli(&["DBSIZE"]) == before, "{text}");
    let (code, text) = run(&site.config, &["store", "drop", "--yes"]);
    assert!(code == Some(0) && text.contains(&format!("{keys} keys removed")), "{text}");
    assert_eq!(redis.cli(&["KEYS", "*"]), "t2:meta");
    let (code, text) = run(&site.config, &["store", "drop", "--yes"]);
    assert!(code == Some(0) && text.contains("is empty"), "{text}");
}

/// A worker in front of Kafka that has nothing to count would go on under the empty prefix.
#[test]
fn a_prefix_is_not_dropped_beside_an_idle_worker_of_its_group() {
    let scene = Scene::new("it-drop", 1, "");
    scene.produce(&[], &events(10));
    let worker = scene.worker("one");
    worker.wait_until_ready();
    poll_until(PATIENCE, "all is counted", || (worker.metric("traqq_events_total") >= 10.0).then_some(()));
    let before = scene.redis.cli(&["DBSIZE"]);
    let (code, text) = run(&scene.file, &["store", "drop", "--yes"]);
    assert!(code == Some(1) && text.contains("has 1 members; stop them"), "{text}");
    assert_eq!(scene.redis.cli(&["DBSIZE"]), before);
    scene.assert_exact(10);
    assert_eq!(worker.stop(), 0);
    let (code, text) = run(&scene.file, &["store", "drop", "--yes"]);
    assert!(code == Some(0) && text.contains("removed"), "{text}");
    assert_eq!(scene.redis.cli(&["DBSIZE"]), "0");
}

/// The embedded store: its counts go, and the log beside them stays and is counted again.
#[test]
fn an_embedded_store_is_dropped_and_its_log_kept() {
    let site = Site::new("", "");
    let process = site.start();
    let lines: Vec<String> = (0..50).map(|number| event(&format!("{number}\n"), number)).collect();
    assert_eq!(site.post(NDJSON, lines.join("\n").as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    let (code, text) = run(&site.config, &["store", "drop", "--yes"]);
    assert!(code == Some(1) && text.contains("is in use"), "{text}");
    assert_eq!(process.stop(), 0);
    let (code, text) = run(&site.config, &["store", "drop"]);
    assert!(code == Some(2) && text.contains("keys, and where counting stands, would be removed"), "{text}");
    let export = site.config.with_file_name("counts.zst");
    assert_eq!(run(&site.config, &["store", "export", export.to_str().unwrap()]).0, Some(0));
    let (code, text) = run(&site.config, &["store", "drop", "--yes"]);
    assert!(code == Some(0) && text.contains("keys removed") && text.contains("its log is kept"), "{text}");
    let (code, text) = run(&site.config, &["store", "drop", "--yes"]);
    assert!(code == Some(0) && text.contains("is empty"), "{text}");
    let (code, text) = run(&site.config, &["position", "show"]);
    assert!(code == Some(0) && !text.contains("events/0"), "{text}");
    let process = site.start();
    poll_until(PATIENCE, "the log is counted again", || (site.events() == 50).then_some(()));
    assert_eq!(process.stop(), 0);
}
