//! The end of the log where dead letters go.

use async_trait::async_trait;
use traqq_core::error::ErrorLine;

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
    #[error(transparent)]
    Retry(ErrorLine),
    /// The destination will never take this message: it is too large, or something in it is not
    /// allowed there. A smaller and plainer one may pass.
    #[error(transparent)]
    Refused(ErrorLine),
}

impl ProduceError {
    pub fn retry(line: impl Into<ErrorLine>) -> Self {
        Self::Retry(line.into())
    }

    pub fn refused(line: impl Into<ErrorLine>) -> Self {
        Self::Refused(line.into())
    }
}

/// Where dead letters go. Called by many tasks at a time.
#[async_trait]
pub trait Producer: Send + Sync {
    /// Returns when the destination has the message, as durably as it is configured. Called again
    /// after [`ProduceError::Retry`], for as long as it takes, and for the same record after a
    /// restart: delivery is at least once.
    async fn send(&self, message: &Message) -> Result<(), ProduceError>;
}
