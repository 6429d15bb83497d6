//! Logs for a terminal or for a machine, and the Prometheus recorder.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use traqq_core::metric::Kind;
use traqq_pipeline::names::COMMIT_SECONDS;

use super::names;
use traqq_core::error::{ConfigError, ErrorLine};

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

/// What makes a line harmless, whoever chose the words in it.
#[derive(Clone, Copy)]
pub struct Escapes {
    pub text: fn(&str) -> Cow<'_, str>,
    pub json: fn(&str) -> Cow<'_, str>,
}

/// Standard error. Where a line cannot be written, on a full disk or a terminal that has gone,
/// counting goes on without it.
struct Lines {
    escape: fn(&str) -> Cow<'_, str>,
    /// The subscriber's own; in the words of others it has escaped what begins one.
    has_colors: bool,
}

impl Lines {
    /// One event in one line.
    fn line(&self, event: &str) -> String {
        let (mut line, mut rest) = (String::with_capacity(event.len()), event.trim_end_matches('\n'));
        while let Some(at) = rest.find("\x1b[").filter(|_| self.has_colors) {
            line += &(self.escape)(&rest[..at]);
            let parameters = rest[at + 2..].bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
            let end = at + 2 + parameters;
            // Nothing but a colour.
            let is_color = rest.as_bytes().get(end) == Some(&b'm');
            line += if is_color { &rest[at..=end] } else { "\\u{1b}[" };
            rest = &rest[if is_color { end + 1 } else { at + 2 }..];
        }
        line + &(self.escape)(rest) + "\n"
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write(bytes)
    }

    /// A whole event.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let line = self.line(&String::from_utf8_lossy(bytes));
        io::stderr().write_all(line.as_bytes()).inspect_err(|_| metrics::counter!(names::LOG_LINES_LOST).increment(1))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs go to standard error.
pub fn init_logs(config: &Config, escapes: Escapes) -> Result<(), ConfigError> {
    // The client of NATS says that it is connected, in three lines; and whatever is asked for,
    // never what it sends, where a password is.
    let filter = format!("async_nats=warn,{},async_nats::connection=info", config.level);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        let text =
            format!("log.level = {:?} is not a filter: {error}; write error, warn, info, debug or trace", config.level);
        ConfigError::of(text, error)
    })?;
    let is_terminal = io::stderr().is_terminal();
    let is_json = match config.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // An error of the writer would be printed to where it came from, and panic there.
    let subscriber = tracing_subscriber::fmt().log_internal_errors(false);
    let (escape, has_colors) = if is_json { (escapes.json, false) } else { (escapes.text, is_terminal) };
    let subscriber = subscriber.with_env_filter(filter).with_target(false);
    let subscriber = subscriber.with_writer(move || Lines { escape, has_colors });
    let installed = if is_json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_ansi(is_terminal).compact().try_init()
    };
    installed.map_err(|error| error.to_string().into())
}

/// Installs the recorder; every metric is described, and counters without labels are there from the
/// start.
pub fn init_metrics() -> Result<PrometheusHandle, ErrorLine> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(COMMIT_SECONDS.to_owned()), &COMMIT_SECONDS_BUCKETS)
        .map_err(ErrorLine::from_error)?
        .install_recorder()
        .map_err(ErrorLine::from_error)?;
    for definition in names::all() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_in_which_nothing_but_colours_acts() {
        // As the caller's: control characters by their number.
        fn escape(text: &str) -> Cow<'_, str> {
            text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
        }
        let event = "\x1b[2mwarn\x1b[0m a\nb\r\x1b[2J\x1b]0;x\x07\u{9b}1m \x1b[\x1b[1;31m\x1b\n";
        let line = |has_colors| Lines { escape, has_colors }.line(event);
        let shown = "\x1b[2mwarn\x1b[0m a\\nb\\r\\u{1b}[2J\\u{1b}]0;x\\u{7}\\u{9b}1m \\u{1b}[\x1b[1;31m\\u{1b}\n";
        assert_eq!(line(true), shown);
        assert!(!line(false).contains('\x1b') && line(false).ends_with("\\u{1b}\n"), "{}", line(false));
    }
}
