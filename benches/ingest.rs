//! Clients that load one machine's traqq, and measure what they see. Each prints one JSON line.
//!
//! ```text
//! ingest http HTTP CORPUS EVENTS RATE      NDJSON in batches of 1,000 over 4 connections
//! ingest tcp HTTP TCP CORPUS EVENTS RATE   single events, pipelined over 2 connections
//! ingest find HTTP PATH RATE SECONDS       the same question over 8 connections, an open loop
//! ingest visible HTTP TIMES                from sending an event to seeing it counted
//! ```
//!
//! RATE is per second; 0 is as fast as it goes. Plain blocking sockets: the client shares the cores
//! with what it measures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const BATCH: usize = 1000;
const CONNECTIONS: usize = 4;

/// A keep-alive connection.
struct Http {
    stream: BufReader<TcpStream>,
    body: Vec<u8>,
}

impl Http {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        Self { stream: BufReader::new(stream), body: Vec::new() }
    }

    /// Sends a whole request; the status of its answer, whose body is in `body`.
    fn send(&mut self, request: &[u8]) -> u16 {
        self.stream.get_mut().write_all(request).expect("a request");
        let (mut line, mut status, mut length) = (String::new(), 0, 0);
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("an answer");
            if line.starts_with("HTTP/1.1 ") {
                status = line[9..12].parse().expect("a status");
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body).expect("a body");
        status
    }

    fn get(&mut self, path: &str) -> Value {
        let status = self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes());
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

fn post(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /api/v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn counted(address: &str) -> usize {
    Http::connect(address).get("/api/v1/stats")["totals"]["events"].as_u64().expect("a total") as usize
}

fn wait_until_counted(address: &str, events: usize) {
    while counted(address) < events {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lines(path: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read(path).expect("the corpus");
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn http(address: &str, corpus: &str, events: usize, rate: f64) -> Value {
    let lines = lines(corpus);
    let requests: Arc<Vec<Vec<u8>>> =
        Arc::new(lines.chunks_exact(BATCH).map(|chunk| post("application/x-ndjson", &chunk.join(&b'\n'))).collect());
    drop(lines);
    let before = counted(address);
    let next = Arc::new(AtomicUsize::new(0));
    let batches = events / BATCH;
    let begun = Instant::now();
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (requests, next, address) = (Arc::clone(&requests), Arc::clone(&next), address.to_owned());
            std::thread::spawn(move || {
                let mut http = Http::connect(&address);
                loop {
                    let batch = next.fetch_add(1, Ordering::Relaxed);
                    if batch >= batches {
                        return;
                    }
                    if rate > 0.0 {
                        let due = Duration::from_secs_f64((batch * BATCH) as f64 / rate);
                        std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    }
                    while http.send(&requests[batch % requests.len()]) != 200 {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            })
        })
        .collect();
    senders.into_iter().for_each(|sender| sender.join().expect("a sender"));
    let acknowledged = begun.elapsed().as_secs_f64();
    wait_until_counted(address, before + batches * BATCH);
    let seconds = begun.elapsed().as_secs_f64();
    json!({"events": batches * BATCH, "acknowledged_seconds": acknowledged, "seconds": seconds,
        "events_per_second": (batches * BATCH) as f64 / seconds})
}

fn tcp(http: &str, address: &str, corpus: &str, events: usize, rate: f64) -> Value {
    const CONNECTIONS: usize = 2;
    let chunks: Arc<Vec<(usize, Vec<u8>)>> = Arc::new(
        lines(corpus)
            .chunks(80)
            .map(|chunk| {
                let lines: Vec<Vec<u8>> = chunk
                    .iter()
                    .map(|event| [b"{\"cmd\":\"record\",\"event\":", &event[..], b"}\n"].concat())
                    .collect();
                (lines.len(), lines.concat())
            })
            .collect(),
    );
    let before = counted(http);
    let share = events / CONNECTIONS;
    let begun = Instant::now();
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let stream = TcpStream::connect(address).expect("a connection");
            let (chunks, mut writing) = (Arc::clone(&chunks), stream.try_clone().expect("a stream"));
            let writer = std::thread::spawn(move || {
                let mut sent = 0;
                for (count, chunk) in chunks.iter().cycle().skip(number * 100) {
                    if rate > 0.0 {
                        let due = Duration::from_secs_f64((sent * CONNECTIONS) as f64 / rate);
                        std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    }
                    writing.write_all(chunk).expect("lines");
                    sent += count;
                    if sent >= share {
                        return sent;
                    }
                }
                sent
            });
            let reader = std::thread::spawn(move || {
                let mut answers = 0;
                for line in BufReader::new(stream).lines().take(share) {
                    assert_eq!(line.expect("an answer"), "{\"success\":true}");
                    answers += 1;
                }
                answers
            });
            (writer, reader)
        })
        .collect();
    let mut sent = 0;
    for (writer, reader) in senders {
        assert_eq!(reader.join().expect("a reader"), share);
        sent += writer.join().expect("a writer");
    }
    let acknowledged = begun.elapsed().as_secs_f64();
    wait_until_counted(http, before + sent);
    json!({"events": sent, "seconds": acknowledged, "events_per_second": sent as f64 / acknowledged})
}

fn percentiles(mut millis: Vec<f64>) -> Value {
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| millis[((millis.len() - 1) as f64 * share) as usize];
    json!({"count": millis.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)})
}

fn find(address: &str, path: &str, rate: f64, seconds: f64) -> Value {
    const CONNECTIONS: usize = 8;
    let (next, millis) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let questions = (rate * seconds) as usize;
    let begun = Instant::now();
    let askers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (next, millis) = (Arc::clone(&next), Arc::clone(&millis));
            let (address, path) = (address.to_owned(), path.to_owned());
            std::thread::spawn(move || {
                let mut http = Http::connect(&address);
                let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
                loop {
                    let question = next.fetch_add(1, Ordering::Relaxed);
                    if question >= questions {
                        return;
                    }
                    // Time counts from when the question was due, so that a stall is seen by every
                    // question behind it.
                    let due = Duration::from_secs_f64(question as f64 / rate);
                    std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    assert_eq!(http.send(request.as_bytes()), 200, "{}", String::from_utf8_lossy(&http.body));
                    let took = begun.elapsed().saturating_sub(due).as_secs_f64() * 1000.0;
                    millis.lock().expect("a list").push(took);
                }
            })
        })
        .collect();
    askers.into_iter().for_each(|asker| asker.join().expect("an asker"));
    percentiles(std::mem::take(&mut *millis.lock().expect("a list")))
}

fn visible(address: &str, times: usize) -> Value {
    let mut http = Http::connect(address);
    let mut millis = Vec::new();
    for number in 0..times {
        let name = format!("visible-{}-{number}", std::process::id());
        let begun = Instant::now();
        assert_eq!(http.send(&post("application/json", json!({ "event": name }).to_string().as_bytes())), 200);
        let path = format!("/api/v1/find?q=add/event&days=1&merge=true&value={name}");
        while http.get(&path)["results"][0]["data"]["count"] != 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        millis.push(begun.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(Duration::from_millis(7));
    }
    percentiles(millis)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<f64>().expect("a number");
    let result = match arguments[..] {
        ["http", address, corpus, events, rate] => http(address, corpus, number(events) as usize, number(rate)),
        ["tcp", address, tcp_address, corpus, events, rate] => {
            tcp(address, tcp_address, corpus, number(events) as usize, number(rate))
        }
        ["find", address, path, rate, seconds] => find(address, path, number(rate), number(seconds)),
        ["visible", address, times] => visible(address, number(times) as usize),
        _ => panic!("see the top of benches/ingest.rs"),
    };
    println!("{result}");
}
