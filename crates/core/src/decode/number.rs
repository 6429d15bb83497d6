//! Numbers from their decimal text, exactly: no value passes through a double unless its label is
//! defined by one.

use std::borrow::Cow;

/// A JSON number as `digits * 10^exponent`, without leading or trailing zeros in `digits`.
struct Decimal {
    negative: bool,
    /// ASCII digits; empty for zero.
    digits: Vec<u8>,
    exponent: i64,
}

/// Whether a text is a number by JSON's grammar.
pub fn is_number(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let start = usize::from(bytes.first() == Some(&b'-'));
    let mut at = digits(start);
    if at == start || (bytes[start] == b'0' && at > start + 1) {
        return false;
    }
    if bytes.get(at) == Some(&b'.') {
        let end = digits(at + 1);
        if end == at + 1 {
            return false;
        }
        at = end;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        let end = digits(at);
        if end == at {
            return false;
        }
        at = end;
    }
    at == bytes.len()
}

impl Decimal {
    /// `text` must be a number by JSON's grammar.
    fn parse(text: &str) -> Self {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
        // Beyond 64 bits only the sign of the exponent matters.
        let saturated = if exponent.starts_with('-') { i64::MIN / 4 } else { i64::MAX / 4 };
        let exponent = exponent.parse::<i64>().unwrap_or(saturated).clamp(i64::MIN / 4, i64::MAX / 4);
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).skip_while(|&digit| digit == b'0').collect();
        let mut exponent = exponent - fraction.len() as i64;
        while digits.last() == Some(&b'0') {
            digits.pop();
            exponent += 1;
        }
        Self { negative, digits, exponent }
    }

    /// Number of digits before the decimal point; zero or less for fractions.
    fn magnitude(&self) -> i64 {
        self.digits.len() as i64 + self.exponent
    }

    /// The integer it is, if it is one of fewer than 39 digits.
    fn integer(&self) -> Option<i128> {
        if self.digits.is_empty() {
            return Some(0);
        }
        if self.exponent < 0 || self.magnitude() > 38 {
            return None;
        }
        let value = to_integer(&self.digits) * 10_i128.pow(self.exponent as u32);
        Some(if self.negative { -value } else { value })
    }
}

fn to_integer(digits: &[u8]) -> i128 {
    digits.iter().fold(0, |value, digit| value * 10 + i128::from(digit - b'0'))
}

/// Whether the text is an integer that is its own label: the usual case.
fn is_plain_integer(text: &str) -> bool {
    text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The label of a JSON number; `None` when it is beyond what a double holds.
pub fn label(text: &str) -> Option<Cow<'_, str>> {
    if is_plain_integer(text) {
        return Some(Cow::Borrowed(text));
    }
    let integer = Decimal::parse(text).integer();
    if let Some(integer) = integer.filter(|integer| (i64::MIN.into()..=u64::MAX.into()).contains(integer)) {
        return Some(Cow::Owned(integer.to_string()));
    }
    let double: f64 = text.parse().ok()?;
    match double {
        _ if double.is_infinite() => None,
        0.0 => Some(Cow::Borrowed("0")),
        _ => Some(Cow::Owned(double.to_string())),
    }
}

/// The largest integer not above a JSON number, and the integer part of its absolute value; `None`
/// from 10^30 on.
pub fn floors(text: &str) -> Option<(i128, i128)> {
    let decimal = Decimal::parse(text);
    if decimal.digits.is_empty() {
        return Some((0, 0));
    }
    if decimal.magnitude() > 30 {
        return None;
    }
    let (whole, has_fraction) = match decimal.exponent {
        0.. => (to_integer(&decimal.digits) * 10_i128.pow(decimal.exponent as u32), false),
        _ => (to_integer(&decimal.digits[..decimal.magnitude().max(0) as usize]), true),
    };
    let floor = if decimal.negative { -whole - i128::from(has_fraction) } else { whole };
    Some((floor, whole))
}

/// A number in units of 10^-6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Micros {
    pub value: i64,
    pub was_rounded: bool,
}

/// A JSON number in units of 10^-6, rounded half to even; `None` from 10^12 on.
pub fn micros(text: &str) -> Option<Micros> {
    if text.len() <= 12 && is_plain_integer(text) {
        let value = text.bytes().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
        return Some(Micros { value: value * 1_000_000, was_rounded: false });
    }
    let decimal = Decimal::parse(text);
    if decimal.digits.is_empty() {
        return Some(Micros { value: 0, was_rounded: false });
    }
    if decimal.magnitude() > 12 {
        return None;
    }
    let shift = decimal.exponent + 6;
    let (value, was_rounded) = if shift >= 0 {
        (to_integer(&decimal.digits) * 10_i128.pow(shift as u32), false)
    } else {
        let kept = (decimal.digits.len() as i64 + shift).max(-1);
        (round_half_even(&decimal.digits, kept), true)
    };
    let value = i64::try_from(value).expect("below 10^18 by the check of the magnitude");
    Some(Micros { value: if decimal.negative { -value } else { value }, was_rounded })
}

/// The first `kept` digits as an integer, rounded by the rest, which is not all zeros; -1 means
/// that the first dropped place is zero.
fn round_half_even(digits: &[u8], kept: i64) -> i128 {
    let Ok(kept) = usize::try_from(kept) else { return 0 };
    let value = to_integer(&digits[..kept]);
    let (next, rest) = (digits[kept], &digits[kept + 1..]);
    let is_up = match next {
        b'5' if rest.is_empty() => value % 2 == 1,
        _ => next >= b'5',
    };
    value + i128::from(is_up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_are_one_label() {
        for (text, expected) in [
            ("100", "100"),
            ("100.0", "100"),
            ("1e2", "100"),
            ("1E+2", "100"),
            ("10000e-2", "100"),
            ("99.9", "99.9"),
            ("99.90", "99.9"),
            ("0.999e2", "99.9"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("0e9", "0"),
            ("9223372036854775808", "9223372036854775808"),
            ("18446744073709551615", "18446744073709551615"),
            ("1.8446744073709551615e19", "18446744073709551615"),
            ("18446744073709551616", "18446744073709552000"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("-9223372036854775809", "-9223372036854776000"),
            ("0.000001", "0.000001"),
            ("1e-7", "0.0000001"),
            ("1e21", "1000000000000000000000"),
            ("1e-400", "0"),
            ("0.1000000000000000055511151231257827", "0.1"),
            ("9007199254740993.5", "9007199254740994"),
        ] {
            assert_eq!(label(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(label("1e999"), None);
        assert_eq!(label("-1e99999999999999999999"), None);
    }

    #[test]
    fn sums_are_exact_and_rounded_half_to_even() {
        let of = |text| micros(text).map(|micros| (micros.value, micros.was_rounded));
        assert_eq!(of("99.99"), Some((99_990_000, false)));
        assert_eq!(of("0.0000005"), Some((0, true)));
        assert_eq!(of("0.0000015"), Some((2, true)));
        assert_eq!(of("0.0000025"), Some((2, true)));
        assert_eq!(of("-0.00000250001"), Some((-3, true)));
        assert_eq!(of("0.00000004"), Some((0, true)));
        assert_eq!(of("999999999999.9999994"), Some((999_999_999_999_999_999, true)));
        assert_eq!(of("999999999999.9999999"), Some((1_000_000_000_000_000_000, true)));
        assert_eq!(of("1e12"), None);
        assert_eq!(of("100e10"), None);
        assert_eq!(of("1e999999999999999999999"), None);
        assert_eq!(of("1e-999999999999999999999"), Some((0, true)));
        assert_eq!(of("0e999999999999999999999"), Some((0, false)));
        assert_eq!(of("1.50e1"), Some((15_000_000, false)));
    }

    #[test]
    fn json_grammar_decides_what_a_number_is() {
        for text in ["0", "-0", "1.5", "1e5", "1E-05", "-12.50e+3"] {
            assert!(is_number(text), "{text}");
        }
        for text in ["", "-", "01", "+1", ".5", "1.", "1e", "1e+", "NaN", "0x1", "1 ", "١"] {
            assert!(!is_number(text), "{text}");
        }
    }
}
