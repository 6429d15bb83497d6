//! Connections to Redis that somebody closes while nothing is sent: a server with a `timeout`, a
//! proxy, a failover, an operator.

use std::process::Command;

use traqq_core::model::{Checkpoint, Secret};
use traqq_counts::store::redis::{Config, RedisStore};
use traqq_counts::store::{Outcome, Read, Reply, Store, StoreError};

use crate::local::Site;
use crate::process::PATIENCE;
use crate::redis_store::{BUCKET, commit, config, part, pattern, small, small_store};
use crate::servers::{Nodes, Redis, poll_until};

fn cli(port: &str, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", port, "--raw"]).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Closes every connection but its own; how many there were.
fn close_all(ports: &[String]) -> u32 {
    ports.iter().map(|port| cli(port, &["CLIENT", "KILL", "TYPE", "normal"]).trim().parse::<u32>().unwrap_or(0)).sum()
}

/// Questions of all kinds, each the first after its connection was closed.
async fn assert_answers(store: &RedisStore, ports: &[String]) {
    for lane in 0..store.lanes() {
        let read = [Read::Counts { bucket: BUCKET, of: pattern("event") }];
        assert!(matches!(&store.read(lane, &read).await.unwrap()[..], [Reply::Values(_)]));
        assert!(close_all(ports) > 0);
        let read = store.read(lane, &read).await;
        assert!(matches!(read.as_deref(), Ok([Reply::Values(_)])), "lane {lane}: {read:?}");
        assert!(close_all(ports) > 0);
        let positions = store.positions(lane).await;
        assert!(positions.is_ok(), "lane {lane}: {positions:?}");
        assert!(close_all(ports) > 0);
        assert_eq!(store.quarantined(lane).await.map(|all| all.len()), Ok(0));
    }
    store.meta().await.unwrap();
    assert!(close_all(ports) > 0);
    assert!(store.meta().await.is_ok_and(|meta| meta.is_some()));
}

/// The first question after a quiet while was answered with 503 and "broken pipe".
#[tokio::test]
async fn a_question_over_a_connection_that_was_closed_is_asked_again() {
    let redis = Redis::start(&[]);
    let store = small_store(&config(&redis.url(), 1)).await;
    let ports = [redis.port().to_string()];
    assert_answers(&store, &ports).await;
    // Many at once find the same connection closed.
    assert!(close_all(&ports) > 0);
    let together = futures_util::future::join_all((0..50).map(|_| store.positions(0))).await;
    assert!(together.iter().all(Result::is_ok), "{together:?}");
    // What writes is sent once: it may have been done.
    assert!(close_all(&ports) > 0);
    let moved = store.set_position(&part(0), Some(Checkpoint::start(0)), Checkpoint::start(7)).await;
    assert!(matches!(moved, Err(StoreError::Reconnect(_))), "{moved:?}");
    assert_eq!(store.positions(0).await.unwrap()[&part(0)].position, 0);
    let mut session = store.session(0).await.unwrap();
    assert!(close_all(&ports) > 0);
    let answer = commit(&mut session, small(0, 0, &["1"])).await;
    assert!(matches!(answer, Err(StoreError::Reconnect(_))), "{answer:?}");
    let mut session = store.session(0).await.unwrap();
    assert!(matches!(commit(&mut session, small(0, 0, &["1"])).await, Ok(Outcome::Applied(_))));
    // A server that is not there is not asked for longer than once.
    drop(redis);
    assert!(matches!(store.positions(0).await, Err(StoreError::Reconnect(_))));
}

#[tokio::test]
async fn a_question_to_a_cluster_over_a_connection_that_was_closed_is_asked_again() {
    let nodes = Nodes::up("redis-cluster");
    let url = Secret(nodes.variable("REDIS_URL"));
    let store = small_store(&Config { url, prefix: "p".to_owned(), lanes: 3, ..Config::default() }).await;
    assert_answers(&store, &nodes.ports()).await;
}

#[tokio::test]
async fn a_question_to_a_primary_over_a_connection_that_was_closed_is_asked_again() {
    let nodes = Nodes::up("redis-sentinel");
    let url = Secret(nodes.variable("REDIS_URL"));
    let store = small_store(&Config { url, prefix: "p".to_owned(), ..Config::default() }).await;
    assert_answers(&store, &nodes.ports()[..1]).await;
}

/// What an idle worker looks at now and then failed likewise, and it went back to the stored
/// positions with a warning; and the session of the batches was closed, so that the first batch
/// after a quiet while was in doubt.
#[test]
fn an_idle_worker_keeps_its_connections_or_replaces_them_without_a_word() {
    // Without, there would be a warning about that.
    let redis = Redis::start(&["--appendonly", "yes"]);
    let more = format!("[worker]\nposition_check_ms = 100\n[store.redis]\nurl = {:?}\nprefix = \"t\"\n", redis.url());
    let site = Site::new("", &more);
    let process = site.start();
    poll_until(PATIENCE, "the worker is ready", || process.is_ready().then_some(()));
    let client = |command: &str| {
        let list = redis.cli(&["CLIENT", "LIST"]);
        let found = list.lines().find(|line| line.contains(&format!(" cmd={command} ")))?;
        found.split(' ').next()?.strip_prefix("id=").map(str::to_owned)
    };
    // That of the questions, between two looks at the positions.
    for _ in 0..3 {
        let asks = poll_until(PATIENCE, "positions are looked at", || client("hgetall"));
        redis.cli(&["CLIENT", "KILL", "ID", &asks]);
        poll_until(PATIENCE, "another connection looks", || client("hgetall").filter(|other| *other != asks));
        assert!(process.is_ready());
    }
    poll_until(PATIENCE, "the session is used", || client("ping"));
    assert_eq!(process.metric("traqq_resyncs_total"), 0.0);
    let (code, log) = process.stop_and_log();
    assert_eq!(code, 0);
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}
