//! Rows of CSV as JSON objects: the first row names the members, a cell that is a JSON number is one, an empty cell is left
//! out, everything else is a string. Quoting is RFC 4180's.

use std::io::BufRead;

use csv_core::{ReadRecordResult, Reader};

use super::Item;

const CELLS_MAX: usize = 4096;

/// The number of cells, or why the row cannot be read.
type Row = Result<usize, String>;

pub struct Rows<R> {
    input: R,
    reader: Reader,
    /// The columns' names as JSON strings; empty for a column without one, which is left out.
    names: Option<Vec<String>>,
    /// Of the next byte, from 1.
    line: u64,
    /// The cells of the row one after the other, and where each ends.
    cells: Vec<u8>,
    ends: Vec<usize>,
    bytes_max: usize,
}

impl<R: BufRead> Rows<R> {
    pub fn new(input: R, bytes_max: usize) -> Self {
        let (cells, ends) = (vec![0; 4096.min(bytes_max)], vec![0; 64]);
        Self { input, reader: Reader::new(), names: None, line: 1, cells, ends, bytes_max }
    }

    /// The next row, appended to `body` as an object.
    pub fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<Item>, String> {
        if self.names.is_none() {
            match self.row()? {
                None => return Ok(None),
                Some((line, Err(why))) => return Err(format!("line {line}, the header: {why}")),
                Some((_, Ok(cells))) => self.names = Some(self.header(cells)?),
            }
        }
        let Some((line, row)) = self.row()? else { return Ok(None) };
        let start = body.len();
        let result = row.and_then(|cells| self.write(cells, body));
        if result.is_err() {
            body.truncate(start);
        }
        Ok(Some(Item { line, result }))
    }

    fn header(&self, cells: usize) -> Result<Vec<String>, String> {
        let mut names: Vec<String> = Vec::new();
        for index in 0..cells {
            let name = str::from_utf8(self.cell(index));
            let name = name.map_err(|_| format!("the name of column {} is not UTF-8", index + 1))?.trim();
            let name = if name.is_empty() { String::new() } else { string(name) };
            if !name.is_empty() && names.contains(&name) {
                return Err(format!("the header has the column {name} twice; rename one"));
            }
            names.push(name);
        }
        if names.iter().all(String::is_empty) {
            return Err("the header names no column; the first row must have the names of the members".to_owned());
        }
        Ok(names)
    }

    fn cell(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.cells[start..self.ends[index]]
    }

    fn write(&self, cells: usize, body: &mut Vec<u8>) -> Result<(), String> {
        let names = self.names.as_deref().unwrap_or_default();
        if cells != names.len() {
            return Err(format!("the row has {cells} cells, the header {}", names.len()));
        }
        body.push(b'{');
        let start = body.len();
        for (index, name) in names.iter().enumerate() {
            let cell = self.cell(index);
            if name.is_empty() || cell.is_empty() {
                continue;
            }
            let text = str::from_utf8(cell).map_err(|_| format!("the cell of {name} is not UTF-8"))?;
            if body.len() > start {
                body.push(b',');
            }
            body.extend_from_slice(name.as_bytes());
            body.push(b':');
            if is_json_number(cell) {
                body.extend_from_slice(cell);
            } else {
                body.extend_from_slice(string(text).as_bytes());
            }
        }
        body.push(b'}');
        if body.len() - start > self.bytes_max {
            return Err(format!("longer than {} bytes as JSON", self.bytes_max));
        }
        Ok(())
    }

    /// Reads a row: the line on which it begins, and how many cells it has.
    fn row(&mut self) -> Result<Option<(u64, Row)>, String> {
        self.skip_blank_lines()?;
        let (line, mut length, mut cells) = (self.line, 0, 0);
        let mut result = Ok(());
        loop {
            let input = self.input.fill_buf().map_err(|error| format!("after line {line}: {error}"))?;
            let (outcome, read, written, ended) =
                self.reader.read_record(input, &mut self.cells[length..], &mut self.ends[cells..]);
            self.line += memchr::memchr_iter(b'\n', &input[..read]).count() as u64;
            self.input.consume(read);
            length += written;
            cells += ended;
            match outcome {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.cells.len() < self.bytes_max => {
                    self.cells.resize((self.cells.len() * 2).min(self.bytes_max), 0);
                }
                ReadRecordResult::OutputFull => {
                    result = Err(format!("longer than {} bytes", self.bytes_max));
                    length = 0;
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() < CELLS_MAX => {
                    self.ends.resize(self.ends.len() * 2, 0);
                }
                ReadRecordResult::OutputEndsFull => {
                    result = Err(format!("more than {CELLS_MAX} cells"));
                    cells = 0;
                }
                ReadRecordResult::Record => return Ok(Some((line, result.map(|()| cells)))),
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Also what is left of the line end in front of the row.
    fn skip_blank_lines(&mut self) -> Result<(), String> {
        loop {
            let input = self.input.fill_buf().map_err(|error| format!("at line {}: {error}", self.line))?;
            let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            self.line += memchr::memchr_iter(b'\n', &input[..blank]).count() as u64;
            let is_end = input.is_empty() || blank < input.len();
            self.input.consume(blank);
            if is_end {
                return Ok(());
            }
        }
    }
}

fn string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

/// Whether a text is a number as RFC 8259 writes it: `-0.5e10`, but not `007`, `+1`, `.5` or `1,000`.
fn is_json_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then(|| &text[count..])
    }
    let number = || {
        let text = text.strip_prefix(b"-").unwrap_or(text);
        let mut rest = if let [b'0', rest @ ..] = text { rest } else { digits(text)? };
        if let [b'.', fraction @ ..] = rest {
            rest = digits(fraction)?;
        }
        if let [b'e' | b'E', exponent @ ..] = rest {
            let exponent = if let [b'+' | b'-', exponent @ ..] = exponent { exponent } else { exponent };
            rest = digits(exponent)?;
        }
        rest.is_empty().then_some(())
    };
    number().is_some()
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    type Event = (u64, Result<String, String>);

    fn rows(text: &[u8], bytes_max: usize) -> Result<Vec<Event>, String> {
        let mut rows = Rows::new(BufReader::with_capacity(3, text), bytes_max);
        let mut found = Vec::new();
        loop {
            let mut body = Vec::new();
            let Some(item) = rows.next(&mut body)? else { return Ok(found) };
            found.push((item.line, item.result.map(|()| String::from_utf8(body).unwrap())));
        }
    }

    #[test]
    fn cells_become_members() {
        let text = "event, amount,note,\n\nbuy,9.90,\"a \"\"b\"\",\nc\",x\r\n\r\nview,,007,\nlast,-1e5,é,";
        let object = |line, text: &str| (line, Ok(text.to_owned()));
        assert_eq!(
            rows(text.as_bytes(), 1000).unwrap(),
            [
                object(3, r#"{"event":"buy","amount":9.90,"note":"a \"b\",\nc"}"#),
                object(6, r#"{"event":"view","note":"007"}"#),
                object(7, r#"{"event":"last","amount":-1e5,"note":"é"}"#),
            ]
        );
        assert_eq!(rows(b"", 10).unwrap(), []);
        assert_eq!(rows(b"a,b\n", 10).unwrap(), []);
    }

    #[test]
    fn bad_rows_are_named_and_passed_over() {
        let text = b"a,b\n1\n2,3,4\n\xff,1\n1234567890123456789012345678901234567890,2\n5,6\n";
        let found = rows(text, 20).unwrap();
        let lines: Vec<u64> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6]);
        let errors: Vec<String> = found.iter().filter_map(|(_, result)| result.clone().err()).collect();
        assert_eq!(errors[0], "the row has 1 cells, the header 2");
        assert!(errors[2].contains("\"a\" is not UTF-8") && errors[3].contains("longer than 20 bytes"), "{errors:?}");
        assert_eq!(found[4].1, Ok(r#"{"a":5,"b":6}"#.to_owned()));
    }

    #[test]
    fn a_quote_that_never_ends_takes_no_memory() {
        let text = ["a\n\"".as_bytes(), &vec![b'x'; 100_000]].concat();
        let mut rows = Rows::new(&text[..], 1000);
        let item = rows.next(&mut Vec::new()).unwrap().unwrap();
        assert!(item.line == 2 && item.result.is_err());
        assert!(rows.cells.len() <= 1000);
    }

    #[test]
    fn a_header_must_be_clear() {
        assert!(rows(b"a,b,a\n", 100).unwrap_err().contains("\"a\" twice"));
        assert!(rows(b",,\n1,2,3\n", 100).unwrap_err().contains("names no column"));
        assert_eq!(rows(b",a\n0,5\n", 100).unwrap()[0].1, Ok(r#"{"a":5}"#.to_owned()));
    }

    proptest! {
        #[test]
        fn numbers_are_those_of_json(text in "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            let is_number = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(is_json_number(text.as_bytes()), is_number);
        }
    }
}
