//! A server of Redis that is connected, and what it says of itself.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError, Value, cmd};

use super::error::classify;
use crate::store::{StoreError, StoreResult};
use traqq_core::error::ErrorLine;
use traqq_core::model::Finding;

/// A connection, and whose it is.
#[derive(Clone)]
pub struct Node {
    pub connection: MultiplexedConnection,
    /// Made for what is asked now; an old one may have been closed meanwhile.
    pub is_new: bool,
    /// For messages: no user, no password.
    pub address: Arc<str>,
}

impl Node {
    pub fn classify(&self, error: &RedisError) -> StoreError {
        classify(error, &self.address)
    }

    pub async fn send(&mut self, command: &Cmd) -> StoreResult<Value> {
        let answer = self.connection.send_packed_command(command).await.and_then(Value::extract_error);
        answer.map_err(|error| self.classify(&error))
    }

    pub async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> StoreResult<T> {
        let value = self.send(command).await?;
        T::from_redis_value(value).map_err(|error| {
            let text = format!("redis {}: unexpected answer: {error}", self.address);
            StoreError::Stop(ErrorLine::of(text, error))
        })
    }

    pub async fn info(&mut self) -> StoreResult<Info> {
        self.query(cmd("INFO").arg("all")).await.map(Info)
    }
}

/// The answer of `INFO`.
pub struct Info(String);

impl Info {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.field(name) == Some(value)
    }

    pub fn refuse_replica(&self, node: &Node) -> StoreResult<()> {
        if self.is("role", "master") {
            return Ok(());
        }
        Err(StoreError::reconnect(format!("redis {}: is a replica; looking for the primary", node.address)))
    }

    /// Whether the server evicts what it has no room for.
    pub fn eviction(&self, address: &str) -> Finding {
        match self.field("maxmemory_policy") {
            Some("noeviction") => Finding::Good("noeviction".to_owned()),
            policy => Finding::Bad(format!(
                "redis {address}: maxmemory-policy is {}, which would evict counts; run `redis-cli CONFIG SET maxmemory-policy noeviction` and put it in redis.conf",
                policy.unwrap_or("unknown")
            )),
        }
    }
}
