//! One record after the other into a value.

use traqq_core::decode::DeadLetter;
use traqq_core::model::{Record, Span};

use super::super::pool::BudgetedPart;
use super::super::projection::{Batch, Fold, Intake};

/// A value that some records were folded into.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct PlainBatch<T> {
    pub value: T,
    ranges: Vec<Span>,
    intake: Intake,
    bytes: usize,
    dead_letters: Vec<DeadLetter>,
}

impl<T> PlainBatch<T> {
    /// A record that cannot be taken.
    pub fn refuse(&mut self, letter: DeadLetter) {
        self.bytes += letter.bytes();
        self.dead_letters.push(letter);
    }

    /// What the value takes in memory has grown by so much.
    pub const fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

impl<T: Send + Sync + 'static> Batch for PlainBatch<T> {
    type Stats = ();

    fn ranges(&self) -> &[Span] {
        &self.ranges
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn intake(&self) -> Intake {
        Intake { events: self.intake.records - self.dead_letters.len() as u64, ..self.intake }
    }

    fn stats(&self) {}

    fn dead_letters(&self) -> &[DeadLetter] {
        &self.dead_letters
    }
}

/// Adds each record of a job to one batch, by a function.
pub struct PlainFold<T> {
    add: fn(&mut PlainBatch<T>, &Span, &Record<'_>),
}

impl<T> PlainFold<T> {
    /// `add` adds a record of a partition, which is that of the range.
    pub const fn new(add: fn(&mut PlainBatch<T>, &Span, &Record<'_>)) -> Self {
        Self { add }
    }
}

impl<T: Default + Send + Sync + 'static> Fold for PlainFold<T> {
    type Batch = PlainBatch<T>;

    fn fold(&mut self, parts: Vec<BudgetedPart>) -> Vec<PlainBatch<T>> {
        let mut batch = PlainBatch::default();
        for part in parts {
            let range = part.range();
            for record in part.records().iter() {
                batch.intake.records += 1;
                batch.intake.bytes += record.value.map_or(0, <[u8]>::len) as u64;
                (self.add)(&mut batch, &range, &record);
            }
            match batch.ranges.iter_mut().find(|known| known.partition == range.partition) {
                Some(known) => known.to = range.to,
                None => batch.ranges.push(range),
            }
        }
        batch.ranges.retain(|range| range.from != range.to);
        if batch.ranges.is_empty() { Vec::new() } else { vec![batch] }
    }
}
