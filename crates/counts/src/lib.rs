//! Counts as a projection of the log: unique visitors, counters, sums, leaderboards, per day and
//! hour.
//!
//! - `mapping`    what is counted, and what a batch becomes by it
//! - `compile`    the mapping compiled once, and the fold that runs it; the door for events that
//!   come in
//! - `projection` counts for [`traqq_pipeline`]
//! - `store`      where counts and positions are kept: Redis, a data directory, memory
//! - `query`      question to reads to merged answer
//! - `names`      what is measured

pub mod compile;
pub mod mapping;
pub mod names;
pub mod projection;
pub mod query;
pub mod store;

pub use projection::{Counts, plan_difference};
