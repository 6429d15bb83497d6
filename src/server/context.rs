//! What the routes answer from.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use serde_json::Value;

use super::ingest::Ingest;
use traqq_counts::query::Engine;
use traqq_log::BrokerResult;
use traqq_pipeline::Unfit;

/// A JSON array of letters, the newest first.
pub struct Letters {
    pub text: Vec<u8>,
    /// The number before which there are more of them.
    pub more_before: Option<i64>,
}

/// Reads the letters before a number, if one is given, so many at most, and as many as have room in
/// so many bytes, but one at least.
pub type DeadLetters = Arc<dyn Fn(Option<i64>, usize, usize) -> BrokerResult<Letters> + Send + Sync>;

/// What the process says about itself.
pub struct Live {
    /// `Err` says what hangs.
    pub liveness: Box<dyn Fn() -> Result<(), Unfit> + Send + Sync>,
    /// `Err` says why it is not ready.
    pub readiness: Box<dyn Fn() -> Result<(), Unfit> + Send + Sync>,
    /// The document of `/api/v1/stats`.
    pub stats: Box<dyn Fn() -> Value + Send + Sync>,
    /// The text of `/metrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// The newest dead letters; `None` when they are somewhere else.
    pub dead_letters: Option<DeadLetters>,
}

pub(super) struct Context {
    pub engine: Arc<Engine>,
    pub live: Live,
    /// `None` when this process takes no events.
    pub ingest: Option<Arc<Ingest>>,
    pub body_bytes_max: usize,
    /// How long a client may take for nothing of its answer.
    pub patience: Duration,
    /// Epoch seconds.
    pub clock: fn() -> i64,
}

pub(super) type Shared = State<Arc<Context>>;
