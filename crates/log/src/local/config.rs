//! `[broker.local]`.

use serde::{Deserialize, Serialize};

use traqq_core::error::ConfigError;
use traqq_core::model::Retention;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Partitions of the log. They can become more, never fewer.
    pub partitions: i32,
    /// The field whose value says which partition an event goes to, as Kafka's key would; needed
    /// with more than one.
    pub partition_by: Option<String>,
    /// What this log is counted under, as a consumer group of Kafka would be.
    pub group: String,
    /// Records are removed when they are older than this and all readers have read them.
    pub retention: Retention,
    /// Records are removed, the oldest first, when the log takes more than this on disk and all
    /// readers have read them. When so much is unread, what comes in is refused.
    pub retention_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            partitions: 1,
            partition_by: None,
            group: "traqq".to_owned(),
            retention: Retention::Seconds(7 * 86_400),
            retention_bytes: 10 << 30,
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=1024).contains(&self.partitions) {
            return Err(format!("broker.local.partitions = {} must lie in 1 to 1024", self.partitions).into());
        }
        if self.partitions > 1 && self.partition_by.is_none() {
            return Err("broker.local.partitions is more than 1, but not by which field events are spread: set \
                        broker.local.partition_by, for example \"user_id\""
                .into());
        }
        if self.group.is_empty() {
            return Err("broker.local.group is empty; write a name, for example \"traqq\"".into());
        }
        Ok(())
    }
}
