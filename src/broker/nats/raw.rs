//! One message as the stream's leader has it, whatever its headers look like.
//!
//! The client ends the connection over headers that it cannot read: bytes that are not UTF-8, a name with a space, a line without a colon.
//! Servers store them all the same. Asked for by itself a message comes as JSON, with its headers as mere bytes.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::headers;
use super::link::Link;
use crate::broker::BrokerResult;

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
    /// `None` when there is none.
    pub async fn stored(&self, sequence: i64, filter: Option<&str>) -> BrokerResult<Option<Stored>> {
        let what = format!("message {sequence}");
        let failed = |error: &dyn std::fmt::Display| self.retry(&what, error);
        let Some(message) = self.message(&what, &Question { seq: sequence, next_by_subj: filter }).await? else {
            return Ok(None);
        };
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| failed(&error));
        Ok(Some(Stored {
            sequence: message.sequence as i64,
            published_ms: (message.time.unix_timestamp_nanos() / 1_000_000) as i64,
            payload: decode(&message.payload)?,
            subject: message.subject,
            headers: decode(message.headers.as_deref().unwrap_or_default())?,
        }))
    }

    /// The sequence of the last message that a filter lets through.
    pub async fn last(&self, filter: &str) -> BrokerResult<Option<i64>> {
        let message = self.message("the last message", &LastQuestion { last_by_subj: filter }).await?;
        Ok(message.map(|message| message.sequence as i64))
    }

    async fn message<Q: Serialize>(&self, what: &str, question: &Q) -> BrokerResult<Option<RawMessage>> {
        let failed = |error: &dyn std::fmt::Display| self.retry(what, error);
        let subject = format!("STREAM.MSG.GET.{}", self.config.stream);
        match self.jetstream().request(subject, question).await.map_err(|error| failed(&error))? {
            Response::Ok(Found { message }) => Ok(Some(message)),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Response::Err { error } => Err(failed(&error)),
        }
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
