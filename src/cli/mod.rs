//! The command line: one file per subcommand.
//!
//! Exit codes: 0 done, or the reader of the answer has seen enough; 1 failed, or the answer could
//! not be written whole; 2 the command line or the configuration is wrong.

// Before those that print.
#[macro_use]
mod output;

mod answer;
mod chart;
mod client;
mod config;
mod demo;
mod doctor;
mod events;
mod explain;
mod find;
mod import;
mod mapping;
mod position;
mod query;
mod record;
mod run;
mod sample;
mod show;
mod stats;
mod status_line;
mod store;
mod table;
mod terminal;
mod top;

pub use import::{Item, Lines, Rows};

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::terminal::{Style, Terminal};
use crate::config::{Loaded, load};
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::escape;

/// Exact counts from event streams.
#[derive(Parser)]
#[command(name = "traqq", version, about, max_term_width = 100)]
pub struct Arguments {
    /// Configuration file [default: traqq.toml, if there is one]
    #[arg(short, long, global = true, env = "TRAQQ_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Override one setting, for example --set worker.batch_events=10000
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = parse_override)]
    overrides: Vec<(String, String)>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Count: consume the log, keep the metrics, answer queries (the default)
    Run(run::Run),
    /// Answer queries only: the sidecar
    Serve,
    /// Send one event
    Record(record::Record),
    Import(import::Import),
    Demo(demo::Demo),
    /// Every metric, per bucket
    Query(query::Query),
    /// One metric, per bucket or merged over a range
    Find(find::Find),
    Top(top::Top),
    /// Show what an event becomes
    Explain(explain::Explain),
    /// The mapping that a prefix is counted by
    #[command(subcommand)]
    Mapping(mapping::Mapping),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Where counting stands in the log
    #[command(subcommand)]
    Position(position::Position),
    /// Move counts from one store to another, or remove them
    #[command(subcommand)]
    Store(store::Store),
    /// Look at everything a worker relies on, and say how to mend what is wrong
    Doctor(doctor::Doctor),
    /// Print completions for a shell
    Completions {
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether it works on what is configured, and not only with a server.
    const fn needs_its_configuration(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Serve | Self::Mapping(_) | Self::Position(_) | Self::Store(_))
    }
}

fn parse_override(text: &str) -> Result<(String, String), ErrorLine> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, for example worker.batch_events=10000")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// What a command ends with.
pub(crate) enum Failure {
    /// The command line or the configuration is wrong.
    Usage(String),
    Failed(String),
    /// Whoever read the answer has closed the pipe.
    NotRead,
}

impl Failure {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Usage(text) | Self::Failed(text) => text.clone(),
            Self::NotRead => "nobody reads the answer".to_owned(),
        }
    }
}

/// What is wrong with the configuration is a matter of usage.
impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<ErrorLine> for Failure {
    fn from(line: ErrorLine) -> Self {
        Self::Failed(line.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(crate) type Outcome = Result<(), Failure>;

/// Does what the command line says.
pub fn main() -> ExitCode {
    // What is written is other people's data. The database makes its files with the mode that is
    // left.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let outcome = match Arguments::try_parse() {
        Ok(arguments) => arguments.dispatch(),
        Err(asked) if !asked.use_stderr() => output::print(&painted(&asked, &Terminal::stdout())),
        Err(wrong) => {
            output::write_error(&painted(&named_harmlessly(&wrong), &Terminal::stderr()));
            return ExitCode::from(2);
        }
    };
    let (text, code) = match outcome {
        Ok(()) | Err(Failure::NotRead) => return ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => (text, 2),
        Err(Failure::Failed(text)) => (text, 1),
    };
    output::complain_of(Style::Red, "error:", &text);
    ExitCode::from(code)
}

/// What is wrong with a command line is said with its words, and a shell may have put the names of
/// somebody else's files among them: the same, with these escaped.
fn named_harmlessly(wrong: &clap::Error) -> clap::Error {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| escape::terminal(&argument.to_string_lossy()).into_owned()).collect();
    match Arguments::try_parse_from(arguments) {
        Err(named) if named.use_stderr() => named,
        // Only what had to be escaped was wrong.
        _ => clap::Error::new(wrong.kind()),
    }
}

/// What the parser of the command line has to say: help, the version, or what is wrong.
fn painted(said: &clap::Error, terminal: &Terminal) -> String {
    let text = said.render();
    if terminal.has_colors() { text.ansi().to_string() } else { text.to_string() }
}

impl Arguments {
    fn dispatch(self) -> Outcome {
        if let Some(Command::Completions { shell }) = self.command {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Self::command(), "traqq", &mut script);
            return output::print(&String::from_utf8_lossy(&script));
        }
        let loaded = load(self.config.as_deref(), &self.overrides)?;
        // TLS needs to know which implementation of cryptography to use, once in a process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let command = self.command.unwrap_or(Command::Run(run::Run::default()));
        // Another configuration than the one that is there would count, change or remove something
        // else.
        if let Some(why) = loaded.untrusted.as_ref().filter(|_| command.needs_its_configuration()) {
            return Err(Failure::Usage(why.clone()));
        }
        // Those that run have a log for it.
        if !matches!(command, Command::Run(_) | Command::Serve) {
            loaded.warnings.iter().for_each(|warning| warn(warning));
        }
        match command {
            Command::Run(command) => command.run(&loaded),
            Command::Serve => run::serve(&loaded),
            Command::Record(command) => command.run(&loaded.config),
            Command::Import(command) => command.run(&loaded.config),
            Command::Demo(command) => command.run(&loaded.config),
            Command::Top(command) => command.run(&loaded.config),
            Command::Query(command) => command.run(&loaded.config),
            Command::Find(command) => command.run(&loaded.config),
            Command::Explain(command) => command.run(&loaded.config),
            Command::Mapping(command) => command.run(&loaded.config),
            Command::Config(command) => command.run(&loaded),
            Command::Position(command) => command.run(&loaded.config),
            Command::Store(command) => command.run(&loaded.config),
            Command::Doctor(command) => command.run(&loaded),
            Command::Completions { .. } => unreachable!("handled above"),
        }
    }
}

/// Runs a short question to completion.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map(|runtime| runtime.block_on(future)).map_err(|error| Failure::Failed(error.to_string()))
}

/// Something that is not as it should be, and keeps nothing from being done.
pub(crate) fn warn(text: &str) {
    output::complain_of(Style::Yellow, "warning:", text);
}

/// A JSON document that is printed as it came, as far as that is harmless.
pub(crate) fn print_document(body: &[u8]) -> Outcome {
    output::print(&(escape::json(String::from_utf8_lossy(body).trim_end()).into_owned() + "\n"))
}

/// A table that is printed as it came. In front of a person nothing in it moves the cursor.
pub(crate) fn print_csv(body: &[u8]) -> Outcome {
    let csv = String::from_utf8_lossy(body);
    if !Terminal::stdout().is_terminal {
        return output::print(&csv);
    }
    // The line ends between rows are ours to print; those in cells are somebody's who counts them.
    let (mut row, mut is_quoted) = (String::new(), false);
    for line in csv.split_inclusive('\n') {
        row += line;
        is_quoted ^= line.matches('"').count() % 2 == 1;
        if !is_quoted {
            output::line(row.trim_end_matches(['\r', '\n']))?;
            row.clear();
        }
    }
    if row.is_empty() { Ok(()) } else { output::line(&row) }
}

pub(crate) fn print_json(value: &serde_json::Value) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    print_document(text.as_bytes())
}
