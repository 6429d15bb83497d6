//! What became of an import so far, and how fast it goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::batch::Batch;
use crate::cli::chart::{bar, counted, grouped};
use crate::cli::events::{Rejection, Taken};
use crate::cli::terminal::Terminal;

/// Rejected lines that are named.
const REJECTIONS_MAX: usize = 20;
/// The rate is an average over so long.
const WINDOW: Duration = Duration::from_secs(10);
const BAR_COLUMNS: usize = 20;

#[derive(Default)]
pub struct Tally {
    imported: u64,
    skipped: u64,
    rejected: u64,
    /// The first ones by file and line.
    rejections: BTreeMap<(usize, u64), String>,
    /// Files that had something.
    files: BTreeSet<usize>,
}

impl Tally {
    /// Adds a batch of the file number `file`.
    pub fn add(&mut self, file: usize, batch: &Batch, taken: &Taken) {
        *(if taken.replayed { &mut self.skipped } else { &mut self.imported }) += taken.accepted;
        self.files.insert(file);
        self.rejected += taken.rejected + batch.unreadable.len() as u64;
        let line = |rejection: &Rejection| batch.lines.get(rejection.index as usize).copied();
        let refused = taken.errors.iter().filter_map(|rejection| Some((line(rejection)?, rejection.text())));
        for (line, why) in batch.unreadable.iter().cloned().chain(refused) {
            self.rejections.insert((file, line), why);
            if self.rejections.len() > REJECTIONS_MAX {
                self.rejections.pop_last();
            }
        }
    }

    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    pub fn events(&self) -> u64 {
        self.imported + self.skipped + self.rejected
    }

    /// Files that had nothing.
    pub fn empty<'f>(&self, files: &'f [String]) -> Vec<&'f str> {
        let empty = files.iter().enumerate().filter(|(index, _)| !self.files.contains(index));
        empty.map(|(_, file)| file.as_str()).collect()
    }

    /// The first rejected lines, each with its reason.
    pub fn rejections(&self, files: &[String]) -> Vec<String> {
        let named = self.rejections.iter().map(|((file, line), why)| {
            let file = if files.len() > 1 { format!("{} ", files[*file]) } else { String::new() };
            format!("{file}line {line}: {why}")
        });
        named.collect()
    }

    pub fn summary(&self, files: &[String]) -> String {
        let mut text = format!("imported {}", counted(self.imported, "event"));
        if self.skipped > 0 {
            text.push_str(&format!(", skipped {} that were there already", grouped(&self.skipped.to_string())));
        }
        if self.rejected > 0 {
            text.push_str(&format!(", rejected {}", grouped(&self.rejected.to_string())));
            if let Some(first) = self.rejections(files).first() {
                text.push_str(&format!(" (first: {first})"));
            }
        }
        text
    }
}

/// Rate and time left.
pub struct Pace {
    /// Of all files; `None` if that is not known.
    bytes: Option<u64>,
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Pace {
    pub fn new(bytes: Option<u64>) -> Self {
        Self { bytes, samples: VecDeque::from([(Instant::now(), 0, 0)]) }
    }

    /// `done` events, with `read` bytes of the files.
    pub fn text(&mut self, done: u64, read: u64, terminal: &Terminal) -> String {
        let now = Instant::now();
        self.samples.push_back((now, done, read));
        while self.samples.len() > 2 && now - self.samples[1].0 > WINDOW {
            self.samples.pop_front();
        }
        let (then, done_before, read_before) = self.samples[0];
        let seconds = (now - then).as_secs_f64().max(0.001);
        let rate = (done - done_before) as f64 / seconds;
        let mut text = format!("{}  {}/s", counted(done, "event"), grouped(&rate.round().to_string()));
        let Some(bytes) = self.bytes.filter(|bytes| *bytes > 0) else { return text };
        let fraction = (read as f64 / bytes as f64).min(1.0);
        if read > read_before {
            let left = bytes.saturating_sub(read) as f64 * seconds / (read - read_before) as f64;
            text.push_str(&format!("  {} left", duration(left)));
        }
        let percent = (fraction * 100.0).floor();
        if !terminal.is_terminal {
            return format!("{percent} %  {text}");
        }
        let full = bar(fraction, BAR_COLUMNS);
        let rest = "░".repeat(BAR_COLUMNS - full.chars().count());
        format!("{full}{rest} {percent:>3} %  {text}")
    }
}

/// The two largest units of a time.
fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil().min(1e9) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::*;

    fn batch(lines: std::ops::Range<u64>, unreadable: &[u64]) -> Batch {
        let unreadable = unreadable.iter().map(|line| (*line, "too long".to_owned())).collect();
        Batch { body: Bytes::new(), lines: lines.collect(), unreadable, key: String::new() }
    }

    #[test]
    fn lines_are_named_in_the_order_of_the_file() {
        let mut tally = Tally::default();
        let errors = |indexes: std::ops::Range<u64>| {
            indexes.map(|index| Rejection { index, reason: "json".to_owned(), detail: "bad".to_owned() }).collect()
        };
        let taken = |accepted, rejected, errors, replayed| Taken { accepted, rejected, errors, replayed };
        tally.add(0, &batch(1001..2001, &[]), &taken(960, 40, errors(0..40), false));
        tally.add(0, &batch(1..1000, &[1000]), &taken(998, 1, errors(16..17), true));
        let files = ["f".to_owned()];
        assert_eq!(
            tally.summary(&files),
            "imported 960 events, skipped 998 that were there already, rejected 42 (first: line 17: json: bad)"
        );
        let named = tally.rejections(&files);
        assert_eq!((named.len(), named[1].as_str()), (20, "line 1000: too long"));
        assert_eq!(named[2], "line 1001: json: bad");
        assert_eq!((tally.events(), tally.rejected()), (2000, 42));
        assert_eq!(tally.empty(&["f".to_owned(), "g".to_owned()]), ["g"]);
        assert!(tally.rejections(&["f".to_owned(), "g".to_owned()])[0].starts_with("f line 17"));
    }

    #[test]
    fn short_summaries_say_no_more_than_there_is() {
        assert_eq!(Tally::default().summary(&[]), "imported 0 events");
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in [(0.2, "1 s"), (59.0, "59 s"), (61.0, "1 min 1 s"), (7384.0, "2 h 3 min")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
