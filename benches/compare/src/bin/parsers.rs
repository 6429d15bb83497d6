//! `parsers CORPUS.ndjson [--passes 5] [NAME...]`: MEDIUM's fields out of every event, one thread,
//! one line a parser.
//!
//! Each parser is examined first. One whose `validates` is false does less than traqq's own has to.

use std::hint::black_box;
use std::path::Path;

use traqq_compare::conformance::{Conformance, examine, read};
use traqq_compare::contender::{
    Contender, RawSlots, RawSlotsUtf8, SerdeTyped, SerdeTypedUtf8, SerdeValue, SimdBorrowed, SimdTape, SimdTyped,
    SonicGetMany, SonicObjectIter, SonicTyped, SonicValue,
};
use traqq_compare::corpus_file::CorpusFile;

const USAGE: &str = "parsers CORPUS.ndjson [--passes 5] [NAME...]";

struct Run {
    corpus: CorpusFile,
    passes: usize,
    /// Empty for all.
    names: Vec<String>,
}

fn main() {
    let mut positional = Vec::new();
    let mut passes = 5;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--passes" => passes = arguments.next().and_then(|count| count.parse().ok()).expect(USAGE),
            _ => positional.push(argument),
        }
    }
    let (path, names) = positional.split_first().expect(USAGE);
    let corpus = CorpusFile::open(Path::new(path)).expect("the corpus is readable");
    let run = Run { corpus, passes, names: names.to_vec() };

    run.contender::<SerdeValue>();
    run.contender::<SerdeTyped>();
    run.contender::<SerdeTypedUtf8>();
    run.contender::<RawSlots>();
    run.contender::<RawSlotsUtf8>();
    run.contender::<SimdTape>();
    run.contender::<SimdBorrowed>();
    run.contender::<SimdTyped>();
    run.contender::<SonicGetMany>();
    run.contender::<SonicObjectIter>();
    run.contender::<SonicTyped>();
    run.contender::<SonicValue>();
}

impl Run {
    fn contender<C: Contender>(&self) {
        if !self.names.is_empty() && !self.names.iter().any(|name| name == C::NAME) {
            return;
        }
        let Conformance { validates, exact_numbers, deviations } = examine::<C>();
        let misread = self.misread::<C>();
        let mut contender = C::default();
        let seconds = self.corpus.median_seconds(self.passes, |corpus| {
            for line in corpus.lines() {
                black_box(contender.parse(line, |fields| {
                    black_box(&fields);
                }));
            }
        });
        println!(
            r#"{{"parser":"{}","events_per_second":{:.0},"validates":{validates},"exact_numbers":{exact_numbers},"misread_of_first_2000":{misread},"note":"{}","deviations":{}}}"#,
            C::NAME,
            self.corpus.len() as f64 / seconds,
            C::NOTE,
            serde_json::json!(deviations),
        );
    }

    /// How many of the first 2,000 events read otherwise than by the typed serde_json; numbers as
    /// the nearest f64.
    fn misread<C: Contender>(&self) -> usize {
        let (mut reference, mut contender) = (SerdeTypedUtf8, C::default());
        self.corpus
            .lines()
            .take(2_000)
            .filter(|line| {
                let expected = read(&mut reference, line).map(|fields| fields.map(nearest));
                expected.is_none() || expected != read(&mut contender, line).map(|fields| fields.map(nearest))
            })
            .count()
    }
}

fn nearest(field: String) -> String {
    match field.strip_prefix("number ").and_then(|number| number.parse::<f64>().ok()) {
        Some(number) => format!("number {number}"),
        None => field,
    }
}
