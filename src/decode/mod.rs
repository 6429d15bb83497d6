//! Bytes of a record to the fields a plan asks for.
//!
//! One file per wire format (`json`, `cloudevents`); `limits` is what stands in front of every parser; `number`, `label`
//! and `time` give a field's text its meaning. Pure code.

mod cloudevents;
mod extract;
mod label;
mod limits;
mod number;
mod scan;
mod time;

pub use cloudevents::TIME as CLOUD_EVENT_TIME;
pub use extract::{Extractor, FieldId, Raw, Shape, elements, validate};
pub use label::{Cut, cut, escape_into, is_reserved, trim, unescape_compound, unescape_single};
use limits::check;
pub use number::{Micros, is_number, label as number_label, micros};
pub use time::{EventTime, event_time};

use crate::model::{EventRules, Record};

/// Why a record is a dead letter. The names are written into headers and metrics and do not change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Reason {
    TooLarge,
    InvalidUtf8,
    TooDeep,
    InvalidJson,
    NotAnObject,
    NoEvent,
    NoTime,
    TimeUnreadable,
    TimeInFuture,
    TooOld,
    TooManyMetrics,
}

impl Reason {
    pub const ALL: [Self; 11] = [
        Self::TooLarge,
        Self::InvalidUtf8,
        Self::TooDeep,
        Self::InvalidJson,
        Self::NotAnObject,
        Self::NoEvent,
        Self::NoTime,
        Self::TimeUnreadable,
        Self::TimeInFuture,
        Self::TooOld,
        Self::TooManyMetrics,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TooDeep => "too_deep",
            Self::InvalidJson => "invalid_json",
            Self::NotAnObject => "not_an_object",
            Self::NoEvent => "no_event",
            Self::NoTime => "no_time",
            Self::TimeUnreadable => "time_unreadable",
            Self::TimeInFuture => "time_in_future",
            Self::TooOld => "too_old",
            Self::TooManyMetrics => "too_many_metrics",
        }
    }

    /// What is wrong and what would be right, for whoever sent it.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::TooLarge => "the event has more bytes than events.max_event_bytes",
            Self::InvalidUtf8 => "the event is not UTF-8",
            Self::TooDeep => "the event is nested deeper than events.max_depth",
            Self::InvalidJson => "the event is not valid JSON",
            Self::NotAnObject => "an event is a JSON object",
            Self::NoEvent => "an event has a member \"event\" with its name, a string that is not empty",
            Self::NoTime => "the event has no time, and neither has its record",
            Self::TimeUnreadable => {
                "the event's time is neither epoch seconds, milli-, micro- or nanoseconds nor RFC 3339"
            }
            Self::TimeInFuture => "the event's time is more than a day ahead",
            Self::TooOld => "the event is older than every bucket that is kept (buckets.retention)",
            Self::TooManyMetrics => "the event becomes more operations than events.max_metrics_per_event",
        }
    }

    /// What kind of fault it is: the record's form, or a limit that it broke.
    pub const fn class(self) -> &'static str {
        match self {
            Self::TooLarge | Self::TooDeep | Self::TooManyMetrics => "limit",
            Self::TimeInFuture | Self::TooOld => "time",
            _ => "format",
        }
    }
}

/// What a record's value turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// The fields are in the slots.
    Event,
    /// The same, and [`CLOUD_EVENT_TIME`] comes before the configured time fields.
    CloudEvent,
    /// A record with a null value.
    Tombstone,
}

/// Reads a record into `slots`, which must have [`Extractor::slots`] entries.
pub fn decode<'a>(
    extractor: &Extractor,
    rules: &EventRules,
    record: &Record<'a>,
    shape: &mut Shape,
    slots: &mut [Raw<'a>],
) -> Result<Decoded, Reason> {
    if record.has_headers() && cloudevents::is_binary(record) {
        return cloudevents::decode_binary(extractor, rules, record, shape, slots);
    }
    let Some(value) = record.value else { return Ok(Decoded::Tombstone) };
    let text = check(value, rules)?;
    extractor.extract(text, shape, slots)?;
    if extractor.event(slots).is_absent() && extractor.spec_version(slots).is_string() {
        return cloudevents::decode_structured(extractor, text, shape, slots);
    }
    Ok(Decoded::Event)
}
