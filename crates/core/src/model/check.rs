//! What `traqq doctor` finds.

use crate::error::ConfigError;

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    pub name: &'static str,
    pub finding: Finding,
}

impl Check {
    /// Whether somebody must act before events are counted.
    pub const fn is_bad(&self) -> bool {
        matches!(self.finding, Finding::Unavailable(_) | Finding::Bad(_))
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    Good(String),
    /// Works, but with a risk that the text names.
    Warning(String),
    /// Cannot be looked at now. What is down comes back, and counting waits for it.
    Unavailable(String),
    /// Counting must not start; the text says how to mend it.
    Bad(String),
}

impl From<ConfigError> for Finding {
    fn from(error: ConfigError) -> Self {
        Self::Bad(error.to_string())
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Good(text) | Self::Warning(text) | Self::Unavailable(text) | Self::Bad(text) => out.write_str(text),
        }
    }
}
