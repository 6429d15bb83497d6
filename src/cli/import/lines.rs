//! Lines of NDJSON, none longer than a bound.

use std::io::BufRead;

use super::Item;
use traqq_core::error::ErrorLine;

pub struct Lines<R> {
    input: R,
    /// Of the last line that was begun, from 1.
    line: u64,
    /// One was found that is not blank.
    has_begun: bool,
    bytes_max: usize,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R, bytes_max: usize) -> Self {
        Self { input, line: 0, has_begun: false, bytes_max }
    }

    /// The next line that is not blank, appended to `body` without its end.
    pub fn next(&mut self, body: &mut Vec<u8>) -> Result<Option<Item>, ErrorLine> {
        let start = body.len();
        loop {
            self.line += 1;
            let (is_whole, is_end) = self.read(body)?;
            if !is_whole {
                // All of the file may be in this one.
                let is_first = !std::mem::replace(&mut self.has_begun, true);
                if is_first && let Some(what) = is_all(&body[start..]) {
                    return Err(what.into());
                }
                body.truncate(start);
                let why = format!("longer than {} bytes", self.bytes_max);
                return Ok(Some(Item { line: self.line, result: Err(why.into()) }));
            }
            if body[start..].trim_ascii().is_empty() {
                body.truncate(start);
                if is_end {
                    return Ok(None);
                }
                continue;
            }
            let is_first = !std::mem::replace(&mut self.has_begun, true);
            if is_first && has_other_ends(&body[start..]) {
                return Err(OTHER_ENDS.into());
            }
            if is_first && let Some(what) = is_begun(&body[start..]) {
                return Err(what.into());
            }
            return Ok(Some(Item { line: self.line, result: Ok(()) }));
        }
    }

    /// Appends a line, as much of it as is allowed. Says whether that was all, and whether the
    /// input ended with it.
    fn read(&mut self, body: &mut Vec<u8>) -> Result<(bool, bool), ErrorLine> {
        let mut length = 0_usize;
        loop {
            let buffer = self
                .input
                .fill_buf()
                .map_err(|error| ErrorLine::of(format!("after line {}: {error}", self.line - 1), error))?;
            if buffer.is_empty() {
                return Ok((length <= self.bytes_max, true));
            }
            let end = memchr::memchr(b'\n', buffer);
            let part = &buffer[..end.unwrap_or(buffer.len())];
            // Of a line that is too long its beginning, however it came.
            let room = self.bytes_max.saturating_sub(length);
            body.extend_from_slice(&part[..part.len().min(room)]);
            length = length.saturating_add(part.len());
            let consumed = part.len() + usize::from(end.is_some());
            self.input.consume(consumed);
            if end.is_some() {
                return Ok((length <= self.bytes_max, false));
            }
        }
    }
}

const OTHER_ENDS: &str = "its lines end with CR alone; `tr '\\r' '\\n' <FILE | traqq import -` imports them";

fn has_other_ends(line: &[u8]) -> bool {
    memchr::memmem::find(line, b"}\r{").is_some()
}

/// What to do with a file of which the first line, longer than a line may be, is all.
fn is_all(beginning: &[u8]) -> Option<&'static str> {
    if has_other_ends(beginning) {
        return Some(OTHER_ENDS);
    }
    (beginning.trim_ascii_start().first() == Some(&b'[')).then_some(
        "begins with an array on one line that is too long for one, and an event is an object on a line of its own; \
         `jq -c '.[]' FILE | traqq import -` imports the objects of an array",
    )
}

/// What to do with a file of which the first line is only the beginning of a value.
fn is_begun(line: &[u8]) -> Option<&'static str> {
    let first = line.trim_ascii().first()?;
    if !serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof()) {
        return None;
    }
    match first {
        b'[' => Some(
            "begins with an array over several lines, and an event is an object on a line of its own; \
             `jq -c '.[]' FILE | traqq import -` imports the objects of an array",
        ),
        b'{' => Some(
            "begins with an object over several lines, and an event is an object on a line of its own; \
             `jq -c . FILE | traqq import -` imports such objects",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn lines(text: &str, bytes_max: usize) -> Vec<(u64, Result<String, ErrorLine>)> {
        // A small buffer, so that lines go over its end.
        let mut lines = Lines::new(BufReader::with_capacity(3, text.as_bytes()), bytes_max);
        let mut found = Vec::new();
        loop {
            let mut body = b"before".to_vec();
            let Some(item) = lines.next(&mut body).unwrap() else { return found };
            let text = String::from_utf8(body.split_off("before".len())).unwrap();
            found.push((item.line, item.result.map(|()| text)));
        }
    }

    #[test]
    fn blank_lines_count_but_are_none() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(lines("\n{\"a\":1}\r\n \n\n{}", 100), [(2, ok("{\"a\":1}\r")), (5, ok("{}"))]);
        assert_eq!(lines("", 100), []);
        assert_eq!(lines("\n\n", 100), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_named_and_passed_over() {
        let found = lines("12345678\n1234567\n123456789", 7);
        let long = || Err("longer than 7 bytes".into());
        assert_eq!(found, [(1, long()), (2, Ok("1234567".to_owned())), (3, long())]);
    }

    #[test]
    fn lines_of_an_old_mac_are_recognised() {
        let error = Lines::new(&b"{\"a\":1}\r{\"a\":2}\r"[..], 99).next(&mut Vec::new()).err().unwrap();
        assert!(error.to_string().contains("tr '\\r' '\\n'"), "{error}");
    }

    #[test]
    fn an_array_is_recognised() {
        let error = Lines::new(&b"\n [\n{}]"[..], 9).next(&mut Vec::new()).err().unwrap();
        assert!(error.to_string().contains("jq -c '.[]'"), "{error}");
        let error = Lines::new(&b"{\r\n\"event\": 5}\r\n"[..], 9).next(&mut Vec::new()).err().unwrap();
        assert!(error.to_string().contains("jq -c ."), "{error}");
        assert_eq!(lines("[{}]\n{\n", 9), [(1, Ok("[{}]".to_owned())), (2, Ok("{".to_owned()))]);
    }

    /// Thousands of events in an array on one line were one line that was rejected.
    #[test]
    fn a_first_line_that_is_all_of_the_file_is_named() {
        let next = |text: &str| Lines::new(text.as_bytes(), 8).next(&mut Vec::new()).map(|_| ());
        assert!(next("[{\"a\":1},{\"a\":2}]\n").unwrap_err().to_string().contains("jq -c '.[]'"));
        assert!(next("{}\r{}\r{}\r{}\r").unwrap_err().to_string().contains("tr '\\r'"));
        assert_eq!(next("{\"a\":\"long\"}\n[1]\n"), Ok(()));
    }
}
