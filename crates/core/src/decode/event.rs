//! From a record to an event: its name, its time and the fields a plan asks for, by the rules of
//! `[events]`, compiled once.

use std::borrow::Cow;

use super::time::{EventTime, TimeRules, event_time};
use super::{
    CLOUD_EVENT_TIME, EventRules, Extractor, FieldId, Raw, Reason, Shape, cloudevents, label, limits, several,
};
use crate::model::{Record, Zone};

/// 2000-01-01T00:00:00Z. Broker timestamps before it are not to be believed.
pub const BELIEVABLE_MS_MIN: i64 = 946_684_800_000;
/// The last millisecond of the year 9999, beyond which there are no buckets.
const YEAR_9999_MS_MAX: i64 = 253_402_300_799_999;

/// What a record's value turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded<'a> {
    /// The fields are in the slots.
    Event,
    /// The same, and [`CLOUD_EVENT_TIME`] comes before the configured time fields.
    CloudEvent,
    /// A record with a null value.
    Tombstone,
    /// Several events, each to be read with [`EventReader::read_one`].
    Several(Vec<&'a str>),
}

/// Where an event's time stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeSource<'e> {
    Field(&'e str),
    /// No time field is present, so the record's own timestamp counts.
    Record,
}

/// Reads records. Immutable: shared by all threads, each with slots and a [`Shape`] of its own.
pub struct EventReader {
    pub(super) extractor: Extractor,
    pub(super) rules: EventRules,
    /// In the order in which they are looked at.
    name_fields: Vec<FieldId>,
    /// That of a CloudEvent first.
    time_fields: Vec<FieldId>,
    time_rules: TimeRules,
}

impl EventReader {
    /// Field ids are the indexes of `fields`, which must differ from one another. The rules have
    /// been checked, so that their time zone exists.
    pub fn new<'n>(rules: &'n EventRules, fields: impl IntoIterator<Item = &'n str>) -> Self {
        let of_rules = rules.name_fields.iter().chain(&rules.time_fields).map(String::as_str);
        let names: Vec<&str> = fields.into_iter().chain([CLOUD_EVENT_TIME]).chain(of_rules).collect();
        let extractor = Extractor::new(names);
        let id = |name: &str| {
            extractor.names().iter().position(|known| **known == *name).expect("the extractor was made with it")
        };
        Self {
            name_fields: rules.name_fields.iter().map(|name| id(name)).collect(),
            time_fields: [CLOUD_EVENT_TIME]
                .into_iter()
                .chain(rules.time_fields.iter().map(String::as_str))
                .map(id)
                .collect(),
            time_rules: TimeRules { zone_default: Zone::parse(&rules.time_zone_default) },
            rules: rules.clone(),
            extractor,
        }
    }

    pub fn rules(&self) -> &EventRules {
        &self.rules
    }

    /// How many slots [`Self::read`] fills.
    pub fn slots(&self) -> usize {
        self.extractor.slots()
    }

    pub fn names(&self) -> &[Box<str>] {
        self.extractor.names()
    }

    pub fn field<'s, 'a>(&self, slots: &'s [Raw<'a>], field: FieldId) -> &'s Raw<'a> {
        self.extractor.field(slots, field)
    }

    /// Reads a record into `slots`, which must have [`Self::slots`] entries. The field `event` is
    /// then the event's name, a string that is not empty.
    pub fn read<'a>(
        &'a self,
        record: &Record<'a>,
        shape: &mut Shape,
        slots: &mut [Raw<'a>],
    ) -> Result<Decoded<'a>, Reason> {
        if record.has_headers() && cloudevents::is_binary(record) {
            cloudevents::decode_binary(&self.extractor, &self.rules, record, shape, slots)?;
            return self.cloud_event(slots);
        }
        let Some(value) = record.value else { return Ok(Decoded::Tombstone) };
        let text = limits::check(value, &self.rules)?;
        match self.extractor.extract(text, shape, slots) {
            Ok(()) => {}
            Err(reason @ (Reason::NotAnObject | Reason::InvalidJson)) => {
                return self.several(text, reason, reason);
            }
            Err(reason) => return Err(reason),
        }
        if let Some(decoded) = self.named_event(text, record, shape, slots)? {
            return Ok(decoded);
        }
        match several::array_in(text, &self.rules.batch_fields) {
            Some(array) => self.several(array, Reason::NoEvent, Reason::NoEvent),
            None => self.default_name(slots),
        }
    }

    /// Reads one of the events that `record` holds.
    pub fn read_one<'a>(
        &'a self,
        text: &'a str,
        record: &Record<'a>,
        shape: &mut Shape,
        slots: &mut [Raw<'a>],
    ) -> Result<Decoded<'a>, Reason> {
        self.extractor.extract(text, shape, slots)?;
        match self.named_event(text, record, shape, slots)? {
            Some(decoded) => Ok(decoded),
            None => self.default_name(slots),
        }
    }

    /// The part of a text that holds several events, if one does, for a text on its way to becoming
    /// records; [`for_each_event`](super::for_each_event) hands them out. The limits on a record
    /// are no limits here. `is_named`: all of it has a name already.
    pub fn several_in<'t>(&self, text: &'t str, is_named: bool) -> Option<&'t str> {
        let mut slots = vec![Raw::Absent; self.slots()];
        let shape = &mut Shape::default();
        let part = if self.extractor.extract(text, shape, &mut slots).is_err() {
            text
        } else {
            let nowhere = Record::of_value(text.as_bytes(), 0);
            match self.named_event(text, &nowhere, shape, &mut slots) {
                Ok(None) if !is_named => several::array_in(text, &self.rules.batch_fields)?,
                _ => return None,
            }
        };
        several::count(part).filter(|count| *count > 0).map(|_| part)
    }

    fn several<'a>(&self, text: &'a str, if_none: Reason, if_empty: Reason) -> Result<Decoded<'a>, Reason> {
        match several::count(text) {
            None => Err(if_none),
            Some(0) => Err(if_empty),
            Some(count) if count > self.rules.max_events_per_record => Err(Reason::TooManyEvents),
            Some(count) => {
                let mut events = Vec::with_capacity(count);
                several::for_each(text, |event| events.push(event));
                Ok(Decoded::Several(events))
            }
        }
    }

    /// The fields of an object are in the slots; finds its name. `None` when only the default is
    /// left.
    fn named_event<'a>(
        &'a self,
        text: &'a str,
        record: &Record<'a>,
        shape: &mut Shape,
        slots: &mut [Raw<'a>],
    ) -> Result<Option<Decoded<'a>>, Reason> {
        if self.extractor.event(slots).is_absent()
            && self.extractor.spec_version(slots).is_string()
            && cloudevents::decode_structured(&self.extractor, text, shape, slots)?
        {
            return self.cloud_event(slots).map(Some);
        }
        if let Some(name) = self.name_in_header(record) {
            self.extractor.set_event(slots, Raw::Text(Cow::Borrowed(name)));
            return Ok(Some(Decoded::Event));
        }
        for &field in &self.name_fields {
            let name = self.extractor.field(slots, field);
            if is_name(name) {
                if field != self.extractor.event_field() {
                    let name = name.clone();
                    self.extractor.set_event(slots, name);
                }
                return Ok(Some(Decoded::Event));
            }
        }
        Ok(None)
    }

    /// The name of a CloudEvent is its type and nothing else.
    fn cloud_event<'a>(&self, slots: &[Raw<'_>]) -> Result<Decoded<'a>, Reason> {
        if is_name(self.extractor.event(slots)) { Ok(Decoded::CloudEvent) } else { Err(Reason::NoEvent) }
    }

    fn name_in_header<'a>(&self, record: &Record<'a>) -> Option<&'a str> {
        let wanted = &self.rules.name_header;
        if wanted.is_empty() || !record.has_headers() {
            return None;
        }
        let (_, value) = record.headers().find(|(name, _)| name == wanted)?;
        std::str::from_utf8(value?).ok().filter(|name| !label::trim(name).is_empty())
    }

    fn default_name<'a>(&'a self, slots: &mut [Raw<'a>]) -> Result<Decoded<'a>, Reason> {
        if self.rules.name_default.is_empty() {
            return Err(Reason::NoEvent);
        }
        self.extractor.set_event(slots, Raw::Text(Cow::Borrowed(&self.rules.name_default)));
        Ok(Decoded::Event)
    }

    /// The epoch second of an event: of the first time field that is present, or of the record.
    /// `is_cloud_event` says what it was decoded as.
    pub fn second(&self, is_cloud_event: bool, slots: &[Raw<'_>], broker_ms: i64) -> Result<i64, Reason> {
        let fields = self.times(is_cloud_event).map(|field| self.extractor.field(slots, field));
        match event_time(fields, &self.time_rules)? {
            EventTime::At(second) => Ok(second),
            // Producers without a clock send 0, 1 or -1.
            EventTime::Absent if self.rules.require_time || broker_ms < BELIEVABLE_MS_MIN => Err(Reason::NoTime),
            // A clock in micro- or nanoseconds, say.
            EventTime::Absent if broker_ms > YEAR_9999_MS_MAX => Err(Reason::TimeUnreadable),
            EventTime::Absent => Ok(broker_ms / 1000),
        }
    }

    /// Where [`Self::second`] takes the time from.
    pub fn time_source<'e>(&'e self, is_cloud_event: bool, slots: &[Raw<'_>]) -> TimeSource<'e> {
        let present = |field: &FieldId| match self.extractor.field(slots, *field) {
            Raw::Absent | Raw::Null => false,
            Raw::Text(text) => !label::trim(text).is_empty(),
            _ => true,
        };
        let found = self.times(is_cloud_event).find(present);
        found.map_or(TimeSource::Record, |field| TimeSource::Field(&self.extractor.names()[field]))
    }

    fn times(&self, is_cloud_event: bool) -> impl Iterator<Item = FieldId> {
        self.time_fields[usize::from(!is_cloud_event)..].iter().copied()
    }
}

fn is_name(raw: &Raw<'_>) -> bool {
    matches!(raw, Raw::Text(name) if !label::trim(name).is_empty())
}
