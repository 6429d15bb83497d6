//! What to do about a failure of the log.

use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::Finding;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached or refuses for now.
    #[error(transparent)]
    Retry(ErrorLine),
    /// A person must act.
    #[error(transparent)]
    Stop(ErrorLine),
}

impl BrokerError {
    pub fn retry(line: impl Into<ErrorLine>) -> Self {
        Self::Retry(line.into())
    }

    pub fn stop(line: impl Into<ErrorLine>) -> Self {
        Self::Stop(line.into())
    }
}

impl From<ConfigError> for BrokerError {
    fn from(error: ConfigError) -> Self {
        Self::stop(error)
    }
}

impl From<BrokerError> for Finding {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Stop(line) => Self::Bad(line.to_string()),
            BrokerError::Retry(line) => Self::Unavailable(line.to_string()),
        }
    }
}

pub type BrokerResult<T> = Result<T, BrokerError>;
