//! The fold on one thread: records in memory to merged batches, for the three mappings of the
//! README.
//!
//! `cargo bench --bench fold -- CORPUS.ndjson [--passes N] [--batch EVENTS] [MAPPING...]` prints
//! one JSON line per mapping.

use std::sync::Arc;
use std::time::Instant;

use traqq_core::model::{Checkpoint, Part, RecordBatch, TopicPartition};
use traqq_counts::compile::{FoldStats, Folded, Folder, Plan};
use traqq_counts::mapping::Rules;

const MAPPINGS: [(&str, &str); 3] = [
    ("SMALL", r#"{"mapping":{"bitmap":["ip"],"add":["event"]}}"#),
    (
        "MEDIUM",
        r#"{"mapping":{"bitmap":["ip"],"add":["event","event~utm_source","event~geo","utm_source~utm_campaign"],
            "add_value":[{"key":"event","add_key":"amount"},{"key":"event~utm_campaign","add_key":"amount"}],
            "top":["geo","url"]}}"#,
    ),
    (
        "LARGE",
        r#"{"mapping":{"bitmap":["ip"],"auto_pairs":false,"add":["event","utm_source","utm_medium","utm_campaign","utm_term",
            "utm_source~utm_medium","utm_source~utm_campaign","utm_source~utm_term","utm_medium~utm_campaign",
            "utm_medium~utm_term","utm_campaign~utm_term","utm_source~utm_medium~utm_campaign",
            "utm_source~utm_medium~utm_term","utm_source~utm_campaign~utm_term","utm_medium~utm_campaign~utm_term",
            "event~utm_source","event~utm_medium","event~utm_campaign","event~utm_term",
            "event~utm_source~utm_campaign"]}}"#,
    ),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let option = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
    };
    let (passes, batch) = (option("--passes", 7), option("--batch", 50_000));
    let corpus = std::fs::read(arguments.first().expect("a corpus file")).expect("a readable corpus");
    let lines: Vec<&[u8]> = corpus.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    for (name, rules) in MAPPINGS {
        let is_asked = arguments.iter().any(|argument| argument == name);
        if is_asked || !arguments.iter().any(|argument| MAPPINGS.iter().any(|(name, _)| name == argument)) {
            measure(name, rules, &lines, passes, batch);
        }
    }
}

fn measure(name: &str, rules: &str, lines: &[&[u8]], passes: usize, batch: usize) {
    let rules: Rules = serde_json::from_str(rules).expect("rules");
    let mut folder = Folder::new(Arc::new(Plan::new(rules.validate().expect("valid rules"))), usize::MAX);
    let parts: Vec<Part> = lines.chunks(batch).map(part).collect();
    let mut seconds = Vec::new();
    let mut total = FoldStats::default();
    // The first pass warms up and is not counted.
    for pass in 0..=passes {
        total = FoldStats::default();
        let begun = Instant::now();
        for part in &parts {
            for Folded { stats, dead_letters, .. } in folder.fold(std::slice::from_ref(part)) {
                assert!(dead_letters.is_empty(), "the corpus has no bad records");
                total.events += stats.events;
                total.operations += stats.operations;
                total.operations_merged += stats.operations_merged - stats.elements_merged;
                total.elements_merged += stats.elements_merged;
            }
        }
        if pass > 0 {
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let result = serde_json::json!({
        "mapping": name,
        "events": total.events,
        "seconds": median,
        "events_per_second": total.events as f64 / median,
        "operations": total.operations,
        "field_operations_merged": total.operations_merged,
        "hll_elements_merged": total.elements_merged,
        "operations_per_field_operation": total.operations as f64 / total.operations_merged as f64,
    });
    println!("{result}");
}

/// Broker timestamps stand a day after the corpus begins, so that every event passes the checks of
/// time.
fn part(lines: &[&[u8]]) -> Part {
    let mut records = RecordBatch::new(TopicPartition::new("corpus", 0), 0);
    for (offset, line) in lines.iter().enumerate() {
        records.push(offset as i64, timestamp_ms(line), None, Some(line));
    }
    Part { records, from: Checkpoint::start(0) }
}

fn timestamp_ms(line: &[u8]) -> i64 {
    let at = memchr::memmem::find(line, b"\"ts\":").expect("a time") + 5;
    let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
}
