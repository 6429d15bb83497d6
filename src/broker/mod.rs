//! Where the log is. A [`Consumer`] hands out records of the partitions it was given, a [`Producer`] takes dead letters.
//!
//! # The rebalance contract
//!
//! A consumer is driven by one thread that owns it. Partitions come and go as events of [`Consumer::poll`]:
//!
//! - [`Event::Assigned`] offers partitions. Nothing is fetched until [`Consumer::open`] says from which offset, one partition at a
//!   time or many. Nobody waits for it. Opening an open partition moves it.
//! - [`Event::Revoked`] asks for partitions back. Records of them may still arrive until [`Consumer::release`]; the group
//!   waits for that, so it comes within the drain bound. With `lost` they belong to somebody else already.
//! - Every [`RecordBatch`] carries the generation its partition was opened or sought with last; after a seek no record of
//!   an older one is delivered.
//!
//! Positions handed to [`Consumer::commit`] are a courtesy for lag tools. Nothing reads them back but the mark beside them.

pub mod kafka;
pub mod local;
pub mod memory;
pub mod nats;
mod throttle;

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{Finding, RecordBatch, TopicPartition};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached or refuses for now.
    #[error("{0}")]
    Retry(String),
    /// A person must act.
    #[error("{0}")]
    Stop(String),
}

impl From<BrokerError> for Finding {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Stop(text) => Self::Bad(text),
            BrokerError::Retry(text) => Self::Unavailable(text),
        }
    }
}

pub type BrokerResult<T> = Result<T, BrokerError>;

pub enum Event {
    Records(RecordBatch),
    Assigned(Vec<TopicPartition>),
    Revoked {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    /// The broker no longer has, or not yet, an offset that was asked for.
    OutOfRange,
    /// Positions did not reach the broker; they are worth sending again.
    CommitFailed(String),
    /// Something went wrong; polling goes on.
    Trouble(String),
}

/// What the log holds of a partition: `[low, high)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    pub low: i64,
    pub high: i64,
}

/// Where a partition is to be read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opening {
    pub partition: TopicPartition,
    /// The first record to deliver: that at the position, or the one applied last, which lies below it.
    pub offset: i64,
    /// The first record that is not counted yet.
    pub position: i64,
    pub generation: u64,
}

/// Where counting begins on an empty store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    Earliest,
    Latest,
    /// The group's committed offset; earliest without one.
    Committed,
    /// The first record at or after this instant.
    TimeMs(i64),
}

impl Start {
    /// `earliest`, `latest`, `committed`, or a time; `key` is where it stands in the configuration.
    pub fn parse(text: &str, key: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            "committed" => Ok(Self::Committed),
            time => chrono::DateTime::parse_from_rfc3339(time)
                .map(|time| Self::TimeMs(time.timestamp_millis()))
                .map_err(|_| {
                    format!(
                        "{key} = {time:?} is neither earliest, latest, committed nor a time like 2026-01-31T00:00:00Z"
                    )
                }),
        }
    }
}

/// What is committed to the broker for a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub partition: TopicPartition,
    pub position: i64,
    /// Our note beside the offset, see [`crate::worker`].
    pub note: String,
}

pub trait Consumer: Send {
    /// Waits up to `timeout` for something to happen, and returns at most about `bytes_max` of records.
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>>;

    /// Begins to fetch partitions that were offered, or moves those that are open.
    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()>;

    /// Stops fetching a partition that stays ours, until it is opened again or released.
    fn halt(&mut self, partition: &TopicPartition);

    /// Gives partitions back.
    fn release(&mut self, partitions: &[TopicPartition]);

    /// Stops or resumes fetching of all partitions; the group is kept alive by polling.
    fn pause(&mut self, paused: bool);

    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks>;

    /// The ends of partitions as far as they are known without asking.
    fn ends(&self) -> Vec<(TopicPartition, i64)>;

    /// Why nothing can be read, as far as that is known without asking; `None` while there is a connection.
    fn away(&self) -> Option<String> {
        None
    }

    /// Partitions that are open and cannot be read, each with the reason, as far as that is known
    /// without asking. One that is being read, or has nothing to read, is not among them.
    fn unread(&self) -> Vec<(TopicPartition, String)> {
        Vec::new()
    }

    fn commit(&mut self, marks: &[Mark], wait: bool) -> BrokerResult<()>;

    /// Every partition of the topics that are subscribed to.
    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>>;

    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>>;

    /// What is committed for the group, where something is.
    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>>;

    /// Leaves the group.
    fn close(&mut self);
}

/// A record to publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: Option<i64>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProduceError {
    #[error("{0}")]
    Retry(String),
    /// The destination will never take this message: it is too large, or something in it is not
    /// allowed there. A smaller and plainer one may pass.
    #[error("{0}")]
    Refused(String),
}

#[async_trait]
pub trait Producer: Send + Sync {
    /// Returns when the log has the message.
    async fn send(&self, message: &Message) -> Result<(), ProduceError>;
}

/// Events of one request on their way into the log, whichever it is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Events {
    buffer: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Item {
    key_len: Option<u32>,
    value_len: u32,
}

impl Events {
    pub fn push(&mut self, key: Option<&[u8]>, value: &[u8]) {
        self.buffer.extend_from_slice(key.unwrap_or_default());
        self.buffer.extend_from_slice(value);
        self.items.push(Item { key_len: key.map(|key| key.len() as u32), value_len: value.len() as u32 });
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Makes room for so many bytes of keys and values.
    pub fn reserve(&mut self, bytes: usize) {
        self.buffer.reserve(bytes);
    }

    /// Keys and values end to end.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Key and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        let mut start = 0;
        self.items.iter().map(move |item| {
            let key_end = start + item.key_len.unwrap_or(0) as usize;
            let end = key_end + item.value_len as usize;
            let event = (item.key_len.map(|_| &self.buffer[start..key_end]), &self.buffer[key_end..end]);
            start = end;
            event
        })
    }
}

/// What makes a repeated request count once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idempotency {
    pub key: String,
    /// Of the request's body; the same key with another body is a mistake of the client's.
    pub fingerprint: u64,
    /// What the first request is answered, and every repetition of it.
    pub counts: RequestCounts,
}

/// What became of the events of a request.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RequestCounts {
    pub accepted: u64,
    pub rejected: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Appended {
    New,
    /// The log has had this request before; this became of it then.
    Replayed(RequestCounts),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// The log cannot take it now. Whether it did is known to be "no" unless the text says otherwise.
    #[error("{0}")]
    Retry(String),
    /// An event that the log will never take.
    #[error("event {index}: {reason}")]
    Refused { index: usize, reason: String },
    #[error("the idempotency key was used before, with another body")]
    KeyReused,
    /// This log cannot remember keys.
    #[error("{0}")]
    KeysUnsupported(String),
    /// This log remembers as many keys as it may; a request without a key is taken.
    #[error("{0}")]
    KeysFull(String),
    /// As this log is configured it takes no events, however often they are sent; the text says
    /// what a person must change.
    #[error("{0}")]
    Impossible(String),
}

/// The end of the log where events come in.
#[async_trait]
pub trait Appender: Send + Sync {
    /// The field whose value becomes the record's key, which says where it goes.
    fn key_field(&self) -> Option<&str>;

    /// What became of a request that the log has had before under this key; `None` when it has not.
    async fn replayed(&self, _key: &str, _fingerprint: u64) -> Result<Option<RequestCounts>, AppendError> {
        Ok(None)
    }

    /// Returns when the log has all of them, as durably as it is configured.
    async fn append(&self, events: Events, idempotency: Option<Idempotency>) -> Result<Appended, AppendError>;
}
