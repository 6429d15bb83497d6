//! One question on its way through the store, and what it has spent of its limits.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use futures_util::stream::{FuturesOrdered, TryStreamExt};
use tokio::sync::OnceCell;

use super::answer::{
    BucketAnswer, Cell, FindAnswer, MetricCell, MetricName, QueryAnswer, RangeAnswer, SpanAnswer, SpanCell, Value,
    time_text,
};
use super::cell::Ask;
use super::memory::{CELL_BYTES, MemoryPermit, StepMemory};
use super::quarantine::Incomplete;
use super::{Limits, Order, QueryError, QueryResult, Question, limit_default};
use crate::store::{Read, Reply, Store};
use traqq_core::courtesy::Turn;
use traqq_core::model::BucketSpan;

/// Cells computed at the same time.
const CELLS_AT_ONCE: usize = 8;
/// Reads sent to the store at once, which bounds the memory of replies in flight.
pub(super) const READS_AT_ONCE: usize = 64;
/// Of reads whose replies are wide: those of one bucket at first, and then so many as come to about
/// [`VALUES_AT_ONCE`],
pub(super) const VALUES_AT_ONCE: usize = 200_000;
/// and to no larger part of the memory of one answer.
const REPLIES_SHARE: usize = 4;

/// One question on its way through the store.
pub(super) struct Run<'q> {
    pub store: &'q dyn Store,
    pub limits: Limits,
    pub question: &'q Question,
    pub memory: &'q MemoryPermit,
    /// Loaded beside the first cell.
    incomplete: OnceCell<Incomplete>,
    /// What has been spent of [`Limits::keys_max`] and [`Limits::rows_max`].
    pub keys: AtomicUsize,
    rows: AtomicUsize,
    /// Bytes of the largest reply to one read so far; 0 before the first.
    largest_reply: AtomicUsize,
    /// Of all its reads together, which may each be short.
    turn: Turn,
}

impl<'q> Run<'q> {
    pub fn new(store: &'q dyn Store, limits: Limits, question: &'q Question, memory: &'q MemoryPermit) -> Self {
        Self {
            store,
            limits,
            question,
            memory,
            incomplete: OnceCell::new(),
            keys: AtomicUsize::new(0),
            rows: AtomicUsize::new(0),
            largest_reply: AtomicUsize::new(0),
            turn: Turn::begin(),
        }
    }
}

impl Run<'_> {
    pub async fn query(&self, limit: Option<usize>) -> QueryResult<QueryAnswer> {
        let known = &self.question.known;
        // Each has a row at least, also one of a bucket that has expired, which touches no key.
        let cells = self.question.spans.len() * known.metrics.len();
        self.spend_rows(cells)?;
        self.memory.take(cells * CELL_BYTES)?;
        let mut asks = Vec::with_capacity(self.question.spans.len() * known.metrics.len());
        for span in &self.question.spans {
            for metric in &known.metrics {
                let limit = limit.unwrap_or_else(|| limit_default(metric));
                asks.push((Ask { metric, value: None, order: Order::Desc, limit }, std::slice::from_ref(span)));
            }
        }
        let cells = self.cells(&asks).await?;
        let mut cells = cells.into_iter();
        let buckets = self.question.spans.iter().map(|span| {
            let metrics = known.metrics.iter().zip(&mut cells);
            BucketAnswer {
                span: SpanAnswer::of(&known.rules.zone, span.bucket.start, span.end),
                metrics: metrics.map(|(metric, cell)| MetricCell { metric: MetricName::of(metric), cell }).collect(),
            }
        });
        let buckets = buckets.collect();
        Ok(QueryAnswer { range: self.range(), buckets })
    }

    /// A cell for each, a few at a time: one at first, and then so many as their replies have room.
    async fn cells(&self, asks: &[(Ask<'_>, &[BucketSpan])]) -> QueryResult<Vec<Cell>> {
        let mut cells = Vec::with_capacity(asks.len());
        let mut begun = FuturesOrdered::new();
        for (ask, spans) in asks {
            while begun.len() >= self.wide_at_once(CELLS_AT_ONCE) {
                cells.extend(begun.try_next().await?);
            }
            begun.push_back(self.cell(*ask, spans));
        }
        while let Some(cell) = begun.try_next().await? {
            cells.push(cell);
        }
        Ok(cells)
    }

    /// How many reads with wide replies go at a time: one at first, and then so many of `most` as
    /// their replies have room.
    pub fn wide_at_once(&self, most: usize) -> usize {
        match self.largest_reply.load(Ordering::Relaxed) {
            0 => 1,
            bytes => (self.replies_bytes_max() / bytes).clamp(1, most),
        }
    }

    /// Bytes of replies that one question may have under way.
    pub fn replies_bytes_max(&self) -> usize {
        self.memory.answer_bytes_max() / REPLIES_SHARE
    }

    pub async fn find(&self, ask: &Ask<'_>, merge: bool) -> QueryResult<FindAnswer> {
        let Question { known, spans, kind, .. } = self.question;
        let zone = &known.rules.zone;
        let groups: Vec<&[BucketSpan]> = if merge { vec![&spans[..]] } else { spans.chunks(1).collect() };
        self.memory.take(groups.len() * CELL_BYTES)?;
        let asks: Vec<(Ask<'_>, &[BucketSpan])> = groups.iter().map(|group| (*ask, *group)).collect();
        let cells = self.cells(&asks).await?;
        let results = groups.iter().zip(cells).map(|(group, cell)| {
            let (first, last) = (group[0], group[group.len() - 1]);
            SpanCell { span: SpanAnswer::of(zone, first.bucket.start, last.end), cell }
        });
        Ok(FindAnswer {
            metric: MetricName::of(ask.metric),
            value: ask.value.map(|label| Value::of(label, ask.metric.pattern())),
            since: known.since(ask.metric, *kind).map(|since| time_text(zone, since)),
            range: self.range(),
            merged: merge,
            results: results.collect(),
        })
    }

    pub async fn incomplete(&self) -> QueryResult<&Incomplete> {
        self.incomplete.get_or_try_init(|| Incomplete::load(self.store)).await
    }

    pub fn range(&self) -> RangeAnswer {
        let Question { known, spans, kind, .. } = self.question;
        let (first, last) = (spans[0], spans[spans.len() - 1]);
        RangeAnswer {
            bucket: *kind,
            time_zone: known.rules.zone.name(),
            buckets: spans.len(),
            span: SpanAnswer::of(&known.rules.zone, first.bucket.start, last.end),
        }
    }

    pub fn spend_keys(&self, keys: usize) -> QueryResult<()> {
        let spent = self.keys.fetch_add(keys, Ordering::Relaxed) + keys;
        if spent <= self.limits.keys_max {
            return Ok(());
        }
        Err(QueryError::TooLarge(format!(
            "the question touches more than {} keys (limit max_keys); ask for fewer buckets with a shorter range or larger \
             buckets, or for one metric with find instead of query",
            self.limits.keys_max
        )))
    }

    pub fn spend_rows(&self, rows: usize) -> QueryResult<()> {
        let spent = self.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        if spent <= self.limits.rows_max {
            return Ok(());
        }
        Err(QueryError::TooLarge(format!(
            "the answer would have more than {} rows; set a smaller `limit`, shorten the range, or merge it",
            self.limits.rows_max
        )))
    }

    /// Reads of several lanes, answered in their order, and what the replies hold.
    pub async fn read(&self, reads: Vec<(usize, Read)>) -> QueryResult<(Vec<Reply>, StepMemory<'_>)> {
        let total = reads.len();
        let mut indices: Vec<Vec<usize>> = vec![Vec::new(); self.store.lanes()];
        let mut by_lane: Vec<Vec<Read>> = vec![Vec::new(); self.store.lanes()];
        for (index, (lane, read)) in reads.into_iter().enumerate() {
            indices[lane].push(index);
            by_lane[lane].push(read);
        }
        let asked = by_lane.iter().enumerate().filter(|(_, reads)| !reads.is_empty());
        let answers = try_join_all(asked.map(|(lane, reads)| self.store.read(lane, reads))).await?;
        let indices = indices.into_iter().filter(|indices| !indices.is_empty());
        let mut ordered: Vec<Option<Reply>> = vec![None; total];
        for (indices, replies) in indices.zip(answers) {
            assert_eq!(indices.len(), replies.len(), "a store answers every read");
            indices.into_iter().zip(replies).for_each(|(index, reply)| ordered[index] = Some(reply));
        }
        let replies: Vec<Reply> = ordered.into_iter().map(|reply| reply.expect("every read went to a lane")).collect();
        let (mut held, mut largest, mut all) = (self.memory.step(), 1, 0);
        for reply in &replies {
            let bytes = reply.bytes();
            (largest, all) = (largest.max(bytes), all + bytes);
        }
        held.take(all)?;
        self.largest_reply.fetch_max(largest, Ordering::Relaxed);
        self.turn.pause().await;
        Ok((replies, held))
    }
}
