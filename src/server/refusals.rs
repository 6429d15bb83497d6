//! What became of the events that came in over HTTP and TCP since the process started.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::ingest::Report;
use traqq_core::decode::Reason;

const RECENT_MS: i64 = 10 * 60 * 1000;

/// The events refused for one reason.
#[derive(Default)]
struct Refused {
    events: u64,
    /// When the last of them came, in epoch milliseconds.
    last_ms: i64,
    /// What the sender of the last was told.
    detail: String,
}

#[derive(Default)]
struct Counts {
    accepted: u64,
    reasons: BTreeMap<Reason, Refused>,
}

#[derive(Default)]
pub(super) struct Refusals {
    counts: Mutex<Counts>,
}

impl Refusals {
    /// A request was answered.
    pub fn add(&self, report: &Report, reasons: &BTreeMap<Reason, u64>, now_ms: i64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.accepted += report.accepted as u64;
        for (reason, events) in reasons {
            let refused = counts.reasons.entry(*reason).or_default();
            refused.events += events;
            refused.last_ms = now_ms;
            let last = report.errors.iter().rev().find(|rejection| rejection.reason == reason.name());
            refused.detail = last.map_or_else(String::new, |rejection| rejection.detail.to_string());
        }
    }

    /// The most frequent reason first.
    pub fn to_json(&self, now_ms: i64) -> Value {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reasons: Vec<(&Reason, &Refused)> = counts.reasons.iter().collect();
        reasons.sort_by_key(|(_, refused)| std::cmp::Reverse(refused.events));
        let rejected: u64 = reasons.iter().map(|(_, refused)| refused.events).sum();
        // What was refused long ago was sent again or given up: who sent it was told.
        let is_recent = reasons.iter().any(|(_, refused)| now_ms - refused.last_ms < RECENT_MS);
        let most_rejected = is_recent && rejected > counts.accepted;
        let reasons = reasons.into_iter().map(|(reason, Refused { events, last_ms, detail })| {
            let explanation = reason.explain();
            let detail = Some(detail).filter(|detail| !detail.is_empty() && *detail != explanation);
            json!({"reason": reason.name(), "explanation": explanation, "events": events, "last_ms": last_ms, "last_detail": detail})
        });
        let reasons: Vec<Value> = reasons.collect();
        json!({"accepted": counts.accepted, "rejected": rejected, "most_rejected": most_rejected, "reasons": reasons})
    }
}
