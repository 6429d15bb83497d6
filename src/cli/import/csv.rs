//! Records of CSV, strictly: cells in quotes as RFC 4180 has them, a separator of one byte, rows
//! that end with LF, CR LF or CR.
//!
//! A quote that is open decides where the next row begins, so nothing is guessed about one that is
//! wrong. A bad row is passed over when it certainly ends on its own line; otherwise nobody can say
//! which rows follow, and reading ends there.

use std::io::BufRead;

use traqq_core::error::ErrorLine;

const CELLS_MAX: usize = 4096;

pub struct Records<R> {
    input: R,
    separator: u8,
    /// Of the next byte, from 1.
    line: u64,
    /// The byte before it was a CR, so that an LF is the rest of a line end.
    is_after_cr: bool,
    /// The cells of the record one after the other, and where each ends.
    cells: Vec<u8>,
    ends: Vec<usize>,
    bytes_max: usize,
}

/// A row.
#[derive(PartialEq, Eq, Debug)]
pub struct Record {
    pub line: u64,
    /// Where it ends; another line when a line end stands in quotes.
    pub last_line: u64,
    /// Why it cannot be read.
    pub result: Result<(), ErrorLine>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    CellStart,
    Bare,
    Quoted,
    /// Behind a quote in a quoted cell: its end, or the first half of a doubled one.
    AfterQuote,
}

impl<R: BufRead> Records<R> {
    pub fn new(input: R, separator: u8, line: u64, bytes_max: usize) -> Self {
        Self { input, separator, line, is_after_cr: false, cells: Vec::new(), ends: Vec::new(), bytes_max }
    }

    /// The cells of the record that was read last.
    pub fn cells(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let start = |index: usize| if index == 0 { 0 } else { self.ends[index - 1] };
        self.ends.iter().enumerate().map(move |(index, end)| &self.cells[start(index)..*end])
    }

    /// The next row that is not blank. After an error it is not known where the next row begins.
    pub fn next(&mut self) -> Result<Option<Record>, ErrorLine> {
        self.skip_blank_lines()?;
        self.cells.clear();
        self.ends.clear();
        let mut row = Row { line: self.line, cell: 1, state: State::CellStart, quote_line: 0, fault: None };
        loop {
            let input = self
                .input
                .fill_buf()
                .map_err(|error| ErrorLine::of(format!("after line {}: {error}", row.line), error))?;
            let Some(&byte) = input.first() else { return self.end(row) };
            // All that has no meaning in this state is taken at once.
            let plain = match row.state {
                State::Bare => memchr::memchr3(self.separator, b'\r', b'\n', input).unwrap_or(input.len()),
                State::Quoted => memchr::memchr(b'"', input).unwrap_or(input.len()),
                State::CellStart | State::AfterQuote => 0,
            };
            if plain > 0 {
                if row.fault.is_none() {
                    self.cells.extend_from_slice(&input[..plain]);
                }
                self.consume(plain);
                self.check(&mut row)?;
                continue;
            }
            let ends_cell = byte == self.separator || is_line_end(byte);
            match (row.state, byte) {
                (State::CellStart, b'"') => {
                    (row.state, row.quote_line) = (State::Quoted, self.line);
                    self.consume(1);
                }
                (State::Quoted, _) => {
                    row.state = State::AfterQuote;
                    self.consume(1);
                }
                (State::AfterQuote, b'"') => {
                    row.state = State::Quoted;
                    if row.fault.is_none() {
                        self.cells.push(b'"');
                    }
                    self.consume(1);
                    self.check(&mut row)?;
                }
                (_, _) if ends_cell => {
                    self.end_cell(&mut row);
                    let last_line = self.line;
                    self.consume(1);
                    if is_line_end(byte) {
                        return Ok(Some(row.finish(last_line)));
                    }
                    (row.state, row.cell) = (State::CellStart, row.cell + 1);
                }
                (State::AfterQuote, _) => {
                    let cell = row.cell;
                    if self.line > row.quote_line {
                        return Err(format!(
                            "line {}: a quote is opened in cell {cell} and closed on line {}, where text follows it; \
                             a quote inside a quoted cell is written twice",
                            row.quote_line, self.line
                        )
                        .into());
                    }
                    let why = "text follows the closing quote of cell";
                    row.fault.get_or_insert(format!("{why} {cell}; a quote inside a quoted cell is written twice"));
                    row.state = State::Bare;
                }
                (_, _) => row.state = State::Bare,
            }
        }
    }

    fn end(&mut self, mut row: Row) -> Result<Option<Record>, ErrorLine> {
        match row.state {
            State::Quoted => Err(format!(
                "line {}: a quote is opened in cell {} and never closed; a cell that begins with a quote is written \"\"\"so\"",
                row.quote_line, row.cell
            ).into()),
            State::CellStart if row.cell == 1 => Ok(None),
            _ => {
                self.end_cell(&mut row);
                Ok(Some(row.finish(self.line)))
            }
        }
    }

    fn end_cell(&mut self, row: &mut Row) {
        if row.fault.is_none() {
            if self.ends.len() == CELLS_MAX {
                row.fault = Some(format!("more than {CELLS_MAX} cells"));
            } else {
                self.ends.push(self.cells.len());
            }
        }
    }

    /// Bounds a row, and ends reading when a bad one goes over its line in quotes.
    fn check(&mut self, row: &mut Row) -> Result<(), ErrorLine> {
        if row.fault.is_none() && self.cells.len() > self.bytes_max {
            row.fault = Some(format!("longer than {} bytes", self.bytes_max));
            self.cells.clear();
        }
        match &row.fault {
            Some(fault) if row.state == State::Quoted && self.line > row.quote_line => Err(format!(
                "line {}: {fault}, and the end of line {} stands in quotes; is a quote missing there?",
                row.line, row.quote_line
            )
            .into()),
            _ => Ok(()),
        }
    }

    fn skip_blank_lines(&mut self) -> Result<(), ErrorLine> {
        loop {
            let input = self
                .input
                .fill_buf()
                .map_err(|error| ErrorLine::of(format!("at line {}: {error}", self.line), error))?;
            let blank = input.iter().take_while(|byte| is_line_end(**byte)).count();
            let is_end = blank == 0;
            self.consume(blank);
            if is_end {
                return Ok(());
            }
        }
    }

    /// Consumes bytes of the buffer, which holds them still.
    fn consume(&mut self, length: usize) {
        let Ok(input) = self.input.fill_buf() else { return };
        for at in memchr::memchr2_iter(b'\r', b'\n', &input[..length]) {
            let is_after_cr = if at == 0 { self.is_after_cr } else { input[at - 1] == b'\r' };
            self.line += u64::from(input[at] == b'\r' || !is_after_cr);
        }
        if length > 0 {
            self.is_after_cr = input[length - 1] == b'\r';
        }
        self.input.consume(length);
    }
}

const fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// A row that is being read.
struct Row {
    line: u64,
    /// Which one of it, from 1.
    cell: usize,
    state: State,
    /// Where the last quote was opened.
    quote_line: u64,
    /// Why it cannot be read; its cells are of no use then.
    fault: Option<String>,
}

impl Row {
    fn finish(self, last_line: u64) -> Record {
        Record { line: self.line, last_line, result: self.fault.map_or(Ok(()), |fault| Err(fault.into())) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};
    use std::process::{Command, Stdio};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use super::*;

    /// The rows with their lines, whole or with what is wrong, and why reading ended if not with
    /// the file.
    type Read = (Vec<(u64, u64, Result<Vec<String>, ErrorLine>)>, Option<String>);

    fn read(text: &[u8], separator: u8, bytes_max: usize, buffer: usize) -> Read {
        let mut records = Records::new(BufReader::with_capacity(buffer, text), separator, 1, bytes_max);
        let mut rows = Vec::new();
        loop {
            match records.next() {
                Ok(Some(Record { line, last_line, result })) => {
                    let cells = || records.cells().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
                    rows.push((line, last_line, result.map(|()| cells())));
                }
                Ok(None) => return (rows, None),
                Err(why) => return (rows, Some(why.to_string())),
            }
        }
    }

    fn rows(text: &str) -> Read {
        read(text.as_bytes(), b',', 1000, 3)
    }

    fn row(line: u64, last_line: u64, cells: &[&str]) -> (u64, u64, Result<Vec<String>, ErrorLine>) {
        (line, last_line, Ok(cells.iter().map(|cell| (*cell).to_owned()).collect()))
    }

    #[test]
    fn quotes_hold_separators_quotes_and_line_ends() {
        let (found, end) = rows("a,\"b,\"\"c\"\"\r\nd\",\n\n\"\",5\" x\r\n\r\n\"e\"");
        assert_eq!((&found[..1], end), (&[row(1, 2, &["a", "b,\"c\"\r\nd", ""])][..], None));
        assert_eq!(found[1..], [row(4, 4, &["", "5\" x"]), row(6, 6, &["e"])]);
        assert_eq!(rows("\r\n\n"), (vec![], None));
    }

    /// A file of an old Mac had all its rows on line 1.
    #[test]
    fn lines_end_with_lf_cr_lf_or_cr() {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("a,b{end}1,\"x{end}y\"{end}{end}2,3{end}");
            let inside = format!("x{end}y");
            assert_eq!(rows(&text).0, [row(1, 1, &["a", "b"]), row(2, 3, &["1", &inside]), row(5, 5, &["2", "3"])]);
        }
    }

    /// What stood behind a stray quote was one row of the rest of the file, or nothing: 19,899 of
    /// 20,000 rows were gone, unsaid.
    #[test]
    fn a_quote_that_is_never_closed_names_its_line() {
        let (found, end) = rows("event,geo\nbuy,DE\nbuy,\"x\nbuy,FR\nbuy,ES\n");
        assert_eq!(found, [row(1, 1, &["event", "geo"]), row(2, 2, &["buy", "DE"])]);
        assert!(end.unwrap().starts_with("line 3: a quote is opened in cell 2 and never closed"));
        let (_, end) = rows("\"a\nb");
        assert!(end.unwrap().starts_with("line 1: a quote is opened in cell 1"));
    }

    #[test]
    fn text_behind_a_closing_quote_is_an_error_of_its_row() {
        let (found, end) = rows("a,b\n\"x\" y,1\n\"x\"\"y\" \"z\",\"2\"\n3,4\n");
        assert_eq!((found.len(), &found[3], end), (4, &row(4, 4, &["3", "4"]), None));
        for (at, line) in [(1, 2), (2, 3)] {
            assert_eq!(found[at].0, line);
            assert!(
                found[at].2.as_ref().unwrap_err().to_string().starts_with("text follows the closing quote of cell 1")
            );
        }
        // Where the row ends cannot be told.
        let (found, end) = rows("a,b\nbuy,\"x\nbuy,\"y\"\nbuy,z\n");
        assert_eq!(found.len(), 1);
        assert!(end.unwrap().starts_with("line 2: a quote is opened in cell 2 and closed on line 3"));
        let (found, end) = rows("a,b\n\"x\"y,\"z\nbuy,z\n");
        assert_eq!(found.len(), 1);
        assert!(end.unwrap().contains("the end of line 2 stands in quotes"));
    }

    /// "longer than 1048576 bytes" was all that was said of 399,900 rows.
    #[test]
    fn an_overlong_row_swallows_nothing() {
        let long = "x".repeat(5000);
        let (found, end) = rows(&format!("a\n{long}\n\"{long}\"\n1\n"));
        assert_eq!((found.len(), &found[3], end), (4, &row(4, 4, &["1"]), None));
        assert_eq!(found[1].2, Err("longer than 1000 bytes".into()));
        assert_eq!(found[2].2, Err("longer than 1000 bytes".into()));
        let (found, end) = rows(&format!("a\n\"x\n{}", "1\n".repeat(5000)));
        assert_eq!(found.len(), 1);
        assert!(end.unwrap().starts_with("line 2: longer than 1000 bytes, and the end of line 2 stands in quotes"));
        let (found, _) = rows(&format!("a\n{}\n1\n", ",".repeat(CELLS_MAX)));
        assert_eq!((&found[1].2, &found[2]), (&Err("more than 4096 cells".into()), &row(3, 3, &["1"])));
    }

    #[test]
    fn a_quote_that_never_ends_takes_no_memory() {
        for rest in ["x", "\"\""] {
            let text = format!("a\n\"{}", rest.repeat(100_000));
            let mut records = Records::new(BufReader::with_capacity(3, text.as_bytes()), b',', 1, 1000);
            records.next().unwrap();
            assert!(records.next().is_err() && records.cells.capacity() < 10_000);
        }
    }

    /// A file, and perhaps some bytes of it replaced.
    fn files() -> impl Strategy<Value = (String, u8)> {
        let cell = prop_oneof![
            "[a-z0-9 .;\t|]{0,4}",
            "[a-z,;\t\"\r\n]{0,6}".prop_map(|text| format!("\"{}\"", text.replace('"', "\"\""))),
        ];
        let ends = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
        let mutations = vec((any::<prop::sample::Index>(), "[\",;\r\na ]"), 0..3);
        let separators = prop_oneof![Just(','), Just(';'), Just('\t'), Just('|')];
        (vec(vec(cell, 1..4), 0..6), ends, mutations, separators).prop_map(|(rows, end, mutations, separator)| {
            let rows: Vec<String> = rows.iter().map(|cells| cells.join(&separator.to_string())).collect();
            let mut text = rows.join(end).into_bytes();
            for (at, byte) in mutations.iter().filter(|_| !text.is_empty()).collect::<Vec<_>>() {
                let at = at.index(text.len());
                text[at] = byte.as_bytes()[0];
            }
            (String::from_utf8(text).unwrap(), separator as u8)
        })
    }

    /// Python's reader, strictly, as an independent one: the rows that it reads up to the first
    /// error, and whether there is one.
    const PYTHON: &str = r#"
import csv, io, json, sys
for case in sys.stdin:
    text, separator = json.loads(case)
    rows, is_whole = [], True
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            if row:
                rows.append(row)
    except csv.Error:
        is_whole = False
    print(json.dumps([rows, is_whole]))
"#;

    #[test]
    fn rows_are_those_of_a_strict_reader_in_python() {
        let mut runner = TestRunner::default();
        let strategy = files();
        let cases: Vec<(String, u8)> = (0..4000).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
        let python = std::env::var("TRAQQ_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut child =
            Command::new(python).args(["-c", PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let lines: String = cases
            .iter()
            .map(|(text, separator)| serde_json::to_string(&(text, char::from(*separator))).unwrap() + "\n")
            .collect();
        let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        let answers: Vec<(Vec<Vec<String>>, bool)> = output
            .stdout
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(answers.len(), cases.len());
        let mut bad = 0;
        for ((text, separator), (expected, is_whole)) in cases.iter().zip(answers) {
            let (found, end) = read(text.as_bytes(), *separator, 1000, 1 + text.len() % 7);
            let good: Vec<Vec<String>> = found.iter().map_while(|(_, _, row)| row.clone().ok()).collect();
            let is_good = end.is_none() && good.len() == found.len();
            assert_eq!((&good, is_good), (&expected, is_whole), "{text:?} {separator}");
            bad += usize::from(!is_whole);
        }
        assert!((100..cases.len() - 1000).contains(&bad), "{bad} of the files are bad");
    }
}
