//! What an answer looks like: plain data that serialises to the JSON of the HTTP interface.

use std::collections::BTreeMap;
use std::fmt;

use chrono::SecondsFormat;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::mapping::{Metric, OTHER, Pattern, VALUE_SCALE};
use traqq_core::decode::{unescape_compound, unescape_single};
use traqq_core::model::{BucketKind, Zone};

/// Relative standard error of a unique count: 1.04 / sqrt(16,384).
pub(super) const UNIQUE_ERROR: f64 = 0.0081;

#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Query(QueryAnswer),
    Find(FindAnswer),
    Catalog(CatalogAnswer),
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct QueryAnswer {
    #[serde(flatten)]
    pub range: RangeAnswer,
    /// In the order of time.
    #[serde(rename = "results")]
    pub buckets: Vec<BucketAnswer>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BucketAnswer {
    #[serde(flatten)]
    pub span: SpanAnswer,
    /// Every metric of the mapping, in its order.
    pub metrics: Vec<MetricCell>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MetricCell {
    #[serde(flatten)]
    pub metric: MetricName,
    #[serde(flatten)]
    pub cell: Cell,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FindAnswer {
    #[serde(flatten)]
    pub metric: MetricName,
    /// The value that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// From when on the metric counts, RFC 3339; absent if from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    #[serde(flatten)]
    pub range: RangeAnswer,
    pub merged: bool,
    /// One for each bucket, or one for the range.
    pub results: Vec<SpanCell>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SpanCell {
    #[serde(flatten)]
    pub span: SpanAnswer,
    #[serde(flatten)]
    pub cell: Cell,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CatalogAnswer {
    #[serde(flatten)]
    pub range: RangeAnswer,
    pub metrics: Vec<CatalogEntry>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CatalogEntry {
    #[serde(flatten)]
    pub metric: MetricName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Different values seen in the range; estimated for a unique count; `None` if that was too
    /// much to read.
    pub values: Option<u64>,
    /// There may be more.
    #[serde(skip_serializing_if = "is_false")]
    pub at_least: bool,
}

/// The range that was asked about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RangeAnswer {
    pub bucket: BucketKind,
    pub time_zone: &'static str,
    pub buckets: usize,
    #[serde(flatten, serialize_with = "as_range")]
    pub span: SpanAnswer,
}

/// `[start, end)`, as RFC 3339 in the zone of the buckets and as epoch seconds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SpanAnswer {
    pub start: String,
    pub end: String,
    pub start_epoch: i64,
    pub end_epoch: i64,
}

fn as_range<S: Serializer>(span: &SpanAnswer, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Range<'a> {
        from: &'a str,
        to: &'a str,
        from_epoch: i64,
        to_epoch: i64,
    }
    Range { from: &span.start, to: &span.end, from_epoch: span.start_epoch, to_epoch: span.end_epoch }
        .serialize(serializer)
}

/// A metric as the mapping names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MetricName {
    pub metric: &'static str,
    pub pattern: String,
    /// The summed field of an `add_value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_key: Option<String>,
    /// What a `bitmap_by` counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// One metric over one bucket, or over a range.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cell {
    /// `None` if it is not known.
    pub data: Option<Data>,
    /// Why there are no data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Of a merged range: how many buckets are not in it, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<Reason, usize>,
    /// Some values are counted together under `__other__`.
    #[serde(skip_serializing_if = "is_false")]
    pub capped: bool,
    /// A write failed, or a key is unreadable: the true numbers are higher.
    #[serde(skip_serializing_if = "is_false")]
    pub incomplete: bool,
    /// Counting began inside the bucket.
    #[serde(skip_serializing_if = "is_false")]
    pub partial: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Expired,
    BeforeSince,
    Unreadable,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum Data {
    /// `bitmap`, and one value of a `bitmap_by`.
    Unique { unique: u64, error: f64 },
    /// `bitmap_by`.
    UniqueBy { values_seen: usize, error: f64, values: Vec<UniqueRow> },
    /// `add`.
    Count { count: i128, values_seen: usize, values: Vec<CountRow> },
    /// One value of an `add` or a `top`.
    CountOne { count: i128 },
    /// `add_value`; `min` and `max` are null when there was no event.
    Sum {
        sum: Decimal,
        count: i128,
        min: Option<Decimal>,
        max: Option<Decimal>,
        values_seen: usize,
        values: Vec<SumRow>,
    },
    /// One value of an `add_value`.
    SumOne { sum: Decimal, count: i128 },
    /// `top`; exact unless the limit on reading was met.
    Top { exact: bool, values: Vec<CountRow> },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CountRow {
    pub value: Value,
    #[serde(skip_serializing_if = "is_false")]
    pub other: bool,
    pub count: i128,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SumRow {
    pub value: Value,
    #[serde(skip_serializing_if = "is_false")]
    pub other: bool,
    pub sum: Decimal,
    pub count: i128,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UniqueRow {
    pub value: Value,
    #[serde(skip_serializing_if = "is_false")]
    pub other: bool,
    pub unique: u64,
}

/// What a label stands for: a string, or an array of strings in the order of the pattern's fields.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(untagged)]
pub enum Value {
    One(String),
    Many(Vec<String>),
}

/// A number in units of 10^-6. Serialises as a JSON number, exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Decimal(pub i128);

impl Value {
    pub fn of(label: &str, pattern: &Pattern) -> Self {
        if label == OTHER {
            Self::One(OTHER.to_owned())
        } else if pattern.is_single() {
            Self::One(unescape_single(label).to_owned())
        } else {
            Self::Many(unescape_compound(label).into_iter().map(Into::into).collect())
        }
    }
}

impl Value {
    /// The same, of a label that is needed no longer.
    pub(super) fn of_label(label: String, pattern: &Pattern) -> Self {
        let is_plain = label == OTHER || (pattern.is_single() && unescape_single(&label).len() == label.len());
        if is_plain { Self::One(label) } else { Self::of(&label, pattern) }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(value) => f.write_str(value),
            Self::Many(values) => f.write_str(&values.join(" ~ ")),
        }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale: u128 = VALUE_SCALE.unsigned_abs().into();
        let (whole, fraction): (u128, u128) = (self.0.unsigned_abs() / scale, self.0.unsigned_abs() % scale);
        let sign = if self.0 < 0 { "-" } else { "" };
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        write!(f, "{sign}{whole}.{}", format!("{fraction:06}").trim_end_matches('0'))
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).expect("a decimal is JSON").serialize(serializer)
    }
}

impl SpanAnswer {
    pub(super) fn of(zone: &Zone, start: i64, end: i64) -> Self {
        Self { start: time_text(zone, start), end: time_text(zone, end), start_epoch: start, end_epoch: end }
    }
}

impl MetricName {
    pub fn of(metric: &Metric) -> Self {
        let name = Self { metric: metric.kind(), pattern: metric.pattern().to_string(), add_key: None, of: None };
        match metric {
            Metric::Sum { add_key, .. } => Self { add_key: Some(add_key.to_string()), ..name },
            Metric::UniqueBy { of, .. } => Self { of: Some(of.to_string()), ..name },
            _ => name,
        }
    }
}

impl Cell {
    pub(super) fn missing(reason: Reason) -> Self {
        Self {
            data: None,
            reason: Some(reason),
            missing: BTreeMap::new(),
            capped: false,
            incomplete: reason == Reason::Unreadable,
            partial: false,
        }
    }
}

pub(super) fn time_text(zone: &Zone, second: i64) -> String {
    zone.local(second).to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_numbers() {
        for (units, text) in [
            (0, "0"),
            (99_990_000, "99.99"),
            (-1, "-0.000001"),
            (1_000_000, "1"),
            (-12_500_000, "-12.5"),
            (9_007_199_254_740_993_000_001, "9007199254740993.000001"),
        ] {
            assert_eq!(
                serde_json::to_string(&SumRow {
                    value: Value::One("a".to_owned()),
                    other: false,
                    sum: Decimal(units),
                    count: 1,
                })
                .unwrap(),
                format!(r#"{{"value":"a","sum":{text},"count":1}}"#)
            );
        }
    }

    #[test]
    fn values_are_unescaped() {
        let (single, compound) = (Pattern::parse("a").unwrap(), Pattern::parse("a~b").unwrap());
        assert_eq!(Value::of("\\__other__", &single), Value::One("__other__".to_owned()));
        assert_eq!(Value::of("x~y", &single), Value::One("x~y".to_owned()));
        assert_eq!(Value::of("x\\~y~z", &compound), Value::Many(vec!["x~y".to_owned(), "z".to_owned()]));
        assert_eq!(Value::of("__other__", &compound), Value::One("__other__".to_owned()));
    }
}
