//! `traqq import`: files of events. Exactly once: a batch is always cut in the same way and carries a key made from its
//! content and place, by which the server knows it again.

mod batch;
mod csv;
mod lines;
mod report;
mod source;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::{Args, ValueEnum};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

pub use self::csv::Rows;
pub use self::lines::Lines;

use self::batch::{Batch, Batches};
use self::report::{Pace, Tally};
use super::client::{Client, ServerArgument};
use super::events::{Taken, post_until_taken};
use super::status_line::StatusLine;
use super::{Failure, Outcome, block_on};
use crate::config::Config;

/// Send events from files, each of them once
///
/// An import that was interrupted is run again with the same files: the server knows what it has already and skips it. It
/// remembers that for 24 hours. Names and compression of files do not matter for it, only what is in them; a file that has grown
/// meanwhile is to be imported when it is complete, for its last events are sent again together with the new ones.
#[derive(Args)]
pub struct Import {
    /// Files, also compressed with gzip or zstd; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,

    /// How events are written down [default: csv for names that end so, else ndjson]
    #[arg(long)]
    format: Option<Format>,

    /// Requests that are under way at the same time
    #[arg(long, value_name = "REQUESTS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    in_flight: u8,

    /// Import once more what was imported already
    #[arg(long)]
    again: bool,

    /// Send without keys, as it must be in front of Kafka: what is sent again after a lost connection counts twice
    #[arg(long, conflicts_with = "again")]
    at_least_once: bool,

    #[command(flatten)]
    server: ServerArgument,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// A JSON object per line
    Ndjson,
    /// Commas and a header; numbers are numbers, empty cells and columns without a name are left out
    Csv,
}

/// Something in a file that may be an event.
pub struct Item {
    /// From 1, where it begins.
    pub line: u64,
    /// Why it is none.
    pub result: Result<(), String>,
}

/// A batch of the file with that number, or why a file can be read no further.
type Read = Result<(usize, Batch), String>;

enum Message {
    Sent(usize, Batch, Taken),
    /// Why something must be sent again.
    Waiting(String),
    Unreadable(String),
    Refused(String),
}

impl Import {
    pub fn run(self, config: &Config) -> Outcome {
        let client = self.server.client(&config.server)?;
        let bytes = self.check_files()?;
        block_on(self.import(client, bytes))?
    }

    /// Everything that can be wrong with files before anything is sent. Returns their size, if all have one.
    fn check_files(&self) -> Result<Option<u64>, Failure> {
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

    async fn import(self, client: Client, bytes: Option<u64>) -> Outcome {
        let read = Arc::new(AtomicU64::new(0));
        let queue = self.read_files(&read);
        let queue = Arc::new(Mutex::new(queue));
        let (sender, mut messages) = mpsc::channel(64);
        let reached = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        for _ in 0..self.in_flight {
            let (queue, reached, sender) = (Arc::clone(&queue), Arc::clone(&reached), sender.clone());
            senders.spawn(send(client.clone(), !self.at_least_once, queue, reached, sender));
        }
        drop(sender);
        let (mut tally, mut pace, mut line) = (Tally::default(), Pace::new(bytes), StatusLine::new());
        let (mut waiting, mut failure) = (None, None);
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
                    Some(Message::Unreadable(why)) => failure = Some(why),
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
                    let again = if self.at_least_once { "" } else { "; the same command goes on from here" };
                    failure = Some(format!("interrupted{again}"));
                    break;
                }
            }
        }
        line.clear();
        for rejection in tally.rejections(&self.files) {
            complain!("{rejection}");
        }
        if failure.is_none() || tally.events() > 0 {
            say!("{}", tally.summary(&self.files));
        }
        match (failure, tally.rejected()) {
            (Some(why), _) => Err(Failure::Failed(super::terminal::printable(&why))),
            (None, 0) => Ok(()),
            (None, rejected) => {
                let lines = super::chart::counted(rejected, "line");
                Err(Failure::Failed(format!("{lines} rejected; mend them and import them as a file of their own")))
            }
        }
    }

    /// Reads and cuts on a thread of its own, a few batches ahead.
    fn read_files(&self, read: &Arc<AtomicU64>) -> mpsc::Receiver<Read> {
        let (sender, queue) = mpsc::channel(usize::from(self.in_flight));
        let run = if self.again { RandomState::new().hash_one(std::process::id()) | 1 } else { 0 };
        let (files, format, read) = (self.files.clone(), self.format, Arc::clone(read));
        std::thread::spawn(move || {
            for (index, file) in files.iter().enumerate() {
                let format = format.unwrap_or_else(|| format_of(file));
                let explain = |error: String| format!("{}: {error}", if file == "-" { "standard input" } else { file });
                let input = source::open(file, &read).map_err(|error| explain(error.to_string()));
                let mut batches = input.map(|input| Batches::new(input, format, run));
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

/// By the name in front of what says how it is compressed.
fn format_of(file: &str) -> Format {
    let name = file.to_ascii_lowercase();
    let name = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    if Path::new(name).extension().is_some_and(|extension| extension == "csv") { Format::Csv } else { Format::Ndjson }
}

/// Sends batches over one connection until there are no more.
async fn send(
    mut client: Client,
    with_keys: bool,
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
        for csv in ["a.csv", "a.CSV", "dir.ndjson/a.csv.gz", "a.csv.zst"] {
            assert_eq!(format_of(csv), Format::Csv, "{csv}");
        }
        for ndjson in ["-", "a.ndjson", "a.json.gz", "csv", "a.csv.bak"] {
            assert_eq!(format_of(ndjson), Format::Ndjson, "{ndjson}");
        }
    }
}
