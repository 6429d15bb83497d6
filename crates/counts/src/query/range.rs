//! From the text of a range to its buckets.

use chrono::Days;

use super::answer::time_text;
use super::instant::{Instant, SECOND_MAX, SECOND_MIN};
use super::{QueryError, QueryResult};
use traqq_core::model::{BucketKind, BucketSpan, Zone};

/// A range as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Range {
    /// So many local days, the last one being today.
    Days(u32),
    /// `from` is included, `to` is not; without `to`, until the end of the current bucket.
    Between { from: String, to: Option<String>, align: Align },
}

/// What becomes of a bound inside a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Align {
    /// It is refused: the answer would be about something else than was asked.
    #[default]
    Exact,
    /// The whole bucket belongs to the range; the answer says which bounds that are.
    Out,
}

impl Align {
    pub fn parse(text: &str) -> QueryResult<Self> {
        match text {
            "exact" => Ok(Self::Exact),
            "out" => Ok(Self::Out),
            _ => Err(QueryError::BadRequest(format!(
                "align={text} is neither `out`, which rounds the bounds outwards to whole buckets, nor `exact`"
            ))),
        }
    }
}

impl Range {
    /// From three optional texts; today when all are absent.
    pub fn of(days: Option<&str>, from: Option<&str>, to: Option<&str>, align: Align) -> QueryResult<Self> {
        let bad = |text: String| Err(QueryError::BadRequest(text));
        match (days, from, to) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                bad("`days` and `from`/`to` say two different ranges; leave one of them out".to_owned())
            }
            (Some(days), None, None) => match days.parse() {
                Ok(days) if days > 0 => Ok(Self::Days(days)),
                _ => bad(format!("days={days} is not a whole number of days from 1; today alone is days=1")),
            },
            (None, Some(from), to) => Ok(Self::Between { from: from.to_owned(), to: to.map(str::to_owned), align }),
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
            // A day has at least one bucket; this also keeps what follows within the years that
            // there are.
            Self::Days(days) if *days as usize > buckets_max => return Err(too_many(buckets_max)),
            Self::Days(days) => {
                let today = zone.local(now).date_naive();
                let first = today.checked_sub_days(Days::new(u64::from(*days) - 1));
                let first = first.map(|date| zone.day_start(date)).filter(|start| *start >= SECOND_MIN);
                let from = first.ok_or_else(|| too_many(buckets_max))?;
                (from, zone.bucket_at(BucketKind::Day, now).end)
            }
            Self::Between { from, to, align } => {
                let first = Instant::parse(zone, now, "from", from)?;
                let last = to.as_ref().map(|to| Instant::parse(zone, now, "to", to)).transpose()?;
                // Rounded outwards they might come in order.
                if let Some(last) = last.filter(|last| first.is_after(*last)) {
                    return Err(empty(zone, first.second, last.second));
                }
                let from = Bound { zone, kind, name: "from", text: from }.resolve(first, *align)?;
                let to = match (to, last) {
                    (Some(to), Some(last)) => Bound { zone, kind, name: "to", text: to }.resolve(last, *align)?,
                    _ => zone.bucket_at(kind, now).end,
                };
                (from, to)
            }
        };
        if from >= to {
            return Err(empty(zone, from, to));
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

fn empty(zone: &Zone, from: i64, to: i64) -> QueryError {
    QueryError::BadRequest(format!(
        "the range is empty: from {} (included) to {} (not included)",
        time_text(zone, from),
        time_text(zone, to)
    ))
}

/// One end of a range, which must be where one bucket ends and the next begins.
struct Bound<'a> {
    zone: &'a Zone,
    kind: BucketKind,
    /// `from` or `to`.
    name: &'a str,
    text: &'a str,
}

impl Bound<'_> {
    fn resolve(&self, instant: Instant, align: Align) -> QueryResult<i64> {
        let Self { zone, kind, name, text } = self;
        let span = zone.bucket_at(*kind, instant.second);
        if span.bucket.start == instant.second && instant.is_whole {
            return Ok(instant.second);
        }
        // Now lies inside a bucket whenever it is: who says it means that bucket too.
        if align == Align::Out || instant.is_relative {
            return Ok(if *name == "from" { span.bucket.start } else { span.end });
        }
        let noun = match kind {
            BucketKind::Day => "a day",
            BucketKind::Hour => "an hour",
            BucketKind::Minute => "a minute",
        };
        Err(QueryError::BadRequest(format!(
            "{name}={text} lies inside {noun} of {}; the nearest bounds are {} and {}, and align=out rounds both ends of the \
             range outwards",
            zone.name(),
            time_text(zone, span.bucket.start),
            time_text(zone, span.end)
        )))
    }
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;

    const NOW: i64 = 1_700_000_000; // 2023-11-14T22:13:20Z

    fn resolve(zone: &str, range: &Range, kind: BucketKind) -> QueryResult<Vec<BucketSpan>> {
        range.resolve(&Zone::parse(zone).unwrap(), kind, NOW, 1000)
    }

    fn between(from: &str, to: &str) -> Range {
        Range::of(None, Some(from), Some(to), Align::Exact).unwrap()
    }

    fn outwards(from: &str, to: &str) -> Range {
        Range::of(None, Some(from), Some(to), Align::Out).unwrap()
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

    fn starts_of(spans: &[BucketSpan]) -> Vec<i64> {
        spans.iter().map(|span| span.bucket.start).collect()
    }

    /// What a program knows is an instant: Grafana's is in milliseconds, and is never the bound of
    /// a bucket.
    #[test]
    fn bounds_are_rounded_outwards_on_request() {
        const DAY: i64 = 1_699_920_000; // 2023-11-14T00:00:00Z
        for (from, to, first, last) in [
            ("1700000000000", "1700000000001", DAY, DAY),
            ("1699920000000", "1700006400000", DAY, DAY),
            ("1699920000000", "1700006399999", DAY, DAY),
            ("1699920000", "1700006400.5", DAY, DAY + 86_400),
            ("1699919999999", "1700006400001", DAY - 86_400, DAY + 86_400),
            ("2023-11-14", "2023-11-14T00:00:00.000000001Z", DAY, DAY),
            ("1700000000", "1700000000", DAY, DAY),
        ] {
            let spans = resolve("UTC", &outwards(from, to), BucketKind::Day).unwrap();
            assert_eq!((spans[0].bucket.start, spans[spans.len() - 1].bucket.start), (first, last), "{from} {to}");
        }
        for (from, to) in [("1700000001", "1700000000"), ("1700006400", "1699920000"), ("1699920000", "1699920000")] {
            let message = resolve("UTC", &outwards(from, to), BucketKind::Day).unwrap_err().to_string();
            assert!(message.contains("empty"), "{from} {to}: {message}");
        }
        let spans = resolve("UTC", &Range::of(None, Some("1700000000000"), None, Align::Out).unwrap(), BucketKind::Day);
        assert_eq!(starts_of(&spans.unwrap()), [DAY]);
        let long = resolve("UTC", &outwards("0", "1700000000000"), BucketKind::Hour);
        assert!(matches!(long, Err(QueryError::TooLarge(_))), "{long:?}");
    }

    #[test]
    fn days_and_hours_that_bounds_are_rounded_to_are_those_of_the_local_clock() {
        let second = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp();
        for (zone, kind, from, to, start, end) in [
            // The day on which the clock goes back has 25 hours.
            (
                "Europe/Berlin",
                BucketKind::Day,
                "2023-10-28T22:30:00Z",
                "2023-10-29T22:30:00Z",
                "2023-10-29T00:00:00+02:00",
                "2023-10-30T00:00:00+01:00",
            ),
            // Two hours have one name: the bounds stay in their own.
            (
                "Europe/Berlin",
                BucketKind::Hour,
                "2023-10-29T02:30:00+02:00",
                "2023-10-29T02:40:00+02:00",
                "2023-10-29T02:00:00+02:00",
                "2023-10-29T02:00:00+01:00",
            ),
            (
                "Europe/Berlin",
                BucketKind::Hour,
                "2023-10-29T02:30:00+01:00",
                "2023-10-29T02:40:00+01:00",
                "2023-10-29T02:00:00+01:00",
                "2023-10-29T03:00:00+01:00",
            ),
            // The hour after the shift of half an hour.
            (
                "Australia/Lord_Howe",
                BucketKind::Hour,
                "2023-04-01T15:10:00Z",
                "2023-04-01T15:20:00Z",
                "2023-04-02T01:30:00+10:30",
                "2023-04-02T02:00:00+10:30",
            ),
            // A day without midnight.
            (
                "America/Sao_Paulo",
                BucketKind::Day,
                "2018-11-04T10:00:00Z",
                "2018-11-04T10:00:00Z",
                "2018-11-04T01:00:00-02:00",
                "2018-11-05T00:00:00-02:00",
            ),
        ] {
            let spans = resolve(zone, &outwards(from, to), kind).unwrap();
            let bounds = (spans[0].bucket.start, spans[spans.len() - 1].end);
            assert_eq!(bounds, (second(start), second(end)), "{zone} {from} {to}");
        }
    }

    #[test]
    fn a_distance_from_now_takes_the_buckets_at_both_ends() {
        // 22:13:20.
        let spans = resolve("UTC", &between("now-6h", "now"), BucketKind::Hour).unwrap();
        assert_eq!((spans.len(), spans[0].bucket.start), (7, NOW - NOW % 3600 - 6 * 3600));
        assert!(spans[6].contains(NOW));
        assert_eq!(resolve("UTC", &between("now", "now"), BucketKind::Day).unwrap().len(), 1);
        assert_eq!(resolve("UTC", &between("2023-11-01", "now"), BucketKind::Day).unwrap().len(), 14);
        // The other bound is as exact as ever.
        assert!(resolve("UTC", &between("2023-11-01T05:00:00Z", "now"), BucketKind::Day).is_err());
        let backwards = resolve("UTC", &between("now", "now-1h"), BucketKind::Day).unwrap_err().to_string();
        assert!(backwards.contains("empty"), "{backwards}");
    }

    /// The smallest number of 64 bits has no absolute value, and a question from it on failed
    /// instead of being refused.
    #[test]
    fn the_smallest_number_is_too_large() {
        let answer = resolve("UTC", &between("-9223372036854775808", "0"), BucketKind::Day);
        assert!(answer.unwrap_err().to_string().contains("outside the years"));
    }

    /// The number of days that leads to the first date of the calendar, which is before the first
    /// instant in zones east of Greenwich, ended the question with a panic.
    #[test]
    fn more_days_than_there_are_buckets_are_refused_whatever_their_date() {
        let zone = Zone::parse("Europe/Berlin").unwrap();
        let first = NaiveDate::MIN.signed_duration_since(zone.local(NOW).date_naive()).num_days();
        for days in [1 - first, -first, 401, i64::from(u32::MAX)] {
            let range = Range::of(Some(&days.to_string()), None, None, Align::Exact).unwrap();
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
            (None, Some("1700000000000"), None, "align=out"),
            (None, Some("-70000000000"), None, "outside the years"),
            (None, Some("9999-12-31"), None, "outside the years"),
            (None, Some("2023-11-15"), Some("2023-11-14"), "empty"),
            (Some("1001"), None, None, "1000 buckets"),
            (Some("4294967295"), None, None, "1000 buckets"),
        ] {
            let answer =
                Range::of(days, from, to, Align::Exact).and_then(|range| resolve("UTC", &range, BucketKind::Day));
            let message = answer.unwrap_err().to_string();
            assert!(message.contains(part), "{days:?} {from:?} {to:?}: {message}");
        }
    }
}
