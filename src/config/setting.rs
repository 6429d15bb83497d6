//! One setting from outside of a file: its key, and what its text means for that key.

use std::path::PathBuf;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider, Source};
use serde_json::Value as Json;

use super::Config;
use traqq_core::error::ConfigError;

/// Maps whose names are somebody else's: what comes behind such a key is one name, dots and all.
const NAMED: [&[&str]; 1] = [&["broker", "kafka", "properties"]];

/// A value for a key, and who said so.
pub(super) struct Setting {
    pub path: Vec<String>,
    value: Value,
    /// For errors and origins: `--set`, or the name of a variable.
    said_by: String,
}

impl Setting {
    pub fn new(path: Vec<String>, text: &str, said_by: String) -> Self {
        let value = value_of(&path, text);
        Self { path, value, said_by }
    }

    /// Text as it stands, whatever it looks like.
    pub fn verbatim(path: Vec<String>, text: String, said_by: String) -> Self {
        Self { path, value: Value::from(text), said_by }
    }
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.said_by.clone())
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        let nest = |value, name: &String| Value::from(Dict::from([(name.clone(), value)]));
        let value = self.path.iter().rev().fold(self.value.clone(), nest);
        let mut dict = value.into_dict().unwrap_or_default();
        NAMED.iter().for_each(|path| join_names(&mut dict, path));
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// A file, in which names with dots need no quotes either.
pub(super) struct Named<P>(pub P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        self.0.metadata()
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        let mut data = self.0.data()?;
        for dict in data.values_mut() {
            NAMED.iter().for_each(|path| join_names(dict, path));
        }
        Ok(data)
    }
}

/// The text of a file that has been read.
pub(super) struct ReadFile {
    pub file: PathBuf,
    pub text: String,
}

impl Provider for ReadFile {
    fn metadata(&self) -> Metadata {
        Metadata::from("TOML file", Source::File(self.file.clone()))
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Toml::string(&self.text).data()
    }
}

fn join_names(dict: &mut Dict, path: &[&str]) {
    let Some((first, rest)) = path.split_first() else {
        let nested = std::mem::take(dict);
        return nested.into_iter().for_each(|(name, value)| join_name(name, value, dict));
    };
    if let Some(Value::Dict(_, inner)) = dict.get_mut(*first) {
        join_names(inner, rest);
    }
}

fn join_name(name: String, value: Value, into: &mut Dict) {
    match value {
        Value::Dict(_, inner) => {
            inner.into_iter().for_each(|(rest, value)| join_name(format!("{name}.{rest}"), value, into));
        }
        value => _ = into.insert(name, value),
    }
}

/// `section.key`; a part with dots in it stands in quotes, as in a file.
pub(super) fn parse_key(text: &str) -> Result<Vec<String>, ConfigError> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let quote = rest.chars().next().filter(|first| ['"', '\''].contains(first));
        let (part, behind) = match quote {
            Some(quote) => {
                rest[1..].split_once(quote).ok_or_else(|| format!("{text:?}: the quote {quote} is not closed"))?
            }
            None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
        };
        parts.push(part.trim().to_owned());
        match behind.strip_prefix('.') {
            Some(behind) => rest = behind,
            None if behind.is_empty() => break,
            None => return Err(format!("{text:?}: a dot is missing behind a quote").into()),
        }
    }
    if parts.iter().any(String::is_empty) {
        return Err(format!("{text:?} is not a key; write it like worker.batch_events").into());
    }
    Ok(whole_names(parts))
}

/// The parts of a name whose dots are its own become one again.
fn whole_names(mut parts: Vec<String>) -> Vec<String> {
    if let Some(map) = NAMED.iter().find(|map| parts.len() > map.len() && parts.starts_with(&owned(map))) {
        let name = parts.split_off(map.len()).join(".");
        parts.push(name);
    }
    parts
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|part| (*part).to_owned()).collect()
}

/// What follows the key of a map of names, as a variable has it:
/// `BROKER__KAFKA__PROPERTIES__GROUP_INSTANCE_ID`.
pub(super) fn named(path: &[String]) -> Option<(Vec<String>, &[String])> {
    let map = NAMED.iter().find(|map| path.len() > map.len() && path.starts_with(&owned(map)))?;
    Some((owned(map), &path[map.len()..]))
}

/// What is at a key unless somebody says otherwise.
pub(super) fn default_at(path: &[String]) -> Option<Json> {
    let all = serde_json::to_value(Config::default()).expect("the configuration is plain data");
    path.iter().try_fold(all, |value, part| value.get(part).cloned())
}

/// The text's meaning is the key's: what is a string stays one though it looks like a number.
fn value_of(path: &[String], text: &str) -> Value {
    let plain = || text.parse::<Value>().unwrap_or_else(|_| Value::from(text));
    match default_at(path) {
        Some(Json::Array(_)) => list(text),
        Some(Json::Object(_)) => inline(text).unwrap_or_else(plain),
        // What has no default is a name, a file, a secret.
        Some(Json::String(_) | Json::Null) => string(plain(), text),
        None if named(path).is_some() => string(plain(), text),
        _ => plain(),
    }
}

/// Quotes may stand around it.
fn string(plain: Value, text: &str) -> Value {
    if plain.as_str().is_some() { plain } else { Value::from(text) }
}

/// `["a", "b"]`, or for short `a, b`.
fn list(text: &str) -> Value {
    if text.starts_with('[') {
        return inline(text).unwrap_or_else(|| text.parse::<Value>().unwrap_or_else(|_| Value::from(text)));
    }
    let parts = text.split(',').map(|part| part.trim().trim_matches('"')).filter(|part| !part.is_empty());
    Value::from(parts.map(Value::from).collect::<Vec<_>>())
}

/// A list or a table as TOML or JSON has it.
fn inline(text: &str) -> Option<Value> {
    if !text.starts_with(['[', '{']) {
        return None;
    }
    let toml = Toml::string(&format!("value = {text}")).data().ok();
    let toml = toml.and_then(|data| data.into_values().next()).and_then(|mut dict| dict.remove("value"));
    toml.or_else(|| Value::serialize(serde_json::from_str::<Json>(text).ok()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_may_have_quoted_parts() {
        let properties = |name: &str| owned(&["broker", "kafka", "properties", name]);
        for (key, path) in [
            ("worker.batch_events", owned(&["worker", "batch_events"])),
            ("worker.\"batch_events\"", owned(&["worker", "batch_events"])),
            ("broker.kafka.properties", owned(&["broker", "kafka", "properties"])),
            ("broker.kafka.properties.\"group.instance.id\"", properties("group.instance.id")),
            ("broker.kafka.properties.'group.instance.id'", properties("group.instance.id")),
            ("broker.kafka.properties.group.instance.id", properties("group.instance.id")),
            ("broker.kafka.properties.debug", properties("debug")),
        ] {
            assert_eq!(parse_key(key).as_ref(), Ok(&path), "{key}");
        }
        for wrong in ["", ".", "a.", ".a", "a..b", "a.\"b", "a.\"b\"c", "a.\"\""] {
            assert!(parse_key(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_key_decides_what_a_text_means() {
        let value = |key: &str, text: &str| value_of(&parse_key(key).unwrap(), text);
        for (key, text) in [
            ("store.redis.prefix", "2026"),
            ("broker.kafka.group", "true"),
            ("broker.kafka.ingest_topic", "7"),
            ("broker.kafka.properties.session.timeout.ms", "10000"),
            ("broker.kafka.properties.sasl.username", "[a"),
            ("store.redis.prefix", "{x}"),
        ] {
            assert_eq!(value(key, text).as_str(), Some(text), "{key}");
        }
        assert_eq!(value("store.redis.prefix", "\"a b\"").as_str(), Some("a b"));
        assert_eq!(value("worker.batch_events", "5").to_u128(), Some(5));
        let texts = |value: Value| -> Vec<String> {
            let items = value.into_array().unwrap();
            items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
        };
        for text in ["[\"a\", \"b\"]", "['a', 'b']", "[a,b]", "a,b", "a, b", "\"a\",\"b\""] {
            assert_eq!(texts(value("broker.kafka.topics", text)), ["a", "b"], "{text}");
        }
        assert_eq!(texts(value("broker.kafka.topics", "2026")), ["2026"]);
        assert_eq!(texts(value("broker.kafka.topics", "")), <[&str; 0]>::default());
        for text in [
            "[{ key = \"event\", add_key = \"amount\" }]",
            "[{key=event,add_key=amount}]",
            "[{\"key\": \"event\", \"add_key\": \"amount\"}]",
        ] {
            let sums = value("mapping.add_value", text).into_array().unwrap();
            assert_eq!(sums[0].find_ref("add_key").and_then(Value::as_str), Some("amount"), "{text}");
        }
    }
}
