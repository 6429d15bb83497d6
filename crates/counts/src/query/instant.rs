//! From the text of a bound to an instant: RFC 3339, a local date, epoch seconds or milliseconds,
//! or `now-6h`.

use chrono::{DateTime, Days, LocalResult, NaiveDate, NaiveTime, TimeZone, Timelike};

use super::{QueryError, QueryResult};
use traqq_core::model::Zone;

/// Instants within the years 1 to 9999, with room for the neighbouring buckets.
pub(super) const SECOND_MIN: i64 = -62_135_596_800 + 3 * 86_400;
pub(super) const SECOND_MAX: i64 = 253_402_300_799 - 3 * 86_400;
/// From here on a number is one of milliseconds: as seconds it would be the year 5138, as
/// milliseconds it is March 1973.
const EPOCH_MS_MIN: u64 = 100_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Instant {
    pub second: i64,
    /// Nothing is left of it after its second.
    pub is_whole: bool,
    /// It was said as a distance from now, so that it is hardly ever the bound of a bucket.
    pub is_relative: bool,
}

impl Instant {
    /// `name` is the parameter's, for the error.
    pub fn parse(zone: &Zone, now: i64, name: &str, text: &str) -> QueryResult<Self> {
        let bad = |why: &str| QueryError::BadRequest(format!("{name}={text} {why}"));
        let (second, is_whole) =
            if let Some(distance) = text.strip_prefix("now") {
                let (amount, unit) = distance_of(distance).ok_or_else(|| {
                bad("is not a time; after `now` write `-` and how many s, m, h, d or w (seconds to weeks) before it, \
                     like now-6h")
            })?;
                (before(zone, now, amount, unit).ok_or_else(|| bad("is outside the years 1 to 9999"))?, true)
            } else if let Some((whole, is_whole)) = number(text) {
                if whole.unsigned_abs() < EPOCH_MS_MIN {
                    (whole, is_whole)
                } else {
                    let (second, rest) = (whole.div_euclid(1000), whole.rem_euclid(1000));
                    if !in_years(second) {
                        return Err(bad(
                            "is outside the years 1 to 9999 as epoch milliseconds; micro- and nanoseconds are not read",
                        ));
                    }
                    (second, is_whole && rest == 0)
                }
            } else {
                date_or_time(zone, text).ok_or_else(|| {
                bad("is not a time; write RFC 3339 like 2026-03-29T00:00:00Z, a date like 2026-03-29, epoch seconds or \
                     milliseconds, or a distance from now like now-6h")
            })?
            };
        if !in_years(second) {
            return Err(bad("is outside the years 1 to 9999"));
        }
        Ok(Self { second, is_whole, is_relative: text.starts_with("now") })
    }

    /// Whether it comes after another one, to the second.
    pub const fn is_after(self, other: Self) -> bool {
        self.second > other.second
    }
}

pub(super) const fn in_years(second: i64) -> bool {
    SECOND_MIN <= second && second <= SECOND_MAX
}

/// A number, rounded down, and whether it was whole; fractions are what clocks of programs give.
fn number(text: &str) -> Option<(i64, bool)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let is_whole = fraction.bytes().all(|byte| byte == b'0');
    let floor: i64 = whole.parse().ok()?;
    let is_negative = whole.starts_with('-');
    Some((if is_negative && !is_whole { floor.saturating_sub(1) } else { floor }, is_whole))
}

fn date_or_time(zone: &Zone, text: &str) -> Option<(i64, bool)> {
    if text.len() == 10 {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
        let about = date.and_time(NaiveTime::MIN).and_utc().timestamp();
        return Some((if in_years(about) { zone.day_start(date) } else { about }, true));
    }
    // In a query string an unencoded `+` reads as a space.
    let sign = text.len().checked_sub(6).filter(|at| text.as_bytes()[*at] == b' ');
    let mended = sign.map(|at| format!("{}+{}", &text[..at], &text[at + 1..]));
    let time = DateTime::parse_from_rfc3339(mended.as_deref().unwrap_or(text)).ok()?;
    Some((time.timestamp(), time.nanosecond() == 0))
}

/// What follows `now`: nothing, or `-6h`.
fn distance_of(text: &str) -> Option<(u32, char)> {
    if text.is_empty() {
        return Some((0, 's'));
    }
    let text = text.strip_prefix('-')?;
    let unit = text.chars().next_back().filter(|unit| "smhdw".contains(*unit))?;
    let amount = &text[..text.len() - 1];
    let is_digits = amount.bytes().all(|byte| byte.is_ascii_digit());
    Some((amount.parse().ok().filter(|_| is_digits)?, unit))
}

/// Days and weeks are those of the calendar: to the same time of the local clock, though a day
/// between has 23 or 25 hours.
fn before(zone: &Zone, now: i64, amount: u32, unit: char) -> Option<i64> {
    let amount = i64::from(amount);
    let days = match unit {
        's' => return Some(now - amount),
        'm' => return Some(now - amount * 60),
        'h' => return Some(now - amount * 3600),
        'd' => amount,
        _ => amount * 7,
    };
    let local = zone.local(now);
    let then = local.naive_local().checked_sub_days(Days::new(days.unsigned_abs()))?;
    if !in_years(then.and_utc().timestamp()) {
        return None;
    }
    match local.timezone().from_local_datetime(&then) {
        LocalResult::Single(then) | LocalResult::Ambiguous(then, _) => Some(then.timestamp()),
        // The clock was put forward over it.
        LocalResult::None => Some(now - days * 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp()
    }

    fn parse(zone: &str, now: &str, text: &str) -> QueryResult<Instant> {
        Instant::parse(&Zone::parse(zone).unwrap(), second(now), "from", text)
    }

    const NOW: &str = "2026-10-26T00:30:00+01:00";

    #[test]
    fn seconds_and_milliseconds_are_told_apart_by_their_size() {
        for (text, expected, is_whole) in [
            ("0", 0, true),
            ("-1", -1, true),
            ("1700000000", 1_700_000_000, true),
            ("99999999999", 99_999_999_999, true),
            ("100000000000", 100_000_000, true),
            ("1700000000000", 1_700_000_000, true),
            ("1700000000001", 1_700_000_000, false),
            ("1699999999999", 1_699_999_999, false),
            ("-100000000001", -100_000_001, false),
            ("1700000000.0", 1_700_000_000, true),
            ("1700000000.25", 1_700_000_000, false),
            ("-1.5", -2, false),
            ("-0.5", -1, false),
            ("1700000000000.0", 1_700_000_000, true),
            ("1700000000000.9", 1_700_000_000, false),
            ("2023-11-14T22:13:20.001Z", 1_700_000_000, false),
        ] {
            let expected = Instant { second: expected, is_whole, is_relative: false };
            assert_eq!(parse("UTC", NOW, text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn distances_from_now_follow_the_calendar() {
        for (zone, now, text, expected) in [
            ("UTC", NOW, "now", NOW),
            ("UTC", NOW, "now-90s", "2026-10-25T23:28:30Z"),
            ("UTC", NOW, "now-15m", "2026-10-25T23:15:00Z"),
            ("UTC", NOW, "now-6h", "2026-10-25T17:30:00Z"),
            ("UTC", NOW, "now-2d", "2026-10-23T23:30:00Z"),
            ("UTC", NOW, "now-0d", NOW),
            // The day before had 25 hours: 24 hours ago it was still the same day.
            ("Europe/Berlin", NOW, "now-1d", "2026-10-25T00:30:00+02:00"),
            ("Europe/Berlin", NOW, "now-1w", "2026-10-19T00:30:00+02:00"),
            ("Europe/Berlin", NOW, "now-24h", "2026-10-25T00:30:00+01:00"),
            // Half past two came twice, or did not come.
            ("Europe/Berlin", "2026-10-26T02:30:00+01:00", "now-1d", "2026-10-25T02:30:00+02:00"),
            ("Europe/Berlin", "2026-03-30T02:30:00+02:00", "now-1d", "2026-03-29T01:30:00+01:00"),
        ] {
            let expected = Instant { second: second(expected), is_whole: true, is_relative: true };
            assert_eq!(parse(zone, now, text), Ok(expected), "{zone} {now} {text}");
        }
    }

    #[test]
    fn what_is_no_time_is_named() {
        for (text, part) in [
            ("", "is not a time"),
            ("yesterday", "is not a time"),
            ("1.", "is not a time"),
            ("1e9", "is not a time"),
            ("1.5.5", "is not a time"),
            ("now-", "like now-6h"),
            ("now-6", "like now-6h"),
            ("now-h", "like now-6h"),
            ("now-6M", "like now-6h"),
            ("now-6é", "like now-6h"),
            ("now--6h", "like now-6h"),
            ("now-+6h", "like now-6h"),
            ("now+6h", "like now-6h"),
            ("now 6h", "like now-6h"),
            ("now-6.5h", "like now-6h"),
            ("now-99999999999999999999h", "like now-6h"),
            ("now-4294967295w", "outside the years"),
            ("now-1000000d", "outside the years"),
            ("now-4294967295h", "outside the years"),
            ("1700000000000000", "micro- and nanoseconds"),
            ("1700000000000000000", "micro- and nanoseconds"),
            ("-9223372036854775808", "outside the years"),
            ("-9223372036854775808.5", "outside the years"),
            ("9223372036854775808", "is not a time"),
            ("-70000000000", "outside the years"),
            ("9999-12-31", "outside the years"),
            ("é23456789", "is not a time"),
            ("2023-11-14T00:00:0é01:00", "is not a time"),
        ] {
            let message = parse("Pacific/Auckland", NOW, text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("from={text} ")) && message.contains(part), "{text}: {message}");
        }
    }
}
