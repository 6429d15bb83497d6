//! What librdkafka hands over, as ours.

use rdkafka::message::{BorrowedMessage, Headers, Message as _};

use crate::throttle::Throttle;
use traqq_core::model::RecordBatch;
use traqq_core::panics::contained;

/// Header names of one record that may be unreadable; headers behind so many are left out. Each one
/// costs as much as folding a record, and a record has room for thousands.
const UNREADABLE_MAX: u64 = 8;
/// Header names that are not UTF-8, which any producer may write and over which rdkafka panics.
#[derive(Default)]
pub(super) struct UnreadableNames(Throttle);

impl UnreadableNames {
    fn add(&mut self, count: u64, message: &BorrowedMessage<'_>) {
        if count == 0 {
            return;
        }
        let Some(names) = self.0.admit(count) else { return };
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        tracing::warn!(
            names,
            topic,
            partition,
            offset,
            "header names are not UTF-8 and were read as U+FFFD; this record has the last of them"
        );
    }
}

/// Returns about as many bytes as it takes.
pub(super) fn push(
    batch: &mut RecordBatch,
    message: &BorrowedMessage<'_>,
    unreadable_names: &mut UnreadableNames,
) -> usize {
    let mut bytes = message.payload_len() + message.key_len() + 64;
    let timestamp_ms = message.timestamp().to_millis().unwrap_or(-1);
    batch.push(message.offset(), timestamp_ms, message.key(), message.payload());
    // librdkafka reads their number behind the value, which is on its way to the processor by now.
    if let Some(headers) = message.headers() {
        let mut unreadable = 0;
        for index in 0..headers.count() {
            let header = contained(|| headers.get(index)).ok();
            unreadable += u64::from(header.is_none());
            let (name, value) = header.map_or(("\u{fffd}", None), |header| (header.key, header.value));
            bytes += name.len() + value.map_or(0, <[u8]>::len);
            batch.push_header((name, value));
            if unreadable == UNREADABLE_MAX {
                break;
            }
        }
        unreadable_names.add(unreadable, message);
    }
    bytes
}
