//! `[broker.kafka]`, and the properties of librdkafka that follow from it.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::Metadata;
use serde::{Deserialize, Serialize};

use crate::broker::Start;
use crate::model::address::refuse_more_than_hosts;
use crate::model::{Check, Finding};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`, several joined by commas.
    pub brokers: String,
    /// The consumer group. One prefix in the store has one group.
    pub group: String,
    pub topics: Vec<String>,
    /// A regular expression that begins with `^`; topics that match are consumed too.
    pub topic_pattern: String,
    /// Where counting begins on an empty store: `earliest`, `latest`, `committed`, or a time in RFC 3339.
    pub start: String,
    /// Where records go that cannot be counted; it must exist. `discard` counts them and drops them.
    pub dead_letter_topic: String,
    /// Where events go that come in over HTTP or TCP; by default the one topic of `topics`.
    pub ingest_topic: Option<String>,
    /// The field whose value becomes the key of such a record, and so decides its partition.
    pub key_field: Option<String>,
    /// Passed to librdkafka as they are.
    pub properties: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            group: "traqq".to_owned(),
            topics: Vec::new(),
            topic_pattern: String::new(),
            start: "earliest".to_owned(),
            dead_letter_topic: "traqq-dead-letters".to_owned(),
            ingest_topic: None,
            key_field: None,
            properties: BTreeMap::new(),
        }
    }
}

/// Properties that decide what is counted, and what to set instead.
const OWNED: [(&str, &str); 6] = [
    ("enable.auto.commit", "the worker commits what the store has"),
    ("enable.auto.offset.store", "the worker commits what the store has"),
    ("auto.offset.reset", "reading begins at the store's position; for an empty store set broker.kafka.start"),
    ("bootstrap.servers", "set broker.kafka.brokers"),
    ("metadata.broker.list", "set broker.kafka.brokers"),
    ("group.id", "set broker.kafka.group"),
];

/// Properties of librdkafka that only a consumer understands; the producer of dead letters goes without them.
const CONSUMER_ONLY: [&str; 15] = [
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "isolation.level",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.max.bytes",
    "fetch.wait.max.ms",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "queued.max.messages.kbytes",
];

impl Config {
    pub fn check(&self) -> Result<(), String> {
        if self.brokers.trim().is_empty() {
            return Err("broker.kafka.brokers is empty; write host:port".to_owned());
        }
        self.check_brokers()?;
        if self.group.is_empty() {
            return Err("broker.kafka.group is empty; name the consumer group".to_owned());
        }
        if self.topics.is_empty() && self.topic_pattern.is_empty() {
            return Err("broker.kafka.topics is empty; name the topics to count, or set topic_pattern".to_owned());
        }
        if self.topics.iter().any(|topic| Some(topic) == self.dead_letters().as_ref()) {
            return Err("broker.kafka.dead_letter_topic is one of broker.kafka.topics; name another".to_owned());
        }
        if self.dead_letter_topic.is_empty() {
            return Err(
                "broker.kafka.dead_letter_topic is empty; name a topic that exists, or write \"discard\" to drop what cannot be counted"
                    .to_owned(),
            );
        }
        for (name, instead) in OWNED {
            if self.properties.contains_key(name) {
                return Err(format!("broker.kafka.properties.\"{name}\" belongs to traqq: {instead}"));
            }
        }
        self.pattern()?;
        self.start()?;
        self.client(1 << 20).map(|_| ())
    }

    /// Whether the addresses may be used and shown.
    pub fn check_brokers(&self) -> Result<(), String> {
        let keys = "sasl.username and sasl.password in broker.kafka.properties";
        let mut brokers = self.brokers.split(',');
        brokers.try_for_each(|broker| refuse_more_than_hosts("broker.kafka.brokers", broker.trim(), keys))
    }

    /// The dead-letter topic, unless they are discarded.
    pub fn dead_letters(&self) -> Option<String> {
        (self.dead_letter_topic != "discard").then(|| self.dead_letter_topic.clone())
    }

    /// The topic of events that come in; `None` when several are counted and none is named.
    pub fn ingest_topic(&self) -> Option<String> {
        self.ingest_topic.clone().or_else(|| match &self.topics[..] {
            [topic] if self.topic_pattern.is_empty() => Some(topic.clone()),
            _ => None,
        })
    }

    pub fn start(&self) -> Result<Start, String> {
        Start::parse(&self.start, "broker.kafka.start")
    }

    pub fn pattern(&self) -> Result<Option<regex::Regex>, String> {
        if self.topic_pattern.is_empty() {
            return Ok(None);
        }
        if !self.topic_pattern.starts_with('^') {
            return Err(format!("broker.kafka.topic_pattern = {:?} must begin with ^", self.topic_pattern));
        }
        let pattern = regex::Regex::new(&self.topic_pattern);
        pattern.map(Some).map_err(|error| format!("broker.kafka.topic_pattern: {error}"))
    }

    /// `buffer_bytes_max`: what librdkafka may fetch ahead.
    pub fn client(&self, buffer_bytes_max: usize) -> Result<ClientConfig, String> {
        let mut client = ClientConfig::new();
        client.set("client.id", "traqq");
        if self.properties.get("group.protocol").map(String::as_str) != Some("consumer") {
            client.set("partition.assignment.strategy", "cooperative-sticky");
            // How long the partitions of a dead member wait. Also its own, when the broker was away for longer: it comes back as a new
            // member, and the group waits for the one that it was.
            client.set("session.timeout.ms", "10000");
        }
        client
            .set("statistics.interval.ms", "1000")
            .set("allow.auto.create.topics", "false")
            .set("topic.metadata.refresh.interval.ms", "30000")
            // After an outage; by default it is 10 s.
            .set("reconnect.backoff.max.ms", "3000")
            // By default librdkafka leaves a partition alone for a whole second each time its queue is full.
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.max.messages.kbytes", (buffer_bytes_max / 1024).clamp(1024, 2_097_151).to_string());
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        client
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error");
        client.create_native_config().map_err(invalid)?;
        Ok(client)
    }

    pub fn producer_client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        // Whether a record is too large is for the topic to say.
        client.set("client.id", "traqq").set("message.max.bytes", "1000000000");
        // A sender is told in time, and a dead letter that waits is seen to wait; by default that takes five minutes.
        client.set("message.timeout.ms", "30000");
        for (name, value) in &self.properties {
            if !CONSUMER_ONLY.contains(&name.as_str()) {
                client.set(name, value);
            }
        }
        client.set("bootstrap.servers", &self.brokers).set("enable.idempotence", "true").set("acks", "all");
        client
    }
}

/// An error over a property, without its value: it may be a secret.
pub(super) fn invalid(error: KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, why, name, _) => format!("broker.kafka.properties: {why} ({name})"),
        error => format!("broker.kafka.properties: {error}"),
    }
}

/// Everything a worker relies on. The connection is the first.
pub fn checks(config: &Config) -> Vec<Check> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let brokers = &config.brokers;
    let mut checks: Vec<Check> = ignored(config)
        .map(|name| Check {
            name: "properties",
            finding: Finding::Warning(format!(
                "broker.kafka.properties.\"{name}\" has no meaning with group.protocol = consumer; remove it"
            )),
        })
        .collect();
    let client: Result<BaseConsumer, _> = config.producer_client().create();
    let metadata = match client.map(|client| confirmed(&client, config, TIMEOUT)) {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(error)) => {
            let text = format!(
                "kafka {brokers}: cannot be reached: {error}; is it running, and does it advertise this address?"
            );
            checks.push(Check { name: "connection", finding: Finding::Unavailable(text) });
            return checks;
        }
        Err(error) => {
            checks.push(Check { name: "connection", finding: Finding::Bad(invalid(error)) });
            return checks;
        }
    };
    checks.push(Check { name: "connection", finding: Finding::Good(brokers.clone()) });
    let exists = |name: &str| has(&metadata, name);
    let finding = match config.topics.iter().find(|topic| !exists(topic)) {
        None => Finding::Good(config.topics.join(", ")),
        Some(topic) => Finding::Bad(format!(
            "kafka {brokers}: there is no topic {topic:?}; create it, or correct broker.kafka.topics"
        )),
    };
    checks.push(Check { name: "topics", finding });
    if let Some(topic) = config.dead_letters() {
        let finding = if exists(&topic) {
            Finding::Good(topic)
        } else {
            Finding::Bad(format!(
                "kafka {brokers}: there is no dead-letter topic {topic:?}; create it with `kafka-topics.sh --create --topic {topic} \
                 --bootstrap-server {brokers}`, or set broker.kafka.dead_letter_topic"
            ))
        };
        checks.push(Check { name: "dead letters", finding });
    }
    checks
}

/// What the brokers know. One that has just started may not have heard of every topic: what is missing is asked for again.
fn confirmed(client: &BaseConsumer, config: &Config, timeout: Duration) -> KafkaResult<Metadata> {
    const LOOKS: usize = 4;
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    let mut metadata = client.fetch_metadata(None, timeout)?;
    for _ in 1..LOOKS {
        if config.topics.iter().chain(&config.dead_letters()).all(|topic| has(&metadata, topic)) {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
        metadata = client.fetch_metadata(None, timeout)?;
    }
    Ok(metadata)
}

fn has(metadata: &Metadata, name: &str) -> bool {
    metadata.topics().iter().any(|topic| topic.name() == name)
}

/// Properties that librdkafka takes and ignores.
fn ignored(config: &Config) -> impl Iterator<Item = &'static str> {
    let is_new_protocol = config.properties.get("group.protocol").map(String::as_str) == Some("consumer");
    let clash = ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"];
    clash.into_iter().filter(move |name| is_new_protocol && config.properties.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_over_a_property_does_not_show_its_value() {
        let mut config = Config { topics: vec!["t".to_owned()], ..Config::default() };
        config.properties.insert("sasl.pasword".to_owned(), "hush".to_owned());
        let error = config.check().unwrap_err();
        assert!(error.contains("sasl.pasword") && !error.contains("hush"), "{error}");
    }
}
