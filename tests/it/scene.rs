//! A topic of a real Kafka, a real Redis, and the configuration of a worker between them.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use crate::cli::write_config;
use crate::process::{PATIENCE, Process, counts};
use crate::servers::{Redis, kafka_brokers};

fn tool_at(brokers: &str, tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers"))
        .args(["kafka-tool", tool, "--bootstrap-server", brokers])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One of Kafka's own tools; what it printed.
pub fn kafka_tool(tool: &str, arguments: &[&str]) -> String {
    tool_at(&kafka_brokers(), tool, arguments)
}

/// A name that an earlier run against the same broker cannot have left behind.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

pub fn create_topic(name: &str, partitions: i32) {
    kafka_tool("topics", &["--create", "--topic", name, "--partitions", &partitions.to_string()]);
}

/// Topics of the same size, made together and without a process for each.
pub fn create_topics(brokers: &str, names: &[&str], partitions: i32) {
    let topics: Vec<NewTopic<'_>> =
        names.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1))).collect();
    let made = block_on(admin(brokers).create_topics(&topics, &AdminOptions::new()));
    made.unwrap().into_iter().for_each(|each| _ = each.unwrap());
}

pub fn delete_topics(brokers: &str, names: &[&str]) {
    let deleted = block_on(admin(brokers).delete_topics(names, &AdminOptions::new()));
    deleted.unwrap().into_iter().for_each(|each| _ = each.unwrap());
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Lines through kcat, a client that is not ours.
pub fn produce(topic: &str, lines: &[String]) {
    produce_at(&kafka_brokers(), topic, &[], lines);
}

fn produce_at(brokers: &str, topic: &str, more: &[&str], lines: &[String]) {
    let mut kcat = Command::new("kcat")
        .args(["-b", brokers, "-t", topic, "-P", "-z", "lz4"])
        .args(more)
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is installed by tests/run");
    let mut input = kcat.stdin.take().unwrap();
    input.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    drop(input);
    assert!(kcat.wait().unwrap().success());
}

pub fn events(count: usize) -> Vec<String> {
    numbered(0..count)
}

/// Some of a run of events; [`counts_of`] says what all of it comes to.
pub fn numbered(numbers: Range<usize>) -> Vec<String> {
    numbers.map(|n| format!(r#"{{"event":"e{}","ip":"10.0.0.{}"}}"#, n % 7, n % 250)).collect()
}

pub fn counts_of(events: usize) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    (0..events).for_each(|n| *counts.entry(format!("e{}", n % 7)).or_default() += 1);
    counts
}

/// Counts the events that did not arrive.
#[derive(Default)]
struct Deliveries {
    failed: AtomicUsize,
}

impl ClientContext for Deliveries {
    fn error(&self, _: KafkaError, _: &str) {
        // The brokers are disturbed, that is what it is about; it tries again.
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.failed.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
    }
}

pub struct Scene {
    pub brokers: String,
    /// Where the test itself produces: past a proxy that disturbs the worker, or librdkafka in the
    /// test meets what the worker is to be tested for.
    pub direct: String,
    pub topic: String,
    pub redis: Redis,
    pub directory: tempfile::TempDir,
    pub file: PathBuf,
}

impl Scene {
    /// `more` is appended to the configuration.
    pub fn new(name: &str, partitions: i32, more: &str) -> Self {
        Self::at(kafka_brokers(), name, partitions, more)
    }

    /// The same on a Kafka of its own.
    pub fn at(brokers: String, name: &str, partitions: i32, more: &str) -> Self {
        let (topic, redis, directory) = (unique(name), Redis::start(&[]), tempfile::tempdir().unwrap());
        tool_at(&brokers, "topics", &["--create", "--topic", &topic, "--partitions", &partitions.to_string()]);
        let text = format!(
            "[broker.kafka]\nbrokers = \"{brokers}\"\ntopics = [\"{topic}\"]\ngroup = \"{topic}\"\ndead_letter_topic = \"discard\"\n\
             [store.redis]\nurl = \"{}\"\nprefix = \"t\"\n[mapping]\nadd = [\"event\"]\nbitmap = [\"ip\"]\n\
             [server]\nhttp = \"127.0.0.1:0\"\ntcp = \"off\"\n[log]\nformat = \"text\"\n{more}",
            redis.url()
        );
        let file = write_config(directory.path(), &text);
        Self { direct: brokers.clone(), brokers, topic, redis, directory, file }
    }

    /// One of several workers, each with a log of its own.
    pub fn worker(&self, name: &str) -> Process {
        Process::launch(&self.file, crate::cli::traqq(), &format!("{name}.log"))
    }

    /// Events from number `from` on, some every few milliseconds, until it is over; answers how
    /// many there are then.
    pub fn keep_producing(&self, from: usize, is_over: &Arc<AtomicBool>) -> JoinHandle<usize> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.direct).set("enable.idempotence", "true");
        config.set("queue.buffering.max.messages", "10000000");
        let producer: ThreadedProducer<Deliveries> = config.create_with_context(Deliveries::default()).unwrap();
        let (topic, is_over) = (self.topic.clone(), Arc::clone(is_over));
        std::thread::spawn(move || {
            let mut to = from;
            // A test that failed has dropped its share.
            while !is_over.load(Ordering::Relaxed) && Arc::strong_count(&is_over) > 1 {
                for event in numbered(to..to + 20) {
                    producer.send(BaseRecord::<(), str>::to(&topic).payload(&event)).unwrap();
                }
                to += 20;
                std::thread::sleep(Duration::from_millis(5));
            }
            producer.flush(PATIENCE).unwrap();
            assert_eq!(producer.context().failed.load(Ordering::Relaxed), 0, "events did not arrive");
            to
        })
    }

    /// `more` are options of kcat.
    pub fn produce(&self, more: &[&str], lines: &[String]) {
        produce_at(&self.direct, &self.topic, more, lines);
    }

    /// All events are counted, each once, and by their values; to be asked for good when no worker
    /// runs any more.
    pub fn assert_exact(&self, events: usize) {
        assert_eq!(counts(&self.redis), counts_of(events));
    }

    /// The offsets that a partition has records at, by kcat.
    pub fn offsets(&self, partition: i32) -> Vec<i64> {
        let output = Command::new("kcat")
            .args(["-b", &self.brokers, "-t", &self.topic, "-C", "-e", "-q", "-f", "%o\n", "-o", "beginning"])
            .args(["-p", &partition.to_string()])
            .output()
            .expect("kcat is installed by tests/run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().unwrap()).collect()
    }

    pub fn tool(&self, tool: &str, arguments: &[&str]) -> String {
        tool_at(&self.brokers, tool, arguments)
    }

    /// What `traqq doctor` says, and whether it is content.
    pub fn doctor(&self) -> (bool, String) {
        let output = crate::cli::traqq().arg("--config").arg(&self.file).arg("doctor").output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The configuration with something replaced, in a file beside it.
    pub fn changed(&self, name: &str, from: &str, to: &str) -> PathBuf {
        let text = std::fs::read_to_string(&self.file).unwrap();
        assert!(text.contains(from), "{from:?} is not in: {text}");
        let file = self.directory.path().join(format!("{name}.toml"));
        std::fs::write(&file, text.replace(from, to)).unwrap();
        file
    }
}
