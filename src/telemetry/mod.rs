//! Logs and metrics.

pub mod names;
mod panics;
mod process;
mod setup;

pub use panics::log_panics;
pub use process::render as render_process;
pub use setup::{Config, Escapes, LogFormat, init_logs, init_metrics};
