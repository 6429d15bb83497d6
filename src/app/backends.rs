//! The log and the store, as they are configured.

use std::sync::Arc;

use anyhow::anyhow;

use super::clock::{age, age_ms, now, now_ms};
use crate::config::{BrokerKind, Config, StoreKind};
use traqq_core::error::ConfigError;
use traqq_core::model::{Check, Finding};
use traqq_counts::store::Store;
use traqq_counts::store::embedded::{self, EmbeddedStore};
use traqq_counts::store::redis::{self, RedisStore, lane_tags};
use traqq_disk::{Database, Upkeep};
use traqq_log::kafka::{self, KafkaConsumer, KafkaProducer};
use traqq_log::local::{self, LocalLog};
use traqq_log::nats::{self, NatsConsumer, NatsProducer};
use traqq_log::{Appender, Consumer, Start};
use traqq_pipeline::DeadLetters;

/// The store alone, for commands that do not count. An embedded one must be there already.
pub fn store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    if config.store_kind() != StoreKind::Redis && Database::inspect(&config.data)?.is_none() {
        let directory = config.data.directory.display();
        return Err(anyhow!(
            "there is no data directory at {directory}; is data.directory right? The first `traqq run` makes it"
        ));
    }
    open_store(config)
}

/// The same; an embedded store is made if it is not there.
pub fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    if config.store_kind() == StoreKind::Redis {
        return Ok(Arc::new(RedisStore::new(&config.store.redis)?));
    }
    let database = open_database(config)?;
    Ok(Arc::new(EmbeddedStore::open(&database, index_bytes(config), now)?))
}

/// Why a worker of this configuration may be running that counts into a store of this group and has
/// nothing to count just now; `None` where none is known.
pub fn idle_worker(config: &Config, group: &str) -> Option<String> {
    match config.broker.kind() {
        BrokerKind::Local if config.store_kind() == StoreKind::Redis && Database::is_in_use(&config.data) => {
            let directory = config.data.directory.display();
            Some(format!("{directory} is in use by a traqq, which may count into this store; stop it, and try again"))
        }
        BrokerKind::Kafka => {
            let members = config.broker.kafka.members(group).filter(|members| *members > 0)?;
            Some(format!(
                "group {group:?}, which counts into this store, has {members} members; stop them, and try again (one that was \
                 killed is forgotten after a moment)"
            ))
        }
        _ => None,
    }
}

/// Log and store as they are configured, and what looks after them.
pub(super) struct Backends {
    pub store: Arc<dyn Store>,
    pub consumer: Box<dyn Consumer>,
    pub dead_letters: DeadLetters,
    /// Where they go, for a person.
    pub dead_letters_to: String,
    /// `None` when events cannot come in here.
    pub appender: Option<Arc<dyn Appender>>,
    pub group: String,
    pub prefix: String,
    pub tags: Vec<String>,
    pub start: Start,
    pub local: Option<Local>,
}

/// What the data directory needs while it is used; dropped in this order.
pub(super) struct Local {
    pub upkeep: Vec<Upkeep>,
    pub log: Option<LocalLog>,
    pub database: Arc<Database>,
}

/// Of what the process may use, a part is the block cache and the write buffers of the database,
fn database_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 8
}

/// a part the values of the embedded store,
fn index_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 16
}

/// a part blocks that the worker has not had yet,
fn fresh_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 32
}

/// a part answers, from the replies they are made of until the client has taken them, of which one
/// answer may have half,
pub(super) fn answers_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 4
}

/// and a part requests that bring events: at least what one of them may need, packed, unpacked and
/// judged.
pub(super) fn ingest_bytes(config: &Config) -> usize {
    let largest = config.server.body_bytes_max.max(config.events.max_event_bytes);
    (config.worker.memory_max_bytes / 8).max(largest * 4 + (1 << 20))
}

fn open_database(config: &Config) -> anyhow::Result<Arc<Database>> {
    config.check_directory()?;
    Ok(Database::open(&config.data, database_bytes(config), &[local::rows::TREE, embedded::rows::TREE])?)
}

fn discard() -> String {
    "discard".to_owned()
}

impl Backends {
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let is_embedded = config.store_kind() != StoreKind::Redis;
        let is_local = config.broker.kind() == BrokerKind::Local;
        let database = if is_embedded || is_local { Some(open_database(config)?) } else { None };
        let embedded = match &database {
            Some(database) if is_embedded => Some(EmbeddedStore::open(database, index_bytes(config), age)?),
            _ => None,
        };
        let store: Arc<dyn Store> = match &embedded {
            Some(embedded) => Arc::new(embedded.clone()),
            None => open_store(config)?,
        };
        let (prefix, tags) = if is_embedded {
            (config.data.directory.display().to_string(), Vec::new())
        } else {
            refuse_bad("redis", redis::checks(&config.store.redis, now()).await)?;
            (config.store.redis.prefix.clone(), lane_tags(config.store.redis.lanes))
        };
        let mut upkeep: Vec<Upkeep> = embedded.iter().map(EmbeddedStore::upkeep).collect();
        let local = |upkeep| database.clone().map(|database| Local { upkeep, log: None, database });
        if config.broker.kind() == BrokerKind::Nats {
            let nats = &config.broker.nats;
            refuse_bad("nats", nats::checks(nats).await)?;
            let made = |error: ConfigError| error.within("broker.nats");
            let consumer = NatsConsumer::new(nats, config.worker.fetch_bytes_max()).await.map_err(made)?;
            let dead_letters = NatsProducer::dead_letters(nats).await.map_err(made)?;
            let appender = NatsProducer::ingest(nats).await.map_err(made)?;
            return Ok(Self {
                store,
                consumer: Box::new(consumer),
                dead_letters: DeadLetters::to(dead_letters.map(|producer| Arc::new(producer) as _)),
                dead_letters_to: nats.dead_letters().map_or_else(discard, |subject| format!("subject {subject}")),
                appender: Some(Arc::new(appender)),
                group: nats.group.clone(),
                prefix,
                tags,
                start: nats.start()?,
                local: local(upkeep),
            });
        }
        if !is_local {
            let kafka = &config.broker.kafka;
            let broker = kafka.clone();
            refuse_bad("kafka", tokio::task::spawn_blocking(move || kafka::checks(&broker)).await?)?;
            let consumer = KafkaConsumer::new(kafka, config.worker.fetch_bytes_max())?;
            let dead_letters = KafkaProducer::dead_letters(kafka)?;
            let appender = KafkaProducer::ingest(kafka)?;
            return Ok(Self {
                store,
                consumer: Box::new(consumer),
                dead_letters: DeadLetters::to(dead_letters.map(|producer| Arc::new(producer) as _)),
                dead_letters_to: kafka.dead_letters().map_or_else(discard, |topic| format!("topic {topic}")),
                appender: appender.map(|producer| Arc::new(producer) as Arc<dyn Appender>),
                group: kafka.group.clone(),
                prefix,
                tags,
                start: kafka.start()?,
                local: local(upkeep),
            });
        }
        let database = database.expect("the local log has a database");
        let log = LocalLog::open(&database, &config.broker.local, !is_embedded, fresh_bytes(config), now_ms)?;
        if let Some(embedded) = &embedded {
            say_what_is_missing(&log, embedded).await?;
        }
        upkeep.push(log.upkeep(age_ms));
        Ok(Self {
            store,
            consumer: Box::new(log.consumer()),
            dead_letters: DeadLetters::Publish(Arc::new(log.clone())),
            dead_letters_to: "GET /api/v1/dead-letters".to_owned(),
            appender: Some(Arc::new(log.clone())),
            group: config.broker.local.group.clone(),
            prefix,
            tags,
            start: Start::Earliest,
            local: Some(Local { upkeep, log: Some(log), database }),
        })
    }
}

/// The log may have lost records that are counted already, if the directory was damaged; their
/// offsets are not used again.
async fn say_what_is_missing(log: &LocalLog, store: &EmbeddedStore) -> anyhow::Result<()> {
    for (partition, checkpoint) in store.positions(0).await? {
        let missing = log.raise(&partition, checkpoint.position)?;
        if missing > 0 {
            tracing::error!(
                %partition, missing,
                "the log has lost records at its end that were counted already; the counts stand, a replay would not have them"
            );
        }
    }
    Ok(())
}

impl Local {
    pub async fn close(self) {
        let Self { upkeep, log, database } = self;
        drop(upkeep);
        if let Some(log) = log {
            log.close().await;
        }
        if let Err(error) = database.sync() {
            tracing::warn!(%error, "the data directory was not synced at the end");
        }
    }
}

/// Eviction, a replica, a missing permission or stream: counting must not begin. A server that is
/// down comes back.
fn refuse_bad(server: &'static str, checks: Vec<Check>) -> anyhow::Result<()> {
    for check in checks {
        match check.finding {
            Finding::Unavailable(text) => tracing::warn!(text, server, "starting all the same"),
            Finding::Bad(text) => return Err(anyhow!(text)),
            Finding::Warning(text) => tracing::warn!(text, check = check.name, server, "checks"),
            Finding::Good(_) => {}
        }
    }
    Ok(())
}
