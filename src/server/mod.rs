//! The HTTP endpoint: routes over the query engine, and the listener that keeps slow and greedy clients out.
//!
//! ```text
//! socket --listen--> hyper --guard--> routes --params--> Request --query::Engine--> Answer --> JSON
//!                            token, deadline,      \-- problem: RFC 9457, for everything that goes wrong
//!                            size of the body
//! ```

mod config;
mod guard;
mod listen;
mod page;
mod params;
mod problem;
mod routes;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use listen::{Listening, serve};
pub use routes::{Live, router};
