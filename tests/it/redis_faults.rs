//! Redis as operators find it at night: it cannot save, it loads for minutes, its password was
//! changed. The worker waits or stops with a reason, and afterwards the store holds a single fold
//! over the log.

use std::time::{Duration, Instant};

use traqq_counts::store::Store;

use crate::redis_worker::{Bench, worker_is_ready};
use crate::servers::Redis;

/// How soon all must be well after the fault has ended.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// How often Redis has answered with this error.
fn refusals(redis: &Redis, code: &str) -> u64 {
    let stats = redis.cli(&["INFO", "errorstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
    line.map_or(0, |count| count.trim().parse().unwrap())
}

/// A directory stands where the snapshot should go, as a full disk would: writes are refused
/// (MISCONF) until a snapshot succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_save_is_waited_for() {
    let mut bench = Bench::over(Redis::start(&["--save", "1 1"]), 1, 21);
    let obstacle = bench.redis.dir().join("dump.rdb/in the way");
    std::fs::create_dir_all(&obstacle).unwrap();
    bench.append(500);
    let worker = bench.worker();
    bench.wait_for("the first batches are counted", async || bench.applied().await > 0).await;
    while refusals(&bench.redis, "MISCONF") == 0 {
        bench.append(100);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.append(500);
    worker.wait_until_unready("saving to disk fails").await;
    std::fs::remove_dir_all(bench.redis.dir().join("dump.rdb")).unwrap();
    let ended = Instant::now();
    // Redis itself tries again after five seconds.
    bench.wait_until_done("it saves again").await;
    worker_is_ready(&worker).await;
    assert!(ended.elapsed() < RECOVERY_MAX, "{:?}", ended.elapsed());
    worker.stop().await;
    bench.assert_exact("it saves again").await;
}

/// A restart with much data: connections are accepted and every command is refused (LOADING) for
/// seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    let slowly = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];
    let mut bench = Bench::over(Redis::start(&slowly), 1, 22);
    bench.append(1_000);
    let worker = bench.worker();
    bench.wait_until_done("before").await;
    bench.redis.cli(&["SAVE"]);
    bench.append(500);
    bench.redis.kill9();
    bench.redis.restart();
    let ended = Instant::now();
    bench.direct.disconnect().await;
    bench.wait_until_done("it has loaded").await;
    worker_is_ready(&worker).await;
    assert!(ended.elapsed() < RECOVERY_MAX, "{:?}", ended.elapsed());
    assert!(refusals(&bench.redis, "LOADING") > 0, "the worker never met the loading server");
    worker.stop().await;
    bench.assert_exact("it has loaded").await;
}

/// Without an append-only file a killed server comes back with its last snapshot, and before the
/// first one with nothing: what is missing is counted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_snapshots_only_is_counted_on_from_the_last_one() {
    for lanes in [1, 3] {
        let mut bench = Bench::over(Redis::start(&[]), lanes, 24);
        let worker = bench.worker();
        for snapshots in 0..3 {
            bench.append(500);
            bench.wait_until_done("before").await;
            if snapshots > 0 {
                bench.redis.cli(&["SAVE"]);
            }
            bench.append(500);
            bench.wait_until_done("behind the snapshot").await;
            bench.redis.kill9();
            bench.append(500);
            bench.redis.restart();
            let ended = Instant::now();
            bench.direct.disconnect().await;
            let context = format!("{lanes} lanes, killed after {snapshots} snapshots");
            bench.wait_until_done(&context).await;
            worker_is_ready(&worker).await;
            assert!(ended.elapsed() < RECOVERY_MAX, "{context}: {:?}", ended.elapsed());
            bench.assert_exact(&context).await;
        }
        worker.stop().await;
    }
}

/// The password is changed and connections are cut: the worker cannot know whether it is the one
/// that is wrong, so it says which setting to look at and ends. The next one with the right
/// password goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_changed_stops_the_worker() {
    let mut bench = Bench::over(Redis::start(&[]), 1, 23);
    bench.redis.cli(&["ACL", "SETUSER", "traqq", "on", ">before", "~*", "&*", "+@all"]);
    let with = |password: &'static str| {
        move |_: &mut _, redis: &mut traqq_counts::store::redis::Config| {
            redis.username = "traqq".to_owned();
            redis.password = traqq_core::model::Secret(password.to_owned());
        }
    };
    bench.append(500);
    let worker = bench.worker_with(with("before"));
    bench.wait_until_done("before").await;
    bench.redis.cli(&["ACL", "SETUSER", "traqq", "resetpass", ">after"]);
    bench.redis.cli(&["CLIENT", "KILL", "USER", "traqq"]);
    bench.append(500);
    let message = worker.ended().await;
    assert!(message.contains("store.redis.username and password") && !message.contains("before"), "{message}");
    let worker = bench.worker_with(with("after"));
    bench.wait_until_done("with the right one").await;
    worker.stop().await;
    bench.assert_exact("with the right one").await;
}
