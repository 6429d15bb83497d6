//! `traqq explain`: what an event becomes: its name and time, what each pattern of the mapping
//! finds in it, and the exact store operations.

use std::io::Read;

use chrono::{DateTime, SecondsFormat};
use clap::Args;

use super::{Failure, Outcome, print_json};
use crate::app::now_ms;
use crate::config::Config;
use traqq_core::model::{RecordBatch, TopicPartition, escape};
use traqq_counts::compile::{Absent, Explained, ExplainedEvent, ExplainedPattern, Explainer, FoldStats, Plan, Refused};
use traqq_counts::store::redis::commands;

#[derive(Args)]
pub struct Explain {
    /// File with one record: an event, or several; - is standard input
    #[arg(value_name = "EVENT.json")]
    file: String,

    /// The broker's timestamp of the record, in RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,

    /// A header of the record, for events.name_header and CloudEvents; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,

    #[arg(long)]
    json: bool,
}

impl Explain {
    pub fn run(self, config: &Config) -> Outcome {
        let rules = config.rules().validate().map_err(|error| Failure::Usage(error.to_string()))?;
        let (Explained { events, are_several }, folded) = Explainer::new(Plan::new(rules)).explain(self.record()?);
        let operations = commands(&config.store.redis.prefix, &folded.batch);
        if self.json {
            return print_json(&serde_json::json!({
                "events": events.iter().map(event_json).collect::<Vec<_>>(),
                "operations": operations,
                "values_skipped": folded.stats.values_skipped,
                "values_cut": folded.stats.values_cut,
                "values_rounded": folded.stats.values_rounded,
                "buckets_expired": folded.stats.buckets_expired,
            }));
        }
        let mut refused = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let of_several = if are_several { format!("event {index}: ") } else { String::new() };
            match event {
                Ok(event) => print_event(&of_several, event)?,
                Err(error) => {
                    let (reason, detail) = (error.reason.name(), &error.detail);
                    refused.push(format!("{of_several}would be a dead letter, {reason}: {detail}"));
                }
            }
        }
        for line in &operations {
            say!("{line}");
        }
        print_stats(&folded.stats)?;
        let counts_nowhere = |event: &&ExplainedEvent| event.patterns.iter().all(|found| found.value.is_err());
        if let Some(first) = refused.first() {
            let more = refused.len() - 1;
            let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
            let subject = if are_several { "" } else { "the event " };
            return Err(Failure::Failed(format!("{subject}{first}{more}")));
        }
        if let Some(event) = events.iter().flatten().find(counts_nowhere) {
            return Err(Failure::Failed(format!(
                "{} counts nowhere: no pattern of [mapping] finds its fields",
                event.name
            )));
        }
        Ok(())
    }

    fn record(&self) -> Result<RecordBatch, Failure> {
        let broker_ms = match &self.at {
            None => now_ms(),
            Some(at) => DateTime::parse_from_rfc3339(at)
                .map_err(|_| Failure::Usage(format!("--at {at:?} is not a time like 2026-01-31T12:00:00Z")))?
                .timestamp_millis(),
        };
        let mut records = RecordBatch::new(TopicPartition::new("explain", 0), 0);
        records.push(0, broker_ms, None, Some(&self.read()?));
        for header in &self.headers {
            let pair = header.split_once('=');
            let (name, value) =
                pair.ok_or_else(|| Failure::Usage(format!("--header {header:?}: write it as NAME=VALUE")))?;
            records.push_header((name, Some(value.as_bytes())));
        }
        Ok(records)
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

fn time_of(event: &ExplainedEvent) -> String {
    let time = DateTime::from_timestamp(event.second, 0).expect("event times are limited to the years 1 to 9999");
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// As comments, so that the rest of the output is commands and nothing else.
fn print_event(of_several: &str, event: &ExplainedEvent) -> Outcome {
    let source = event.time_field.as_deref().unwrap_or("the timestamp of the record, since the event has none");
    say!("# {of_several}{}, at {} (from {source})", in_comment(&event.name), time_of(event));
    let width = event.patterns.iter().map(|found| found.pattern.chars().count()).max().unwrap_or(0);
    for found in &event.patterns {
        let value = match &found.value {
            Ok(value) => in_comment(value),
            Err(absent) => format!("not counted: {}: {}", in_comment(&absent.field), absent.why),
        };
        say!("#   {:<9} {:<width$}  {value}", found.kind, found.pattern);
    }
    let is_unknown = |found: &ExplainedPattern| found.value.as_ref().is_err_and(Absent::is_unknown);
    if event.patterns.iter().any(is_unknown) {
        let paths: Vec<String> = event.paths.iter().map(|path| in_comment(path)).collect();
        say!("#   the event has {}", paths.join(", "));
    }
    Ok(())
}

/// Words of the event in a comment: as they are, or like an argument where a shell that knows no
/// comments, and that somebody pastes all of it into, would do something with them.
fn in_comment(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || " ~._-/:@+%,()*".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { escape::redis_cli(text) }
}

fn event_json(event: &Result<ExplainedEvent, Refused>) -> serde_json::Value {
    match event {
        Err(refused) => serde_json::json!({ "reason": refused.reason.name(), "detail": refused.detail }),
        Ok(event) => {
            let patterns = event.patterns.iter().map(|found| {
                serde_json::json!({
                    "kind": found.kind,
                    "pattern": found.pattern,
                    "value": found.value.as_ref().ok(),
                    "not_counted": found.value.as_ref().err().map(ToString::to_string),
                })
            });
            serde_json::json!({
                "event": event.name,
                "time": time_of(event),
                "time_field": event.time_field,
                "patterns": patterns.collect::<Vec<_>>(),
                "fields": event.paths,
            })
        }
    }
}

fn print_stats(stats: &FoldStats) -> Outcome {
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
