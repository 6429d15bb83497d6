//! `[data]`: the directory of the local log and the embedded store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use traqq_core::error::ConfigError;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the local log and the embedded store live; made if it is missing.
    pub directory: PathBuf,
    /// What an acknowledged event survives.
    pub durability: Durability,
    /// Nothing more is taken while the disk has less room than this, so that what was taken can be
    /// put in order.
    pub reserve_bytes: u64,
}

/// When the answer to an append is given, and what it promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// After fsync; appends that arrive meanwhile share the next one. Survives the loss of power.
    EveryWrite,
    /// After the operating system has it; fsync follows within 100 ms. Survives a killed process;
    /// power loss takes the last 100 ms.
    Periodic,
    /// After the operating system has it; it writes when it likes. Survives a killed process.
    Os,
    /// At once. A killed process takes what was buffered with it.
    None,
}

impl Durability {
    /// As it is written in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EveryWrite => "every-write",
            Self::Periodic => "periodic",
            Self::Os => "os",
            Self::None => "none",
        }
    }

    /// What an acknowledged event survives, in words.
    pub const fn promise(self) -> &'static str {
        match self {
            Self::EveryWrite => "an acknowledged event survives a killed process and the loss of power",
            Self::Periodic => {
                "an acknowledged event survives a killed process; the loss of power may take the last 100 ms"
            }
            Self::Os => "an acknowledged event survives a killed process; the loss of power may take the last minute",
            Self::None => "an acknowledged event may be lost when the process is killed",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { directory: "traqq-data".into(), durability: Durability::Periodic, reserve_bytes: 256 << 20 }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.directory.as_os_str().is_empty() {
            return Err("data.directory is empty; write a path, for example \"/var/lib/traqq\"".into());
        }
        if self.reserve_bytes < 1 << 20 {
            return Err(format!("data.reserve_bytes = {} must be at least 1048576", self.reserve_bytes).into());
        }
        Ok(())
    }
}
