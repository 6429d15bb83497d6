//! `[broker.kafka]`, and the properties of librdkafka that follow from it.

mod properties;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use serde::{Deserialize, Serialize};

use super::topics::Topics;
use crate::Start;
use traqq_core::error::ConfigError;
use traqq_core::model::address::refuse_more_than_hosts;
use traqq_core::panics::contained;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`, several joined by commas.
    pub brokers: String,
    /// The consumer group. One prefix in the store has one group.
    pub group: String,
    pub topics: Vec<String>,
    /// A regular expression of the `regex` crate that begins with `^`; topics that match are
    /// consumed too.
    pub topic_pattern: String,
    /// Where counting begins on an empty store: `earliest`, `latest`, `committed`, or a time in RFC
    /// 3339.
    pub start: String,
    /// Where records go that cannot be counted; it must exist. `discard` counts them and drops
    /// them.
    pub dead_letter_topic: String,
    /// Where events go that come in over HTTP or TCP; by default the one topic of `topics`.
    pub ingest_topic: Option<String>,
    /// The field whose value becomes the key of such a record, and so decides its partition.
    pub key_field: Option<String>,
    /// Passed to librdkafka as they are, but for those that load or run something.
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

const ASSIGNOR: &str = "cooperative-sticky";
const SESSION_MS: u64 = 10_000;
const REQUEST_MS: u64 = 10_000;
const JOIN_MS: u64 = 15_000;
const SETUP_MS: u64 = 10_000;
const REFRESH_INTERVAL_MS: u64 = 10_000;

/// Properties that decide what is counted and shown, and what to set instead.
const OWNED: [(&str, &str); 8] = [
    ("enable.auto.commit", "the worker commits what the store has"),
    ("auto.commit.enable", "the worker commits what the store has"),
    ("enable.auto.offset.store", "the worker commits what the store has"),
    ("auto.offset.reset", "reading begins at the store's position; for an empty store set broker.kafka.start"),
    ("bootstrap.servers", "set broker.kafka.brokers"),
    ("metadata.broker.list", "set broker.kafka.brokers"),
    ("group.id", "set broker.kafka.group"),
    ("statistics.interval.ms", "lag and readiness are told by these statistics, once a second"),
];

/// Properties of librdkafka that only a consumer understands; the producer of dead letters goes
/// without them.
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
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.brokers.trim().is_empty() {
            return Err("broker.kafka.brokers is empty; write host:port".into());
        }
        self.check_brokers()?;
        if self.group.is_empty() {
            return Err("broker.kafka.group is empty; name the consumer group".into());
        }
        if self.dead_letter_topic.is_empty() {
            return Err("broker.kafka.dead_letter_topic is empty; name a topic that exists, or write \"discard\" to drop what cannot be counted".into());
        }
        self.check_properties()?;
        Topics::new(self)?;
        self.start()?;
        self.client(1 << 20).map(|_| ())
    }

    /// Whether the addresses may be used and shown.
    pub fn check_brokers(&self) -> Result<(), ConfigError> {
        let keys = "sasl.username and sasl.password in broker.kafka.properties";
        let mut brokers = self.brokers.split(',');
        brokers.try_for_each(|broker| refuse_more_than_hosts("broker.kafka.brokers", broker.trim(), keys))
    }

    /// Whether every property may be passed on; before that no client is made of them.
    pub fn check_properties(&self) -> Result<(), ConfigError> {
        for name in self.properties.keys() {
            if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| owned == name) {
                return Err(format!("broker.kafka.properties.\"{name}\" belongs to traqq: {instead}").into());
            }
            properties::check(name)?;
        }
        Ok(())
    }

    /// Whether the value of a property may be shown.
    pub fn shows_property(name: &str) -> bool {
        properties::is_shown(name)
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

    pub fn start(&self) -> Result<Start, ConfigError> {
        Start::parse(&self.start, "broker.kafka.start")
    }

    /// How often topics, partitions and their leaders are looked at.
    pub fn refresh_interval(&self) -> Duration {
        let ms = self.number("topic.metadata.refresh.interval.ms").filter(|ms| *ms > 0);
        Duration::from_millis(ms.unwrap_or(REFRESH_INTERVAL_MS))
    }

    /// How long a connection may take to come about.
    pub fn setup_timeout(&self) -> Duration {
        Duration::from_millis(self.number("socket.connection.setup.timeout.ms").unwrap_or(SETUP_MS))
    }

    fn number(&self, property: &str) -> Option<u64> {
        self.properties.get(property)?.trim().parse().ok()
    }

    pub fn is_new_protocol(&self) -> bool {
        self.properties.get("group.protocol").map(String::as_str) == Some("consumer")
    }

    /// The assignors that this member offers to a group of the classic protocol.
    pub fn assignors(&self) -> Vec<&str> {
        let named = self.properties.get("partition.assignment.strategy").map_or(ASSIGNOR, String::as_str);
        named.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()
    }

    /// `buffer_bytes_max`: what librdkafka may fetch ahead.
    pub fn client(&self, buffer_bytes_max: usize) -> Result<ClientConfig, ConfigError> {
        self.check_properties()?;
        let mut client = new_client();
        client.set("client.id", "traqq");
        if !self.is_new_protocol() {
            client.set("partition.assignment.strategy", ASSIGNOR);
            // How long the partitions of a dead member wait. Also its own, when the broker was away
            // for longer: it comes back as a new member, and the group waits for the one that it
            // was.
            client.set("session.timeout.ms", SESSION_MS.to_string());
        }
        bound_waiting(self, &mut client);
        client
            .set("statistics.interval.ms", "1000")
            .set("allow.auto.create.topics", "false")
            // By default librdkafka leaves a partition alone for a whole second each time its queue
            // is full.
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
        // Read by librdkafka, and nothing more: what would load something has been refused.
        client.create_native_config().map_err(invalid)?;
        Ok(client)
    }

    /// How many members a group has; `None` where that cannot be known.
    pub fn members(&self, group: &str) -> Option<usize> {
        self.check_properties().and_then(|()| self.check_brokers()).ok()?;
        let client: BaseConsumer = self.producer_client().create().ok()?;
        let list = client.fetch_group_list(Some(group), Duration::from_millis(REQUEST_MS)).ok()?;
        // What other members call themselves may not be text.
        contained(|| list.groups().iter().find(|info| info.name() == group).map(|info| info.members().len())).ok()?
    }

    pub fn producer_client(&self) -> ClientConfig {
        let mut client = new_client();
        // Whether a record is too large is for the topic to say.
        client.set("client.id", "traqq").set("message.max.bytes", "1000000000");
        // A sender is told in time, and a dead letter that waits is seen to wait; by default that
        // takes five minutes.
        client.set("message.timeout.ms", "30000");
        for (name, value) in &self.properties {
            // Nobody gets here with others.
            if !CONSUMER_ONLY.contains(&name.as_str()) && properties::is_allowed(name) {
                client.set(name, value);
            }
        }
        client.set("bootstrap.servers", &self.brokers).set("enable.idempotence", "true").set("acks", "all");
        client
    }
}

fn new_client() -> ClientConfig {
    let mut client = ClientConfig::new();
    // Why a connection was closed is information to librdkafka.
    client.set_log_level(RDKafkaLogLevel::Info);
    client
}

/// A connection may end without a word, with a request under way. What waits for its answer, and
/// what is done next, must come to less than the 30 s within which counting goes on after a fault;
/// by default it is minutes.
fn bound_waiting(config: &Config, client: &mut ClientConfig) {
    // A fetch waits at the broker for so long, which is no silence.
    let request_ms = REQUEST_MS.max(config.number("fetch.wait.max.ms").unwrap_or(0) + 5_000);
    // To join a group takes until its slowest member has come: this bounds the request too. It is
    // the group's rebalance timeout as well, so that a worker must have drained what it gives back
    // before (it takes 10 s at most). librdkafka wants it no shorter than the session.
    let join_ms = JOIN_MS.max(config.number("session.timeout.ms").unwrap_or(SESSION_MS));
    client
        .set("socket.timeout.ms", request_ms.to_string())
        .set("max.poll.interval.ms", join_ms.to_string())
        .set("socket.connection.setup.timeout.ms", SETUP_MS.to_string())
        .set("api.version.request.timeout.ms", "5000")
        .set("reconnect.backoff.max.ms", "3000")
        // A member that has asked for its topics in vain asks again with the next look at them.
        .set("topic.metadata.refresh.interval.ms", REFRESH_INTERVAL_MS.to_string());
}

/// An error over a property, without its value, which may be a secret, and without a source that
/// has it.
pub(super) fn invalid(error: KafkaError) -> ConfigError {
    match error {
        KafkaError::ClientConfig(_, why, name, _) => format!("broker.kafka.properties: {why} ({name})").into(),
        error => ConfigError::of(format!("broker.kafka.properties: {error}"), error),
    }
}

/// Properties that librdkafka takes and ignores.
pub(super) fn ignored(config: &Config) -> impl Iterator<Item = &'static str> {
    let clash = ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"];
    clash.into_iter().filter(|name| config.is_new_protocol() && config.properties.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a dead connection may cost is ours by default, a person's if they say so, and never
    /// less than what they say besides.
    #[test]
    fn waiting_is_bounded_and_a_property_overrides_the_bound() {
        let client = |properties: &[(&str, &str)]| {
            let mut config = Config { topics: vec!["t".to_owned()], ..Config::default() };
            config.properties.extend(properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            config.check().unwrap();
            config.client(1 << 20).unwrap()
        };
        let ms = |client: &ClientConfig, name: &str| -> u64 { client.get(name).unwrap().parse().unwrap() };
        let ours = client(&[]);
        // The promise is 30 s; three seconds of grace are librdkafka's.
        assert!(ms(&ours, "socket.timeout.ms") + ms(&ours, "reconnect.backoff.max.ms") < 30_000);
        assert!(ms(&ours, "max.poll.interval.ms") + 3_000 + ms(&ours, "session.timeout.ms") < 30_000);
        assert!(ms(&ours, "topic.metadata.refresh.interval.ms") < 30_000);
        let slow = client(&[("fetch.wait.max.ms", "20000"), ("session.timeout.ms", "45000")]);
        assert!(ms(&slow, "socket.timeout.ms") > 21_000);
        assert_eq!(ms(&slow, "max.poll.interval.ms"), 45_000);
        assert_eq!(ms(&client(&[("socket.timeout.ms", "60000")]), "socket.timeout.ms"), 60_000);
    }

    /// A configuration ran a program of its author's choice, even when it was only checked.
    #[test]
    fn no_client_is_made_of_properties_that_load_or_run_something() {
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("made");
        for (name, value) in [
            ("plugin.library.paths", made.display().to_string()),
            ("ssl.engine.location", made.display().to_string()),
            ("ssl.providers", "default,evil".to_owned()),
            ("sasl.kerberos.kinit.cmd", format!("touch {}", made.display())),
            ("sasl.kerberos.principal", format!("$(touch {})", made.display())),
        ] {
            let mut config = Config { topics: vec!["t".to_owned()], ..Config::default() };
            config.properties.insert(name.to_owned(), value.clone());
            for error in [config.check().unwrap_err(), config.client(1 << 20).unwrap_err()] {
                let error = error.to_string();
                assert!(error.contains(name) && error.contains("it would ") && !error.contains(&value), "{error}");
            }
            assert_eq!(config.producer_client().get(name), None);
        }
        assert!(!made.exists());
    }

    #[test]
    fn an_error_over_a_property_does_not_show_its_value() {
        let mut config = Config { topics: vec!["t".to_owned()], ..Config::default() };
        config.properties.insert("sasl.pasword".to_owned(), "hush".to_owned());
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("sasl.pasword") && !error.contains("hush"), "{error}");
    }
}
