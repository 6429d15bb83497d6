//! Where reading begins on an empty ledger.

use traqq_core::error::ConfigError;

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
    pub fn parse(text: &str, key: &str) -> Result<Self, ConfigError> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            "committed" => Ok(Self::Committed),
            time => chrono::DateTime::parse_from_rfc3339(time)
                .map(|time| Self::TimeMs(time.timestamp_millis()))
                .map_err(|error| {
                    let text = format!(
                        "{key} = {time:?} is neither earliest, latest, committed nor a time like 2026-01-31T00:00:00Z"
                    );
                    ConfigError::of(text, error)
                }),
        }
    }
}
