//! What a prefix knows about itself.

use std::collections::BTreeMap;

use super::{Positions, StoreError};
use crate::mapping::{Rules, VALUE_SCALE, ValidRules};
use traqq_core::error::ErrorLine;
use traqq_core::model::{BucketKind, Checkpoint, TopicPartition, TopicPartitionError};

const START: &str = "start:";
const SINCE: &str = "since:";
const CREATED: &str = "created";
const GONE: &str = "gone:";
/// What the plan of a store begins with that is being filled from a file.
const IMPORT: &str = "import ";
/// The plan of a store that is being removed.
pub const DROPPED: &str = "dropped";
/// The last second of the year 9999.
pub const SECOND_MAX: i64 = 253_402_300_799;

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
    /// By [`metric_name`](crate::mapping::metric_name), for metrics that were added later; by
    /// [`kind_name`] for hours and minutes; by `retention:` and the kind for a retention that was
    /// changed.
    pub since: BTreeMap<String, Since>,
    /// When counting began, in epoch seconds; what was written by earlier versions does not say it.
    pub created: Option<i64>,
    /// Buckets that had expired when their retention became longer: of each kind those that ended
    /// after the first of two seconds and not after the second.
    pub gone: BTreeMap<BucketKind, Vec<(i64, i64)>>,
}

/// What is wrong with the meta of a store, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    #[error(
        "this store is being removed; run `traqq store drop` again to have it empty, or use another store.redis.prefix or \
         data.directory"
    )]
    Dropped,
    #[error(
        "an import into this store was not finished; run `traqq store import` again with the same file, or use another \
         store.redis.prefix or data.directory"
    )]
    Importing,
    #[error("the {what} is {stored} in the store and {ours} here; {mend}")]
    Differs { what: &'static str, stored: i64, ours: i64, mend: String },
    #[error("meta has no field {0:?}; was it written by traqq?")]
    Missing(String),
    #[error("meta's field {name:?} {what}")]
    Malformed { name: String, what: &'static str },
    #[error("meta: {0}")]
    Partition(#[from] TopicPartitionError),
    #[error("meta's rules: {0}")]
    Rules(#[source] ErrorLine),
}

impl MetaError {
    fn malformed(name: &str, what: &'static str) -> Self {
        Self::Malformed { name: name.to_owned(), what }
    }
}

/// Another attempt would find the same.
impl From<MetaError> for StoreError {
    fn from(error: MetaError) -> Self {
        Self::Stop(ErrorLine::from_error(error))
    }
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
            created: None,
            gone: BTreeMap::new(),
        }
    }

    /// What stands in for this one while a store is filled from a file, and keeps workers and
    /// questions away.
    pub fn of_import(&self, file: u64) -> Self {
        let (starts, since) = Default::default();
        Self { plan: format!("{IMPORT}{file:016x}"), starts, since, ..self.clone() }
    }

    pub fn is_import(&self) -> bool {
        self.plan.starts_with(IMPORT)
    }

    pub fn is_dropped(&self) -> bool {
        self.plan == DROPPED
    }

    /// A store that is being filled or removed, or was left so, is nobody's to use.
    pub fn refuse_unfinished(&self) -> Result<(), MetaError> {
        if self.is_dropped() {
            return Err(MetaError::Dropped);
        }
        if self.is_import() {
            return Err(MetaError::Importing);
        }
        Ok(())
    }

    /// Whether a store of so many lanes that has this meta can be used here.
    pub fn check(&self, lanes: usize) -> Result<(), MetaError> {
        self.refuse_unfinished()?;
        let other = |what: &'static str, stored: i64, ours: i64, mend: String| {
            Err(MetaError::Differs { what, stored, ours, mend })
        };
        let wrote = || "use the version of traqq that wrote it".to_owned();
        if self.layout != LAYOUT {
            return other("layout version", self.layout.into(), LAYOUT.into(), wrote());
        }
        if self.value_scale != VALUE_SCALE {
            return other("value scale", self.value_scale, VALUE_SCALE, wrote());
        }
        if self.lanes != lanes {
            let mend = format!("set store.redis.lanes = {}", self.lanes);
            return other("number of lanes", self.lanes as i64, lanes as i64, mend);
        }
        Ok(())
    }

    /// Why these rules cannot be applied to it.
    pub fn other_zone(&self, rules: &ValidRules) -> Option<String> {
        let (stored, ours) = (&self.time_zone, rules.zone.name());
        let difference = || {
            format!(
                "the store counts in time zone {stored:?} and the configuration says {ours:?}; days of another zone need a place of \
                 their own: set buckets.time_zone = {stored:?}, or another store.redis.prefix (data.directory on one machine)"
            )
        };
        (stored != ours).then(difference)
    }

    /// Every partition at its start.
    pub fn first_positions(&self) -> Positions {
        self.starts.iter().map(|(partition, start)| (partition.clone(), Checkpoint::start(*start))).collect()
    }

    pub fn valid_rules(&self) -> Result<ValidRules, MetaError> {
        let malformed = |error: serde_json::Error| MetaError::Rules(ErrorLine::from_error(error));
        let mut rules: serde_json::Value = serde_json::from_str(&self.rules).map_err(malformed)?;
        if let Some(events) = rules.get_mut("events").and_then(serde_json::Value::as_object_mut) {
            before_names(events);
        }
        let rules: Rules = serde_json::from_value(rules).map_err(malformed)?;
        rules.validate().map_err(|error| MetaError::Rules(ErrorLine::from_error(error)))
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

    /// As a store keeps it: names and values.
    pub fn to_fields(&self) -> Vec<(String, String)> {
        let mut fields: Vec<(String, String)> = [
            ("layout", self.layout.to_string()),
            ("lanes", self.lanes.to_string()),
            ("tags", self.tags.join(" ")),
            ("group", self.group.clone()),
            ("value_scale", self.value_scale.to_string()),
            ("time_zone", self.time_zone.clone()),
            ("tzdb", self.tzdb.clone()),
            ("plan", self.plan.clone()),
            ("rules", self.rules.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        fields.extend(self.starts.iter().map(|(partition, start)| (start_field(partition), start.to_string())));
        fields.extend(self.since.iter().map(|(metric, since)| (format!("{SINCE}{metric}"), since.to_text())));
        fields.extend(self.created.map(|created| (CREATED.to_owned(), created.to_string())));
        fields.extend(self.gone.iter().map(|(kind, spans)| {
            let spans: Vec<String> = spans.iter().map(|(after, until)| format!("{after}:{until}")).collect();
            (format!("{GONE}{kind}"), spans.join(" "))
        }));
        fields
    }

    pub fn of_fields(fields: &BTreeMap<String, String>) -> Result<Self, MetaError> {
        let field = |name: &str| fields.get(name).ok_or_else(|| MetaError::Missing(name.to_owned()));
        let number = |name: &str| {
            let malformed = |_| MetaError::malformed(name, "is not a number from 0 to 2^32 - 1");
            field(name)?.parse::<u32>().map_err(malformed)
        };
        let mut meta = Self {
            layout: number("layout")?,
            lanes: number("lanes")? as usize,
            tags: field("tags")?.split_whitespace().map(str::to_owned).collect(),
            group: field("group")?.clone(),
            value_scale: number("value_scale")?.into(),
            time_zone: field("time_zone")?.clone(),
            tzdb: field("tzdb")?.clone(),
            plan: field("plan")?.clone(),
            rules: field("rules")?.clone(),
            starts: BTreeMap::new(),
            since: BTreeMap::new(),
            created: None,
            gone: BTreeMap::new(),
        };
        for (name, value) in fields {
            let malformed = || MetaError::malformed(name, "is malformed");
            if let Some(partition) = name.strip_prefix(START) {
                let partition = partition.parse()?;
                let start = value.parse().map_err(|_| MetaError::malformed(name, "is not a number"))?;
                meta.starts.insert(partition, start);
            } else if let Some(metric) = name.strip_prefix(SINCE) {
                meta.since.insert(metric.to_owned(), Since::parse(value).ok_or_else(malformed)?);
            } else if let Some(letter) = name.strip_prefix(GONE) {
                let kind = BucketKind::parse(letter).ok_or_else(malformed)?;
                let span = |text: &str| {
                    let (after, until) = text.split_once(':')?;
                    Some((after.parse().ok()?, until.parse().ok()?))
                };
                let spans: Option<Vec<(i64, i64)>> = value.split_whitespace().map(span).collect();
                meta.gone.insert(kind, spans.ok_or_else(malformed)?);
            } else if name == CREATED {
                meta.created = Some(value.parse().map_err(|_| malformed())?);
            }
        }
        Ok(meta)
    }
}

/// The field of a partition's start.
pub fn start_field(partition: &TopicPartition) -> String {
    format!("{START}{partition}")
}

pub fn is_start(field: &str) -> bool {
    field.starts_with(START)
}

impl Since {
    pub fn parse(text: &str) -> Option<Self> {
        let (second, positions) = text.split_once(' ').unwrap_or((text, ""));
        // Whatever a producer's clock said, it can be shown as a date.
        let second = second.parse::<i64>().ok()?.clamp(0, SECOND_MAX);
        Some(Self { second, positions: positions.to_owned() })
    }

    pub fn to_text(&self) -> String {
        format!("{} {}", self.second, self.positions)
    }

    /// Timestamps of a broker may be those of producers, whose clocks may be years ahead or count
    /// in nanoseconds. What counts from now on does not count from later on.
    pub fn settle(&mut self) {
        self.second = self.second.min(chrono::Utc::now().timestamp());
    }
}

/// The name under which a kind of bucket that was added later has its beginning.
pub fn kind_name(kind: BucketKind) -> String {
    format!("bucket:{kind}")
}

/// The name under which stands since when the retention of a kind holds.
pub fn retention_name(kind: BucketKind) -> String {
    format!("retention:{kind}")
}

/// Rules that were written before names and times could be configured say nothing of them; this is
/// what held.
fn before_names(events: &mut serde_json::Map<String, serde_json::Value>) {
    for (key, value) in [
        ("name_fields", serde_json::json!(["event"])),
        ("batch_fields", serde_json::json!([])),
        ("time_zone_default", serde_json::json!("")),
    ] {
        events.entry(key).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number of lanes below 0 was read as one of 2^64, and a layout of 2^32 + 1 as ours.
    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let rules = serde_json::from_str::<Rules>(r#"{"mapping":{"add":["event"]}}"#).unwrap().validate().unwrap();
        let fields: BTreeMap<String, String> = Meta::new(&rules, "g", Vec::new()).to_fields().into_iter().collect();
        assert!(Meta::of_fields(&fields).is_ok());
        for (name, value) in [("lanes", "-1"), ("layout", "4294967297"), ("layout", "-1"), ("value_scale", "x")] {
            let mut fields = fields.clone();
            fields.insert(name.to_owned(), value.to_owned());
            assert!(Meta::of_fields(&fields).unwrap_err().to_string().contains(name), "{name}={value}");
        }
    }
}
