//! `[broker.nats]`.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ConnectOptions;
use serde::{Deserialize, Serialize};

use crate::Start;
use traqq_core::error::ConfigError;
use traqq_core::model::Secret;
use traqq_core::model::address::refuse_more_than_hosts;
use traqq_core::pem::private_key;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `nats://host:port`, or `tls://host:port`; one that answers is enough.
    pub servers: Vec<String>,
    /// The stream that is counted.
    pub stream: String,
    /// What this stream is counted under, as a consumer group of Kafka would be. One prefix in the
    /// store has one group.
    pub group: String,
    /// Where counting begins on an empty store: `earliest`, `latest`, `committed`, or a time in RFC
    /// 3339.
    pub start: String,
    /// Where records go that cannot be counted; a stream must take it. `discard` counts them and
    /// drops them.
    pub dead_letter_subject: String,
    /// Where events go that come in over HTTP or TCP; a last token of `*` is their key. By default
    /// what the stream takes.
    pub ingest_subject: Option<String>,
    /// The field whose value becomes that token, and so decides the partition.
    pub key_field: Option<String>,
    /// The subjects of one partition, with `{}` for its number, if a mapping of the server spreads
    /// them and not the stream itself.
    pub partition_subject: Option<String>,
    /// How many there are then; and how many `traqq doctor --create` makes.
    pub partitions: i32,
    /// The JetStream domain, behind a leaf node.
    pub domain: Option<String>,
    pub username: String,
    pub password: Secret,
    pub token: Secret,
    /// The seed of an NKey.
    pub nkey: Secret,
    /// A credentials file: JWT and seed.
    pub credentials_file: Option<PathBuf>,
    /// PEM file of the authority that signed the server's certificate; the system's authorities
    /// otherwise.
    pub tls_ca_file: Option<PathBuf>,
    /// PEM files of our own certificate and key, for servers that ask for one.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    pub create: Create,
}

/// How `traqq doctor --create` makes a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Create {
    pub replicas: usize,
    /// Messages are removed when they are older; 0 keeps them.
    pub max_age_s: u64,
    /// Or when there is more than this; 0 has no bound.
    pub max_bytes: u64,
}

impl Default for Create {
    fn default() -> Self {
        Self { replicas: 1, max_age_s: 7 * 86_400, max_bytes: 0 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            stream: String::new(),
            group: "traqq".to_owned(),
            start: "earliest".to_owned(),
            dead_letter_subject: "traqq-dead-letters".to_owned(),
            ingest_subject: None,
            key_field: None,
            partition_subject: None,
            partitions: 8,
            domain: None,
            username: String::new(),
            password: Secret::default(),
            token: Secret::default(),
            nkey: Secret::default(),
            credentials_file: None,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            create: Create::default(),
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), ConfigError> {
        let is_name = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if self.servers.is_empty() {
            return Err("broker.nats.servers is empty; write nats://host:port".into());
        }
        self.check_servers()?;
        for server in &self.servers {
            let address = server.parse::<async_nats::ServerAddr>();
            address.map_err(|error| {
                ConfigError::of(format!("broker.nats.servers: {server:?}: {error}; write nats://host:port"), error)
            })?;
        }
        if self.stream.is_empty() {
            return Err("broker.nats.stream is empty; name the stream to count".into());
        }
        for (key, name) in [("stream", &self.stream), ("group", &self.group)] {
            if !is_name(name) {
                return Err(format!("broker.nats.{key} = {name:?} must be letters, digits, - and _").into());
            }
        }
        if self.dead_letter_subject.is_empty() {
            return Err("broker.nats.dead_letter_subject is empty; name a subject that a stream takes, or write \"discard\" to drop what cannot be counted".into());
        }
        if !(1..=1024).contains(&self.partitions) {
            return Err(format!("broker.nats.partitions = {} must lie in 1 to 1024", self.partitions).into());
        }
        if self.partition_subject.as_ref().is_some_and(|subject| !subject.contains("{}")) {
            return Err(
                "broker.nats.partition_subject has no {} for the partition's number, as in \"events.{}.>\"".into()
            );
        }
        if self.dead_letter_subject.contains(['*', '>']) {
            return Err(format!(
                "broker.nats.dead_letter_subject = {:?} has a wildcard; name one subject that a stream takes",
                self.dead_letter_subject
            )
            .into());
        }
        if self.ingest_subject.as_ref() == Some(&self.dead_letter_subject) {
            return Err(super::doctor::feeds_itself(&self.dead_letter_subject, &self.stream).into());
        }
        let subjects = [Some(&self.dead_letter_subject), self.ingest_subject.as_ref()];
        if let Some(subject) = subjects.into_iter().flatten().find(|subject| subject.contains(char::is_whitespace)) {
            return Err(format!("broker.nats: a subject has no white space: {subject:?}").into());
        }
        let ways = [
            !self.username.is_empty(),
            !self.token.0.is_empty(),
            !self.nkey.0.is_empty(),
            self.credentials_file.is_some(),
        ];
        if ways.into_iter().filter(|is_set| *is_set).count() > 1 {
            return Err("broker.nats has more than one of username, token, nkey and credentials_file; keep one".into());
        }
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            return Err("broker.nats.tls_cert_file and tls_key_file belong together; set both or none".into());
        }
        self.start().map(|_| ())
    }

    /// Whether the addresses may be used and shown.
    pub fn check_servers(&self) -> Result<(), ConfigError> {
        let keys = "username and password, token, nkey or credentials_file";
        let mut servers = self.servers.iter();
        servers.try_for_each(|server| refuse_more_than_hosts("broker.nats.servers", server, keys))
    }

    pub fn start(&self) -> Result<Start, ConfigError> {
        Start::parse(&self.start, "broker.nats.start")
    }

    /// The subject of dead letters, unless they are discarded.
    pub fn dead_letters(&self) -> Option<String> {
        (self.dead_letter_subject != "discard").then(|| self.dead_letter_subject.clone())
    }

    /// The servers, for a message.
    pub fn place(&self) -> String {
        format!("nats {}", self.servers.join(","))
    }

    /// The bucket of leases and marks.
    pub(super) fn bucket(&self) -> String {
        format!("traqq-{}-{}", self.group, self.stream)
    }

    pub(super) async fn connect_options(&self) -> Result<ConnectOptions, ConfigError> {
        let mut options = ConnectOptions::new()
            .name("traqq")
            .ping_interval(Duration::from_secs(5))
            .connection_timeout(Duration::from_secs(5))
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(|attempt| Duration::from_millis(50 * (attempt as u64).min(20)));
        if !self.username.is_empty() {
            options = options.user_and_password(self.username.clone(), self.password.0.clone());
        }
        if !self.token.0.is_empty() {
            options = options.token(self.token.0.clone());
        }
        if !self.nkey.0.is_empty() {
            options = options.nkey(self.nkey.0.clone());
        }
        if let Some(file) = &self.credentials_file {
            let read = options.credentials_file(file).await;
            options = read.map_err(|error| {
                ConfigError::of(format!("broker.nats.credentials_file: {}: {error}", file.display()), error)
            })?;
        }
        if let Some(file) = &self.tls_ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert_file, &self.tls_key_file) {
            let file = key.display().to_string();
            let text = std::fs::read(key)
                .map_err(|error| ConfigError::of(format!("broker.nats.tls_key_file: {file}: {error}"), error))?;
            private_key("broker.nats.tls_key_file", &file, &text)?;
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if self.tls_ca_file.is_some() || self.tls_cert_file.is_some() {
            options = options.require_tls(true);
        }
        Ok(options)
    }
}

/// How long a question to the server may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
