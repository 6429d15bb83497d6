mod answers;
mod connections;
mod format;
mod heads;
mod rights;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::routes::{ROUTES, router_at};
use super::{Config, Conversation, Listening, Live, serve};
use traqq_core::model::Secret;
use traqq_core::model::{Bucket, BucketKind, Checkpoint, Span, TopicPartition};
use traqq_counts::mapping::{Elements, KeyWrite, Metric, Pattern, Rules, WriteBatch, Writes};
use traqq_counts::query::Engine;
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::{Contents, KeyDump, Meta, Store, StoredKey};
use traqq_pipeline::Unfit;

/// 2023-11-14T00:00:00Z.
const DAY: i64 = 1_699_920_000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    store: MemoryStore,
    is_ready: Arc<AtomicBool>,
    listening: Listening,
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the other side closes, or resets.
async fn read(stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    bytes
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.head);
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        for member in ["type", "title", "detail", "instance"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {problem}");
        }
        problem["detail"].as_str().unwrap().to_owned()
    }
}

fn local() -> Config {
    Config { http: "127.0.0.1:0".to_owned(), ..Config::default() }
}

/// Two lanes; the leaderboard of `geo` and the visitors of a day.
async fn filled() -> MemoryStore {
    let rules: Rules = serde_json::from_str(r#"{"mapping":{"top":["geo"],"bitmap":["ip"]}}"#).unwrap();
    let mut meta = Meta::new(&rules.validate().unwrap(), "g", vec!["a".to_owned(), "b".to_owned()]);
    meta.starts = (0..2).map(|partition| (TopicPartition::new("t", partition), 0)).collect();
    let store = MemoryStore::new(2);
    store.create(&meta).await.unwrap();
    for partition in 0..2 {
        count(&store, partition, 0, &[("US", 2), ("DE", 3 - i64::from(partition))]).await;
    }
    store
}

async fn count(store: &MemoryStore, partition: i32, from: i64, geos: &[(&str, i64)]) {
    let partition = TopicPartition::new("t", partition);
    let span = Span { partition: partition.clone(), from: Checkpoint::start(from), to: Checkpoint::start(from + 1) };
    let mut ips = Elements::default();
    geos.iter().for_each(|(geo, _)| ips.push(geo.as_bytes()));
    let write = |metric, writes| {
        let bucket = Bucket { kind: BucketKind::Day, start: DAY };
        KeyWrite { bucket, expires_at: None, metric, writes }
    };
    let pattern = |text| Pattern::parse(text).unwrap();
    let top = geos.iter().map(|(geo, count)| ((*geo).into(), *count)).collect();
    let writes = vec![
        write(Metric::Top { of: pattern("geo") }, Writes::Top(top)),
        write(Metric::Unique { of: pattern("ip") }, Writes::Unique(ips)),
    ];
    let mut session = store.session(partition.lane(2)).await.unwrap();
    session.commit(Arc::new(WriteBatch { spans: vec![span], writes })).await.await.unwrap();
}

fn unready() -> Unfit {
    let reason = "broker: 10.0.0.7:9092 has no topic orders".to_owned();
    Unfit { class: "broker".to_owned(), reason }
}

async fn start(config: &Config) -> Server {
    let store = filled().await;
    let is_ready = Arc::new(AtomicBool::new(true));
    let ready = Arc::clone(&is_ready);
    let live = Live {
        liveness: Box::new(|| Ok(())),
        readiness: Box::new(move || if ready.load(Ordering::Relaxed) { Ok(()) } else { Err(unready()) }),
        stats: Box::new(|| json!({"records": 7})),
        metrics: Box::new(|| "traqq_up 1\n".to_owned()),
        dead_letters: None,
    };
    let engine = Arc::new(Engine::new(Arc::new(store.clone()), config.limits()));
    let router = router_at(config, engine, live, None, || DAY + 60);
    let listening = serve(config, None, router, std::future::pending()).await.unwrap();
    Server { address: listening.address(), store, is_ready, listening }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the other side closes.
    async fn raw(&self, request: &[u8]) -> Answer {
        let stream = self.connect().await;
        // The server may answer and close before it has read everything.
        let exchange = async { tokio::join!(write(&stream, request), read(&stream)).1 };
        let answer = timeout(PATIENCE, exchange).await.expect("an answer in time");
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    async fn send(&self, method: &str, target: &str, headers: &str) -> Answer {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        self.raw(request.as_bytes()).await
    }

    async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, "").await
    }
}

#[tokio::test]
async fn questions_are_answered() {
    let server = start(&local()).await;
    let answer = server.get("/api/v1/find?q=top/geo&days=7&merge=true&limit=1").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{}", answer.body);
    let result = &answer.json()["results"][0];
    assert_eq!(result["data"], json!({"exact": true, "values": [{"value": "DE", "count": 5}]}));
    assert_eq!(result["end"], "2023-11-15T00:00:00Z");

    let answer = server.get("/api/v1/find?metric=bitmap&pattern=ip&from=2023-11-14&to=1700006400").await.json();
    assert_eq!(answer["results"][0]["data"], json!({"unique": 2, "error": 0.0081}));
    let answer = server.get("/api/v1/query").await.json();
    assert_eq!(answer["results"][0]["metrics"][1]["data"]["values"][1], json!({"value": "US", "count": 4}));
    assert_eq!(server.get("/api/v1/catalog").await.json()["metrics"][1]["values"], 2);
    assert_eq!(server.get("/api/v1/stats").await.json(), json!({"records": 7}));
    let metrics = server.get("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert_eq!(metrics.body, "traqq_up 1\n");
    assert_eq!(server.get("/").await.status, 200);
}

/// `/readyz` told everybody addresses and topics. It tells them to those who may ask for everything
/// else.
#[tokio::test]
async fn readiness_has_its_reason_for_who_may_ask_and_its_class_for_strangers() {
    let secret = |text: &str| Some(Secret(text.to_owned()));
    let guarded = Config { read_token: secret("ask"), write_token: secret("send"), ..local() };
    let Unfit { class, reason } = unready();
    for (config, token, told) in [
        (local(), None, &reason),
        (guarded.clone(), None, &class),
        (guarded.clone(), Some("other"), &class),
        (guarded.clone(), Some("send"), &class),
        (guarded, Some("ask"), &reason),
    ] {
        let server = start(&config).await;
        let head = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
        assert_eq!(server.send("GET", "/readyz", &head).await.status, 200);
        server.is_ready.store(false, Ordering::Relaxed);
        let answer = server.send("GET", "/readyz", &head).await;
        assert_eq!((answer.status, &answer.problem()), (503, told), "{token:?}");
        assert_eq!((server.get("/livez").await.status, server.get("/health").await.status), (200, 200));
    }
}

#[tokio::test]
async fn what_is_wrong_is_a_problem_document() {
    let server = start(&local()).await;
    for (method, target, status, part) in [
        ("GET", "/nothing", 404, "openapi.json"),
        ("POST", "/api/v1/query", 405, "GET"),
        ("DELETE", "/", 405, "GET"),
        ("GET", "/api/v1/query?day=7", 400, "`day` is unknown"),
        ("GET", "/api/v1/stats?x=1", 400, "`x` is unknown"),
        ("GET", "/api/v1/query?days=1&days=2", 400, "twice"),
        ("GET", "/api/v1/query?days=0", 400, "whole number"),
        ("GET", "/api/v1/query?bucket=w", 400, "bucket=w"),
        ("GET", "/api/v1/query?bucket=h", 400, "not counted"),
        ("GET", "/api/v1/query?limit=-1", 400, "limit=-1"),
        ("GET", "/api/v1/query?from=5", 400, "nearest bounds"),
        ("GET", "/api/v1/query?from=%ff", 400, ""),
        ("GET", "/api/v1/query?days=5000", 422, "max_buckets"),
        ("GET", "/api/v1/find", 400, "which metric"),
        ("GET", "/api/v1/find?q=top/geo&metric=top", 400, "leave"),
        ("GET", "/api/v1/find?q=top/geo&merge=perhaps", 400, "neither true nor false"),
        ("GET", "/api/v1/find?q=top/geo&order=asc", 400, "leaderboard"),
        ("GET", "/api/v1/find?q=top/ip", 404, "top/geo"),
    ] {
        let answer = server.send(method, target, "").await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.body);
        assert!(answer.problem().contains(part), "{method} {target}: {}", answer.body);
    }
    assert_eq!(server.send("POST", "/metrics", "").await.header("allow"), Some("GET,HEAD"));
    let body = server.send("POST", "/api/v1/query", "content-length: 99999999\r\n").await;
    assert_eq!(body.status, 413);
    assert!(body.problem().contains("body_bytes_max"));
}

#[tokio::test]
async fn the_page_is_five_files_that_run_nothing_else() {
    let server = start(&local()).await;
    let page = server.get("/").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"),
        "{policy}"
    );
    for inline in [" style=", " onclick=", "<style", "<script>", "http://", "https://", "//cdn"] {
        let found = page.body.replace("http://www.w3.org/2000/svg", "").contains(inline);
        assert!(!found, "the policy forbids {inline}");
    }
    for (path, content_type) in [
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/uplot.css", "text/css; charset=utf-8"),
        ("/uplot.js", "text/javascript; charset=utf-8"),
    ] {
        assert!(page.body.contains(&format!("=\"{}\"", &path[1..])), "{path} is on the page");
        let file = server.get(path).await;
        assert_eq!((file.status, file.header("content-type")), (200, Some(content_type)), "{path}");
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("cache-control", "no-cache")]
        {
            assert_eq!(file.header(name), Some(value), "{path}");
        }
        let again = server.send("GET", path, &format!("if-none-match: {}\r\n", file.header("etag").unwrap())).await;
        assert_eq!((again.status, &*again.body), (304, ""), "{path}");
        let other = server.send("GET", path, &format!("if-none-match: {}\r\n", page.header("etag").unwrap())).await;
        assert_eq!((other.status, other.body), (200, file.body), "{path}");
    }
    assert!(server.get("/uplot.js").await.body.contains("The MIT License"));
}

#[tokio::test]
async fn an_answer_that_is_at_hand_is_not_sent_again() {
    let server = start(&local()).await;
    for target in ["/api/v1/query", "/api/v1/find?q=top/geo", "/api/v1/catalog?days=2"] {
        let tag = server.get(target).await.header("etag").unwrap().to_owned();
        for given in [tag.clone(), format!("\"x\", {tag}"), tag.trim_start_matches("W/").to_owned(), "*".to_owned()] {
            let again = server.send("GET", target, &format!("if-none-match: {given}\r\n")).await;
            assert_eq!((again.status, &*again.body, again.header("etag")), (304, "", Some(&*tag)), "{target}");
        }
        assert_eq!(server.send("GET", target, "if-none-match: \"other\"\r\n").await.status, 200);
    }
    let tag = server.get("/api/v1/query").await.header("etag").unwrap().to_owned();
    count(&server.store, 0, 1, &[("FR", 1)]).await;
    let fresh = server.send("GET", "/api/v1/query", &format!("if-none-match: {tag}\r\n")).await;
    assert_eq!(fresh.status, 200);
    assert_ne!(fresh.header("etag"), Some(&*tag));
}

#[tokio::test]
async fn the_openapi_document_describes_the_routes_that_there_are() {
    let server = start(&local()).await;
    let document = server.get("/api/v1/openapi.json").await.json();
    let described: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let routed: BTreeSet<&str> = ROUTES.iter().map(|route| route.path).collect();
    assert_eq!(described, routed);
    let posted: Vec<&str> = routed.iter().copied().filter(|path| document["paths"][path]["post"].is_object()).collect();
    assert_eq!(posted, ["/api/v1/events"]);
    for path in routed.into_iter().filter(|path| !posted.contains(path)) {
        let answer = server.get(path).await;
        let responses = &document["paths"][path]["get"]["responses"];
        assert!(responses.get(answer.status.to_string()).is_some(), "{path} {}", answer.status);
        let unknown = server.get(&format!("{path}?no_such_parameter=1")).await;
        assert!(responses.get(unknown.status.to_string()).is_some(), "{path} {}", unknown.status);
        // Every parameter that is described is a known one.
        for parameter in document["paths"][path]["get"]["parameters"].as_array().into_iter().flatten() {
            let reference = parameter["$ref"].as_str().unwrap().trim_start_matches('#');
            let parameter = document.pointer(reference).unwrap();
            if parameter["in"] == "query" {
                let name = parameter["name"].as_str().unwrap();
                let answer = server.get(&format!("{path}?{name}=1")).await;
                assert!(!answer.body.contains("is unknown; there are"), "{path} {name}: {}", answer.body);
            }
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn a_slow_sender_of_headers_is_cut_off() {
    let server = start(&Config { header_timeout_ms: 200, keep_alive_ms: 200, ..local() }).await;
    for opening in ["", "GET /health HTTP/1.1\r\nhost: tra", "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let stream = server.connect().await;
        write(&stream, opening.as_bytes()).await.unwrap();
        let begun = Instant::now();
        timeout(PATIENCE, read(&stream)).await.expect("it is cut off");
        assert!(begun.elapsed() >= Duration::from_millis(150), "{opening:?}");
    }
}

#[tokio::test]
async fn a_drip_of_headers_does_not_move_the_deadline() {
    let server = start(&Config { header_timeout_ms: 300, ..local() }).await;
    let stream = server.connect().await;
    let drip = async {
        _ = write(&stream, b"GET /health HTTP/1.1\r\n").await;
        for number in 0.. {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if write(&stream, format!("x-{number}: 1\r\n").as_bytes()).await.is_err() {
                break;
            }
        }
    };
    let cut_off = async {
        tokio::select! {
            () = drip => {}
            _ = read(&stream) => {}
        }
    };
    timeout(PATIENCE, cut_off).await.expect("it is cut off");
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let server = start(&local()).await;
    let long = server.send("GET", "/health", &format!("x: {}\r\n", "a".repeat(200 << 10))).await;
    assert!(matches!(long.status, 431 | 0), "{}", long.head);
    let many = server.send("GET", "/health", &"x: a\r\n".repeat(1000)).await;
    assert!(matches!(many.status, 431 | 0), "{}", many.head);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let server = start(&Config { connections_max: 1, header_timeout_ms: 300, ..local() }).await;
    let idle = server.connect().await;
    // Answered when the idle one has been cut off.
    assert_eq!(server.get("/health").await.status, 200);
    drop(idle);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let config = Config { request_timeout_ms: 300, header_timeout_ms: 60_000, connections_max: 1, ..local() };
    let server = start(&config).await;
    let deaf = server.connect().await;
    let request = b"GET /api/v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let begging = async { while write(&deaf, request).await.is_ok() {} };
    timeout(PATIENCE, begging).await.expect("it is cut off");
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_the_task() {
    let server = start(&local()).await;
    let idle = server.connect().await;
    write(&idle, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    idle.readable().await.unwrap();
    let address = server.address;
    timeout(Duration::from_secs(5), server.listening.stop()).await.expect("idle connections do not hold it up");
    // A process that another test starts holds a copy of every socket until it has become the other
    // program.
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, refused).await.expect("nobody listens any more");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let server = start(&local()).await;
    let taken = Config { http: server.address.to_string(), ..local() };
    let message = match serve(&taken, None, axum::Router::new(), std::future::pending()).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it is taken"),
    };
    assert!(message.starts_with(&format!("cannot listen on {}: address in use; ", server.address)), "{message}");
}

/// A line over TCP was measured while it was unfinished only: one that arrived in a single piece
/// could be longer than one that came in several, and a stranger could say up to 128 KiB.
#[tokio::test]
async fn a_line_is_as_long_in_one_piece_as_in_many() {
    let engine = Arc::new(Engine::new(Arc::new(MemoryStore::new(1)), Config::default().limits()));
    for (token, length) in [(None, 4 << 10), (Some(Secret("t".to_owned())), 1 << 10)] {
        let config = Config { token, ..local() };
        for (length, fits) in [(length, true), (length + 1, false)] {
            let command = r#"{"cmd":"auth","token":"t"}"#;
            let line = format!("{command}{}\n", " ".repeat(length - command.len()));
            for pieces in [line.len(), 100, line.len() - 1] {
                let mut conversation = Conversation::new(&config, 0, Arc::clone(&engine), None, || DAY);
                let mut answers = Vec::new();
                for piece in line.as_bytes().chunks(pieces) {
                    answers.extend(conversation.hear(piece).await.unwrap_or_default());
                }
                let answers = String::from_utf8(answers).unwrap();
                let expected = if fits { "{\"success\":true}" } else { "a line may have" };
                assert!(answers.contains(expected) && answers.lines().count() == 1, "{pieces}: {answers}");
                assert_eq!(conversation.hear(b"\n").await.is_some(), fits);
            }
        }
    }
}

/// The answer went through a tree of values, in which numbers are doubles: another sum than over
/// HTTP.
#[tokio::test]
async fn sums_are_exact_over_tcp() {
    let rules = r#"{"mapping":{"add_value":[{"key":"event","add_key":"amount"}]}}"#;
    let rules = serde_json::from_str::<Rules>(rules).unwrap().validate().unwrap();
    let store = MemoryStore::new(1);
    store.create(&Meta::new(&rules, "g", Vec::new())).await.unwrap();
    let sum = 9_007_199_255_000_001;
    let key = StoredKey {
        bucket: Bucket { kind: BucketKind::Day, start: DAY },
        metric: Metric::Sum { of: Pattern::parse("event").unwrap(), add_key: "amount".into() },
        expires_at: None,
    };
    let contents = Contents::Sums(vec![("a".to_owned(), sum, 1)], [sum, 1, sum, sum]);
    store.restore_keys(0, &[KeyDump { key, contents }]).await.unwrap();
    let engine = Arc::new(Engine::new(Arc::new(store), Config::default().limits()));
    let mut conversation = Conversation::new(&local(), 0, engine, None, || DAY);
    let question = b"{\"cmd\":\"query_days\",\"days\":1}\n";
    let answer = String::from_utf8(conversation.hear(question).await.unwrap()).unwrap();
    assert!(answer.starts_with("{\"success\":true,\"data\":[") && answer.ends_with("}\n"), "{answer}");
    assert_eq!(answer.matches("9007199255.000001").count(), 4, "{answer}");
}
