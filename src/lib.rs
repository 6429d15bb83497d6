//! traqq turns a log of JSON events into exact counts.
//!
//! There is one ordered log, and everything else is a projection of it that stores its position
//! together with its result. The path of a batch:
//!
//! ```text
//! broker            decode           compile              store
//! RecordBatch  -->  events   -->  WriteBatch + span  -->  commit(writes, span)  --> ack the broker
//! bytes+offsets     typed         merged per key          atomic, fenced            (a hint)
//! ```
//!
//! This crate is the program: the command line, the server, the configuration, and the wiring. What
//! it is made of are the crates `traqq_core`, `traqq_disk`, `traqq_log`, `traqq_pipeline` and
//! `traqq_counts`; `ARCHITECTURE.md` says where what belongs.

// They panic where nothing can be written, and nobody learns that an answer is not whole:
// `cli/output` writes.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod app;
pub mod cli;
pub mod config;
pub mod server;
pub mod telemetry;
