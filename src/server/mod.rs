//! The endpoints, HTTP and TCP: questions to the query engine, events to the log, and listeners
//! that keep slow and greedy clients out.
//!
//! ```text
//! socket --listen--> hyper --guard--> routes --params--> Request --Engine--> Answer --> JSON
//!                            token, deadline,      \-- problem: RFC 9457, for all that goes wrong
//!                            size of the body
//! ```

mod access;
mod body;
mod cloudevents;
mod command;
mod config;
mod connections;
mod context;
mod etag;
mod events;
mod format;
mod guard;
mod head;
pub mod ingest;
mod keep_alive;
mod listen;
mod output;
mod page;
pub mod params;
mod problem;
mod refusals;
mod routes;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
pub mod unpack;

pub use config::Config;
pub use context::{DeadLetters, Letters, Live};
pub use ingest::Ingest;
pub use listen::{Listening, serve};
pub use routes::router;
pub use tcp::{Conversation, serve as serve_tcp};
pub use tls::{Tls, certified_key};
