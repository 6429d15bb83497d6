//! `fold_old CORPUS.ndjson SMALL|MEDIUM|LARGE [--passes 3]`: parse and process with the published
//! crate, one thread.
//!
//! An event takes the way it takes in the crate's own server: text to `Value`,
//! `IncomingEvent::from_json`, `ProcessedEvent::from_incoming`. Nothing is stored. The crate
//! buckets by the wall clock, so `ts` is not asked for. `TraqqConfig::validate` refuses MEDIUM (a
//! pattern may appear in one kind of metric only); processing does not call it.

use std::hint::black_box;
use std::path::Path;

use traqq::prelude::{AddValueConfig, IncomingEvent, MappingConfig, ProcessedEvent, TraqqConfig};
use traqq_compare::corpus_file::CorpusFile;

const USAGE: &str = "fold_old CORPUS.ndjson SMALL|MEDIUM|LARGE [--passes 3]";

fn main() {
    let mut positional = Vec::new();
    let mut passes = 3;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--passes" => passes = arguments.next().and_then(|count| count.parse().ok()).expect(USAGE),
            _ => positional.push(argument),
        }
    }
    let [path, mapping] = positional.try_into().expect(USAGE);
    let corpus = CorpusFile::open(Path::new(&path)).expect("the corpus is readable");
    let (mapping, commands_expected) = mapping_named(&mapping);
    let config = TraqqConfig { mapping, ..TraqqConfig::default() };

    let first = corpus.lines().next().expect("a corpus is not empty");
    assert_eq!(fold(first, &config), commands_expected, "the first event does not fill the mapping");
    let seconds = corpus.median_seconds(passes, |corpus| {
        for line in corpus.lines() {
            black_box(fold(line, &config));
        }
    });
    let events = corpus.len();
    println!(r#"{{"events":{events},"seconds":{seconds:.4},"events_per_second":{:.0}}}"#, events as f64 / seconds);
}

/// The number of storage commands the event becomes.
fn fold(line: &[u8], config: &TraqqConfig) -> usize {
    let json = serde_json::from_slice(line).expect("the corpus is JSON");
    let event = IncomingEvent::from_json(json).expect("every event has a name");
    let processed = ProcessedEvent::from_incoming(event, config).expect("every event can be processed");
    black_box(&processed).commands.len()
}

/// The mapping and the commands that a full event becomes with it.
fn mapping_named(name: &str) -> (MappingConfig, usize) {
    let patterns = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let amount_by = |key: &str| AddValueConfig { key: key.into(), add_key: "amount".into() };
    let mapping = |add: &[&str]| MappingConfig {
        bitmap: patterns(&["ip"]),
        add: patterns(add),
        add_value: Vec::new(),
        top: Vec::new(),
    };
    match name {
        "SMALL" => (mapping(&["event"]), 2),
        "MEDIUM" => (
            MappingConfig {
                add_value: vec![amount_by("event"), amount_by("event~utm_campaign")],
                top: patterns(&["geo", "url"]),
                ..mapping(&["event", "event~utm_source", "event~geo", "utm_source~utm_campaign"])
            },
            13,
        ),
        "LARGE" => (mapping(&LARGE_ADD), 21),
        _ => panic!("{USAGE}"),
    }
}

const LARGE_ADD: [&str; 20] = [
    "event",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_medium~utm_source",
    "utm_campaign~utm_source",
    "utm_source~utm_term",
    "utm_campaign~utm_medium",
    "utm_medium~utm_term",
    "utm_campaign~utm_term",
    "utm_campaign~utm_medium~utm_source",
    "utm_medium~utm_source~utm_term",
    "utm_campaign~utm_source~utm_term",
    "utm_campaign~utm_medium~utm_term",
    "event~utm_source",
    "event~utm_medium",
    "event~utm_campaign",
    "event~utm_term",
    "event~utm_campaign~utm_source",
];
