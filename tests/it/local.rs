//! The program on one machine: local log, embedded store, events over HTTP and TCP, and everything
//! that can happen to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use traqq::config::load;
use traqq_core::model::{Bucket, BucketKind, Checkpoint, Part, RecordBatch, TopicPartition};
use traqq_counts::compile::{Folder, Plan};
use traqq_counts::mapping::metrics_of;
use traqq_counts::store::embedded::EmbeddedStore;
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::{Meta, Store, StoreError};
use traqq_disk::{Config as DataConfig, Database, Tree};
use traqq_log::local::{Config as LogConfig, LocalLog};
use traqq_log::{Consumer, Event, Opening};

use crate::cli::{traqq, write_config};
use crate::model::Random;
use crate::process::{PATIENCE, Process};
use crate::redis_store::{assert_same, now, reads_of};
use crate::servers::{Redis, free_port, poll_until};

const MAPPING: &str = "[mapping]\nbitmap = [\"ip\"]\nadd = [\"event\", \"id\"]\nauto_pairs = false\n\
    add_value = [{ key = \"event\", add_key = \"amount\" }]\ntop = [\"id\"]\nbitmap_by = [{ key = \"event\", of = \"ip\" }]\n";

/// A data directory, a configuration, and the ports that it names.
pub struct Site {
    _directory: TempDir,
    pub config: PathBuf,
    pub http: u16,
    pub tcp: u16,
}

impl Site {
    /// `data` is appended to `[data]`, `more` to the end.
    pub fn new(data: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::at(directory, None, data, more)
    }

    fn at(directory: TempDir, data_directory: Option<&Path>, data: &str, more: &str) -> Self {
        let (http, tcp) = (free_port(), free_port());
        let data_directory = data_directory.map_or_else(|| directory.path().join("data"), Path::to_owned);
        let text = format!(
            "[data]\ndirectory = {data_directory:?}\n{data}\n[server]\nhttp = \"127.0.0.1:{http}\"\ntcp = \"127.0.0.1:{tcp}\"\n\
             [log]\nformat = \"text\"\n{MAPPING}{more}"
        );
        let config = write_config(directory.path(), &text);
        Self { _directory: directory, config, http, tcp }
    }

    pub fn start(&self) -> Process {
        let process = Process::start(&self.config);
        process.wait_for_line("listening for TCP");
        process
    }

    /// A command that succeeds.
    pub fn run(&self, arguments: &[&str]) {
        let output = traqq().arg("--config").arg(&self.config).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn data_directory(&self) -> PathBuf {
        load(Some(&self.config), &[]).unwrap().config.data.directory
    }

    pub fn post(&self, headers: &str, body: &[u8]) -> io::Result<Answer> {
        self.send("POST", "/api/v1/events", headers, body)
    }

    pub fn get(&self, path: &str) -> Value {
        let text = self.text(path);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub fn text(&self, path: &str) -> String {
        let answer = self.send("GET", path, "", b"").unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text()
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok(Answer { status, head, body: bytes[end + 4..].to_vec() })
    }

    pub fn events(&self) -> u64 {
        self.get("/api/v1/stats")["totals"]["events"].as_u64().unwrap()
    }

    pub fn wait_until_counted(&self) {
        poll_until(PATIENCE, "everything is counted", || {
            let stats = self.get("/api/v1/stats");
            let partition = stats["partitions"].as_array()?.first()?;
            (partition["state"] == "running" && stats["lag_records"] == 0 && self.is_settled(&stats)).then_some(())
        });
    }

    /// The figures are taken once a second: twice the same, with a second between.
    fn is_settled(&self, stats: &Value) -> bool {
        std::thread::sleep(Duration::from_millis(1200));
        self.get("/api/v1/stats")["partitions"] == stats["partitions"]
    }
}

pub struct Answer {
    pub status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

pub const NDJSON: &str = "content-type: application/x-ndjson\r\n";
const JSON: &str = "content-type: application/json\r\n";

pub fn event(id: &str, number: usize) -> String {
    json!({"event": format!("e{}", number % 5), "id": id, "ip": format!("10.0.{}.{}", number % 7, number % 250), "amount": number % 100})
        .to_string()
}

/// The data directory of a process that has ended.
pub struct Remains {
    log: Vec<RecordBatch>,
    store: EmbeddedStore,
}

/// Those of a data directory.
const TREES: [Tree; 2] = [traqq_log::local::rows::TREE, traqq_counts::store::embedded::rows::TREE];

pub fn open_remains(directory: &Path) -> Result<Remains, String> {
    let config = DataConfig { directory: directory.to_owned(), ..DataConfig::default() };
    let database = loop {
        match Database::open(&config, 16 << 20, &TREES) {
            Err(error) if error.to_string().contains("in use") => {}
            other => break other.map_err(|error| error.to_string())?,
        }
    };
    let log = LocalLog::open(&database, &LogConfig::default(), false, 0, || 0).map_err(|error| error.to_string())?;
    let store = EmbeddedStore::open(&database, 16 << 20, now).map_err(|error| error.to_string())?;
    let mut consumer = log.consumer();
    let partition = TopicPartition::new("events", 0);
    let end = consumer.watermarks(&partition).map_err(|error| error.to_string())?.high;
    consumer.poll(Duration::ZERO, 1).map_err(|error| error.to_string())?;
    consumer
        .open(&[Opening { partition, offset: 0, position: 0, generation: 1 }])
        .map_err(|error| error.to_string())?;
    let mut batches: Vec<RecordBatch> = Vec::new();
    while batches.last().map_or(0, |batch| batch.position) < end {
        for event in consumer.poll(Duration::from_millis(1), 1 << 20).map_err(|error| error.to_string())? {
            match event {
                Event::Records(batch) => batches.push(batch),
                _ => return Err("the log does not begin at 0".to_owned()),
            }
        }
    }
    Ok(Remains { log: batches, store })
}

impl Remains {
    /// How often each id is in the log.
    pub fn ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for record in self.log.iter().flat_map(RecordBatch::iter) {
            let event: Value = serde_json::from_slice(record.value.unwrap()).unwrap();
            *ids.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        ids
    }

    /// The counts are those of a single fold over these records, up to the stored position. `Err`
    /// when they cannot be read.
    async fn check(self, log: Vec<RecordBatch>, config: &Path) -> Result<(), StoreError> {
        let partition = TopicPartition::new("events", 0);
        let position = self.store.positions(0).await?.get(&partition).map_or(0, |stored| stored.position);
        let rules = load(Some(config), &[]).unwrap().config.check_worker().unwrap();
        let metrics = metrics_of(&rules.rules);
        let plan = Arc::new(Plan::new(rules));
        let reference = MemoryStore::new(1);
        reference.set_now(now());
        let mut meta = Meta::new(&plan.rules, "g", Vec::new());
        meta.starts.insert(partition.clone(), 0);
        reference.create(&meta).await?;
        let mut session = reference.session(0).await?;
        let (mut from, mut labels) = (Checkpoint::start(0), BTreeSet::new());
        for records in log {
            let count = records.iter().filter(|record| record.offset < position).count();
            let records = first_of(&records, count);
            for record in records.iter() {
                let event: Value = serde_json::from_slice(record.value.unwrap()).unwrap();
                labels.insert(event["event"].as_str().unwrap().to_owned());
            }
            let to = records.checkpoint_after(from);
            for folded in Folder::new(Arc::clone(&plan), usize::MAX).fold(&[Part { records, from }]) {
                session.commit(Arc::new(folded.batch)).await.await?;
            }
            from = to;
        }
        let today = now().div_euclid(86_400) * 86_400;
        let buckets = [0, 1].map(|days| Bucket { kind: BucketKind::Day, start: today - days * 86_400 });
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let reads = reads_of(&metrics, &buckets, &labels);
        self.store.read(0, &reads).await?;
        if position > 0 {
            assert_same(&self.store, &reference, &reads, "against a single fold").await;
        }
        Ok(())
    }

    /// The oracle folds this log too, and finds the same in a Redis that the counts were moved to.
    fn assert_oracle_agrees(self, site: &Site) {
        let redis = Redis::start(&[]);
        let directory = tempfile::tempdir().unwrap();
        let (records, file) = (directory.path().join("records"), directory.path().join("counts.zst"));
        self.write_records(&records);
        // The directory has one user at a time.
        drop(self);
        site.run(&["store", "export", &file.to_string_lossy()]);
        let url = format!("store.redis.url={}", redis.url());
        site.run(&["--set", &url, "store", "import", &file.to_string_lossy()]);
        assert_oracle_agrees(&site.config, &records, &redis);
    }

    fn write_records(&self, file: &Path) {
        let mut out = BufWriter::new(std::fs::File::create(file).unwrap());
        for record in self.log.iter().flat_map(RecordBatch::iter) {
            let line = json!({"topic": "events", "partition": 0, "offset": record.offset, "timestamp_ms": record.timestamp_ms,
                "value_b64": base64(record.value.unwrap())});
            writeln!(out, "{line}").unwrap();
        }
    }

    pub fn assert_exact(self, config: &Path) {
        let log = copy_of(&self.log);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.check(log, config)).unwrap();
    }
}

/// Everything in Redis is what the oracle, which shares no code with us, makes of these records.
fn assert_oracle_agrees(config: &Path, records: &Path, redis: &Redis) {
    let text = oracle_says(config, records, redis);
    assert!(text.contains(" 0 differences") && !text.contains(" 0 metrics"), "{text}");
}

pub fn oracle_says(config: &Path, records: &Path, redis: &Redis) -> String {
    let python = std::env::var("TRAQQ_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/check.py");
    let output = std::process::Command::new(python)
        .args([&check, config])
        .arg("--records")
        .arg(records)
        .args(["--redis", &redis.url(), "--jobs", "1"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let three = |chunk: &[u8]| {
        let number = (0..3).fold(0, |number, at| number << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        (0..4)
            .map(|at| if at > chunk.len() { '=' } else { DIGITS[(number >> (18 - 6 * at) & 63) as usize] as char })
            .collect::<String>()
    };
    bytes.chunks(3).map(three).collect()
}

/// The first records of a batch.
fn first_of(records: &RecordBatch, count: usize) -> RecordBatch {
    let mut first = RecordBatch::new(records.partition.clone(), records.generation);
    for record in records.iter().take(count) {
        first.push(record.offset, record.timestamp_ms, record.key, record.value);
        record.headers().for_each(|header| first.push_header(header));
    }
    first
}

fn copy_of(log: &[RecordBatch]) -> Vec<RecordBatch> {
    log.iter().map(|records| first_of(records, records.len())).collect()
}

// ---- kill -9 ------------------------------------------------------------------------------------

/// What the senders know when they end.
#[derive(Default)]
struct Sent {
    acknowledged: Mutex<BTreeSet<String>>,
    uncertain: Mutex<BTreeSet<String>>,
}

/// Sends batches with idempotency keys, each until it is acknowledged.
fn send_http(site: &Site, sent: &Sent, sender: usize, is_over: &AtomicBool) {
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let ids: Vec<String> = (0..20).map(|at| format!("h{sender}-{number}-{at}")).collect();
        let lines: Vec<String> = ids.iter().enumerate().map(|(at, id)| event(id, number * 20 + at)).collect();
        let headers = format!("{NDJSON}idempotency-key: h{sender}-{number}\r\n");
        loop {
            match site.post(&headers, lines.join("\n").as_bytes()) {
                Ok(answer) if answer.status == 200 => {
                    assert_eq!(answer.json()["accepted"], 20, "{}", answer.text());
                    break;
                }
                Ok(answer) => assert!(answer.status >= 429, "{}", answer.text()),
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        sent.acknowledged.lock().unwrap().extend(ids);
        number += 1;
    }
}

/// Sends single events, pipelined; what was not answered is uncertain.
fn send_tcp(site: &Site, sent: &Sent, sender: usize, is_over: &AtomicBool) {
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect(("127.0.0.1", site.tcp)) else {
            std::thread::sleep(Duration::from_millis(3));
            continue;
        };
        let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut stream = stream;
        while !is_over.load(Ordering::Relaxed) {
            let ids: Vec<String> = (0..50).map(|at| format!("t{sender}-{number}-{at}")).collect();
            number += 1;
            let lines: String = ids
                .iter()
                .enumerate()
                .map(|(at, id)| format!("{{\"cmd\":\"record\",\"event\":{}}}\n", event(id, at)))
                .collect();
            let is_written = stream.write_all(lines.as_bytes()).is_ok();
            let mut left = ids.into_iter();
            if is_written {
                for answer in answers.by_ref().take(50) {
                    match answer {
                        Ok(line) if line == "{\"success\":true}" => {
                            sent.acknowledged.lock().unwrap().insert(left.next().unwrap());
                        }
                        // Refused because it goes down.
                        Ok(line) => {
                            assert!(line.contains("\"success\":false"), "{line}");
                            sent.uncertain.lock().unwrap().insert(left.next().unwrap());
                        }
                        Err(_) => break,
                    }
                }
            }
            if left.len() > 0 {
                sent.uncertain.lock().unwrap().extend(left);
                break;
            }
        }
    }
}

/// Kills the process at random moments while events come in over HTTP and TCP; then every
/// acknowledged event must be in the log once, and the counts those of the log.
fn kill_at_random(durability: &str, kills: usize, seed: u64) {
    let site = Arc::new(Site::new(&format!("durability = \"{durability}\""), ""));
    let (sent, is_over) = (Arc::new(Sent::default()), Arc::new(AtomicBool::new(false)));
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let (site, sent, is_over) = (Arc::clone(&site), Arc::clone(&sent), Arc::clone(&is_over));
            let send = if sender < 2 { send_http } else { send_tcp };
            std::thread::spawn(move || send(&site, &sent, sender, &is_over))
        })
        .collect();
    let mut random = Random(seed);
    for _ in 0..kills {
        let process = site.start();
        std::thread::sleep(Duration::from_millis(random.below(150)));
        // Dropped, which is kill -9.
        drop(process);
    }
    let process = site.start();
    std::thread::sleep(Duration::from_millis(300));
    is_over.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().expect("a sender"));
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);

    let remains = open_remains(&site.data_directory()).unwrap();
    let ids = remains.ids();
    let acknowledged = sent.acknowledged.lock().unwrap();
    let uncertain = sent.uncertain.lock().unwrap();
    assert!(acknowledged.len() > kills * 20, "{} events are too few to mean anything", acknowledged.len());
    for id in &*acknowledged {
        assert_eq!(ids.get(id), Some(&1), "{id} was acknowledged");
    }
    for (id, count) in &ids {
        assert!(acknowledged.contains(id) || uncertain.contains(id), "{id} was never sent");
        assert_eq!(*count, 1, "{id}");
    }
    drop((acknowledged, uncertain));
    remains.assert_exact(&site.config);
    open_remains(&site.data_directory()).unwrap().assert_oracle_agrees(&site);
}

#[test]
fn kill_minus_nine_at_random_moments_every_write() {
    kill_at_random("every-write", 50, 1);
}

#[test]
fn kill_minus_nine_at_random_moments_periodic() {
    kill_at_random("periodic", 50, 2);
}

/// From the embedded store to Redis, under the same log: counting goes on where it stood, also
/// through kill -9.
#[test]
fn a_store_that_moves_to_redis_goes_on_exactly() {
    let site = Site::new("", "");
    let send = |name: &str, number: usize| {
        let lines: Vec<String> = (0..50).map(|at| event(&format!("{name}-{number}-{at}"), at + number)).collect();
        let headers = format!("{NDJSON}idempotency-key: {name}-{number}\r\n");
        poll_until(PATIENCE, "the log takes it", || {
            site.post(&headers, lines.join("\n").as_bytes()).ok().filter(|answer| answer.status == 200).map(|_| ())
        });
    };
    let process = site.start();
    (0..20).for_each(|number| send("before", number));
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
    let redis = Redis::start(&[]);
    let file = site.config.with_extension("zst");
    site.run(&["doctor"]);
    site.run(&["store", "export", &file.to_string_lossy()]);
    let config = std::fs::read_to_string(&site.config).unwrap();
    std::fs::write(&site.config, format!("{config}\n[store.redis]\nurl = \"{}\"\n", redis.url())).unwrap();
    site.run(&["store", "import", &file.to_string_lossy()]);
    for round in 0..5 {
        let process = site.start();
        (0..10).for_each(|number| send(&format!("after{round}"), number));
        std::thread::sleep(Duration::from_millis(40 * round));
        drop(process);
    }
    let process = site.start();
    send("last", 0);
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
    let remains = open_remains(&site.data_directory()).unwrap();
    assert_eq!(remains.ids().len(), (20 + 50 + 1) * 50);
    let offsets: Vec<i64> = remains.log.iter().flat_map(RecordBatch::iter).map(|record| record.offset).collect();
    assert!(offsets.is_sorted_by(|left, right| left < right));
    assert!(*offsets.last().unwrap() > 1_000_000, "a killed process leaves a gap: offsets are never used twice");
    let records = site.config.with_extension("records");
    remains.write_records(&records);
    assert_oracle_agrees(&site.config, &records, &redis);
}

// ---- damaged files ------------------------------------------------------------------------------

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

/// Where a journal, which is as long as it will ever be from its first day on, really ends.
fn written_bytes(file: &Path) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Whatever bit of whatever file is wrong: it is said and nothing is opened, or what was recovered
/// is exact.
#[test]
fn a_torn_or_damaged_file_is_noticed_and_never_a_wrong_count() {
    let site = Site::new("", "");
    let process = site.start();
    // Some of it in tables, the rest in the journal.
    let mut number = 0;
    let mut ingest = |count: usize| {
        let lines: Vec<String> = (0..count).map(|at| event(&format!("d{number}-{at}"), at)).collect();
        number += 1;
        assert_eq!(site.post(NDJSON, lines.join("\n").as_bytes()).unwrap().status, 200);
    };
    (0..5).for_each(|_| ingest(400));
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
    {
        let config = DataConfig { directory: site.data_directory(), ..DataConfig::default() };
        let database = Database::open(&config, 16 << 20, &TREES).unwrap();
        let open = database.get().unwrap();
        TREES.iter().for_each(|tree| open.tree(*tree).rotate_memtable_and_wait().unwrap());
    }
    let process = site.start();
    (0..5).for_each(|_| ingest(400));
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);

    let original = site.data_directory();
    let whole = open_remains(&original).unwrap();
    let log = whole.log;
    let total: usize = log.iter().map(RecordBatch::len).sum();
    assert_eq!(total, 4000);
    drop(whole.store);
    let files: Vec<PathBuf> = files_below(&original).into_iter().filter(|file| written_bytes(file) > 0).collect();
    // More of them, or others, on request.
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (rounds, mut random) = (number("DAMAGE_ROUNDS", 120), Random(number("DAMAGE_SEED", 7)));
    let (mut refused, mut recovered) = (0, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..rounds {
        let copy = tempfile::tempdir().unwrap();
        let directory = copy.path().join("data");
        let copied =
            std::process::Command::new("cp").args(["-r", "--sparse=always"]).arg(&original).arg(&directory).status();
        assert!(copied.unwrap().success());
        // The journal is most of it, and gets most of the faults.
        let is_journal = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "jnl");
        let journals: Vec<&PathBuf> = files.iter().filter(is_journal).collect();
        let file = if round % 2 == 0 && !journals.is_empty() {
            journals[random.below(journals.len() as u64) as usize]
        } else {
            &files[random.below(files.len() as u64) as usize]
        };
        let file = directory.join(file.strip_prefix(&original).unwrap());
        let written = written_bytes(&file);
        let at = random.below(written);
        let what = if round % 3 == 0 {
            std::fs::File::options().write(true).open(&file).unwrap().set_len(at).unwrap();
            format!("round {round}: {} cut at {at} of {written}", file.display())
        } else {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[at as usize] ^= 1 << random.below(8);
            std::fs::write(&file, bytes).unwrap();
            format!("round {round}: {} flipped at {at} of {written}", file.display())
        };
        if std::env::var_os("DAMAGE_SEED").is_some() {
            eprintln!("{what}");
        }
        let checked = std::panic::catch_unwind(|| {
            let remains = open_remains(&directory)?;
            let position = runtime.block_on(remains.store.positions(0)).map_err(|error| error.to_string())?;
            let position = position.values().next().map_or(0, |stored| stored.position);
            assert!(position <= total as i64, "{position} of {total}");
            runtime.block_on(remains.check(copy_of(&log), &site.config)).map_err(|error| error.to_string())
        });
        match checked.unwrap_or_else(|_| panic!("{what}: a panic, or a wrong count")) {
            Ok(()) => recovered += 1,
            Err(error) => {
                let is_said =
                    error.contains("damaged") || error.contains("not what was written") || error.contains("has format");
                assert!(is_said && error.contains(&*directory.to_string_lossy()), "{what}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && recovered > 0, "{refused} refused, {recovered} recovered");
}

// ---- a full disk --------------------------------------------------------------------------------

/// A file system of its own, small; `None` where that is not allowed.
struct SmallDisk {
    mount: TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let mount = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let status =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(mount.path()).output();
        status.is_ok_and(|output| output.status.success()).then_some(Self { mount })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.mount.path()).status();
    }
}

/// Fills the disk under a running process, to the reserve and beyond it: it stops acknowledging,
/// says so, and goes on once there is room.
fn fill_the_disk(reserve_bytes: u64) {
    let Some(disk) = SmallDisk::mount(160) else {
        eprintln!("NOT tested: a full disk, since this user may not mount a file system");
        return;
    };
    let data = disk.mount.path().join("data");
    let site = Site::at(tempfile::tempdir().unwrap(), Some(&data), &format!("reserve_bytes = {reserve_bytes}"), "");
    let process = site.start();
    let filler = disk.mount.path().join("filler");
    let mut random = Random(3);
    let (mut number, mut acknowledged, mut refusals) = (0, 0, Vec::new());
    let mut send = |refusals: &mut Vec<String>| {
        // Incompressible, so that the disk fills.
        let noise: String = (0..400).map(|_| format!("{:016x}", random.below(u64::MAX))).collect();
        let body: Vec<String> = (0..50)
            .map(|at| json!({"event": "e", "id": format!("f{number}-{at}"), "noise": noise}).to_string())
            .collect();
        let headers = format!("{NDJSON}idempotency-key: f{number}\r\n");
        let answer = site.post(&headers, body.join("\n").as_bytes()).unwrap();
        match answer.status {
            200 => {
                number += 1;
                acknowledged += 50;
                true
            }
            503 => {
                assert!(answer.head.contains("retry-after"), "{}", answer.head);
                refusals.push(answer.text());
                false
            }
            other => panic!("{other}: {}", answer.text()),
        }
    };
    (0..20).for_each(|_| assert!(send(&mut refusals)));
    for _ in 0..2 {
        // Somebody else takes all the room there is.
        let _ = std::fs::write(&filler, vec![1; 300 << 20]);
        let deadline = Instant::now() + PATIENCE;
        let before = refusals.len();
        while refusals.len() < before + 5 {
            assert!(Instant::now() < deadline, "it goes on on a full disk");
            send(&mut refusals);
        }
        std::thread::sleep(Duration::from_millis(500));
        std::fs::remove_file(&filler).unwrap();
        poll_until(PATIENCE, "it goes on with room on the disk", || send(&mut refusals).then_some(()));
        (0..20).for_each(|_| {
            poll_until(PATIENCE, "it goes on", || send(&mut refusals).then_some(()));
        });
    }
    assert!(
        refusals.iter().any(|text| text.contains("full") || text.contains("No space") || text.contains("failed")),
        "{refusals:?}"
    );
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
    let remains = open_remains(&data).unwrap();
    let ids = remains.ids();
    assert_eq!((ids.len(), ids.values().copied().max()), (acknowledged, Some(1)));
    remains.assert_exact(&site.config);
}

#[test]
fn a_full_disk_stops_ingestion_until_there_is_room() {
    fill_the_disk(32 << 20);
}

#[test]
fn a_disk_that_fills_beyond_the_reserve_loses_nothing() {
    fill_the_disk(1 << 20);
}

// ---- what a client can do -----------------------------------------------------------------------

#[test]
fn events_come_in_as_one_an_array_or_lines_and_packed() {
    let site = Site::new("", "[broker.local]\npartitions = 1\n");
    let process = site.start();
    let report = |accepted: usize, rejected: usize, answer: &Answer| {
        let json = answer.json();
        assert_eq!((&json["accepted"], &json["rejected"]), (&json!(accepted), &json!(rejected)), "{}", answer.text());
    };
    report(1, 0, &site.post(JSON, event("a", 1).as_bytes()).unwrap());
    report(1, 0, &site.post("", event("a2", 1).as_bytes()).unwrap());
    let pretty = serde_json::to_string_pretty(&json!({"event": "e1", "id": "a3"})).unwrap();
    report(1, 0, &site.post("", pretty.as_bytes()).unwrap());
    let array = format!("[{},\n {{}} , {}]", event("b", 1), event("c", 2));
    let answer = site.post(JSON, array.as_bytes()).unwrap();
    report(2, 1, &answer);
    assert_eq!(answer.json()["errors"][0]["index"], 1);
    assert_eq!(answer.json()["errors"][0]["reason"], "no_event");
    let lines = format!("{}\n\n not json \r\n{}\n", event("d", 1), event("e", 2));
    let answer = site.post(NDJSON, lines.as_bytes()).unwrap();
    report(2, 1, &answer);
    assert_eq!(
        answer.json()["errors"][0],
        json!({"index": 1, "reason": "invalid_json", "detail": "the event is not valid JSON: line 1, column 2: expected ident"})
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::bulk::compress(lines.as_bytes(), 1).unwrap();
    // Also with zeros behind the end, and with a frame in front that is to be skipped.
    let padded = [&gzip[..], &[0; 600]].concat();
    let skipping = [b"\x50\x2a\x4d\x18\x04\0\0\0\x10\0\0\0", &zstd[..]].concat();
    for (coding, body) in [("gzip", &gzip), ("gzip", &padded), ("zstd", &zstd), ("zstd", &skipping)] {
        report(2, 1, &site.post(&format!("{NDJSON}content-encoding: {coding}\r\n"), body).unwrap());
    }
    let (cut, garbage) = (&gzip[..gzip.len() - 1], [&gzip[..], b"garbage"].concat());
    for (headers, body, status, part) in [
        (JSON, &b""[..], 400, "empty"),
        (JSON, b"[{\"event\":\"a\"}", 400, "malformed"),
        (JSON, b"{}", 400, "event"),
        ("content-type: text/plain\r\n", b"{}", 415, "--json"),
        ("content-type: application/json\r\nsec-fetch-site: cross-site\r\n", b"{}", 403, "another site"),
        ("content-encoding: br\r\n", b"x", 415, "zstd"),
        ("content-encoding: gzip\r\n", b"x", 400, "unpacked"),
        ("content-encoding: gzip\r\n", cut, 400, "the gzip stream is cut short"),
        ("content-encoding: gzip\r\n", &garbage, 400, "no gzip"),
        (NDJSON, &gzip, 400, "Content-Encoding: gzip"),
        ("content-encoding: zstd\r\n", b"x", 400, "unpacked"),
        ("idempotency-key: a b\r\n", b"{}", 400, "Idempotency-Key"),
    ] {
        let answer = site.post(headers, body).unwrap();
        assert_eq!(answer.status, status, "{headers}: {}", answer.text());
        assert!(answer.head.contains("application/problem+json") && answer.text().contains(part), "{}", answer.text());
    }
    let key = format!("{NDJSON}idempotency-key: once\r\n");
    let first = site.post(&key, lines.as_bytes()).unwrap();
    let again = site.post(&key, lines.as_bytes()).unwrap();
    assert!(!first.head.contains("idempotent-replayed") && again.head.contains("idempotent-replayed: true"));
    assert_eq!(first.body, again.body);
    assert_eq!(site.post(&key, b"{\"event\":\"other\"}").unwrap().status, 422);
    poll_until(PATIENCE, "all are counted", || (site.events() == 17).then_some(()));
    let found = site.get("/api/v1/find?q=add/id&days=1&value=d");
    assert_eq!(found["results"][0]["data"]["count"], 6, "{found}");
    // One each of the array and the five lists of lines, one that came alone, one with a key; not
    // those of the repetition.
    assert_eq!(process.metric("traqq_ingest_rejected_total"), 8.0);
    assert_eq!(process.stop(), 0);
}

#[test]
fn the_tcp_protocol_answers_in_order() {
    let site = Site::new("", "");
    let process = site.start();
    let mut stream = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
    let day = now().div_euclid(86_400) * 86_400;
    let record = |id: &str| format!("{{\"cmd\":\"record\",\"event\":{}}}\n", event(id, 1));
    let script = [
        record("a"),
        "{\"cmd\":\"record\",\"event\":{}}\n".to_owned(),
        record("b"),
        "{\"cmd\":\"record\"}\n".to_owned(),
        "{\"cmd\":\n".to_owned(),
        "{\"cmd\":\"fly\"}\n".to_owned(),
    ];
    stream.write_all(script.concat().as_bytes()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines().map(|line| {
        let line = line.unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        (answer["success"].as_bool().unwrap(), answer["error"].as_str().unwrap_or_default().to_owned(), answer)
    });
    let expected = [
        (true, ""),
        (false, "an event has a name"),
        (true, ""),
        (false, "record needs an event"),
        (false, "no command"),
        (false, "there is no command \"fly\""),
    ];
    for (success, part) in expected {
        let (found, error, _) = answers.next().unwrap();
        assert!(found == success && error.contains(part), "{error}");
    }
    poll_until(PATIENCE, "both are counted", || (site.events() == 2).then_some(()));
    let find = json!({"cmd": "find", "min": day, "max": day + 86_400, "metric_type": "add", "key": "event", "add_key": null, "merge": true});
    for (command, pointer) in [
        (find, "/data/0/data/count"),
        (json!({"cmd": "query", "min": day, "max": day + 86_400}), "/data/0/start"),
        (json!({"cmd": "query_days", "days": 1}), "/data/0/metrics/0"),
    ] {
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let (success, error, answer) = answers.next().unwrap();
        assert!(success && answer.pointer(pointer).is_some(), "{command}: {error} {answer}");
    }
    assert_eq!(process.stop(), 0);
}

/// A browser can be told to send anything anywhere: what it cannot do is count.
#[test]
fn pages_of_other_sites_cannot_send_events_or_read_counts() {
    let site = Site::new("", "");
    let process = site.start();
    for headers in
        ["origin: http://evil.example\r\n", "sec-fetch-site: cross-site\r\n", "sec-fetch-site: same-site\r\n"]
    {
        let answer = site.post(&format!("{JSON}{headers}"), event("x", 1).as_bytes()).unwrap();
        assert_eq!(answer.status, 403, "{headers}: {}", answer.text());
        for (path, status) in [("/api/v1/query?days=1", 403), ("/", 200)] {
            assert_eq!(site.send("GET", path, headers, b"").unwrap().status, status, "{headers}: {path}");
        }
    }
    let own = format!("{JSON}origin: http://localhost\r\nsec-fetch-site: same-origin\r\n");
    assert_eq!(site.post(&own, event("own", 1).as_bytes()).unwrap().status, 200);
    // A name that leads here by way of a stranger's DNS.
    for (host, status) in [("evil.example", 403), ("127.0.0.1:1", 200), ("[::1]:1", 200), ("localhost:9877", 200)] {
        let mut stream = TcpStream::connect(("127.0.0.1", site.http)).unwrap();
        let head = format!("GET /api/v1/stats HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
    }
    // HTTP in front of commands: the connection is closed at the first line.
    let mut stream = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
    let attack =
        format!("POST / HTTP/1.1\r\nhost: localhost\r\n\r\n{{\"cmd\":\"record\",\"event\":{}}}\n", event("x", 1));
    stream.write_all(attack.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert_eq!(answer.lines().count(), 1, "{answer}");
    poll_until(PATIENCE, "the page's own event is counted", || (site.events() >= 1).then_some(()));
    site.wait_until_counted();
    assert_eq!(site.events(), 1);
    assert_eq!(process.stop(), 0);
}

/// Without the token a connection gets one short line, and no time.
#[test]
fn tcp_needs_the_token_first() {
    let site = Site::new("", "");
    let config = std::fs::read_to_string(&site.config).unwrap();
    let config = config.replace(
        "[server]\n",
        "[server]\nheader_timeout_ms = 300\ntoken = \"s3cret\"\nread_token = \"ask\"\nwrite_token = \"send\"\n",
    );
    std::fs::write(&site.config, config).unwrap();
    let process = site.start();
    let talk = |text: String| {
        let mut stream = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // The end is the server's: with a reset when there was more to read.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    let record = format!("{{\"cmd\":\"record\",\"event\":{}}}\n", event("t", 1));
    let refused = talk(record.clone() + &record);
    assert!(refused.lines().count() == 1 && refused.contains("server.token"), "{refused}");
    assert!(talk("{\"cmd\":\"auth\",\"token\":\"s3cre\"}\n".to_owned() + &record).contains("server.token"));
    assert!(talk("x".repeat(2000)).contains("1024 bytes"));
    assert_eq!(talk("{".to_owned()), "", "a line that never ends");
    // Blank lines are no sign of life.
    let mut stream = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
    poll_until(PATIENCE, "blank lines end", || stream.write_all(b"\n").is_err().then_some(()));
    let unfinished = format!("{{\"cmd\":\"auth\",\"token\":\"s3cret\"}}\n{record}{{\"cmd\":");
    assert_eq!(talk(unfinished), "{\"success\":true}\n{\"success\":true}\n");
    // One for asking, one for sending.
    let both = format!("{record}{{\"cmd\":\"find\",\"metric_type\":\"add\",\"key\":\"event\"}}\n{{\"cmd\":");
    for (token, expected) in [("ask", [true, false, true]), ("send", [true, true, false])] {
        let answers = talk(format!("{{\"cmd\":\"auth\",\"token\":\"{token}\"}}\n{both}"));
        let succeeded: Vec<bool> = answers.lines().map(|line| line.contains("\"success\":true")).collect();
        assert_eq!(succeeded, expected, "{token}: {answers}");
    }
    assert_eq!(process.stop(), 0);
}

/// What passes the door and cannot be counted all the same is kept, with the reason.
#[test]
fn dead_letters_can_be_looked_at() {
    let site = Site::new("", "[events]\nmax_metrics_per_event = 3\n");
    let process = site.start();
    assert_eq!(site.get("/api/v1/dead-letters"), json!([]));
    assert_eq!(site.post(JSON, event("a", 1).as_bytes()).unwrap().status, 200);
    assert_eq!(site.post(JSON, b"{\"event\":\"small\"}").unwrap().status, 200);
    let letters = poll_until(PATIENCE, "a dead letter", || {
        let letters = site.get("/api/v1/dead-letters?limit=5");
        (letters != json!([])).then_some(letters)
    });
    let letter = &letters[0];
    assert_eq!(letter["headers"]["traqq-reason"], "too_many_metrics");
    assert_eq!((&letter["headers"]["traqq-offset"], letters.as_array().unwrap().len()), (&json!("0"), 1));
    assert_eq!(letter["value"], event("a", 1));
    poll_until(PATIENCE, "the other is counted", || (site.events() == 1).then_some(()));
    assert_eq!(process.stop(), 0);
}

/// A sender that says nothing, lies about its length, or packs a bomb takes nothing from the
/// others.
#[test]
fn bad_clients_cost_little_and_others_are_served() {
    let site = Site::new("", "[worker]\nmemory_max_bytes = 134217728\n");
    let config = std::fs::read_to_string(&site.config).unwrap();
    let config = config.replace("[server]\n", "[server]\nheader_timeout_ms = 2000\nrequest_timeout_ms = 4000\n");
    std::fs::write(&site.config, config).unwrap();
    let process = site.start();
    let raise = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: raise.maximum, maximum: raise.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
    let connections = raise.maximum.map_or(10_000, |most| most.saturating_sub(500).min(10_000)) / 2;
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..connections {
        idle.push(TcpStream::connect(("127.0.0.1", site.http)).unwrap());
        idle.push(TcpStream::connect(("127.0.0.1", site.tcp)).unwrap());
    }
    // Bodies that never come whole.
    for _ in 0..20 {
        let mut liar = TcpStream::connect(("127.0.0.1", site.http)).unwrap();
        liar.write_all(b"POST /api/v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000000\r\n\r\n{").unwrap();
        idle.push(liar);
        let mut line = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
        let _ = line.write_all(&vec![b'x'; 100 << 10]);
        idle.push(line);
    }
    // Heads that are never complete.
    let head = format!("GET / HTTP/1.1\r\nx-long: {}", "x".repeat(60_000));
    for stranger in idle.iter_mut().take(connections as usize * 2).step_by(2) {
        let _ = stranger.write_all(head.as_bytes());
    }
    let begun = Instant::now();
    assert_eq!(site.post(JSON, event("ok", 1).as_bytes()).unwrap().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let bomb = zstd::bulk::compress(&vec![b' '; 200 << 20], 1).unwrap();
    let answer = site.post(&format!("{NDJSON}content-encoding: zstd\r\n"), &bomb).unwrap();
    assert!(matches!(answer.status, 413 | 429), "{}", answer.text());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&vec![b' '; 200 << 20]).unwrap();
    let answer = site.post(&format!("{NDJSON}content-encoding: gzip\r\n"), &gzip.finish().unwrap()).unwrap();
    assert!(matches!(answer.status, 413 | 429), "{}", answer.text());
    let answer = site.send("POST", "/api/v1/events", NDJSON, &vec![b'{'; 9 << 20]);
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 413));
    let mut endless = TcpStream::connect(("127.0.0.1", site.tcp)).unwrap();
    let mut written = 0;
    while let Ok(bytes) = endless.write(&[b'x'; 64 << 10]) {
        written += bytes;
        assert!(written < 64 << 20, "a line has an end");
    }
    let peak = process.peak_bytes();
    assert!(peak < 400 << 20, "{} MiB", peak >> 20);
    assert_eq!(site.post(JSON, event("ok2", 1).as_bytes()).unwrap().status, 200);
    poll_until(PATIENCE, "the honest events are counted", || (site.events() == 2).then_some(()));
    drop(idle);
    assert_eq!(process.stop(), 0);
}

/// What an answer promises while many send at once: as many events as were accepted, and none lost
/// on SIGTERM.
#[test]
fn sigterm_drains_and_a_second_process_is_refused() {
    let site = Arc::new(Site::new("", ""));
    let process = site.start();
    let second = traqq()
        .arg("--config")
        .arg(&site.config)
        .args(["--set", "server.http=127.0.0.1:0", "--set", "server.tcp=off", "run"])
        .output();
    let second = second.unwrap();
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && complaint.contains("in use by another traqq"), "{complaint}");
    let accepted = Arc::new(AtomicUsize::new(0));
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let (site, accepted) = (Arc::clone(&site), Arc::clone(&accepted));
            std::thread::spawn(move || {
                for number in 0.. {
                    match site.post(JSON, event(&format!("s{sender}-{number}"), number).as_bytes()) {
                        Ok(answer) if answer.status == 200 => _ = accepted.fetch_add(1, Ordering::Relaxed),
                        _ => return,
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(process.stop(), 0);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let process = site.start();
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
    let remains = open_remains(&site.data_directory()).unwrap();
    let in_log = remains.ids();
    assert!(in_log.values().all(|count| *count == 1));
    assert!(in_log.len() >= accepted.load(Ordering::Relaxed) && !in_log.is_empty());
    remains.assert_exact(&site.config);
}
