//! A worker of an earlier version stopped, and this one goes on: under the same prefix, in the same
//! data directory. What those versions wrote is kept in `fixtures/`.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli::write_config;
use crate::process::{PATIENCE, Process, post};
use crate::servers::{Redis, poll_until};

/// What the fixtures were counted by.
const COUNTED: &str = r#"
[broker]
kind = "local"
[broker.local]
retention = "forever"
partitions = 2
partition_by = "user"
[mapping]
bitmap = ["user"]
bitmap_by = [{ key = "geo", of = "user" }]
add = ["event", "geo"]
add_value = [{ key = "event", add_key = "amount" }]
top = ["url"]
[buckets]
hour = true
retention = { d = "forever", h = "forever", m = "forever" }
"#;
/// Events that they hold.
const BEFORE: usize = 2001;
const AFTER: usize = 2600;

fn event(number: usize) -> String {
    let (event, geo, user, url) = (number % 7, number % 5, number % 300, number % 40);
    let (amount, ts) = (number % 100, 1_795_800_000 + number * 37);
    format!(r#"{{"event":"e{event}","geo":"g{geo}","user":"u{user}","url":"/{url}","amount":{amount}.25,"ts":{ts}}}"#)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
}

fn unpack(archive: &str, into: &Path) {
    let status = Command::new("tar").arg("-xzf").arg(fixture(archive)).arg("-C").arg(into).status().unwrap();
    assert!(status.success());
}

fn config(directory: &Path, data: &str, more: &str) -> PathBuf {
    let data = directory.join(data);
    let server = "[log]\nformat = \"text\"\n[server]\nhttp = \"127.0.0.1:0\"\ntcp = \"off\"\n";
    write_config(directory, &format!("{server}[data]\ndirectory = {data:?}\n{more}{COUNTED}"))
}

fn ask(process: &Process, path: &str) -> Value {
    let answer = process.get(path).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        body.lines().filter(|line| !line.chars().all(|c| c.is_ascii_hexdigit())).collect()
    } else {
        body.to_owned()
    };
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// Everything that was counted, by day and by hour.
fn answers(process: &Process) -> BTreeMap<String, Value> {
    let answer = |bucket| {
        let path = format!("/api/v1/query?from=2026-11-27&to=2026-11-30&bucket={bucket}&limit=10000");
        let answer = ask(process, &path);
        (path, answer)
    };
    ["d", "h"].map(answer).into()
}

fn send(process: &Process, numbers: Range<usize>, key: Option<&str>) -> String {
    let lines: Vec<String> = numbers.map(event).collect();
    let key = key.map_or_else(String::new, |key| format!("idempotency-key: {key}\r\n"));
    let headers = format!("content-type: application/x-ndjson\r\n{key}");
    post(process.address().port(), &headers, &lines.join("\n"))
}

fn wait_for(process: &Process, events: usize) {
    poll_until(PATIENCE, "all is counted", || {
        let stats = ask(process, "/api/v1/stats");
        let positions = stats["partitions"].as_array()?.iter().filter_map(|partition| partition["position"].as_u64());
        (positions.sum::<u64>() == events as u64 && stats["lag_records"] == 0).then_some(())
    });
}

/// Counted by this version alone, from the beginning.
fn reference() -> BTreeMap<String, Value> {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(&config(directory.path(), "data", ""));
    process.wait_until_ready();
    assert!(send(&process, 0..AFTER, None).starts_with("HTTP/1.1 200"));
    wait_for(&process, AFTER);
    let answers = answers(&process);
    assert_eq!(process.stop(), 0);
    answers
}

/// It finds what was counted, counts what comes, and begins nothing anew.
fn goes_on(process: &Process) {
    process.wait_until_ready();
    wait_for(process, BEFORE);
    assert!(send(process, BEFORE..AFTER, None).starts_with("HTTP/1.1 200"));
    wait_for(process, AFTER);
    for metric in ["traqq_store_lost_total", "traqq_store_rollbacks_total", "traqq_resyncs_total", "traqq_fences_total"]
    {
        assert_eq!(process.metric(metric), 0.0, "{metric}");
    }
    assert_eq!(process.metric("traqq_events_total"), (AFTER - BEFORE) as f64);
    for (question, expected) in reference() {
        assert_eq!(ask(process, &question), expected, "{question}");
    }
}

#[test]
fn a_data_directory_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    unpack("data-embedded.tar.gz", directory.path());
    let file = config(directory.path(), "data-embedded", "");
    let process = Process::start(&file);
    goes_on(&process);
    assert_eq!(process.stop(), 0);
    // And again, as this version leaves it.
    let process = Process::start(&file);
    process.wait_until_ready();
    wait_for(&process, AFTER);
    assert_eq!(process.stop(), 0);
}

#[test]
fn a_prefix_is_gone_on_with() {
    let (directory, redis) = (tempfile::tempdir().unwrap(), Redis::start(&[]));
    unpack("data-redis.tar.gz", directory.path());
    let gzip = Command::new("gzip").arg("-dc").arg(fixture("redis-prefix.resp.gz")).output().unwrap();
    assert!(gzip.status.success());
    let mut cli = Command::new("redis-cli")
        .args(["-p", &redis.port().to_string(), "--pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    cli.stdin.take().unwrap().write_all(&gzip.stdout).unwrap();
    assert!(cli.wait().unwrap().success());
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = {:?}\nprefix = \"p\"\n", redis.url());
    let process = Process::start(&config(directory.path(), "data-redis", &store));
    goes_on(&process);
    assert_eq!(process.stop(), 0);
}
