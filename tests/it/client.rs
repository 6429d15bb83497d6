//! The commands that talk to a running server, and what a network does to them.
//!
//! Most of these tests stand a listener in the server's place, since a real one answers 503 or
//! loses a connection only by luck.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use crate::cli::{traqq, write_config};
use crate::servers::{Redis, free_port, poll_until};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then(|| value.to_owned()))
    }

    pub fn events(&self) -> usize {
        self.body.iter().filter(|byte| **byte == b'\n').count()
    }
}

pub enum Answer {
    /// Status and headers, each with a line end, and the body.
    Reply(String, String),
    /// The connection ends without an answer.
    Lost,
}

pub fn reply(status: &str, body: &str) -> Answer {
    Answer::Reply(format!("{status}\r\n"), body.to_owned())
}

pub fn taken(request: &Request) -> Answer {
    reply("200 OK", &format!(r#"{{"accepted":{},"rejected":0,"errors":[]}}"#, request.events()))
}

/// A listener in a server's place. What it is asked it keeps.
pub struct Stand {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Stand {
    /// `answer` is told how many requests came before. The question how events are read is
    /// answered, and is none of them.
    pub fn start(answer: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(Some(r#"{"time_fields":["at","ts"],"of_a_later_version":true}"#), answer)
    }

    pub fn start_with(
        rules: Option<&'static str>,
        answer: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let all = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, answer) = (Arc::clone(&requests), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream.unwrap(), rules, &requests, answer.as_ref()));
            }
        });
        Self { port, requests: all }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = traqq();
        command.args(arguments).args(["--server", &format!("http://127.0.0.1:{}", self.port)]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    rules: Option<&str>,
    requests: &Mutex<Vec<Request>>,
    answer: &dyn Fn(usize, &Request) -> Answer,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match reader.read_line(&mut head) {
                Ok(length) if length > 0 => {}
                _ => return,
            }
        }
        let mut request = Request { head, body: Vec::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body).unwrap();
        if let Some(rules) = rules.filter(|_| request.head.starts_with("GET /api/v1/events ")) {
            let length = rules.len();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{rules}").unwrap();
            continue;
        }
        let before = {
            let mut requests = requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        let Answer::Reply(head, body) = answer(before, &request) else { return };
        let length = body.len();
        if write!(stream, "HTTP/1.1 {head}content-length: {length}\r\n\r\n{body}").is_err() {
            return;
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The only line of standard error.
pub fn complaint(output: &Output) -> String {
    let complaint = text(&output.stderr);
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    complaint
}

pub fn ndjson(count: usize) -> String {
    static NOW: LazyLock<u64> = LazyLock::new(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let now = *NOW;
    (0..count).map(|index| format!("{{\"event\":\"view\",\"user\":{index},\"ts\":{now}}}\n")).collect()
}

pub struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Every fault of a network at once: each event is there once in the end, by the keys of the
/// batches.
#[test]
fn an_import_survives_what_networks_do() {
    let known: Mutex<HashMap<String, Vec<u8>>> = Mutex::default();
    let stand = Stand::start(move |before, request| {
        if before == 0 {
            return Answer::Reply("503 Service Unavailable\r\nRetry-After: 0\r\n".to_owned(), "{}".to_owned());
        }
        let key = request.header("idempotency-key").unwrap();
        let replayed = match known.lock().unwrap().insert(key, request.body.clone()) {
            None => "",
            Some(body) => {
                assert_eq!(body, request.body, "one key, one body");
                "Idempotent-Replayed: true\r\n"
            }
        };
        if before % 3 == 1 {
            return Answer::Lost;
        }
        let Answer::Reply(head, body) = taken(request) else { unreachable!() };
        Answer::Reply(head + replayed, body)
    });
    let files = Files::new();
    let file = files.write("events.ndjson", ndjson(12_340));
    let output = stand.run(&["import", &file]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "imported 12,340 events\n", "what this run brought was not there already");
    assert!(text(&output.stderr).contains("waiting: "), "{}", text(&output.stderr));
    let mut keys = HashMap::new();
    for request in stand.requests() {
        keys.insert(request.header("idempotency-key").unwrap(), request.events());
    }
    assert_eq!((keys.len(), keys.values().sum::<usize>()), (13, 12_340));
    assert!(keys.keys().all(|key| key.len() == 39 && key.starts_with("import-")), "{keys:?}");

    // The same content under another name and compressed is the same import; with --again it is
    // not.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(ndjson(12_340).as_bytes()).unwrap();
    let file = files.write("copy.gz", encoder.finish().unwrap());
    let before = stand.requests().len();
    let output = stand.run(&["import", "--in-flight", "1", &file]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let sent = stand.requests().split_off(before);
    assert!(sent.iter().all(|request| keys.contains_key(&request.header("idempotency-key").unwrap())));
    let output = stand.run(&["import", "--again", &file]);
    assert_eq!(text(&output.stdout), "imported 12,340 events\n");
}

#[test]
fn a_second_run_says_what_was_there() {
    let stand = Stand::start(|_, request| {
        let Answer::Reply(head, body) = taken(request) else { unreachable!() };
        let replayed = if request.body.starts_with(b"{\"event\":\"view\",\"user\":0,") {
            "Idempotent-Replayed: true\r\n"
        } else {
            ""
        };
        Answer::Reply(head + replayed, body)
    });
    let files = Files::new();
    let output = stand.run(&["import", &files.write("events", ndjson(1500))]);
    assert_eq!(text(&output.stdout), "imported 500 events, skipped 1,000 that were there already\n");
    assert!(output.status.success());
}

#[test]
fn rejected_lines_are_named() {
    let stand = Stand::start(|_, _| {
        let errors = r#"[{"index":1,"reason":"json","detail":"expected `:`"}]"#;
        reply("200 OK", &format!(r#"{{"accepted":1,"rejected":1,"errors":{errors}}}"#))
    });
    let files = Files::new();
    let long = "x".repeat((1 << 20) + 1);
    let output = stand
        .run(&["import", &files.write("events", format!("\n{{\"event\":\"a\",\"ts\":1}}\n\n{{\"event\"}}\n{long}\n"))]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "imported 1 event, rejected 2 (first: line 4: json: expected `:`)\n");
    let lines: Vec<String> = text(&output.stderr).lines().map(str::to_owned).collect();
    assert_eq!(lines[..2], ["line 4: json: expected `:`", "line 5: longer than 1048576 bytes"]);
    assert_eq!(stand.requests()[0].body, b"{\"event\":\"a\",\"ts\":1}\n{\"event\"}\n");
}

#[test]
fn rows_become_events() {
    let stand = Stand::start(|_, request| taken(request));
    let files = Files::new();
    let file = files.write("events.csv", "event,amount,geo\nbuy,9.90,\nview,,DE\n");
    let output = stand.run(&["import", "--now", &file]);
    assert_eq!(text(&output.stdout), "imported 2 events\n", "{}", text(&output.stderr));
    let request = &stand.requests()[0];
    assert_eq!(text(&request.body), "{\"event\":\"buy\",\"amount\":9.90}\n{\"event\":\"view\",\"geo\":\"DE\"}\n");
    assert_eq!(request.header("content-type").as_deref(), Some("application/x-ndjson"));
}

#[test]
fn kafka_takes_no_keys() {
    let stand = Stand::start(|_, request| match request.header("idempotency-key") {
        Some(_) => reply("501 Not Implemented", r#"{"detail":"Kafka is in the way"}"#),
        None if request.body.is_empty() => reply("400 Bad Request", r#"{"detail":"the body is empty"}"#),
        None => taken(request),
    });
    let files = Files::new();
    let file = files.write("events.ndjson", ndjson(10));
    let output = stand.run(&["import", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("--at-least-once"), "{}", complaint(&output));
    assert_eq!(text(&stand.run(&["import", "--at-least-once", &file]).stdout), "imported 10 events\n");
}

#[test]
fn what_cannot_be_imported_is_said_in_one_line() {
    let files = Files::new();
    let file = files.write("events.ndjson", ndjson(10));
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let array = files.write("array.json", "[\n{\"event\":\"a\"}\n]\n");
    let cut = files.write("cut.gz", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b]);
    let header = files.write("header.csv", "a,a\n1,2\n");
    let refused = Stand::start(|_, _| reply("401 Unauthorized", r#"{"detail":"send the header"}"#));
    let refusing = format!("http://127.0.0.1:{}", refused.port);
    let other = Stand::start(|_, _| reply("418 I'm a teapot", "short and stout"));
    let other = format!("http://127.0.0.1:{}", other.port);
    for (arguments, code, part) in [
        (["import", &file, "--server", &nowhere], 1, "nothing answers at http://127.0.0.1:"),
        (["import", "no-such-file", "--server", &nowhere], 2, "no-such-file"),
        (["import", "/tmp", "--server", &nowhere], 2, "directory"),
        (["import", &file, "--server", &nowhere.replace("http", "https")], 1, "nothing answers at https://127.0.0.1:"),
        (["import", &file, "--server", &refusing.replace("http", "https")], 1, "no TLS with https://127.0.0.1:"),
        (["import", &file, "--server", "localhost:9877"], 2, "http://127.0.0.1:9877"),
        (["import", &array, "--server", &nowhere], 1, "jq -c"),
        (["import", &cut, "--server", &nowhere], 1, "cut.gz"),
        (["import", &header, "--server", &nowhere], 1, "twice"),
        (["import", &file, "--server", &refusing], 1, "server.token"),
        (["import", &file, "--server", &other], 1, "418"),
        (["record", "{}", "--server", &nowhere], 1, "start one with `traqq`"),
        (["record", "[]", "--server", &nowhere], 2, "object"),
        (["find", "top/geo", "--server", &nowhere], 1, "nothing answers"),
        (["find", "geo", "--server", &nowhere], 2, "top/geo"),
    ] {
        let output = traqq().args(arguments).output().unwrap();
        let complaint = complaint(&output);
        assert!(complaint.contains(part) && output.status.code() == Some(code), "{arguments:?}: {complaint}");
    }
}

#[test]
fn one_event_is_recorded() {
    let stand = Stand::start(|_, request| {
        if request.body == b"{\"event\":\"a\"}" {
            return reply("200 OK", r#"{"accepted":1,"rejected":0,"errors":[]}"#);
        }
        let errors = r#"[{"index":0,"reason":"no_event","detail":"none of the fields is there"}]"#;
        let members = format!(r#""accepted":0,"rejected":1,"errors":{errors}"#);
        reply("400 Bad Request", &format!(r#"{{"type":"x","status":400,"detail":"all were rejected",{members}}}"#))
    });
    let output = stand.run(&["record", "{\"event\":\"a\"}"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("accepted 1 event\n", Some(0)));
    assert_eq!(stand.requests()[0].header("content-type").as_deref(), Some("application/json"));
    let mut child = stand.command(&["record", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\n}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(complaint(&output), "error: rejected: no_event: none of the fields is there\n");
}

#[test]
fn a_demo_sends_history_and_goes_on_live() {
    let stand = Stand::start(|_, request| taken(request));
    let mut child = stand.command(&["demo", "--days", "2", "--seed", "7", "--rate", "2000"]).spawn().unwrap();
    poll_until(Duration::from_secs(30), "live events are sent", || {
        let events: usize = stand.requests().iter().map(Request::events).sum();
        (events > 9_000).then_some(())
    });
    interrupt(&child);
    assert!(child.wait().unwrap().success());
    let first = stand.requests()[0].clone();
    let event: serde_json::Value =
        serde_json::from_slice(first.body.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    for field in ["event", "user_id", "session_id", "ip", "url", "geo", "source", "device", "browser", "ts"] {
        assert!(!event[field].is_null(), "{event}");
    }
}

fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

/// A real server that ends with the value.
pub struct Traqq {
    child: Child,
    command: &'static str,
    port: u16,
    config: PathBuf,
    _directory: tempfile::TempDir,
}

impl Traqq {
    /// `config` has everything but the addresses.
    pub fn start(command: &'static str, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let data = directory.path().join("data");
        let config = format!(
            "[server]\nhttp = \"0.0.0.0:{port}\"\ntcp = \"off\"\ntoken = \"hush\"\n[data]\ndirectory = {data:?}\n{config}"
        );
        let config = write_config(directory.path(), &config);
        let child = Self::launch(command, &config, port);
        Self { child, command, port, config, _directory: directory }
    }

    fn launch(command: &str, config: &Path, port: u16) -> Child {
        let mut traqq = traqq();
        traqq.arg("--config").arg(config).arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = traqq.spawn().unwrap();
        poll_until(Duration::from_secs(20), "traqq listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        child
    }

    fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::launch(self.command, &self.config, self.port);
    }

    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut client = traqq();
        client.arg("--config").arg(&self.config).args(arguments);
        client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        client
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.client(arguments).output().unwrap()
    }

    /// The count of an event, today.
    pub fn count(&self, event: &str) -> i64 {
        let output = self.run(&["find", "add/event", "--value", event, "--json"]);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["results"][0]["data"]["count"].as_i64().unwrap_or(0)
    }
}

impl Drop for Traqq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Killed at the worst moments, the server has every event of the file once; and so it has after a
/// second import.
#[test]
fn an_import_through_killed_servers_is_exact() {
    const EVENTS: i64 = 300_000;
    let mut server = Traqq::start("run", "[mapping]\nadd = [\"event\"]\n");
    let files = Files::new();
    let file = files.write("events.ndjson", ndjson(EVENTS as usize));
    let import = server.client(&["import", &file]).spawn().unwrap();
    for part in [1, 2] {
        poll_until(Duration::from_secs(60), "some events are counted", || {
            (server.count("view") >= EVENTS * part / 10).then_some(())
        });
        server.kill9();
        server.restart();
    }
    let output = import.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "imported 300,000 events\n");
    let counted = |count: i64| {
        poll_until(Duration::from_secs(60), "all is counted", || (server.count("view") >= count).then_some(()));
        assert_eq!(server.count("view"), count);
    };
    counted(EVENTS);
    let output = server.run(&["import", &file]);
    assert_eq!(text(&output.stdout), "imported 0 events, skipped 300,000 that were there already\n");
    let output = server.run(&["import", "--again", &file]);
    assert_eq!(text(&output.stdout), "imported 300,000 events\n");
    counted(2 * EVENTS);
}

/// What a person sees of events that were just sent.
#[test]
fn events_come_back_in_tables() {
    let server = Traqq::start("run", "[mapping]\nadd = [\"event\"]\ntop = [\"geo\"]\nbitmap = [\"ip\"]\n");
    for event in [r#"{"event":"buy","geo":"US","ip":"1.1.1.1"}"#, r#"{"event":"buy","geo":"DE","ip":"1.1.1.2"}"#] {
        let output = server.run(&["record", event]);
        assert_eq!(text(&output.stdout), "accepted 1 event\n", "{}", text(&output.stderr));
    }
    let output = server.run(&["record", r#"{"evnt":"buy"}"#]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("no_event"), "{}", complaint(&output));
    // Readers see a batch key by key, so that one metric having it does not mean that all do.
    let parts = ["add/event  2\n", "buy  2  █", "top/geo\n", "US  1  █", "bitmap/ip  2 unique, ± 1 (95 %)\n"];
    poll_until(Duration::from_secs(20), "both are in every table", || {
        let shown = text(&server.run(&["query"]).stdout);
        parts.iter().all(|part| shown.contains(part)).then_some(())
    });
    let shown = text(&server.run(&["find", "add/event", "--days", "3", "--per-bucket"]).stdout);
    assert!(shown.contains("3 buckets") && shown.contains('█'), "{shown}");
    // And for programs: a row per bucket and value.
    let find = ["find", "add/event", "--from", "now-1d", "--per-bucket", "--csv"];
    let csv = text(&server.run(&find).stdout);
    let lines: Vec<&str> = csv.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), 3, "{csv}");
    assert!(lines[0].starts_with("time,time_ms,") && lines[2].contains(",buy,false,2,2,1,false,"), "{csv}");
    let csv = text(
        &server.run(&["query", "--from", "1700000000000", "--to", "1700000000001", "--align", "out", "--csv"]).stdout,
    );
    assert!(csv.starts_with("time,") && csv.contains(",2023-11-15T00:00:00Z,add,event,"), "{csv}");
    let inside = server.run(&["query", "--from", "1700000000000", "--to", "1700000000001"]);
    assert!(inside.status.code() == Some(1) && complaint(&inside).contains("align=out"), "{}", complaint(&inside));
    let both = server.run(&["query", "--csv", "--json"]);
    assert_eq!(both.status.code(), Some(2));
}

/// The configuration says where the server is and what its token is.
#[test]
fn questions_go_to_the_server_of_the_configuration() {
    let redis = Redis::start(&[]);
    let config = format!("[store.redis]\nurl = \"{}\"\n[mapping]\ntop = [\"geo\"]\n", redis.url());
    let sidecar = Traqq::start("serve", &config);
    for question in [&["query"][..], &["find", "top/geo", "--days", "7"], &["query", "--json"]] {
        let output = sidecar.run(question);
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint(&output).contains("nothing has been counted"), "{}", complaint(&output));
    }
    let file = sidecar.config.with_file_name("events.ndjson");
    std::fs::write(&file, ndjson(1)).unwrap();
    for sent in [&["record", "{\"event\":\"a\"}"], &["import", file.to_str().unwrap()]] {
        let output = sidecar.run(sent);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("only answers queries"), "{}", text(&output.stderr));
    }
    let output = sidecar.run(&["top"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("  ready\n") && shown.contains("nothing has been counted"), "{shown}");
}
