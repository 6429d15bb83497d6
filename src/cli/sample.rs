//! `traqq config check --sample`: how many events of a file each pattern of the mapping finds
//! something in.

use std::collections::BTreeMap;
use std::path::Path;

use super::table::Table;
use super::{Failure, Outcome};
use crate::app::now_ms;
use traqq_core::decode;
use traqq_core::model::{RecordBatch, TopicPartition};
use traqq_counts::compile::{Explainer, Plan};
use traqq_counts::mapping::ValidRules;

/// Reasons and missing fields that are shown of each pattern.
const EXAMPLES_MAX: usize = 3;

#[derive(Default)]
struct Found {
    events: usize,
    /// Why events do not count here, and how many.
    absent: BTreeMap<String, usize>,
}

/// `file` has an event a line, or one record. An error when a pattern finds nothing in any event.
pub fn check(file: &Path, rules: ValidRules) -> Outcome {
    let bytes = std::fs::read(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    let mut explainer = Explainer::new(Plan::new(rules));
    let mut patterns: Vec<((&'static str, String), Found)> = Vec::new();
    let (mut events, mut refused) = (0, BTreeMap::<String, usize>::new());
    for record in records(&bytes) {
        let mut batch = RecordBatch::new(TopicPartition::new("sample", 0), 0);
        batch.push(0, now_ms(), None, Some(record));
        for event in explainer.explain(batch).0.events {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    *refused.entry(error.detail).or_default() += 1;
                    continue;
                }
            };
            events += 1;
            for (index, found) in event.patterns.into_iter().enumerate() {
                if index == patterns.len() {
                    patterns.push(((found.kind, found.pattern), Found::default()));
                }
                let entry = &mut patterns[index].1;
                match found.value {
                    Ok(_) => entry.events += 1,
                    Err(absent) => *entry.absent.entry(absent.to_string()).or_default() += 1,
                }
            }
        }
    }
    let mut table = Table::new(&["metric", "pattern", "events", "not counted because"]);
    for ((kind, pattern), found) in &patterns {
        let absent = most(&found.absent);
        table.row([(*kind).to_owned(), pattern.clone(), format!("{} of {events}", found.events), absent]);
    }
    table.print()?;
    if !refused.is_empty() {
        let count: usize = refused.values().sum();
        say!("{count} would be dead letters: {}", most(&refused));
    }
    if events == 0 {
        return Err(Failure::Failed(format!("{}: there is no event in it that can be counted", file.display())));
    }
    let empty: Vec<String> = patterns
        .iter()
        .filter(|(_, found)| found.events == 0)
        .map(|((kind, pattern), _)| format!("{kind} {pattern}"))
        .collect();
    if empty.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!("no event of the sample counts in: {}", empty.join(", "))))
}

/// The most frequent entries first.
fn most(counts: &BTreeMap<String, usize>) -> String {
    let mut entries: Vec<(&String, &usize)> = counts.iter().collect();
    entries.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown: Vec<String> =
        entries.iter().take(EXAMPLES_MAX).map(|(text, count)| format!("{text} ({count})")).collect();
    shown.join("; ")
}

/// An event a line, unless the first line is only the beginning of one.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let lines = || bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let is_json = |line: &[u8]| std::str::from_utf8(line).is_ok_and(|text| decode::validate(text).is_ok());
    if lines().next().is_some_and(is_json) { lines().collect() } else { vec![bytes] }
}
