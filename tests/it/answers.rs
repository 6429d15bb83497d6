//! Answers that are large, and clients that do not read them, against a process.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::local::{NDJSON, Site};
use crate::process::{PATIENCE, Process};
use crate::servers::poll_until;

const MIB: u64 = 1 << 20;
/// Of `worker.memory_max_bytes` in these tests; a quarter of it is for answers.
const MEMORY_BYTES: u64 = 128 * MIB;
const LABELS: usize = 12_000;

fn site(more: &str) -> Site {
    Site::new("", &format!("[worker]\nmemory_max_bytes = {MEMORY_BYTES}\n{more}"))
}

/// Asks, and reads nothing.
fn ask(site: &Site, target: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", site.http))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// Status, head, and body, whose chunks are put together.
fn answer(site: &Site, target: &str) -> (u16, String, Vec<u8>) {
    let mut bytes = Vec::new();
    ask(site, target).unwrap().read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut rest = &bytes[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (status, head, rest.to_vec());
    }
    let mut body = Vec::new();
    loop {
        let line = rest.iter().position(|byte| *byte == b'\n').expect("a chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            return (status, head, body);
        }
        body.extend_from_slice(&rest[line + 1..][..size]);
        rest = &rest[line + 1 + size + 2..];
    }
}

/// Events of many names that are six times as long in JSON.
fn fill(site: &Site) {
    let label = "\\u0001".repeat(490);
    for chunk in 0..LABELS / 1000 {
        let line = |number| format!("{{\"event\":\"{}{label}x\"}}\n", chunk * 1000 + number);
        let body: String = (0..1000).map(line).collect();
        assert_eq!(site.post(NDJSON, body.as_bytes()).unwrap().status, 200);
    }
    poll_until(PATIENCE, "all are counted", || (site.events() == LABELS as u64).then_some(()));
}

fn used(process: &Process) -> f64 {
    process.metric("traqq_answer_bytes")
}

/// Five answers of 60,000 labels of 490 control characters, left unread, ended a process of 768 MB.
#[test]
fn answers_that_nobody_reads_take_a_bounded_part_of_memory() {
    let site = site("");
    let process = site.start();
    fill(&site);
    let all = "/api/v1/find?q=add/event&days=1&limit=100000";
    let (status, _, body) = answer(&site, all);
    let found: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, found["results"][0]["data"]["values"].as_array().unwrap().len()), (200, LABELS));
    let before = process.peak_bytes();
    let question = b"{\"cmd\":\"find\",\"days\":1,\"metric_type\":\"add\",\"key\":\"event\",\"limit\":100000}\n";
    let mut unread = Vec::new();
    for number in 0..40 {
        let format = ["json", "rows", "csv", "spreadsheet"][number % 4];
        unread.push(ask(&site, &format!("{all}&format={format}")).unwrap());
        let mut tcp = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
        tcp.write_all(question).unwrap();
        unread.push(tcp);
        if number % 10 == 9 {
            for small in ["/api/v1/find?q=add/event&days=1&value=1", "/api/v1/find?q=top/id&days=1", "/api/v1/catalog"]
            {
                let (status, _, body) = answer(&site, small);
                assert_eq!(status, 200, "{small}: {}", String::from_utf8_lossy(&body));
            }
        }
    }
    let busy = poll_until(PATIENCE, "a question for which there is no memory", || {
        // What is refused or cut off makes room for another.
        unread.push(ask(&site, all).unwrap());
        let (status, head, body) = answer(&site, all);
        (status == 429).then(|| head + &String::from_utf8_lossy(&body))
    });
    assert!(busy.contains("retry-after: 1") && busy.contains("ask again in a moment"), "{busy}");
    assert!(used(&process) <= (MEMORY_BYTES / 4) as f64);
    let grown = process.peak_bytes().saturating_sub(before);
    eprintln!("unread answers: {} MiB more than {} MiB", grown / MIB, before / MIB);
    assert!(grown < 3 * MEMORY_BYTES / 8, "{} MiB more than {}", grown / MIB, before / MIB);
    drop(unread);
    poll_until(PATIENCE, "what nobody will read is given back", || (used(&process) == 0.0).then_some(()));
    assert_eq!(answer(&site, all).0, 200);
    assert_eq!(process.stop(), 0);
}

/// All dead letters, as many as were asked for, were one answer, whatever their size.
#[test]
fn large_dead_letters_come_in_pages() {
    const LETTERS: usize = 7;
    let site = site("[events]\nmax_metrics_per_event = 3\n");
    let process = site.start();
    for number in 0..LETTERS {
        let body =
            json!({"event": "e", "id": "i", "ip": "1", "amount": number, "x": "y".repeat(1_000_000)}).to_string();
        assert_eq!(site.post("content-type: application/json\r\n", body.as_bytes()).unwrap().status, 200);
    }
    let path = "/api/v1/dead-letters";
    poll_until(PATIENCE, "dead letters", || {
        (answer(&site, &format!("{path}?limit=1&before={LETTERS}")).2.len() > 1_000_000
            && process.metric("traqq_dead_letters_total") == LETTERS as f64)
            .then_some(())
    });
    let (mut next, mut numbers, mut pages) = (Some(path.to_owned()), Vec::new(), 0);
    while let Some(target) = next {
        let (status, head, body) = answer(&site, &target);
        assert!(status == 200 && body.len() as u64 <= MEMORY_BYTES / 32, "{}", body.len());
        let letters: Value = serde_json::from_slice(&body).unwrap();
        numbers.extend(letters.as_array().unwrap().iter().map(|letter| letter["number"].as_u64().unwrap() as usize));
        let link = head.lines().find_map(|line| line.strip_prefix("link: <")?.strip_suffix(">; rel=\"next\""));
        (next, pages) = (link.map(str::to_owned), pages + 1);
    }
    assert_eq!(numbers, (0..LETTERS).rev().collect::<Vec<_>>());
    assert!(pages > 1);
    let (_, head, body) = answer(&site, &format!("{path}?limit=2&before=1"));
    let letters: Value = serde_json::from_slice(&body).unwrap();
    assert!(letters.as_array().unwrap().len() == 1 && !head.contains("link:"), "{head}");
    assert_eq!(process.stop(), 0);
}

/// A hundred bad lines left 7 KB behind for a day. What is kept is two numbers, and the errors are
/// found again.
#[test]
fn a_repeated_request_is_told_the_same_though_little_of_it_is_kept() {
    let site = site("");
    let process = site.start();
    let body = format!("{}{{\"event\":\"e\",\"x\":\"{}\"}}\n", "1\n".repeat(100), "y".repeat(100));
    let headers = |key: usize| format!("{NDJSON}idempotency-key: {key}\r\n");
    let first = site.post(&headers(0), body.as_bytes()).unwrap();
    assert_eq!((first.status, first.json()["errors"].as_array().unwrap().len()), (200, 100));
    let again = site.post(&headers(0), body.as_bytes()).unwrap();
    assert_eq!((again.status, again.text()), (200, first.text()));
    for key in 1..100 {
        assert_eq!(site.post(&headers(key), body.as_bytes()).unwrap().status, 200);
    }
    let bytes = process.metric("traqq_idempotency_key_bytes");
    assert!(bytes > 0.0 && bytes < 100.0 * 60.0, "{bytes} bytes of 100 keys");
    poll_until(PATIENCE, "each counts once", || (site.events() == 100).then_some(()));
    assert_eq!(process.stop(), 0);
    // Rules by which other events are taken: the numbers of then are said.
    let config = std::fs::read_to_string(&site.config).unwrap();
    std::fs::write(&site.config, config + "[events]\nmax_event_bytes = 64\n").unwrap();
    site.run(&["mapping", "apply"]);
    let process = site.start();
    let later = site.post(&headers(0), body.as_bytes()).unwrap();
    assert_eq!((later.status, later.json()), (200, json!({"accepted": 1, "rejected": 100, "errors": []})));
    assert_eq!(process.stop(), 0);
}
