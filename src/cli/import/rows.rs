//! Rows of CSV as JSON objects: the first row names the members, a cell that is a JSON number is
//! one, an empty cell is left out, everything else is a string.

use std::io::{BufRead, Chain, Cursor, Read};

use super::Item;
use super::csv::{Record, Records};
use traqq_core::error::ErrorLine;

/// What may stand between cells, if nobody says what does.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

const RECODE: &str = "`iconv -f WINDOWS-1252 -t UTF-8 FILE | traqq import --format csv -` imports what Windows wrote";

pub struct Rows<R> {
    input: Option<R>,
    /// `None`: what the header has.
    separator: Option<u8>,
    /// From the header on.
    table: Option<Table<R>>,
    bytes_max: usize,
}

struct Table<R> {
    records: Records<Chain<Cursor<Vec<u8>>, R>>,
    /// Empty for a column without one, which is left out.
    columns: Vec<String>,
    /// The same as JSON strings.
    names: Vec<String>,
}

impl<R: BufRead> Rows<R> {
    pub fn new(input: R, separator: Option<u8>, bytes_max: usize) -> Self {
        Self { input: Some(input), separator, table: None, bytes_max }
    }

    /// The names of the columns, once a row was read.
    pub fn columns(&self) -> &[String] {
        self.table.as_ref().map_or(&[], |table| &table.columns)
    }

    /// The next row, appended to `body` as an object.
    pub fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<Item>, ErrorLine> {
        if let Some(input) = self.input.take() {
            self.table = open(input, self.separator, self.bytes_max)?;
        }
        let Some(table) = &mut self.table else { return Ok(None) };
        let Some(Record { line, last_line, result }) = table.records.next()? else { return Ok(None) };
        let start = body.len();
        let result = result.and_then(|()| table.write(body, self.bytes_max)).map_err(|why| {
            body.truncate(start);
            // More may be missing than one row if the quote should not be there.
            let rest = format!("; the row goes on to line {last_line}, for a quote is open at the end of line");
            if last_line > line { why.followed_by(&format!("{rest} {}", last_line - 1)) } else { why }
        });
        Ok(Some(Item { line, result }))
    }
}

/// `None` if there is no header.
fn open<R: BufRead>(mut input: R, separator: Option<u8>, bytes_max: usize) -> Result<Option<Table<R>>, ErrorLine> {
    let (mut head, mut line) = (first_line(&mut input, bytes_max)?, 1);
    let mut separator = separator;
    // What Excel writes and reads in front of the header.
    if let [b's', b'e', b'p', b'=', named, ..] = head[..]
        && head[5..].iter().all(|byte| matches!(byte, b'\r' | b'\n'))
        && head.len() > 5
    {
        separator = separator.or(Some(named));
        (head, line) = (first_line(&mut input, bytes_max)?, 2);
    }
    let separator = separator.map_or_else(|| separator_of(&head), Ok)?;
    let mut records = Records::new(Cursor::new(head).chain(input), separator, line, bytes_max);
    let columns = match records.next()? {
        None => return Ok(None),
        Some(Record { line, result: Err(why), .. }) => {
            return Err(why.within(&format!("line {line}, the header")));
        }
        Some(_) => columns(records.cells())?,
    };
    let names = columns.iter().map(|name| if name.is_empty() { String::new() } else { string(name) }).collect();
    Ok(Some(Table { records, columns, names }))
}

/// Blank lines, and a line with as many others as quotes go over.
fn first_line(input: &mut impl BufRead, bytes_max: usize) -> Result<Vec<u8>, ErrorLine> {
    let (mut head, mut is_quoted, mut is_blank) = (Vec::new(), false, true);
    while head.len() <= bytes_max {
        let buffer = input.fill_buf().map_err(|error| ErrorLine::of(format!("the header: {error}"), error))?;
        let Some(&byte) = buffer.first() else { break };
        head.push(byte);
        input.consume(1);
        is_quoted ^= byte == b'"';
        let is_end = matches!(byte, b'\r' | b'\n');
        if is_end && !is_quoted && !is_blank {
            let rest = input.fill_buf().map_err(|error| ErrorLine::of(format!("the header: {error}"), error))?;
            if byte == b'\r' && rest.first() == Some(&b'\n') {
                head.push(b'\n');
                input.consume(1);
            }
            break;
        }
        is_blank &= is_end;
    }
    Ok(head)
}

fn separator_of(head: &[u8]) -> Result<u8, ErrorLine> {
    let (mut is_quoted, mut found) = (false, Vec::new());
    for byte in head {
        is_quoted ^= *byte == b'"';
        if !is_quoted && SEPARATORS.contains(byte) && !found.contains(byte) {
            found.push(*byte);
        }
    }
    match found[..] {
        [] => Ok(b','),
        [one] => Ok(one),
        [one, other, ..] => Err(format!(
            "the header has both {:?} and {:?}; say with --separator which of them stands between cells",
            char::from(one),
            char::from(other)
        )
        .into()),
    }
}

fn columns<'c>(cells: impl Iterator<Item = &'c [u8]>) -> Result<Vec<String>, ErrorLine> {
    let mut columns: Vec<String> = Vec::new();
    for (index, cell) in cells.enumerate() {
        let name = str::from_utf8(cell);
        let name = name
            .map_err(|error| ErrorLine::of(format!("the name of column {} is not UTF-8; {RECODE}", index + 1), error))?
            .trim();
        if !name.is_empty() && columns.iter().any(|other| other == name) {
            return Err(format!("the header has the column {} twice; rename one", string(name)).into());
        }
        columns.push(name.to_owned());
    }
    if columns.iter().all(String::is_empty) {
        return Err("the header names no column; the first row must have the names of the members".into());
    }
    Ok(columns)
}

impl<R: BufRead> Table<R> {
    fn write(&self, body: &mut Vec<u8>, bytes_max: usize) -> Result<(), ErrorLine> {
        let cells = self.records.cells();
        if cells.len() != self.names.len() {
            return Err(format!("the row has {} cells, the header {}", cells.len(), self.names.len()).into());
        }
        body.push(b'{');
        let start = body.len();
        for (name, cell) in self.names.iter().zip(cells) {
            if name.is_empty() || cell.is_empty() {
                continue;
            }
            let text = str::from_utf8(cell)
                .map_err(|error| ErrorLine::of(format!("the cell of {name} is not UTF-8; {RECODE}"), error))?;
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
        if body.len() - start > bytes_max {
            return Err(format!("longer than {bytes_max} bytes as JSON").into());
        }
        Ok(())
    }
}

fn string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

/// Whether a text is a number as RFC 8259 writes it: `-0.5e10`, but not `007`, `+1`, `.5` or
/// `1,000`.
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

    type Event = (u64, Result<String, ErrorLine>);

    fn rows(text: &[u8], bytes_max: usize) -> Result<Vec<Event>, ErrorLine> {
        let mut rows = Rows::new(BufReader::with_capacity(3, text), None, bytes_max);
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
        let errors: Vec<String> =
            found.iter().filter_map(|(_, result)| Some(result.as_ref().err()?.to_string())).collect();
        assert_eq!(errors[0], "the row has 1 cells, the header 2");
        assert!(errors[2].contains("\"a\" is not UTF-8") && errors[3].contains("longer than 20 bytes"), "{errors:?}");
        assert_eq!(found[4].1, Ok(r#"{"a":5,"b":6}"#.to_owned()));
    }

    #[test]
    fn a_header_must_be_clear() {
        assert!(rows(b"a,b,a\n", 100).unwrap_err().to_string().contains("\"a\" twice"));
        assert!(rows(b",,\n1,2,3\n", 100).unwrap_err().to_string().contains("names no column"));
        assert_eq!(rows(b",a\n0,5\n", 100).unwrap()[0].1, Ok(r#"{"a":5}"#.to_owned()));
    }

    #[test]
    fn the_separator_is_the_one_of_the_header() {
        for text in [
            "event;geo\nbuy;D,E\n",
            "event\tgeo\nbuy\tD,E\n",
            "\r\nevent|\"geo\"\nbuy|D,E",
            "sep=;\r\nevent;geo\r\nbuy;D,E",
        ] {
            let found = rows(text.as_bytes(), 100).unwrap();
            assert_eq!(found[0].1, Ok(r#"{"event":"buy","geo":"D,E"}"#.to_owned()), "{text:?}");
        }
        assert_eq!(rows(b"\"a;b\",c\n1,2\n", 100).unwrap(), [(2, Ok(r#"{"a;b":1,"c":2}"#.to_owned()))]);
        assert_eq!(rows(b"sep=|\na\n1\n", 100).unwrap()[0].0, 3);
        assert!(rows(b"a;b,c\n1,2\n", 100).unwrap_err().to_string().contains("both ';' and ','; say with --separator"));
        let mut given = Rows::new(&b"a;b,c\n1,2\n"[..], Some(b','), 100);
        let mut body = Vec::new();
        given.next(&mut body).unwrap();
        assert_eq!((&body[..], given.columns().len()), (&br#"{"a;b":1,"c":2}"#[..], 2));
    }

    /// A quote that is closed by another stray one makes one row of several lines, which is well
    /// formed.
    #[test]
    fn a_bad_row_of_several_lines_says_how_far_it_goes() {
        let found = rows(b"a,b,c\n1,\"2,3\n4,5,6\n7,8\",9,0\n1,2,3\n", 100).unwrap();
        let why = found[0].1.as_ref().unwrap_err();
        assert_eq!(
            why.text(),
            "the row has 4 cells, the header 3; the row goes on to line 4, for a quote is open at the end of line 3"
        );
        assert_eq!((found[0].0, found[1].0, found.len()), (2, 5, 2));
    }

    proptest! {
        #[test]
        fn numbers_are_those_of_json(text in "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            let is_number = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(is_json_number(text.as_bytes()), is_number);
        }
    }
}
