//! What to do about a failure of the log.

use traqq_core::model::Finding;

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
