//! Logs for a terminal or for a machine, and the Prometheus recorder.

use std::io::{self, IsTerminal, Write};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::names::{self, Kind};

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter like `traqq=debug,info`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

/// Buckets of the commit latency, in seconds.
const COMMIT_SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Standard error. Where a line cannot be written, on a full disk or a terminal that has gone, counting goes on without it.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write(bytes)
    }

    /// A whole event.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().write_all(bytes).inspect_err(|_| metrics::counter!(names::LOG_LINES_LOST).increment(1))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs go to standard error.
pub fn init_logs(config: &Config) -> Result<(), String> {
    // The client of NATS says that it is connected, in three lines; and whatever is asked for, never what it sends, where a password is.
    let filter = format!("async_nats=warn,{},async_nats::connection=info", config.level);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("log.level = {:?} is not a filter: {error}; write error, warn, info, debug or trace", config.level)
    })?;
    let is_terminal = io::stderr().is_terminal();
    let is_json = match config.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // An error of the writer would be printed to where it came from, and panic there.
    let subscriber = tracing_subscriber::fmt().log_internal_errors(false);
    let subscriber = subscriber.with_env_filter(filter).with_writer(|| Lines).with_target(false);
    let installed = if is_json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_ansi(is_terminal).compact().try_init()
    };
    installed.map_err(|error| error.to_string())
}

/// Installs the recorder; every metric is described, and counters without labels are there from the start.
pub fn init_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(names::COMMIT_SECONDS.to_owned()), &COMMIT_SECONDS_BUCKETS)
        .map_err(|error| error.to_string())?
        .install_recorder()
        .map_err(|error| error.to_string())?;
    for definition in names::ALL {
        let is_plain = definition.labels.is_empty();
        match definition.kind {
            Kind::Counter => {
                metrics::describe_counter!(definition.name, definition.help);
                if is_plain {
                    metrics::counter!(definition.name).increment(0);
                }
            }
            Kind::Gauge => {
                metrics::describe_gauge!(definition.name, definition.help);
                if is_plain {
                    metrics::gauge!(definition.name).set(0.0);
                }
            }
            Kind::Histogram => metrics::describe_histogram!(definition.name, definition.help),
        }
    }
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    super::process::started();
    Ok(handle)
}
