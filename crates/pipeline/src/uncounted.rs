//! Records that were not counted: how many for each reason, and where the first and the last of
//! them are in the log.
//!
//! A batch is accounted for when the store has applied it. Where every record holds one event,
//! records = events + tombstones + dead letters.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use super::repeats::Repeats;
use traqq_core::decode::{DeadLetter, Reason};
use traqq_core::model::TopicPartition;

/// How often a reason is logged at most.
const LOG_EVERY: Duration = Duration::from_secs(60);
const MINUTE_MS: i64 = 60_000;
/// What is recent: so many minutes, the current one included.
const RECENT_MINUTES: i64 = 10;

/// Where a record that was not counted is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Sighting {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// The record's own, in epoch milliseconds.
    pub timestamp_ms: i64,
    /// Which of the record's events, counted from 0, if it holds several.
    pub index: Option<u32>,
    /// Where it is wrong, and why.
    pub detail: String,
}

impl Sighting {
    fn of(letter: &DeadLetter, describe: &impl Fn(&DeadLetter) -> String) -> Self {
        let TopicPartition { topic, partition } = &letter.partition;
        Self {
            topic: topic.to_string(),
            partition: *partition,
            offset: letter.offset,
            timestamp_ms: letter.timestamp_ms,
            index: letter.index,
            detail: describe(letter),
        }
    }
}

/// The dead letters of some records by their reason.
#[derive(Default, Debug)]
pub struct Tally {
    reasons: BTreeMap<Reason, Letters>,
}

#[derive(Clone, Debug)]
struct Letters {
    count: u64,
    first: Sighting,
    last: Sighting,
}

impl Letters {
    fn add(&mut self, later: Self) {
        self.count += later.count;
        self.last = later.last;
    }
}

impl Tally {
    /// `describe` says why a record was not taken: one line.
    pub fn of(letters: &[DeadLetter], describe: impl Fn(&DeadLetter) -> String) -> Self {
        let mut reasons: BTreeMap<Reason, (u64, &DeadLetter, &DeadLetter)> = BTreeMap::new();
        for letter in letters {
            let (count, _, last) = reasons.entry(letter.reason).or_insert((0, letter, letter));
            *count += 1;
            *last = letter;
        }
        let letters = |(reason, (count, first, last))| {
            (reason, Letters { count, first: Sighting::of(first, &describe), last: Sighting::of(last, &describe) })
        };
        Self { reasons: reasons.into_iter().map(letters).collect() }
    }

    fn count(&self) -> u64 {
        self.reasons.values().map(|letters| letters.count).sum()
    }

    /// Adds them to a counter.
    pub fn count_as(&self, metric: &'static str, projection: &'static str) {
        for (reason, letters) in &self.reasons {
            let labels = [("reason", reason.name()), ("projection", projection)];
            metrics::counter!(metric, &labels).increment(letters.count);
        }
    }

    fn add(&mut self, reason: Reason, letters: Letters) {
        match self.reasons.get_mut(&reason) {
            Some(known) => known.add(letters),
            None => _ = self.reasons.insert(reason, letters),
        }
    }
}

/// A reason's records since it was logged last.
pub struct Line {
    pub reason: Reason,
    pub records: u64,
    pub first: Sighting,
}

/// What a worker has not counted since it started.
pub struct Uncounted {
    all: Tally,
    /// When the last of each reason was found, in epoch milliseconds.
    found_ms: BTreeMap<Reason, i64>,
    /// By minute, the latest last: events that were counted, and dead letters.
    recent: VecDeque<(i64, u64, u64)>,
    unsaid: Tally,
    said: Repeats,
}

impl Default for Uncounted {
    fn default() -> Self {
        Self {
            all: Tally::default(),
            found_ms: BTreeMap::new(),
            recent: VecDeque::new(),
            unsaid: Tally::default(),
            said: Repeats::every(LOG_EVERY),
        }
    }
}

impl Uncounted {
    /// So many events were counted, and those of the tally not; what is to be logged.
    pub fn add(&mut self, events: u64, tally: Tally, now_ms: i64) -> Vec<Line> {
        self.remember(now_ms.div_euclid(MINUTE_MS), events, tally.count());
        let mut lines = Vec::new();
        for (reason, letters) in tally.reasons {
            self.found_ms.insert(reason, now_ms);
            self.all.add(reason, letters.clone());
            self.unsaid.add(reason, letters);
            let is_due = self.said.hear(reason.name()).is_some();
            if let Some(Letters { count, first, .. }) = is_due.then(|| self.unsaid.reasons.remove(&reason)).flatten() {
                lines.push(Line { reason, records: count, first });
            }
        }
        lines
    }

    fn remember(&mut self, minute: i64, events: u64, uncounted: u64) {
        match self.recent.back_mut() {
            Some((last, counted, dead)) if *last == minute => {
                *counted += events;
                *dead += uncounted;
            }
            _ => self.recent.push_back((minute, events, uncounted)),
        }
        // A clock that was set back makes them few, not wrong.
        self.recent.retain(|(then, ..)| (minute - RECENT_MINUTES + 1..=minute).contains(then));
    }

    pub fn count(&self) -> u64 {
        self.all.count()
    }

    /// Whether most events come to nothing: of the recent ones, or of all if none came lately.
    /// `events` were counted in all.
    pub fn is_most(&self, events: u64, now_ms: i64) -> bool {
        let minute = now_ms.div_euclid(MINUTE_MS);
        let recent = self.recent.iter().filter(|(then, ..)| minute - then < RECENT_MINUTES);
        let (counted, dead) = recent.fold((0, 0), |(counted, dead), (_, events, more)| (counted + events, dead + more));
        if counted + dead > 0 { dead > counted } else { self.count() > events }
    }

    /// The most frequent reason first.
    pub fn to_json(&self) -> serde_json::Value {
        let mut reasons: Vec<(&Reason, &Letters)> = self.all.reasons.iter().collect();
        reasons.sort_by_key(|(_, letters)| std::cmp::Reverse(letters.count));
        let reasons = reasons.into_iter().map(|(reason, letters)| {
            serde_json::json!({
                "reason": reason.name(),
                "explanation": reason.explain(),
                "records": letters.count,
                "first": letters.first,
                "last": letters.last,
                "last_found_ms": self.found_ms.get(reason),
            })
        });
        reasons.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(reason: Reason, offset: i64) -> DeadLetter {
        DeadLetter {
            partition: TopicPartition::new("events", 3),
            offset,
            timestamp_ms: 1000 + offset,
            index: None,
            reason,
            key: None,
            value: None,
            headers: Vec::new(),
        }
    }

    fn tally(reason: Reason, offsets: std::ops::Range<i64>) -> Tally {
        let letters: Vec<DeadLetter> = offsets.map(|offset| letter(reason, offset)).collect();
        Tally::of(&letters, |letter| letter.reason.explain().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn every_reason_is_logged_with_its_first_and_not_again_at_once() {
        let mut uncounted = Uncounted::default();
        let lines = uncounted.add(10, tally(Reason::NoEvent, 5..8), 0);
        assert_eq!((lines.len(), lines[0].records, lines[0].first.offset), (1, 3, 5));
        assert!(uncounted.add(10, tally(Reason::NoEvent, 8..12), 0).is_empty());
        let lines = uncounted.add(10, tally(Reason::TooOld, 12..13), 0);
        assert_eq!((lines.len(), lines[0].reason), (1, Reason::TooOld));
        tokio::time::advance(LOG_EVERY).await;
        let lines = uncounted.add(10, tally(Reason::NoEvent, 20..21), 0);
        assert_eq!((lines[0].records, lines[0].first.offset), (5, 8));
        let json = uncounted.to_json();
        assert_eq!((&json[0]["reason"], &json[0]["records"]), (&"no_event".into(), &8.into()));
        assert_eq!((&json[0]["first"]["offset"], &json[0]["last"]["offset"]), (&5.into(), &20.into()));
        assert_eq!((&json[0]["first"]["topic"], &json[0]["first"]["partition"]), (&"events".into(), &3.into()));
        assert_eq!((&json[1]["reason"], &json[1]["last"]["timestamp_ms"]), (&"too_old".into(), &1012.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn that_most_is_not_counted_is_judged_by_what_came_lately() {
        let mut uncounted = Uncounted::default();
        uncounted.add(1_000_000, Tally::default(), 0);
        assert!(!uncounted.is_most(1_000_000, 0));
        let later = 20 * MINUTE_MS;
        uncounted.add(5, tally(Reason::NoEvent, 0..6), later);
        assert!(uncounted.is_most(1_000_005, later));
        // Nothing came lately: what there was since the start.
        assert!(!uncounted.is_most(1_000_005, later + RECENT_MINUTES * MINUTE_MS));
        uncounted.add(4, tally(Reason::NoEvent, 6..9), later);
        assert!(!uncounted.is_most(1_000_009, later));
        let mut nothing = Uncounted::default();
        nothing.add(1, tally(Reason::NoEvent, 0..300), 0);
        assert!(nothing.is_most(1, later));
        assert!(!Uncounted::default().is_most(0, 0));
    }
}
