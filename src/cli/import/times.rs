//! What gives an event of a file its time. One without would be counted as of now, for good.

use serde_json::{Map, Value};

use traqq_core::decode::EventRules;
use traqq_core::decode::{
    CLOUD_EVENT_TIME, Decoded, EventReader, Raw, Reason, Shape, TimeSource, for_each_event, trim,
};
use traqq_core::error::ErrorLine;
use traqq_core::model::Record;

/// Names that are told when none of them is a time.
const NAMES_MAX: usize = 20;
/// No time is longer.
const TIME_BYTES_MAX: usize = 64;
/// How a CloudEvent calls its time.
const CLOUD_EVENT_MEMBER: &str = "time";
/// Epoch seconds of 2000 and 2100.
const PLAUSIBLE: std::ops::Range<f64> = 946_684_800.0..4_102_444_800.0;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Events must have a time.
    Required,
    /// It is in this field.
    Field(String),
    /// Those without are of now.
    Now,
}

pub struct Times {
    mode: Mode,
    time_fields: Vec<String>,
    reader: EventReader,
    shape: Shape,
    /// An event was seen, so that it is known whether the file has times.
    has_begun: bool,
}

/// Why an event is not sent.
#[derive(PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The others may be.
    Event(String),
    /// None in this file can be.
    File(String),
}

impl Times {
    /// `rules` are those of the server.
    pub fn new(mode: Mode, rules: &EventRules) -> Self {
        let given = if let Mode::Field(name) = &mode { Some(&**name) } else { None };
        let (reader, time_fields) = (EventReader::new(rules, given), rules.time_fields.clone());
        Self { mode, time_fields, reader, shape: Shape::default(), has_begun: false }
    }

    /// The events of a line, if it holds several, each of which is to have a line of its own.
    pub fn split<'t>(&mut self, line: &'t [u8]) -> Option<Vec<&'t str>> {
        let mut slots = vec![Raw::Absent; self.reader.slots()];
        let may_be_several = matches!(
            self.reader.read(&Record::of_value(line.trim_ascii(), 0), &mut self.shape, &mut slots),
            Ok(Decoded::Several(_))
                | Err(Reason::NotAnObject
                    | Reason::NoEvent
                    | Reason::InvalidJson
                    | Reason::TooLarge
                    | Reason::TooDeep
                    | Reason::TooManyEvents)
        );
        let text = str::from_utf8(line).ok().filter(|_| may_be_several)?;
        let part = self.reader.several_in(text.trim(), false)?;
        let mut events = Vec::new();
        for_each_event(part, |event| events.push(event));
        Some(events)
    }

    /// Sees to it that an event, which is a line, has a time. `columns` are those of its file, if
    /// it has some.
    pub fn apply(&mut self, event: &mut Vec<u8>, columns: &[String]) -> Result<(), Refusal> {
        if self.mode == Mode::Now {
            return Ok(());
        }
        let has_begun = self.has_begun;
        let result = self.judge(event);
        let why = match result {
            Ok(None) => return Ok(()),
            Ok(Some(member)) => {
                let end = event.iter().rposition(|byte| *byte == b'}').unwrap_or(event.len());
                event.truncate(end);
                event.extend_from_slice(format!(",{member}}}\n").as_bytes());
                return Ok(());
            }
            Err(why) if has_begun => return Err(Refusal::Event(why.to_string())),
            Err(why) => why,
        };
        let members: Map<String, Value> = serde_json::from_slice(event).unwrap_or_default();
        let names: Vec<&str> = match columns {
            [] => members.keys().map(String::as_str).collect(),
            columns => columns.iter().map(String::as_str).filter(|name| !name.is_empty()).collect(),
        };
        let wanted = match &self.mode {
            Mode::Field(name) => std::slice::from_ref(name),
            _ => &self.time_fields[..],
        };
        // It is there, and only this event has nothing in it.
        let is_wanted = |name: &&str| wanted.iter().any(|field| field == name || field.split('.').next() == Some(name));
        if names.iter().any(is_wanted) {
            return Err(Refusal::Event(why.to_string()));
        }
        Err(Refusal::File(refusal(&self.mode, wanted, &names, &members)))
    }

    /// The member that the event needs to have its time, if it needs one.
    fn judge(&mut self, event: &[u8]) -> Result<Option<String>, ErrorLine> {
        let record = Record::of_value(event.trim_ascii(), 0);
        let mut slots = vec![Raw::Absent; self.reader.slots()];
        // What is wrong with one that cannot be read is for the server to say.
        let Ok(decoded) = self.reader.read(&record, &mut self.shape, &mut slots) else { return Ok(None) };
        self.has_begun = true;
        let is_cloud_event = decoded == Decoded::CloudEvent;
        let value = |name: &str| {
            let field = self.reader.names().iter().position(|known| **known == *name);
            field.map_or(&Raw::Absent, |field| self.reader.field(&slots, field))
        };
        let Mode::Field(name) = &self.mode else {
            let has_time = self.reader.time_source(is_cloud_event, &slots) != TimeSource::Record;
            let fields = self.time_fields.join(", ");
            return if has_time {
                Ok(None)
            } else {
                Err(format!("the event has no time; it would be in {fields}").into())
            };
        };
        let cloud_event_time = is_cloud_event && is_there(value(CLOUD_EVENT_TIME));
        let is_its_own = is_cloud_event && (name == CLOUD_EVENT_MEMBER || name == CLOUD_EVENT_TIME);
        if is_its_own && cloud_event_time {
            return Ok(None);
        }
        let time = match value(name) {
            Raw::Number(text) => text.clone().into_owned(),
            Raw::Text(text) if is_there(value(name)) => serde_json::to_string(text).expect("a string is JSON"),
            Raw::Absent | Raw::Null | Raw::Text(_) => return Err(format!("the event has no {name}").into()),
            Raw::Bool(_) | Raw::Container => return Err(format!("{name} is no time").into()),
        };
        if time.len() > TIME_BYTES_MAX {
            return Err(format!("{name} is no time: it has more than {TIME_BYTES_MAX} bytes").into());
        }
        if self.time_fields.is_empty() && !is_cloud_event {
            return Err("this server looks at no field for the time (events.time_fields is empty)".into());
        }
        // The field that is looked at before all others, so that no other one decides.
        let first = self.time_fields.first().map_or(CLOUD_EVENT_MEMBER, String::as_str);
        let (target, is_taken) = match is_cloud_event {
            true => (CLOUD_EVENT_MEMBER, cloud_event_time),
            false if first == name => return Ok(None),
            false => (first, is_there(value(first))),
        };
        if is_taken {
            return Err(format!("the event has a time in {target} already, besides {name}").into());
        }
        let target = serde_json::to_string(target).expect("a string is JSON");
        Ok(Some(format!("{target}:{time}")))
    }
}

/// As `decode` sees it.
fn is_there(raw: &Raw<'_>) -> bool {
    match raw {
        Raw::Absent | Raw::Null => false,
        Raw::Text(text) => !trim(text).is_empty(),
        Raw::Bool(_) | Raw::Number(_) | Raw::Container => true,
    }
}

fn refusal(mode: &Mode, wanted: &[String], names: &[&str], members: &Map<String, Value>) -> String {
    let mut list = names.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_MAX {
        list.push_str(", ...");
    }
    let wanted = wanted.join(", ");
    let mut text = match mode {
        Mode::Field(_) => format!("its events have no {wanted}; they have {list}"),
        _ => format!("its events have no time: there is none of {wanted}; they have {list}"),
    };
    match time_among(names, members) {
        Some(name) => text.push_str(&format!(". {name} looks like a time, and --time-field {name} takes it for one")),
        None => text.push_str(". --time-field NAME takes another field for the time"),
    }
    text + "; --now counts events without a time as of now"
}

/// The field that looks most like a time, by its name and by what is in it.
fn time_among<'n>(names: &[&'n str], members: &Map<String, Value>) -> Option<&'n str> {
    let score = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let is_called = ["time", "date", "stamp", "created", "when"].iter().any(|part| lower.contains(part))
            || name.ends_with("_at")
            || name.ends_with("At")
            || ["ts", "at", "day"].contains(&&*lower);
        let (has_date, has_epoch) = match members.get(name) {
            Some(Value::String(text)) => (is_date(text), is_epoch(text)),
            Some(Value::Number(number)) => (false, is_epoch(&number.to_string())),
            Some(_) => return 0,
            None => (false, false),
        };
        // Any number may be one of seconds.
        u8::from(is_called) + 2 * u8::from(has_date || (is_called && has_epoch))
    };
    let best = names.iter().rev().max_by_key(|name| score(name))?;
    (score(best) > 0).then_some(best)
}

fn is_date(text: &str) -> bool {
    let shape: String = text.trim().chars().take(10).map(|c| if c.is_ascii_digit() { 'd' } else { c }).collect();
    ["dddd-dd-dd", "dddd/dd/dd", "dd/dd/dddd", "dd.dd.dddd", "dd-dd-dddd"].contains(&&*shape)
}

fn is_epoch(text: &str) -> bool {
    let units = [1.0, 1e3, 1e6, 1e9];
    text.trim().parse::<f64>().is_ok_and(|number| units.iter().any(|unit| PLAUSIBLE.contains(&(number / unit))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str) -> Mode {
        Mode::Field(name.to_owned())
    }

    fn times(mode: Mode) -> Times {
        Times::new(mode, &EventRules::default())
    }

    fn apply(times: &mut Times, event: &str, columns: &[&str]) -> Result<String, Refusal> {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        let mut event = format!("{event}\n").into_bytes();
        times.apply(&mut event, &columns)?;
        Ok(String::from_utf8(event).unwrap().trim_end_matches('\n').to_owned())
    }

    fn event(result: Result<String, Refusal>) -> String {
        match result {
            Err(Refusal::Event(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn file(result: Result<String, Refusal>) -> String {
        match result {
            Err(Refusal::File(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    const CLOUD_EVENT: &str = r#"{"specversion":"1.0","type":"buy","source":"s","id":"1","data":{"created":5}}"#;

    /// A week in a column `created` was counted today, and exit code 0 said that all was well.
    #[test]
    fn a_file_without_times_is_refused() {
        let why = file(apply(&mut times(Mode::Required), r#"{"event":"buy","created":"2026-11-21"}"#, &[]));
        assert_eq!(
            why,
            "its events have no time: there is none of ts, timestamp, time; they have created, event. created looks like a \
             time, and --time-field created takes it for one; --now counts events without a time as of now"
        );
        let why = file(apply(&mut times(field("creatd")), r#"{"event":"buy","created":5}"#, &["event", "created", ""]));
        assert!(why.starts_with("its events have no creatd; they have event, created. created looks"), "{why}");
        let why = file(apply(&mut times(Mode::Required), CLOUD_EVENT, &[]));
        assert!(why.contains("--time-field NAME"), "{why}");
        for (mode, events) in [
            (Mode::Now, &[r#"{"event":"buy"}"#, "{"][..]),
            (Mode::Required, &[r#"{"event":"buy","time":1}"#, r#"{"event":"a","timestamp":"x","ts":null}"#, "[]", "{"]),
            (Mode::Required, &[&CLOUD_EVENT.replace("\"id\"", "\"time\":\"x\",\"id\"")]),
        ] {
            for event in events {
                assert_eq!(apply(&mut times(mode.clone()), event, &[]).as_deref(), Ok(*event));
            }
        }
    }

    #[test]
    fn an_event_without_a_time_among_others_is_rejected() {
        let mut times = times(Mode::Required);
        assert!(apply(&mut times, r#"{"event":"a","ts":1}"#, &[]).is_ok());
        assert_eq!(
            event(apply(&mut times, r#"{"event":"a"}"#, &[])),
            "the event has no time; it would be in ts, timestamp, time"
        );
        assert!(apply(&mut times, r#"{"event":"a","ts":1}"#, &[]).is_ok());
        // The file has a column for it, which is empty in the first row.
        let mut times = Times::new(Mode::Required, &EventRules::default());
        event(apply(&mut times, r#"{"event":"a"}"#, &["event", "ts"]));
    }

    #[test]
    fn a_field_becomes_the_time() {
        let mut created = times(field("created"));
        for (given, stamped) in [
            (r#"{"event":"a","created":5}"#, r#"{"event":"a","created":5,"ts":5}"#),
            (
                "{\"created\":\"\\u00e9 1\",\"event\":\"a\",\"ts\":null} \r",
                "{\"created\":\"\\u00e9 1\",\"event\":\"a\",\"ts\":null,\"ts\":\"é 1\"}",
            ),
            (r#"{"event":"a","created":1.5e9,"time":7}"#, r#"{"event":"a","created":1.5e9,"time":7,"ts":1.5e9}"#),
            (CLOUD_EVENT, &(CLOUD_EVENT.trim_end_matches('}').to_owned() + "}" + r#","time":5}"#)),
        ] {
            assert_eq!(apply(&mut created, given, &[]).as_deref(), Ok(stamped));
        }
        for (given, why) in [
            (r#"{"event":"a"}"#, "the event has no created"),
            (r#"{"event":"a","created":" "}"#, "the event has no created"),
            (r#"{"event":"a","created":{}}"#, "created is no time"),
            (r#"{"event":"a","created":5,"ts":6}"#, "the event has a time in ts already, besides created"),
        ] {
            assert_eq!(event(apply(&mut created, given, &[])), why);
        }
        let late = CLOUD_EVENT.replace("\"id\"", "\"time\":\"x\",\"id\"");
        assert!(event(apply(&mut created, &late, &[])).contains("in time already"));
        assert_eq!(apply(&mut times(field("time")), &late, &[]), Ok(late));
        let unchanged = r#"{"event":"a","ts":5,"time":6}"#;
        assert_eq!(apply(&mut times(field("ts")), unchanged, &[]).as_deref(), Ok(unchanged));
        assert!(event(apply(&mut times(field("time")), unchanged, &[])).contains("in ts already"));
        let nested = r#"{"event":"a","meta":{"at":5}}"#;
        assert_eq!(
            apply(&mut times(field("meta.at")), nested, &[]).unwrap(),
            r#"{"event":"a","meta":{"at":5},"ts":5}"#
        );
    }

    #[test]
    fn a_line_of_several_events_is_split() {
        let mut times = times(Mode::Now);
        for (line, events) in [
            (&b"[{\"event\":\"a\"}, {}]\n"[..], Some(vec!["{\"event\":\"a\"}", "{}"])),
            (b"{\"batch\":[1]}\r\n", Some(vec!["1"])),
            (b"{}{}", Some(vec!["{}", "{}"])),
            (b"{\"event\":\"a\",\"batch\":[1]}", None),
            (b"[]", None),
            (b"{", None),
            (b"\xff", None),
        ] {
            assert_eq!(times.split(line), events);
        }
    }

    #[test]
    fn the_field_that_looks_like_a_time_is_proposed() {
        for (event, best) in [
            (r#"{"event":"a","created":5,"day":"2026-11-21 10:00"}"#, Some("day")),
            (r#"{"event":"a","user":1700000000,"seen_at":1700000000000}"#, Some("seen_at")),
            (r#"{"event":"update","user":1700000000}"#, None),
            (r#"{"event":"a","when":"21.11.2026","until":"22.11.2026"}"#, Some("when")),
        ] {
            let members: Map<String, Value> = serde_json::from_str(event).unwrap();
            let names: Vec<&str> = members.keys().map(String::as_str).collect();
            assert_eq!(time_among(&names, &members), best, "{event}");
        }
    }
}
