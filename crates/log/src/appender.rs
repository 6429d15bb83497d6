//! The end of the log where events come in.

use async_trait::async_trait;
use traqq_core::error::ErrorLine;

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
    /// The log cannot take it now. Whether it did is known to be "no" unless the text says
    /// otherwise.
    #[error(transparent)]
    Retry(ErrorLine),
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
    #[error(transparent)]
    Impossible(ErrorLine),
}

impl AppendError {
    pub fn retry(line: impl Into<ErrorLine>) -> Self {
        Self::Retry(line.into())
    }

    pub fn impossible(line: impl Into<ErrorLine>) -> Self {
        Self::Impossible(line.into())
    }
}

/// The end of the log where events come in. Called by many tasks at a time; no call blocks its
/// thread.
#[async_trait]
pub trait Appender: Send + Sync {
    /// The field whose value becomes the record's key, which says where it goes.
    fn key_field(&self) -> Option<&str>;

    /// What became of a request that the log has had before under this key; `None` when it has not.
    /// Asked before a request is judged, so that a repetition costs little; a log that cannot say
    /// it need not. [`AppendError::KeyReused`] when the fingerprint is another.
    async fn replayed(&self, _key: &str, _fingerprint: u64) -> Result<Option<RequestCounts>, AppendError> {
        Ok(None)
    }

    /// Returns when the log has all of them, in order where they have one partition, as durably as
    /// it is configured. With an [`Idempotency`] that the log has had before it takes none of them
    /// and returns [`Appended::Replayed`]: key and events are remembered in one step, or a request
    /// whose answer was lost could count twice. A log that cannot remember keys answers
    /// [`AppendError::KeysUnsupported`] rather than take the events.
    ///
    /// An error says that none of them was taken, unless its text says that nobody knows.
    async fn append(&self, events: Events, idempotency: Option<Idempotency>) -> Result<Appended, AppendError>;
}
