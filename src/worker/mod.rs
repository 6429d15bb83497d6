//! From the broker to the store: one worker.
//!
//! - `driver`     the thread that owns the consumer
//! - `pool`       the threads that fold
//! - `lane`       the task that sends a lane's batches, in order, dead letters first
//! - `start`      what must hold before anything is counted
//! - `run`        the loop that ties them together, and the one rule for every doubt: go back to the stored positions
//! - `partition`  what is known of one partition, and whether the log is still the one it was
//! - `status`     what a person may look at

mod backoff;
mod budget;
mod config;
mod driver;
mod lane;
mod partition;
mod pool;
mod run;
mod start;
mod status;

pub use config::{Config, OnEmptyStore, OnLogGap};
pub use run::{Worker, WorkerError};
pub use start::plan_difference;
pub use status::{PartitionStatus, Status};
