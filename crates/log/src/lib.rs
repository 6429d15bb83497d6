//! Where the log is. A [`Consumer`] hands out records of the partitions it was given, a
//! [`Producer`] takes dead letters, an [`Appender`] takes events.
//!
//! - `consumer`  the contract of rebalances, and what a consumer must do
//! - `producer`  dead letters; `appender` events on their way in
//! - `error`     what to do about a failure; `start` where reading begins
//! - `throttle`  what is reported again with every record
//! - `kafka`, `nats`, `local`, and `memory`, which states the contract in its simplest form

mod appender;
mod consumer;
mod error;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod local;
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
mod producer;
mod start;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod throttle;

pub use appender::{AppendError, Appended, Appender, Events, Idempotency, RequestCounts};
pub use consumer::{Consumer, Event, Mark, Opening, Watermarks};
pub use error::{BrokerError, BrokerResult};
pub use producer::{Message, ProduceError, Producer};
pub use start::Start;
