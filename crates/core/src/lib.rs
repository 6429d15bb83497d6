//! What everything of traqq shares: records and positions, the rules of events, decoding,
//! HyperLogLog, and small things that guard against what comes from outside. No I/O, no clock of
//! its own, no server.
//!
//! - `model`    the nouns every layer shares; `escape` makes text from outside harmless, one
//!   function for each sink
//! - `decode`   records to events
//! - `hll`      HyperLogLog, byte-compatible with Redis
//! - `courtesy` long work makes way for short work
//! - `panics`   panics of libraries over bytes from outside, as errors
//! - `metric`   what a metric is
//! - `pem`      private keys in PEM
//! - `error`    errors that a person reads, with the error of a library behind them

pub mod courtesy;
pub mod decode;
pub mod error;
pub mod hll;
pub mod metric;
pub mod model;
pub mod panics;
pub mod pem;
