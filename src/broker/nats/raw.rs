//! One message as the stream's leader has it, whatever its headers look like.
//!
//! The client ends the connection over headers that it cannot read: bytes that are not UTF-8, a name with a space, a line without a colon.
//! Servers store them all the same. Asked for by itself a message comes as JSON, with its headers as mere bytes.

use std::str::FromStr;

use async_nats::HeaderName;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::link::Link;
use crate::broker::BrokerResult;

const VERSION: &str = "NATS/1.0";

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
        match self.jetstream.request(subject, question).await.map_err(|error| failed(&error))? {
            Response::Ok(Found { message }) => Ok(Some(message)),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Response::Err { error } => Err(failed(&error)),
        }
    }
}

impl Stored {
    /// Whether the client can read it when it comes from a consumer.
    pub fn is_readable(&self) -> bool {
        let is_header = |line: &str| {
            line.is_empty()
                || line.starts_with(char::is_whitespace)
                || line.split_once(':').is_some_and(|(name, _)| HeaderName::from_str(name).is_ok())
        };
        let Ok(text) = std::str::from_utf8(&self.headers) else { return false };
        let mut lines = text.lines();
        lines.next().is_none_or(|line| line.trim_end() == VERSION) && lines.all(is_header)
    }

    /// Names and values, as far as they can be made out.
    pub fn headers(&self) -> Vec<(String, String)> {
        let text = String::from_utf8_lossy(&self.headers);
        let mut headers: Vec<(String, String)> = Vec::new();
        for line in text.lines().skip(1) {
            match (line.split_once(':'), headers.last_mut()) {
                (_, Some((_, value))) if line.starts_with(char::is_whitespace) => value.push_str(line.trim_end()),
                (Some((name, value)), _) => headers.push((name.to_owned(), value.trim().to_owned())),
                (None, _) => {}
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(headers: &[u8]) -> Stored {
        Stored { sequence: 1, published_ms: 0, payload: Vec::new(), headers: headers.to_vec() }
    }

    #[test]
    fn headers_that_the_client_cannot_read_are_known_and_read_all_the_same() {
        for readable in [&b""[..], b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: 1\r\nB: 2\r\n more\r\n\r\n"] {
            assert!(stored(readable).is_readable(), "{readable:?}");
        }
        for odd in [
            &b"NATS/1.0\r\nA: \xe4\r\n\r\n"[..],
            b"NATS/1.0\r\nA b: 1\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0 503\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert!(!stored(odd).is_readable(), "{odd:?}");
        }
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = stored(b"NATS/1.0\r\nA: 1\r\n 2\r\nB b:\xe4\r\nno colon\r\n\r\n").headers();
        assert_eq!(headers, [pair("A", "1 2"), pair("B b", "\u{fffd}")]);
    }
}
