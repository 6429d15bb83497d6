//! Looking at the stream now and then: whether it still holds what is being read, and where
//! partitions end whose readers say nothing of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;

use super::link::Link;
use super::{Arrival, NatsConsumer, Open};
use crate::{BrokerResult, Event, Watermarks};

/// How often the stream's ends are looked at,
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// how often that of a partition whose reader stands still (the answer is a whole message),
const END_EVERY: Duration = Duration::from_secs(5);
/// and of how many at the same time.
const ENDS_IN_FLIGHT: usize = 16;
/// A stream that ends before what we have read has lost messages, unless its leader is new and does
/// not know better yet.
pub const REGRESSION_MAX: Duration = Duration::from_secs(5);
/// A question for the stream's ends on its way, and how far each reader was before it.
pub struct Look {
    before: Vec<(i32, i64)>,
    answer: oneshot::Receiver<BrokerResult<Seen>>,
}

struct Seen {
    watermarks: Watermarks,
    /// Of the partitions that it was asked for.
    ends: Vec<(i32, i64)>,
}

/// The end of a partition as the log has it, which is asked for while its reader stands still.
#[derive(Default)]
pub struct End {
    /// Behind its last message.
    pub known: i64,
    /// When it was asked for last, and the end of the stream then.
    asked: Option<(Instant, i64)>,
    /// How far the reader was at the last look.
    next: i64,
}

impl Open {
    /// Whether the log must be asked where the partition ends: its reader says nothing of it, and
    /// the stream has grown.
    fn is_end_due(&mut self, high: i64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        let is_still = std::mem::replace(&mut self.end.next, next) == next || self.trouble.get().is_some();
        is_still && self.end.asked.is_none_or(|(at, asked)| at.elapsed() >= END_EVERY && asked < high)
    }
}

impl NatsConsumer {
    /// Whether the stream still holds what is being read: not trimmed beneath a reader, and not
    /// shorter than it was.
    pub fn look(&mut self) -> BrokerResult<Option<Event>> {
        if self.look.is_none() && self.looked_at.elapsed() >= LOOK_EVERY {
            self.looked_at = Instant::now();
            self.look = Some(self.begin_look());
        }
        let Some(mut look) = self.look.take() else { return Ok(None) };
        let Ok(seen) = look.answer.try_recv() else {
            self.look = Some(look);
            return Ok(None);
        };
        let Seen { watermarks: Watermarks { low, high }, ends } =
            seen.inspect_err(|error| self.stream_trouble.set(&error.to_string()))?;
        self.stream_trouble.clear();
        for (number, end) in ends {
            if let Some(open) = self.open.get_mut(&number) {
                open.end.known = open.end.known.max(end);
            }
        }
        // One that was given back or opened anew meanwhile is none of ours, or begins somewhere
        // else.
        let before: Vec<(i32, i64)> =
            look.before.into_iter().filter(|(number, _)| self.open.contains_key(number)).collect();
        self.high = self.high.max(high);
        let furthest = before.iter().map(|(_, next)| *next).max().unwrap_or(low);
        let trimmed = before.iter().find(|(_, next)| *next < low);
        if high >= furthest {
            self.regressed = None;
        }
        let reason = if high < furthest {
            let since = *self.regressed.get_or_insert_with(Instant::now);
            (since.elapsed() >= REGRESSION_MAX)
                .then(|| format!("the stream ends at {high}, but was read up to {furthest}: the server lost messages"))
        } else {
            trimmed.map(|(number, next)| {
                format!("the stream begins at {low}, but partition {number} was read up to {next}")
            })
        };
        let Some(reason) = reason.filter(|_| !self.is_alarmed) else { return Ok(None) };
        self.is_alarmed = true;
        Ok(self.event(Arrival::OutOfRange(reason)))
    }

    /// Asks for the ends of the stream, and of partitions whose reader says nothing of theirs.
    fn begin_look(&mut self) -> Look {
        let before = self.open.iter().map(|(number, open)| (*number, open.next.load(Ordering::Relaxed))).collect();
        let mut filters = Vec::new();
        for (number, open) in &mut self.open {
            if open.is_end_due(self.high) {
                open.end.asked = Some((Instant::now(), self.high));
                filters.push((*number, self.filters[*number as usize].clone()));
            }
        }
        let (asked, answer) = oneshot::channel();
        let link = Arc::clone(&self.link);
        // In a task: a server without a leader takes its time.
        self.runtime.spawn(async move { asked.send(see(&link, filters).await) });
        Look { before, answer }
    }
}

/// Looks at the stream, and where these partitions of it end.
async fn see(link: &Link, filters: Vec<(i32, Option<String>)>) -> BrokerResult<Seen> {
    let watermarks = watermarks(&link.stream().await?);
    let ask = |(number, filter): (i32, Option<String>)| async move {
        match filter {
            None => BrokerResult::Ok((number, watermarks.high)),
            Some(filter) => Ok((number, link.last(&filter).await?.map_or(0, |last| last + 1))),
        }
    };
    let asks = futures_util::stream::iter(filters).map(ask).buffer_unordered(ENDS_IN_FLIGHT);
    Ok(Seen { watermarks, ends: asks.try_collect().await? })
}

/// What the stream holds. An empty one ends where it begins.
pub fn watermarks(stream: &stream::Stream) -> Watermarks {
    let state = &stream.cached_info().state;
    let high = state.last_sequence as i64 + 1;
    let low = if state.messages == 0 { high } else { state.first_sequence as i64 };
    Watermarks { low, high }
}
