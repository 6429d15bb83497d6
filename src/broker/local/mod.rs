//! traqq's own log: partitions of blocks of records in the data directory.
//!
//! - `log`        what all parts share: where partitions begin and end, and the blocks the consumer has not had yet
//! - `writer`     the thread that appends: everything that waits goes in one step
//! - `consumer`   reads blocks in order
//! - `retention`  removes what is old and counted
//! - `watermark`  notices when acknowledged records are missing at the next start
//! - `block`      how records lie on disk
//! - `rows`       the keys of the tree `log`
//!
//! Sequence numbers are offsets: dense, from 0 in each partition. There is one group and one consumer, which has all partitions.

mod block;
mod config;
mod consumer;
mod log;
mod retention;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod watermark;
mod writer;

pub use block::{Block, compressor};
pub use config::Config;
pub use consumer::LocalConsumer;
pub use log::LocalLog;
