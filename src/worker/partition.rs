//! What the worker knows of one partition, and whether the log is still the one it was.

use tokio::time::Instant;

use super::backoff::Backoff;
use crate::broker::Watermarks;
use crate::model::{Checkpoint, Fingerprint, RecordBatch, TopicPartition};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits for the stored position.
    Waiting,
    /// The driver was asked to open it.
    Opening,
    /// Records arrive; the first must be this one.
    Verifying(Fingerprint),
    Running,
    /// Waits for an operator.
    Stopped(String),
}

pub struct Partition {
    pub lane: usize,
    pub generation: u64,
    pub state: State,
    /// Whether its position was found to fit the log.
    pub is_open: bool,
    /// Given back as soon as what is in flight is done.
    pub is_leaving: bool,
    /// In front of the next record to be taken into a batch.
    pub from: Checkpoint,
    /// What the store acknowledged.
    pub committed: Checkpoint,
    /// What was committed to the broker.
    pub marked: Option<i64>,
    pub watermarks: Watermarks,
    /// End of the log as far as it is known.
    pub end: i64,
    /// Between attempts to open it.
    pub backoff: Backoff,
    /// Why the last attempt to open it failed.
    pub unopened: Option<String>,
    /// Since when it cannot be read, and why.
    pub unread: Option<(Instant, String)>,
}

/// What to do with records that arrived.
pub enum Arrival {
    Take(RecordBatch),
    /// They repeat what is known, or belong to an older generation.
    Drop,
    /// The log is not the one that was counted; the message names the numbers and the ways out.
    Stop(String),
}

impl Partition {
    pub fn new(lane: usize) -> Self {
        Self {
            lane,
            generation: 0,
            state: State::Waiting,
            is_open: false,
            is_leaving: false,
            from: Checkpoint::start(0),
            committed: Checkpoint::start(0),
            marked: None,
            watermarks: Watermarks { low: 0, high: 0 },
            end: 0,
            backoff: Backoff::default(),
            unopened: None,
            unread: None,
        }
    }

    /// Everything read has been applied.
    pub fn is_drained(&self) -> bool {
        self.committed == self.from
    }

    /// Offsets that were read and are not applied.
    pub const fn unfinished(&self) -> i64 {
        self.from.position - self.committed.position
    }

    /// Takes the watermarks the driver found; `Err` says why the position does not fit them.
    pub fn opened(&mut self, partition: &TopicPartition, watermarks: Watermarks) -> Result<(), String> {
        let Watermarks { low, high } = watermarks;
        let position = self.from.position;
        self.watermarks = watermarks;
        self.end = high;
        if position < low {
            return Err(format!(
                "the log begins at {low}, but the store stands at {position}: {} records were removed before they were counted; \
                 restore them, or set worker.on_log_gap = \"skip\" to go on without them",
                low - position
            ));
        }
        if position > high {
            return Err(format!(
                "the log ends at {high}, but the store stands at {position}: the topic was re-created, or lost its tail; \
                 count it under a new store.redis.prefix, or move on with `traqq position set {partition} {low}`"
            ));
        }
        self.is_open = true;
        self.unopened = None;
        self.backoff.reset();
        self.state = match self.from.last {
            Some(last) if last.offset >= low => State::Verifying(last),
            Some(last) => {
                tracing::info!(%partition, offset = last.offset, low, "the last applied record was trimmed; unverified");
                State::Running
            }
            None => State::Running,
        };
        Ok(())
    }

    pub fn arrived(&mut self, mut records: RecordBatch) -> Arrival {
        if records.generation != self.generation || self.is_leaving {
            return Arrival::Drop;
        }
        if let State::Verifying(last) = self.state {
            if records.is_empty() {
                return Arrival::Drop;
            }
            let first = records.get(0);
            if first.offset == last.offset {
                if first.fingerprint() != last {
                    return Arrival::Stop(self.another_log(&records, last));
                }
                records.drop_front(1);
            } else if first.offset < self.from.position {
                return Arrival::Stop(self.another_log(&records, last));
            } else {
                tracing::info!(partition = %records.partition, offset = last.offset, "the last applied record was compacted away; unverified");
            }
            self.state = State::Running;
        }
        if self.state != State::Running {
            return Arrival::Drop;
        }
        if records.is_empty() && records.position <= self.from.position {
            return Arrival::Drop;
        }
        if !records.is_empty() && records.get(0).offset < self.from.position {
            return Arrival::Stop(format!(
                "the broker delivered offset {} again below position {}; this is a bug, please report it",
                records.get(0).offset,
                self.from.position
            ));
        }
        Arrival::Take(records)
    }

    fn another_log(&self, records: &RecordBatch, last: Fingerprint) -> String {
        let partition = &records.partition;
        let first = records.get(0).fingerprint();
        format!(
            "the record at offset {} (timestamp {}, hash {:016x}) is not the one that was counted last (offset {}, timestamp {}, hash {:016x}): \
             the topic was re-created, another cluster stands behind the name, or an unclean election lost records; \
             count it under a new store.redis.prefix, or move on with `traqq position set {partition} OFFSET`",
            first.offset, first.timestamp_ms, first.hash, last.offset, last.timestamp_ms, last.hash
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(offsets: &[i64]) -> RecordBatch {
        let mut batch = RecordBatch::new(TopicPartition::new("t", 0), 1);
        for offset in offsets {
            batch.push(*offset, 100, None, Some(format!("v{offset}").as_bytes()));
        }
        batch
    }

    fn partition(position: i64, last: Option<i64>) -> Partition {
        let last = last.map(|offset| records(&[offset]).get(0).fingerprint());
        let mut partition = Partition::new(0);
        partition.generation = 1;
        partition.from = Checkpoint { position, last };
        partition
    }

    fn open(partition: &mut Partition, low: i64, high: i64) -> Result<(), String> {
        partition.opened(&TopicPartition::new("t", 0), Watermarks { low, high })
    }

    #[test]
    fn the_last_applied_record_is_checked_and_not_counted_again() {
        let mut partition = partition(5, Some(4));
        open(&mut partition, 0, 9).unwrap();
        let Arrival::Take(taken) = partition.arrived(records(&[4, 5, 6])) else { panic!("not taken") };
        assert_eq!(taken.get(0).offset, 5);
    }

    #[test]
    fn another_record_in_its_place_stops_the_partition() {
        let mut partition = partition(5, Some(4));
        open(&mut partition, 0, 9).unwrap();
        let mut other = RecordBatch::new(TopicPartition::new("t", 0), 1);
        other.push(4, 101, None, Some(b"v4"));
        let Arrival::Stop(message) = partition.arrived(other) else { panic!("not stopped") };
        assert!(message.contains("offset 4") && message.contains("101"), "{message}");
    }

    #[test]
    fn gaps_of_compaction_and_transactions_are_fine() {
        let mut partition = partition(7, Some(4));
        open(&mut partition, 0, 20).unwrap();
        assert!(matches!(partition.arrived(records(&[9])), Arrival::Take(_)));
    }

    #[test]
    fn watermarks_that_do_not_fit_stop_the_partition() {
        assert!(open(&mut partition(5, Some(4)), 6, 9).unwrap_err().contains("begins at 6"));
        assert!(open(&mut partition(5, Some(4)), 0, 4).unwrap_err().contains("ends at 4"));
        let mut trimmed = partition(5, Some(4));
        open(&mut trimmed, 5, 9).unwrap();
        assert_eq!(trimmed.state, State::Running);
    }

    #[test]
    fn records_of_an_older_generation_are_dropped() {
        let mut partition = partition(0, None);
        open(&mut partition, 0, 9).unwrap();
        partition.generation = 2;
        assert!(matches!(partition.arrived(records(&[0])), Arrival::Drop));
    }
}
