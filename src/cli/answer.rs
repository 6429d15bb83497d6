//! A server's answers, read for a person. Numbers keep the text that the server wrote: a sum may be
//! finer than a float.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Failure;
use super::chart::grouped;

/// Reads a whole document.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::Failed(format!("the answer cannot be read ({error}); is it another version of traqq?"))
    })
}

#[derive(Deserialize)]
pub struct QueryAnswer {
    pub bucket: String,
    pub results: Vec<Bucket>,
}

#[derive(Deserialize)]
pub struct Bucket {
    pub start: String,
    pub metrics: Vec<Both<MetricName, Cell>>,
}

#[derive(Deserialize)]
pub struct FindAnswer {
    pub bucket: String,
    pub from: String,
    pub to: String,
    pub buckets: u64,
    pub time_zone: String,
    pub since: Option<String>,
    pub results: Vec<Both<Span, Cell>>,
}

#[derive(Deserialize)]
pub struct CatalogAnswer {
    pub metrics: Vec<MetricName>,
}

/// The metric's parts as the mapping names them.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct MetricName {
    pub metric: String,
    pub pattern: String,
    pub add_key: Option<String>,
    pub of: Option<String>,
}

impl fmt::Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.metric, self.pattern)?;
        self.of.iter().chain(&self.add_key).try_for_each(|part| write!(f, "/{part}"))
    }
}

#[derive(Deserialize)]
pub struct Span {
    pub start: String,
}

#[derive(Deserialize)]
pub struct Cell {
    pub data: Option<Data>,
    pub reason: Option<String>,
    #[serde(default)]
    pub missing: BTreeMap<String, u64>,
    #[serde(default)]
    pub capped: bool,
    #[serde(default)]
    pub incomplete: bool,
    #[serde(default)]
    pub partial: bool,
}

/// What any kind of metric may have.
#[derive(Deserialize)]
pub struct Data {
    pub unique: Option<Number>,
    /// Relative standard error of a unique count.
    pub error: Option<f64>,
    pub sum: Option<Number>,
    pub count: Option<Number>,
    pub min: Option<Number>,
    pub max: Option<Number>,
    pub values_seen: Option<u64>,
    pub exact: Option<bool>,
    pub values: Option<Vec<Row>>,
}

#[derive(Deserialize)]
pub struct Row {
    pub value: Value,
    pub unique: Option<Number>,
    pub sum: Option<Number>,
    pub count: Option<Number>,
}

/// What is shown of a row or of all of them: the sum if there is one, else the number of events or
/// of different values.
pub fn main_number<'a>(
    unique: Option<&'a Number>,
    sum: Option<&'a Number>,
    count: Option<&'a Number>,
) -> Option<&'a Number> {
    unique.or(sum).or(count)
}

impl Data {
    pub fn number(&self) -> Option<&Number> {
        main_number(self.unique.as_ref(), self.sum.as_ref(), self.count.as_ref())
    }

    /// The number as it is shown.
    pub fn text(&self) -> Option<String> {
        self.number().map(|number| shown(number, self.unique.is_some()))
    }
}

impl Row {
    pub fn number(&self) -> Option<&Number> {
        main_number(self.unique.as_ref(), self.sum.as_ref(), self.count.as_ref())
    }

    /// The number as it is shown.
    pub fn text(&self) -> Option<String> {
        self.number().map(|number| shown(number, self.unique.is_some()))
    }
}

/// An estimate looks like one.
fn shown(number: &Number, is_estimate: bool) -> String {
    if is_estimate { format!("~{number}") } else { number.to_string() }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(untagged)]
pub enum Value {
    One(String),
    Many(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(value) => f.write_str(value),
            Self::Many(values) => f.write_str(&values.join(" ~ ")),
        }
    }
}

/// A JSON number as it was written.
#[derive(Deserialize)]
pub struct Number(Box<RawValue>);

impl Number {
    /// For bars and lines.
    pub fn size(&self) -> f64 {
        self.0.get().parse().unwrap_or(0.0)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&grouped(self.0.get()))
    }
}

/// Two structs whose members stand in one object. Serde's `flatten` would read numbers as floats on
/// the way.
pub struct Both<A, B>(pub A, pub B);

impl<'de, A: DeserializeOwned, B: DeserializeOwned> Deserialize<'de> for Both<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let first = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        Ok(Self(first, serde_json::from_str(raw.get()).map_err(D::Error::custom)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_every_digit() {
        let text = br#"{"bucket":"d","results":[{"start":"2026-01-01T00:00:00Z","metrics":[
            {"metric":"add_value","pattern":"event","add_key":"amount","capped":true,"data":{
                "sum":9007199254740993.000001,"count":3,"min":null,"max":1.5,"values_seen":1,
                "values":[{"value":["a","b"],"sum":9007199254740993.000001,"count":3}]}}]}]}"#;
        let answer: QueryAnswer = read(text).map_err(|_| ()).unwrap();
        let Both(name, cell) = &answer.results[0].metrics[0];
        assert_eq!(name.to_string(), "add_value/event/amount");
        let data = cell.data.as_ref().unwrap();
        assert_eq!(data.number().unwrap().to_string(), "9,007,199,254,740,993.000001");
        assert_eq!(data.values.as_ref().unwrap()[0].value.to_string(), "a ~ b");
        assert!(data.min.is_none() && cell.capped && !cell.partial);
    }
}
