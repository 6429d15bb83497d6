//! What is looked at before counting, and the stream that `traqq doctor --create` makes.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};

use super::config::Config;
use super::link::{Link, ingest_subject, is_missing, partition_filters};
use crate::broker::BrokerError;
use crate::model::{Check, Finding};

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(20);
/// The first version with subject transforms in streams and metadata on consumers.
const VERSION_MIN: (u32, u32) = (2, 10);

/// Everything a worker relies on. The connection is the first.
pub async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let link = match connect(config).await {
        Ok(link) => link,
        Err(text) => return vec![Check { name: "connection", finding: Finding::Bad(text) }],
    };
    let info = link.client.server_info();
    let finding = if version(&info.version).is_some_and(|version| version < VERSION_MIN) {
        Finding::Bad(format!("nats-server {} is too old: 2.10 or newer is needed", info.version))
    } else {
        Finding::Good(format!("{}, nats-server {}", config.place(), info.version))
    };
    checks.push(Check { name: "connection", finding });
    match link.jetstream.query_account().await {
        Ok(_) => {}
        Err(error) => {
            let text =
                format!("JetStream does not answer: {error}; start nats-server with -js, or grant this user $JS.API.>");
            checks.push(Check { name: "jetstream", finding: Finding::Bad(text) });
            return checks;
        }
    }
    match link.stream().await {
        Ok(stream) => checks.extend(stream_checks(&stream.cached_info().config, config)),
        Err(BrokerError::Stop(text) | BrokerError::Retry(text)) => {
            checks.push(Check { name: "stream", finding: Finding::Bad(text) });
        }
    }
    if let Some(subject) = config.dead_letters() {
        let finding = match link.jetstream.stream_by_subject(subject.clone()).await {
            Ok(stream) if stream == config.stream => Finding::Bad(format!(
                "{subject} is taken by {stream}, the stream that is counted: dead letters would be counted; set broker.nats.dead_letter_subject"
            )),
            Ok(stream) => Finding::Good(format!("{subject}, taken by stream {stream}")),
            Err(error) => Finding::Bad(format!(
                "no stream takes {subject}: {error}; create one with `traqq doctor --create`, or set broker.nats.dead_letter_subject"
            )),
        };
        checks.push(Check { name: "dead letters", finding });
    }
    checks
}

async fn connect(config: &Config) -> Result<Link, String> {
    let link = Link::new(config).await?;
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while link.client.connection_state() != State::Connected {
        if tokio::time::Instant::now() > deadline {
            return Err(format!(
                "{}: cannot be reached; is it running, and are the credentials right?",
                config.place()
            ));
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(link)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn stream_checks(stream: &stream::Config, config: &Config) -> Vec<Check> {
    let name = &stream.name;
    let mut checks = Vec::new();
    let retention = match stream.retention {
        RetentionPolicy::Limits => Finding::Good(format!("{name} keeps messages by its limits")),
        RetentionPolicy::WorkQueue | RetentionPolicy::Interest => Finding::Bad(format!(
            "{name} removes messages that were acknowledged ({:?}): they could not be read again after a store lost some; use a stream with \
             retention by limits, for example one that has this one as its source",
            stream.retention
        )),
    };
    checks.push(Check { name: "retention", finding: retention });
    if stream.max_messages_per_subject > 0 {
        let text = format!(
            "{name} keeps {} messages a subject: older ones vanish, counted or not, and nobody can tell",
            stream.max_messages_per_subject
        );
        checks.push(Check { name: "limits", finding: Finding::Warning(text) });
    }
    if stream.storage == StorageType::Memory {
        let text = format!("{name} lives in memory: a restart of the server empties it");
        checks.push(Check { name: "storage", finding: Finding::Warning(text) });
    }
    let partitions = match partition_filters(stream, config) {
        Ok(filters) if filters.len() == 1 => {
            Finding::Good("1: one worker counts at a time, another one takes over".to_owned())
        }
        Ok(filters) => Finding::Good(format!(
            "{}, {} to {}",
            filters.len(),
            label(&filters[0]),
            label(&filters[filters.len() - 1])
        )),
        Err(text) => Finding::Bad(text),
    };
    checks.push(Check { name: "partitions", finding: partitions });
    let replicas = if stream.num_replicas < 3 {
        let text = format!("{}: what one server loses is lost; counting stops when it notices", stream.num_replicas);
        Finding::Warning(text)
    } else {
        Finding::Good(stream.num_replicas.to_string())
    };
    checks.push(Check { name: "replicas", finding: replicas });
    let ingest = match ingest_subject(stream, config) {
        Ok(subject) => Finding::Good(format!("events that come in go to {subject}")),
        Err(text) => Finding::Warning(text),
    };
    checks.push(Check { name: "ingestion", finding: ingest });
    checks
}

fn label(filter: &Option<String>) -> &str {
    filter.as_deref().unwrap_or(">")
}

/// Makes the stream and the one of dead letters, where they are missing; returns what was made.
pub async fn create(config: &Config) -> Result<Vec<String>, String> {
    let link = connect(config).await?;
    let mut made = Vec::new();
    let name = &config.stream;
    match link.jetstream.get_stream(name).await {
        Ok(_) => {}
        Err(error) if is_missing(&error) => {
            let created = link.jetstream.create_stream(new_stream(config)).await;
            created.map_err(|error| format!("stream {name} cannot be created: {error}"))?;
            made.push(format!("stream {name}: {} partitions, events to {name}.<key>", config.partitions));
        }
        Err(error) => return Err(format!("stream {name}: {error}")),
    }
    if let Some(subject) = config.dead_letters()
        && link.jetstream.stream_by_subject(subject.clone()).await.is_err()
    {
        let stream = stream::Config {
            name: format!("{name}-dead-letters"),
            subjects: vec![subject.clone()],
            num_replicas: config.create.replicas,
            ..stream::Config::default()
        };
        let dead = stream.name.clone();
        let created = link.jetstream.create_stream(stream).await;
        created.map_err(|error| format!("stream {dead} cannot be created: {error}"))?;
        made.push(format!("stream {dead}: {subject}"));
    }
    Ok(made)
}

fn new_stream(config: &Config) -> stream::Config {
    let name = &config.stream;
    let transform = stream::SubjectTransform {
        source: format!("{name}.*"),
        destination: format!("{name}.{{{{partition({},1)}}}}.{{{{wildcard(1)}}}}", config.partitions),
    };
    stream::Config {
        name: name.clone(),
        subjects: vec![format!("{name}.*")],
        subject_transform: (config.partitions > 1).then_some(transform),
        num_replicas: config.create.replicas,
        max_age: Duration::from_secs(config.create.max_age_s),
        max_bytes: if config.create.max_bytes == 0 { -1 } else { config.create.max_bytes as i64 },
        discard: DiscardPolicy::Old,
        ..stream::Config::default()
    }
}
