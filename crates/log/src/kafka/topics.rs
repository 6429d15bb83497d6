//! Which topics are counted: those that are named, and those that match the pattern.
//!
//! The pattern is matched here and nowhere else, in the syntax of the `regex` crate. librdkafka and
//! the brokers only ever see names: each of them has a dialect of its own, and what one calls valid
//! the others match differently or not at all.

use std::collections::BTreeSet;

use regex::Regex;

use super::config::Config;
use traqq_core::error::ConfigError;

/// Topics that the brokers write themselves. Whoever counts the committed offsets writes one for
/// every batch, and so has always something to count.
const BROKERS_OWN: [&str; 4] =
    ["__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"];
const NAME_BYTES_MAX: usize = 249;

#[derive(Clone, Debug)]
pub struct Topics {
    named: BTreeSet<String>,
    pattern: Option<Regex>,
    /// Never matched by the pattern: each record of it would become another one.
    dead_letters: Option<String>,
}

impl Topics {
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let pattern = pattern(&config.topic_pattern)?;
        let named: BTreeSet<String> = config.topics.iter().cloned().collect();
        if named.is_empty() && pattern.is_none() {
            return Err("broker.kafka.topics is empty; name the topics to count, or set topic_pattern".into());
        }
        for name in &named {
            check_name("topics", name)?;
        }
        for (key, name) in [("dead_letter_topic", config.dead_letters()), ("ingest_topic", config.ingest_topic.clone())]
        {
            if let Some(name) = name {
                check_name(key, &name)?;
            }
        }
        let dead_letters = config.dead_letters();
        if dead_letters.as_ref().is_some_and(|topic| named.contains(topic)) {
            return Err("broker.kafka.dead_letter_topic is one of broker.kafka.topics; name another".into());
        }
        if dead_letters.is_some() && dead_letters == config.ingest_topic {
            return Err(
                "broker.kafka.ingest_topic is broker.kafka.dead_letter_topic, which is not counted; name another"
                    .into(),
            );
        }
        Ok(Self { named, pattern, dead_letters })
    }

    pub const fn named(&self) -> &BTreeSet<String> {
        &self.named
    }

    pub fn pattern(&self) -> Option<&str> {
        self.pattern.as_ref().map(Regex::as_str)
    }

    /// Of these topics the ones that are counted.
    pub fn counted<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> BTreeSet<String> {
        names
            .into_iter()
            .filter(|name| self.named.contains(*name) || self.is_matched(name))
            .map(str::to_owned)
            .collect()
    }

    fn is_matched(&self, name: &str) -> bool {
        self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(name))
            && !is_internal(name)
            && self.dead_letters.as_deref() != Some(name)
    }
}

/// Of the brokers, or of software beside them, which keeps to the same custom.
fn is_internal(name: &str) -> bool {
    name.starts_with("__")
}

fn pattern(text: &str) -> Result<Option<Regex>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.starts_with('^') {
        return Err(format!("broker.kafka.topic_pattern = {text:?} must begin with ^").into());
    }
    Regex::new(text).map(Some).map_err(|error| ConfigError::of(format!("broker.kafka.topic_pattern: {error}"), error))
}

/// What brokers accept as a topic's name, and we as one to count.
fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let wrong = if name.starts_with('^') {
        "is a pattern; it belongs in broker.kafka.topic_pattern"
    } else if name.is_empty() || name == "." || name == ".." || !name.bytes().all(is_plain) {
        "is no name of a topic: these have letters, digits, '.', '_' and '-'"
    } else if name.len() > NAME_BYTES_MAX {
        "is no name of a topic: these have 249 characters at most"
    } else if BROKERS_OWN.contains(&name) {
        "is written by the brokers themselves; name a topic of events"
    } else {
        return Ok(());
    };
    Err(format!("broker.kafka.{key}: {name:?} {wrong}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(pattern: &str, dead_letters: &str) -> Topics {
        let config = Config {
            topic_pattern: pattern.to_owned(),
            dead_letter_topic: dead_letters.to_owned(),
            ..Config::default()
        };
        Topics::new(&config).unwrap()
    }

    /// Classes, counted repetition, groups and flags: what the dialects of librdkafka and of the
    /// brokers read otherwise, or refuse.
    #[test]
    fn a_pattern_means_what_the_regex_crate_says() {
        for (pattern, matching, other) in [
            (r"^ev\d+$", vec!["ev1", "ev22"], vec!["ev", "evd", "xev1", "ev1x"]),
            (r"^ev\w{2}$", vec!["eva_", "ev12"], vec!["ev-1", "ev123"]),
            (r"^(shop|blog)\.events$", vec!["shop.events", "blog.events"], vec!["shopxevents", "news.events"]),
            (r"^(?i)EV\.", vec!["ev.a", "Ev.b"], vec!["eva"]),
            (r"^(?:a|b)+$", vec!["a", "abba"], vec!["abc"]),
            (r"^[[:alpha:]]+-[0-9]{4}$", vec!["log-2026"], vec!["log-26", "1-2026"]),
            ("^events", vec!["events", "events.de", "events2"], vec!["my.events"]),
            (r"^\bev\b", vec!["ev", "ev-1"], vec!["ev1"]),
            (r"^.*?x$", vec!["x", "aax"], vec!["xa"]),
        ] {
            let topics = topics(pattern, "discard");
            let all = matching.iter().chain(&other).copied();
            let expected: BTreeSet<String> = matching.iter().copied().map(str::to_owned).collect();
            assert_eq!(topics.counted(all), expected, "{pattern}");
        }
    }

    /// They would be counted, refused, written again and counted again, for ever.
    #[test]
    fn a_pattern_matches_no_internal_topic_and_not_that_of_dead_letters() {
        let topics = topics("^.*", "letters");
        let all = ["events", "letters", "letters2", "__consumer_offsets", "__share_group_state", "__mine", "_schemas"];
        let counted: Vec<String> = topics.counted(all).into_iter().collect();
        assert_eq!(counted, ["_schemas", "events", "letters2"]);
    }

    #[test]
    fn names_that_feed_on_themselves_or_cannot_be_are_refused() {
        let long = "t".repeat(250);
        for (topics, dead_letters, ingest, part) in [
            (vec!["a", "letters"], "letters", None, "dead_letter_topic is one of"),
            (vec!["a"], "letters", Some("letters"), "ingest_topic is broker.kafka.dead_letter_topic"),
            (vec!["__consumer_offsets"], "discard", None, "written by the brokers"),
            (vec!["a"], "__consumer_offsets", None, "written by the brokers"),
            (vec!["a"], "discard", Some("__transaction_state"), "ingest_topic: \"__transaction_state\""),
            (vec!["^ev.*"], "discard", None, "belongs in broker.kafka.topic_pattern"),
            (vec!["a b"], "discard", None, "no name of a topic"),
            (vec![""], "discard", None, "no name of a topic"),
            (vec![".."], "discard", None, "no name of a topic"),
            (vec![long.as_str()], "discard", None, "249"),
            (vec!["a"], "dead/letters", None, "dead_letter_topic: \"dead/letters\""),
            (vec![], "discard", None, "topics is empty"),
        ] {
            let config = Config {
                topics: topics.iter().copied().map(str::to_owned).collect(),
                dead_letter_topic: dead_letters.to_owned(),
                ingest_topic: ingest.map(str::to_owned),
                ..Config::default()
            };
            let error = Topics::new(&config).unwrap_err().to_string();
            assert!(error.contains(part), "{topics:?}: {error}");
        }
        let config = |pattern: &str| Config { topic_pattern: pattern.to_owned(), ..Config::default() };
        assert!(Topics::new(&config("ev.*")).unwrap_err().to_string().contains("must begin with ^"));
        assert!(Topics::new(&config("^ev(")).unwrap_err().to_string().contains("topic_pattern"));
    }
}
