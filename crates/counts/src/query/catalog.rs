//! Which metrics there are, and how many values each has in a range.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::answer::{CatalogAnswer, CatalogEntry, MetricName, time_text};
use super::memory::MEMBER_BYTES;
use super::{QueryError, QueryResult, Run};
use crate::mapping::Metric;
use crate::store::{Read, Reply};
use traqq_core::hll::Hll;
use traqq_core::model::Bucket;

/// Values that are told apart for one metric; beyond it an entry says `at_least`.
const VALUES_MAX: usize = 100_000;
/// Values that are read for all metrics together; beyond it an entry has no number.
const READ_MAX: usize = 1_000_000;
/// Each may hold the values of several buckets.
const ENTRIES_AT_ONCE: usize = 2;

impl Run<'_> {
    pub async fn catalog(&self) -> QueryResult<CatalogAnswer> {
        let known = &self.question.known;
        let read = std::sync::atomic::AtomicUsize::new(0);
        let mut entries = Vec::with_capacity(known.metrics.len());
        for metric in &known.metrics {
            entries.push(self.entry(metric, &read));
        }
        let metrics = stream::iter(entries).buffered(ENTRIES_AT_ONCE).try_collect().await?;
        Ok(CatalogAnswer { range: self.range(), metrics })
    }

    async fn entry(&self, metric: &Metric, read: &std::sync::atomic::AtomicUsize) -> QueryResult<CatalogEntry> {
        use std::sync::atomic::Ordering::Relaxed;
        let known = &self.question.known;
        let since = known.since(metric, self.question.kind);
        let entry = CatalogEntry {
            metric: MetricName::of(metric),
            since: since.map(|since| time_text(&known.rules.zone, since)),
            values: None,
            at_least: false,
        };
        let live = self.question.spans.iter().filter(|span| known.missing(since, span, self.question.now).is_none());
        let live: Vec<Bucket> = live.map(|span| span.bucket).collect();
        if read.load(Relaxed) >= READ_MAX {
            return Ok(entry);
        }
        let (mut labels, mut union) = (HashSet::new(), Hll::new());
        let (mut at_least, mut held) = (false, self.memory.step());
        for buckets in live.chunks(8) {
            let ask = |bucket| match metric.clone() {
                Metric::Unique { of } => Read::Unique { bucket, of },
                Metric::UniqueBy { of, by } => Read::UniqueByValues { bucket, of, by },
                Metric::Count { of } => Read::Counts { bucket, of },
                Metric::Sum { of, add_key } => Read::Sums { bucket, of, add_key: add_key.to_string() },
                Metric::Top { of } => Read::TopFirst { bucket, of, limit: VALUES_MAX },
            };
            let mut add = |label: String| -> QueryResult<()> {
                if !labels.contains(&label) {
                    held.take_for_label(label.len() + MEMBER_BYTES)?;
                    labels.insert(label);
                }
                Ok(())
            };
            let take = |reply: Reply| {
                read.fetch_add(reply.values(), Relaxed);
                match reply {
                    Reply::Registers(registers) => union.merge(&registers),
                    Reply::Labels(found) => found.into_iter().try_for_each(&mut add)?,
                    Reply::Values(found) => found.into_iter().try_for_each(|(label, _)| add(label))?,
                    Reply::Unreadable(_) => {}
                }
                Ok(())
            };
            match self.each(buckets, ask, take).await {
                Ok(unreadable) => at_least |= !unreadable.is_empty(),
                // Too many bytes of values, rather than keys: it is still known which metrics there
                // are.
                Err(QueryError::TooLarge(_) | QueryError::Busy(_))
                    if self.keys.load(Relaxed) <= self.limits.keys_max =>
                {
                    let values = (!labels.is_empty()).then_some(labels.len() as u64);
                    return Ok(CatalogEntry { values, at_least: values.is_some(), ..entry });
                }
                Err(error) => return Err(error),
            }
            if labels.len() >= VALUES_MAX || read.load(Relaxed) >= READ_MAX {
                at_least = true;
                break;
            }
        }
        let values = if matches!(metric, Metric::Unique { .. }) { union.count() } else { labels.len() as u64 };
        Ok(CatalogEntry { values: Some(values), at_least, ..entry })
    }
}
