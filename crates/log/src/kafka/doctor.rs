//! What is looked at before counting, and what `traqq doctor` looks at besides.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::groups::{GroupInfo, GroupMemberInfo};
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};

use super::config::{Config, ignored, invalid};
use super::context::{failure, is_reason, lock, log};
use super::lookout::{Seen, look, partition_count};
use super::topics::Topics;
use traqq_core::error::ErrorLine;
use traqq_core::model::escape::shell;
use traqq_core::model::{Check, Finding};
use traqq_core::panics::contained;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Reasons of one failure; every broker has its own.
const REASONS_MAX: usize = 3;
/// Topics of a pattern that are listed.
const LISTED_MAX: usize = 20;

/// Keeps what librdkafka says of connections that fail: the error of a question is only that it was
/// not answered.
#[derive(Default)]
struct Reasons(Mutex<Vec<(Option<RDKafkaErrorCode>, String)>>);

impl ClientContext for Reasons {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(why) = failure(facility, message) {
            self.push(None, why);
        }
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_reason(&error) {
            self.push(error.rdkafka_error_code(), reason);
        }
    }
}

impl ConsumerContext for Reasons {}

impl Reasons {
    fn push(&self, code: Option<RDKafkaErrorCode>, reason: &str) {
        // How long it took differs each time.
        let what = |text: &str| text.split(" (after ").next().unwrap_or_default().to_owned();
        let mut reasons = lock(&self.0);
        match reasons.iter_mut().find(|(_, known)| what(known) == what(reason)) {
            Some(known) => known.0 = known.0.or(code),
            None => reasons.push((code, reason.to_owned())),
        }
    }

    fn text(&self) -> String {
        let reasons = lock(&self.0);
        // The last ones: the first is often only that a connection was closed.
        let last = &reasons[reasons.len().saturating_sub(REASONS_MAX)..];
        last.iter().map(|(_, reason)| format!("; {reason}")).collect()
    }

    /// What another attempt will not change.
    fn is_final(&self) -> bool {
        let is_final = |code| {
            [RDKafkaErrorCode::Authentication, RDKafkaErrorCode::SaslAuthenticationFailed, RDKafkaErrorCode::SSL]
                .contains(&code)
        };
        lock(&self.0).iter().any(|(code, _)| code.is_some_and(is_final))
    }
}

/// Everything a worker relies on. The connection is the first.
pub fn checks(config: &Config) -> Vec<Check> {
    looked_at(config).0
}

/// The same, and what would keep a worker from reading: too slow for every start, and it may pass.
pub fn examine(config: &Config) -> Vec<Check> {
    let (mut checks, found) = looked_at(config);
    let Some((client, seen)) = found else { return checks };
    checks.push(Check { name: "group", finding: group(&client, config) });
    if !seen.counted.is_empty() {
        checks.push(Check { name: "reading", finding: reading(&client, config, &seen) });
    }
    checks
}

type Client = BaseConsumer<Reasons>;

fn looked_at(config: &Config) -> (Vec<Check>, Option<(Client, Seen)>) {
    let brokers = &config.brokers;
    let mut checks: Vec<Check> = ignored(config)
        .map(|name| Check {
            name: "properties",
            finding: Finding::Warning(format!(
                "broker.kafka.properties.\"{name}\" has no meaning with group.protocol = consumer; remove it"
            )),
        })
        .collect();
    let made = config.producer_client().create_with_context::<_, Client>(Reasons::default()).map_err(invalid);
    let (client, topics) = match made.and_then(|client| Ok((client, Topics::new(config)?))) {
        Ok(made) => made,
        Err(error) => {
            checks.push(Check { name: "connection", finding: error.into() });
            return (checks, None);
        }
    };
    let seen = match reached(&client).and_then(|()| confirmed(&client, &topics)) {
        Ok(seen) => seen,
        Err(error) => {
            drain(&client);
            let text = format!(
                "kafka {brokers}: cannot be reached: {error}{}; is it running, does it advertise this address, and do \
                 security.protocol and sasl.* in broker.kafka.properties fit this listener?",
                client.context().text()
            );
            checks.push(Check { name: "connection", finding: Finding::Unavailable(text) });
            return (checks, None);
        }
    };
    checks.push(Check { name: "connection", finding: Finding::Good(brokers.clone()) });
    checks.push(Check { name: "topics", finding: topics_finding(brokers, &topics, &seen) });
    if let Some(topic) = config.dead_letters() {
        let finding = match exists(&client, &topic) {
            Ok(()) => Finding::Good(topic),
            Err(why) => Finding::Bad(format!(
                "kafka {brokers}: dead letters: {why} with `kafka-topics.sh --create --topic {} --bootstrap-server {}`, or \
                 set broker.kafka.dead_letter_topic",
                shell(&topic),
                shell(brokers)
            )),
        };
        checks.push(Check { name: "dead letters", finding });
    }
    if let Some(topic) = &config.ingest_topic {
        let is_counted = seen.counted.iter().any(|(name, _)| name == topic);
        let finding = match exists(&client, topic) {
            Ok(()) if is_counted => Finding::Good(topic.clone()),
            Ok(()) => Finding::Warning(format!(
                "{topic} is not counted here: it is none of broker.kafka.topics and does not match topic_pattern"
            )),
            Err(why) => Finding::Warning(format!(
                "events that come in are refused: {why}, or correct broker.kafka.ingest_topic"
            )),
        };
        checks.push(Check { name: "events that come in", finding });
    }
    (checks, Some((client, seen)))
}

/// Whether anybody there speaks Kafka. It is asked in short turns, so that what cannot change is
/// said at once.
fn reached(client: &Client) -> KafkaResult<()> {
    const TURN: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answered = client.fetch_metadata(Some("__consumer_offsets"), TURN);
        drain(client);
        match answered {
            Ok(metadata) if !metadata.brokers().is_empty() => return Ok(()),
            answered if client.context().is_final() || Instant::now() >= deadline => {
                return answered.and(Err(KafkaError::MetadataFetch(RDKafkaErrorCode::AllBrokersDown)));
            }
            Ok(_) => std::thread::sleep(TURN / 10),
            Err(_) => {}
        }
    }
}

/// Errors that librdkafka has in store are handed out by polling, one at a time and without a word.
fn drain(client: &Client) {
    const EVENTS_MAX: usize = 100;
    for _ in 0..EVENTS_MAX {
        drop(client.poll(Duration::ZERO));
    }
}

/// What the brokers know. One that has just started may not have heard of every topic: what is
/// missing is asked for again.
fn confirmed(client: &Client, topics: &Topics) -> KafkaResult<Seen> {
    const LOOKS: usize = 4;
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    let mut seen = look(client.client(), topics, TIMEOUT)?;
    for _ in 1..LOOKS {
        if seen.problems.is_empty() {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
        seen = look(client.client(), topics, TIMEOUT)?;
    }
    Ok(seen)
}

fn exists(client: &Client, topic: &str) -> Result<(), ErrorLine> {
    let metadata = client.fetch_metadata(Some(topic), TIMEOUT).map_err(ErrorLine::from_error)?;
    partition_count(&metadata, topic).map(|_| ()).map_err(ErrorLine::from_error)
}

fn topics_finding(brokers: &str, topics: &Topics, seen: &Seen) -> Finding {
    if !seen.problems.is_empty() {
        let text = format!("kafka {brokers}: {}", seen.problems.join("; "));
        let is_named_missing = topics.named().iter().any(|name| !seen.counted.iter().any(|(known, _)| known == name));
        return if is_named_missing { Finding::Bad(text) } else { Finding::Warning(text) };
    }
    let list = |name: &(String, i32)| name.0.clone();
    let listed: Vec<String> = seen.counted.iter().take(LISTED_MAX).map(list).collect();
    let more = seen.counted.len() - listed.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let matched = topics.pattern().map(|pattern| format!(" (topic_pattern = {pattern:?})")).unwrap_or_default();
    Finding::Good(format!("{}{more}{matched}", listed.join(", ")))
}

/// Whether the group would take this worker, and who else is in it.
fn group(client: &Client, config: &Config) -> Finding {
    let group = &config.group;
    let list = match client.fetch_group_list(Some(group), TIMEOUT) {
        Ok(list) => list,
        Err(error) => return Finding::Unavailable(format!("{group}: {error}{}", client.context().text())),
    };
    // What other members call themselves may not be text.
    let found = contained(|| list.groups().iter().find(|info| info.name() == group).map(|info| judged(info, config)));
    found.ok().flatten().unwrap_or_else(|| Finding::Good(format!("{group}, no members")))
}

fn judged(info: &GroupInfo, config: &Config) -> Finding {
    let (group, count) = (&config.group, info.members().len());
    if count == 0 {
        return Finding::Good(format!("{group}, no members"));
    }
    if info.protocol_type() != "consumer" {
        return Finding::Bad(format!(
            "{group}: {count} members of another kind ({:?}) are in this group; set another broker.kafka.group",
            info.protocol_type()
        ));
    }
    let (theirs, ours) = (info.protocol(), config.assignors());
    if !config.is_new_protocol() && !theirs.is_empty() && !ours.contains(&theirs) {
        return Finding::Bad(format!(
            "{group}: its {count} members use the assignor {theirs:?}, and a worker comes with {ours:?}: the group refuses it \
             (InconsistentGroupProtocol); set another broker.kafka.group, or \"partition.assignment.strategy\" = {theirs:?} in \
             broker.kafka.properties"
        ));
    }
    let client_id = config.properties.get("client.id").map_or("traqq", String::as_str);
    let strangers: BTreeSet<&str> =
        info.members().iter().map(GroupMemberInfo::client_id).filter(|id| *id != client_id).collect();
    if strangers.is_empty() {
        return Finding::Good(format!("{group}, {count} members"));
    }
    let strangers: Vec<&str> = strangers.into_iter().collect();
    Finding::Warning(format!(
        "{group}: {} of its {count} members are no workers ({}): what they read is not counted; set another broker.kafka.group",
        info.members().iter().filter(|member| member.client_id() != client_id).count(),
        strangers.join(", ")
    ))
}

/// Reads from the end of every partition, without being a member of the group: only that shows
/// whether the leaders can be reached and whether this user may read.
fn reading(client: &Client, config: &Config, seen: &Seen) -> Finding {
    let partitions: i32 = seen.counted.iter().map(|(_, partitions)| partitions).sum();
    let consumer = config.client(1 << 20).and_then(|mut reader| {
        reader.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "100").remove("group.instance.id");
        reader.create_with_context::<_, BaseConsumer<Reasons>>(Reasons::default()).map_err(invalid)
    });
    let consumer = match consumer {
        Ok(consumer) => consumer,
        Err(error) => return error.into(),
    };
    let deadline = Instant::now() + TIMEOUT;
    for (topic, partitions) in &seen.counted {
        if let Some(finding) = unread(&consumer, topic, *partitions, deadline, client) {
            return finding;
        }
    }
    Finding::Good(format!("{partitions} partitions of {} topics", seen.counted.len()))
}

/// What keeps a topic from being read.
fn unread(reader: &Client, topic: &str, partitions: i32, deadline: Instant, client: &Client) -> Option<Finding> {
    let mut list = TopicPartitionList::new();
    let mut waiting: BTreeSet<i32> = (0..partitions).collect();
    for partition in &waiting {
        list.add_partition_offset(topic, *partition, Offset::End).expect("End is an offset");
    }
    if let Err(error) = reader.assign(&list) {
        return Some(Finding::Unavailable(format!("{topic}: {error}")));
    }
    while !waiting.is_empty() {
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => _ = waiting.remove(&partition),
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed))) => {
                return Some(Finding::Bad(format!("this user may not read topic {topic:?}; grant it READ")));
            }
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed))) => {
                return Some(Finding::Bad(
                    "this user may not use the group; grant it READ on broker.kafka.group".to_owned(),
                ));
            }
            Some(Err(_)) | None => {}
        }
        if Instant::now() >= deadline {
            let leaders = client.fetch_metadata(Some(topic), Duration::from_secs(2)).ok();
            let first = *waiting.first().expect("not empty");
            let leader = leaders.map(|metadata| leader_of(&metadata, topic, first)).unwrap_or_default();
            return Some(Finding::Unavailable(format!(
                "{} of {partitions} partitions of {topic:?} do not answer, {topic}/{first} first{leader}{}",
                waiting.len(),
                reader.context().text()
            )));
        }
    }
    None
}

fn leader_of(metadata: &Metadata, topic: &str, partition: i32) -> String {
    let topic = metadata.topics().iter().find(|known| known.name() == topic);
    let Some(known) = topic.and_then(|topic| topic.partitions().iter().find(|known| known.id() == partition)) else {
        return String::new();
    };
    match metadata.brokers().iter().find(|broker| broker.id() == known.leader()) {
        Some(broker) => format!(": its leader is broker {} at {}:{}", broker.id(), broker.host(), broker.port()),
        None => ": it has no leader".to_owned(),
    }
}
