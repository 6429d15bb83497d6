//! What holds, where each value came from, and what of it is not shown.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::environment::PREFIX;
use super::load::{FLAG, Loaded};
use traqq_log::kafka;

/// What the name of a secret has in it.
const HIDDEN: [&str; 2] = ["pass", "secret"];
/// Values of a client, which are hidden unless the property is known to be no secret: a misspelled
/// one may be.
const PROPERTIES: &str = "broker.kafka.properties.";
/// Lists of hosts and addresses without a scheme.
const ADDRESSES: [&str; 4] = ["broker.kafka.brokers", "broker.nats.servers", "server.http", "server.tcp"];
/// Set by the file that `NAME_FILE` points at, or by `NAME` itself, and never shown.
pub(super) const SECRETS: [&str; 9] = [
    "store.redis.url",
    "store.redis.password",
    "store.redis.sentinel_password",
    "server.token",
    "server.read_token",
    "server.write_token",
    "broker.nats.password",
    "broker.nats.token",
    "broker.nats.nkey",
];

pub(super) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key)
        || HIDDEN.iter().any(|part| key.contains(part))
        || key.strip_prefix(PROPERTIES).is_some_and(|name| !kafka::Config::shows_property(name))
}

impl Loaded {
    fn metadata(&self, path: &[String]) -> Option<&figment::Metadata> {
        let (first, rest) = path.split_first().expect("a key has a name");
        let value = self.figment.find_value(first).ok();
        // By its parts: a name may have dots.
        let value = value.and_then(|value| {
            rest.iter().try_fold(value, |value, part| value.into_dict().and_then(|mut dict| dict.remove(part)))
        });
        value.and_then(|value| self.figment.get_metadata(value.tag()))
    }

    /// The file that a value came from.
    pub(super) fn file_of(&self, path: &[String]) -> Option<PathBuf> {
        self.metadata(path)?.source.as_ref()?.file_path().map(Path::to_path_buf)
    }

    /// Where a value came from: the file, the environment, a flag, or nowhere.
    fn origin(&self, path: &[String]) -> String {
        let metadata = self.metadata(path);
        match metadata.map(|metadata| (&metadata.source, metadata.name.as_ref())) {
            Some((Some(figment::Source::File(file)), _)) => file.display().to_string(),
            Some((_, FLAG)) => "flag".to_owned(),
            Some((_, name)) if name.to_ascii_uppercase().starts_with(PREFIX) => "environment".to_owned(),
            Some((_, name)) if name.contains("TOML") => "starter".to_owned(),
            _ => "default".to_owned(),
        }
    }

    /// Every value with its key and origin, secrets hidden.
    pub fn values(&self) -> Vec<(String, String, String)> {
        let value = serde_json::to_value(&self.config).expect("the configuration is plain data");
        let mut leaves = Vec::new();
        flatten(&[], &value, &mut leaves);
        leaves
            .into_iter()
            .map(|(path, value)| {
                let key = path.join(".");
                let is_set = !matches!(value.as_str(), "\"\"" | "null");
                let shown =
                    if is_secret(&key) && is_set || has_more(&key, &value) { hide(&key, &value) } else { value };
                (key, shown, self.origin(&path))
            })
            .collect()
    }
}

/// Whether it holds an address with user information or parameters, which may stand where none
/// belong.
fn has_more(key: &str, value: &str) -> bool {
    let address = value.split_once("://").map(|(_, rest)| rest).or(ADDRESSES.contains(&key).then_some(value));
    address.is_some_and(|address| address.contains(['@', '?', '#']))
}

/// A URL is shown without its user information, its query, and what is behind a `#` if that is no
/// primary's name.
fn hide(key: &str, value: &str) -> String {
    let value = value.trim_matches('"');
    let Some((scheme, rest)) = value.split_once("://").filter(|_| key.ends_with("url")) else {
        return "\"********\"".to_owned();
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    // A password with a question mark looks like a query; a path has no password in front of it.
    let is_path = scheme == "unix" && rest.starts_with('/');
    if !is_path && query.is_some_and(|query| query.contains('@')) {
        return format!("\"{scheme}://********\"");
    }
    let place = place.rsplit_once('@').map_or_else(|| place.to_owned(), |(_, place)| format!("********@{place}"));
    let place = match place.split_once('#') {
        Some((place, name)) if !scheme.ends_with("-sentinel") || name.contains('#') => format!("{place}#********"),
        _ => place,
    };
    let query = if query.is_some() { "?********" } else { "" };
    format!("\"{scheme}://{place}{query}\"")
}

/// Every value with the path to it; an empty section is one.
pub(super) fn flatten(path: &[String], value: &Json, leaves: &mut Vec<(Vec<String>, String)>) {
    match value {
        Json::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                flatten(&[path, std::slice::from_ref(name)].concat(), member, leaves);
            }
        }
        _ => leaves.push((path.to_vec(), value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::{load, load_text, load_with};

    #[test]
    fn secrets_in_wrong_places_do_not_show() {
        for key in ["store.redis", "store.redis.lanes", "broker.kafka.properties", "broker.nats.servers", "server.http"]
        {
            let value = "redis://:hush@h:6379".to_owned();
            let shown = match load(None, &[(key.to_owned(), value)]) {
                Ok(loaded) => format!("{:?}", loaded.values()),
                Err(error) => error.to_string(),
            };
            assert!(!shown.contains("hush"), "{shown}");
        }
        let loaded = load_text("[broker.nats]\nservers = [\"nats://app:hush@nats:4222\"]\n").unwrap();
        assert!(!loaded.values().iter().any(|(_, value, _)| value.contains("hush")));
        let error = load(None, &[("store.redis".to_owned(), "redis://h".to_owned())]).err().unwrap();
        assert_eq!(error.to_string(), "--set: store.redis: it is a section; set the keys in it");
    }

    #[test]
    fn keys_of_clients_do_not_show() {
        let text = "[broker.kafka]\ntopics = [\"t\"]\n[broker.kafka.properties]\n\"ssl.key.pem\" = \"hush\"\n\"sasl.oauthbearer.config\" = \"hush\"\n";
        let loaded = load_text(text).unwrap();
        assert!(!loaded.values().iter().any(|(_, value, _)| value.contains("hush")));
    }

    /// What is not known to be harmless is hidden: a name list of secrets never had all of them.
    #[test]
    fn properties_of_clients_are_hidden_unless_they_are_known() {
        for name in [
            "sasl.jaas.config",
            "sasl.password",
            "SASL.PASSWORD",
            "sasl_password",
            "ssl.key.pem",
            "ssl.keystore.password",
            "sasl.oauthbearer.extensions",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.kerberos.principal",
            "plugin.library.paths",
            "of.a.later.version",
            "session.timeout",
        ] {
            let text = format!("[broker.kafka.properties]\n{name:?} = \"hush\"\n");
            let shown = load_text(&text).unwrap().values();
            assert!(!shown.iter().any(|(_, value, _)| value.contains("hush")), "{name}");
        }
        for name in ["session.timeout.ms", "sasl.username", "ssl.ca.location", "client.rack"] {
            let shown = load_text(&format!("[broker.kafka.properties]\n{name:?} = \"open\"\n")).unwrap().values();
            assert!(shown.iter().any(|(_, value, _)| value == "\"open\""), "{name}");
        }
    }

    #[test]
    fn secrets_do_not_show_whatever_they_look_like() {
        let properties = "[broker.kafka]\ntopics = [\"t\"]\n[broker.kafka.properties]\n";
        let key = "sasl.oauthbearer.assertion.private.key.passphrase";
        let loaded = load_text(&format!("{properties}\"{key}\" = \"hush\"\n")).unwrap();
        assert!(!loaded.values().iter().any(|(_, value, _)| value.contains("hush")));
        for (url, shown) in [
            ("unix:///run/redis.sock?db=1&pass=hush", "unix:///run/redis.sock?********"),
            ("unix:///run/redis.sock?pass=p@hush", "unix:///run/redis.sock?********"),
            ("unix://user:hush?x@host", "unix://********"),
            ("redis://host/1#hush", "redis://host/1#********"),
            ("redis-sentinel://user:hush@a,b/1#main", "redis-sentinel://********@a,b/1#main"),
            ("redis://u:hush@h:1/2?protocol=3", "redis://********@h:1/2?********"),
            ("redis://u:hu?sh@h:1/2", "redis://********"),
            ("redis://h:1/2", "redis://h:1/2"),
        ] {
            let loaded = load_text(&format!("[store.redis]\nurl = \"{url}\"\n")).unwrap();
            let (_, value, _) = loaded.values().into_iter().find(|(key, ..)| key == "store.redis.url").unwrap();
            assert_eq!(value, format!("\"{shown}\""));
        }
        // Numbers, where quotes were forgotten.
        for text in [
            "[store.redis]\npassword = 8675309\n",
            "[server]\ntoken = 8675309\n",
            &format!("{properties}\"sasl.password\" = 8675309\n"),
            &format!("{properties}\"of.a.plugin\" = 8675309\n"),
        ] {
            let error = load_text(text).err().unwrap();
            assert!(
                error.to_string().contains("it must be a string, in quotes") && !error.to_string().contains("8675309"),
                "{error}"
            );
        }
        let error = load_text("[store.redis]\npassword = hush\n").err().unwrap();
        assert!(
            error.to_string().contains("line 2, column 12: invalid string") && !error.to_string().contains("hush"),
            "{error}"
        );
        let loaded = load(None, &[("store.redis.password".to_owned(), "8675309".to_owned())]).unwrap();
        assert_eq!(loaded.config.store.redis.password.0, "8675309");
    }

    /// Values, lists, maps and names with dots, from each place that they may come from.
    #[test]
    fn every_value_has_its_type_and_origin_wherever_it_was_set() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("traqq.toml");
        let text = |properties: &str| {
            format!(
                "[broker.kafka]\ntopics = [\"t\"]\n[broker.kafka.properties]\n{properties}\n[buckets.retention]\nh = \"7d\"\n"
            )
        };
        let group = ("broker.kafka.properties.group.instance.id", "\"x\"");
        let in_file = file.display().to_string();
        let of_properties = "TRAQQ_BROKER__KAFKA__PROPERTIES";
        // What the file, a variable and a flag say; then the key, its value and its origin.
        type Variable<'a> = Option<(String, &'a str)>;
        type Flag<'a> = Option<(&'a str, &'a str)>;
        let cases: Vec<(&str, Variable<'_>, Flag<'_>, &str, &str, &str)> = vec![
            ("\"group.instance.id\" = \"x\"", None, None, group.0, group.1, &in_file),
            ("group.instance.id = \"x\"", None, None, group.0, group.1, &in_file),
            ("", Some((format!("{of_properties}__GROUP_INSTANCE_ID"), "x")), None, group.0, group.1, "environment"),
            ("", Some((format!("{of_properties}__group.instance.id"), "x")), None, group.0, group.1, "environment"),
            (
                "",
                Some((of_properties.to_owned(), "{\"group.instance.id\" = \"x\"}")),
                None,
                group.0,
                group.1,
                "environment",
            ),
            (
                "",
                Some((of_properties.to_owned(), "{\"group.instance.id\": \"x\"}")),
                None,
                group.0,
                group.1,
                "environment",
            ),
            (
                "",
                Some((of_properties.to_owned(), "{group.instance.id = \"x\"}")),
                None,
                group.0,
                group.1,
                "environment",
            ),
            ("", None, Some(("broker.kafka.properties.\"group.instance.id\"", "x")), group.0, group.1, "flag"),
            ("", None, Some(("broker.kafka.properties.group.instance.id", "x")), group.0, group.1, "flag"),
            ("", None, Some(("broker.kafka.properties", "{\"group.instance.id\" = \"x\"}")), group.0, group.1, "flag"),
            ("\"group.instance.id\" = \"w\"", None, Some((group.0, "x")), group.0, group.1, "flag"),
            (
                "",
                None,
                Some(("broker.kafka.properties.session.timeout.ms", "9000")),
                "broker.kafka.properties.session.timeout.ms",
                "\"9000\"",
                "flag",
            ),
            (
                "",
                Some((format!("{of_properties}__SESSION_TIMEOUT_MS"), "9000")),
                None,
                "broker.kafka.properties.session.timeout.ms",
                "\"9000\"",
                "environment",
            ),
            ("", None, Some(("broker.kafka.topics", "a,b")), "broker.kafka.topics", "[\"a\",\"b\"]", "flag"),
            (
                "",
                Some(("TRAQQ_BROKER__KAFKA__TOPICS".to_owned(), "[a, b]")),
                None,
                "broker.kafka.topics",
                "[\"a\",\"b\"]",
                "environment",
            ),
            ("", None, None, "broker.kafka.topics", "[\"t\"]", &in_file),
            ("", None, Some(("mapping.add", "[\"event\", \"geo\"]")), "mapping.add", "[\"event\",\"geo\"]", "flag"),
            (
                "",
                None,
                Some(("mapping.add_value", "[{ key = \"event\", add_key = \"amount\" }]")),
                "mapping.add_value",
                "[{\"add_key\":\"amount\",\"key\":\"event\"}]",
                "flag",
            ),
            (
                "",
                Some(("TRAQQ_EVENTS__TIME_FIELDS".to_owned(), "at")),
                None,
                "events.time_fields",
                "[\"at\"]",
                "environment",
            ),
            ("", None, None, "buckets.retention.h", "\"7d\"", &in_file),
            (
                "",
                Some(("TRAQQ_BUCKETS__RETENTION__D".to_owned(), "9d")),
                None,
                "buckets.retention.d",
                "\"9d\"",
                "environment",
            ),
            (
                "",
                Some(("TRAQQ_STORE__REDIS__PREFIX".to_owned(), "2026")),
                None,
                "store.redis.prefix",
                "\"2026\"",
                "environment",
            ),
            ("", None, Some(("worker.batch_events", "7")), "worker.batch_events", "7", "flag"),
            ("", None, Some(("worker.batch_events", "100000")), "worker.batch_events", "100000", "flag"),
            ("", None, None, "worker.batch_events", "100000", "default"),
            ("", Some(("traqq_server__tcp".to_owned(), "off")), None, "server.tcp", "\"off\"", "environment"),
        ];
        for (properties, variable, flag, key, value, origin) in cases {
            std::fs::write(&file, text(properties)).unwrap();
            let what = format!("{properties} {variable:?} {flag:?}");
            let variables = variable.map(|(name, value)| (name, Some(value.to_owned()))).into_iter();
            let flags: Vec<_> = flag.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let loaded = load_with(Some(&file), variables, &flags).unwrap_or_else(|error| panic!("{what}: {error}"));
            let found = loaded.values().into_iter().find(|(found, ..)| found == key);
            assert_eq!(found, Some((key.to_owned(), value.to_owned(), origin.to_owned())), "{what}");
        }
    }

    #[test]
    fn secrets_of_the_environment_and_of_flags_do_not_show() {
        for name in ["TRAQQ_SERVER__TOKEN", "traqq_server__token", "TRAQQ_BROKER__KAFKA__PROPERTIES__SASL_PASSWORD"] {
            let variables = [(name.to_owned(), Some("hush".to_owned()))].into_iter();
            let loaded = load_with(None, variables, &[]).unwrap_or_else(|error| panic!("{error}"));
            let values = loaded.values();
            assert!(!format!("{values:?}").contains("hush"), "{name}");
            assert!(
                values.iter().any(|(_, value, origin)| value.contains("****") && origin == "environment"),
                "{name}"
            );
        }
    }
}
