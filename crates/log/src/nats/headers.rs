//! Headers of a message as bytes: whether the client can read them, what they say, and how to write
//! them so that nothing in them can mean something else.
//!
//! ```text
//! NATS/1.0 CRLF  (name ":" value CRLF (white-space more-of-the-value CRLF)*)*  CRLF      (ADR-4)
//! ```
//!
//! A server checks none of this. The client splits the head of a message at any white space of
//! Unicode and its headers also at a lone LF, gives up the connection over what it cannot read, and
//! panics over a lone CR in a value.

use std::str::FromStr;

pub use async_nats::HeaderMap;
use async_nats::HeaderName;

const VERSION: &str = "NATS/1.0";
const LINE_END: &str = "\r\n";

/// Whether the client can read a message, and understands by it what [`parse`] does. What is in
/// doubt counts as unreadable. In `subject` U+FFFD stands for bytes that are not UTF-8.
pub fn is_readable(subject: &str, headers: &[u8]) -> bool {
    if subject.contains(|c: char| c.is_whitespace() || c == char::REPLACEMENT_CHARACTER) {
        return false;
    }
    if headers.is_empty() {
        return true;
    }
    let Ok(text) = std::str::from_utf8(headers) else { return false };
    let lines = text.strip_prefix(VERSION).and_then(|rest| rest.strip_prefix(LINE_END)?.strip_suffix(LINE_END));
    match lines {
        None => false,
        Some("") => true,
        Some(lines) => lines.strip_suffix(LINE_END).is_some_and(are_headers),
    }
}

fn are_headers(lines: &str) -> bool {
    lines.split(LINE_END).enumerate().all(|(number, line)| {
        let is_continued = number > 0 && line.starts_with(char::is_whitespace);
        let is_named = || line.split_once(':').is_some_and(|(name, _)| HeaderName::from_str(name).is_ok());
        !line.is_empty() && !line.contains(['\r', '\n', '\0']) && (is_continued || is_named())
    })
}

/// Names and values, as far as they can be made out. Only CRLF ends a line: a lone LF in a value is
/// part of it, and no way to another header.
pub fn parse(headers: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(headers);
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.split(LINE_END).skip(1) {
        match (line.split_once(':'), found.last_mut()) {
            (_, Some((_, value))) if line.starts_with(char::is_whitespace) => value.push_str(line),
            (Some((name, value)), _) => found.push((name.to_owned(), value.trim_start().to_owned())),
            (None, _) => {}
        }
    }
    found.iter_mut().for_each(|(_, value)| value.truncate(value.trim_end().len()));
    found
}

/// Adds a header. What NATS cannot carry, or somebody could take for another line, is
/// percent-encoded: in a name everything but visible ASCII, in a value that is not UTF-8 or has
/// control characters everything but visible ASCII and spaces.
pub fn put(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    let encode = |bytes: &[u8], is_plain: fn(u8) -> bool| -> String {
        let each = bytes
            .iter()
            .map(|byte| if is_plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") });
        each.collect()
    };
    let name = encode(name.as_bytes(), |byte| byte.is_ascii_graphic() && byte != b':');
    let value = match std::str::from_utf8(value) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => encode(value, |byte| (byte.is_ascii_graphic() && byte != b'%') || byte == b' '),
    };
    headers.append(name.as_str(), value.as_str());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::StreamExt;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn headers_that_the_client_cannot_read_are_known_and_read_all_the_same() {
        for readable in [&b""[..], b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: 1\r\nB: 2\r\n more\r\n\r\n"] {
            assert!(is_readable("events.k", readable), "{readable:?}");
        }
        for odd in [
            &b"NATS/1.0\r\nA: \xe4\r\n\r\n"[..],
            b"NATS/1.0\r\nA b: 1\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0 503\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"NATS/1.0\r\n folded: first\r\n\r\n",
            b"NATS/1.0\r\nA: 1\r2\r\n\r\n",
            b"NATS/1.0\r\nA: 1\nNats-Rollup: all\r\n\r\n",
            b"NATS/1.0\r\nA: 1\r\n 2\r3\r\n\r\n",
            b"NATS/1.0\r\nA: \0\r\n\r\n",
            b"NATS/1.0\nA: 1\n\n",
            b"NATS/1.0\r\nA: 1",
        ] {
            assert!(!is_readable("events.k", odd), "{odd:?}");
        }
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let found = parse(b"NATS/1.0\r\nA: 1\r\n 2\r\nB b:\xe4\r\nno colon\r\n\r\n");
        assert_eq!(found, [pair("A", "1 2"), pair("B b", "\u{fffd}")]);
        let found = parse(b"NATS/1.0\r\nA: 1\nNats-Rollup: all\rx\r\n\r\n");
        assert_eq!(found, [pair("A", "1\nNats-Rollup: all\rx")]);
    }

    #[test]
    fn subjects_that_the_client_splits_are_known() {
        for subject in ["events.a", "events.ä"] {
            assert!(is_readable(subject, b""), "{subject:?}");
        }
        for subject in ["events.a\u{2003}b", "events.\u{b}", "events.\u{85}", "events.\u{fffd}"] {
            assert!(!is_readable(subject, b""), "{subject:?}");
        }
    }

    #[test]
    fn headers_that_nats_cannot_carry_are_encoded() {
        let mut headers = HeaderMap::new();
        put(&mut headers, "a b:c", b"line\r\nnext");
        put(&mut headers, "plain", "ü 100%".as_bytes());
        put(&mut headers, "raw", &[0xff, b'%']);
        put(&mut headers, "terminal", "\u{1b}[2J\u{9b}".as_bytes());
        assert_eq!(headers.get("a%20b%3Ac").unwrap().as_str(), "line%0D%0Anext");
        assert_eq!(headers.get("plain").unwrap().as_str(), "ü 100%");
        assert_eq!(headers.get("raw").unwrap().as_str(), "%FF%25");
        assert_eq!(headers.get("terminal").unwrap().as_str(), "%1B[2J%C2%9B");
    }

    /// Messages put together at random from what has a meaning somewhere.
    fn messages(count: usize) -> Vec<(String, Vec<u8>)> {
        let pieces = [
            "\r\n",
            "\r\n",
            "\r",
            "\n",
            ":",
            ": ",
            " ",
            "\t",
            "A",
            "b",
            "Nats-Rollup",
            "all",
            "ü",
            "\0",
            "\u{85}",
            "\u{2003}",
            "%",
        ];
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let message = |_| {
            let mut headers = String::from("NATS/1.0\r\n");
            (0..random(12)).for_each(|_| headers.push_str(pieces[random(pieces.len())]));
            headers.push_str("\r\n\r\n");
            let subject = ["s", "s.ü", "s.\u{2003}", "s.\u{b}"][random(4)];
            (subject.to_owned(), headers.into_bytes())
        };
        (0..count).map(message).collect()
    }

    /// What counts as readable is given to the client by something that speaks the protocol: it
    /// must come through on one connection, with the headers that we see in it.
    #[tokio::test]
    async fn the_client_reads_what_counts_as_readable() {
        let readable: Vec<_> =
            messages(20_000).into_iter().filter(|(subject, text)| is_readable(subject, text)).collect();
        assert!(readable.len() > 500, "{}", readable.len());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = readable.clone();
        let server = async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let info = r#"{"server_id":"x","server_name":"x","version":"2.11.0","proto":1,"host":"127.0.0.1","port":1,"headers":true,"max_payload":1048576}"#;
            write.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                if line == "PING" {
                    write.write_all(b"PONG\r\n").await.unwrap();
                }
                let Some(id) = line.strip_prefix("SUB all ") else { continue };
                for (subject, headers) in &sent {
                    let (head, whole) = (headers.len(), headers.len() + 1);
                    let line = format!("HMSG {subject} {} {head} {whole}\r\n", id.trim());
                    write.write_all(&[line.as_bytes(), headers, b"x\r\n"].concat()).await.unwrap();
                }
            }
        };
        tokio::spawn(server);
        let options = async_nats::ConnectOptions::new().subscription_capacity(readable.len());
        let client = options.connect(address.to_string()).await.unwrap();
        let mut messages = client.subscribe("all").await.unwrap();
        for (subject, bytes) in readable {
            let message = tokio::time::timeout(std::time::Duration::from_secs(60), messages.next()).await;
            let message = message.expect("in time").unwrap_or_else(|| panic!("the client ended at {bytes:?}"));
            assert_eq!(*message.subject, *subject);
            let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
            parse(&bytes).into_iter().for_each(|(name, value)| expected.entry(name).or_default().push(value));
            let headers = message.headers.unwrap_or_default();
            let found: BTreeMap<String, Vec<String>> = headers
                .iter()
                .map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect()))
                .collect();
            assert_eq!(found, expected, "{bytes:?}");
        }
    }
}
