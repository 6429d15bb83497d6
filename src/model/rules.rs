//! The rules by which an event becomes numbers: the sections `[mapping]`, `[events]` and `[buckets]` of the
//! configuration. Everything here, and nothing else, goes into the plan hash.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BucketKind, BucketSpan, Pattern, PatternError, Zone};
use crate::hll::murmur64a;

/// Which metrics exist.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mapping {
    /// Unique counts.
    pub bitmap: Vec<Pattern>,
    /// Unique counts of one pattern for each value of another.
    pub bitmap_by: Vec<BitmapBy>,
    /// Counters per value.
    pub add: Vec<Pattern>,
    /// Sums and counts per value.
    pub add_value: Vec<SumBy>,
    /// Leaderboards.
    pub top: Vec<Pattern>,
    /// Whether every pair of the single-field `add` patterns becomes one too.
    pub auto_pairs: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitmapBy {
    pub key: Pattern,
    pub of: Pattern,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumBy {
    pub key: Pattern,
    pub add_key: String,
}

/// How events are read, and the limits on one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventRules {
    /// The fields that may hold the event's name, the first one that is a string counts.
    pub name_fields: Vec<String>,
    /// The record's header that holds the name, before all fields; empty for none.
    pub name_header: String,
    /// The name of events without one; empty: they are dead letters.
    pub name_default: String,
    /// The members that may hold an array of events, in a record that has no name.
    pub batch_fields: Vec<String>,
    /// The fields that may hold the event's time, the first present one counts.
    pub time_fields: Vec<String>,
    /// Whether an event without a time is a dead letter, instead of having its record's.
    pub require_time: bool,
    /// An IANA name: the zone of times that name none; empty: they are unreadable.
    pub time_zone_default: String,
    /// Events of one record.
    pub max_events_per_record: usize,
    /// Characters of a label.
    pub max_value_length: usize,
    /// Bytes of a record.
    pub max_event_bytes: usize,
    /// Levels of nesting of a record.
    pub max_depth: usize,
    /// Operations one event may become.
    pub max_metrics_per_event: usize,
    /// Patterns after pairing.
    pub max_combinations: usize,
    /// Values of one hash or sorted set.
    pub max_values_per_key: usize,
    /// Values of one `bitmap_by`.
    pub max_values_per_key_bitmap_by: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketRules {
    /// An IANA name.
    pub time_zone: String,
    pub hour: bool,
    pub minute: bool,
    pub retention: Retentions,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retentions {
    pub d: Retention,
    pub h: Retention,
    pub m: Retention,
}

/// Retention of the keys beyond the retention of the bucket, in seconds.
const EXPIRY_GRACE_SECONDS: i64 = 86_400;

/// How long a bucket is kept after its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    Seconds(i64),
    Forever,
}

#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    pub mapping: Mapping,
    pub events: EventRules,
    pub buckets: BucketRules,
}

/// Rules that have been checked: patterns are unique, pairs are made, the zone exists.
#[derive(Clone, Debug)]
pub struct ValidRules {
    pub rules: Rules,
    pub zone: Zone,
    pub kinds: Vec<BucketKind>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error("mapping.{kind}: {error}")]
    Pattern { kind: &'static str, error: PatternError },
    #[error("mapping.{kind} names {name} twice; remove one of them (the order of fields does not matter)")]
    Duplicate { kind: &'static str, name: String },
    #[error("mapping.add_value: the add_key of {0} is empty; name the field to sum")]
    EmptyAddKey(Pattern),
    #[error(
        "the mapping has {patterns} patterns after pairing, more than events.max_combinations = {limit}; \
         name fewer `add` fields, set mapping.auto_pairs = false, or raise the limit"
    )]
    TooManyPatterns { patterns: usize, limit: usize },
    #[error("the mapping is empty: name at least one pattern, for example `add = [\"event\"]` under [mapping]")]
    Empty,
    #[error("{key} = {name:?} is not an IANA time zone; write a name like \"Europe/Berlin\" or \"UTC\"")]
    UnknownZone { key: &'static str, name: String },
    #[error("events.{name} = {value} is out of range; it must lie in {min} to {max}")]
    OutOfRange { name: &'static str, value: usize, min: usize, max: usize },
    #[error("events.{key}: a field name is empty; remove it")]
    EmptyField { key: &'static str },
    #[error("events.{key} = {name:?}: surround it with no white space, it would never be found")]
    Untrimmed { key: &'static str, name: String },
    #[error(
        "events.name_fields is empty: name a field (events.name_header needs one too, for events that come in over HTTP), \
         or set events.name_default alone to give all events one name"
    )]
    NoName,
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            bitmap: Vec::new(),
            bitmap_by: Vec::new(),
            add: Vec::new(),
            add_value: Vec::new(),
            top: Vec::new(),
            auto_pairs: true,
        }
    }
}

impl Default for EventRules {
    fn default() -> Self {
        Self {
            name_fields: ["event", "event_type", "type", "event_name", "name"].map(str::to_owned).into(),
            name_header: String::new(),
            name_default: String::new(),
            batch_fields: ["batch", "events"].map(str::to_owned).into(),
            time_fields: ["ts", "timestamp", "time"].map(str::to_owned).into(),
            require_time: false,
            time_zone_default: "UTC".to_owned(),
            max_events_per_record: 10_000,
            max_value_length: 512,
            max_event_bytes: 1 << 20,
            max_depth: 64,
            max_metrics_per_event: 1000,
            max_combinations: 1000,
            max_values_per_key: 100_000,
            max_values_per_key_bitmap_by: 1000,
        }
    }
}

impl Default for BucketRules {
    fn default() -> Self {
        Self { time_zone: "UTC".to_owned(), hour: false, minute: false, retention: Retentions::default() }
    }
}

impl Default for Retentions {
    fn default() -> Self {
        const DAY: i64 = 86_400;
        Self { d: Retention::Seconds(400 * DAY), h: Retention::Seconds(14 * DAY), m: Retention::Seconds(2 * DAY) }
    }
}

impl Retentions {
    pub const fn of(&self, kind: BucketKind) -> Retention {
        match kind {
            BucketKind::Day => self.d,
            BucketKind::Hour => self.h,
            BucketKind::Minute => self.m,
        }
    }
}

impl Retention {
    /// When the keys of a bucket expire, in epoch seconds: a day after the bucket itself has.
    pub fn expiry(self, span: &BucketSpan) -> Option<i64> {
        match self {
            Self::Seconds(seconds) => Some(span.end + seconds + EXPIRY_GRACE_SECONDS),
            Self::Forever => None,
        }
    }

    /// Reads `400d`, `14h`, `90m`, `forever`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "forever" {
            return Some(Self::Forever);
        }
        let unit = match text.bytes().last()? {
            b'd' => 86_400,
            b'h' => 3600,
            b'm' => 60,
            _ => return None,
        };
        let count: u32 = text[..text.len() - 1].parse().ok()?;
        (count > 0).then(|| Self::Seconds(i64::from(count) * unit))
    }
}

impl Serialize for Retention {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Forever => serializer.serialize_str("forever"),
            Self::Seconds(seconds) if seconds % 86_400 == 0 => {
                serializer.collect_str(&format_args!("{}d", seconds / 86_400))
            }
            Self::Seconds(seconds) if seconds % 3600 == 0 => {
                serializer.collect_str(&format_args!("{}h", seconds / 3600))
            }
            Self::Seconds(seconds) => serializer.collect_str(&format_args!("{}m", seconds / 60)),
        }
    }
}

impl<'de> Deserialize<'de> for Retention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is not a retention; write a whole number and d, h or m, like \"400d\", or \"forever\""
            ))
        })
    }
}

impl Rules {
    /// Checks the rules and makes the pairs.
    pub fn validate(mut self) -> Result<ValidRules, RulesError> {
        self.check_numbers()?;
        self.check_events()?;
        let zone = zone_of("buckets.time_zone", &self.buckets.time_zone)?;
        let mapping = &mut self.mapping;
        let named = |pattern: &Pattern| format!("{pattern:?}");
        check_unique("bitmap", &mapping.bitmap, named)?;
        check_unique("add", &mapping.add, named)?;
        check_unique("top", &mapping.top, named)?;
        check_unique("bitmap_by", &mapping.bitmap_by, |by| format!("{} of {}", by.key, by.of))?;
        check_unique("add_value", &mapping.add_value, |sum| format!("{} by {}", sum.key, sum.add_key))?;
        if let Some(sum) = mapping.add_value.iter().find(|sum| sum.add_key.is_empty()) {
            return Err(RulesError::EmptyAddKey(sum.key.clone()));
        }
        if mapping.auto_pairs {
            mapping.add_pairs().map_err(|error| RulesError::Pattern { kind: "add", error })?;
        }
        let patterns = mapping.patterns();
        if patterns == 0 {
            return Err(RulesError::Empty);
        }
        if patterns > self.events.max_combinations {
            return Err(RulesError::TooManyPatterns { patterns, limit: self.events.max_combinations });
        }
        let mut kinds = vec![BucketKind::Day];
        kinds.extend(self.buckets.hour.then_some(BucketKind::Hour));
        kinds.extend(self.buckets.minute.then_some(BucketKind::Minute));
        Ok(ValidRules { rules: self, zone, kinds })
    }

    fn check_numbers(&self) -> Result<(), RulesError> {
        let events = &self.events;
        for (name, value, min, max) in [
            ("max_value_length", events.max_value_length, 1, 65_536),
            ("max_event_bytes", events.max_event_bytes, 64, 128 << 20),
            ("max_depth", events.max_depth, 1, 120),
            ("max_metrics_per_event", events.max_metrics_per_event, 1, 1_000_000),
            ("max_events_per_record", events.max_events_per_record, 1, 1_000_000),
            ("max_combinations", events.max_combinations, 1, 100_000),
            ("max_values_per_key", events.max_values_per_key, 1, 100_000_000),
            ("max_values_per_key_bitmap_by", events.max_values_per_key_bitmap_by, 1, 10_000_000),
        ] {
            if !(min..=max).contains(&value) {
                return Err(RulesError::OutOfRange { name, value, min, max });
            }
        }
        Ok(())
    }

    fn check_events(&self) -> Result<(), RulesError> {
        let events = &self.events;
        for (key, fields) in [
            ("name_fields", &events.name_fields),
            ("batch_fields", &events.batch_fields),
            ("time_fields", &events.time_fields),
        ] {
            if fields.iter().any(String::is_empty) {
                return Err(RulesError::EmptyField { key });
            }
        }
        for (key, name) in [("name_header", &events.name_header), ("name_default", &events.name_default)] {
            if name.trim() != name {
                return Err(RulesError::Untrimmed { key, name: name.clone() });
            }
        }
        if events.name_fields.is_empty() && (!events.name_header.is_empty() || events.name_default.is_empty()) {
            return Err(RulesError::NoName);
        }
        if !events.time_zone_default.is_empty() {
            zone_of("events.time_zone_default", &events.time_zone_default)?;
        }
        Ok(())
    }
}

impl Mapping {
    pub fn patterns(&self) -> usize {
        self.bitmap.len() + self.bitmap_by.len() + self.add.len() + self.add_value.len() + self.top.len()
    }

    fn add_pairs(&mut self) -> Result<(), PatternError> {
        let singles: Vec<Pattern> = self.add.iter().filter(|pattern| pattern.is_single()).cloned().collect();
        for (index, left) in singles.iter().enumerate() {
            for right in &singles[index + 1..] {
                let pair = left.pair(right)?;
                if !self.add.contains(&pair) {
                    self.add.push(pair);
                }
            }
        }
        self.auto_pairs = false;
        Ok(())
    }
}

impl ValidRules {
    /// The rules as they are kept in a store, pairs written out, in one spelling.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.rules).expect("rules are plain data")
    }

    /// Changes whenever a setting changes what an event becomes. 32 hex digits.
    pub fn plan_hash(&self) -> String {
        let text = self.to_json();
        let low = murmur64a(text.as_bytes(), 1);
        let high = murmur64a(text.as_bytes(), 2);
        format!("{high:016x}{low:016x}")
    }
}

fn zone_of(key: &'static str, name: &str) -> Result<Zone, RulesError> {
    Zone::parse(name).ok_or_else(|| RulesError::UnknownZone { key, name: name.to_owned() })
}

fn check_unique<T: Ord>(kind: &'static str, items: &[T], name: impl Fn(&T) -> String) -> Result<(), RulesError> {
    let mut sorted: Vec<&T> = items.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => Err(RulesError::Duplicate { kind, name: name(twice[0]) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Rules {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn pairs_are_made_once_and_only_from_single_fields() {
        let valid = rules(r#"{"mapping":{"add":["event","geo","os","geo~event","a~b"]}}"#).validate().unwrap();
        let names: Vec<&str> = valid.rules.mapping.add.iter().map(Pattern::as_str).collect();
        assert_eq!(names, ["event", "geo", "os", "event~geo", "a~b", "event~os", "geo~os"]);
    }

    #[test]
    fn the_plan_hash_is_the_same_whether_pairs_were_written_or_made() {
        let made = rules(r#"{"mapping":{"add":["a","b"]}}"#).validate().unwrap();
        let written = rules(r#"{"mapping":{"add":["a","b","b~a"],"auto_pairs":false}}"#).validate().unwrap();
        assert_eq!(made.plan_hash(), written.plan_hash());
        let other = rules(r#"{"mapping":{"add":["a","b"]},"buckets":{"hour":true}}"#).validate().unwrap();
        assert_ne!(made.plan_hash(), other.plan_hash());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, part) in [
            (r#"{"mapping":{"add":["a~b","b~a"]}}"#, "mapping.add names \"a~b\" twice"),
            (r#"{"mapping":{}}"#, "empty"),
            (r#"{"mapping":{"add":["a"]},"buckets":{"time_zone":"Mars/Base"}}"#, "Mars/Base"),
            (r#"{"mapping":{"add":["a","b","c"]},"events":{"max_combinations":5}}"#, "6 patterns"),
            (r#"{"mapping":{"add":["a"]},"events":{"max_depth":0}}"#, "max_depth"),
            (r#"{"mapping":{"add":["a"]},"events":{"name_fields":[]}}"#, "events.name_default"),
            (r#"{"mapping":{"add":["a"]},"events":{"name_fields":[""]}}"#, "events.name_fields"),
            (r#"{"mapping":{"add":["a"]},"events":{"name_default":" x"}}"#, "events.name_default"),
            (r#"{"mapping":{"add":["a"]},"events":{"time_zone_default":"CET+1"}}"#, "events.time_zone_default"),
        ] {
            let message = rules(json).validate().unwrap_err().to_string();
            assert!(message.contains(part), "{json}: {message}");
        }
    }

    #[test]
    fn retentions_read_back_as_written() {
        for text in ["400d", "5h", "90m", "forever"] {
            let retention = Retention::parse(text).unwrap();
            assert_eq!(serde_json::to_string(&retention).unwrap(), format!("{text:?}"));
        }
        for text in ["", "d", "0d", "-1d", "5", "5w", "1.5d"] {
            assert_eq!(Retention::parse(text), None, "{text:?}");
        }
    }
}
