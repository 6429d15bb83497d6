//! What is said again and again, kept back for a while: a log that cannot be reached is reported
//! several times a second.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(10);
/// Texts that are remembered. Beyond it those that were not said lately are forgotten.
const TEXTS_MAX: usize = 64;

pub struct Repeats {
    every: Duration,
    /// When it was said last, and how often it was kept back since.
    said: BTreeMap<String, (Instant, u64)>,
}

impl Default for Repeats {
    fn default() -> Self {
        Self::every(EVERY)
    }
}

impl Repeats {
    /// The same text is said once in so long.
    pub fn every(every: Duration) -> Self {
        Self { every, said: BTreeMap::new() }
    }

    /// Whether to say it, with how often it was kept back since the last time.
    pub fn hear(&mut self, text: &str) -> Option<u64> {
        if let Some((at, kept_back)) = self.said.get_mut(text) {
            if at.elapsed() < self.every {
                *kept_back += 1;
                return None;
            }
            *at = Instant::now();
            return Some(std::mem::take(kept_back));
        }
        if self.said.len() >= TEXTS_MAX {
            let every = self.every;
            self.said.retain(|_, (at, _)| at.elapsed() < every);
        }
        if self.said.len() < TEXTS_MAX {
            self.said.insert(text.to_owned(), (Instant::now(), 0));
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_in_a_while_and_counted_meanwhile() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.hear("down"), Some(0));
        assert_eq!(repeats.hear("up"), Some(0));
        for _ in 0..5 {
            assert_eq!(repeats.hear("down"), None);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!(repeats.hear("down"), Some(5));
        assert_eq!(repeats.hear("down"), None);
        for number in 0..TEXTS_MAX * 2 {
            assert_eq!(repeats.hear(&number.to_string()), Some(0));
        }
        assert!(repeats.said.len() <= TEXTS_MAX);
    }
}
