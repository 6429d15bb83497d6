//! The configuration: gathers each component's own section. Defaults < file < environment < flags; what is unknown is an error.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::broker::{kafka, local, nats};
use crate::database;
use crate::model::{BucketRules, EventRules, Mapping, Rules, ValidRules};
use crate::store::redis;
use crate::{server, telemetry, worker};

/// A configuration file.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub broker: Broker,
    pub store: Store,
    pub data: database::Config,
    pub mapping: Mapping,
    pub events: EventRules,
    pub buckets: BucketRules,
    pub worker: worker::Config,
    pub server: server::Config,
    pub log: telemetry::Config,
}

#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Broker {
    pub kind: BrokerKind,
    pub local: local::Config,
    pub kafka: kafka::Config,
    pub nats: nats::Config,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerKind {
    /// Kafka or NATS if anything is said about it, else the local log.
    #[default]
    Auto,
    Local,
    Kafka,
    Nats,
}

#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub kind: StoreKind,
    pub redis: redis::Config,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Redis unless the log is local, or if anything is said about it, else the embedded store.
    #[default]
    Auto,
    Embedded,
    Redis,
}

/// What the name of a secret among a client's properties has in it.
const HIDDEN: [&str; 7] = ["pass", "secret", ".pem", "private.key", "oauthbearer.config", "jaas", "kinit.cmd"];
/// What begins the name of a client's property that is hidden because it may be a secret, if misspelled, and those that are none.
const HIDDEN_PROPERTIES: [&str; 2] = ["broker.kafka.properties.sasl.", "broker.kafka.properties.ssl."];
const SHOWN_PROPERTIES: [&str; 9] = [
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.oauthbearer.method",
    "sasl.kerberos.service.name",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.endpoint.identification.algorithm",
];
/// Lists of hosts and addresses without a scheme.
const ADDRESSES: [&str; 4] = ["broker.kafka.brokers", "broker.nats.servers", "server.http", "server.tcp"];
/// Set by the file that `NAME_FILE` points at, or by `NAME` itself, and never shown.
const SECRETS: [&str; 9] = [
    "store.redis.url",
    "store.redis.password",
    "store.redis.sentinel_password",
    "server.token",
    "server.read_token",
    "server.write_token",
    "broker.nats.password",
    "broker.nats.token",
    "broker.nats.nkey",
];
const ENVIRONMENT: &str = "TRAQQ_";
const DEFAULT_FILE: &str = "traqq.toml";
/// Types of values, as errors name them.
const INTEGERS: [&str; 5] = ["usize", "u64", "i64", "u32", "i32"];
/// What is counted when there is no file and nobody said anything.
const STARTER: &str = include_str!("../config/starter.toml");

/// A configuration with where each value came from.
pub struct Loaded {
    pub config: Config,
    figment: Figment,
}

/// Reads the configuration. `overrides` are `section.key = value` from flags.
pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Loaded, String> {
    let mut figment = Figment::new();
    let file = match file {
        Some(file) if !file.is_file() => return Err(format!("{}: there is no such file", file.display())),
        Some(file) => Some(file.to_owned()),
        None => Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.is_file()),
    };
    let has_file = file.is_some();
    if let Some(file) = file {
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(environment()).merge(secrets()?);
    for (key, value) in overrides {
        let text = || figment::value::Value::from(value.clone());
        let value = if is_secret(key) { text() } else { value.parse().unwrap_or_else(|_| text()) };
        figment = figment.merge(Serialized::default(key, value));
    }
    let defaults = Figment::from(Serialized::defaults(Config::default()));
    let mut loaded = Loaded::of(defaults.clone().merge(figment.clone()))?;
    let is_bare = !has_file && loaded.config.mapping.patterns() == 0;
    if is_bare && loaded.config.broker.kind() == BrokerKind::Local {
        loaded = Loaded::of(defaults.merge(Toml::string(STARTER)).merge(figment))?;
    }
    Ok(loaded)
}

/// The text of a file and nothing else: no environment, no flags, no starter.
pub fn parse(text: &str) -> Result<Loaded, String> {
    Loaded::of(Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(text)))
}

/// `TRAQQ_SECTION__KEY`, secrets apart.
fn environment() -> Env {
    let is_secret = |key: &str| {
        let key = key.to_ascii_lowercase();
        SECRETS.iter().any(|secret| {
            let name = secret.replace('.', "__");
            key == name || key == format!("{name}_file")
        })
    };
    Env::prefixed(ENVIRONMENT)
        .filter(move |key| !is_secret(key.as_str()))
        .filter(|key| key.as_str().contains("__"))
        .split("__")
}

/// Secrets are strings whatever they look like, so they do not go through the environment's parser of values.
fn secrets() -> Result<Figment, String> {
    let mut figment = Figment::new();
    for secret in SECRETS {
        let name = format!("{ENVIRONMENT}{}", secret.replace('.', "__").to_ascii_uppercase());
        let from_file = format!("{name}_FILE");
        let value = match (std::env::var(&name), std::env::var(&from_file)) {
            (Ok(_), Ok(_)) => return Err(format!("{name} and {from_file} are both set; keep one")),
            (Ok(value), Err(_)) => value,
            (Err(_), Ok(file)) => std::fs::read_to_string(&file)
                .map_err(|error| format!("{from_file} = {file}: {error}"))?
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
            (Err(_), Err(_)) => continue,
        };
        figment = figment.merge(Serialized::default(secret, value));
    }
    Ok(figment)
}

/// One line: where, what, and what would be right.
fn explain(error: &figment::Error) -> String {
    let key = error.path.join(".");
    let place = match error.metadata.as_ref().map(|metadata| (metadata.source.as_ref(), metadata.name.as_ref())) {
        None => String::new(),
        // The defaults are right, so that what the program itself has put in was a flag.
        Some((Some(figment::Source::Code(_)), _)) => "--set: ".to_owned(),
        Some((Some(source), _)) => format!("{source}: "),
        Some((None, name)) if name.contains("environment") => {
            format!("{ENVIRONMENT}{}: ", key.replace('.', "__").to_ascii_uppercase())
        }
        Some((None, name)) => format!("{name}: "),
    };
    let reason = match &error.kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected)
            if INTEGERS.contains(&expected.as_str()) =>
        {
            match found {
                figment::error::Actual::Str(_) => "it must be a whole number, digits only".to_owned(),
                found => format!("found {found}, it must be a whole number"),
            }
        }
        // What was found may be a secret in the wrong place.
        Kind::InvalidType(_, expected) if expected.starts_with("struct ") || expected == "a map" => {
            "it is a section; set the keys in it".to_owned()
        }
        Kind::InvalidType(_, expected) if expected == "a string" => "it must be a string, in quotes".to_owned(),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => format!("it must be {expected}"),
        Kind::UnknownField(found, expected) => format!("there is no {found:?}; there are {}", expected.join(", ")),
        Kind::UnknownVariant(_, expected) => format!("it must be one of {}", expected.join(", ")),
        // A file that is malformed is shown with its line, on which a secret may stand.
        reason => {
            let text = reason.to_string();
            let is_excerpt = |line: &&str| {
                line.split_once('|').is_some_and(|(number, _)| number.trim().bytes().all(|byte| byte.is_ascii_digit()))
            };
            let lines: Vec<&str> = text.lines().filter(|line| !is_excerpt(line)).collect();
            lines.join(": ")
        }
    };
    if key.is_empty() { format!("{place}{reason}") } else { format!("{place}{key}: {reason}") }
}

fn is_secret(key: &str) -> bool {
    let may_be_one = HIDDEN_PROPERTIES.iter().any(|start| key.starts_with(start));
    SECRETS.contains(&key)
        || HIDDEN.iter().any(|part| key.contains(part))
        || may_be_one && !SHOWN_PROPERTIES.iter().any(|name| key.ends_with(name))
}

impl Broker {
    /// The kind that is meant.
    pub fn kind(&self) -> BrokerKind {
        match self.kind {
            BrokerKind::Auto if self.kafka != kafka::Config::default() => BrokerKind::Kafka,
            BrokerKind::Auto if self.nats != nats::Config::default() => BrokerKind::Nats,
            BrokerKind::Auto => BrokerKind::Local,
            kind => kind,
        }
    }

    /// The kind that is meant is complete, and nothing is said about another.
    fn check(&self) -> Result<(), String> {
        let kind = self.kind();
        let others = [
            ("kafka", BrokerKind::Kafka, self.kafka != kafka::Config::default()),
            ("nats", BrokerKind::Nats, self.nats != nats::Config::default()),
        ];
        for (name, other, is_set) in others {
            if is_set && other != kind {
                let kind = serde_json::to_value(kind).expect("a name is JSON");
                return Err(format!("broker.kind is {kind}, but [broker.{name}] is set; remove one of them"));
            }
        }
        match kind {
            BrokerKind::Kafka => self.kafka.check(),
            BrokerKind::Nats => self.nats.check(),
            _ => self.local.check(),
        }
    }
}

impl Loaded {
    fn of(figment: Figment) -> Result<Self, String> {
        let config: Config = figment.extract().map_err(|error| explain(&error))?;
        Ok(Self { config, figment })
    }

    /// Where a value came from: the file, the environment, a flag, or nowhere.
    pub fn origin(&self, key: &str) -> String {
        let Some(metadata) = self.figment.find_metadata(key) else { return "default".to_owned() };
        match &metadata.source {
            Some(figment::Source::File(file)) => file.display().to_string(),
            _ if metadata.name.contains("environment") => "environment".to_owned(),
            _ if metadata.name.contains("TOML") => "starter".to_owned(),
            _ if key_is_default(&self.config, key) => "default".to_owned(),
            _ if SECRETS.contains(&key) => "environment".to_owned(),
            _ => "flag".to_owned(),
        }
    }

    /// Every value with its key and origin, secrets hidden.
    pub fn values(&self) -> Vec<(String, String, String)> {
        let value = serde_json::to_value(&self.config).expect("the configuration is plain data");
        let mut leaves = Vec::new();
        flatten("", &value, &mut leaves);
        leaves
            .into_iter()
            .map(|(key, value)| {
                let is_set = !matches!(value.as_str(), "\"\"" | "null");
                let origin = self.origin(&key);
                let shown = if is_secret(&key) && is_set || has_more(&key, &value) { hide(&key, &value) } else { value };
                (key, shown, origin)
            })
            .collect()
    }
}

/// Whether it holds an address with user information or parameters, which may stand where none belong.
fn has_more(key: &str, value: &str) -> bool {
    let address = value.split_once("://").map(|(_, rest)| rest).or(ADDRESSES.contains(&key).then_some(value));
    address.is_some_and(|address| address.contains(['@', '?', '#']))
}

/// A URL is shown without its user information and its query.
fn hide(key: &str, value: &str) -> String {
    let value = value.trim_matches('"');
    let Some((scheme, rest)) = value.split_once("://").filter(|_| key.ends_with("url")) else {
        return "\"********\"".to_owned();
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    // A password with a question mark looks like a query; a path has no password in front of it.
    if scheme != "unix" && query.is_some_and(|query| query.contains('@')) {
        return format!("\"{scheme}://********\"");
    }
    let place = place.rsplit_once('@').map_or_else(|| place.to_owned(), |(_, place)| format!("********@{place}"));
    let query = if query.is_some() { "?********" } else { "" };
    format!("\"{scheme}://{place}{query}\"")
}

fn key_is_default(config: &Config, key: &str) -> bool {
    let pointer = format!("/{}", key.replace('.', "/"));
    let of = |config: &Config| serde_json::to_value(config).expect("plain data").pointer(&pointer).cloned();
    of(config) == of(&Config::default())
}

fn flatten(prefix: &str, value: &serde_json::Value, leaves: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, member, leaves);
            }
        }
        _ => leaves.push((prefix.to_owned(), value.to_string())),
    }
}

impl Config {
    pub fn rules(&self) -> Rules {
        Rules { mapping: self.mapping.clone(), events: self.events.clone(), buckets: self.buckets.clone() }
    }

    /// The kind of store that is meant.
    pub fn store_kind(&self) -> StoreKind {
        let says_redis = self.store.redis != redis::Config::default();
        match self.store.kind {
            StoreKind::Auto if says_redis || self.broker.kind() != BrokerKind::Local => StoreKind::Redis,
            StoreKind::Auto => StoreKind::Embedded,
            kind => kind,
        }
    }

    /// What a worker needs, checked as far as that is possible without connecting.
    pub fn check_worker(&self) -> Result<ValidRules, String> {
        let rules = self.rules().validate().map_err(|error| error.to_string())?;
        self.broker.check()?;
        self.data.check()?;
        self.worker.check()?;
        self.check_store()?;
        self.server.check()?;
        Ok(rules)
    }

    /// Where counts live, for a person.
    pub fn store_place(&self) -> String {
        match self.store_kind() {
            StoreKind::Redis => format!("prefix {:?}", self.store.redis.prefix),
            _ => self.data.directory.display().to_string(),
        }
    }

    fn check_store(&self) -> Result<(), String> {
        match self.store_kind() {
            StoreKind::Redis => redis::RedisStore::new(&self.store.redis).map(|_| ()),
            _ if self.store.redis != redis::Config::default() => {
                Err("store.kind is \"embedded\", but [store.redis] is set; remove one of them".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What a sidecar needs.
    pub fn check_server(&self) -> Result<(), String> {
        if self.store_kind() == StoreKind::Embedded {
            return Err("the embedded store belongs to one process, which answers queries itself: ask `traqq run`, or set store.redis.url for a \
                        sidecar of Redis"
                .to_owned());
        }
        self.check_store()?;
        self.server.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("traqq.toml");
        std::fs::write(&file, text).unwrap();
        load(Some(&file), &[])
    }

    #[test]
    fn a_typing_error_is_named_with_its_place() {
        let error = load_text("[worker]\nbatch_event = 5\n").err().unwrap();
        assert!(error.contains("traqq.toml") && error.contains("batch_event"), "{error}");
        let error = load_text("[buckets.retention]\nd = \"soon\"\n").err().unwrap();
        assert!(error.contains("buckets.retention.d") && error.contains("400d"), "{error}");
        let error = load_text("[mapping]\nadd = [\"a~\"]\n").err().unwrap();
        assert!(error.contains("mapping.add") && error.contains("empty field name"), "{error}");
    }

    #[test]
    fn secrets_in_wrong_places_do_not_show() {
        for key in ["store.redis", "store.redis.lanes", "broker.kafka.properties", "broker.nats.servers", "server.http"]
        {
            let value = "redis://:hush@h:6379".to_owned();
            let shown = match load(None, &[(key.to_owned(), value)]) {
                Ok(loaded) => format!("{:?}", loaded.values()),
                Err(error) => error,
            };
            assert!(!shown.contains("hush"), "{shown}");
        }
        let loaded = load_text("[broker.nats]\nservers = [\"nats://app:hush@nats:4222\"]\n").unwrap();
        assert!(!loaded.values().iter().any(|(_, value, _)| value.contains("hush")));
        let error = load(None, &[("store.redis".to_owned(), "redis://h".to_owned())]).err().unwrap();
        assert_eq!(error, "--set: store.redis: it is a section; set the keys in it");
    }

    #[test]
    fn a_wrong_flag_is_named() {
        for (key, value, said) in [
            ("worker.batch_events", "1_000", "it must be a whole number, digits only"),
            ("worker.batch_events", "-1", "found signed int `-1`, it must be a whole number"),
            ("worker.batch_evnts", "5", "there is no \"batch_evnts\"; there are batch_events, batch_bytes, "),
            ("worker.on_log_gap", "jump", "it must be one of stop, skip"),
        ] {
            let error = load(None, &[(key.to_owned(), value.to_owned())]).err().unwrap();
            assert!(error.starts_with(&format!("--set: {key}: {said}")), "{error}");
        }
    }

    #[test]
    fn keys_of_clients_do_not_show() {
        let text = "[broker.kafka]\ntopics = [\"t\"]\n[broker.kafka.properties]\n\"ssl.key.pem\" = \"hush\"\n\"sasl.oauthbearer.config\" = \"hush\"\n";
        let loaded = load_text(text).unwrap();
        assert!(!loaded.values().iter().any(|(_, value, _)| value.contains("hush")));
    }

    #[test]
    fn secrets_do_not_show_whatever_they_look_like() {
        let properties = "[broker.kafka]\ntopics = [\"t\"]\n[broker.kafka.properties]\n";
        let key = "sasl.oauthbearer.assertion.private.key.passphrase";
        let loaded = load_text(&format!("{properties}\"{key}\" = \"hush\"\n")).unwrap();
        assert!(!loaded.values().iter().any(|(_, value, _)| value.contains("hush")));
        for (url, shown) in [
            ("unix:///run/redis.sock?db=1&pass=hush", "unix:///run/redis.sock?********"),
            ("unix:///run/redis.sock?pass=p@hush", "unix:///run/redis.sock?********"),
            ("redis://u:hush@h:1/2?protocol=3", "redis://********@h:1/2?********"),
            ("redis://u:hu?sh@h:1/2", "redis://********"),
            ("redis://h:1/2", "redis://h:1/2"),
        ] {
            let loaded = load_text(&format!("[store.redis]\nurl = \"{url}\"\n")).unwrap();
            let (_, value, _) = loaded.values().into_iter().find(|(key, ..)| key == "store.redis.url").unwrap();
            assert_eq!(value, format!("\"{shown}\""));
        }
        // Numbers, where quotes were forgotten.
        for text in [
            "[store.redis]\npassword = 8675309\n",
            "[server]\ntoken = 8675309\n",
            &format!("{properties}\"sasl.password\" = 8675309\n"),
            &format!("{properties}\"of.a.plugin\" = 8675309\n"),
        ] {
            let error = load_text(text).err().unwrap();
            assert!(error.contains("it must be a string, in quotes") && !error.contains("8675309"), "{error}");
        }
        let error = load_text("[store.redis]\npassword = hush\n").err().unwrap();
        assert!(error.contains("line 2, column 12: invalid string") && !error.contains("hush"), "{error}");
        let loaded = load(None, &[("store.redis.password".to_owned(), "8675309".to_owned())]).unwrap();
        assert_eq!(loaded.config.store.redis.password.0, "8675309");
    }

    #[test]
    fn flags_come_after_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("traqq.toml");
        std::fs::write(&file, "[worker]\nbatch_events = 5\n[store.redis]\nurl = \"redis://u:secret@h:1/2\"\n").unwrap();
        let loaded = load(Some(&file), &[("worker.batch_events".to_owned(), "7".to_owned())]).unwrap();
        assert_eq!(loaded.config.worker.batch_events, 7);
        let values = loaded.values();
        let url = values.iter().find(|(key, ..)| key == "store.redis.url").unwrap();
        assert_eq!(url.1, "\"redis://********@h:1/2\"");
        assert!(url.2.contains("traqq.toml"), "{}", url.2);
        let age = values.iter().find(|(key, ..)| key == "worker.batch_age_ms").unwrap();
        assert_eq!(age.2, "default");
    }
}
