//! Headers of records, by the first byte: `n` a message of NATS (its subject, a line feed, and its
//! block of headers), `r` the headers of a record as the local log keeps them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq_core::decode::DeadLetter;
use traqq_core::decode::Reason;
use traqq_core::model::{TopicPartition, are_headers};
use traqq_fuzz::record;
use traqq_log::nats::headers::{self, HeaderMap};
use traqq_pipeline::dead_letter;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((b'n', message)) => nats(message),
        Some((b'r', arena)) => log(arena),
        _ => {}
    }
});

fn nats(message: &[u8]) {
    let end = message.iter().position(|byte| *byte == b'\n').unwrap_or(message.len());
    let (subject, block) = (String::from_utf8_lossy(&message[..end]), message.get(end + 1..).unwrap_or_default());
    let found = headers::parse(block);
    if headers::is_readable(&subject, block) {
        // What the client splits elsewhere would be somebody else's header.
        let is_line = |text: &str| !text.contains(['\r', '\n', '\0']);
        assert!(found.iter().all(|(name, value)| is_line(name) && is_line(value)), "{found:?}");
    }
    for name in bury(found.into_iter().map(|(name, value)| (name, Some(value.into_bytes()))).collect()) {
        assert!(!name.to_ascii_lowercase().starts_with("nats-"), "{name}");
    }
}

fn log(arena: &[u8]) {
    if !are_headers(arena) {
        return;
    }
    let lengths = traqq_core::model::RecordLengths { key: None, value: None, headers: arena.len() as u32 };
    let batch = traqq_core::model::RecordBatch::of_arena(
        TopicPartition::new("t", 0),
        0,
        0,
        0,
        arena.to_vec(),
        [lengths].into_iter(),
    );
    let found: Vec<_> = batch.get(0).headers().collect();
    let again = record(None, found.iter().copied());
    assert!(again.get(0).headers().eq(found.iter().copied()));
    bury(found.into_iter().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect());
}

/// The names of the headers of a dead letter on its way to NATS.
fn bury(headers: Vec<(String, Option<Vec<u8>>)>) -> Vec<String> {
    let count = headers.len();
    let letter = DeadLetter {
        partition: TopicPartition::new("t", 0),
        offset: 0,
        timestamp_ms: 0,
        index: None,
        reason: Reason::InvalidJson,
        key: None,
        value: None,
        headers,
    };
    let message = dead_letter::whole(&letter, "why");
    let (theirs, ours) = message.headers.split_at(count);
    assert!(theirs.iter().all(|(name, _)| ours.iter().all(|(own, _)| !own.eq_ignore_ascii_case(name))));
    let mut written = HeaderMap::new();
    for (name, value) in &message.headers {
        headers::put(&mut written, name, value.as_deref().unwrap_or_default());
    }
    written.iter().map(|(name, _)| name.to_string()).collect()
}
