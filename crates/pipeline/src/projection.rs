//! What a projection is to the worker that runs it.
//!
//! A projection is one reading of the log: counts, an archive, a table of one's own. It says how
//! records are folded into batches ([`Fold`]), what a batch is ([`Batch`]), and where batches and
//! positions are kept together ([`Ledger`]). Everything else is the worker's: reading, rebalances,
//! memory, the order of batches, doubt and resync, dead letters, draining, status and metrics.
//!
//! Each projection of a log has a consumer group, a ledger and a pace of its own; none waits for
//! another.

use std::collections::BTreeMap;
use std::time::Duration;

use super::config::Config;
use super::ledger::Ledger;
use super::pool::BudgetedPart;
use traqq_core::decode::DeadLetter;
use traqq_core::model::{Span, TopicPartition};

/// One reading of the log.
pub trait Projection: Send + Sync + Sized + 'static {
    /// The label `projection` of the worker's metrics, and the name in the status: `[a-z_]+`.
    /// Dashboards know it, so it stays.
    const NAME: &'static str;
    /// What some records are folded into.
    type Batch: Batch;
    /// What the ledger says of a batch that it applied.
    type Report: Observed;
    /// What one thread folds with.
    type Fold: Fold<Batch = Self::Batch>;
    /// What a ledger says of itself.
    type Header: Header;

    /// What one thread folds with. Called once for each thread.
    fn fold(&self) -> Self::Fold;

    /// Where batches and positions are kept.
    fn ledger(&self) -> &dyn Ledger<Self>;

    /// The ledger's name among those that share a broker: it stands beside the offsets that are
    /// committed there, so that a ledger which was lost can be told from one that is new. It must
    /// not change while the ledger lives.
    fn ledger_name(&self) -> &str;

    /// The header of a ledger that begins at `now_ms`, in epoch milliseconds; its starts are empty,
    /// the worker fills them in.
    fn new_header(&self, now_ms: i64) -> Self::Header;

    /// Why a stored header forbids this projection to go on, and what to do about it; `None` when
    /// it may. With [`Compared::Identity`] only what can never change is compared (whose ledger it
    /// is, the format of its rows), with [`Compared::Everything`] also what it is made of (a
    /// mapping, a schema).
    fn difference(&self, stored: &Self::Header, compared: Compared) -> Option<String>;

    /// Why a record was not taken: one line, for a person.
    fn describe(&self, letter: &DeadLetter) -> String {
        letter.reason.explain().to_owned()
    }

    /// When a batch is cut. Asked once; the bytes are bounded by the worker's memory all the same.
    fn cut_policy(&self, config: &Config) -> CutPolicy {
        config.cut_policy()
    }

    /// What an operator is told to do where the worker cannot go on by itself.
    fn remedies(&self) -> Remedies {
        Remedies { begin_anew: "begin with another ledger".to_owned(), set_position: None }
    }
}

/// How much of a header is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    Identity,
    Everything,
}

/// Folds records into batches; one for each thread, so it needs no locks. Pure code: no I/O, no
/// clock.
///
/// Folding the same records from the same checkpoints gives the same batches, or batches with the
/// same effect: after a doubt they are read and folded again.
pub trait Fold: Send + 'static {
    type Batch: Batch;

    /// Folds the parts of a job, in order, into one batch or several. Batches follow one another:
    /// of each partition, one begins where the one before it ends, the first one at
    /// [`Part::from`](traqq_core::model::Part::from), and the last one ends behind the part's last
    /// record
    /// ([`RecordBatch::checkpoint_after`](traqq_core::model::RecordBatch::checkpoint_after)). No
    /// batch for a part that moves no position. A part should be dropped as soon as it is folded,
    /// which returns its memory.
    fn fold(&mut self, parts: Vec<BudgetedPart>) -> Vec<Self::Batch>;
}

/// What some records were folded into, and which records those were.
pub trait Batch: Send + Sync + 'static {
    /// What folding observed.
    type Stats: Observed;

    /// What it covers, one range for each partition. Positions move by whole batches.
    fn ranges(&self) -> &[Span];

    /// What it takes in memory until it is committed, about.
    fn bytes(&self) -> usize;

    fn intake(&self) -> Intake;

    fn stats(&self) -> Self::Stats;

    /// Records, or events in them, that could not be taken. They are published before the batch is
    /// committed.
    fn dead_letters(&self) -> &[DeadLetter];
}

/// What a batch was made of.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Intake {
    pub records: u64,
    /// Bytes of the records' values.
    pub bytes: u64,
    /// Events that became part of the result.
    pub events: u64,
}

/// Numbers that are added up over the life of the process.
pub trait Observed: Default + Send + 'static {
    /// Each with the name of the counter that it is added to, which is in the list of metrics. The
    /// same names every time: the default says which there are.
    fn numbers(&self) -> Vec<(&'static str, u64)>;

    /// Logs what a person should read of it. Called once, when the batch was applied.
    fn log(&self) {}
}

/// What a ledger says of itself, beside what the projection wants to know.
pub trait Header: Clone + Send + Sync + 'static {
    /// Where each partition that is known began. A partition that has a start and no position has
    /// lost it.
    fn starts(&self) -> &BTreeMap<TopicPartition, i64>;

    fn starts_mut(&mut self) -> &mut BTreeMap<TopicPartition, i64>;
}

/// Nothing to observe.
impl Observed for () {
    fn numbers(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// When a batch is cut, and how many may be under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutPolicy {
    /// At so many records,
    pub records_max: usize,
    /// or bytes of records,
    pub bytes_max: usize,
    /// or when its first record has waited so long.
    pub age_max: Duration,
    /// Age counts only while the lane has nothing under way: what comes meanwhile merges into the
    /// batch, so a ledger that is slow gets fewer. For a ledger that answers late because it groups
    /// batches, `false`.
    pub waits_for_idle_lane: bool,
    /// Batches of a lane that were sent and are not answered. A ledger that groups batches needs as
    /// many as a group may have.
    pub in_flight_max: usize,
}

/// Ways out, each the end of a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remedies {
    /// How to begin with another ledger, as `count it under a new store.redis.prefix`.
    pub begin_anew: String,
    /// The command that sets a position, if there is one; partition and offset follow.
    pub set_position: Option<String>,
}

impl Remedies {
    /// The ways out of a checkpoint that does not fit; `offset` is where one might go on.
    pub fn of(&self, partition: &TopicPartition, offset: &str) -> String {
        let begin_anew = &self.begin_anew;
        match &self.set_position {
            Some(command) => format!("{begin_anew}, or move on with `{command} {partition} {offset}`"),
            None => begin_anew.clone(),
        }
    }
}
