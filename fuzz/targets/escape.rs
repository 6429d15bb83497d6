//! Text from outside on its way to a terminal, a JSON document, redis-cli and a shell.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq_core::model::escape::{is_active, json, redis_cli, shell, terminal};

fuzz_target!(|text: &str| {
    let line = terminal(text);
    assert!(!line.contains(|c| is_active(c) && !matches!(c, '\u{200c}' | '\u{200d}')));
    assert!(!text.is_ascii() || !line.contains(is_active));
    assert_eq!(terminal(&line), line);

    let document = serde_json::to_string(text).expect("a text is JSON");
    let escaped = json(&document);
    assert!(!escaped.contains(is_active));
    assert_eq!(serde_json::from_str::<String>(&escaped).expect("it stays JSON"), text);
    assert!(!json(text).contains(|c| c != '\n' && is_active(c)));

    let argument = redis_cli(text);
    assert!(!argument.contains(is_active));
    assert_eq!(of_redis_cli(&argument).as_deref(), Some(text.as_bytes()), "{argument}");

    let argument = shell(text);
    assert!(!argument.contains(is_active));
    assert_eq!(of_shell(&argument), text.as_bytes(), "{argument}");
});

/// One argument as redis-cli reads it (`sdssplitargs`).
fn of_redis_cli(argument: &str) -> Option<Vec<u8>> {
    let Some(quoted) = argument.strip_prefix('"') else {
        let is_one =
            !argument.is_empty() && !argument.contains(|c: char| c.is_ascii_whitespace() || c == '\'' || c == '"');
        return is_one.then(|| argument.as_bytes().to_vec());
    };
    let (mut bytes, mut read) = (quoted.bytes(), Vec::new());
    loop {
        match bytes.next()? {
            b'"' => return bytes.next().is_none().then_some(read),
            b'\\' => match bytes.next()? {
                b'x' => {
                    let digits = [bytes.next()?, bytes.next()?];
                    read.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                }
                other => read.push(other),
            },
            byte => read.push(byte),
        }
    }
}

/// One argument as a shell reads it: in single quotes, or in `$'...'`.
fn of_shell(argument: &str) -> Vec<u8> {
    let Some(quoted) = argument.strip_prefix("$'") else {
        let parts = argument.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).expect("it is quoted");
        let parts: Vec<&str> = parts.split(r"'\''").collect();
        assert!(parts.iter().all(|part| !part.contains('\'')), "{argument}");
        return parts.join("'").into_bytes();
    };
    let (mut bytes, mut read) = (quoted.bytes(), Vec::new());
    loop {
        match bytes.next().expect("it ends with a quote") {
            b'\'' => {
                assert_eq!(bytes.next(), None);
                return read;
            }
            b'\\' => match bytes.next().expect("something is escaped") {
                byte @ (b'\'' | b'\\') => read.push(byte),
                first => {
                    let digits = [first, bytes.next().expect("three"), bytes.next().expect("three")];
                    let digits = std::str::from_utf8(&digits).expect("digits");
                    read.push(u8::from_str_radix(digits, 8).expect("octal"));
                }
            },
            byte => read.push(byte),
        }
    }
}
