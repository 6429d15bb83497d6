//! `[worker]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::projection::CutPolicy;
use traqq_core::error::ConfigError;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A batch is cut at this many records,
    pub batch_events: usize,
    /// or bytes of records,
    pub batch_bytes: usize,
    /// or operations of what they are folded into (field operations after merging, which keeps the
    /// store's script short),
    pub batch_operations: usize,
    /// or when its first record has waited this long and no other batch of the lane is under way.
    pub batch_age_ms: u64,
    /// Batches on their way to one lane of the store.
    pub batches_in_flight: usize,
    /// Threads that parse and fold; 0 for one per core.
    pub fold_threads: usize,
    /// What the process may use. Queues and caches are sized from it.
    pub memory_max_bytes: usize,
    /// How long what is in flight may take when partitions are given back or the worker stops.
    pub drain_timeout_ms: u64,
    /// How often an idle worker compares its positions with the store's.
    pub position_check_ms: u64,
    /// How often positions are committed to the broker, for lag tools.
    pub broker_commit_ms: u64,
    /// What to do when the store is empty though this group has counted before.
    pub on_empty_store: OnEmptyStore,
    /// What to do when the log no longer has the records at a position.
    pub on_log_gap: OnLogGap,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnEmptyStore {
    /// Begin again where counting began: exact, since nothing is counted.
    Restart,
    Stop,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLogGap {
    /// The partition waits for an operator.
    Stop,
    /// Go on at the first record there is, and count what is passed over.
    Skip,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_events: 100_000,
            batch_bytes: 64 << 20,
            batch_operations: 40_000,
            batch_age_ms: 100,
            batches_in_flight: 3,
            fold_threads: 0,
            memory_max_bytes: 512 << 20,
            drain_timeout_ms: 20_000,
            position_check_ms: 5_000,
            broker_commit_ms: 1_000,
            on_empty_store: OnEmptyStore::Restart,
            on_log_gap: OnLogGap::Stop,
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), ConfigError> {
        for (name, value, min, max) in [
            ("batch_events", self.batch_events, 1, 10_000_000),
            ("batch_bytes", self.batch_bytes, 1 << 10, 1 << 30),
            ("batch_operations", self.batch_operations, 1, 1_000_000),
            ("batches_in_flight", self.batches_in_flight, 1, 64),
            ("fold_threads", self.fold_threads, 0, 1024),
            ("memory_max_bytes", self.memory_max_bytes, 128 << 20, 1 << 40),
            ("batch_age_ms", self.batch_age_ms as usize, 1, 60_000),
            ("drain_timeout_ms", self.drain_timeout_ms as usize, 1, 600_000),
            ("position_check_ms", self.position_check_ms as usize, 100, 3_600_000),
            ("broker_commit_ms", self.broker_commit_ms as usize, 50, 3_600_000),
        ] {
            if !(min..=max).contains(&value) {
                return Err(format!("worker.{name} = {value} must lie in {min} to {max}").into());
            }
        }
        Ok(())
    }

    /// When a batch is cut, as the file says it, by a ledger that answers each batch by itself.
    pub const fn cut_policy(&self) -> CutPolicy {
        CutPolicy {
            records_max: self.batch_events,
            bytes_max: self.batch_bytes,
            age_max: Duration::from_millis(self.batch_age_ms),
            waits_for_idle_lane: true,
            in_flight_max: self.batches_in_flight,
        }
    }

    /// Bytes of records at which a batch is cut: one is gathered while another is folded.
    pub fn batch_bytes_max(&self) -> usize {
        self.batch_bytes.min(self.in_flight_bytes_max() / 2)
    }

    /// Records read and not yet folded, and what is folded and not yet committed.
    pub const fn in_flight_bytes_max(&self) -> usize {
        self.memory_max_bytes / 4
    }

    /// Of it, what is folded and not yet committed, about: a record may come to many times its
    /// size.
    pub const fn folded_bytes_max(&self) -> usize {
        self.in_flight_bytes_max() / 2
    }

    /// What a batch of records may come to when it is folded, as far as one knows before.
    pub const fn expected_bytes_max(&self) -> usize {
        self.folded_bytes_max() / 4
    }

    /// What the client library may fetch ahead.
    pub const fn fetch_bytes_max(&self) -> usize {
        self.memory_max_bytes / 8
    }

    pub fn threads(&self) -> usize {
        match self.fold_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        }
    }
}
