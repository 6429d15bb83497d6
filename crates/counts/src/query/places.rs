//! How many questions are answered at a time. Those over many values have places of their own, or a
//! few people who ask for much would keep the others waiting. Who finds too many waiting is
//! refused: an answer that comes after its deadline serves nobody.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{QueryError, QueryResult};

/// A question over more values is a large one.
const SMALL_VALUES: usize = 30_000;
/// Questions that are answered at a time, and that wait.
const SMALL_AT_ONCE: usize = 4;
const SMALL_WAITING_MAX: usize = 256;
/// The same of large ones. Each keeps a processor busy, and may bring a key into memory that is
/// larger than all that is kept there.
const LARGE_AT_ONCE: usize = 1;
const LARGE_WAITING_MAX: usize = 32;

/// Whether a question over so many values is a large one.
pub(super) const fn is_large(values: usize) -> bool {
    values > SMALL_VALUES
}

pub(super) struct Places {
    small: Class,
    large: Class,
}

struct Class {
    places: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Default for Places {
    fn default() -> Self {
        let class =
            |places, waiting_max| Class { places: Semaphore::new(places), waiting: AtomicUsize::new(0), waiting_max };
        Self { small: class(SMALL_AT_ONCE, SMALL_WAITING_MAX), large: class(LARGE_AT_ONCE, LARGE_WAITING_MAX) }
    }
}

impl Places {
    /// Waits for a place for a question over so many values, unless too many wait.
    pub async fn take(&self, values: usize) -> QueryResult<SemaphorePermit<'_>> {
        let class = if is_large(values) { &self.large } else { &self.small };
        let waiting = Waiting::one_more(class);
        if waiting.before >= class.places.available_permits() + class.waiting_max {
            let kind = if is_large(values) { "large questions" } else { "questions" };
            return Err(QueryError::Busy(format!("too many {kind} wait for an answer; ask again in a moment")));
        }
        Ok(class.places.acquire().await.expect("it is never closed"))
    }
}

/// Somebody who waits, until dropped.
struct Waiting<'c> {
    class: &'c Class,
    before: usize,
}

impl<'c> Waiting<'c> {
    fn one_more(class: &'c Class) -> Self {
        Self { class, before: class.waiting.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.class.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn large_questions_keep_no_small_one_waiting() {
        let places = Places::default();
        let large = SMALL_VALUES + 1;
        let held = places.take(large).await.unwrap();
        let mut waiting: Vec<_> = (0..LARGE_WAITING_MAX).map(|_| Box::pin(places.take(large))).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        assert!(matches!(places.take(large).await, Err(QueryError::Busy(_))));
        let small = places.take(SMALL_VALUES).await.unwrap();
        drop(held);
        assert!(waiting[0].as_mut().now_or_never().is_some());
        drop(waiting);
        drop(places.take(large).await.unwrap());
        drop(small);
        assert_eq!(places.large.waiting.load(Ordering::Relaxed), 0);
    }
}
