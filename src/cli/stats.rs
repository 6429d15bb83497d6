//! `/api/v1/stats`, and what of it a person must not miss.

use serde::Deserialize;

use super::chart::{counted, grouped};

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub ready: bool,
    pub not_ready_because: Option<String>,
    pub totals: Totals,
    /// Whether most records come to nothing.
    pub most_uncounted: bool,
    pub dead_letters: DeadLetters,
    /// `None` where no events come in.
    pub ingest: Option<Ingest>,
    pub lag_records: i64,
    pub partitions: Vec<Partition>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub records: u64,
    pub events: u64,
    pub batches: u64,
    pub dead_letters: u64,
    pub tombstones: u64,
    pub values_skipped: u64,
    pub buckets_expired: u64,
    pub keys_expired: u64,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct DeadLetters {
    /// Where they go.
    pub to: String,
    pub reasons: Vec<Reason>,
}

/// Records, or events at the door, that came to nothing for one reason.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Reason {
    pub reason: String,
    pub explanation: String,
    #[serde(alias = "events")]
    pub records: u64,
    pub first: Option<Sighting>,
    pub last: Option<Sighting>,
    pub last_detail: Option<String>,
}

#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Sighting {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub detail: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Ingest {
    pub accepted: u64,
    pub rejected: u64,
    /// Whether most are refused, still.
    pub most_rejected: bool,
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Partition {
    pub topic: String,
    pub partition: i32,
    pub state: String,
    pub position: i64,
    pub end: i64,
    pub lag_records: i64,
    pub lag_seconds: f64,
    pub reason: Option<String>,
}

impl Stats {
    /// What is not counted and why, each in a line; nothing where all is counted.
    pub fn uncounted(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.totals.dead_letters > 0 {
            let of = counted(self.totals.events + self.totals.dead_letters, "event");
            let to = match self.dead_letters.to.as_str() {
                "discard" | "" => "they are discarded".to_owned(),
                to => format!("they are in {to}"),
            };
            lines.push(format!("{} of {of} not counted; {to}", grouped(&self.totals.dead_letters.to_string())));
            lines.extend(self.dead_letters.reasons.iter().map(Reason::line));
        }
        if let Some(ingest) = self.ingest.as_ref().filter(|ingest| ingest.rejected > 0) {
            let of = counted(ingest.accepted + ingest.rejected, "event");
            let rejected = grouped(&ingest.rejected.to_string());
            lines.push(format!("{rejected} of {of} refused at the door; their senders were told"));
            lines.extend(ingest.reasons.iter().map(Reason::line));
        }
        lines.extend(self.totals.left_out());
        lines
    }

    /// Whether what comes in comes to nothing, for the most part.
    pub fn is_mostly_uncounted(&self) -> bool {
        self.most_uncounted || self.ingest.as_ref().is_some_and(|ingest| ingest.most_rejected)
    }
}

impl Totals {
    /// What of records that were counted is in no number, and records without anything to count.
    fn left_out(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.values_skipped > 0 {
            let values = counted(self.values_skipped, "value");
            lines.push(format!("{values} left out: no number where one was needed (amounts of add_value)"));
        }
        let expired = self.buckets_expired + self.keys_expired;
        if expired > 0 {
            let buckets = counted(expired, "bucket");
            lines.push(format!("{buckets} of late events not written: their retention had passed (buckets.retention)"));
        }
        // Here and there one is how a compacted topic works.
        if self.tombstones * 2 > self.records {
            let records = counted(self.records, "record");
            lines.push(format!("{} of {records} have no value", grouped(&self.tombstones.to_string())));
        }
        lines
    }
}

impl Reason {
    fn line(&self) -> String {
        let Self { reason, explanation, records, first, last, last_detail } = self;
        let place = |sighting: &Sighting| format!("{}/{}@{}", sighting.topic, sighting.partition, sighting.offset);
        let places = match (first, last) {
            (Some(first), Some(last)) if first != last => format!(" (first {}, last {})", place(first), place(last)),
            (Some(only), _) | (_, Some(only)) => format!(" ({})", place(only)),
            (None, None) => String::new(),
        };
        let detail = last.as_ref().and_then(|last| last.detail.as_ref()).or(last_detail.as_ref());
        // It begins with the explanation.
        let why = detail.unwrap_or(explanation);
        format!("  {reason} {}{places}: {why}", grouped(&records.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(text: &str) -> Stats {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_not_counted_is_said_with_reason_and_place() {
        let text = r#"{"totals":{"records":1301,"events":1,"dead_letters":1300,"values_skipped":2,"buckets_expired":3},"most_uncounted":true,
            "dead_letters":{"to":"topic dead","reasons":[
            {"reason":"no_event","explanation":"an event has a name","records":1299,"first":{"topic":"events","partition":2,"offset":5},
             "last":{"topic":"events","partition":0,"offset":9,"detail":"an event has a name: no member \"event\""}},
            {"reason":"too_old","explanation":"it is too old","records":1,"first":{"topic":"events","partition":1,"offset":7},
             "last":{"topic":"events","partition":1,"offset":7}}]},
            "ingest":{"accepted":1,"rejected":3,"most_rejected":true,"reasons":[{"reason":"too_deep","explanation":"it is nested","events":3}]}}"#;
        assert_eq!(
            stats(text).uncounted(),
            [
                "1,300 of 1,301 events not counted; they are in topic dead",
                "  no_event 1,299 (first events/2@5, last events/0@9): an event has a name: no member \"event\"",
                "  too_old 1 (events/1@7): it is too old",
                "3 of 4 events refused at the door; their senders were told",
                "  too_deep 3: it is nested",
                "2 values left out: no number where one was needed (amounts of add_value)",
                "3 buckets of late events not written: their retention had passed (buckets.retention)",
            ]
        );
        assert!(stats(text).is_mostly_uncounted());
    }

    #[test]
    fn where_all_is_counted_nothing_is_said() {
        for text in [r#"{"totals":{"records":5,"events":3,"tombstones":2},"ingest":{"accepted":5}}"#, "{}"] {
            assert_eq!(stats(text).uncounted(), [""; 0]);
            assert!(!stats(text).is_mostly_uncounted());
        }
        let tombstones = stats(r#"{"totals":{"records":5,"events":1,"tombstones":4}}"#);
        assert_eq!(tombstones.uncounted(), ["4 of 5 records have no value"]);
    }
}
