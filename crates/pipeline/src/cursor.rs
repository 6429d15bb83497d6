//! What one partition goes through between its ledger and the log: the worker's side of the
//! protocol.
//!
//! ```text
//!            restore, open           opened               arrived
//! Waiting ------------------> Opening -----> Verifying(last) -----> Running
//!    ^                           |                |                    |
//!    |  wait (any doubt)         +-------> stop <-+--------------------+
//!    +---------------------------------------------------------------- |
//! ```
//!
//! A partition *waits* until its stored checkpoint is known, is *opened* from there under a new
//! generation, *verifies* that the first record is the one that was applied last, and *runs*.
//! Whatever is in doubt sends it back to waiting; a log that is another one stops it until an
//! operator acts.
//!
//! A pure state machine: no clock, no I/O, no logging. It can be cloned, compared and hashed, so
//! that the checker in `tests/it/protocol.rs` drives this code through every state it can reach.

use traqq_core::model::{Checkpoint, Fingerprint, Part, RecordBatch, TopicPartition};
use traqq_log::Watermarks;

use super::projection::Remedies;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Its stored checkpoint is not known.
    Waiting,
    /// The consumer was asked to begin.
    Opening,
    /// Records arrive; the first must be this one.
    Verifying(Fingerprint),
    Running,
    /// Until an operator acts.
    Stopped,
}

/// Where one partition stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cursor {
    phase: Phase,
    /// Which opening records must belong to.
    generation: u64,
    /// It is given back as soon as what is under way is done; nothing more is taken.
    is_leaving: bool,
    /// In front of the next record to be taken into a batch.
    from: Checkpoint,
    /// What the ledger acknowledged.
    committed: Checkpoint,
}

/// What became of an opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// It belongs to an opening that is over.
    Outdated,
    /// Records will arrive. `unverified` is the record that was applied last, if the log no longer
    /// has it.
    Reads { unverified: Option<Fingerprint> },
    /// The checkpoint does not fit the log. Nothing has changed: the caller stops the cursor, or
    /// moves it.
    Misfit(Misfit),
}

/// What became of records.
pub enum Arrival {
    /// To be folded. `unverified` is the record that was applied last, if the log no longer has it.
    Take { part: Part, unverified: Option<Fingerprint> },
    /// They repeat what is known, or belong to an opening that is over.
    Drop,
    /// The log is not the one that was read before. Nothing has changed: the caller stops the
    /// cursor.
    Misfit(Misfit),
}

/// How a log and a checkpoint do not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misfit {
    /// Records were removed from the log before they were applied.
    Gap { low: i64, position: i64 },
    /// The log ends in front of the position.
    Short { low: i64, high: i64, position: i64 },
    /// Another record is where the one was that was applied last.
    Another { found: Fingerprint, last: Fingerprint },
    /// A record below the position arrived while reading went on.
    Again { offset: i64, position: i64 },
}

impl Default for Cursor {
    fn default() -> Self {
        let start = Checkpoint::start(0);
        Self { phase: Phase::Waiting, generation: 0, is_leaving: false, from: start, committed: start }
    }
}

impl Cursor {
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    pub const fn generation(&self) -> u64 {
        self.generation
    }

    pub const fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    pub const fn from(&self) -> Checkpoint {
        self.from
    }

    pub const fn committed(&self) -> Checkpoint {
        self.committed
    }

    /// Everything taken has been applied.
    pub fn is_drained(&self) -> bool {
        self.committed == self.from
    }

    /// Offsets that were taken and are not applied.
    pub const fn unfinished(&self) -> i64 {
        self.from.position - self.committed.position
    }

    /// A doubt: what is under way is void, and the stored checkpoint must be read.
    pub fn wait(&mut self) {
        if self.phase != Phase::Stopped {
            self.phase = Phase::Waiting;
        }
    }

    /// Takes the stored checkpoint. Returns what was acknowledged before, if the ledger has gone
    /// back behind it.
    pub fn restore(&mut self, stored: Checkpoint) -> Option<Checkpoint> {
        let before = self.committed;
        self.from = stored;
        self.committed = stored;
        (stored.position < before.position).then_some(before)
    }

    /// Begins to read from the checkpoint under a generation that no earlier record belongs to.
    pub fn open(&mut self, generation: u64) -> Checkpoint {
        self.generation = generation;
        self.phase = Phase::Opening;
        self.from
    }

    /// Whether an opening is still the one that is waited for.
    pub fn is_opening(&self, generation: u64) -> bool {
        self.generation == generation && self.phase == Phase::Opening
    }

    /// The log holds `watermarks` of the partition.
    pub fn opened(&mut self, generation: u64, watermarks: Watermarks) -> Opened {
        if !self.is_opening(generation) {
            return Opened::Outdated;
        }
        let Watermarks { low, high } = watermarks;
        let position = self.from.position;
        if position < low {
            return Opened::Misfit(Misfit::Gap { low, position });
        }
        if position > high {
            return Opened::Misfit(Misfit::Short { low, high, position });
        }
        let (phase, unverified) = match self.from.last {
            Some(last) if last.offset >= low => (Phase::Verifying(last), None),
            last => (Phase::Running, last),
        };
        self.phase = phase;
        Opened::Reads { unverified }
    }

    /// Goes on behind records that the log no longer has; an operator chose to.
    pub fn skip_to(&mut self, to: Checkpoint) {
        self.from = to;
        self.committed = to;
    }

    pub fn arrived(&mut self, mut records: RecordBatch) -> Arrival {
        if records.generation != self.generation || self.is_leaving {
            return Arrival::Drop;
        }
        let mut unverified = None;
        if let Phase::Verifying(last) = self.phase {
            if records.is_empty() {
                return Arrival::Drop;
            }
            let first = records.get(0);
            if first.offset == last.offset && first.fingerprint() == last {
                records.drop_front(1);
            } else if first.offset < self.from.position {
                return Arrival::Misfit(Misfit::Another { found: first.fingerprint(), last });
            } else {
                // It was compacted away.
                unverified = Some(last);
            }
            self.phase = Phase::Running;
        }
        if self.phase != Phase::Running || (records.is_empty() && records.position <= self.from.position) {
            return Arrival::Drop;
        }
        if !records.is_empty() && records.get(0).offset < self.from.position {
            return Arrival::Misfit(Misfit::Again { offset: records.get(0).offset, position: self.from.position });
        }
        let from = self.from;
        self.from = records.checkpoint_after(from);
        Arrival::Take { part: Part { records, from }, unverified }
    }

    /// The ledger has everything up to here.
    pub const fn applied(&mut self, to: Checkpoint) {
        self.committed = to;
    }

    /// Whether the ledger's checkpoint is the one that it acknowledged last, as far as that can be
    /// said.
    pub fn agrees_with(&self, stored: Option<&Checkpoint>) -> bool {
        !matches!(self.phase, Phase::Running | Phase::Verifying(_)) || stored == Some(&self.committed)
    }

    pub const fn leave(&mut self) {
        self.is_leaving = true;
    }

    pub const fn stop(&mut self) {
        self.phase = Phase::Stopped;
    }
}

impl Misfit {
    /// What is wrong, with the numbers, and the ways out.
    pub fn explain(&self, partition: &TopicPartition, remedies: &Remedies) -> String {
        match *self {
            Self::Gap { low, position } => format!(
                "the log begins at {low}, but the store stands at {position}: {} records were removed before they were counted; \
                 restore them, or set worker.on_log_gap = \"skip\" to go on without them",
                low - position
            ),
            Self::Short { low, high, position } => format!(
                "the log ends at {high}, but the store stands at {position}: the topic was re-created, or lost its tail; \
                 {}",
                remedies.of(partition, &low.to_string())
            ),
            Self::Another { found, last } => format!(
                "the record at offset {} (timestamp {}, hash {:016x}) is not the one that was counted last (offset {}, timestamp {}, \
                 hash {:016x}): the topic was re-created, another cluster stands behind the name, or an unclean election lost records; \
                 {}",
                found.offset,
                found.timestamp_ms,
                found.hash,
                last.offset,
                last.timestamp_ms,
                last.hash,
                remedies.of(partition, "OFFSET")
            ),
            Self::Again { offset, position } => format!(
                "the broker delivered offset {offset} again below position {position}; this is a bug, please report it"
            ),
        }
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

    fn fingerprint(offset: i64) -> Fingerprint {
        records(&[offset]).get(0).fingerprint()
    }

    /// One that was opened from a position, with the record applied last.
    fn opened(position: i64, last: Option<i64>, low: i64, high: i64) -> (Cursor, Opened) {
        let mut cursor = Cursor::default();
        cursor.restore(Checkpoint { position, last: last.map(fingerprint) });
        cursor.open(1);
        let opened = cursor.opened(1, Watermarks { low, high });
        (cursor, opened)
    }

    #[test]
    fn what_a_log_holds_decides_how_reading_begins() {
        let (at, gone) = (fingerprint(4), Opened::Reads { unverified: Some(fingerprint(4)) });
        let reads = Opened::Reads { unverified: None };
        let gap = Opened::Misfit(Misfit::Gap { low: 6, position: 5 });
        let short = Opened::Misfit(Misfit::Short { low: 0, high: 4, position: 5 });
        for (position, last, low, high, expected, phase) in [
            (0, None, 0, 0, reads.clone(), Phase::Running),
            (5, Some(4), 0, 9, reads.clone(), Phase::Verifying(at)),
            (5, Some(4), 4, 5, reads, Phase::Verifying(at)),
            (5, Some(4), 5, 9, gone, Phase::Running),
            (5, Some(4), 6, 9, gap, Phase::Opening),
            (5, Some(4), 0, 4, short, Phase::Opening),
        ] {
            let (cursor, found) = opened(position, last, low, high);
            assert_eq!((found, cursor.phase()), (expected, phase), "{position} {last:?} in {low}..{high}");
        }
    }

    #[test]
    fn records_are_taken_dropped_or_of_another_log() {
        // The position, the record applied last, the records that arrive, and what is taken of
        // them.
        for (position, last, arrive, taken) in [
            (0, None, &[0, 1][..], Some(&[0, 1][..])),
            (5, Some(4), &[4, 5, 6], Some(&[5, 6])),
            // Compaction and transactions leave gaps.
            (7, Some(4), &[9], Some(&[9])),
            (5, Some(4), &[], None),
            (5, Some(4), &[4], None),
        ] {
            let (mut cursor, _) = opened(position, last, 0, 20);
            let found = match cursor.arrived(records(arrive)) {
                Arrival::Take { part, .. } => Some(part.records.iter().map(|record| record.offset).collect::<Vec<_>>()),
                Arrival::Drop => None,
                Arrival::Misfit(misfit) => panic!("{misfit:?}"),
            };
            assert_eq!(found.as_deref(), taken, "{arrive:?} at {position}");
            assert_eq!(cursor.unfinished(), taken.map_or(0, |taken| taken[taken.len() - 1] + 1 - position));
        }
    }

    #[test]
    fn another_record_in_its_place_is_a_misfit_that_names_the_numbers() {
        let (mut cursor, _) = opened(5, Some(4), 0, 9);
        let mut other = RecordBatch::new(TopicPartition::new("t", 0), 1);
        other.push(4, 101, None, Some(b"v4"));
        let Arrival::Misfit(misfit) = cursor.arrived(other) else { panic!("not noticed") };
        let remedies = Remedies { begin_anew: "begin".to_owned(), set_position: Some("set".to_owned()) };
        let message = misfit.explain(&TopicPartition::new("t", 0), &remedies);
        assert!(
            message.contains("offset 4") && message.contains("101") && message.contains("`set t/0 OFFSET`"),
            "{message}"
        );
    }

    #[test]
    fn what_belongs_to_an_opening_that_is_over_changes_nothing() {
        let (mut cursor, _) = opened(0, None, 0, 9);
        cursor.wait();
        cursor.restore(Checkpoint::start(0));
        cursor.open(2);
        assert_eq!(cursor.opened(1, Watermarks { low: 5, high: 9 }), Opened::Outdated);
        assert_eq!(cursor.opened(2, Watermarks { low: 0, high: 9 }), Opened::Reads { unverified: None });
        let before = cursor.clone();
        assert!(matches!(cursor.arrived(records(&[0])), Arrival::Drop));
        assert_eq!(cursor, before);
    }

    #[test]
    fn a_ledger_that_went_back_is_noticed() {
        let (mut cursor, _) = opened(5, Some(4), 0, 9);
        assert!(cursor.agrees_with(Some(&Checkpoint { position: 5, last: Some(fingerprint(4)) })));
        assert!(!cursor.agrees_with(Some(&Checkpoint::start(5))) && !cursor.agrees_with(None));
        cursor.applied(Checkpoint { position: 7, last: Some(fingerprint(6)) });
        cursor.wait();
        assert!(cursor.agrees_with(None), "it waits to be told");
        let before = cursor.restore(Checkpoint::start(3)).map(|before| before.position);
        assert_eq!((before, cursor.restore(Checkpoint::start(3))), (Some(7), None));
    }

    #[test]
    fn one_that_was_stopped_stays_so_and_one_that_leaves_takes_nothing() {
        let (mut cursor, _) = opened(0, None, 0, 9);
        cursor.leave();
        assert!(matches!(cursor.arrived(records(&[0])), Arrival::Drop) && cursor.is_drained());
        cursor.stop();
        cursor.wait();
        assert_eq!(cursor.phase(), Phase::Stopped);
    }
}
