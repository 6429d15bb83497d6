//! Whether the log can be read, as a whole and partition by partition. A worker that cannot read
//! what it was given is not ready, and says why: to somebody who looks at lag alone, a log that
//! cannot be read has nothing in it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::partition::{Partition, State};
use super::run::{Loop, UNREADY_AFTER};
use crate::model::TopicPartition;
use crate::telemetry::names;

/// A partition may be without a reader for so long before it is worth a word: its leader moves, its
/// consumer is made anew.
pub(super) const UNREAD_AFTER: Duration = Duration::from_secs(10);

/// What the consumer says of itself.
#[derive(Default)]
pub(super) struct Reading {
    /// Since when the log cannot be read at all, and why.
    away: Option<(Instant, String)>,
    /// Partitions that are open and cannot be read.
    unread: BTreeMap<TopicPartition, String>,
}

impl Reading {
    /// Why nothing can be read, once that has lasted.
    fn away(&self) -> Option<&str> {
        self.away.as_ref().filter(|(since, _)| since.elapsed() >= UNREADY_AFTER).map(|(_, why)| &**why)
    }

    /// Why a partition that should be read is not; `has_lane` while its lane of the store is there.
    fn trouble(&self, name: &TopicPartition, partition: &Partition, has_lane: bool) -> Option<String> {
        match partition.state {
            State::Stopped(_) => return None,
            _ if partition.is_leaving || !has_lane => return None,
            _ => {}
        }
        match partition.state {
            State::Waiting => Some("where to begin is not known yet".to_owned()),
            State::Opening => Some(partition.unopened.clone().unwrap_or_else(|| "it is still being opened".to_owned())),
            State::Verifying(_) | State::Running => self.unread.get(name).cloned(),
            State::Stopped(_) => None,
        }
    }
}

impl Partition {
    /// It has been without a reader for too long.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.as_ref().is_some_and(|(since, _)| since.elapsed() >= UNREAD_AFTER)
    }
}

impl Loop {
    pub(super) fn on_trouble(&mut self, text: &str) {
        metrics::counter!(names::BROKER_ERRORS).increment(1);
        if let Some(kept_back) = self.troubles.hear(text) {
            tracing::warn!(text, kept_back, "broker");
        }
    }

    pub(super) fn on_known(
        &mut self,
        ends: Vec<(TopicPartition, i64)>,
        away: Option<String>,
        unread: Vec<(TopicPartition, String)>,
    ) {
        for (partition, end) in ends {
            if let Some(known) = self.partitions.get_mut(&partition) {
                known.end = end;
            }
        }
        self.reading.unread = unread.into_iter().collect();
        self.on_away(away);
    }

    /// A log that cannot be reached for a while makes the worker unready; a leader that moves does
    /// not.
    pub(super) fn on_away(&mut self, away: Option<String>) {
        let Some(why) = away else {
            self.reading.away = None;
            return self.worker.status.clear("broker");
        };
        let since = self.reading.away.take().map_or_else(Instant::now, |(since, _)| since);
        self.reading.away = Some((since, why));
        if let Some(why) = self.reading.away() {
            self.worker.status.obstruct("broker", why);
        }
    }

    /// Looks at every partition, once a second.
    pub(super) fn judge_reading(&mut self) {
        for (name, partition) in &mut self.partitions {
            let has_lane = self.lanes[partition.lane].batches.is_some();
            let Some(why) = self.reading.trouble(name, partition, has_lane) else {
                if partition.unread.take().is_some() && !matches!(partition.state, State::Stopped(_)) {
                    self.worker.status.clear(&name.to_string());
                }
                continue;
            };
            let since = partition.unread.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            partition.unread = Some((since, why.clone()));
            if partition.is_unread() {
                self.worker.status.obstruct(&name.to_string(), &format!("cannot be read: {why}"));
            }
        }
    }
}
