//! From the text of a range to its buckets.

use chrono::{DateTime, Days, NaiveDate, Timelike};

use super::answer::time_text;
use super::{QueryError, QueryResult};
use crate::model::{BucketKind, BucketSpan, Zone};

/// Instants within the years 1 to 9999, with room for the neighbouring buckets.
const SECOND_MIN: i64 = -62_135_596_800 + 3 * 86_400;
const SECOND_MAX: i64 = 253_402_300_799 - 3 * 86_400;
/// Above it a number of epoch seconds is more likely one of milliseconds.
const EPOCH_SECONDS_MAX: u64 = 100_000_000_000;

/// A range as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Range {
    /// So many local days, the last one being today.
    Days(u32),
    /// `from` is included, `to` is not; without `to`, until the end of the current bucket.
    Between { from: String, to: Option<String> },
}

impl Range {
    /// From three optional texts; today when all are absent.
    pub fn of(days: Option<&str>, from: Option<&str>, to: Option<&str>) -> QueryResult<Self> {
        let bad = |text: String| Err(QueryError::BadRequest(text));
        match (days, from, to) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                bad("`days` and `from`/`to` say two different ranges; leave one of them out".to_owned())
            }
            (Some(days), None, None) => match days.parse() {
                Ok(days) if days > 0 => Ok(Self::Days(days)),
                _ => bad(format!("days={days} is not a whole number of days from 1; today alone is days=1")),
            },
            (None, Some(from), to) => Ok(Self::Between { from: from.to_owned(), to: to.map(str::to_owned) }),
            (None, None, Some(_)) => bad("`to` needs a `from`".to_owned()),
            (None, None, None) => Ok(Self::Days(1)),
        }
    }

    /// The buckets of the range, at least one and at most `buckets_max`.
    pub(super) fn resolve(
        &self,
        zone: &Zone,
        kind: BucketKind,
        now: i64,
        buckets_max: usize,
    ) -> QueryResult<Vec<BucketSpan>> {
        let now = now.clamp(SECOND_MIN, SECOND_MAX);
        let (from, to) = match self {
            // A day has at least one bucket; this also keeps what follows within the years that there are.
            Self::Days(days) if *days as usize > buckets_max => return Err(too_many(buckets_max)),
            Self::Days(days) => {
                let today = zone.local(now).date_naive();
                let first = today.checked_sub_days(Days::new(u64::from(*days) - 1));
                let first = first.map(|date| zone.day_start(date)).filter(|start| *start >= SECOND_MIN);
                let from = first.ok_or_else(|| too_many(buckets_max))?;
                (from, zone.bucket_at(BucketKind::Day, now).end)
            }
            Self::Between { from, to } => {
                let from = bound(zone, kind, "from", from)?;
                let end = || Ok(zone.bucket_at(kind, now).end);
                (from, to.as_ref().map_or_else(end, |to| bound(zone, kind, "to", to))?)
            }
        };
        if from >= to {
            return Err(QueryError::BadRequest(format!(
                "the range is empty: from {} (included) to {} (not included)",
                time_text(zone, from),
                time_text(zone, to)
            )));
        }
        let mut spans = vec![zone.bucket_at(kind, from)];
        while let Some(last) = spans.last()
            && last.end < to
        {
            if spans.len() == buckets_max {
                return Err(too_many(buckets_max));
            }
            spans.push(zone.bucket_at(kind, last.end));
        }
        Ok(spans)
    }
}

fn too_many(buckets_max: usize) -> QueryError {
    QueryError::TooLarge(format!(
        "the range has more than {buckets_max} buckets (limit max_buckets); shorten it or ask for larger buckets"
    ))
}

/// An instant that must be where one bucket ends and the next begins.
fn bound(zone: &Zone, kind: BucketKind, name: &str, text: &str) -> QueryResult<i64> {
    let (second, is_whole) = instant(zone, name, text)?;
    let span = zone.bucket_at(kind, second);
    if span.bucket.start == second && is_whole {
        return Ok(second);
    }
    let noun = match kind {
        BucketKind::Day => "a day",
        BucketKind::Hour => "an hour",
        BucketKind::Minute => "a minute",
    };
    Err(QueryError::BadRequest(format!(
        "{name}={text} lies inside {noun} of {}; the nearest bounds are {} and {}",
        zone.name(),
        time_text(zone, span.bucket.start),
        time_text(zone, span.end)
    )))
}

/// RFC 3339, a date, or epoch seconds; the second, and whether nothing was left of it.
fn instant(zone: &Zone, name: &str, text: &str) -> QueryResult<(i64, bool)> {
    let bad = |why: &str| QueryError::BadRequest(format!("{name}={text} {why}"));
    let unreadable =
        || bad("is not a time; write RFC 3339 like 2026-03-29T00:00:00Z, a date like 2026-03-29, or epoch seconds");
    let (second, is_whole) = if let Ok(second) = text.parse::<i64>() {
        if second.unsigned_abs() >= EPOCH_SECONDS_MAX {
            return Err(bad("is too large for epoch seconds; divide milliseconds by 1000"));
        }
        (second, true)
    } else if text.len() == 10 {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| unreadable())?;
        let about = date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp();
        (if in_years(about) { zone.day_start(date) } else { about }, true)
    } else {
        // In a query string an unencoded `+` reads as a space.
        let sign = text.len().checked_sub(6).filter(|at| text.as_bytes()[*at] == b' ');
        let mended = sign.map(|at| format!("{}+{}", &text[..at], &text[at + 1..]));
        let time = DateTime::parse_from_rfc3339(mended.as_deref().unwrap_or(text)).map_err(|_| unreadable())?;
        (time.timestamp(), time.nanosecond() == 0)
    };
    if !in_years(second) {
        return Err(bad("is outside the years 1 to 9999"));
    }
    Ok((second, is_whole))
}

const fn in_years(second: i64) -> bool {
    SECOND_MIN <= second && second <= SECOND_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000; // 2023-11-14T22:13:20Z

    fn resolve(zone: &str, range: &Range, kind: BucketKind) -> QueryResult<Vec<BucketSpan>> {
        range.resolve(&Zone::parse(zone).unwrap(), kind, NOW, 1000)
    }

    fn between(from: &str, to: &str) -> Range {
        Range::of(None, Some(from), Some(to)).unwrap()
    }

    #[test]
    fn days_include_today() {
        let spans = resolve("UTC", &Range::Days(7), BucketKind::Day).unwrap();
        assert_eq!(spans.len(), 7);
        assert!(spans[6].contains(NOW));
        // Half past eleven in the evening in UTC is tomorrow in Auckland.
        let spans = resolve("Pacific/Auckland", &Range::Days(1), BucketKind::Day).unwrap();
        assert_eq!(
            time_text(&Zone::parse("Pacific/Auckland").unwrap(), spans[0].bucket.start),
            "2023-11-15T00:00:00+13:00"
        );
    }

    #[test]
    fn from_is_included_and_to_is_not() {
        let spans = resolve("UTC", &between("2023-11-13", "2023-11-15T00:00:00Z"), BucketKind::Day).unwrap();
        assert_eq!(spans.iter().map(|span| span.bucket.start).collect::<Vec<_>>(), [1_699_833_600, 1_699_920_000]);
        assert_eq!(spans, resolve("UTC", &between("1699833600", "1700006400"), BucketKind::Day).unwrap());
    }

    #[test]
    fn a_day_of_the_autumn_shift_has_25_hours() {
        let range = between("2023-10-29", "2023-10-30");
        assert_eq!(resolve("Europe/Berlin", &range, BucketKind::Hour).unwrap().len(), 25);
    }

    #[test]
    fn a_bound_inside_a_bucket_names_the_two_nearest() {
        let message = |from: &str| match resolve("Europe/Berlin", &between(from, "2023-11-16"), BucketKind::Day) {
            Err(QueryError::BadRequest(message)) => message,
            other => panic!("{from}: {other:?}"),
        };
        let inside = message("2023-11-14T00:00:00Z");
        assert!(inside.contains("2023-11-14T00:00:00+01:00 and 2023-11-15T00:00:00+01:00"), "{inside}");
        assert!(message("2023-11-14T00:00:00.5+01:00").contains("inside a day"));
    }

    #[test]
    fn a_plus_that_became_a_space_is_understood() {
        let spans = resolve("Europe/Berlin", &between("2023-11-14T00:00:00 01:00", "2023-11-15"), BucketKind::Day);
        assert_eq!(spans.unwrap().len(), 1);
    }

    /// The smallest number of 64 bits has no absolute value, and a question from it on failed instead of being refused.
    #[test]
    fn the_smallest_number_is_too_large() {
        let answer = resolve("UTC", &between("-9223372036854775808", "0"), BucketKind::Day);
        assert!(answer.unwrap_err().to_string().contains("too large for epoch seconds"));
    }

    /// The number of days that leads to the first date of the calendar, which is before the first instant in zones east of Greenwich,
    /// ended the question with a panic.
    #[test]
    fn more_days_than_there_are_buckets_are_refused_whatever_their_date() {
        let zone = Zone::parse("Europe/Berlin").unwrap();
        let first = NaiveDate::MIN.signed_duration_since(zone.local(NOW).date_naive()).num_days();
        for days in [1 - first, -first, 401, i64::from(u32::MAX)] {
            let range = Range::of(Some(&days.to_string()), None, None).unwrap();
            let spans = range.resolve(&zone, BucketKind::Day, NOW, 400);
            assert!(matches!(spans, Err(QueryError::TooLarge(_))), "{days}: {spans:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (days, from, to, part) in [
            (Some("0"), None, None, "whole number"),
            (Some("x"), None, None, "whole number"),
            (Some("1"), Some("0"), None, "two different ranges"),
            (None, None, Some("0"), "needs a `from`"),
            (None, Some("yesterday"), None, "is not a time"),
            (None, Some("1700000000000"), None, "milliseconds"),
            (None, Some("-70000000000"), None, "outside the years"),
            (None, Some("9999-12-31"), None, "outside the years"),
            (None, Some("2023-11-15"), Some("2023-11-14"), "empty"),
            (None, Some("é23456789"), None, "is not a time"),
            (None, Some("2023-11-14T00:00:0é01:00"), None, "is not a time"),
            (Some("1001"), None, None, "1000 buckets"),
            (Some("4294967295"), None, None, "1000 buckets"),
        ] {
            let answer = Range::of(days, from, to).and_then(|range| resolve("UTC", &range, BucketKind::Day));
            let message = answer.unwrap_err().to_string();
            assert!(message.contains(part), "{days:?} {from:?} {to:?}: {message}");
        }
    }
}
