//! A record that cannot be taken, with everything needed to publish it elsewhere.

use super::{EventReader, Reason};
use crate::model::{Record, RecordBatch, TopicPartition};

/// A record that cannot be taken, or one of the events that it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    pub partition: TopicPartition,
    pub offset: i64,
    pub timestamp_ms: i64,
    /// Which of the record's events, counted from 0, if it holds several: then the value is that of
    /// the event, and key and headers stay with the record, or one record could become many times
    /// its size.
    pub index: Option<u32>,
    pub reason: Reason,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl DeadLetter {
    pub fn of_record(partition: &TopicPartition, record: &Record<'_>, reason: Reason) -> Self {
        Self {
            partition: partition.clone(),
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            index: None,
            reason,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
        }
    }

    /// `text` is the event, and `index` which of the record's it is.
    pub fn of_event(partition: &TopicPartition, record: &Record<'_>, index: usize, text: &str, reason: Reason) -> Self {
        Self {
            partition: partition.clone(),
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            index: Some(index as u32),
            reason,
            key: None,
            value: Some(text.as_bytes().to_vec()),
            headers: Vec::new(),
        }
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + len(value) + 64).sum();
        size_of::<Self>() + len(&self.key) + len(&self.value) + headers
    }
}

impl EventReader {
    /// Where a dead letter is wrong, and why: one line.
    pub fn describe_letter(&self, letter: &DeadLetter) -> String {
        let mut records = RecordBatch::new(letter.partition.clone(), 0);
        records.push(letter.offset, letter.timestamp_ms, letter.key.as_deref(), letter.value.as_deref());
        for (name, value) in &letter.headers {
            records.push_header((name, value.as_deref()));
        }
        self.describe(&records.get(0), letter.reason)
    }
}
