//! Logs and metrics.

pub mod names;
mod setup;

pub use setup::{Config, LogFormat, init_logs, init_metrics};
