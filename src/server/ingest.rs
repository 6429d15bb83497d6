//! Events on their way in, over HTTP and TCP alike: bounded, unpacked, judged one by one, and
//! handed to the log.
//!
//! ```text
//! body --unpack--> items --gate--> Events --Appender--> the log, whichever it is
//!      bounded            \-- rejected, by index
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusals::Refusals;
use super::unpack::{Gzip, Packing, Zstd};
use crate::telemetry::names;
use traqq_core::courtesy::Courtesy;
use traqq_core::decode::EventRules;
use traqq_core::decode::{self, Reason};
use traqq_core::error::ErrorLine;
use traqq_core::hll::murmur64a;
use traqq_counts::compile::{Gate, GateRules};
use traqq_log::{AppendError, Appended, Appender, Events, Idempotency, RequestCounts};

/// Rejected events that an answer names one by one.
const ERRORS_MAX: usize = 100;
const FINGERPRINT_SEED: u64 = 0x7472_6171_715f_6964;
/// Events between two offers of the processor: some 50 µs.
const JUDGE_STEP: u32 = 100;
const UNPACK_STEP: usize = 64 << 10;

/// Where events come in.
pub struct Ingest {
    appender: Arc<dyn Appender>,
    rules: Arc<GateRules>,
    /// Bytes of requests on their way.
    room: Arc<Semaphore>,
    clock_ms: fn() -> i64,
    refusals: Refusals,
}

/// Bytes of a request that count against the bound; given back when dropped.
pub struct Hold {
    room: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

/// There is no room for more at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// How a body holds its events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One event, or an array of events.
    Json,
    /// An event a line.
    Lines,
    /// Whatever it looks like.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnpackError {
    NoRoom,
    TooLarge,
    Malformed(String),
}

/// What became of the events of a request.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    pub accepted: usize,
    pub rejected: usize,
    /// The first of the rejected ones.
    pub errors: Vec<Rejection>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Rejection {
    /// Which of the request's events, counted from 0.
    pub index: usize,
    pub reason: &'static str,
    /// Where it is wrong, and why.
    pub detail: String,
}

impl Report {
    const fn counts(&self) -> RequestCounts {
        RequestCounts { accepted: self.accepted as u64, rejected: self.rejected as u64 }
    }
}

/// Events that were judged.
#[derive(Default)]
pub struct Judged {
    pub events: Events,
    pub report: Report,
    /// How many were rejected for each reason.
    reasons: BTreeMap<Reason, u64>,
}

impl Ingest {
    /// `room_bytes` bounds what requests on their way may hold together.
    pub fn new(appender: Arc<dyn Appender>, rules: GateRules, room_bytes: usize, clock_ms: fn() -> i64) -> Self {
        let room = Arc::new(Semaphore::new(room_bytes));
        Self { appender, rules: Arc::new(rules), room, clock_ms, refusals: Refusals::default() }
    }

    /// What became of the events so far.
    pub(super) fn to_json(&self) -> serde_json::Value {
        self.refusals.to_json((self.clock_ms)())
    }

    /// How events are read.
    pub fn rules(&self) -> &EventRules {
        self.rules.events()
    }

    pub fn hold(&self) -> Hold {
        Hold { room: Arc::clone(&self.room), permits: Vec::new() }
    }

    pub fn judge(&self) -> Judge {
        Judge {
            gate: Gate::new(&self.rules),
            now_ms: (self.clock_ms)(),
            name: None,
            index: 0,
            judged: Judged::default(),
            courtesy: Courtesy::every(JUDGE_STEP),
        }
    }

    /// The header of a request that holds the name of its events, if one is configured.
    pub fn name_header(&self) -> Option<&str> {
        self.rules.name_header()
    }

    /// Hands events to the log; returns what the request is answered, and whether it is a
    /// repetition. The room is held until the log has answered, also when nobody waits for it any
    /// more.
    ///
    /// Of a request the log keeps what became of its events, and no errors: those of a repetition
    /// are what its events are judged to be now. When that is not what became of them then, because
    /// rules have changed, only the numbers are said.
    pub async fn append(
        &self,
        judged: Judged,
        key: Option<(String, u64)>,
        hold: Hold,
        protocol: &'static str,
    ) -> Result<(Report, bool), AppendError> {
        let Judged { events, report, reasons } = judged;
        let counts = report.counts();
        let appended = if events.is_empty() {
            let replayed = match &key {
                Some((key, fingerprint)) => self.appender.replayed(key, *fingerprint).await?,
                None => None,
            };
            replayed.map_or(Appended::New, Appended::Replayed)
        } else {
            let idempotency = key.map(|(key, fingerprint)| Idempotency { key, fingerprint, counts });
            let appender = Arc::clone(&self.appender);
            let append = tokio::spawn(async move {
                let appended = appender.append(events, idempotency).await;
                drop(hold);
                appended
            });
            append.await.unwrap_or_else(|error| Err(AppendError::Retry(ErrorLine::from_error(error))))?
        };
        match appended {
            Appended::New => {
                self.refusals.add(&report, &reasons, (self.clock_ms)());
                metrics::counter!(names::INGESTED, "protocol" => protocol).increment(report.accepted as u64);
                for (reason, count) in reasons {
                    metrics::counter!(names::INGEST_REJECTED, "reason" => reason.name()).increment(count);
                }
                Ok((report, false))
            }
            Appended::Replayed(then) => {
                metrics::counter!(names::INGEST_REPLAYED).increment(1);
                let errors = if then == counts { report.errors } else { Vec::new() };
                let RequestCounts { accepted, rejected } = then;
                Ok((Report { accepted: accepted as usize, rejected: rejected as usize, errors }, true))
            }
        }
    }
}

impl Hold {
    /// Takes room for so many bytes more.
    pub fn take(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let permits = Arc::clone(&self.room).try_acquire_many_owned(bytes.min(u32::MAX as usize) as u32);
        match permits {
            Ok(permits) => {
                match self.permits.last_mut() {
                    Some(last) => last.merge(permits),
                    None => self.permits.push(permits),
                }
                Ok(())
            }
            Err(_) => {
                metrics::counter!(names::INGEST_REFUSED).increment(1);
                Err(NoRoom)
            }
        }
    }
}

/// Some of the events that stood together were rejected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotAll {
    /// Of the first of them.
    pub why: String,
    /// How many were not rejected.
    pub taken: usize,
}

/// Judges the events of one request.
pub struct Judge {
    gate: Gate,
    now_ms: i64,
    /// The name of all events of the request, from its header.
    name: Option<String>,
    index: usize,
    judged: Judged,
    courtesy: Courtesy,
}

impl Judge {
    /// Gives every event this name.
    pub fn name_events(&mut self, name: String) {
        self.name = Some(name);
    }

    /// One event, or a text that holds several. `Err` says why the first of those that were
    /// rejected was, and how many were taken.
    pub fn event(&mut self, value: &[u8]) -> Result<(), NotAll> {
        let first = self.index;
        let Err(rejected) = self.single(value) else { return Ok(()) };
        // Whatever the limits on one record say to all of it together.
        let may_be_several = matches!(
            rejected,
            Reason::NotAnObject
                | Reason::NoEvent
                | Reason::InvalidJson
                | Reason::TooLarge
                | Reason::TooDeep
                | Reason::TooManyEvents
        );
        let text = std::str::from_utf8(value).ok().filter(|_| may_be_several);
        let Some(part) = text.and_then(|text| self.gate.several_in(text, self.name.is_some())) else {
            return Err(NotAll { why: self.reject(value, rejected), taken: 0 });
        };
        let (mut taken, mut why) = (0, None);
        decode::for_each_event(part, |event| match self.single(event.as_bytes()) {
            Ok(()) => taken += 1,
            Err(reason) => {
                let text = self.reject(event.as_bytes(), reason);
                why.get_or_insert_with(|| format!("event {}: {text}", self.index - 1 - first));
            }
        });
        why.map_or(Ok(()), |why| Err(NotAll { why, taken }))
    }

    fn single(&mut self, value: &[u8]) -> Result<(), Reason> {
        self.courtesy.pause();
        let named = self.name.as_ref().and_then(|name| self.gate.with_name(value, name));
        let value = named.as_deref().unwrap_or(value);
        let admitted = self.gate.check(value, self.now_ms)?;
        self.judged.events.push(admitted.key.as_ref().map(|key| key.as_bytes()), value);
        self.judged.report.accepted += 1;
        self.index += 1;
        Ok(())
    }

    /// Why, in particular for as many as an answer names one by one.
    fn reject(&mut self, value: &[u8], reason: Reason) -> String {
        *self.judged.reasons.entry(reason).or_default() += 1;
        let report = &mut self.judged.report;
        report.rejected += 1;
        let index = self.index;
        self.index += 1;
        if report.errors.len() >= ERRORS_MAX {
            return reason.explain().to_owned();
        }
        let detail = self.gate.describe(value, self.now_ms, reason);
        report.errors.push(Rejection { index, reason: reason.name(), detail: detail.clone() });
        detail
    }

    /// All events of a body. `Err` when it is no list of events at all.
    pub fn body(&mut self, body: &[u8], format: Format) -> Result<(), ErrorLine> {
        self.judged.events.reserve(body.len());
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        match (format, first) {
            (_, None) => return Err("the body is empty; send one event, an array, or one event a line".into()),
            (Format::Lines, _) => self.lines(body),
            (_, Some(b'[')) => return self.array(body),
            (Format::Json, _) => _ = self.event(body),
            (Format::Unknown, _) if is_in_lines(body) => self.lines(body),
            (Format::Unknown, _) => _ = self.event(body),
        }
        Ok(())
    }

    fn lines(&mut self, body: &[u8]) {
        let mut rest = body;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest[..end].trim_ascii();
            if !line.is_empty() {
                _ = self.event(line);
            }
            rest = &rest[(end + 1).min(rest.len())..];
        }
    }

    fn array(&mut self, body: &[u8]) -> Result<(), ErrorLine> {
        let text = std::str::from_utf8(body)
            .map_err(|error| ErrorLine::of(format!("the body is not UTF-8: {error}"), error))?;
        let malformed = |index: usize| {
            ErrorLine::from(format!(
                "the array is malformed at or behind element {index}; send valid JSON, or one event a line"
            ))
        };
        let judge = |element: &str| {
            if let Err(reason) = self.single(element.as_bytes()) {
                self.reject(element.as_bytes(), reason);
            }
        };
        decode::elements(text, judge).map_err(malformed)
    }

    pub fn finish(self) -> Judged {
        self.judged
    }
}

/// Whether a body of unknown form has an event a line: what is no JSON as a whole is judged by its
/// lines, unless its first line is only the beginning of a value.
fn is_in_lines(body: &[u8]) -> bool {
    let is_json = |text: &[u8]| std::str::from_utf8(text).is_ok_and(|text| decode::validate(text).is_ok());
    let lines = body.trim_ascii();
    let first = lines.split(|byte| *byte == b'\n').next().unwrap_or_default();
    first.len() < lines.len() && (is_json(first) || (!is_json(body) && !decode::are_several(body)))
}

/// The fingerprint of a request's body.
pub fn fingerprint(body: &[u8]) -> u64 {
    murmur64a(body, FINGERPRINT_SEED ^ body.len() as u64)
}

/// Undoes the coding of a body, up to `bytes_max`; what comes out counts against the bound while it
/// grows.
pub fn unpack(body: Vec<u8>, coding: Coding, bytes_max: usize, hold: &mut Hold) -> Result<Vec<u8>, UnpackError> {
    let malformed = |error: std::io::Error| UnpackError::Malformed(error.to_string());
    match (coding, Packing::of(&body)) {
        (Coding::Plain, None) => Ok(body),
        // No text begins like that.
        (Coding::Plain, Some(packing)) => {
            let name = packing.name();
            Err(UnpackError::Malformed(format!("it is {name}, and no header `Content-Encoding: {name}` says so")))
        }
        (Coding::Gzip, _) => drain(Gzip::new(&body[..]), bytes_max, hold),
        (Coding::Zstd, _) => {
            // A frame may ask for a window of its own size; this is what a body may have at most
            // anyway.
            let window_log = bytes_max.next_power_of_two().ilog2().clamp(10, 27);
            drain(Zstd::new(&body[..], Some(window_log)).map_err(malformed)?, bytes_max, hold)
        }
    }
}

fn drain(mut decoder: impl Read, bytes_max: usize, hold: &mut Hold) -> Result<Vec<u8>, UnpackError> {
    let mut plain = Vec::new();
    loop {
        hold.take(UNPACK_STEP).map_err(|NoRoom| UnpackError::NoRoom)?;
        let read = decoder.by_ref().take(UNPACK_STEP as u64).read_to_end(&mut plain);
        let read = read.map_err(|error| UnpackError::Malformed(error.to_string()))?;
        if plain.len() > bytes_max {
            return Err(UnpackError::TooLarge);
        }
        if read == 0 {
            return Ok(plain);
        }
    }
}
