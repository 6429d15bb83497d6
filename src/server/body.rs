//! Bodies of answers. What they hold counts against the memory of all answers until the client has
//! taken it, whether it reads or not.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::stream;

use traqq_counts::query::{AnswerMemory, MemoryPermit, QueryResult};

/// The pieces of an answer on their way: one is being sent, one waits, one is being made.
const PIECES_BYTES: usize = 256 << 10;
const PIECE_BYTES: usize = 64 << 10;
/// A client that takes an answer of many pieces more slowly, in bytes a second, is cut off,
const RATE_MIN: u64 = 16 << 10;
/// and so is one that takes so many times as long as a client may take for nothing.
const PATIENCE_TIMES: u32 = 10;

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

/// A text that is there already, however long.
pub(super) fn of_text(text: Vec<u8>, memory: &Arc<AnswerMemory>, patience: Duration) -> QueryResult<Body> {
    let permit = memory.permit();
    permit.take(text.capacity())?;
    let text = held(text, permit);
    if text.len() <= PIECES_BYTES {
        return Ok(Body::from(text));
    }
    let count = text.len().div_ceil(PIECE_BYTES);
    let pieces = (0..count).map(move |n| text.slice(n * PIECE_BYTES..((n + 1) * PIECE_BYTES).min(text.len())));
    Ok(streamed(pieces, patience))
}

/// Pieces, as long as the client takes them fast enough.
fn streamed(pieces: impl Iterator<Item = Bytes> + Send + 'static, patience: Duration) -> Body {
    let (begun, mut sent) = (Instant::now(), 0);
    let all = pieces.map(move |piece| {
        // Asked for the next piece when those before have been taken.
        let at_the_rate = patience.saturating_add(Duration::from_secs(sent / RATE_MIN));
        let due = at_the_rate.min(patience.saturating_mul(PATIENCE_TIMES));
        if begun.elapsed() > due {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes its answer too slowly"));
        }
        sent += piece.len() as u64;
        Ok(piece)
    });
    Body::from_stream(stream::iter(all))
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
    let memory = Arc::new(memory);
    let all = std::iter::once(first).chain(pieces).map(move |piece| held(piece, Arc::clone(&memory)));
    Ok(streamed(all, patience))
}

fn held<P: Send + 'static>(text: Vec<u8>, memory: P) -> Bytes {
    Bytes::from_owner(HeldText { text, _memory: memory })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// Whoever takes an answer in drops would hold its memory for hours.
    #[tokio::test]
    async fn an_answer_that_is_taken_too_slowly_is_broken_off_and_its_memory_given_back() {
        let memory = AnswerMemory::new(16 << 20);
        for (patience, is_whole) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
            let permit = memory.permit();
            permit.take(1000).unwrap();
            let body = of_pieces((0..3).map(|_| b"piece".to_vec()), permit, patience).unwrap();
            assert!(memory.used() > PIECES_BYTES);
            let whole = body.collect().await;
            assert_eq!(whole.is_ok(), is_whole);
            assert_eq!(whole.ok().map(|whole| whole.to_bytes().len()), is_whole.then_some(15));
            assert_eq!(memory.used(), 0);
        }
        let body = of_pieces(std::iter::once(b"one".to_vec()), memory.permit(), Duration::ZERO).unwrap();
        assert!((3..1000).contains(&memory.used()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "one");
        assert_eq!(memory.used(), 0);
    }
}
