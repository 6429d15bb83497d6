//! The rules by which an event becomes numbers: the sections `[mapping]`, `[events]` and
//! `[buckets]` of the configuration. Everything here, and nothing else, goes into the plan hash.

use serde::{Deserialize, Serialize};

use super::{Pattern, PatternError};
use traqq_core::decode::{EventRules, EventRulesError};
use traqq_core::hll::murmur64a;
use traqq_core::model::{BucketKind, Retention, Zone};

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
    #[error("buckets.time_zone = {0:?} is not an IANA time zone; write a name like \"Europe/Berlin\" or \"UTC\"")]
    UnknownZone(String),
    #[error(transparent)]
    Events(#[from] EventRulesError),
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

impl Rules {
    /// Checks the rules and makes the pairs.
    pub fn validate(mut self) -> Result<ValidRules, RulesError> {
        self.events.check()?;
        let name = &self.buckets.time_zone;
        let zone = Zone::parse(name).ok_or_else(|| RulesError::UnknownZone(name.clone()))?;
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
}
