//! What a prefix knows about itself.

use std::collections::BTreeMap;

use crate::model::{Metric, Rules, TopicPartition, VALUE_SCALE, ValidRules};

/// Version of the key layout.
pub const LAYOUT: u32 = 1;

/// From when on a metric counts: it was added to the mapping after the first start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Since {
    /// Newest broker timestamp that had been applied by then, in epoch seconds.
    pub second: i64,
    /// `topic/partition:position`, joined by spaces.
    pub positions: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    pub layout: u32,
    pub lanes: usize,
    /// The hash tags of the lanes; empty with one lane.
    pub tags: Vec<String>,
    pub group: String,
    pub value_scale: i64,
    pub time_zone: String,
    /// Version of the time zone database.
    pub tzdb: String,
    pub plan: String,
    /// The rules as JSON, pairs written out.
    pub rules: String,
    /// Where counting began, for every partition that is known.
    pub starts: BTreeMap<TopicPartition, i64>,
    /// By [`metric_name`], for metrics that were added later.
    pub since: BTreeMap<String, Since>,
}

impl Meta {
    pub fn new(rules: &ValidRules, group: &str, tags: Vec<String>) -> Self {
        Self {
            layout: LAYOUT,
            lanes: tags.len().max(1),
            tags,
            group: group.to_owned(),
            value_scale: VALUE_SCALE,
            time_zone: rules.zone.name().to_owned(),
            tzdb: chrono_tz::IANA_TZDB_VERSION.to_owned(),
            plan: rules.plan_hash(),
            rules: rules.to_json(),
            starts: BTreeMap::new(),
            since: BTreeMap::new(),
        }
    }

    pub fn valid_rules(&self) -> Result<ValidRules, String> {
        let rules: Rules = serde_json::from_str(&self.rules).map_err(|error| format!("meta's rules: {error}"))?;
        rules.validate().map_err(|error| format!("meta's rules: {error}"))
    }

    /// What differs from `other` in a way that forbids counting together, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |name: &str, stored: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            let (stored, ours) = (stored.to_string(), ours.to_string());
            if stored != ours {
                lines.push(format!("{name} is {stored:?} in the store and {ours:?} here"));
            }
        };
        compare("layout version", &self.layout, &other.layout);
        compare("group", &self.group, &other.group);
        compare("number of lanes", &self.lanes, &other.lanes);
        compare("value scale", &self.value_scale, &other.value_scale);
        lines
    }
}

impl Since {
    pub fn parse(text: &str) -> Option<Self> {
        let (second, positions) = text.split_once(' ').unwrap_or((text, ""));
        Some(Self { second: second.parse().ok()?, positions: positions.to_owned() })
    }

    pub fn to_text(&self) -> String {
        format!("{} {}", self.second, self.positions)
    }
}

/// One name for each metric of a mapping: `add:event~geo`, `add_value:amount:event`, `bitmap_by:ip@geo`.
pub fn metric_name(metric: &Metric) -> String {
    match metric {
        Metric::Unique { of } | Metric::Count { of } | Metric::Top { of } => format!("{}:{of}", metric.kind()),
        Metric::Sum { of, add_key } => format!("add_value:{add_key}:{of}"),
        Metric::UniqueBy { of, by } => format!("bitmap_by:{of}@{by}"),
    }
}

/// Every metric of the rules.
pub fn metrics_of(rules: &Rules) -> Vec<Metric> {
    let mapping = &rules.mapping;
    let mut metrics: Vec<Metric> = Vec::with_capacity(mapping.patterns());
    metrics.extend(mapping.bitmap.iter().map(|of| Metric::Unique { of: of.clone() }));
    metrics.extend(mapping.bitmap_by.iter().map(|by| Metric::UniqueBy { of: by.of.clone(), by: by.key.clone() }));
    metrics.extend(mapping.add.iter().map(|of| Metric::Count { of: of.clone() }));
    metrics.extend(
        mapping.add_value.iter().map(|sum| Metric::Sum { of: sum.key.clone(), add_key: sum.add_key.as_str().into() }),
    );
    metrics.extend(mapping.top.iter().map(|of| Metric::Top { of: of.clone() }));
    metrics
}
