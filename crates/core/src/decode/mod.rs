//! Bytes of a record to the fields a plan asks for.
//!
//! `event` reads a record by the rules, with `cloudevents` and `several` for records of other
//! shapes; `limits` is what stands in front of every parser; `number`, `label` and `time` give a
//! field's text its meaning; `detail` says what is wrong with a record. Pure code.

mod cloudevents;
mod dead_letter;
mod detail;
mod event;
mod extract;
mod label;
mod limits;
mod number;
mod rules;
mod scan;
mod several;
mod time;

pub use cloudevents::{TIME as CLOUD_EVENT_TIME, is_structured};
pub use dead_letter::DeadLetter;
pub use detail::{excerpt, paths};
pub use event::{BELIEVABLE_MS_MIN, Decoded, EventReader, TimeSource};
pub use extract::{Extractor, FieldId, Raw, Shape, elements, validate};
pub use label::{Cut, OTHER, cut, escape_into, is_reserved, trim, unescape_compound, unescape_single};
pub use number::{Micros, is_number, label as number_label, micros};
pub use rules::{EventRules, EventRulesError};
pub use several::for_each as for_each_event;

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
    TooManyEvents,
}

impl Reason {
    pub const ALL: [Self; 12] = [
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
        Self::TooManyEvents,
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
            Self::TooManyEvents => "too_many_events",
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
            Self::NoEvent => "an event has a name, a string that is not empty (events.name_fields)",
            Self::NoTime => "the event has no time (events.time_fields)",
            Self::TimeUnreadable => {
                "the event's time is neither epoch seconds, milli-, micro- or nanoseconds nor like 2026-01-31T12:00:00Z"
            }
            Self::TimeInFuture => "the event's time is more than a day ahead",
            Self::TooOld => "the event is older than every bucket that is kept (buckets.retention)",
            Self::TooManyMetrics => "the event becomes more operations than events.max_metrics_per_event",
            Self::TooManyEvents => "the record holds more events than events.max_events_per_record",
        }
    }

    /// What kind of fault it is: the record's form, or a limit that it broke.
    pub const fn class(self) -> &'static str {
        match self {
            Self::TooLarge | Self::TooDeep | Self::TooManyMetrics | Self::TooManyEvents => "limit",
            Self::TimeInFuture | Self::TooOld => "time",
            _ => "format",
        }
    }
}

/// Whether a text is an array or objects in a row.
pub fn are_several(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| several::count(text).is_some())
}
