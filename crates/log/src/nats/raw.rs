//! One message as the stream's leader has it, whatever its headers look like.
//!
//! The client ends the connection over headers that it cannot read: bytes that are not UTF-8, a
//! name with a space, a line without a colon. Servers store them all the same. Asked for by itself
//! a message comes as JSON, with its headers as mere bytes.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::headers;
use super::link::Link;
use crate::BrokerResult;

/// The message of a sequence, or with a filter the first that it lets through from there on.
#[derive(Serialize)]
struct Question<'a> {
    seq: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
}

/// The last message that a filter lets through.
#[derive(Serialize)]
struct LastQuestion<'a> {
    last_by_subj: &'a str,
}

#[derive(Deserialize)]
struct Found {
    message: RawMessage,
}

pub struct Stored {
    pub sequence: i64,
    pub published_ms: i64,
    pub payload: Vec<u8>,
    /// With U+FFFD for bytes that are not UTF-8.
    subject: String,
    headers: Vec<u8>,
}

impl Link {
    /// A message of the counted stream; `None` when there is none.
    pub async fn stored(&self, sequence: i64, filter: Option<&str>) -> BrokerResult<Option<Stored>> {
        self.stored_in(&self.config.stream, sequence, filter).await
    }

    /// The same of any stream.
    pub async fn stored_in(&self, stream: &str, sequence: i64, filter: Option<&str>) -> BrokerResult<Option<Stored>> {
        let what = format!("message {sequence}");
        let question = Question { seq: sequence, next_by_subj: filter };
        self.message(stream, &what, &question).await
    }

    /// The sequence of the last message that a filter lets through.
    pub async fn last(&self, filter: &str) -> BrokerResult<Option<i64>> {
        let question = LastQuestion { last_by_subj: filter };
        let found = self.message(&self.config.stream, "the last message", &question).await?;
        Ok(found.map(|stored| stored.sequence))
    }

    /// The value of a key in the bucket.
    pub async fn entry(&self, key: &str) -> BrokerResult<Option<Vec<u8>>> {
        let bucket = self.config.bucket();
        let question = LastQuestion { last_by_subj: &format!("$KV.{bucket}.{key}") };
        let found = self.message(&format!("KV_{bucket}"), key, &question).await?;
        // What stands for an entry that was deleted has no value.
        Ok(found.map(|stored| stored.payload).filter(|value| !value.is_empty()))
    }

    /// Removes entries of the bucket that the client cannot read; says how many there were.
    pub async fn remove_unreadable_entries(&self) -> BrokerResult<usize> {
        let (stream, mut next, mut removed) = (format!("KV_{}", self.config.bucket()), 1, 0);
        while let Some(stored) = self.stored_in(&stream, next, Some(">")).await? {
            next = stored.sequence + 1;
            if !stored.is_readable() {
                self.purge(&stream, &stored.subject).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    async fn purge(&self, stream: &str, subject: &str) -> BrokerResult<()> {
        let question = serde_json::json!({ "filter": subject });
        let asked = self.jetstream().request(format!("STREAM.PURGE.{stream}"), &question).await;
        match asked.map_err(|error| self.failed("purging", error))? {
            Response::Ok(serde_json::Value::Object(_)) => Ok(()),
            Response::Ok(_) => Err(self.retry("purging", "an answer that is none")),
            Response::Err { error } => Err(self.failed("purging", error)),
        }
    }

    async fn message<Q: Serialize>(&self, stream: &str, what: &str, question: &Q) -> BrokerResult<Option<Stored>> {
        let subject = format!("STREAM.MSG.GET.{stream}");
        let message: RawMessage =
            match self.jetstream().request(subject, question).await.map_err(|error| self.failed(what, error))? {
                Response::Ok(Found { message }) => message,
                Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => return Ok(None),
                Response::Err { error } => return Err(self.failed(what, error)),
            };
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| self.failed(what, error));
        Ok(Some(Stored {
            sequence: message.sequence as i64,
            published_ms: (message.time.unix_timestamp_nanos() / 1_000_000) as i64,
            payload: decode(&message.payload)?,
            subject: message.subject,
            headers: decode(message.headers.as_deref().unwrap_or_default())?,
        }))
    }
}

impl Stored {
    /// Whether the client can read it when it comes from a consumer.
    pub fn is_readable(&self) -> bool {
        headers::is_readable(&self.subject, &self.headers)
    }

    /// Names and values, as far as they can be made out.
    pub fn headers(&self) -> Vec<(String, String)> {
        headers::parse(&self.headers)
    }
}
