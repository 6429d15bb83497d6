//! The connection, and what the stream looks like.
//!
//! async-nats ends a client for good when its task panics, which a message on the wire can bring
//! about (a header value with a lone CR does). Its tasks own a sender whose end tells us, whatever
//! ended them; [`Link`] then makes another client.

use std::error::Error;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{
    GetStreamByNameError, GetStreamByNameErrorKind, GetStreamError, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{self, Stream};
use async_nats::jetstream::{self, Context, kv};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::watch;

use super::config::Config;
use super::trouble::Complaints;
use crate::throttle::Throttle;
use crate::{BrokerError, BrokerResult};
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::Finding;

/// Publishes that wait for the server's answer at the same time.
const PUBLISHES_MAX: usize = 16_384;
/// How often a server must say that something is missing, and the pause between.
const MISSING_ASKS: usize = 4;
const MISSING_PAUSE: Duration = Duration::from_millis(500);
/// Between attempts to make a client in place of one that ended.
const REPLACE_PAUSE: Duration = Duration::from_millis(500);

pub struct Link {
    current: Arc<RwLock<Connection>>,
    pub config: Config,
    pub complaints: Arc<Complaints>,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    jetstream: Context,
    /// Closed when the client's tasks have ended.
    alive: watch::Receiver<()>,
    /// How many clients there were before.
    number: u64,
}

impl Link {
    /// Reaches a server in the background; what is asked before waits for it. Called on a runtime,
    /// where a task replaces the client should it end.
    pub async fn new(config: &Config) -> Result<Self, ConfigError> {
        Self::start(config, Arc::default()).await
    }

    /// Another client of the same, for what may end it: this one goes on.
    pub async fn another(&self) -> Result<Self, ConfigError> {
        Self::start(&self.config, Arc::clone(&self.complaints)).await
    }

    async fn start(config: &Config, complaints: Arc<Complaints>) -> Result<Self, ConfigError> {
        let first = begin(config, &complaints, 0).await?;
        let link = Self::of(first, config, complaints);
        tokio::spawn(replace(Arc::downgrade(&link.current), config.clone(), Arc::clone(&link.complaints)));
        Ok(link)
    }

    /// Reaches a server now, or says why not.
    pub async fn reach(config: &Config) -> Result<Self, Finding> {
        let options = config.connect_options().await?;
        let complaints = Arc::new(Complaints::default());
        let connected = connect(config, options, &complaints, 0).await;
        connected.map(|connection| Self::of(connection, config, complaints)).map_err(|error| {
            if error.kind() == ConnectErrorKind::TimedOut {
                return Finding::Unavailable(format!(
                    "{}: nobody answers as nats-server does: is the host up, and is this its port for clients (4222), not that of HTTP (8222)?",
                    config.place()
                ));
            }
            // The innermost reason is the one that says something.
            let mut reason: &dyn Error = &error;
            while let Some(source) = reason.source() {
                reason = source;
            }
            Finding::Unavailable(format!(
                "{}: cannot be reached: {reason}; is it running, and are credentials and certificates right?",
                config.place()
            ))
        })
    }

    fn of(connection: Connection, config: &Config, complaints: Arc<Complaints>) -> Self {
        Self { current: Arc::new(RwLock::new(connection)), config: config.clone(), complaints }
    }

    fn current(&self) -> Connection {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client of now. What was made with an earlier one fails when that has ended.
    pub fn client(&self) -> Client {
        self.current().client
    }

    pub fn jetstream(&self) -> Context {
        self.current().jetstream
    }

    /// How many clients there were before this one.
    pub fn number(&self) -> u64 {
        self.current().number
    }

    pub fn is_connected(&self) -> bool {
        let current = self.current();
        current.alive.has_changed().is_ok() && current.client.connection_state() == State::Connected
    }

    /// An error with what the server said besides, which may be the reason.
    pub fn explain(&self, error: &dyn std::fmt::Display) -> String {
        let said = self.complaints.last().map(|text| format!("; the client reports: {text}"));
        format!("{error}{}", said.unwrap_or_default())
    }

    pub fn retry(&self, what: &str, why: &str) -> BrokerError {
        BrokerError::retry(self.line(what, why))
    }

    /// The same, with the client's error behind it.
    pub fn failed(&self, what: &str, error: impl Error + Send + Sync + 'static) -> BrokerError {
        self.failed_because(what, &error.to_string(), error)
    }

    /// The same, where there is more to say of it.
    pub fn failed_because(&self, what: &str, why: &str, error: impl Error + Send + Sync + 'static) -> BrokerError {
        BrokerError::Retry(ErrorLine::of(self.line(what, why), error))
    }

    fn line(&self, what: &str, why: &str) -> String {
        format!("{}: {what}: {}", self.config.place(), self.explain(&why))
    }

    /// The stream as its leader has it now.
    pub async fn stream(&self) -> BrokerResult<Stream> {
        let (name, jetstream) = (&self.config.stream, self.jetstream());
        confirmed(|| jetstream.get_stream(name), is_missing).await.map_err(|error| {
            if is_missing(&error) {
                let text = format!(
                    "{}: there is no stream {name:?}; create it with `traqq doctor --create`, or correct broker.nats.stream",
                    self.config.place()
                );
                return BrokerError::Stop(ErrorLine::of(text, error));
            }
            self.failed(&format!("stream {name}: cannot be reached"), error)
        })
    }

    /// The bucket of leases and marks; made if it is missing.
    pub async fn bucket(&self, replicas: usize) -> BrokerResult<kv::Store> {
        let (bucket, jetstream) = (self.config.bucket(), self.jetstream());
        if let Ok(store) = jetstream.get_key_value(&bucket).await {
            return Ok(store);
        }
        let config = kv::Config {
            bucket: bucket.clone(),
            description: "traqq: who reads which partition".to_owned(),
            num_replicas: replicas,
            history: 1,
            ..kv::Config::default()
        };
        let created = jetstream.create_key_value(config).await;
        created.map_err(|error| self.failed(&format!("key-value bucket {bucket}"), error))
    }
}

/// A client that reaches a server in the background.
async fn begin(config: &Config, complaints: &Arc<Complaints>, number: u64) -> Result<Connection, ConfigError> {
    let options = config.connect_options().await?.retry_on_initial_connect();
    connect(config, options, complaints, number)
        .await
        .map_err(|error| ConfigError::of(format!("{}: {error}", config.place()), error))
}

async fn connect(
    config: &Config,
    options: ConnectOptions,
    complaints: &Arc<Complaints>,
    number: u64,
) -> Result<Connection, ConnectError> {
    let heard = Arc::clone(complaints);
    let (running, alive) = watch::channel(());
    let options = options.event_callback(move |event| {
        // The callback belongs to the client's tasks, and ends with them.
        let _ = &running;
        match event {
            Event::Connected => heard.clear(),
            Event::Closed | Event::Draining => tracing::debug!(%event, "nats"),
            event => {
                // The same again, with every attempt to connect, is not news.
                if heard.hear(&event.to_string()) {
                    tracing::warn!(%event, "nats");
                }
            }
        }
        std::future::ready(())
    });
    let client = options.connect(&config.servers[..]).await?;
    let context = jetstream::context::ContextBuilder::new()
        .timeout(super::config::REQUEST_TIMEOUT)
        .max_ack_inflight(PUBLISHES_MAX)
        .backpressure_on_inflight(true);
    let jetstream = match &config.domain {
        Some(domain) => context.domain(domain.clone()).build(client.clone()),
        None => context.build(client.clone()),
    };
    Ok(Connection { client, jetstream, alive, number })
}

/// Makes another client whenever the current one ends, for as long as there is a [`Link`].
async fn replace(current: Weak<RwLock<Connection>>, config: Config, complaints: Arc<Complaints>) {
    let mut ends = Throttle::default();
    let of_now = || Some(current.upgrade()?.read().unwrap_or_else(PoisonError::into_inner).clone());
    loop {
        let Some(Connection { mut alive, number, client, jetstream }) = of_now() else { return };
        // A client ends when nobody has it any more.
        drop((client, jetstream));
        while alive.changed().await.is_ok() {}
        let fresh = loop {
            if current.strong_count() == 0 {
                return;
            }
            let error = match begin(&config, &complaints, number + 1).await {
                Ok(fresh) => break fresh,
                Err(error) => error,
            };
            if complaints.hear(&error.to_string()) {
                tracing::error!(%error, "no client of NATS can be made in place of one that ended");
            }
            tokio::time::sleep(REPLACE_PAUSE).await;
        };
        let Some(current) = current.upgrade() else { return };
        *current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        if let Some(ended) = ends.admit(1) {
            tracing::warn!(ended, "the client of NATS ended; what it was doing is done again with another");
        }
    }
}

/// What is missing for good. A server that has just become the leader may not know yet what there
/// is.
pub async fn confirmed<T, E, F: Future<Output = Result<T, E>>>(
    ask: impl Fn() -> F,
    is_missing: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 1..MISSING_ASKS {
        match ask().await {
            Err(error) if is_missing(&error) => tokio::time::sleep(MISSING_PAUSE).await,
            answer => return answer,
        }
    }
    ask().await
}

pub fn nobody_takes(error: &GetStreamByNameError) -> bool {
    error.kind() == GetStreamByNameErrorKind::NotFound
}

pub fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

/// The subjects of each partition; `None` is all of the stream.
///
/// A stream that spreads its subjects itself says how: `{{partition(n,...)}}` in its transform. One
/// behind a mapping of the server needs `partition_subject`. Any other is one partition.
pub fn partition_filters(stream: &stream::Config, config: &Config) -> Result<Vec<Option<String>>, ConfigError> {
    let spread = match (&config.partition_subject, &stream.subject_transform) {
        (Some(template), _) => Some((config.partitions, template.clone())),
        (None, Some(transform)) => parse_transform(&transform.destination)?,
        (None, None) => None,
    };
    let Some((partitions, template)) = spread else { return Ok(vec![None]) };
    Ok((0..partitions).map(|number| Some(template.replacen("{}", &number.to_string(), 1))).collect())
}

/// How many partitions a transform makes, and the subjects of one with `{}` for its number.
fn parse_transform(destination: &str) -> Result<Option<(i32, String)>, ConfigError> {
    let malformed = || {
        ConfigError::from(format!(
            "the stream's subject transform to {destination:?} is not understood; set broker.nats.partition_subject"
        ))
    };
    let mut partitions = None;
    let mut tokens = Vec::new();
    for token in destination.split('.') {
        let function = token.strip_prefix("{{").and_then(|token| token.strip_suffix("}}")).map(str::trim);
        let lower = function.map(str::to_ascii_lowercase);
        match lower.as_deref().map(|function| function.strip_prefix("partition(")) {
            Some(Some(arguments)) => {
                let number = arguments.trim_end_matches(')').split(',').next().unwrap_or_default().trim();
                let number: i32 = number.parse().ok().filter(|number| *number > 0).ok_or_else(malformed)?;
                if partitions.replace(number).is_some() {
                    return Err(malformed());
                }
                tokens.push("{}".to_owned());
            }
            Some(None) => tokens.push("*".to_owned()),
            None if token.starts_with('$') => tokens.push("*".to_owned()),
            None => tokens.push(token.to_owned()),
        }
    }
    Ok(partitions.map(|partitions| (partitions, tokens.join("."))))
}

/// The streams whose messages a stream has besides its own.
pub fn origins(stream: &stream::Config) -> impl Iterator<Item = &str> {
    let sources = stream.sources.iter().flatten().chain(&stream.mirror);
    sources.map(|source| &*source.name)
}

/// Why nobody can publish to a stream so that it is known to have the message, whatever the
/// subject.
pub fn takes_nothing(stream: &stream::Config) -> Option<String> {
    let name = &stream.name;
    if stream.sealed {
        return Some(format!("stream {name} is sealed: it takes no messages any more; count another one"));
    }
    stream.no_ack.then(|| {
        format!(
            "stream {name} does not acknowledge messages (no_ack): nobody can tell whether an event is in it; set no_ack to false"
        )
    })
}

/// Where events go that come in here: a subject, or one whose last token is their key. An error is
/// for good: as stream and configuration are, no event can come in.
pub fn ingest_subject(stream: &stream::Config, config: &Config) -> Result<String, ConfigError> {
    if let Some(reason) = takes_nothing(stream) {
        return Err(reason.into());
    }
    if let Some(subject) = &config.ingest_subject {
        return Ok(subject.clone());
    }
    let name = &stream.name;
    if let Some(origin) = stream.mirror.as_ref().map(|mirror| &mirror.name) {
        return Err(format!(
            "stream {name} is a mirror of {origin} and takes no messages itself: set broker.nats.ingest_subject to a subject of {origin}"
        ).into());
    }
    if stream.subjects.is_empty() {
        return Err(format!(
            "stream {name} takes messages from other streams only: set broker.nats.ingest_subject to a subject of one of them"
        ).into());
    }
    let subject = match (&stream.subject_transform, &stream.subjects[..]) {
        (Some(transform), _) if !transform.source.is_empty() => Some(&transform.source),
        (_, [subject]) => Some(subject),
        _ => None,
    };
    let is_usable = |subject: &&String| {
        let wildcards = subject.matches(['*', '>']).count();
        wildcards == 0 || (wildcards == 1 && subject.ends_with(['*', '>']))
    };
    subject.filter(is_usable).cloned().ok_or_else(|| {
        format!(
            "stream {} takes {}: set broker.nats.ingest_subject to the one events go to",
            name,
            stream.subjects.join(", ")
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(subjects: &[&str], transform: Option<(&str, &str)>) -> stream::Config {
        let subject_transform = transform.map(|(source, destination)| stream::SubjectTransform {
            source: source.to_owned(),
            destination: destination.to_owned(),
        });
        let subjects = subjects.iter().map(ToString::to_string).collect();
        stream::Config { name: "s".to_owned(), subjects, subject_transform, ..stream::Config::default() }
    }

    #[test]
    fn partitions_are_those_of_the_streams_transform() {
        let config = Config::default();
        let of = |destination: &str| partition_filters(&stream(&["e.*"], Some(("e.*", destination))), &config);
        let filters = of("e.{{partition(2,1)}}.{{wildcard(1)}}").unwrap();
        assert_eq!(filters, [Some("e.0.*".to_owned()), Some("e.1.*".to_owned())]);
        assert_eq!(of("p.{{ Partition(3, 1) }}.$1.>").unwrap()[2].as_deref(), Some("p.2.*.>"));
        assert_eq!(of("p.{{wildcard(1)}}").unwrap(), [None]);
        assert!(of("p.{{partition(x,1)}}").is_err());
        assert_eq!(partition_filters(&stream(&["e.>"], None), &config).unwrap(), [None]);
        let config = Config { partition_subject: Some("q.{}.>".to_owned()), partitions: 2, ..config };
        assert_eq!(partition_filters(&stream(&["q.>"], None), &config).unwrap()[1].as_deref(), Some("q.1.>"));
    }

    #[test]
    fn events_go_where_the_stream_takes_them() {
        let config = Config::default();
        let to = |stream| ingest_subject(&stream, &config);
        assert_eq!(to(stream(&["e.*"], Some(("e.*", "e.{{partition(2,1)}}.{{wildcard(1)}}")))).unwrap(), "e.*");
        assert_eq!(to(stream(&["events"], None)).unwrap(), "events");
        assert_eq!(to(stream(&["events.>"], None)).unwrap(), "events.>");
        assert!(to(stream(&["a", "b"], None)).unwrap_err().to_string().contains("ingest_subject"));
        assert!(to(stream(&["a.*.b"], None)).is_err());
    }

    #[test]
    fn a_stream_that_takes_no_events_says_why() {
        let plain = || stream(&["events"], None);
        let origin = || stream::Source { name: "origin".to_owned(), ..stream::Source::default() };
        let sealed = stream::Config { sealed: true, ..plain() };
        let silent = stream::Config { no_ack: true, ..plain() };
        let mirror = stream::Config { mirror: Some(origin()), ..stream(&[], None) };
        let sourced = stream::Config { sources: Some(vec![origin()]), ..stream(&[], None) };
        let named = Config { ingest_subject: Some("elsewhere.*".to_owned()), ..Config::default() };
        for (stream, reason) in [(&sealed, "is sealed"), (&silent, "no_ack")] {
            assert!(ingest_subject(stream, &Config::default()).unwrap_err().to_string().contains(reason), "{reason}");
            assert!(ingest_subject(stream, &named).unwrap_err().to_string().contains(reason), "{reason}");
        }
        for (stream, reason) in [(&mirror, "mirror of origin"), (&sourced, "other streams only")] {
            assert!(ingest_subject(stream, &Config::default()).unwrap_err().to_string().contains(reason), "{reason}");
            assert_eq!(ingest_subject(stream, &named).unwrap(), "elsewhere.*");
        }
    }

    /// Speaks the protocol on one connection, and ends the client with the first subscription.
    async fn serve_poison(listener: &tokio::net::TcpListener) {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let info = r#"{"server_id":"x","server_name":"x","version":"2.11.0","proto":1,"host":"127.0.0.1","port":1,"headers":true,"max_payload":1048576}"#;
        write.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = match line.strip_prefix("SUB poison ") {
                Some(id) => format!("HMSG poison {} 22 22\r\nNATS/1.0\r\nX: a\rb\r\n\r\n\r\n", id.trim()),
                None if line == "PING" => "PONG\r\n".to_owned(),
                None => continue,
            };
            if write.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn until(what: &str, is_so: impl Fn() -> bool) {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what}"));
    }

    /// Its state was "connected" for ever, and everything that was asked said "channel closed".
    #[tokio::test]
    async fn a_client_that_ends_is_noticed_and_replaced() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![format!("nats://{}", listener.local_addr().unwrap())];
        let link = Link::new(&Config { servers, ..Config::default() }).await.unwrap();
        let first = tokio::spawn(async move {
            serve_poison(&listener).await;
            listener
        });
        until("connected", || link.is_connected()).await;
        let old = link.client();
        let mut messages = old.subscribe("poison").await.unwrap();
        assert!(futures_util::StreamExt::next(&mut messages).await.is_none(), "the client reads what it could not");
        until("noticed", || !link.is_connected()).await;
        let listener = first.await.unwrap();
        until("replaced", || link.number() == 1).await;
        assert!(!link.is_connected(), "nobody has accepted it yet");
        let second = tokio::spawn(async move { serve_poison(&listener).await });
        until("connected again", || link.is_connected()).await;
        link.client().flush().await.unwrap();
        assert!(old.flush().await.is_err());
        second.abort();
    }
}
