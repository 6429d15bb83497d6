//! What librdkafka hands over, as ours.

use rdkafka::message::{BorrowedMessage, Headers, Message as _};

use crate::model::RecordBatch;

/// Returns about as many bytes as it takes.
pub(super) fn push(batch: &mut RecordBatch, message: &BorrowedMessage<'_>) -> usize {
    let mut bytes = message.payload_len() + message.key_len() + 64;
    let timestamp_ms = message.timestamp().to_millis().unwrap_or(-1);
    batch.push(message.offset(), timestamp_ms, message.key(), message.payload());
    // librdkafka reads their number behind the value, which is on its way to the processor by now.
    if let Some(headers) = message.headers() {
        for index in 0..headers.count() {
            let header = contained(|| headers.get(index));
            let (name, value) = header.map_or(("\u{fffd}", None), |header| (header.key, header.value));
            bytes += name.len() + value.map_or(0, <[u8]>::len);
            batch.push_header((name, value));
        }
    }
    bytes
}

/// rdkafka panics over header names and commit notes that are not UTF-8, which any producer or tool may write.
pub(super) fn contained<T>(read: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).ok()
}
