//! How events are read: the section `[events]` of the configuration, which every projection of a
//! log shares. What counts are made of covers it with its plan hash, so that none of it changes
//! unsaid.

use serde::{Deserialize, Serialize};

use crate::model::Zone;

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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventRulesError {
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
    #[error(
        "events.time_zone_default = {0:?} is not an IANA time zone; write a name like \"Europe/Berlin\" or \"UTC\""
    )]
    UnknownZone(String),
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

impl EventRules {
    /// Whether they can be used.
    pub fn check(&self) -> Result<(), EventRulesError> {
        self.check_numbers()?;
        self.check_fields()
    }

    fn check_numbers(&self) -> Result<(), EventRulesError> {
        for (name, value, min, max) in [
            ("max_value_length", self.max_value_length, 1, 65_536),
            ("max_event_bytes", self.max_event_bytes, 64, 128 << 20),
            ("max_depth", self.max_depth, 1, 120),
            ("max_metrics_per_event", self.max_metrics_per_event, 1, 1_000_000),
            ("max_events_per_record", self.max_events_per_record, 1, 1_000_000),
            ("max_combinations", self.max_combinations, 1, 100_000),
            ("max_values_per_key", self.max_values_per_key, 1, 100_000_000),
            ("max_values_per_key_bitmap_by", self.max_values_per_key_bitmap_by, 1, 10_000_000),
        ] {
            if !(min..=max).contains(&value) {
                return Err(EventRulesError::OutOfRange { name, value, min, max });
            }
        }
        Ok(())
    }

    fn check_fields(&self) -> Result<(), EventRulesError> {
        for (key, fields) in [
            ("name_fields", &self.name_fields),
            ("batch_fields", &self.batch_fields),
            ("time_fields", &self.time_fields),
        ] {
            if fields.iter().any(String::is_empty) {
                return Err(EventRulesError::EmptyField { key });
            }
        }
        for (key, name) in [("name_header", &self.name_header), ("name_default", &self.name_default)] {
            if name.trim() != name {
                return Err(EventRulesError::Untrimmed { key, name: name.clone() });
            }
        }
        if self.name_fields.is_empty() && (!self.name_header.is_empty() || self.name_default.is_empty()) {
            return Err(EventRulesError::NoName);
        }
        if !self.time_zone_default.is_empty() {
            let name = &self.time_zone_default;
            Zone::parse(name).ok_or_else(|| EventRulesError::UnknownZone(name.clone()))?;
        }
        Ok(())
    }
}
