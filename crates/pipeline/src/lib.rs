//! From the log to a ledger: one worker, for any projection.
//!
//! - `projection` what a projection is; `ledger` where it keeps its result and its positions
//! - `plain`      what projections have alike that are a few tables in a database
//! - `run`        the loop that ties everything together: records, jobs, answers
//! - `partitions` what is known of the partitions, and what is to be done about them; `cursor` the
//!   rules of each
//! - `lane`       what waits, is folded and is under way in one lane
//! - `driver`     the thread that owns the consumer
//! - `pool`       the threads that fold
//! - `sender`     the task that sends a lane's batches, in order, dead letters first
//! - `dead_letter`  what a record that cannot be taken looks like where it is kept
//! - `start`      what must hold before anything is folded
//! - `resync`     the one rule for every doubt: go back to the stored positions
//! - `status`     what a person may look at; `gauges` what is measured of each partition
//! - `uncounted`  records that were not taken, by reason
//! - `pulse`      whether loop and driver still go round
//! - `budget`     the bound on what is in flight
//! - `backoff`    how long to wait before the next try; `chance` what it is spread by
//! - `repeats`    what is said again and again, kept back for a while
//! - `execution`  threads, or tasks of a simulation
//!
//! Nothing here knows a projection by name.

mod backoff;
mod budget;
mod chance;
mod config;
pub mod cursor;
pub mod dead_letter;
mod driver;
mod execution;
#[cfg(test)]
mod fake;
mod gauges;
mod lane;
mod ledger;
pub mod names;
mod partitions;
pub mod plain;
mod pool;
mod projection;
mod pulse;
mod repeats;
mod resync;
mod run;
mod sender;
mod start;
mod status;
mod uncounted;

pub use budget::Permit;
pub use chance::seed;
pub use config::{Config, OnEmptyStore, OnLogGap};
pub use execution::Execution;
pub use ledger::{Cause, Ledger, LedgerError, LedgerResult, Outcome, Session, Stale};
pub use pool::BudgetedPart;
pub use projection::{Batch, Compared, CutPolicy, Fold, Header, Intake, Observed, Projection, Remedies};
pub use run::{Worker, WorkerError};
pub use sender::DeadLetters;
pub use start::{note_of, start_in};
pub use status::{Obstacle, PartitionStatus, Status, Statuses, Unfit, announce};
