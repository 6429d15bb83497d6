//! A projection in memory, for tests: how often each value was seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use traqq_core::model::{Checkpoint, Part, Record, RecordBatch, Span, TopicPartition};

use super::budget::Budget;
use super::ledger::{Cause, Ledger};
use super::plain::{Decide, PlainBatch, PlainFold, PlainHeader, Texts, TransactionLedger, Transactional};
use super::pool::BudgetedPart;
use super::projection::{Compared, Projection};

pub type Seen = BTreeMap<String, u64>;

#[derive(Default)]
pub struct State {
    pub texts: Texts,
    pub seen: Seen,
    /// What the next transaction fails with, after it has decided.
    pub fails: bool,
}

#[derive(Clone, Default)]
pub struct Memory(pub Arc<Mutex<State>>);

impl Transactional for Memory {
    type Batch = PlainBatch<Seen>;

    fn transaction(&self, decide: Decide<'_, Self::Batch>) -> Result<(), Cause> {
        let mut state = self.0.lock().unwrap();
        let writes = decide(state.texts.clone());
        if std::mem::take(&mut state.fails) {
            return Err("the disk is full".into());
        }
        let Some(writes) = writes else { return Ok(()) };
        state.texts.extend(writes.texts);
        for (value, seen) in writes.batch.into_iter().flat_map(|batch| batch.value) {
            *state.seen.entry(value).or_default() += seen;
        }
        Ok(())
    }
}

pub struct Fake {
    pub shape: &'static str,
    ledger: TransactionLedger<Memory>,
}

impl Fake {
    pub fn new(memory: &Memory, shape: &'static str) -> Self {
        Self { shape, ledger: TransactionLedger::new(memory.clone()) }
    }
}

fn add(batch: &mut PlainBatch<Seen>, _: &Span, record: &Record<'_>) {
    let value = std::str::from_utf8(record.value.unwrap_or_default()).unwrap();
    assert_ne!(value, "panic");
    batch.grow(10);
    *batch.value.entry(value.to_owned()).or_default() += 1;
}

impl Projection for Fake {
    const NAME: &'static str = "fake";

    type Batch = PlainBatch<Seen>;
    type Report = ();
    type Fold = PlainFold<Seen>;
    type Header = PlainHeader;

    fn fold(&self) -> PlainFold<Seen> {
        PlainFold::new(add)
    }

    fn ledger(&self) -> &dyn Ledger<Self> {
        &self.ledger
    }

    fn ledger_name(&self) -> &str {
        "fake"
    }

    fn new_header(&self, _now_ms: i64) -> PlainHeader {
        PlainHeader::new("g", self.shape)
    }

    fn difference(&self, stored: &PlainHeader, compared: Compared) -> Option<String> {
        self.new_header(0).difference(stored, compared)
    }
}

/// Records from an offset on, with these values, and their share of a budget.
pub fn part(budget: &Arc<Budget>, partition: i32, offset: i64, values: &[&str]) -> BudgetedPart {
    let mut records = RecordBatch::new(TopicPartition::new("t", partition), 1);
    (offset..).zip(values).for_each(|(offset, value)| records.push(offset, 0, None, Some(value.as_bytes())));
    let permit = budget.take(records.bytes());
    BudgetedPart::new(Part { records, from: Checkpoint::start(offset) }, permit)
}
