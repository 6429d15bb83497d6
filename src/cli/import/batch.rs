//! Cutting a file into batches: always the same ones, so that a server knows those it had.

use hyper::body::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::Item;
use super::lines::Lines;
use super::rows::Rows;
use super::source::Input;
use super::times::{Refusal, Times};
use traqq_core::error::ErrorLine;

/// Changing one of these makes an interrupted import count twice when it is run again.
const EVENTS_MAX: usize = 1000;
const BYTES_MAX: usize = 1 << 20;
/// Of a file that is refused, to find what else is wrong with it.
const LOOKED_AT_BYTES_MAX: usize = 256 << 20;

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
    times: Times,
    /// Hash of all that was cut so far: of the content, whatever the file's name and packing are,
    /// and whatever gives events their time. So what was sent with another time is known again, and
    /// refused rather than counted twice.
    chain: u128,
    /// An event that did not fit into the batch before.
    held: Option<(u64, Vec<u8>)>,
    /// A batch was cut.
    has_begun: bool,
}

/// How a file holds events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    Lines,
    /// With what stands between cells, if that is known.
    Rows(Option<u8>),
}

enum Items {
    Lines(Lines<Input>),
    Rows(Box<Rows<Input>>),
}

impl Items {
    fn next(&mut self, event: &mut Vec<u8>) -> Result<Option<Item>, ErrorLine> {
        match self {
            Self::Lines(lines) => lines.next(event),
            Self::Rows(rows) => rows.next(event),
        }
    }
}

/// A batch that is being filled.
#[derive(Default)]
struct Filling {
    body: Vec<u8>,
    lines: Vec<u64>,
    unreadable: Vec<(u64, String)>,
    /// What was taken of the file, as the file has it: so a batch ends in the same place whatever
    /// becomes of its events.
    items: usize,
    bytes: usize,
}

impl Filling {
    fn first_line(&self) -> Option<u64> {
        self.lines.first().into_iter().chain(self.unreadable.first().map(|(line, _)| line)).min().copied()
    }
}

impl Batches {
    /// Two imports with a different `run` have no key in common.
    pub fn new(input: Input, layout: Layout, times: Times, run: u64) -> Self {
        let items = match layout {
            Layout::Lines => Items::Lines(Lines::new(input, BYTES_MAX)),
            Layout::Rows(separator) => Items::Rows(Box::new(Rows::new(input, separator, BYTES_MAX))),
        };
        Self { items, times, chain: run.into(), held: None, has_begun: false }
    }

    /// The next batch, and `None` at the end. After an error of the input there is nothing more,
    /// and the batch that it fell into is not cut: a mended file has another one there.
    pub fn next(&mut self) -> Result<Option<Batch>, ErrorLine> {
        let mut filling = Filling::default();
        match self.fill(&mut filling) {
            Ok(batch) => {
                self.has_begun = true;
                Ok(batch)
            }
            Err(why) => Err(why.followed_by(&match filling.first_line() {
                _ if !self.has_begun => "; nothing of it was imported".to_owned(),
                Some(line) => format!("; nothing from line {line} on was imported"),
                None => "; nothing from there on was imported".to_owned(),
            })),
        }
    }

    fn fill(&mut self, filling: &mut Filling) -> Result<Option<Batch>, ErrorLine> {
        // The batch, and through the chain its place and everything in front of it.
        let mut hash = Xxh3::new();
        hash.update(&self.chain.to_le_bytes());
        if let Some((line, event)) = self.held.take() {
            self.add(filling, &mut hash, line, event)?;
        }
        while filling.items < EVENTS_MAX {
            let mut event = Vec::new();
            let item = self.items.next(&mut event)?;
            let Some(Item { line, result }) = item else { break };
            if let Err(why) = result {
                filling.items += 1;
                filling.unreadable.push((line, why.to_string()));
                continue;
            }
            event.push(b'\n');
            if filling.bytes > 0 && filling.bytes + event.len() > BYTES_MAX {
                self.held = Some((line, event));
                break;
            }
            self.add(filling, &mut hash, line, event)?;
        }
        if filling.items == 0 {
            return Ok(None);
        }
        self.chain = hash.digest128();
        let Filling { body, lines, unreadable, .. } = std::mem::take(filling);
        Ok(Some(Batch { body: body.into(), lines, unreadable, key: format!("import-{:032x}", self.chain) }))
    }

    fn add(&mut self, filling: &mut Filling, hash: &mut Xxh3, line: u64, event: Vec<u8>) -> Result<(), ErrorLine> {
        hash.update(&event);
        filling.items += 1;
        filling.bytes += event.len();
        let Some(events) = self.times.split(&event) else { return self.add_one(filling, line, event) };
        let events: Vec<Vec<u8>> = events.iter().map(|event| format!("{event}\n").into_bytes()).collect();
        for (index, event) in events.into_iter().enumerate() {
            // Nor does the server look for events in the events of a record.
            if event.starts_with(b"{") && self.times.split(&event).is_none() {
                self.add_one(filling, line, event)?;
            } else {
                filling.unreadable.push((line, format!("event {index} of the line is none")));
            }
        }
        Ok(())
    }

    fn add_one(&mut self, filling: &mut Filling, line: u64, mut event: Vec<u8>) -> Result<(), ErrorLine> {
        let columns = match &self.items {
            Items::Lines(_) => &[],
            Items::Rows(rows) => rows.columns(),
        };
        match self.times.apply(&mut event, columns) {
            Ok(()) => {
                filling.body.extend_from_slice(&event);
                filling.lines.push(line);
            }
            Err(Refusal::Event(why)) => filling.unreadable.push((line, why)),
            Err(Refusal::File(why)) => {
                let more = self.broken_later().map(|error| format!("; besides, {error}")).unwrap_or_default();
                return Err(format!("line {line}: {why}{more}").into());
            }
        }
        Ok(())
    }

    /// What ends the input before its end: whoever mends the file is told everything at once.
    fn broken_later(&mut self) -> Option<ErrorLine> {
        let mut bytes = 0;
        while bytes < LOOKED_AT_BYTES_MAX {
            let mut event = Vec::new();
            match self.items.next(&mut event) {
                Ok(Some(_)) => bytes += event.len() + 1,
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use super::super::times::Mode;
    use super::*;
    use traqq_core::decode::EventRules;

    const CSV: Layout = Layout::Rows(None);

    fn open(text: &str, layout: Layout, mode: Mode, run: u64) -> Batches {
        // Reads of odd lengths must not matter.
        let input = BufReader::with_capacity(7 + text.len() % 5, Cursor::new(text.to_owned()));
        Batches::new(Box::new(input), layout, Times::new(mode, &EventRules::default()), run)
    }

    fn batches(text: &str, layout: Layout, run: u64) -> Vec<Batch> {
        let mut batches = open(text, layout, Mode::Now, run);
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
        let found = batches(&ndjson(2500), Layout::Lines, 0);
        assert_eq!(found.iter().map(|batch| batch.lines.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!((found[1].lines[0], found[2].lines[499]), (1001, 2500));
        assert_eq!(batches(&ndjson(1000), Layout::Lines, 0).len(), 1);
        assert_eq!(batches("\n\n", Layout::Lines, 0), []);
    }

    #[test]
    fn a_batch_has_so_many_bytes() {
        let long = format!("{{\"event\":\"{}\"}}\n", "x".repeat(400_000)).repeat(5);
        let found = batches(&long, Layout::Lines, 0);
        assert_eq!(
            found.iter().map(|batch| batch.lines.clone()).collect::<Vec<_>>(),
            [vec![1, 2], vec![3, 4], vec![5]]
        );
        assert!(found.iter().all(|batch| batch.body.len() <= BYTES_MAX));
        assert_eq!(found.iter().map(|batch| batch.body.len()).sum::<usize>(), long.len());
        let one = "x".repeat(BYTES_MAX);
        let found = batches(&format!("{one}\n{one}y\n{one}"), Layout::Lines, 0);
        assert_eq!(found[0].lines, [1]);
        assert_eq!((found[1].lines.clone(), found[0].unreadable[0].0), (vec![3], 2));
    }

    /// What makes a second run of an import harmless. The key is written down: another one would
    /// count twice whatever an earlier version had sent.
    #[test]
    fn the_same_content_has_the_same_keys() {
        let text = ndjson(2500);
        let first = batches(&text, Layout::Lines, 0);
        assert_eq!(keys(&first)[0], "import-ba929558f472b865b1778e4bdef63780");
        assert_eq!(keys(&first), keys(&batches(&text, Layout::Lines, 0)));
        let grown = batches(&(text.clone() + &ndjson(10)), Layout::Lines, 0);
        assert_eq!(keys(&first)[..2], keys(&grown)[..2]);
        assert_ne!(keys(&first)[2], keys(&grown)[2]);
        let csv: String =
            std::iter::once("event\n".to_owned()).chain((0..2500).map(|index| format!("e{index}\n"))).collect();
        assert_eq!(keys(&batches(&csv, CSV, 0)), keys(&first));
    }

    #[test]
    fn every_place_and_run_has_its_own_keys() {
        let same = "{\"event\":\"a\"}\n".repeat(3000);
        let (first, again) = (batches(&same, Layout::Lines, 0), batches(&same, Layout::Lines, 7));
        let keys: std::collections::HashSet<&str> = keys(&first).into_iter().chain(keys(&again)).collect();
        assert_eq!(keys.len(), 6);
    }

    /// The same file with another time, run again, is not to count twice: the server knows the key,
    /// and not the body.
    #[test]
    fn a_batch_has_its_key_whatever_gives_it_its_time() {
        let text: String = (0..1500).map(|index| format!("{{\"event\":\"a\",\"at\":{index},\"ts\":null}}\n")).collect();
        let with = |mode: Mode| {
            let mut batches = open(&text, Layout::Lines, mode, 0);
            std::iter::from_fn(move || batches.next().unwrap()).collect::<Vec<_>>()
        };
        let (now, at, required) = (with(Mode::Now), with(Mode::Field("at".to_owned())), with(Mode::Required));
        assert_eq!((keys(&now), keys(&now)), (keys(&at), keys(&required)));
        assert!(at[1].body.ends_with(b"{\"event\":\"a\",\"at\":1499,\"ts\":null,\"ts\":1499}\n"));
        assert_eq!((required[0].unreadable.len(), required[0].body.len()), (1000, 0));
    }

    /// The server counts events, and a person lines.
    #[test]
    fn events_of_one_line_have_its_number() {
        let text = "{\"event\":\"a\"}\n[{\"event\":\"b\"},7,{\"event\":\"c\"}]\n{\"event\":\"d\"}{}\n";
        let found = batches(text, Layout::Lines, 0);
        assert_eq!(found[0].lines, [1, 2, 2, 3, 3]);
        assert_eq!(found[0].unreadable, [(2, "event 1 of the line is none".to_owned())]);
        assert!(found[0].body.starts_with(b"{\"event\":\"a\"}\n{\"event\":\"b\"}\n{\"event\":\"c\"}\n"));
    }

    #[test]
    fn an_error_says_what_was_not_imported() {
        let rows = format!("event,ts\n{}a,\"1\n", "a,1\n".repeat(1500));
        let mut found = open(&rows, CSV, Mode::Required, 0);
        assert_eq!(found.next().unwrap().unwrap().lines.len(), 1000);
        let why = found.next().unwrap_err();
        assert!(
            why.to_string().starts_with("line 1502: ")
                && why.to_string().ends_with("; nothing from line 1002 on was imported"),
            "{why}"
        );
        let why = open("event,ts\na,1\na,\"", CSV, Mode::Required, 0).next().unwrap_err();
        assert!(
            why.to_string().starts_with("line 3: ") && why.to_string().ends_with("; nothing of it was imported"),
            "{why}"
        );
    }

    #[test]
    fn nothing_but_unreadable_lines_is_bounded_too() {
        let found = batches(&format!("a,b\n{}", "1\n".repeat(2500)), CSV, 0);
        assert_eq!(found.iter().map(|batch| batch.unreadable.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert!(found.iter().all(|batch| batch.body.is_empty()));
    }
}
