//! Buckets of time in a zone: days, hours and minutes of the local clock, named by the epoch second
//! of their first instant.
//!
//! A day lasts from the first instant of its local date to the first of the next one, an hour is
//! the contiguous instants with one local date, hour and UTC offset (so the two hours of one name
//! in autumn are two), a minute likewise.

use std::fmt;

use chrono::{DateTime, Days, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum BucketKind {
    #[serde(rename = "d")]
    Day,
    #[serde(rename = "h")]
    Hour,
    #[serde(rename = "m")]
    Minute,
}

impl BucketKind {
    pub const ALL: [Self; 3] = [Self::Day, Self::Hour, Self::Minute];

    /// Reads what it is shown as.
    pub fn parse(letter: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == letter)
    }

    pub const fn letter(self) -> char {
        match self {
            Self::Day => 'd',
            Self::Hour => 'h',
            Self::Minute => 'm',
        }
    }
}

impl fmt::Display for BucketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "d",
            Self::Hour => "h",
            Self::Minute => "m",
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Bucket {
    pub kind: BucketKind,
    /// Epoch second of the first instant.
    pub start: i64,
}

/// A bucket with its end: `[start, end)` in epoch seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BucketSpan {
    pub bucket: Bucket,
    pub end: i64,
}

impl BucketSpan {
    pub const fn contains(&self, second: i64) -> bool {
        self.bucket.start <= second && second < self.end
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zone(Tz);

/// No zone has ever kept a local date for longer than this, transitions included.
const DAY_SECONDS_MAX: i64 = 50 * 3600;

impl Zone {
    pub const UTC: Self = Self(Tz::UTC);

    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok().map(Self)
    }

    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// The bucket of `kind` that holds the instant.
    pub fn bucket_at(&self, kind: BucketKind, second: i64) -> BucketSpan {
        let (start, end) = match kind {
            BucketKind::Day => self.day_at(second),
            BucketKind::Hour => self.clock_unit_at(second, 3600),
            BucketKind::Minute => self.clock_unit_at(second, 60),
        };
        BucketSpan { bucket: Bucket { kind, start }, end }
    }

    /// The first instant of a local date; of a date the zone skipped, the first instant after it.
    pub fn day_start(&self, date: NaiveDate) -> i64 {
        match self.0.from_local_datetime(&date.and_time(NaiveTime::MIN)) {
            LocalResult::Single(start) | LocalResult::Ambiguous(start, _) => start.timestamp(),
            LocalResult::None => {
                let about = date.and_time(NaiveTime::MIN).and_utc().timestamp();
                let is_reached = |second| self.local(second).date_naive() >= date;
                first_where(about - DAY_SECONDS_MAX, about + DAY_SECONDS_MAX, is_reached)
            }
        }
    }

    /// The instant at which the local clock reads this: the first one if it does so twice. If it
    /// never does, the instant at which it would, had it not been put forward.
    pub fn instant_of(&self, reading: NaiveDateTime) -> i64 {
        match self.0.from_local_datetime(&reading) {
            LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => instant.timestamp(),
            LocalResult::None => {
                let about = reading.and_utc().timestamp();
                let is_behind = |second| self.local(second).naive_local() > reading;
                let jump = first_where(about - DAY_SECONDS_MAX, about + DAY_SECONDS_MAX, is_behind);
                about - self.offset_seconds(jump - 1)
            }
        }
    }

    pub fn local(&self, second: i64) -> DateTime<Tz> {
        let utc = DateTime::from_timestamp(second, 0).expect("event times are limited to the years 1 to 9999");
        utc.with_timezone(&self.0)
    }

    fn day_at(&self, second: i64) -> (i64, i64) {
        let date = self.local(second).date_naive();
        let after = |days| self.day_start(date.checked_add_days(Days::new(days)).expect("within chrono's years"));
        let tomorrow = after(1);
        // Soon after midnight the clock may have gone back into the date before.
        if second < tomorrow { (self.day_start(date), tomorrow) } else { (tomorrow, after(2)) }
    }

    fn offset_seconds(&self, second: i64) -> i64 {
        i64::from(self.local(second).offset().fix().local_minus_utc())
    }

    fn clock_unit_at(&self, second: i64, unit: i64) -> (i64, i64) {
        let offset = self.offset_seconds(second);
        let mut start = (second + offset).div_euclid(unit) * unit - offset;
        let mut end = start + unit;
        if self.offset_seconds(start) != offset {
            start = first_where(start, second, |at| self.offset_seconds(at) == offset);
        }
        if self.offset_seconds(end - 1) != offset {
            end = first_where(second, end, |at| self.offset_seconds(at) != offset);
        }
        (start, end)
    }

    /// Whether the local clock reads midnight, for labels of days.
    pub fn is_midnight(&self, second: i64) -> bool {
        self.local(second).num_seconds_from_midnight() == 0
    }
}

/// The first of `[low, high]` that satisfies a predicate which, once true, stays true; `high` when
/// none before it does.
fn first_where(mut low: i64, mut high: i64, holds: impl Fn(i64) -> bool) -> i64 {
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp()
    }

    fn span(zone: &str, kind: BucketKind, at: &str) -> (i64, i64) {
        let span = Zone::parse(zone).unwrap().bucket_at(kind, second(at));
        assert!(span.contains(second(at)));
        (span.bucket.start, span.end)
    }

    #[test]
    fn a_day_in_utc() {
        assert_eq!(span("UTC", BucketKind::Day, "2023-11-14T22:13:20Z"), (1_699_920_000, 1_700_006_400));
    }

    #[test]
    fn days_around_daylight_saving_have_23_and_25_hours() {
        let (start, end) = span("Europe/Berlin", BucketKind::Day, "2026-03-29T12:00:00Z");
        assert_eq!(end - start, 23 * 3600);
        let (start, end) = span("Europe/Berlin", BucketKind::Day, "2026-10-25T12:00:00Z");
        assert_eq!(end - start, 25 * 3600);
    }

    #[test]
    fn the_two_hours_of_one_name_are_two_buckets() {
        let first = span("Europe/Berlin", BucketKind::Hour, "2026-10-25T00:30:00Z");
        let second = span("Europe/Berlin", BucketKind::Hour, "2026-10-25T01:30:00Z");
        assert_eq!(first.1, second.0);
        assert_eq!(second.1 - second.0, 3600);
    }

    #[test]
    fn a_day_without_midnight_begins_at_its_first_instant() {
        // Sao Paulo, 2018-11-04: the clock went from 23:59:59 to 01:00.
        let (start, end) = span("America/Sao_Paulo", BucketKind::Day, "2018-11-04T12:00:00Z");
        assert_eq!(start, second("2018-11-04T03:00:00Z"));
        assert_eq!(end - start, 23 * 3600);
    }

    #[test]
    fn a_skipped_date_leaves_no_hole() {
        // Apia had no 2011-12-30.
        let (_, end) = span("Pacific/Apia", BucketKind::Day, "2011-12-29T20:00:00Z");
        let (start, _) = span("Pacific/Apia", BucketKind::Day, "2011-12-30T12:00:00Z");
        assert_eq!(end, start);
    }

    #[test]
    fn a_clock_that_goes_back_over_midnight_does_not_go_back_to_the_day_before() {
        // St. John's, 2006-10-29: 00:01 became 23:01 of the 28th.
        let before = span("America/St_Johns", BucketKind::Day, "2006-10-29T02:29:59Z");
        let first = span("America/St_Johns", BucketKind::Day, "2006-10-29T02:30:30Z");
        let back = span("America/St_Johns", BucketKind::Day, "2006-10-29T02:31:30Z");
        assert_eq!(before.1, first.0);
        assert_eq!(first.0, second("2006-10-29T02:30:00Z"));
        assert_eq!(back, first);
        assert_eq!(first.1 - first.0, 25 * 3600);
    }

    #[test]
    fn half_hour_shifts_cut_the_hour_at_the_transition() {
        // Lord Howe, 2026-04-05: 02:00 +11 became 01:30 +10:30.
        let before = span("Australia/Lord_Howe", BucketKind::Hour, "2026-04-04T14:59:59Z");
        let after = span("Australia/Lord_Howe", BucketKind::Hour, "2026-04-04T15:00:00Z");
        assert_eq!(before.1 - before.0, 3600);
        assert_eq!(after.1 - after.0, 1800);
        assert_eq!(before.1, after.0);
    }
}
