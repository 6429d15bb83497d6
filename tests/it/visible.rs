//! What a person must not miss: events that are not counted, where to look, and what is told by
//! whom.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cli::traqq;
use crate::local::{NDJSON, Site, event};
use crate::process::{PATIENCE, Process, post};
use crate::scene::{Scene, events, produce};
use crate::servers::{free_port, poll_until};

/// What a command prints, to both streams.
fn printed(config: &Path, more: &[&str], arguments: &[&str]) -> String {
    let output = traqq().arg("--config").arg(config).args(more).args(arguments).output().unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

fn stats(process: &Process) -> Value {
    let answer = process.get("/api/v1/stats").unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// 300 records without a name behind a worker with `discard`: no line in the log, a green page,
/// "Events counted 1".
#[test]
fn kafka_records_that_are_not_counted_are_said_everywhere() {
    let port = free_port();
    let scene = Scene::new("it-visible", 1, "");
    let text = std::fs::read_to_string(&scene.file).unwrap();
    std::fs::write(&scene.file, text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"))).unwrap();
    produce(&scene.topic, &[events(1), vec![r#"{"track":true}"#.to_owned(); 300], vec!["{".to_owned(); 2]].concat());
    let worker = scene.worker("a");
    let stats = poll_until(PATIENCE, "all records are accounted for", || {
        let stats = stats(&worker);
        (stats["totals"]["records"] == 303).then_some(stats)
    });
    assert_eq!((&stats["totals"]["events"], &stats["totals"]["dead_letters"]), (&1.into(), &302.into()));
    assert_eq!((&stats["most_uncounted"], &stats["dead_letters"]["to"]), (&true.into(), &"discard".into()));
    let reason = &stats["dead_letters"]["reasons"][0];
    assert_eq!((&reason["reason"], &reason["records"]), (&"no_event".into(), &300.into()));
    assert_eq!((&reason["first"]["offset"], &reason["last"]["offset"]), (&1.into(), &300.into()));
    assert_eq!((&reason["first"]["topic"], &reason["first"]["partition"]), (&scene.topic.clone().into(), &0.into()));
    assert!(reason["first"]["timestamp_ms"].as_i64() > Some(0) && reason["last_found_ms"].as_i64() > Some(0));
    assert_eq!(stats["dead_letters"]["reasons"][1]["reason"], "invalid_json");
    assert_eq!(worker.metric("traqq_dead_letters_total"), 302.0);

    for reason in ["no_event", "invalid_json"] {
        let line = worker.wait_for_line(&format!("reason=\"{reason}\""));
        let first = if reason == "no_event" { 1 } else { 301 };
        for part in
            ["WARN", "not counted", &format!("topic=\"{}\"", scene.topic), "partition=0", &format!("offset={first}")]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    let top = printed(&scene.file, &[], &["top"]);
    for part in [
        "most events are not counted",
        "302 of 303 events not counted; they are discarded",
        &format!("no_event 300 (first {topic}/0@1, last {topic}/0@300)", topic = scene.topic),
    ] {
        assert!(top.contains(part), "{part}: {top}");
    }
    let doctor = printed(&scene.file, &[], &["doctor"]);
    let line = doctor.lines().find(|line| line.contains("events counted")).unwrap_or_else(|| panic!("{doctor}"));
    assert!(line.contains("BAD") && line.contains("no_event 300") && line.contains("an event has"), "{line}");
    assert_eq!(worker.stop(), 0);
}

#[test]
fn events_refused_at_the_door_are_in_stats_top_and_doctor() {
    let site = Site::new("", "");
    let process = site.start();
    let lines = [event("a", 1), "{}".to_owned(), "{".to_owned(), "{}".to_owned()].join("\n");
    assert_eq!(site.post(NDJSON, lines.as_bytes()).unwrap().status, 200);
    assert_eq!(site.post("", b"[]]").unwrap().status, 400);
    let ingest = &site.get("/api/v1/stats")["ingest"];
    assert_eq!((&ingest["accepted"], &ingest["rejected"]), (&1.into(), &3.into()));
    let reasons: Vec<(&str, u64)> = ingest["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| (reason["reason"].as_str().unwrap(), reason["events"].as_u64().unwrap()))
        .collect();
    assert_eq!(reasons, [("no_event", 2), ("invalid_json", 1)]);
    let top = printed(&site.config, &[], &["top"]);
    assert!(top.contains("3 of 4 events refused at the door") && top.contains("no_event 2: "), "{top}");
    let doctor = printed(&site.config, &[], &["doctor"]);
    assert!(doctor.contains("BAD   events counted: most is not counted: 3 of 4 events refused"), "{doctor}");
    process.stop();
    let doctor = printed(&site.config, &[], &["doctor"]);
    assert!(doctor.contains("running traqq\n  ok    stats: none to ask"), "{doctor}");
}

#[test]
fn the_log_says_what_to_open_and_metrics_what_runs() {
    let site = Site::new("", "");
    let process = site.start();
    let port = process.address().port();
    assert!(process.log().contains(&format!("open http://localhost:{port}")), "{}", process.log());
    assert!(process.get("/").is_ok_and(|page| page.contains("<title>traqq</title>")));
    let metrics = process.get("/metrics").unwrap();
    let info = format!("traqq_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
    assert!(metrics.contains(&info), "{metrics}");
    if cfg!(target_os = "linux") {
        for definition in traqq::telemetry::names::PROCESS {
            assert!(metrics.contains(&format!("# HELP {} {}\n", definition.name, definition.help)));
            assert!(process.metric(definition.name) > 0.0, "{}", definition.name);
        }
    }
}

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The demo's visitors were counted among a person's own, for good.
#[test]
fn a_demo_keeps_to_data_of_its_own() {
    let (directory, own, port) = (tempfile::tempdir().unwrap(), free_port(), free_port());
    // What a person has configured is not the demo's.
    let data = directory.path().join("traqq-data");
    let config = format!(
        "[server]\nhttp = \"127.0.0.1:{own}\"\ntcp = \"off\"\n[mapping]\nadd = [\"plan\"]\n[data]\ndirectory = {data:?}\n\
         [log]\nformat = \"text\"\n"
    );
    let config = crate::cli::write_config(directory.path(), &config);
    let listen = format!("127.0.0.1:{port}");
    let demo = |log: &str| {
        let out = std::fs::File::create(directory.path().join(log)).unwrap();
        let mut command = traqq();
        command.args(["demo", "--no-history", "--rate", "20", "--seed", "1", "--listen", &listen]);
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        Demo(command.spawn().unwrap())
    };
    let ask = |path: &str| -> Option<Value> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    };
    let mut first = demo("out");
    poll_until(PATIENCE, "the demo's own events are counted", || {
        (ask("/api/v1/stats")?["totals"]["events"].as_u64()? > 0).then_some(())
    });
    let found = ask("/api/v1/find?q=add/event~geo&days=1&merge=true").unwrap();
    assert!(!found["results"][0]["data"]["values"].as_array().unwrap().is_empty(), "{found}");
    let out = std::fs::read_to_string(directory.path().join("out")).unwrap();
    assert!(out.contains("traqq-demo") && out.contains(&format!("open http://localhost:{port}")), "{out}");
    assert!(directory.path().join("traqq-demo").is_dir() && !directory.path().join("traqq-data").exists());

    // A second one, or whatever listens there, is not sent anything.
    let mut second = traqq();
    second.args(["demo", "--directory", "other", "--listen", &listen]).current_dir(directory.path());
    let output = second.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && complaint.contains("--listen"), "{complaint}");

    assert!(Command::new("kill").args(["-INT", &first.0.id().to_string()]).status().unwrap().success());
    assert!(first.0.wait().unwrap().success());
    let _again = demo("again");
    poll_until(PATIENCE, "it goes on", || ask("/api/v1/stats").map(drop));

    // The person's own traqq knows nothing of it.
    let process = Process::start(&config);
    assert_eq!(process.address().port(), own);
    assert!(post(own, NDJSON, "{\"event\":\"a\",\"plan\":\"b\"}").contains("\"accepted\":1"));
    poll_until(PATIENCE, "the own event is counted", || (stats(&process)["totals"]["events"] == 1).then_some(()));
    assert_eq!(process.stop(), 0);
}
