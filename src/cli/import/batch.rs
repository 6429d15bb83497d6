//! Cutting a file into batches: always the same ones, so that a server knows those it had.

use hyper::body::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::csv::Rows;
use super::lines::Lines;
use super::source::Input;
use super::{Format, Item};

/// Changing one of these makes an interrupted import count twice when it is run again.
const EVENTS_MAX: usize = 1000;
const BYTES_MAX: usize = 1 << 20;

/// Some events of a file, as NDJSON.
#[derive(PartialEq, Eq, Debug)]
pub struct Batch {
    pub body: Bytes,
    /// The line of each event in the body.
    pub lines: Vec<u64>,
    /// Lines that are no events, with the reason.
    pub unreadable: Vec<(u64, String)>,
    /// The idempotency key.
    pub key: String,
}

pub struct Batches {
    items: Items,
    /// Hash of all that was cut so far: of the content, whatever the file's name and compression are.
    chain: u128,
    /// An event that did not fit into the batch before.
    held: Option<(u64, Vec<u8>)>,
}

enum Items {
    Lines(Lines<Input>),
    Rows(Box<Rows<Input>>),
}

impl Batches {
    /// Two imports with a different `run` have no key in common.
    pub fn new(input: Input, format: Format, run: u64) -> Self {
        let items = match format {
            Format::Ndjson => Items::Lines(Lines::new(input, BYTES_MAX)),
            Format::Csv => Items::Rows(Box::new(Rows::new(input, BYTES_MAX))),
        };
        Self { items, chain: run.into(), held: None }
    }

    /// The next batch, and `None` at the end. After an error of the input there is nothing more, and the batch that it fell into
    /// is not cut: a mended file has another one there.
    pub fn next(&mut self) -> Result<Option<Batch>, String> {
        let (mut body, mut lines, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        if let Some((line, event)) = self.held.take() {
            body = event;
            lines.push(line);
        }
        while lines.len() + unreadable.len() < EVENTS_MAX {
            let start = body.len();
            let item = match &mut self.items {
                Items::Lines(lines) => lines.next(&mut body)?,
                Items::Rows(rows) => rows.next(&mut body)?,
            };
            let Some(Item { line, result }) = item else { break };
            if let Err(why) = result {
                unreadable.push((line, why));
                continue;
            }
            body.push(b'\n');
            if start > 0 && body.len() > BYTES_MAX {
                self.held = Some((line, body.split_off(start)));
                break;
            }
            lines.push(line);
        }
        if lines.is_empty() && unreadable.is_empty() {
            return Ok(None);
        }
        // The batch, and through the chain its place and everything in front of it.
        let mut hash = Xxh3::new();
        hash.update(&self.chain.to_le_bytes());
        hash.update(&body);
        self.chain = hash.digest128();
        Ok(Some(Batch { body: body.into(), lines, unreadable, key: format!("import-{:032x}", self.chain) }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use super::*;

    fn batches(text: &str, format: Format, run: u64) -> Vec<Batch> {
        // Reads of odd lengths must not matter.
        let input = BufReader::with_capacity(7 + text.len() % 5, Cursor::new(text.to_owned()));
        let mut batches = Batches::new(Box::new(input), format, run);
        std::iter::from_fn(|| batches.next().unwrap()).collect()
    }

    fn ndjson(count: usize) -> String {
        (0..count).map(|index| format!("{{\"event\":\"e{index}\"}}\n")).collect()
    }

    fn keys(batches: &[Batch]) -> Vec<&str> {
        batches.iter().map(|batch| batch.key.as_str()).collect()
    }

    #[test]
    fn a_batch_has_so_many_events() {
        let found = batches(&ndjson(2500), Format::Ndjson, 0);
        assert_eq!(found.iter().map(|batch| batch.lines.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!((found[1].lines[0], found[2].lines[499]), (1001, 2500));
        assert_eq!(batches(&ndjson(1000), Format::Ndjson, 0).len(), 1);
        assert_eq!(batches("\n\n", Format::Ndjson, 0), []);
    }

    #[test]
    fn a_batch_has_so_many_bytes() {
        let long = format!("{{\"event\":\"{}\"}}\n", "x".repeat(400_000)).repeat(5);
        let found = batches(&long, Format::Ndjson, 0);
        assert_eq!(
            found.iter().map(|batch| batch.lines.clone()).collect::<Vec<_>>(),
            [vec![1, 2], vec![3, 4], vec![5]]
        );
        assert!(found.iter().all(|batch| batch.body.len() <= BYTES_MAX));
        assert_eq!(found.iter().map(|batch| batch.body.len()).sum::<usize>(), long.len());
        let one = "x".repeat(BYTES_MAX);
        let found = batches(&format!("{one}\n{one}y\n{one}"), Format::Ndjson, 0);
        assert_eq!(found[0].lines, [1]);
        assert_eq!((found[1].lines.clone(), found[0].unreadable[0].0), (vec![3], 2));
    }

    /// What makes a second run of an import harmless. The key is written down: another one would count twice whatever an
    /// earlier version had sent.
    #[test]
    fn the_same_content_has_the_same_keys() {
        let text = ndjson(2500);
        let first = batches(&text, Format::Ndjson, 0);
        assert_eq!(keys(&first)[0], "import-ba929558f472b865b1778e4bdef63780");
        assert_eq!(keys(&first), keys(&batches(&text, Format::Ndjson, 0)));
        let grown = batches(&(text.clone() + &ndjson(10)), Format::Ndjson, 0);
        assert_eq!(keys(&first)[..2], keys(&grown)[..2]);
        assert_ne!(keys(&first)[2], keys(&grown)[2]);
        let csv: String =
            std::iter::once("event\n".to_owned()).chain((0..2500).map(|index| format!("e{index}\n"))).collect();
        assert_eq!(keys(&batches(&csv, Format::Csv, 0)), keys(&first));
    }

    #[test]
    fn every_place_and_run_has_its_own_keys() {
        let same = "{\"event\":\"a\"}\n".repeat(3000);
        let (first, again) = (batches(&same, Format::Ndjson, 0), batches(&same, Format::Ndjson, 7));
        let keys: std::collections::HashSet<&str> = keys(&first).into_iter().chain(keys(&again)).collect();
        assert_eq!(keys.len(), 6);
    }

    #[test]
    fn nothing_but_unreadable_lines_is_bounded_too() {
        let found = batches(&format!("a,b\n{}", "1\n".repeat(2500)), Format::Csv, 0);
        assert_eq!(found.iter().map(|batch| batch.unreadable.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert!(found.iter().all(|batch| batch.body.is_empty()));
    }
}
