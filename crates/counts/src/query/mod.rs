//! A question, the reads it takes, and one answer merged from all lanes. No clock: the caller says
//! what time it is.
//!
//! ```text
//! Request --prepare--> Question --answer--> Answer
//! strings              meta, rules,   |
//!                      buckets        tag: a validator made of the lanes' positions
//! ```
//!
//! - `range`       from text to buckets
//! - `instant`     from the text of one bound to an instant
//! - `select`      from text to a metric of the mapping
//! - `run`         a question on its way through the store
//! - `cell`        the value of one metric over one bucket or a range of them
//! - `top`         the exact top k over many leaderboards
//! - `catalog`     which metrics there are
//! - `memory`      what answers may hold, each and all together
//! - `places`      how many questions are answered at a time, and how many wait
//! - `threads`     where they are answered
//! - `quarantine`  which answers are incomplete
//! - `answer`      what an answer looks like
//! - `table`       an answer as flat rows
//! - `render`      a table as JSON or CSV, piece by piece
//! - `nested`      an answer as JSON, piece by piece
//!
//! Rules, zone and mapping come from the store's meta, so an endpoint needs no mapping of its own
//! and can not disagree with the counts. Reads of one question are not one snapshot: a batch that
//! is applied meanwhile may show in some of its buckets and not yet in others.

mod answer;
mod catalog;
mod cell;
mod instant;
mod memory;
mod nested;
mod places;
mod quarantine;
mod range;
mod render;
mod run;
mod select;
mod table;
#[cfg(test)]
mod tests;
mod threads;
mod top;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

pub use answer::{
    Answer, BucketAnswer, CatalogAnswer, CatalogEntry, Cell, CountRow, Data, Decimal, FindAnswer, MetricCell,
    MetricName, QueryAnswer, RangeAnswer, Reason, SpanAnswer, SumRow, UniqueRow, Value,
};
pub use memory::{AnswerMemory, MemoryPermit};
pub use nested::{Extent, Nested};
pub use range::{Align, Range};
pub use render::{Pieces, Text};
pub use select::{Order, Selector};
pub use table::Table;

use self::cell::Ask;
use self::places::Places;
use self::run::{READS_AT_ONCE, Run, VALUES_AT_ONCE};
use self::threads::Threads;
use crate::mapping::{Metric, ValidRules};
use crate::mapping::{metric_name, metrics_of};
use crate::store::{KeySize, Meta, MetaError, Store, StoreError, kind_name};
use traqq_core::error::ErrorLine;
use traqq_core::hll::murmur64a;
use traqq_core::model::{BucketKind, BucketSpan};

/// A question about more keys, or about a key with more values, is answered on a thread of its own
/// from the start: to find out about a key takes 300 ns, and to read it 100 ns for each of its
/// values, in one step.
const HERE_KEYS_MAX: usize = 1000;
const HERE_VALUES_MAX: usize = 5000;
/// How long meta is believed without another look.
const META_AGE_MAX: Duration = Duration::from_secs(1);

/// What one question may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Buckets in its range.
    pub buckets_max: usize,
    /// Keys of the store that it touches.
    pub keys_max: usize,
    /// Members that are read, or held while merging.
    pub members_max: usize,
    /// Rows of its answer.
    pub rows_max: usize,
    /// Bytes of memory that all answers may hold, of which one may have half; see [`AnswerMemory`].
    pub answers_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buckets_max: 1000,
            keys_max: 20_000,
            members_max: 1_000_000,
            rows_max: 500_000,
            answers_bytes_max: 128 << 20,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// The question is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// It names something that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It costs more than a limit allows.
    #[error("{0}")]
    TooLarge(String),
    /// There is no memory for its answer at the moment.
    #[error("{0}")]
    Busy(String),
    /// The store does not answer, or holds what this version can not read.
    #[error(transparent)]
    Unavailable(ErrorLine),
}

pub type QueryResult<T> = Result<T, QueryError>;

impl From<MetaError> for QueryError {
    fn from(error: MetaError) -> Self {
        Self::Unavailable(ErrorLine::from_error(error))
    }
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(ErrorLine::from_error(error))
    }
}

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Every metric, bucket by bucket.
    Query { range: Range, bucket: BucketKind, limit: Option<usize> },
    /// One metric.
    Find(Find),
    /// Which metrics there are.
    Catalog { range: Range, bucket: BucketKind },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Find {
    pub selector: Selector,
    /// One value only; that of a compound pattern is joined by `~`, in the order in which the
    /// pattern was written.
    pub value: Option<String>,
    pub range: Range,
    pub bucket: BucketKind,
    /// One answer over the whole range instead of one per bucket.
    pub merge: bool,
    pub order: Option<Order>,
    pub limit: Option<usize>,
}

/// A request that was understood: its metric exists and its range is a list of buckets.
pub struct Question {
    known: Arc<Known>,
    kind: BucketKind,
    spans: Vec<BucketSpan>,
    now: i64,
    what: What,
}

impl Question {
    /// Whose keys it is about. One value of a key may have all of them read.
    fn metrics(&self) -> &[Metric] {
        match &self.what {
            What::Find { metric, .. } => std::slice::from_ref(metric),
            What::Query { .. } | What::Catalog => &self.known.metrics,
        }
    }

    fn keys(&self) -> usize {
        self.spans.len() * self.metrics().len()
    }
}

enum What {
    Query { limit: Option<usize> },
    Find { metric: Metric, value: Option<String>, merge: bool, order: Order, limit: usize },
    Catalog,
}

/// What the prefix says about itself.
struct Known {
    meta: Meta,
    rules: ValidRules,
    metrics: Vec<Metric>,
}

/// What a question is about.
#[derive(Clone, Copy)]
struct Size {
    /// Values of all its keys.
    values: usize,
    /// One step of it may take long: of the largest key, or of one that is read from the disk.
    is_long: bool,
}

pub struct Engine {
    store: Arc<dyn Store>,
    limits: Limits,
    known: Mutex<Option<(Instant, Arc<Known>)>>,
    places: Places,
    memory: Arc<AnswerMemory>,
    threads: Option<Threads>,
}

impl Engine {
    pub fn new(store: Arc<dyn Store>, limits: Limits) -> Self {
        let memory = AnswerMemory::new(limits.answers_bytes_max);
        Self { store, limits, known: Mutex::new(None), places: Places::default(), memory, threads: None }
    }

    /// Answers on threads of its own, so that those who ask for much hold up nobody but one
    /// another.
    pub fn with_threads(self) -> std::io::Result<Self> {
        Ok(Self { threads: Some(Threads::start()?), ..self })
    }

    /// What answers hold, whoever makes them.
    pub const fn memory(&self) -> &Arc<AnswerMemory> {
        &self.memory
    }

    /// Understands a request. `now` is in epoch seconds.
    pub async fn prepare(&self, request: &Request, now: i64) -> QueryResult<Question> {
        let known = self.known().await?;
        let (range, kind) = match request {
            Request::Query { range, bucket, .. } | Request::Catalog { range, bucket } => (range, *bucket),
            Request::Find(find) => (&find.range, find.bucket),
        };
        if !known.rules.kinds.contains(&kind) {
            let kinds: Vec<String> = known.rules.kinds.iter().map(BucketKind::to_string).collect();
            return Err(QueryError::BadRequest(format!(
                "bucket={kind} is not counted under this prefix, only {} is; set buckets.{} = true to count it from then on",
                kinds.join(", "),
                if kind == BucketKind::Minute { "minute" } else { "hour" },
            )));
        }
        let spans = range.resolve(&known.rules.zone, kind, now, self.limits.buckets_max)?;
        let metrics = if matches!(request, Request::Find(_)) { 1 } else { known.metrics.len() };
        if spans.len().saturating_mul(metrics) > self.limits.keys_max.max(self.limits.rows_max) {
            return Err(QueryError::TooLarge(format!(
                "the question is about {metrics} metrics in {} buckets; shorten the range, or ask for one metric with \
                 find",
                spans.len()
            )));
        }
        let what = match request {
            Request::Query { limit, .. } => {
                check_limit(*limit, &self.limits)?;
                What::Query { limit: *limit }
            }
            Request::Find(find) => {
                let metric = find.selector.resolve(&known.metrics)?;
                check_limit(find.limit, &self.limits)?;
                What::Find {
                    value: find.selector.stored_value(&metric, find.value.as_deref())?,
                    order: Order::of(find.order, &metric)?,
                    limit: find.limit.unwrap_or_else(|| limit_default(&metric)),
                    merge: find.merge,
                    metric,
                }
            }
            Request::Catalog { .. } => What::Catalog,
        };
        Ok(Question { known, kind, spans, now, what })
    }

    /// The request's answer. Ask for the [`Engine::tag`] first: what is read later may only be
    /// newer.
    pub async fn answer(&self, question: &Question) -> QueryResult<Answer> {
        let memory = self.memory.permit();
        self.answer_within(question, self.size_of(question), &memory).await
    }

    /// The same, on the engine's threads if it takes long, with the permit for the memory that the
    /// answer holds, to be kept as long as it. Whoever no longer waits for the answer ends the
    /// work.
    pub async fn answer_with_memory(self: &Arc<Self>, question: Question) -> QueryResult<(Answer, MemoryPermit)> {
        let engine = Arc::clone(self);
        // The first look at very many keys would take long itself.
        let size = (question.keys() <= HERE_KEYS_MAX).then(|| self.size_of(&question));
        let is_long = size.is_none_or(|size| size.is_long || places::is_large(size.values));
        let work = async move {
            let memory = engine.memory.permit();
            let size = size.unwrap_or_else(|| engine.size_of(&question));
            let answer = engine.answer_within(&question, size, &memory).await?;
            Ok((answer, memory))
        };
        match &self.threads {
            Some(threads) => threads.run(is_long, work).await,
            None => work.await,
        }
    }

    async fn answer_within(&self, question: &Question, size: Size, memory: &MemoryPermit) -> QueryResult<Answer> {
        let _place = self.places.take(size.values).await?;
        let run = Run::new(&*self.store, self.limits, question, memory);
        match &question.what {
            What::Query { limit } => run.query(*limit).await.map(Answer::Query),
            What::Find { metric, value, merge, order, limit } => {
                let ask = Ask { metric, value: value.as_deref(), order: *order, limit: *limit };
                run.find(&ask, *merge).await.map(Answer::Find)
            }
            What::Catalog => run.catalog().await.map(Answer::Catalog),
        }
    }

    /// As far as the store knows, and of a large question no more than what shows that it is one.
    fn size_of(&self, question: &Question) -> Size {
        let mut size = Size { values: 0, is_long: false };
        for span in &question.spans {
            for metric in question.metrics() {
                let Some(KeySize { values, is_in_memory }) = self.store.size_of_key(span.bucket, metric) else {
                    continue;
                };
                size.values += values;
                size.is_long |= values > HERE_VALUES_MAX || !is_in_memory;
                if places::is_large(size.values) {
                    return size;
                }
            }
        }
        size
    }

    /// [`Engine::prepare`] and [`Engine::answer`] in one.
    pub async fn ask(&self, request: &Request, now: i64) -> QueryResult<Answer> {
        self.answer(&self.prepare(request, now).await?).await
    }

    /// A validator for a question's answer, without quotes: while it stays the same, so does the
    /// answer.
    pub async fn tag(&self, question: &Question) -> QueryResult<String> {
        let mut text = self.positions_tag().await?;
        let (first, last) = (question.spans.first(), question.spans.last());
        let missing = question.known.metrics.iter().map(|metric| {
            let since = question.known.since(metric, question.kind);
            let is_missing = |span: &&BucketSpan| question.known.missing(since, span, question.now).is_some();
            question.spans.iter().filter(is_missing).count()
        });
        let missing: usize = missing.sum();
        for part in [
            first.map_or(0, |span| span.bucket.start),
            last.map_or(0, |span| span.end),
            i64::try_from(missing).unwrap_or(i64::MAX),
        ] {
            _ = write!(text, " {part}");
        }
        Ok(hash(&text))
    }

    /// A hash of every lane's positions and of the plan, 32 hex digits.
    pub async fn positions_tag(&self) -> QueryResult<String> {
        let known = self.known().await?;
        let mut text = format!("{} {}\n", known.meta.plan, known.meta.since.len());
        let lanes = try_join_all((0..self.store.lanes()).map(|lane| self.store.positions(lane))).await?;
        for (partition, checkpoint) in lanes.iter().flatten() {
            _ = writeln!(text, "{partition} {checkpoint}");
        }
        Ok(hash(&text))
    }

    async fn known(&self) -> QueryResult<Arc<Known>> {
        let cached = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, known)) = cached
            && at.elapsed() < META_AGE_MAX
        {
            return Ok(known);
        }
        let known = Arc::new(Known::load(&*self.store).await?);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&known)));
        Ok(known)
    }
}

impl Known {
    async fn load(store: &dyn Store) -> QueryResult<Self> {
        let Some(meta) = store.meta().await? else {
            return Err(QueryError::NotFound(
                "nothing has been counted under this prefix yet; start a worker, or correct store.redis.prefix"
                    .to_owned(),
            ));
        };
        meta.check(store.lanes())?;
        let rules = meta.valid_rules()?;
        let metrics = metrics_of(&rules.rules);
        Ok(Self { meta, rules, metrics })
    }

    /// Epoch second from which a metric counts in buckets of a kind, if that was after the first
    /// start.
    fn since(&self, metric: &Metric, kind: BucketKind) -> Option<i64> {
        let of = |name: &str| self.meta.since.get(name).map(|since| since.second);
        of(&metric_name(metric)).max(of(&kind_name(kind)))
    }

    /// Why a bucket's value is not known, of a metric that counts since then. Conservative: a
    /// bucket is gone when late events could no longer be written to it.
    fn missing(&self, since: Option<i64>, span: &BucketSpan, now: i64) -> Option<Reason> {
        use traqq_core::model::Retention;
        let retention = self.rules.rules.buckets.retention.of(span.bucket.kind);
        if matches!(retention, Retention::Seconds(seconds) if span.end.saturating_add(seconds) <= now) {
            return Some(Reason::Expired);
        }
        let mut gone = self.meta.gone.get(&span.bucket.kind).into_iter().flatten();
        if gone.any(|(after, until)| *after < span.end && span.end <= *until) {
            return Some(Reason::Expired);
        }
        since.filter(|since| span.end <= *since).map(|_| Reason::BeforeSince)
    }
}

fn check_limit(limit: Option<usize>, limits: &Limits) -> QueryResult<()> {
    match limit {
        Some(0) => Err(QueryError::BadRequest("limit=0 asks for nothing; leave it out or name at least 1".to_owned())),
        Some(limit) if limit > limits.rows_max => {
            Err(QueryError::TooLarge(format!("limit={limit} is more than the {} rows of one answer", limits.rows_max)))
        }
        _ => Ok(()),
    }
}

const fn limit_default(metric: &Metric) -> usize {
    match metric {
        Metric::Top { .. } => 10,
        _ => 1000,
    }
}

fn hash(text: &str) -> String {
    format!("{:016x}{:016x}", murmur64a(text.as_bytes(), 0x7472_6171), murmur64a(text.as_bytes(), 0x7173_7461))
}
