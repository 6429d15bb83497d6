//! `traqq import`: files of events. Exactly once: a batch is always cut in the same way and carries
//! a key made from its content and place, by which the server knows it again.

mod batch;
mod csv;
mod foreign;
mod lines;
mod report;
mod rows;
mod source;
mod times;
mod utf16;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::{Args, ValueEnum};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

pub use self::lines::Lines;
pub use self::rows::Rows;
pub(super) use self::source::unpacked;

use self::batch::{Batch, Batches, Layout};
use self::report::{Pace, Tally};
use self::source::Source;
use self::times::{Mode, Times};
use super::client::{Client, ServerArgument};
use super::events::{Taken, event_rules, post_until_taken};
use super::status_line::StatusLine;
use super::{Failure, Outcome, block_on};
use crate::config::Config;
use traqq_core::decode::EventRules;
use traqq_core::error::ErrorLine;

/// Send events from files, each of them once
///
/// An import that was interrupted is run again with the same files and options: the server knows
/// what it has already and skips it. It remembers that for 24 hours. Names and compression of files
/// do not matter for it, only what is in them; a file that has grown meanwhile is to be imported
/// when it is complete, for its last events are sent again together with the new ones.
///
/// A line or row that cannot be an event is rejected and named, and the others are imported. Where
/// rows of CSV cannot be told apart any more, because a quote is never closed or text follows one
/// that was closed on another line, reading ends, with the line of that quote; mended, the same
/// command goes on there. Either way the exit code is 1.
#[derive(Args)]
pub struct Import {
    /// Files, also compressed with gzip or zstd, in UTF-8 or UTF-16; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,

    /// How events are written down [default: csv for names that end with .csv, .tsv or .tab, else
    /// ndjson]
    #[arg(long)]
    format: Option<Format>,

    /// What stands between the cells of CSV: a character, or tab [default: the one of , ; | and tab
    /// that is in the header]
    #[arg(long, value_name = "CHARACTER", value_parser = separator)]
    separator: Option<u8>,

    /// The field, or column, that has the time of the events. They get it as the first of the
    /// server's events.time_fields, and keep the field. Without this an event needs one of these
    /// fields
    #[arg(long, value_name = "NAME", conflicts_with = "now")]
    time_field: Option<String>,

    /// Count events without a time as of now; otherwise they are rejected, or the file is when it
    /// has no times at all
    #[arg(long)]
    now: bool,

    /// Requests that are under way at the same time
    #[arg(long, value_name = "REQUESTS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    in_flight: u8,

    /// Import once more what was imported already
    #[arg(long)]
    again: bool,

    /// Send without keys, as it must be in front of Kafka: what is sent again after a lost
    /// connection counts twice
    #[arg(long, conflicts_with = "again")]
    at_least_once: bool,

    #[command(flatten)]
    server: ServerArgument,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// A JSON object per line
    Ndjson,
    /// Rows of cells, quoted as RFC 4180 has it, under a header; numbers are numbers, empty cells
    /// and columns without a name are left out
    Csv,
}

/// Something in a file that may be an event.
pub struct Item {
    /// From 1, where it begins.
    pub line: u64,
    /// Why it is none.
    pub result: Result<(), ErrorLine>,
}

/// A batch of the file with that number, or why a file can be read no further.
type Read = Result<(usize, Batch), ErrorLine>;

enum Message {
    Sent(usize, Batch, Taken),
    /// Why something must be sent again.
    Waiting(String),
    Unreadable(ErrorLine),
    Refused(ErrorLine),
}

impl Import {
    pub fn run(self, config: &Config) -> Outcome {
        let client = self.server.client(&config.server)?;
        let bytes = self.check_files()?;
        block_on(self.import(client, bytes, config.rules().events))?
    }

    /// Everything that can be wrong with files before anything is sent. Returns their size, if all
    /// have one.
    fn check_files(&self) -> Result<Option<u64>, Failure> {
        if self.files.iter().filter(|file| *file == "-").count() > 1 {
            return Err(Failure::Usage("standard input is there once; name - once".to_owned()));
        }
        let mut bytes = Some(0);
        for file in &self.files {
            if file == "-" {
                bytes = None;
                continue;
            }
            let found = std::fs::File::open(file).and_then(|file| file.metadata());
            let found = found.map_err(|error| Failure::Usage(format!("{file}: {error}")))?;
            if found.is_dir() {
                return Err(Failure::Usage(format!("{file} is a directory; name the files in it")));
            }
            bytes = bytes.filter(|_| found.is_file()).map(|bytes| bytes + found.len());
        }
        Ok(bytes)
    }

    async fn import(self, mut client: Client, bytes: Option<u64>, own: EventRules) -> Outcome {
        let read = Arc::new(AtomicU64::new(0));
        let mut line = StatusLine::new();
        let mode = self.mode();
        // What is wrong with the files is said first.
        let asked = event_rules(&mut client, &own, |why| line.update(|_| format!("waiting: {why}"))).await;
        let (rules, no_rules) = asked.map_or_else(|why| (own, Some(why)), |rules| (rules, None));
        let queue = self.read_files(&read, &mode, &rules);
        let queue = Arc::new(Mutex::new(queue));
        let (sender, mut messages) = mpsc::channel(64);
        let reached = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        for _ in 0..self.in_flight {
            let (queue, reached, sender) = (Arc::clone(&queue), Arc::clone(&reached), sender.clone());
            let sending = send(client.clone(), !self.at_least_once, no_rules.clone(), queue, reached, sender);
            senders.spawn(sending);
        }
        drop(sender);
        let (mut tally, mut pace) = (Tally::default(), Pace::new(bytes));
        let (mut waiting, mut failure, mut is_unreadable) = (None, None, false);
        let mut tick = tokio::time::interval(line.interval());
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        // The first tick is at once, where there is nothing to say.
        tick.tick().await;
        loop {
            // Cancel safety: neither a message nor a tick is taken by a branch that loses.
            tokio::select! {
                message = messages.recv() => match message {
                    None => break,
                    Some(Message::Sent(file, batch, taken)) => {
                        waiting = None;
                        tally.add(file, &batch, &taken);
                    }
                    Some(Message::Waiting(why)) => {
                        if waiting.is_none() && !line.is_terminal() {
                            line.say(&format!("waiting: {why}"));
                        }
                        waiting = Some(why);
                    }
                    Some(Message::Unreadable(why)) => (failure, is_unreadable) = (Some(why), true),
                    Some(Message::Refused(why)) => {
                        failure = Some(why);
                        break;
                    }
                },
                _ = tick.tick() => line.update(|terminal| match &waiting {
                    Some(why) => format!("{}  waiting: {why}", super::chart::counted(tally.events(), "event")),
                    None => pace.text(tally.events(), read.load(Ordering::Relaxed), terminal),
                }),
                _ = &mut interrupt => {
                    let again = if self.at_least_once || self.again { "" } else { "; the same command goes on from here" };
                    failure = Some(format!("interrupted{again}").into());
                    break;
                }
            }
        }
        line.clear();
        if is_unreadable && tally.events() > 0 && !self.at_least_once && !self.again {
            failure = failure
                .map(|why: ErrorLine| why.followed_by("; mend it, and the same command skips what was imported"));
        }
        self.report(&tally, failure)
    }

    fn mode(&self) -> Mode {
        match &self.time_field {
            _ if self.now => Mode::Now,
            Some(name) => Mode::Field(name.clone()),
            None => Mode::Required,
        }
    }

    fn report(&self, tally: &Tally, failure: Option<ErrorLine>) -> Outcome {
        for rejection in tally.rejections(&self.files) {
            complain!("{rejection}");
        }
        if failure.is_none() || tally.events() > 0 {
            say!("{}", tally.summary(&self.files));
        }
        for file in tally.empty(&self.files).iter().filter(|_| failure.is_none()) {
            complain!("{}: there are no events in it", named(file));
        }
        match (failure, tally.rejected()) {
            (Some(why), _) => Err(why.into()),
            (None, 0) => Ok(()),
            (None, rejected) => {
                let lines = super::chart::counted(rejected, "line");
                Err(Failure::Failed(format!("{lines} rejected; mend them and import them as a file of their own")))
            }
        }
    }

    /// Reads and cuts on a thread of its own, a few batches ahead.
    fn read_files(&self, read: &Arc<AtomicU64>, mode: &Mode, rules: &EventRules) -> mpsc::Receiver<Read> {
        let (sender, queue) = mpsc::channel(usize::from(self.in_flight));
        let run = if self.again { RandomState::new().hash_one(std::process::id()) | 1 } else { 0 };
        let (files, read, mode, rules) = (self.files.clone(), Arc::clone(read), mode.clone(), rules.clone());
        let (format, separator) = (self.format, self.separator);
        std::thread::spawn(move || {
            for (index, file) in files.iter().enumerate() {
                let rest = if index + 1 < files.len() { ", nor of the files behind it" } else { "" };
                let explain = |error: ErrorLine| error.within(named(file)).followed_by(rest);
                let opened = source::open(file, &read)
                    .map_err(|error| ErrorLine::of(format!("{error}; nothing of it was imported"), error));
                let opened = opened.and_then(|Source { input, start }| {
                    let layout = layout(file, format, separator, &start)?;
                    Ok(Batches::new(input, layout, Times::new(mode.clone(), &rules), run))
                });
                let mut batches = opened.map_err(explain);
                loop {
                    let next = match &mut batches {
                        Ok(batches) => batches.next().map_err(explain),
                        Err(error) => Err(error.clone()),
                    };
                    let Some(next) = next.transpose() else { break };
                    let is_end = next.is_err();
                    // Nobody takes it when the import has ended.
                    if sender.blocking_send(next.map(|batch| (index, batch))).is_err() || is_end {
                        return;
                    }
                }
            }
        });
        queue
    }
}

fn named(file: &str) -> &str {
    if file == "-" { "standard input" } else { file }
}

fn separator(text: &str) -> Result<u8, ErrorLine> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err("it is one ASCII character, or tab".into()),
    }
}

/// How a file holds its events: as it is said to, or else by its name in front of what says how it
/// is compressed. A file that does not begin so is not read.
fn layout(file: &str, format: Option<Format>, separator: Option<u8>, start: &[u8]) -> Result<Layout, ErrorLine> {
    let name = file.to_ascii_lowercase();
    let name = [".gz", ".zst", ".gzip", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    let by_name = match extension {
        Some("csv") => Layout::Rows(separator),
        Some("tsv" | "tab") => Layout::Rows(separator.or(Some(b'\t'))),
        _ => Layout::Lines,
    };
    let is_json = start.trim_ascii_start().first().map(|byte| matches!(byte, b'{' | b'['));
    match (format, by_name) {
        (Some(Format::Csv), Layout::Lines) => Ok(Layout::Rows(separator)),
        (Some(Format::Csv), rows) => Ok(rows),
        (Some(Format::Ndjson), _) => Ok(Layout::Lines),
        (None, Layout::Lines) if is_json == Some(false) => {
            Err("it does not begin with a JSON object; --format csv reads CSV, and --format ndjson reads its lines all the same; \
                 nothing of it was imported".into())
        }
        (None, Layout::Rows(_)) if is_json == Some(true) => {
            Err("it begins like JSON and not like CSV; say --format ndjson, or --format csv; nothing of it was imported".into())
        }
        (None, layout) => Ok(layout),
    }
}

/// Sends batches over one connection until there are no more.
async fn send(
    mut client: Client,
    with_keys: bool,
    refused: Option<ErrorLine>,
    queue: Arc<Mutex<mpsc::Receiver<Read>>>,
    reached: Arc<AtomicBool>,
    messages: mpsc::Sender<Message>,
) {
    loop {
        let next = queue.lock().await.recv().await;
        let message = match next {
            None => return,
            Some(Err(why)) => Message::Unreadable(why),
            Some(Ok((file, batch))) if batch.body.is_empty() => Message::Sent(file, batch, Taken::default()),
            Some(Ok(_)) if let Some(why) = &refused => Message::Refused(why.clone()),
            Some(Ok((file, batch))) => {
                let key = with_keys.then_some(batch.key.as_str());
                let waiting = |why| {
                    // It is told again the next time.
                    let _ = messages.try_send(Message::Waiting(why));
                };
                match post_until_taken(&mut client, &batch.body, key, &reached, waiting).await {
                    Ok(taken) => Message::Sent(file, batch, taken),
                    Err(why) => Message::Refused(why),
                }
            }
        };
        if messages.send(message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_format() {
        let of = |file: &str| layout(file, None, None, b"");
        for csv in ["a.csv", "a.CSV", "dir.ndjson/a.csv.gz", "a.csv.zst"] {
            assert_eq!(of(csv), Ok(Layout::Rows(None)), "{csv}");
        }
        assert_eq!(of("a.tsv.gz"), Ok(Layout::Rows(Some(b'\t'))));
        assert_eq!(layout("a.tsv", None, Some(b';'), b"a;b"), Ok(Layout::Rows(Some(b';'))));
        for ndjson in ["-", "a.ndjson", "a.json.gz", "csv", "a.csv.bak"] {
            assert_eq!(of(ndjson), Ok(Layout::Lines), "{ndjson}");
        }
    }

    /// Every line of a CSV on standard input was rejected, one by one, as no JSON.
    #[test]
    fn a_file_that_begins_otherwise_is_not_read() {
        assert!(layout("-", None, None, b"\nevent,geo\n").unwrap_err().to_string().contains("--format csv"));
        assert!(layout("a.csv", None, None, b" {\"event\"").unwrap_err().to_string().contains("--format ndjson"));
        assert_eq!(layout("-", Some(Format::Csv), None, b"event,geo"), Ok(Layout::Rows(None)));
        assert_eq!(layout("a.csv", Some(Format::Ndjson), None, b"x"), Ok(Layout::Lines));
        assert_eq!(layout("-", None, None, b"\n{"), Ok(Layout::Lines));
    }

    #[test]
    fn a_separator_is_one_character() {
        for (text, byte) in [(";", b';'), ("tab", b'\t'), ("\\t", b'\t'), ("\t", b'\t')] {
            assert_eq!(separator(text), Ok(byte));
        }
        for text in ["", ";;", "\"", "\n", "é"] {
            assert!(separator(text).is_err(), "{text:?}");
        }
    }
}
