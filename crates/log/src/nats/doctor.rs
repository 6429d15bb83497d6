//! What is looked at before counting, and the stream that `traqq doctor --create` makes.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{AccountError, AccountErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};

use super::config::Config;
use super::link::{
    Link, confirmed, ingest_subject, is_missing, nobody_takes, origins, partition_filters, takes_nothing,
};
use crate::{BrokerError, BrokerResult};
use traqq_core::model::{Check, Finding};

/// The first version with subject transforms in streams and metadata on consumers.
const VERSION_MIN: (u32, u32) = (2, 10);

/// Everything a worker relies on. The connection is the first.
pub async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let link = match Link::reach(config).await {
        Ok(link) => link,
        Err(finding) => return vec![Check { name: "connection", finding }],
    };
    let jetstream = link.jetstream();
    let info = link.client().server_info();
    let finding = if version(&info.version).is_some_and(|version| version < VERSION_MIN) {
        Finding::Bad(format!("nats-server {} is too old: 2.10 or newer is needed", info.version))
    } else {
        Finding::Good(format!("{}, nats-server {}", config.place(), info.version))
    };
    checks.push(Check { name: "connection", finding });
    match jetstream.query_account().await {
        Ok(_) => {}
        Err(error) => {
            checks.push(Check { name: "jetstream", finding: no_answer(&link, &error) });
            return checks;
        }
    }
    match link.stream().await {
        Ok(stream) => {
            let stream = &stream.cached_info().config;
            checks.extend(stream_checks(stream, config));
            checks.push(Check { name: "ingestion", finding: ingestion(&link, stream).await });
            if let Some(subject) = config.dead_letters() {
                checks.push(Check { name: "dead letters", finding: dead_letters(&link, &subject, stream).await });
            }
        }
        Err(error) => checks.push(Check { name: "stream", finding: error.into() }),
    }
    checks
}

/// Dead letters that come back into the stream that is counted become dead letters again, without
/// an end.
pub fn feeds_itself(subject: &str, stream: &str) -> String {
    format!(
        "dead-letter subject {subject} leads into {stream}, the stream that is counted: each dead letter would be read and become another one; \
         set broker.nats.dead_letter_subject to one that a stream of its own takes"
    )
}

/// Where events go that come in here. It is no fault of a worker that only counts.
async fn ingestion(link: &Link, counted: &stream::Config) -> Finding {
    let subject = match ingest_subject(counted, &link.config) {
        Ok(subject) => subject,
        Err(error) => return Finding::Warning(error.to_string()),
    };
    let good = Finding::Good(format!("events that come in go to {subject}"));
    // A mapping of the server may lead elsewhere.
    if link.config.ingest_subject.is_none() || link.config.partition_subject.is_some() {
        return good;
    }
    let jetstream = link.jetstream();
    let taker = match confirmed(|| jetstream.stream_by_subject(&*subject), nobody_takes).await {
        Ok(taker) if taker == counted.name || origins(counted).next().is_some() => return good,
        Ok(taker) => format!("stream {taker} takes it"),
        Err(error) if nobody_takes(&error) => "no stream takes it".to_owned(),
        Err(_) => return good,
    };
    let name = &counted.name;
    Finding::Warning(format!(
        "events that come in go to {subject}, and {taker}, not {name}: correct broker.nats.ingest_subject"
    ))
}

async fn dead_letters(link: &Link, subject: &str, counted: &stream::Config) -> Finding {
    let jetstream = link.jetstream();
    let taken_by = confirmed(|| jetstream.stream_by_subject(subject), nobody_takes);
    let taker = match taken_by.await {
        Ok(taker) => taker,
        Err(error) if nobody_takes(&error) => {
            return Finding::Bad(format!(
                "no stream takes {subject}; create one with `traqq doctor --create`, or set broker.nats.dead_letter_subject"
            ));
        }
        Err(error) => return Finding::Unavailable(link.explain(&format!("{subject}: {error}"))),
    };
    if taker == counted.name || origins(counted).any(|origin| origin == taker) {
        return Finding::Bad(feeds_itself(subject, &counted.name));
    }
    match jetstream.get_stream(&taker).await.map(|stream| takes_nothing(&stream.cached_info().config)) {
        Ok(Some(reason)) => Finding::Bad(format!("{subject}: {reason}")),
        Ok(None) => Finding::Good(format!("{subject}, taken by stream {taker}")),
        Err(error) => Finding::Unavailable(link.explain(&format!("stream {taker}: {error}"))),
    }
}

/// Servers without a leader do not answer, and find one again.
fn no_answer(link: &Link, error: &AccountError) -> Finding {
    let is_off = match error.kind() {
        AccountErrorKind::JetStream(error) => {
            [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
                .contains(&error.error_code())
        }
        kind => kind == AccountErrorKind::JetStreamUnavailable,
    };
    if is_off {
        return Finding::Bad(format!(
            "JetStream is off: {error}; start nats-server with -js, or enable it for the account"
        ));
    }
    Finding::Unavailable(format!(
        "JetStream does not answer: {}; have its servers a leader, and may this user use $JS.API.>?",
        link.explain(error)
    ))
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
        Err(error) => error.into(),
    };
    checks.push(Check { name: "partitions", finding: partitions });
    let replicas = if stream.num_replicas < 3 {
        let text = format!("{}: what one server loses is lost; counting stops when it notices", stream.num_replicas);
        Finding::Warning(text)
    } else {
        Finding::Good(stream.num_replicas.to_string())
    };
    checks.push(Check { name: "replicas", finding: replicas });
    checks
}

fn label(filter: &Option<String>) -> &str {
    filter.as_deref().unwrap_or(">")
}

/// Makes the stream and the one of dead letters, where they are missing; returns what was made.
pub async fn create(config: &Config) -> BrokerResult<Vec<String>> {
    let link = Link::reach(config).await.map_err(|finding| BrokerError::retry(finding.to_string()))?;
    let mut made = Vec::new();
    let name = &config.stream;
    let jetstream = link.jetstream();
    match jetstream.get_stream(name).await {
        Ok(_) => {}
        Err(error) if is_missing(&error) => {
            let created = jetstream.create_stream(new_stream(config)).await;
            created.map_err(|error| link.failed(&format!("stream {name} cannot be created"), error))?;
            made.push(format!("stream {name}: {} partitions, events to {name}.<key>", config.partitions));
        }
        Err(error) => return Err(link.failed(&format!("stream {name}"), error)),
    }
    if let Some(subject) = config.dead_letters()
        && jetstream.stream_by_subject(subject.clone()).await.is_err()
    {
        let stream = stream::Config {
            name: format!("{name}-dead-letters"),
            subjects: vec![subject.clone()],
            num_replicas: config.create.replicas,
            ..stream::Config::default()
        };
        let dead = stream.name.clone();
        let created = jetstream.create_stream(stream).await;
        created.map_err(|error| link.failed(&format!("stream {dead} cannot be created"), error))?;
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
