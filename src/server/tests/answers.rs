//! What answers hold in memory, until they are read.

use super::*;
use traqq_counts::query::Limits;

const LABELS: usize = 20_000;

/// A store with a counter of many labels that are six times as long in JSON.
async fn crowded() -> MemoryStore {
    let rules: Rules = serde_json::from_str(r#"{"mapping":{"add":["event"]}}"#).unwrap();
    let store = MemoryStore::new(1);
    store.create(&Meta::new(&rules.validate().unwrap(), "g", Vec::new())).await.unwrap();
    let label = |number: usize| format!("{number}{}", "\u{1}".repeat(100));
    let bucket = Bucket { kind: BucketKind::Day, start: DAY };
    let key = StoredKey { bucket, metric: Metric::Count { of: Pattern::parse("event").unwrap() }, expires_at: None };
    let contents = Contents::Counts((0..LABELS).map(|number| (label(number), 1)).collect());
    store.restore_keys(0, &[KeyDump { key, contents }]).await.unwrap();
    store
}

fn live() -> Live {
    Live {
        liveness: Box::new(|| Ok(())),
        readiness: Box::new(|| Ok(())),
        stats: Box::new(|| json!({"text": "x".repeat(100_000)})),
        metrics: Box::new(|| "x".repeat(100_000)),
        dead_letters: Some(Arc::new(|before, limit, bytes_max| {
            let text = format!("[{before:?},{limit},{bytes_max}]").into_bytes();
            Ok(super::super::Letters { text, more_before: before.map(|before| before - 1) })
        })),
    }
}

struct Crowd {
    engine: Arc<Engine>,
    listening: Listening,
}

async fn crowd(answers_bytes_max: usize) -> Crowd {
    let config = Config { request_timeout_ms: 3000, ..local() };
    let limits = Limits { answers_bytes_max, ..config.limits() };
    let engine = Arc::new(Engine::new(Arc::new(crowded().await), limits));
    let router = router_at(&config, Arc::clone(&engine), live(), None, || DAY + 60);
    let listening = serve(&config, None, router, std::future::pending()).await.unwrap();
    Crowd { engine, listening }
}

impl Crowd {
    async fn ask(&self, target: &str) -> TcpStream {
        let stream = TcpStream::connect(self.listening.address()).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        write(&stream, request.as_bytes()).await.unwrap();
        stream
    }

    async fn status(&self, target: &str) -> (String, String) {
        let answer = read(&self.ask(target).await).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        (status, answer)
    }

    /// Waits until answers hold so much.
    async fn until(&self, what: &str, is_so: impl Fn(usize) -> bool) {
        let settled = async {
            while !is_so(self.engine.memory().used()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("{what}: {}", self.engine.memory().used()));
    }
}

const ALL: &str = "/api/v1/find?q=add/event&days=1&limit=100000";
const FORMATS: [&str; 4] = ["json", "rows", "csv", "spreadsheet"];

/// Answers that nobody read were held without any bound: five of them ended a process of 768 MB.
#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_together_and_small_ones_go_on() {
    let crowd = crowd(12 << 20).await;
    for format in FORMATS {
        let mut unread = Vec::new();
        // One holds 4 MB of rows until it has been read; when they are merged it is more.
        for _ in 0..6 {
            unread.push(crowd.ask(&format!("{ALL}&format={format}")).await);
        }
        crowd.until("answers are held", |used| used > 3 << 20).await;
        let busy = async {
            loop {
                let (status, answer) = crowd.status(&format!("{ALL}&format={format}")).await;
                if status == "429" {
                    return answer;
                }
            }
        };
        let answer = timeout(PATIENCE, busy).await.expect("there is an end to it");
        assert!(answer.to_lowercase().contains("retry-after: 1") && answer.contains("ask again"), "{answer}");
        assert!(crowd.engine.memory().used() <= 12 << 20);
        for small in ["/api/v1/find?q=add/event&value=1&days=1", "/api/v1/stats", "/metrics", "/api/v1/catalog"] {
            assert_eq!(crowd.status(small).await.0, "200", "{small}");
        }
        drop(unread);
        crowd.until("what nobody will read is given back", |used| used == 0).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_says_how_to_ask_for_less() {
    let crowd = crowd(4 << 20).await;
    for format in FORMATS {
        let (status, answer) = crowd.status(&format!("{ALL}&format={format}")).await;
        assert_eq!(status, "422", "{answer}");
        assert!(answer.contains("question-too-large") && answer.contains("one `value`"), "{answer}");
    }
    // What it says helps, and the catalog says what it knows.
    assert_eq!(crowd.status("/api/v1/find?q=add/event&value=1&days=1").await.0, "200");
    let (status, answer) = crowd.status("/api/v1/catalog?days=1").await;
    assert!(status == "200" && !answer.contains(&format!("\"values\":{LABELS}")), "{answer}");
    crowd.until("nothing is held", |used| used == 0).await;
}

/// One who takes a large answer in drops holds it no longer than the slowest client that is served.
#[tokio::test]
async fn an_answer_over_tcp_counts_until_it_is_written() {
    let config = Config { tcp: "127.0.0.1:0".to_owned(), request_timeout_ms: 2000, ..local() };
    let engine = Arc::new(Engine::new(Arc::new(crowded().await), config.limits()));
    let (address, task) =
        super::super::serve_tcp(&config, None, 0, Arc::clone(&engine), None, || DAY + 60).await.unwrap();
    let question = b"{\"cmd\":\"find\",\"days\":1,\"metric_type\":\"add\",\"key\":\"event\",\"limit\":100000}\n";
    let unread = TcpStream::connect(address).await.unwrap();
    write(&unread, question).await.unwrap();
    let held = async {
        while engine.memory().used() < 2 << 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, held).await.expect("it is held");
    let given_back = async {
        while engine.memory().used() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, given_back).await.expect("a client that does not read is cut off");
    let reader = TcpStream::connect(address).await.unwrap();
    write(&reader, question).await.unwrap();
    let mut answer = Vec::new();
    let whole = async {
        while !answer.ends_with(b"}\n") {
            reader.readable().await.unwrap();
            let mut chunk = [0; 65_536];
            match reader.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => answer.extend_from_slice(&chunk[..length]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    };
    timeout(PATIENCE, whole).await.expect("an answer");
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["data"][0]["data"]["values"].as_array().unwrap().len(), LABELS);
    task.abort();
}

/// A thousand letters of a mebibyte were one answer of a gigabyte.
#[tokio::test]
async fn dead_letters_come_in_pages_of_bytes() {
    let crowd = crowd(8 << 20).await;
    let (status, answer) = crowd.status("/api/v1/dead-letters?limit=5000").await;
    assert!(status == "200" && answer.ends_with("[None,1000,1048576]") && !answer.contains("link:"), "{answer}");
    let (_, answer) = crowd.status("/api/v1/dead-letters?before=7").await;
    let link = "link: </api/v1/dead-letters?before=6&limit=100>; rel=\"next\"";
    assert!(answer.contains("[Some(7),100,") && answer.contains(link), "{answer}");
    for wrong in ["before=-1", "before=x", "before=", "after=1"] {
        assert_eq!(crowd.status(&format!("/api/v1/dead-letters?{wrong}")).await.0, "400", "{wrong}");
    }
}
