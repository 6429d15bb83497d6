//! What a dead letter looks like: the record as it came, with headers that say where it came from
//! and why it was not counted. deploy/README.md lists them for operators.

use traqq_core::decode::DeadLetter;
use traqq_core::hll::murmur64a;
use traqq_log::Message;

/// The names do not change.
const HEADER_REASON: &str = "traqq-reason";
const HEADER_CLASS: &str = "traqq-class";
const HEADER_DETAIL: &str = "traqq-detail";
const HEADER_TOPIC: &str = "traqq-topic";
const HEADER_PARTITION: &str = "traqq-partition";
const HEADER_OFFSET: &str = "traqq-offset";
const HEADER_INDEX: &str = "traqq-index";
const HEADER_TIMESTAMP: &str = "traqq-timestamp-ms";
/// In front of header names of the record that mean something to the destination or to us.
const HEADER_ORIGINAL: &str = "traqq-original-";
/// Only where the value is not whole.
const HEADER_BYTES: &str = "traqq-value-bytes";
const HEADER_HASH: &str = "traqq-value-murmur64a";

/// The whole record. `detail` is why it was not counted, for people.
pub fn whole(letter: &DeadLetter, detail: &str) -> Message {
    let mut headers: Vec<(String, Option<Vec<u8>>)> =
        letter.headers.iter().map(|(name, value)| (original(name), value.clone())).collect();
    for (name, value) in [
        (HEADER_REASON, letter.reason.name().to_owned()),
        (HEADER_CLASS, letter.reason.class().to_owned()),
        (HEADER_DETAIL, detail.to_owned()),
        (HEADER_TOPIC, letter.partition.topic.to_string()),
        (HEADER_PARTITION, letter.partition.partition.to_string()),
        (HEADER_OFFSET, letter.offset.to_string()),
        (HEADER_TIMESTAMP, letter.timestamp_ms.to_string()),
    ] {
        headers.push((name.to_owned(), Some(value.into_bytes())));
    }
    if let Some(index) = letter.index {
        headers.push((HEADER_INDEX.to_owned(), Some(index.to_string().into_bytes())));
    }
    Message { key: letter.key.clone(), value: letter.value.clone(), headers, timestamp_ms: None }
}

/// Coordinates, size, hash and the first `bytes_max` bytes of a record that the destination does
/// not take whole, without its key and headers.
pub fn beginning(letter: &DeadLetter, detail: &str, bytes_max: usize) -> Message {
    let value = letter.value.as_deref().unwrap_or_default();
    let bare = DeadLetter { headers: Vec::new(), key: None, value: None, ..letter.clone() };
    let mut message = whole(&bare, detail);
    message.value = Some(value[..value.len().min(bytes_max)].to_vec());
    for (name, value) in
        [(HEADER_BYTES, value.len().to_string()), (HEADER_HASH, format!("{:016x}", murmur64a(value, 0)))]
    {
        message.headers.push((name.to_owned(), Some(value.into_bytes())));
    }
    message
}

/// A header of the record under a name that says nothing to JetStream, to which `Nats-*` are
/// commands, nor to those who read dead letters, to whom `traqq-*` are ours.
fn original(name: &str) -> String {
    let begins =
        |with: &str| name.as_bytes().get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with.as_bytes()));
    if begins("nats-") || begins("traqq-") { format!("{HEADER_ORIGINAL}{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use traqq_core::decode::Reason;
    use traqq_core::model::TopicPartition;

    #[test]
    fn headers_of_the_record_are_neither_commands_nor_ours() {
        let names =
            ["Nats-Rollup", "nats-rollup", "NATS-TTL", "traqq-reason", "Traqq-Offset", "natsy", "nats", "ä-nats-", "x"];
        let letter = DeadLetter {
            partition: TopicPartition::new("t", 3),
            offset: 7,
            timestamp_ms: 5,
            index: None,
            reason: Reason::InvalidJson,
            key: None,
            value: None,
            headers: names.iter().map(|name| ((*name).to_owned(), None)).collect(),
        };
        let message = whole(&letter, "why");
        let found: Vec<&str> = message.headers.iter().take(names.len()).map(|(name, _)| &**name).collect();
        let expected = [
            "traqq-original-Nats-Rollup",
            "traqq-original-nats-rollup",
            "traqq-original-NATS-TTL",
            "traqq-original-traqq-reason",
            "traqq-original-Traqq-Offset",
            "natsy",
            "nats",
            "ä-nats-",
            "x",
        ];
        assert_eq!(found, expected);
        assert_eq!(message.headers.iter().filter(|(name, _)| name == HEADER_OFFSET).count(), 1);
    }
}
