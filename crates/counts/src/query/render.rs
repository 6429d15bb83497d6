//! A table as text, piece by piece, so that a large one is never held whole: JSON with `rows`, or
//! CSV.
//!
//! CSV is that of RFC 4180: a header, records that end with CR LF, quotes where they are needed.
//! What is not known is empty, and an empty text is `""`. Machines read it, so values are left as
//! they are.
//!
//! A spreadsheet takes a cell for a formula that begins with one of a few characters, and values
//! come from events, which anybody may have sent. For spreadsheets such text has an apostrophe in
//! front (OWASP, "CSV Injection"), and the document a byte order mark, without which Excel does not
//! read UTF-8.

use std::borrow::Cow;
use std::io::Write as _;

use super::table::{Field, Table, utc_text};

/// A piece is complete when it is so long.
const PIECE_BYTES: usize = 64 << 10;
const BYTE_ORDER_MARK: &str = "\u{feff}";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Text {
    Json,
    Csv,
    Spreadsheet,
}

/// The pieces of a table's text.
pub struct Pieces {
    table: Table,
    text: Text,
    /// The names as they stand in each object of JSON.
    keys: Vec<String>,
    /// The cell and the row of it that come next; `None` at the beginning.
    next: Option<(usize, usize)>,
    is_over: bool,
}

impl Pieces {
    pub fn new(table: Table, text: Text) -> Self {
        let key = |name: &String| serde_json::to_string(name).expect("a text is JSON") + ":";
        let keys = table.names().iter().map(key).collect();
        Self { table, text, keys, next: None, is_over: false }
    }

    fn begin(&self, piece: &mut Vec<u8>) {
        match self.text {
            Text::Json => {
                let head = self.table.head().strip_suffix('}').expect("an object");
                piece.extend_from_slice(head.as_bytes());
                piece.extend_from_slice(b",\"rows\":[");
            }
            Text::Csv | Text::Spreadsheet => {
                if self.text == Text::Spreadsheet {
                    piece.extend_from_slice(BYTE_ORDER_MARK.as_bytes());
                }
                self.record(self.table.names().iter().map(|name| Field::Text(name)), piece);
            }
        }
    }

    fn record<'a>(&self, fields: impl Iterator<Item = Field<'a>>, piece: &mut Vec<u8>) {
        for (index, field) in fields.enumerate() {
            if index > 0 {
                piece.push(b',');
            }
            match field {
                Field::Text(text) if self.text == Text::Spreadsheet => write_quoted(&harmless(text), piece),
                Field::Text(text) => write_quoted(text, piece),
                field => write_plain(&field, piece),
            }
        }
        piece.extend_from_slice(b"\r\n");
    }

    fn object<'a>(&self, fields: impl Iterator<Item = Field<'a>>, piece: &mut Vec<u8>) {
        for (index, (key, field)) in self.keys.iter().zip(fields).enumerate() {
            piece.push(if index == 0 { b'{' } else { b',' });
            piece.extend_from_slice(key.as_bytes());
            match field {
                Field::Nothing => piece.extend_from_slice(b"null"),
                Field::Text(text) => serde_json::to_writer(&mut *piece, text).expect("memory takes what is written"),
                Field::Time(_) => {
                    piece.push(b'"');
                    write_plain(&field, piece);
                    piece.push(b'"');
                }
                field => write_plain(&field, piece),
            }
        }
        piece.push(b'}');
    }
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.is_over {
            return None;
        }
        let mut piece = Vec::new();
        if self.next.is_none() {
            self.begin(&mut piece);
        }
        let (mut cell, mut row) = self.next.unwrap_or_default();
        while let Some(rows) = self.table.rows(cell) {
            if piece.len() >= PIECE_BYTES {
                self.next = Some((cell, row));
                return Some(piece);
            }
            let fields = self.table.row(cell, row);
            if self.text == Text::Json {
                if (cell, row) != (0, 0) {
                    piece.push(b',');
                }
                self.object(fields, &mut piece);
            } else {
                self.record(fields, &mut piece);
            }
            row += 1;
            if row == rows {
                (cell, row) = (cell + 1, 0);
            }
        }
        self.is_over = true;
        if self.text == Text::Json {
            piece.extend_from_slice(b"]}");
        }
        Some(piece)
    }
}

/// Everything that needs no quotes, in CSV as in JSON.
fn write_plain(field: &Field<'_>, piece: &mut Vec<u8>) {
    let written = match field {
        Field::Nothing | Field::Text(_) => Ok(()),
        Field::Time(second) => piece.write_all(utc_text(*second).as_bytes()),
        Field::Whole(number) => write!(piece, "{number}"),
        Field::Decimal(number) => write!(piece, "{number}"),
        Field::Fraction(number) => write!(piece, "{number}"),
        Field::Flag(flag) => write!(piece, "{flag}"),
    };
    written.expect("memory takes what is written");
}

/// RFC 4180, section 2; with quotes around spaces at the ends as well, which some readers drop, and
/// around nothing.
fn write_quoted(text: &str, piece: &mut Vec<u8>) {
    let is_plain = !text.is_empty() && !text.contains([',', '"', '\r', '\n']) && text.trim() == text;
    if is_plain {
        piece.extend_from_slice(text.as_bytes());
        return;
    }
    piece.push(b'"');
    for (index, part) in text.split('"').enumerate() {
        if index > 0 {
            piece.extend_from_slice(b"\"\"");
        }
        piece.extend_from_slice(part.as_bytes());
    }
    piece.push(b'"');
}

/// With an apostrophe before what begins a formula. A cell may also begin inside: where a
/// spreadsheet separates cells by semicolons, as in much of Europe, or by tabs.
fn harmless(text: &str) -> Cow<'_, str> {
    let begins_formula = |c: char| matches!(c, '=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠');
    let separates = |c: char| matches!(c, ';' | ',' | '\t' | '\r' | '\n' | '"');
    if !text.contains(begins_formula) || is_number(text) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 1);
    let mut is_at_begin = true;
    for c in text.chars() {
        if is_at_begin && begins_formula(c) {
            safe.push('\'');
        }
        safe.push(c);
        is_at_begin = separates(c);
    }
    Cow::Owned(safe)
}

/// `-5` and `+1.25` stand for themselves.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    [whole, fraction].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(text: &str) -> String {
        let mut piece = Vec::new();
        write_quoted(text, &mut piece);
        String::from_utf8(piece).unwrap()
    }

    #[test]
    fn quotes_stand_where_they_are_needed() {
        for (text, expected) in [
            ("plain text", "plain text"),
            ("", "\"\""),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("\"", "\"\"\"\""),
            ("two\r\nlines", "\"two\r\nlines\""),
            ("\r", "\"\r\""),
            (" a", "\" a\""),
            ("a;b\tc", "a;b\tc"),
            ("日本", "日本"),
        ] {
            assert_eq!(quoted(text), expected, "{text:?}");
        }
    }

    /// What is written is read again, by a reader that is not ours.
    #[test]
    fn another_reader_reads_what_is_written() {
        let texts = ["a", "", ",", "\"", "\"\"", "a\r\nb", "\n", "x\"y,z", "'", "=1+1", "é", "\\", "\t"];
        for left in texts {
            for right in texts {
                let record = format!("{},{}\r\n", quoted(left), quoted(right));
                let mut reader = csv_core::Reader::new();
                let (mut output, mut ends) = ([0; 64], [0; 8]);
                let (_, _, written, fields) = reader.read_record(record.as_bytes(), &mut output, &mut ends);
                assert_eq!(fields, 2, "{record:?}");
                let found = [&output[..ends[0]], &output[ends[0]..ends[1]]];
                assert_eq!((found, ends[1]), ([left.as_bytes(), right.as_bytes()], written), "{record:?}");
            }
        }
    }

    #[test]
    fn nothing_is_a_formula_in_a_spreadsheet() {
        for (text, expected) in [
            ("=HYPERLINK(\"http://x\")", "'=HYPERLINK(\"http://x\")"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("+1-2", "'+1-2"),
            ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
            ("\t=1", "'\t'=1"),
            ("\r=1", "'\r'=1"),
            ("＝1", "'＝1"),
            ("a;=1", "a;'=1"),
            ("a\n@b", "a\n'@b"),
            ("\"=1\"", "\"'=1\""),
            ("-5", "-5"),
            ("+1.25", "+1.25"),
            ("-", "'-"),
            ("+.", "'+."),
            ("/a?b=c", "/a?b=c"),
            ("2026-01-01T00:00:00+01:00", "2026-01-01T00:00:00+01:00"),
        ] {
            assert_eq!(harmless(text), expected, "{text:?}");
        }
    }
}
