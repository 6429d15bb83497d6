//! A worker process between a real Kafka and a real Redis: what does not fit into the chaos run.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cli::{traqq, write_config};
use crate::process::{PATIENCE, Process, post, total, wait_for_total};
use crate::scene::{Scene, create_topic, events, kafka_tool, produce};
use crate::servers::{free_port, kafka_brokers, poll_until};

#[test]
fn counts_drains_and_goes_on_where_it_was() {
    let Scene { topic, redis, directory: _directory, file, .. } = Scene::new("it-drain", 3, "");
    produce(&topic, &events(5_000));
    let worker = Process::start(&file);
    wait_for_total(&redis, 5_000);
    assert_eq!(worker.stop(), 0);
    produce(&topic, &events(1_000));
    let worker = Process::start(&file);
    wait_for_total(&redis, 6_000);
    assert_eq!(worker.stop(), 0);
}

/// A topic of the same name with other records must not be taken for the one that was counted.
#[test]
fn a_topic_that_was_deleted_and_made_again_stops_its_partitions() {
    let Scene { topic, redis, directory: _directory, file, .. } = Scene::new("it-recreated", 1, "");
    produce(&topic, &events(1_000));
    let worker = Process::start(&file);
    wait_for_total(&redis, 1_000);
    assert_eq!(worker.stop(), 0);
    kafka_tool("topics", &["--delete", "--topic", &topic]);
    poll_until(PATIENCE, "the topic is gone", || {
        (!kafka_tool("topics", &["--list"]).lines().any(|line| line == topic)).then_some(())
    });
    create_topic(&topic, 1);
    produce(&topic, &events(10));
    let worker = Process::start(&file);
    let line = worker.wait_for_line("partition stopped");
    assert!(line.contains("the log ends at 10") && line.contains("stands at 1000"), "{line}");
    drop(worker);
    let more: Vec<String> = (0..2_000).map(|n| format!(r#"{{"event":"other","n":{n}}}"#)).collect();
    produce(&topic, &more);
    let worker = Process::start(&file);
    let line = worker.wait_for_line("partition stopped");
    assert!(line.contains("is not the one that was counted last"), "{line}");
    assert_eq!(total(&redis), 1_000);
    drop(worker);
    // The way out that the message names.
    let moved =
        traqq().arg("--config").arg(&file).args(["position", "set", &format!("{topic}/0"), "0"]).output().unwrap();
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    let _worker = Process::start(&file);
    wait_for_total(&redis, 3_010);
}

#[test]
fn another_group_and_another_mapping_are_refused_until_applied() {
    let Scene { topic, redis, directory: _directory, file, .. } = Scene::new("it-mapping", 1, "");
    produce(&topic, &events(100));
    let worker = Process::start(&file);
    wait_for_total(&redis, 100);
    assert_eq!(worker.stop(), 0);
    let run = |extra: &[&str]| traqq().arg("--config").arg(&file).args(extra).output().unwrap();
    let refused = run(&["--set", "broker.kafka.group=other", "run"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains(&format!("group is {topic:?} in the store and \"other\" here")), "{text}");
    let changed = ["--set", "mapping.top=[\"ip\"]"];
    let refused = run(&[changed[0], changed[1], "run"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("only here: top:ip") && text.contains("traqq mapping apply"), "{text}");
    let applied = run(&[changed[0], changed[1], "mapping", "apply"]);
    assert!(String::from_utf8_lossy(&applied.stdout).contains("+ top:ip"), "{applied:?}");
    let shown = run(&["mapping", "show"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("top:ip"), "{shown:?}");
    // The old mapping is the one that is refused now.
    let refused = run(&["run"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only in the store: top:ip"));
}

/// With transactions and a store that was flushed while nobody looked: counted again from the
/// recorded start.
#[test]
fn a_flushed_store_is_counted_again() {
    let Scene { topic, redis, directory: _directory, file, .. } =
        Scene::new("it-flushed", 2, "[worker]\nposition_check_ms = 200\n");
    produce(&topic, &events(2_000));
    let worker = Process::start(&file);
    wait_for_total(&redis, 2_000);
    redis.cli(&["FLUSHALL"]);
    worker.wait_for_line("the store lost everything");
    wait_for_total(&redis, 2_000);
    produce(&topic, &events(500));
    wait_for_total(&redis, 2_500);
    assert_eq!(worker.stop(), 0);
}

#[test]
fn the_new_group_protocol_works() {
    let Scene { topic, redis, directory: _directory, file, .. } =
        Scene::new("it-kip848", 4, "[broker.kafka.properties]\n\"group.protocol\" = \"consumer\"\n");
    produce(&topic, &events(3_000));
    let worker = Process::start(&file);
    wait_for_total(&redis, 3_000);
    assert_eq!(worker.stop(), 0);
}

/// Whatever any producer or tool may have written: the record counts, the worker lives.
#[test]
fn header_names_that_are_not_text_do_no_harm() {
    use std::os::unix::ffi::OsStrExt;
    let Scene { topic, redis, directory, file, .. } = Scene::new("it-headers", 1, "");
    let line = directory.path().join("line");
    std::fs::write(&line, "{\"event\":\"odd\"}\n").unwrap();
    let sent = Command::new("kcat")
        .args(["-b", &kafka_brokers(), "-t", &topic, "-P", "-H"])
        .arg(std::ffi::OsStr::from_bytes(b"\xff\xfe=1"))
        .args(["-l", line.to_str().unwrap()])
        .status();
    assert!(sent.unwrap().success());
    produce(&topic, &events(100));
    let worker = Process::start(&file);
    wait_for_total(&redis, 101);
    assert_eq!(worker.stop(), 0);
}

/// Each of them was a report of a panic: 7 MB of log for one record of 90 KB, and again with every
/// replay.
#[test]
fn thousands_of_header_names_that_are_not_text_are_one_line_of_the_log() {
    use std::os::unix::ffi::OsStrExt;
    let Scene { topic, redis, directory, file, .. } = Scene::new("it-header-flood", 1, "");
    let line = directory.path().join("line");
    std::fs::write(&line, "{\"event\":\"odd\"}\n").unwrap();
    for _ in 0..3 {
        let mut kcat = Command::new("kcat");
        kcat.args(["-b", &kafka_brokers(), "-t", &topic, "-P"]);
        for number in 0..2_000 {
            let name = [format!("{number}").as_bytes(), b"\xff=1"].concat();
            kcat.arg("-H").arg(std::ffi::OsStr::from_bytes(&name));
        }
        assert!(kcat.args(["-l", line.to_str().unwrap()]).status().unwrap().success());
    }
    produce(&topic, &events(100));
    let worker = Process::start(&file);
    wait_for_total(&redis, 103);
    let first = worker.wait_for_line("header names are not UTF-8");
    assert!(first.contains("names=8") && first.contains("offset=0"), "{first}");
    let (code, log) = worker.stop_and_log();
    assert_eq!(code, 0);
    assert!(!log.contains("panicked") && log.matches("header names are not UTF-8").count() == 1, "{log}");
}

/// Records removed before they were counted, while the worker was away and under its feet.
#[test]
fn a_gap_in_the_log_is_skipped_when_the_operator_says_so() {
    let Scene { topic, redis, directory, file, .. } = Scene::new("it-gap", 1, "[worker]\non_log_gap = \"skip\"\n");
    produce(&topic, &events(1_000));
    let worker = Process::start(&file);
    wait_for_total(&redis, 1_000);
    assert_eq!(worker.stop(), 0);
    produce(&topic, &events(1_000));
    trim(directory.path(), &topic, 1_500);
    let worker = Process::start(&file);
    wait_for_total(&redis, 1_500);
    let line = worker.wait_for_line("went on without records");
    assert!(line.contains("skipped=500"), "{line}");
    worker.signal("-STOP");
    // The broker answers a fetch that waits for records; it must have given up before there are
    // some.
    std::thread::sleep(Duration::from_secs(2));
    produce(&topic, &events(1_000));
    trim(directory.path(), &topic, 2_600);
    worker.signal("-CONT");
    wait_for_total(&redis, 1_900);
    produce(&topic, &events(10));
    wait_for_total(&redis, 1_910);
    assert_eq!(worker.stop(), 0);
}

fn trim(directory: &Path, topic: &str, offset: i64) {
    let file = directory.join("trim.json");
    let text = format!(r#"{{"version":1,"partitions":[{{"topic":"{topic}","partition":0,"offset":{offset}}}]}}"#);
    std::fs::write(&file, text).unwrap();
    kafka_tool("delete-records", &["--offset-json-file", file.to_str().unwrap()]);
}

/// A worker that cannot reach its store must not keep the others of its group from counting.
#[test]
fn a_worker_without_its_store_does_not_stall_the_group() {
    let Scene { topic, redis, directory: _directory, file, .. } = Scene::new("it-stall", 2, "");
    let elsewhere = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(&file).unwrap().replace(&redis.url(), "redis://127.0.0.1:1");
    let cut_off = write_config(elsewhere.path(), &text);
    let worker = Process::start(&cut_off);
    worker.wait_for_line("assigned");
    let other = Process::start(&file);
    other.wait_for_line("assigned");
    produce(&topic, &events(2_000));
    // Both partitions get some of so many batches; one of the two is the other worker's.
    produce(&topic, &events(2_000));
    poll_until(PATIENCE, "events of the other worker", || (total(&redis) > 0).then_some(()));
    drop(worker);
    assert_eq!(other.stop(), 0);
}

/// Events over HTTP and TCP go into the topic, keyed, and are answered when the broker has them.
#[test]
fn events_come_in_in_front_of_kafka() {
    let scene = Scene::new("it-ingest", 3, "");
    let (http, tcp) = (free_port(), free_port());
    let config = std::fs::read_to_string(&scene.file).unwrap();
    let config = config
        .replace(
            "http = \"127.0.0.1:0\"\ntcp = \"off\"",
            &format!("http = \"127.0.0.1:{http}\"\ntcp = \"127.0.0.1:{tcp}\""),
        )
        .replace("[store.redis]", "key_field = \"ip\"\n[store.redis]");
    std::fs::write(&scene.file, config).unwrap();
    let worker = Process::start(&scene.file);
    worker.wait_for_line("listening for TCP");
    let post = |headers: &str, body: &str| post(http, headers, body);
    let lines = events(500).join("\n");
    let answer = post("content-type: application/x-ndjson\r\n", &format!("{lines}\nnot json\n"));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"accepted\":500,\"rejected\":1"), "{answer}");
    let refused = post("idempotency-key: k\r\n", &lines);
    assert!(refused.starts_with("HTTP/1.1 501") && refused.contains("Idempotency-Key"), "{refused}");
    let mut stream = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    let records: String =
        events(100).iter().map(|event| format!("{{\"cmd\":\"record\",\"event\":{event}}}\n")).collect();
    stream.write_all(records.as_bytes()).unwrap();
    let answers: Vec<String> = BufReader::new(stream).lines().take(100).map(Result::unwrap).collect();
    assert!(answers.iter().all(|answer| answer == "{\"success\":true}"), "{answers:?}");
    wait_for_total(&scene.redis, 600);
    assert_eq!(worker.stop(), 0);
    // In the topic, as any consumer sees it.
    let output = Command::new("kcat")
        .args(["-b", &kafka_brokers(), "-t", &scene.topic, "-C", "-e", "-q", "-f", "%p %k %s\\n"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut partition_of = std::collections::BTreeMap::new();
    assert_eq!(text.lines().count(), 600);
    for line in text.lines() {
        let (partition, rest) = line.split_once(' ').unwrap();
        let (key, value) = rest.split_once(' ').unwrap();
        assert!(value.contains(&format!("\"ip\":\"{key}\"")), "{line}");
        assert_eq!(partition_of.entry(key.to_owned()).or_insert(partition), &partition, "{key}");
    }
    assert!(partition_of.values().collect::<std::collections::BTreeSet<_>>().len() > 1);
}
