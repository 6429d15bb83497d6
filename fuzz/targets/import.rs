//! A file of events, behind a first byte that says its format: `c` CSV, anything else lines.
//!
//! What is read of it does not depend on how the file comes in pieces, and nothing is longer than
//! the bound.

#![no_main]

use std::io::BufReader;

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use traqq::cli::{Item, Lines, Rows};
use traqq_core::error::ErrorLine;

const BYTES_MAX: usize = 64;

/// The line of each event, and its text or what is wrong with it; and why reading ended, if not
/// with the file.
type Read = (Vec<(u64, Result<Vec<u8>, ErrorLine>)>, Option<ErrorLine>);

fuzz_target!(|bytes: &[u8]| {
    let Some((format, file)) = bytes.split_first() else { return };
    let read = |buffer: usize| {
        let input = BufReader::with_capacity(buffer, file);
        if *format == b'c' {
            let mut rows = Rows::new(input, None, BYTES_MAX);
            all(|body| rows.next(body))
        } else {
            let mut lines = Lines::new(input, BYTES_MAX);
            all(|body| lines.next(body))
        }
    };
    let whole = read(1 << 16);
    assert_eq!(read(1), whole);
    assert_eq!(read(7), whole);
    for text in whole.0.iter().filter_map(|(_, result)| result.as_ref().ok()) {
        if *format == b'c' {
            serde_json::from_slice::<&RawValue>(text).expect("a row is a JSON object");
        }
        assert!(text.len() <= BYTES_MAX + 1, "a brace is not counted");
    }
});

fn all(mut next: impl FnMut(&mut Vec<u8>) -> Result<Option<Item>, ErrorLine>) -> Read {
    let mut found = Vec::new();
    loop {
        let mut body = b"before".to_vec();
        match next(&mut body) {
            Ok(Some(Item { line, result })) => {
                let text = body.strip_prefix(b"before").expect("what was there stays").to_vec();
                assert!(result.is_ok() || text.is_empty());
                found.push((line, result.map(|()| text)));
            }
            Ok(None) => return (found, None),
            Err(why) => return (found, Some(why)),
        }
    }
}
