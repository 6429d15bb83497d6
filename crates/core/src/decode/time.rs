//! An event's time, in epoch seconds.

use chrono::NaiveDate;

use super::number::is_number;
use super::{Raw, Reason, label, number};
use crate::model::Zone;

/// 0001-01-01T00:00:00Z and 10000-01-01T00:00:00Z.
const SECOND_MIN: i64 = -62_135_596_800;
const SECOND_END: i64 = 253_402_300_800;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventTime {
    /// Epoch second.
    At(i64),
    /// None of the fields is present.
    Absent,
}

/// What a time means that does not say it all itself.
pub struct TimeRules {
    /// Whose clock a time without a zone was read from; `None`: such a time is unreadable.
    pub zone_default: Option<Zone>,
}

/// The first of the fields that is present.
pub fn event_time<'s, 'a: 's>(
    fields: impl Iterator<Item = &'s Raw<'a>>,
    rules: &TimeRules,
) -> Result<EventTime, Reason> {
    for raw in fields {
        let second = match raw {
            Raw::Absent | Raw::Null => continue,
            Raw::Bool(_) | Raw::Container => None,
            Raw::Number(text) => epoch(text),
            Raw::Text(text) => match label::trim(text) {
                "" => continue,
                text if is_number(text) => epoch(text),
                text => date_time(text, rules),
            },
        };
        return second
            .filter(|second| (SECOND_MIN..SECOND_END).contains(second))
            .map(EventTime::At)
            .ok_or(Reason::TimeUnreadable);
    }
    Ok(EventTime::Absent)
}

/// An epoch number whose magnitude tells the unit.
fn epoch(text: &str) -> Option<i64> {
    if text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let value = text.bytes().fold(0_i64, |value, digit| value * 10 + i64::from(digit - b'0'));
        return Some(value / unit_of(value.into()) as i64);
    }
    let (floor, magnitude_floor) = number::floors(text)?;
    i64::try_from(floor.div_euclid(unit_of(magnitude_floor))).ok()
}

/// How many of the unit make a second. `magnitude` is the absolute value, rounded down.
const fn unit_of(magnitude: i128) -> i128 {
    match magnitude {
        ..=99_999_999_999 => 1,
        100_000_000_000..=99_999_999_999_999 => 1000,
        100_000_000_000_000..=99_999_999_999_999_999 => 1_000_000,
        _ => 1_000_000_000,
    }
}

/// RFC 3339, and what databases and log files write that is nearly so: a comma before the fraction,
/// a space before the zone, a zone without its colon or minutes, `UTC`, or no zone at all.
fn date_time(text: &str, rules: &TimeRules) -> Option<i64> {
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 19 {
        return None;
    }
    let digits = |from: usize, len: usize| {
        let part = &bytes[from..from + len];
        part.iter().all(u8::is_ascii_digit).then(|| part.iter().fold(0, |n, d| n * 10 + u32::from(d - b'0')))
    };
    let is_shaped = bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't' | b' ')
        && bytes[13] == b':'
        && bytes[16] == b':';
    if !is_shaped {
        return None;
    }
    let date = NaiveDate::from_ymd_opt(digits(0, 4)? as i32, digits(5, 2)?, digits(8, 2)?)?;
    let second = digits(17, 2).filter(|second| *second <= 60)?.min(59);
    let local = date.and_hms_opt(digits(11, 2)?, digits(14, 2)?, second)?;
    let zone = skip_fraction(&bytes[19..])?;
    if zone.is_empty() {
        return rules.zone_default.map(|zone| zone.instant_of(local));
    }
    Some(local.and_utc().timestamp() - offset_seconds(zone.strip_prefix(b" ").unwrap_or(zone))?)
}

fn skip_fraction(rest: &[u8]) -> Option<&[u8]> {
    let [b'.' | b',', fraction @ ..] = rest else { return Some(rest) };
    let len = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (len > 0).then(|| &fraction[len..])
}

fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let number = |tens: u8, ones: u8| {
        let digit = |byte: u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
        Some(digit(tens)? * 10 + digit(ones)?)
    };
    let (sign, hours, minutes) = match *zone {
        [b'Z' | b'z'] | [b'U', b'T', b'C'] | [b'G', b'M', b'T'] => return Some(0),
        [sign, h1, h2] => (sign, number(h1, h2)?, 0),
        [sign, h1, h2, m1, m2] | [sign, h1, h2, b':', m1, m2] => (sign, number(h1, h2)?, number(m1, m2)?),
        _ => return None,
    };
    let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UTC: TimeRules = TimeRules { zone_default: Some(Zone::UTC) };

    fn at(raw: Raw<'_>) -> Result<EventTime, Reason> {
        event_time([raw].iter(), &UTC)
    }

    fn text(text: &str) -> Result<EventTime, Reason> {
        at(Raw::Text(text.into()))
    }

    fn number(text: &str) -> Result<EventTime, Reason> {
        at(Raw::Number(text.into()))
    }

    #[test]
    fn magnitude_tells_the_unit() {
        for (value, second) in [
            ("1700000000", 1_700_000_000),
            ("1700000000.9", 1_700_000_000),
            ("1.7e9", 1_700_000_000),
            ("1700000000999", 1_700_000_000),
            ("1700000000999999", 1_700_000_000),
            ("1700000000999999999", 1_700_000_000),
            ("99999999999.5", 99_999_999_999),
            ("100000000000", 100_000_000),
            ("-1", -1),
            ("-0.5", -1),
            ("0", 0),
        ] {
            assert_eq!(number(value), Ok(EventTime::At(second)), "{value}");
            assert_eq!(text(&format!(" {value}\n")), Ok(EventTime::At(second)), "{value}");
        }
        for value in ["1e999", "1e30", "-1e26"] {
            assert_eq!(number(value), Err(Reason::TimeUnreadable), "{value}");
        }
    }

    #[test]
    fn rfc3339_in_its_forms() {
        for value in [
            "2023-11-14T22:13:20Z",
            "2023-11-14t22:13:20z",
            "2023-11-14 22:13:20Z",
            "2023-11-14T22:13:20.999999999999Z",
            "2023-11-15T00:13:20+02:00",
            "2023-11-14T17:43:20-04:30",
            "2023-11-15T00:13:20+0200",
            "2023-11-15 00:13:20.003+02",
            "2023-11-14 22:13:20.003 +0000",
            "2023-11-14T22:13:20,003Z",
            "2023-11-14 22:13:20.003 UTC",
            "2023-11-14 22:13:20 GMT",
            "2023-11-14T22:13:20",
            "2023-11-14 22:13:20.003",
        ] {
            assert_eq!(text(value), Ok(EventTime::At(1_700_000_000)), "{value}");
        }
        assert_eq!(text("2016-12-31T23:59:60Z"), text("2016-12-31T23:59:59Z"));
        for value in [
            "2023-11-14",
            "2023-11-14T22:13",
            "2023-11-14T24:00:00Z",
            "2023-02-30T00:00:00Z",
            "2023-11-14T22:13:61Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20,Z",
            "2023-11-14T22:13:20  Z",
            "2023-11-14T22:13:20+2",
            "2023-11-14T22:13:20+020",
            "2023-11-14T22:13:20+02:0",
            "2023-11-14T22:13:20*0200",
            "2023-11-14T22:13:20CET",
            "2023-11-14T22:13:20+24:00",
            "2023-11-14T22:13:20+0260",
            "soon",
            "0000-01-01T00:00:00Z",
            "2023-11-14T22:13:20é",
            "10000-01-01T00:00:00Z",
        ] {
            assert_eq!(text(value), Err(Reason::TimeUnreadable), "{value}");
        }
    }

    #[test]
    fn the_first_present_field_decides() {
        let absent = [Raw::Absent, Raw::Null, Raw::Text(" ".into())];
        assert_eq!(event_time(absent.iter(), &UTC), Ok(EventTime::Absent));
        let fields = [Raw::Null, Raw::Bool(true), Raw::Number("1".into())];
        assert_eq!(event_time(fields.iter(), &UTC), Err(Reason::TimeUnreadable));
    }

    #[test]
    fn a_time_without_a_zone_is_read_from_the_default_one() {
        let zoned = |name: &str, text: &str| {
            let rules = TimeRules { zone_default: Zone::parse(name) };
            event_time([Raw::Text(text.into())].iter(), &rules)
        };
        let at = |text: &str| zoned("UTC", text).unwrap();
        for (local, instant) in [
            ("2026-07-01 12:00:00", "2026-07-01T10:00:00Z"),
            ("2026-12-01T12:00:00.5", "2026-12-01T11:00:00Z"),
            // Twice: the first one.
            ("2026-10-25 02:30:00", "2026-10-25T00:30:00Z"),
            // Never: as if the clock had not been put forward.
            ("2026-03-29 02:30:00", "2026-03-29T01:30:00Z"),
        ] {
            assert_eq!(zoned("Europe/Berlin", local), Ok(at(instant)), "{local}");
        }
        // Apia had no 2011-12-30.
        assert_eq!(zoned("Pacific/Apia", "2011-12-30 12:00:00"), Ok(at("2011-12-30T22:00:00Z")));
        assert_eq!(zoned("Europe/Berlin", "2026-07-01T12:00:00Z"), Ok(at("2026-07-01T12:00:00Z")));
        assert_eq!(zoned("", "2026-07-01 12:00:00"), Err(Reason::TimeUnreadable));
    }
}
