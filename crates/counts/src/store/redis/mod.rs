//! Redis as a store: one script for each batch, on a server, the primary that Sentinels name, or
//! the node of a cluster that has a lane's slot.
//!
//! - `config`   `[store.redis]`
//! - `place`    where the server is
//! - `connect`  connections, and what is made sure of before the first commit on one
//! - `checks`   what `traqq doctor` looks at
//! - `commit`   a batch as arguments of `commit.lua`, and the session that sends it
//! - `shadow`   the copy of registers that saves sending elements twice
//! - `meta`     what the prefix knows about itself
//! - `read`     queries
//! - `restore`  keys as a whole, to and from another store
//! - `removal`  all keys of a prefix
//! - `explain`  a batch as commands a person can read
//! - `error`    what an error means

mod checks;
mod commit;
mod config;
mod connect;
mod error;
mod explain;
mod meta;
mod node;
mod place;
mod read;
mod removal;
mod restore;
mod shadow;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, RedisError, Value, cmd};
use tokio::sync::Mutex;

pub use checks::checks;
pub use config::Config;
pub use explain::commands;

use self::connect::Connector;
use self::node::Node;
use self::place::{Address, Place};
pub use super::keys::lane_tags;
use super::keys::{Keys, slot_of};
use super::{KeyDump, Meta, Positions, Quarantined, Read, Reply, Session, Store, StoreError, StoreResult, StoredKey};
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::{Bucket, Checkpoint, TopicPartition, TopicPartitionError};

pub struct RedisStore {
    connector: Connector,
    lanes: Vec<Keys>,
    root: Keys,
    shadow_bytes_max: usize,
    /// Connections for everything but commits, by the slot they are for; made when first needed,
    /// dropped when they fail.
    shared: HashMap<u16, Mutex<Option<Node>>>,
}

/// Why there is no answer.
struct Unanswered {
    error: StoreError,
    /// The connection was an old one and had died, as one does that a server or a proxy closed
    /// because it was idle. A question is asked once more on a new one; what writes never is, since
    /// it may have been done.
    is_stale: bool,
}

impl From<StoreError> for Unanswered {
    fn from(error: StoreError) -> Self {
        Self { error, is_stale: false }
    }
}

impl From<Unanswered> for StoreError {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.error
    }
}

impl RedisStore {
    /// Connects to nothing yet. `Err` says what is wrong with the configuration.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let connector = Connector::new(config)?;
        let tags = lane_tags(config.lanes);
        let lanes = match tags.len() {
            0 => vec![Keys::new(&config.prefix, None)],
            _ => tags.iter().map(|tag| Keys::new(&config.prefix, Some(tag))).collect(),
        };
        let mut store = Self {
            connector,
            lanes,
            root: Keys::new(&config.prefix, None),
            shadow_bytes_max: config.shadow_bytes_max,
            shared: HashMap::new(),
        };
        store.shared = store.homes().map(|keys| (store.slot(keys), Mutex::default())).collect();
        Ok(store)
    }

    /// The lanes, and the bare prefix where meta is.
    fn homes(&self) -> impl Iterator<Item = &Keys> {
        self.lanes.iter().chain((self.lanes.len() > 1).then_some(&self.root))
    }

    /// Where the keys of a lane are; of the bare prefix, where meta is. The same for all where one
    /// server has everything.
    fn slot(&self, keys: &Keys) -> u16 {
        if matches!(self.connector.place, Place::Cluster(_)) { slot_of(&keys.meta()) } else { 0 }
    }

    async fn node(&self, keys: &Keys) -> StoreResult<Node> {
        // One attempt at a time; whoever waits for it takes what it has found.
        let mut shared = self.shared[&self.slot(keys)].lock().await;
        if let Some(node) = &*shared {
            return Ok(node.clone());
        }
        let node = self.connector.connect(&keys.meta()).await?;
        *shared = Some(Node { is_new: false, ..node.clone() });
        Ok(node)
    }

    /// Sends a command once.
    async fn run(&self, keys: &Keys, command: &Cmd) -> Result<Value, Unanswered> {
        let mut node = self.node(keys).await?;
        let answer = node.connection.send_packed_command(command).await.and_then(Value::extract_error);
        match answer.as_ref().err().and_then(asked_elsewhere) {
            Some(to) => self
                .ask(&to, std::slice::from_ref(command))
                .await
                .map(|mut answers| answers.remove(0))?
                .extract_error()
                .map_err(|error| node.classify(&error).into()),
            None => self.settle(keys, &node, answer).await,
        }
    }

    /// Asks the node that a slot is moving to, for keys that have moved already; the answers may be
    /// errors.
    async fn ask(&self, to: &Address, commands: &[Cmd]) -> StoreResult<Vec<Value>> {
        let mut node = self.connector.connect_to(to).await?;
        let mut pipeline = redis::pipe();
        for command in commands {
            pipeline.cmd("ASKING").add_command(command.clone());
        }
        let answers = node.connection.send_packed_commands(&pipeline, 0, commands.len() * 2).await;
        let answers = answers.map_err(|error| node.classify(&error))?;
        Ok(answers.into_iter().skip(1).step_by(2).collect())
    }

    /// A question, whose command changes nothing.
    async fn query<T: FromRedisValue>(&self, keys: &Keys, command: &Cmd) -> StoreResult<T> {
        let value = match self.run(keys, command).await {
            Err(unanswered) if unanswered.is_stale => self.run(keys, command).await,
            answer => answer,
        };
        parse(value?)
    }

    /// A command that may change something.
    async fn change<T: FromRedisValue>(&self, keys: &Keys, command: &Cmd) -> StoreResult<T> {
        parse(self.run(keys, command).await?)
    }

    /// Classifies an answer; a connection that failed is not used again.
    async fn settle<T>(&self, keys: &Keys, node: &Node, answer: Result<T, RedisError>) -> Result<T, Unanswered> {
        let failed = match answer {
            Ok(value) => return Ok(value),
            Err(failed) => failed,
        };
        let error = node.classify(&failed);
        let is_lost = matches!(error, StoreError::Reconnect(_));
        if is_lost {
            let mut shared = self.shared[&self.slot(keys)].lock().await;
            // Somebody else may have a new one already.
            if shared.as_ref().is_some_and(|known| Arc::ptr_eq(&known.address, &node.address)) {
                *shared = None;
            }
        }
        // A server that is slow to answer would not be faster the second time.
        Err(Unanswered { error, is_stale: is_lost && !node.is_new && !failed.is_timeout() })
    }
}

fn unexpected(error: redis::ParsingError) -> StoreError {
    StoreError::Stop(ErrorLine::of(format!("redis: unexpected answer: {error}"), error))
}

fn parse<T: FromRedisValue>(value: Value) -> StoreResult<T> {
    T::from_redis_value(value).map_err(unexpected)
}

/// Where a key is that is not here any more, while the rest of its slot still is.
fn asked_elsewhere(error: &RedisError) -> Option<Address> {
    let (address, _) = error.redirect_node().filter(|_| error.code() == Some("ASK"))?;
    let (host, port) = address.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

fn parse_positions(pairs: Vec<(String, String)>) -> StoreResult<Positions> {
    pairs
        .into_iter()
        .map(|(partition, checkpoint)| {
            let partition: TopicPartition = partition.parse().map_err(|error: TopicPartitionError| {
                StoreError::Stop(ErrorLine::from_error(error).within("checkpoint"))
            })?;
            let checkpoint: Checkpoint = checkpoint.parse()?;
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

    async fn lane_meta(&self, lane: usize) -> StoreResult<Option<Meta>> {
        meta::load_from(self, &self.lanes[lane]).await
    }

    async fn create(&self, meta: &Meta) -> StoreResult<Meta> {
        meta::create(self, meta).await
    }

    async fn begin_lane(&self, lane: usize, meta: &Meta) -> StoreResult<()> {
        meta::begin_lane(self, lane, meta).await
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
        meta::adopt(self, starts).await
    }

    async fn replace_rules(&self, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool> {
        meta::replace_rules(self, expected_plan, meta).await
    }

    async fn extend(&self, lane: usize, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
        restore::extend(self, &self.lanes[lane], expiries).await
    }

    async fn disconnect(&self) {
        for shared in self.shared.values() {
            *shared.lock().await = None;
        }
    }

    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>> {
        let node = self.connector.connect_clean(&self.lanes[lane].meta()).await?;
        let limits = meta::limits(self).await?;
        let session =
            commit::RedisSession::new(node, self.lanes[lane].clone(), limits, self.shadow_bytes_max / self.lanes.len());
        Ok(Box::new(session.load_script().await?))
    }

    async fn positions(&self, lane: usize) -> StoreResult<Positions> {
        let keys = &self.lanes[lane];
        parse_positions(self.query(keys, cmd("HGETALL").arg(keys.checkpoint())).await?)
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
        self.change(keys, command.arg(partition.to_string()).arg(from).arg(to.to_string())).await
    }

    async fn quarantined(&self, lane: usize) -> StoreResult<Vec<Quarantined>> {
        let keys = &self.lanes[lane];
        let pairs: Vec<(String, String)> = self.query(keys, cmd("HGETALL").arg(keys.quarantine())).await?;
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

    async fn size(&self) -> StoreResult<u64> {
        removal::size(self).await
    }

    async fn begin_removal(&self) -> StoreResult<()> {
        removal::begin(self).await
    }

    async fn remove_all(&self) -> StoreResult<u64> {
        removal::remove(self).await
    }

    async fn read(&self, lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>> {
        read::read(self, &self.lanes[lane], reads).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags were looked for before their number was judged: with more lanes than slots there is
    /// none for some, and the search took minutes until it ended in a panic.
    #[test]
    fn more_lanes_than_slots_are_refused_at_once() {
        for lanes in [0, 20_000, usize::MAX] {
            let error = RedisStore::new(&Config { lanes, ..Config::default() }).err().unwrap();
            assert!(error.to_string().contains("store.redis.lanes"), "{error}");
        }
    }
}
