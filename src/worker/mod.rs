//! From the broker to the store: one worker.
//!
//! - `driver`     the thread that owns the consumer
//! - `pool`       the threads that fold
//! - `execution`  threads, or tasks of a simulation
//! - `lane`       the task that sends a lane's batches, in order, dead letters first
//! - `dead_letter`  what a record that cannot be counted looks like where it is kept
//! - `start`      what must hold before anything is counted
//! - `run`        the loop that ties them together: records, jobs, answers
//! - `resync`     the one rule for every doubt: go back to the stored positions
//! - `group`      partitions that come and go, what is shown of them, what the broker is told
//! - `partition`  what is known of one partition, and whether the log is still the one it was
//! - `reading`    whether the log can be read, as a whole and partition by partition
//! - `status`     what a person may look at; `gauges` what is measured of each partition
//! - `pulse`      whether loop and driver still go round
//! - `backoff`    how long to wait before the next try; `chance` what it is spread by
//! - `budget`     the bound on what is in flight
//! - `repeats`    what is said again and again, kept back for a while
//! - `uncounted`  records that were not counted, by reason

mod backoff;
mod budget;
mod chance;
mod config;
pub mod dead_letter;
mod driver;
mod execution;
mod gauges;
mod group;
mod lane;
mod partition;
mod pool;
mod pulse;
mod reading;
mod repeats;
mod resync;
mod run;
mod start;
mod status;
mod uncounted;

pub use chance::seed;
pub use config::{Config, OnEmptyStore, OnLogGap};
pub use execution::Execution;
pub use run::{Worker, WorkerError};
pub use start::{note_of, plan_difference, start_in};
pub use status::{PartitionStatus, Status};
