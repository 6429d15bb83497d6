//! The configuration: gathers each component's own section. Defaults < file < environment < flags;
//! what is unknown is an error.

mod environment;
mod load;
mod setting;
mod show;
mod trust;
mod warnings;

pub use load::{Loaded, load, parse, starter};
pub use warnings::beyond_loopback;

use serde::{Deserialize, Serialize};

use traqq_core::decode::EventRules;
use traqq_counts::mapping::{BucketRules, Mapping, Rules, ValidRules};
use traqq_counts::store::redis;
use traqq_log::{kafka, local, nats};

use crate::{server, telemetry};
use traqq_core::error::ConfigError;

/// A configuration file.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub broker: Broker,
    pub store: Store,
    pub data: traqq_disk::Config,
    pub mapping: Mapping,
    pub events: EventRules,
    pub buckets: BucketRules,
    pub worker: traqq_pipeline::Config,
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
    fn check(&self) -> Result<(), ConfigError> {
        let kind = self.kind();
        let others = [
            ("kafka", BrokerKind::Kafka, self.kafka != kafka::Config::default()),
            ("nats", BrokerKind::Nats, self.nats != nats::Config::default()),
        ];
        for (name, other, is_set) in others {
            if is_set && other != kind {
                let kind = serde_json::to_value(kind).expect("a name is JSON");
                return Err(format!("broker.kind is {kind}, but [broker.{name}] is set; remove one of them").into());
            }
        }
        match kind {
            BrokerKind::Kafka => self.kafka.check(),
            BrokerKind::Nats => self.nats.check(),
            _ => self.local.check(),
        }
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
    pub fn check_worker(&self) -> Result<ValidRules, ConfigError> {
        let rules = self.rules().validate().map_err(ConfigError::from_error)?;
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

    fn check_store(&self) -> Result<(), ConfigError> {
        match self.store_kind() {
            StoreKind::Redis => redis::RedisStore::new(&self.store.redis).map(|_| ()),
            _ if self.store.redis != redis::Config::default() => {
                Err("store.kind is \"embedded\", but [store.redis] is set; remove one of them".into())
            }
            _ => Ok(()),
        }
    }

    /// What a sidecar needs.
    pub fn check_server(&self) -> Result<(), ConfigError> {
        if self.store_kind() == StoreKind::Embedded {
            return Err("the embedded store belongs to one process, which answers queries itself: ask `traqq run`, or set store.redis.url for a \
                        sidecar of Redis".into());
        }
        self.check_store()?;
        self.server.check()
    }
}
