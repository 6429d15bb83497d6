//! NATS JetStream, through async-nats.
//!
//! A partition is a subject of the stream, and its position a sequence of the stream, so that the
//! positions of one partition have gaps where the others' messages lie. Which worker reads which
//! partition is decided by leases in a key-value bucket (`lease`); each is read through a named
//! pull consumer (`fetch`) that is made anew at the store's position. Acknowledgements follow the
//! commit and are housekeeping: they tell NATS's own tools how far we are.

mod config;
mod doctor;
pub mod entries;
mod fetch;
pub mod headers;
mod lease;
mod limits;
mod link;
mod look;
mod producer;
mod raw;
mod trouble;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::jetstream::{kv, stream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use config::{Config, Create};
pub use doctor::{checks, create};
pub use limits::limits;
pub use producer::NatsProducer;

use self::entries::{mark, mark_key, parse_mark};
use self::fetch::{Crowd, Reader, Unreadable};
use self::lease::Group;
use self::link::Link;
use self::look::{End, Look, REGRESSION_MAX, watermarks};
use self::trouble::Trouble;
use super::{BrokerError, BrokerResult, Consumer, Event, Mark, Opening, Start, Watermarks};
use traqq_core::error::ConfigError;
use traqq_core::model::{RecordBatch, TopicPartition};

/// Acknowledgements of one partition that wait until what they are for is counted.
const ACKS_MAX: usize = 10_000;
/// Batches of records on their way from the readers to the worker.
const ARRIVALS_MAX: usize = 16;
/// How often a mark is written while positions move.
const MARK_EVERY: Duration = Duration::from_secs(5);
/// How long the thread that reads waits for an answer, at most: longer than any takes.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// What the tasks tell the consumer.
enum Arrival {
    /// With the subject that acknowledges its last record.
    Records(RecordBatch, Option<Subject>),
    Group(Change),
    /// The stream no longer fits what was read.
    OutOfRange(String),
    Trouble(String),
}

enum Change {
    Taken(i32),
    Wanted(i32),
    Lost(i32),
}

struct Open {
    generation: u64,
    next: Arc<AtomicI64>,
    pending: Arc<AtomicI64>,
    trouble: Arc<Trouble>,
    reader: JoinHandle<()>,
    end: End,
    /// What acknowledges everything before an offset.
    acks: VecDeque<(i64, Subject)>,
    /// What acknowledges the mark before.
    acked: Option<Subject>,
    /// The position and time of the mark written last.
    marked: Option<(i64, Instant)>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

pub struct NatsConsumer {
    runtime: Handle,
    link: Arc<Link>,
    topic: Arc<str>,
    /// The subjects of each partition; empty until the stream was seen.
    filters: Vec<Option<String>>,
    buffer_bytes_max: usize,
    arrivals: mpsc::Receiver<Arrival>,
    out: mpsc::Sender<Arrival>,
    paused: watch::Sender<bool>,
    group: Option<mpsc::UnboundedSender<lease::Command>>,
    /// Why no partitions can be had,
    group_trouble: Arc<Trouble>,
    /// and why the stream cannot be looked at.
    stream_trouble: Trouble,
    open: BTreeMap<i32, Open>,
    /// With the number of the client it was opened with.
    bucket: Option<(u64, kv::Store)>,
    looked_at: Instant,
    look: Option<Look>,
    /// Since when the stream has ended before what was read.
    regressed: Option<Instant>,
    /// The end of the stream as it was seen last.
    high: i64,
    /// The worker was told that something does not fit, and has not opened anything since.
    is_alarmed: bool,
    id: String,
}

impl NatsConsumer {
    /// Reaches the server in the background. Called on a runtime, which its tasks stay on.
    pub async fn new(config: &Config, buffer_bytes_max: usize) -> Result<Self, ConfigError> {
        let (out, arrivals) = mpsc::channel(ARRIVALS_MAX);
        Ok(Self {
            runtime: Handle::current(),
            link: Arc::new(Link::new(config).await?),
            topic: config.stream.as_str().into(),
            filters: Vec::new(),
            buffer_bytes_max,
            arrivals,
            out,
            paused: watch::channel(false).0,
            group: None,
            group_trouble: Arc::default(),
            stream_trouble: Trouble::default(),
            open: BTreeMap::new(),
            bucket: None,
            looked_at: Instant::now(),
            look: None,
            regressed: None,
            high: 0,
            is_alarmed: false,
            id: producer::nuid(),
        })
    }

    fn name(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.topic), partition }
    }

    /// Asks the server. A client without a connection takes requests until its queue is full, and
    /// then none until it is connected again: the thread that reads must not wait for that.
    fn wait<T>(&self, what: &str, asked: impl Future<Output = BrokerResult<T>>) -> BrokerResult<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, asked).await });
        answer.unwrap_or_else(|_| Err(self.link.retry(what, "no answer")))
    }

    fn stream(&self) -> BrokerResult<stream::Stream> {
        self.wait("stream", self.link.stream())
    }

    /// Learns the partitions, and joins the others who read them.
    fn join(&mut self) -> BrokerResult<()> {
        if self.filters.is_empty() {
            let stream = self.stream()?;
            let filters = link::partition_filters(&stream.cached_info().config, &self.link.config);
            self.filters = filters.map_err(|error| error.within(&self.link.config.place()))?;
        }
        if self.group.is_none() {
            let (commands, queue) = mpsc::unbounded_channel();
            // With a client of its own: anybody who may write to the bucket can end it.
            let link = Arc::new(self.runtime.block_on(self.link.another()).map_err(BrokerError::retry)?);
            let trouble = Arc::clone(&self.group_trouble);
            let group = Group::new(link, self.id.clone(), self.filters.len() as i32, self.out.clone(), trouble);
            self.runtime.spawn(group.run(queue));
            self.group = Some(commands);
        }
        Ok(())
    }

    fn bucket(&mut self) -> BrokerResult<kv::Store> {
        let number = self.link.number();
        if let Some((_, bucket)) = self.bucket.as_ref().filter(|(of, _)| *of == number) {
            return Ok(bucket.clone());
        }
        let replicas = self.stream()?.cached_info().config.num_replicas;
        let bucket = self.wait("leases", self.link.bucket(replicas))?;
        self.bucket = Some((number, bucket.clone()));
        Ok(bucket)
    }

    fn event(&mut self, arrival: Arrival) -> Option<Event> {
        match arrival {
            Arrival::Records(batch, reply) => {
                let open = self.open.get_mut(&batch.partition.partition)?;
                if open.generation != batch.generation {
                    return None;
                }
                if let Some(reply) = reply {
                    // While nothing is counted the last one will do.
                    if open.acks.len() >= ACKS_MAX {
                        open.acks.pop_back();
                    }
                    open.acks.push_back((batch.position, reply));
                }
                Some(Event::Records(batch))
            }
            Arrival::Group(Change::Taken(partition)) => Some(Event::Assigned(vec![self.name(partition)])),
            Arrival::Group(Change::Wanted(partition)) => {
                Some(Event::Revoked { partitions: vec![self.name(partition)], lost: false })
            }
            Arrival::Group(Change::Lost(partition)) => {
                self.open.remove(&partition);
                Some(Event::Revoked { partitions: vec![self.name(partition)], lost: true })
            }
            Arrival::OutOfRange(text) => {
                tracing::warn!(text, "nats");
                Some(Event::OutOfRange)
            }
            Arrival::Trouble(text) => Some(Event::Trouble(text)),
        }
    }

    fn mark_of(&self, partition: i32) -> BrokerResult<Option<(i64, String)>> {
        let value = self.wait("marks", self.link.entry(&mark_key(partition)))?;
        Ok(value.and_then(|value| parse_mark(&value).map(|(position, note)| (position, note.to_owned()))))
    }

    /// The first message of a partition at or after an instant, by bisection: messages of a stream
    /// are in the order of time. A consumer that begins there would have to deliver the message,
    /// which the client may not be able to read.
    fn at_time(&self, within: Watermarks, partition: i32, ms: i64) -> BrokerResult<Option<i64>> {
        let filter = self.filters[partition as usize].as_deref().unwrap_or(">");
        self.wait("start time", async {
            let (mut low, mut high, mut found) = (within.low, within.high, None);
            while low < high {
                let middle = low + (high - low) / 2;
                match self.link.stored(middle, Some(filter)).await? {
                    None => high = middle,
                    Some(stored) if stored.published_ms < ms => low = stored.sequence + 1,
                    Some(stored) => (high, found) = (middle, Some(stored.sequence)),
                }
            }
            Ok(found)
        })
    }
}

impl Consumer for NatsConsumer {
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>> {
        self.join()?;
        let mut events = Vec::new();
        let first = self.runtime.block_on(async { tokio::time::timeout(timeout, self.arrivals.recv()).await });
        let mut arrival = first.ok().flatten();
        let mut bytes = 0;
        while let Some(arrived) = arrival {
            let event = self.event(arrived);
            if let Some(Event::Records(batch)) = &event {
                bytes += batch.bytes();
            }
            events.extend(event);
            arrival = if bytes < bytes_max { self.arrivals.try_recv().ok() } else { None };
        }
        match self.look() {
            Ok(event) => events.extend(event),
            Err(error) => events.push(Event::Trouble(error.to_string())),
        }
        Ok(events)
    }

    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()> {
        let pull_bytes = (self.buffer_bytes_max / self.filters.len().max(1)).clamp(256 << 10, 8 << 20);
        for opening in openings {
            let number = opening.partition.partition;
            let Some(filter) = self.filters.get(number as usize).cloned() else {
                return Err(BrokerError::stop(format!(
                    "{}: the stream has {} partitions",
                    opening.partition,
                    self.filters.len()
                )));
            };
            let (next, pending) = (Arc::new(AtomicI64::new(opening.position)), Arc::new(AtomicI64::new(0)));
            let trouble = Arc::new(Trouble::default());
            let reader = Reader {
                link: Arc::clone(&self.link),
                partition: opening.partition.clone(),
                filter,
                generation: opening.generation,
                next: Arc::clone(&next),
                pending: Arc::clone(&pending),
                trouble: Arc::clone(&trouble),
                verify: (opening.offset < opening.position).then_some(opening.offset),
                last: None,
                cut_off_at: None,
                is_again: false,
                own_link: None,
                unreadable: Unreadable::default(),
                crowd: Crowd::default(),
                pull_bytes,
                out: self.out.clone(),
                paused: self.paused.subscribe(),
            };
            let reader = self.runtime.spawn(reader.run());
            let generation = opening.generation;
            self.open.insert(
                number,
                Open {
                    generation,
                    next,
                    pending,
                    trouble,
                    reader,
                    end: End::default(),
                    acks: VecDeque::new(),
                    acked: None,
                    marked: None,
                },
            );
        }
        self.is_alarmed = false;
        Ok(())
    }

    fn halt(&mut self, partition: &TopicPartition) {
        self.open.remove(&partition.partition);
    }

    fn release(&mut self, partitions: &[TopicPartition]) {
        let numbers: Vec<i32> = partitions.iter().map(|partition| partition.partition).collect();
        numbers.iter().for_each(|number| _ = self.open.remove(number));
        if let Some(group) = &self.group {
            let _ = group.send(lease::Command::Release(numbers));
        }
    }

    fn pause(&mut self, paused: bool) {
        self.paused.send_replace(paused);
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks> {
        let found = watermarks(&self.stream()?);
        if found.high < self.high {
            let since = *self.regressed.get_or_insert_with(Instant::now);
            if since.elapsed() < REGRESSION_MAX {
                let text = format!("the stream ends at {}, and ended at {} before; waiting", found.high, self.high);
                return Err(self.link.retry(&partition.to_string(), &text));
            }
        }
        self.high = found.high;
        Ok(found)
    }

    /// What was delivered, and what the consumer had left for us then: sequences of other
    /// partitions are not counted behind the last delivery. Where nothing is delivered the log says
    /// where it ends.
    fn ends(&self) -> Vec<(TopicPartition, i64)> {
        let end = |open: &Open| {
            let delivered = open.next.load(Ordering::Relaxed) + open.pending.load(Ordering::Relaxed);
            delivered.max(open.end.known)
        };
        self.open.iter().map(|(number, open)| (self.name(*number), end(open))).collect()
    }

    fn away(&self) -> Option<String> {
        if !self.link.is_connected() {
            let text = self.link.explain(&"no server can be reached");
            return Some(format!("{}: {text}", self.link.config.place()));
        }
        self.stream_trouble.get().or_else(|| self.group_trouble.get())
    }

    fn unread(&self) -> Vec<(TopicPartition, String)> {
        let away = self.away();
        let why = |open: &Open| open.trouble.get().or_else(|| away.clone());
        self.open.iter().filter_map(|(number, open)| Some((self.name(*number), why(open)?))).collect()
    }

    fn commit(&mut self, marks: &[Mark], wait: bool) -> BrokerResult<()> {
        if !self.link.is_connected() {
            return Err(self.link.retry("acknowledging", "no server can be reached"));
        }
        let mut replies = Vec::new();
        for mark in marks {
            let Some(open) = self.open.get_mut(&mark.partition.partition) else { continue };
            while open.acks.front().is_some_and(|(end, _)| *end <= mark.position) {
                open.acked = open.acks.pop_front().map(|(_, reply)| reply);
            }
            // Nobody answers an acknowledgement. One that met a server without a leader is gone, so
            // the last one is sent with every mark.
            replies.extend(open.acked.clone());
        }
        self.wait("acknowledging", async {
            for reply in replies {
                let acked = self.link.client().publish(reply, "+ACK".into()).await;
                acked.map_err(|error| self.link.failed("acknowledging", error))?;
            }
            Ok(())
        })?;
        let mut puts = Vec::new();
        for due in marks {
            let number = due.partition.partition;
            let Some(open) = self.open.get_mut(&number) else { continue };
            let is_due = open
                .marked
                .is_none_or(|(position, at)| position != due.position && (wait || at.elapsed() >= MARK_EVERY));
            if is_due {
                open.marked = Some((due.position, Instant::now()));
                puts.push((mark_key(number), mark(due.position, &due.note)));
            }
        }
        if puts.is_empty() {
            return Ok(());
        }
        let bucket = self.bucket()?;
        let written = self.runtime.spawn(async move {
            for (key, value) in puts {
                if let Err(error) = bucket.put(key, value.into()).await {
                    tracing::debug!(%error, "a mark was not written; the next one is");
                }
            }
        });
        if wait {
            let _ = self.runtime.block_on(async { tokio::time::timeout(CLOSE_TIMEOUT, written).await });
        }
        Ok(())
    }

    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>> {
        self.join()?;
        Ok((0..self.filters.len() as i32).map(|number| self.name(number)).collect())
    }

    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>> {
        self.join()?;
        let within = watermarks(&self.stream()?);
        let Watermarks { low, high } = within;
        let mut starts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            starts.push(match start {
                Start::Earliest => low,
                Start::Latest => high,
                Start::Committed => self.mark_of(partition.partition)?.map_or(low, |(position, _)| position),
                Start::TimeMs(ms) => self.at_time(within, partition.partition, ms)?.unwrap_or(high),
            });
        }
        Ok(starts)
    }

    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>> {
        let mut marks = Vec::new();
        for partition in partitions {
            let mark = self.mark_of(partition.partition)?;
            marks.extend(mark.map(|(position, note)| Mark { partition: partition.clone(), position, note }));
        }
        Ok(marks)
    }

    fn close(&mut self) {
        self.open.clear();
        let Some(group) = self.group.take() else { return };
        let (done, wait) = oneshot::channel();
        if group.send(lease::Command::Close(done)).is_ok() {
            // The group may wait for room to tell us something.
            self.arrivals.close();
            let _ = self.runtime.block_on(async { tokio::time::timeout(CLOSE_TIMEOUT, wait).await });
        }
        let client = self.link.client();
        let _ = self.runtime.block_on(async { tokio::time::timeout(CLOSE_TIMEOUT, client.flush()).await });
    }
}
