//! Bodies of answers. What they hold counts against the memory of all answers until the client has
//! taken it, whether it reads or not.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::stream;

use crate::query::{AnswerMemory, MemoryPermit, QueryResult};

/// The pieces of an answer on their way: one is being sent, one waits, one is being made.
const PIECES_BYTES: usize = 256 << 10;
/// A client that takes an answer of many pieces more slowly, in bytes a second, is cut off.
const RATE_MIN: u64 = 16 << 10;

/// A text with what it holds.
struct HeldText<P> {
    text: Vec<u8>,
    _memory: P,
}

impl<P> AsRef<[u8]> for HeldText<P> {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// A text of known length.
pub(super) fn of_text(text: Vec<u8>, memory: &Arc<AnswerMemory>) -> QueryResult<Body> {
    let permit = memory.permit();
    permit.take(text.capacity())?;
    Ok(Body::from(held(text, permit)))
}

/// A text of one piece, whose length is known; or of many that are made while they are sent.
/// `memory` is what they are made of; `patience` how long a client may take for nothing.
pub(super) fn of_pieces(
    pieces: impl Iterator<Item = Vec<u8>> + Send + 'static,
    memory: MemoryPermit,
    patience: Duration,
) -> QueryResult<Body> {
    let mut pieces = pieces.peekable();
    let first = pieces.next().unwrap_or_default();
    if pieces.peek().is_none() {
        drop(pieces);
        memory.hold(first.capacity())?;
        return Ok(Body::from(held(first, memory)));
    }
    memory.take(PIECES_BYTES)?;
    let (memory, begun, mut sent) = (Arc::new(memory), Instant::now(), 0);
    let all = std::iter::once(first).chain(pieces).map(move |piece| {
        // Asked for the next piece when those before have been taken.
        if begun.elapsed() > patience + Duration::from_secs(sent / RATE_MIN) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes its answer too slowly"));
        }
        sent += piece.len() as u64;
        Ok(held(piece, Arc::clone(&memory)))
    });
    Ok(Body::from_stream(stream::iter(all)))
}

fn held<P: Send + 'static>(text: Vec<u8>, memory: P) -> Bytes {
    Bytes::from_owner(HeldText { text, _memory: memory })
}
