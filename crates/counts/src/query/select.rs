//! From the text that names a metric to a metric of the mapping.

use super::{QueryError, QueryResult};
use crate::mapping::{Metric, Pattern};
use traqq_core::decode::{escape_into, unescape_compound};

/// The order of an answer's values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Highest first, ties by name.
    Desc,
    /// Lowest first, ties by name.
    Asc,
    Name,
}

impl Order {
    pub fn parse(text: &str) -> QueryResult<Self> {
        match text {
            "desc" => Ok(Self::Desc),
            "asc" => Ok(Self::Asc),
            "name" => Ok(Self::Name),
            _ => Err(QueryError::BadRequest(format!("order={text} is unknown; write desc, asc or name"))),
        }
    }

    pub(super) fn of(asked: Option<Self>, metric: &Metric) -> QueryResult<Self> {
        match (asked.unwrap_or(Self::Desc), metric) {
            (Self::Asc | Self::Name, Metric::Top { .. }) => Err(QueryError::BadRequest(
                "a leaderboard is ordered by its counts, highest first; leave `order` out".to_owned(),
            )),
            (order, _) => Ok(order),
        }
    }
}

/// A metric as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selector {
    kind: Kind,
    /// The fields in the order in which they were written.
    fields: Vec<String>,
    pattern: Pattern,
    /// `add_key` of an `add_value`, `of` of a `bitmap_by`.
    detail: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bitmap,
    BitmapBy,
    Add,
    AddValue,
    Top,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Bitmap, Self::BitmapBy, Self::Add, Self::AddValue, Self::Top];

    const fn name(self) -> &'static str {
        match self {
            Self::Bitmap => "bitmap",
            Self::BitmapBy => "bitmap_by",
            Self::Add => "add",
            Self::AddValue => "add_value",
            Self::Top => "top",
        }
    }
}

impl Selector {
    /// Reads `top/geo`, `bitmap_by/geo/ip` (visitors per country) and `add_value/event/amount`.
    pub fn parse(short: &str) -> QueryResult<Self> {
        let parts: Vec<&str> = short.split('/').collect();
        match parts[..] {
            [kind, pattern] => Self::new(kind, pattern, None, None),
            ["add_value", pattern, add_key] => Self::new("add_value", pattern, Some(add_key), None),
            ["bitmap_by", pattern, of] => Self::new("bitmap_by", pattern, None, Some(of)),
            _ => Err(QueryError::BadRequest(format!(
                "q={short} is not `kind/pattern`; write it like top/geo, add/event~geo, bitmap/ip, bitmap_by/geo/ip or \
                 add_value/event/amount, or use `metric` and `pattern` when a name has a slash"
            ))),
        }
    }

    pub fn new(kind: &str, pattern: &str, add_key: Option<&str>, of: Option<&str>) -> QueryResult<Self> {
        let bad = |text: String| QueryError::BadRequest(text);
        let Some(known) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
            return Err(bad(format!("metric={kind} is unknown; write bitmap, bitmap_by, add, add_value or top")));
        };
        if add_key.is_some() && known != Kind::AddValue {
            return Err(bad(format!("`add_key` belongs to add_value, not to {kind}")));
        }
        if of.is_some() && known != Kind::BitmapBy {
            return Err(bad(format!("`of` belongs to bitmap_by, not to {kind}")));
        }
        let fields = pattern.split('~').map(|field| field.trim().to_owned()).collect();
        let pattern = Pattern::parse(pattern).map_err(|error| bad(error.to_string()))?;
        let of = of.map(|of| Pattern::parse(of).map_err(|error| bad(error.to_string()))).transpose()?;
        let detail = add_key.map(str::to_owned).or_else(|| of.map(String::from));
        Ok(Self { kind: known, fields, pattern, detail })
    }

    pub(super) fn resolve(&self, metrics: &[Metric]) -> QueryResult<Metric> {
        let of_kind = || metrics.iter().filter(|metric| metric.kind() == self.kind.name());
        let fits = |metric: &&Metric| {
            metric.pattern() == &self.pattern
                && self.detail.as_deref().is_none_or(|wanted| detail(metric).is_some_and(|detail| detail == wanted))
        };
        let found: Vec<&Metric> = of_kind().filter(fits).collect();
        match found[..] {
            [metric] => Ok(metric.clone()),
            [] => {
                let known: Vec<String> = of_kind().take(20).map(short_name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let asked = self
                    .detail
                    .iter()
                    .fold(format!("{}/{}", self.kind.name(), self.pattern), |name, detail| format!("{name}/{detail}"));
                Err(QueryError::NotFound(format!(
                    "{asked} is not in the mapping; of {} there is: {known} (the catalog lists all)",
                    self.kind.name()
                )))
            }
            _ => {
                let names: Vec<String> = found.into_iter().map(short_name).collect();
                Err(QueryError::BadRequest(format!(
                    "the mapping has several of these; write one of {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// The label under which the store keeps a value, whose parts come in the order in which the
    /// pattern was written.
    pub(super) fn stored_value(&self, metric: &Metric, value: Option<&str>) -> QueryResult<Option<String>> {
        let Some(value) = value else { return Ok(None) };
        if self.kind == Kind::Bitmap {
            return Err(QueryError::BadRequest(
                "a unique count has no values; for one count per value the mapping needs a bitmap_by".to_owned(),
            ));
        }
        if metric.pattern().is_single() || value == crate::mapping::OTHER {
            return Ok(Some(value.to_owned()));
        }
        let parts = unescape_compound(value);
        if parts.len() != self.fields.len() {
            return Err(QueryError::BadRequest(format!(
                "value={value} has {} parts, the pattern {} has {}; join them by `~`, and write a `~` inside one as `\\~`",
                parts.len(),
                self.fields.join("~"),
                self.fields.len()
            )));
        }
        let mut label = String::new();
        for (index, field) in self.pattern.fields().enumerate() {
            if index > 0 {
                label.push('~');
            }
            let at = self.fields.iter().position(|written| written == field).expect("the same fields");
            escape_into(&mut label, &parts[at]);
        }
        Ok(Some(label))
    }
}

fn detail(metric: &Metric) -> Option<&str> {
    match metric {
        Metric::Sum { add_key, .. } => Some(add_key),
        Metric::UniqueBy { of, .. } => Some(of.as_str()),
        _ => None,
    }
}

/// What [`Selector::parse`] reads.
fn short_name(metric: &Metric) -> String {
    let name = format!("{}/{}", metric.kind(), metric.pattern());
    detail(metric).map_or_else(|| name.clone(), |detail| format!("{name}/{detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn metrics() -> Vec<Metric> {
        vec![
            Metric::Top { of: pattern("geo") },
            Metric::Count { of: pattern("event~geo") },
            Metric::Sum { of: pattern("event"), add_key: "amount".into() },
            Metric::Sum { of: pattern("geo"), add_key: "amount".into() },
            Metric::Sum { of: pattern("geo"), add_key: "tax".into() },
            Metric::UniqueBy { of: pattern("ip"), by: pattern("geo") },
        ]
    }

    #[test]
    fn short_names_are_read() {
        for (short, index) in [
            ("top/geo", 0),
            ("add/geo~event", 1),
            ("add_value/event/amount", 2),
            ("add_value/event", 2),
            ("add_value/geo/tax", 4),
            ("bitmap_by/geo/ip", 5),
            ("bitmap_by/geo", 5),
        ] {
            let metric = Selector::parse(short).and_then(|selector| selector.resolve(&metrics()));
            assert_eq!(metric.as_ref(), Ok(&metrics()[index]), "{short}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (short, part) in [
            ("top", "kind/pattern"),
            ("top/geo/ip", "kind/pattern"),
            ("tops/geo", "metric=tops"),
            ("top/", "empty field"),
            ("add_value/geo", "add_value/geo/amount, add_value/geo/tax"),
            ("top/ip", "there is: top/geo"),
            ("bitmap/ip", "there is: none"),
        ] {
            let answer = Selector::parse(short).and_then(|selector| selector.resolve(&metrics()));
            let message = answer.unwrap_err().to_string();
            assert!(message.contains(part), "{short}: {message}");
        }
        assert!(Selector::new("top", "geo", Some("x"), None).is_err());
        assert!(Selector::new("top", "geo", None, Some("x")).is_err());
    }

    #[test]
    fn the_parts_of_a_value_follow_the_pattern_as_written() {
        let stored = |pattern: &str, value: &str| {
            let selector = Selector::new("add", pattern, None, None).unwrap();
            selector.stored_value(&metrics()[1], Some(value))
        };
        assert_eq!(stored("geo~event", "US~buy"), Ok(Some("buy~US".to_owned())));
        assert_eq!(stored("event~geo", "a\\~b~U\\S"), Ok(Some("a\\~b~US".to_owned())));
        assert_eq!(stored("event~geo", "__other__"), Ok(Some("__other__".to_owned())));
        assert!(stored("event~geo", "US").is_err());
    }
}
