//! Redis as a store: one node, one script for each batch.
//!
//! - `connect`  connections, and what is checked before the first commit on one
//! - `commit`   a batch as arguments of `commit.lua`, and the session that sends it
//! - `shadow`   the copy of registers that saves sending elements twice
//! - `meta`     what the prefix knows about itself
//! - `read`     queries
//! - `restore`  keys as a whole, to and from another store
//! - `explain`  a batch as commands a person can read
//! - `error`    what an error means

mod commit;
mod connect;
mod error;
mod explain;
mod meta;
mod read;
mod restore;
mod shadow;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, Value, cmd};
use tokio::sync::Mutex;

pub use connect::{Config, checks};
pub use explain::commands;

use self::connect::Connector;
use super::keys::Keys;
pub use super::keys::lane_tags;
use super::{KeyDump, Meta, Positions, Quarantined, Read, Reply, Session, Store, StoreError, StoreResult, StoredKey};
use crate::model::{Checkpoint, TopicPartition};

pub struct RedisStore {
    connector: Connector,
    lanes: Vec<Keys>,
    root: Keys,
    shadow_bytes_max: usize,
    /// The connection for everything but commits; made when first needed, dropped when it fails.
    shared: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    /// Connects to nothing yet. `Err` says what is wrong with the configuration.
    pub fn new(config: &Config) -> Result<Self, String> {
        let tags = lane_tags(config.lanes);
        let lanes = match tags.len() {
            0 => vec![Keys::new(&config.prefix, None)],
            _ => tags.iter().map(|tag| Keys::new(&config.prefix, Some(tag))).collect(),
        };
        Ok(Self {
            connector: Connector::new(config)?,
            lanes,
            root: Keys::new(&config.prefix, None),
            shadow_bytes_max: config.shadow_bytes_max,
            shared: Mutex::new(None),
        })
    }

    async fn connection(&self) -> StoreResult<MultiplexedConnection> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = &*shared {
            return Ok(connection.clone());
        }
        let connection = self.connector.connect().await?;
        *shared = Some(connection.clone());
        Ok(connection)
    }

    async fn run(&self, command: &Cmd) -> StoreResult<Value> {
        let mut connection = self.connection().await?;
        let answer = connection.send_packed_command(command).await.and_then(Value::extract_error);
        self.settle(answer).await
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> StoreResult<T> {
        let value = self.run(command).await?;
        T::from_redis_value(value).map_err(|error| {
            StoreError::Stop(format!("redis {}: unexpected answer: {error}", self.connector.address()))
        })
    }

    /// Classifies an answer; a connection that failed is not used again.
    async fn settle<T>(&self, answer: Result<T, redis::RedisError>) -> StoreResult<T> {
        match answer {
            Ok(value) => Ok(value),
            Err(error) => {
                let error = self.connector.classify(&error);
                if matches!(error, StoreError::Reconnect(_)) {
                    *self.shared.lock().await = None;
                }
                Err(error)
            }
        }
    }
}

fn parse_positions(pairs: Vec<(String, String)>) -> StoreResult<Positions> {
    pairs
        .into_iter()
        .map(|(partition, checkpoint)| {
            let partition: TopicPartition =
                partition.parse().map_err(|error| StoreError::Stop(format!("checkpoint: {error}")))?;
            let checkpoint: Checkpoint = checkpoint.parse().map_err(StoreError::Stop)?;
            Ok((partition, checkpoint))
        })
        .collect()
}

#[async_trait]
impl Store for RedisStore {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    async fn meta(&self) -> StoreResult<Option<Meta>> {
        meta::load(self).await
    }

    async fn create_at(&self, meta: &Meta, positions: &Positions) -> StoreResult<Meta> {
        meta::create(self, meta, positions).await
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
        meta::adopt(self, starts).await
    }

    async fn replace_rules(&self, expected_plan: &str, meta: &Meta) -> StoreResult<()> {
        meta::replace_rules(self, expected_plan, meta).await
    }

    async fn disconnect(&self) {
        *self.shared.lock().await = None;
    }

    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>> {
        let connection = self.connector.connect_clean(&self.lanes[lane].meta()).await?;
        let limits = meta::limits(self).await?;
        let session = commit::RedisSession::new(
            connection,
            self.connector.clone(),
            self.lanes[lane].clone(),
            limits,
            self.shadow_bytes_max,
        );
        Ok(Box::new(session.load_script().await?))
    }

    async fn positions(&self, lane: usize) -> StoreResult<Positions> {
        parse_positions(self.query(cmd("HGETALL").arg(self.lanes[lane].checkpoint())).await?)
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> StoreResult<bool> {
        const SCRIPT: &str = "local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
            if stored ~= ARGV[2] then return 0 end
            redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
            return 1";
        let keys = &self.lanes[partition.lane(self.lanes.len())];
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        let mut command = cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(keys.checkpoint());
        self.query(command.arg(partition.to_string()).arg(from).arg(to.to_string())).await
    }

    async fn quarantined(&self, lane: usize) -> StoreResult<Vec<Quarantined>> {
        let pairs: Vec<(String, String)> = self.query(cmd("HGETALL").arg(self.lanes[lane].quarantine())).await?;
        Ok(pairs.into_iter().map(|(key, error)| Quarantined { key, error }).collect())
    }

    async fn keys(&self, lane: usize) -> StoreResult<Vec<StoredKey>> {
        restore::keys(self, &self.lanes[lane]).await
    }

    async fn restore_keys(&self, lane: usize, keys: &[KeyDump]) -> StoreResult<()> {
        restore::restore(self, &self.lanes[lane], keys).await
    }

    async fn restore_quarantine(&self, lane: usize, quarantined: &[Quarantined]) -> StoreResult<()> {
        restore::restore_quarantine(self, &self.lanes[lane], quarantined).await
    }

    async fn read(&self, lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>> {
        read::read(self, &self.lanes[lane], reads).await
    }
}
