//! traqq's own log: partitions of blocks of records in the data directory.
//!
//! - `log`        the log as others use it
//! - `shared`     what all parts share: where partitions begin and end, who reads them, and the
//!   blocks written just now
//! - `writer`     the thread that appends: everything that waits goes in one step
//! - `consumer`   reads blocks in order
//! - `retention`  removes what is old and read by all readers
//! - `watermark`  notices when acknowledged records are missing at the next start
//! - `block`      how records lie on disk
//! - `rows`       the keys of the tree `log`
//!
//! Sequence numbers are offsets: dense, from 0 in each partition. Each reader has all partitions,
//! and positions of its own: the first one, which every log has, and further ones by their names.

mod block;
mod config;
mod consumer;
mod log;
mod retention;
pub mod rows;
mod shared;
#[cfg(test)]
mod tests;
pub mod watermark;
mod writer;

pub use block::{Block, compressor};
pub use config::Config;
pub use consumer::LocalConsumer;
pub use log::LocalLog;
