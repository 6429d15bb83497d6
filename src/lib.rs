//! traqq turns a log of JSON events into exact counts.
//!
//! There is one ordered log, and everything else is a projection of it that stores its position together with its
//! result. The path of a batch:
//!
//! ```text
//! broker            decode           compile              store
//! RecordBatch  -->  events   -->  WriteBatch + span  -->  commit(writes, span)  --> ack the broker
//! bytes+offsets     typed         merged per key          atomic, fenced            (a hint)
//! ```
//!
//! `ARCHITECTURE.md` says which folder may import which, and why.

// They panic where nothing can be written, and nobody learns that an answer is not whole: `cli/output` writes.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod app;
pub mod broker;
pub mod cli;
pub mod compile;
pub mod config;
pub mod counts;
pub mod courtesy;
pub mod database;
pub mod decode;
pub mod hll;
pub mod mapping;
pub mod model;
mod panics;
pub mod query;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod worker;
