//! `traqq explain`: the exact store operations an event becomes.

use std::io::Read;
use std::sync::Arc;

use clap::Args;

use super::{Failure, Outcome, print_json};
use crate::app::now_ms;
use crate::compile::{Folder, Part, Plan};
use crate::config::Config;
use crate::model::{Checkpoint, RecordBatch, TopicPartition};
use crate::store::redis::commands;

#[derive(Args)]
pub struct Explain {
    /// File with one event; - is standard input
    #[arg(value_name = "EVENT.json")]
    file: String,

    /// The broker's timestamp of the record, in RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,

    #[arg(long)]
    json: bool,
}

impl Explain {
    pub fn run(self, config: &Config) -> Outcome {
        let rules = config.rules().validate().map_err(|error| Failure::Usage(error.to_string()))?;
        let event = self.read()?;
        let broker_ms = match &self.at {
            None => now_ms(),
            Some(at) => chrono::DateTime::parse_from_rfc3339(at)
                .map_err(|_| Failure::Usage(format!("--at {at:?} is not a time like 2026-01-31T12:00:00Z")))?
                .timestamp_millis(),
        };
        let mut records = RecordBatch::new(TopicPartition::new("explain", 0), 0);
        records.push(0, broker_ms, None, Some(&event));
        let mut folder = Folder::new(Arc::new(Plan::new(rules)), usize::MAX);
        let folded = folder.fold(&[Part { records, from: Checkpoint::start(0) }]).pop().expect("one record, one batch");
        if let Some(letter) = folded.dead_letters.first() {
            return Err(Failure::Failed(format!("the event would be a dead letter: {}", letter.reason.name())));
        }
        let lines = commands(&config.store.redis.prefix, &folded.batch);
        let stats = folded.stats;
        if self.json {
            return print_json(&serde_json::json!({
                "operations": lines,
                "values_skipped": stats.values_skipped,
                "values_cut": stats.values_cut,
                "values_rounded": stats.values_rounded,
                "buckets_expired": stats.buckets_expired,
            }));
        }
        for line in lines {
            say!("{line}");
        }
        for (count, what) in [
            (stats.values_skipped, "values skipped: no number where one is needed"),
            (stats.values_cut, "labels cut to events.max_value_length"),
            (stats.values_rounded, "summed values rounded to a millionth"),
            (stats.buckets_expired, "buckets not written: their retention has passed"),
        ] {
            if count > 0 {
                say!("# {count} {what}");
            }
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<u8>, Failure> {
        if self.file == "-" {
            let mut event = Vec::new();
            let read = std::io::stdin().read_to_end(&mut event);
            return read.map(|_| event).map_err(|error| Failure::Failed(format!("standard input: {error}")));
        }
        std::fs::read(&self.file).map_err(|error| Failure::Usage(format!("{}: {error}", self.file)))
    }
}
