//! From the broker to the store: one worker.
//!
//! - `driver`     the thread that owns the consumer
//! - `pool`       the threads that fold
//! - `lane`       the task that sends a lane's batches, in order, dead letters first
//! - `start`      what must hold before anything is counted
//! - `run`        the loop that ties them together: records, jobs, answers
//! - `resync`     the one rule for every doubt: go back to the stored positions
//! - `group`      partitions that come and go, what is shown of them, what the broker is told
//! - `partition`  what is known of one partition, and whether the log is still the one it was
//! - `status`     what a person may look at

mod backoff;
mod budget;
mod config;
mod driver;
mod group;
mod lane;
mod partition;
mod pool;
mod resync;
mod run;
mod start;
mod status;

pub use config::{Config, OnEmptyStore, OnLogGap};
pub use run::{Worker, WorkerError};
pub use start::plan_difference;
pub use status::{PartitionStatus, Status};
