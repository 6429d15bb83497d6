//! `TRAQQ_SECTION__KEY`, and what comes close to it: a variable that sets nothing must not look as
//! if it did.

use std::collections::BTreeMap;

use super::Config;
use super::load::SecretFile;
use super::setting::{Setting, default_at, named};
use super::show::{SECRETS, flatten, is_secret};
use traqq_core::error::ConfigError;

pub(super) const PREFIX: &str = "TRAQQ_";
const FILE: &str = "_FILE";
/// Read by the command line, and by the scripts that test traqq and start it.
const OTHERS: [&str; 11] = [
    "BINARY",
    "CHROMIUM",
    "CONFIG",
    "DENY",
    "MODEL",
    "PYTHON",
    "REDIS_SERVER",
    "SCHEDULES",
    "SEED",
    "SERVERS_CACHE",
    "TIMES",
];
/// What the name of a client's property that is a secret ends with, if it may come from a file.
const PROPERTIES_FROM_FILES: [&str; 4] = ["password", "passphrase", "secret", ".pem"];

/// What the environment says.
#[derive(Default)]
pub(super) struct Environment {
    pub settings: Vec<Setting>,
    /// Variables that set nothing, and resemble none that does.
    pub warnings: Vec<String>,
    /// Files that variables name, with secrets in them.
    pub secret_files: Vec<SecretFile>,
}

/// What a variable is for.
enum Meaning {
    Text(Vec<String>),
    /// The value is in the file.
    File(Vec<String>),
    /// Nothing of ours.
    Other,
    /// Nothing at all; the name of the nearest that is something, and whether it must be meant.
    Unknown(Option<(String, bool)>),
}

/// Reads variables: name and value, `None` if that is not UTF-8.
pub(super) fn read(variables: impl Iterator<Item = (String, Option<String>)>) -> Result<Environment, ConfigError> {
    let mut environment = Environment::default();
    // By key, so that what is said twice is noticed.
    let mut said: BTreeMap<Vec<String>, String> = BTreeMap::new();
    for (name, value) in variables {
        let upper = name.to_ascii_uppercase();
        let Some(rest) = upper.strip_prefix(PREFIX) else { continue };
        let meaning = meaning(rest, &name, value.as_deref().unwrap_or_default());
        let (path, is_file) = match meaning {
            Meaning::Other => continue,
            Meaning::Unknown(nearest) => {
                match unknown(&name, nearest, rest.contains("__")) {
                    Ok(warning) => environment.warnings.push(warning),
                    Err(error) => return Err(error),
                }
                continue;
            }
            Meaning::Text(path) => (path, false),
            Meaning::File(path) => (path, true),
        };
        let value = value.ok_or_else(|| format!("{name} is not UTF-8"))?;
        if let Some(other) = said.insert(path.clone(), name.clone()) {
            return Err(format!("{other} and {name} are both set; keep one").into());
        }
        let key = path.join(".");
        environment.settings.push(if is_file {
            let text = std::fs::read_to_string(&value)
                .map_err(|error| ConfigError::of(format!("{name} = {value}: {error}"), error))?;
            environment.secret_files.push((name.clone(), value.into()));
            Setting::verbatim(path, text.trim_end_matches(['\r', '\n']).to_owned(), name)
        } else if is_secret(&key) {
            Setting::verbatim(path, value, name)
        } else {
            Setting::new(path, &value, name)
        });
    }
    Ok(environment)
}

/// `rest` is the name behind the prefix, in capitals.
fn meaning(rest: &str, name: &str, value: &str) -> Meaning {
    if let Some(path) = path_of(rest) {
        return Meaning::Text(path);
    }
    if let Some(path) = rest.strip_suffix(FILE).and_then(path_of).filter(|path| may_be_a_file(path)) {
        return Meaning::File(path);
    }
    if OTHERS.iter().any(|other| name.strip_prefix(PREFIX) == Some(other)) || is_of_kubernetes(rest, value) {
        return Meaning::Other;
    }
    Meaning::Unknown(nearest(rest, value))
}

/// The key that a variable sets, if there is one.
fn path_of(rest: &str) -> Option<Vec<String>> {
    let parts: Vec<String> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
    if parts.len() < 2 || parts.iter().any(String::is_empty) {
        return None;
    }
    if let Some((mut path, name)) = named(&parts) {
        // Variables seldom have dots in their names, and properties never underscores.
        path.push(name.join(".").replace('_', "."));
        let from_file = path.join(".").strip_suffix(".file").map(str::to_owned);
        return if from_file.is_some_and(|key| is_property_from_file(&key)) { None } else { Some(path) };
    }
    default_at(&parts).map(|_| parts)
}

fn may_be_a_file(path: &[String]) -> bool {
    let key = path.join(".");
    SECRETS.contains(&key.as_str()) || is_property_from_file(&key)
}

fn is_property_from_file(key: &str) -> bool {
    key.starts_with("broker.kafka.properties.") && PROPERTIES_FROM_FILES.iter().any(|end| key.ends_with(end))
}

/// What Kubernetes and links of Docker set in every container beside a service that is called
/// traqq, or traqq-something.
fn is_of_kubernetes(rest: &str, value: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let rest = format!("_{rest}");
    if rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT_") {
        return true;
    }
    if rest.ends_with("_SERVICE_PORT") {
        return is_number(value);
    }
    if rest.ends_with("_PORT") && is_url {
        return true;
    }
    // _PORT_9877_TCP, and _PROTO, _PORT and _ADDR of it.
    let Some((_, port)) = rest.rsplit_once("_PORT_").or_else(|| rest.split_once("_PORT_")) else {
        return false;
    };
    let mut parts = port.split('_');
    parts.next().is_some_and(is_number) && parts.next().is_some_and(|kind| ["TCP", "UDP", "SCTP"].contains(&kind))
}

/// What is said about a variable that sets nothing: an error if something else must be meant.
fn unknown(name: &str, nearest: Option<(String, bool)>, has_sections: bool) -> Result<String, ConfigError> {
    let meant = match &nearest {
        Some((meant, _)) => format!("is {meant} meant?"),
        None => "`traqq config show` lists the keys, and TRAQQ_SECTION__KEY sets one".to_owned(),
    };
    let is_file = nearest.as_ref().is_some_and(|(meant, _)| meant.ends_with(FILE));
    let is_said_to_be = name.to_ascii_uppercase().ends_with(FILE);
    let only_secrets = if is_said_to_be && !is_file { " (only secrets come from files)" } else { "" };
    let text = format!("{name} is set, and sets nothing{only_secrets}: {meant}");
    if has_sections || nearest.is_some_and(|(_, is_meant)| is_meant) { Err(text.into()) } else { Ok(text) }
}

/// Every variable that sets something, without the prefix.
fn known() -> impl Iterator<Item = String> {
    let mut leaves = Vec::new();
    flatten(&[], &serde_json::to_value(Config::default()).expect("the configuration is plain data"), &mut leaves);
    let keys = leaves.into_iter().map(|(path, _)| path.join("__").to_ascii_uppercase());
    let files = SECRETS.iter().map(|secret| format!("{}{FILE}", secret.replace('.', "__").to_ascii_uppercase()));
    keys.chain(files).chain(["CONFIG".to_owned()])
}

/// The variable that resembles this one most, and whether it is so near that it must be meant.
fn nearest(rest: &str, value: &str) -> Option<(String, bool)> {
    // A section alone sets nothing either.
    let keys: Vec<String> = known().filter(|name| name.starts_with(&format!("{rest}__"))).collect();
    if let Some(first) = keys.first() {
        let all = keys.iter().map(|name| format!("{PREFIX}{name}")).collect::<Vec<_>>().join(" or ");
        let some = || format!("{PREFIX}{first} or another key of this section");
        // A path is what a script keeps in such a name: TRAQQ_DATA=/data.
        let is_path = ["/", "./", "../", "~"].iter().any(|start| value.starts_with(start));
        return Some((if keys.len() > 3 { some() } else { all }, !is_path));
    }
    let words: Vec<String> = known().flat_map(|name| sections(&name)).collect();
    let given: Vec<&str> = rest.split('_').filter(|part| !part.is_empty()).collect();
    let mut best: Option<(usize, String, bool)> = None;
    for name in known() {
        let parts: Vec<&str> = name.split("__").collect();
        for left_out in 0..given.len() {
            let (dropped, tail) = given.split_at(left_out);
            // A section may be missing, another one may stand there instead.
            let is_misplaced = dropped.iter().all(|part| words.iter().any(|word| word == part));
            for (missing, form) in forms(&parts) {
                let distance = distance(&tail.join("_"), &form);
                // A key of a section in a section has a name that others may use too (TRAQQ_URL):
                // one of its sections, or another one, must be said as well.
                let has_section = parts.len() <= 2 || missing + 1 < parts.len() || left_out > 0;
                let is_meant = is_misplaced && has_section && distance <= form.len() / 4;
                let cost = 2 * distance + missing + left_out + if is_meant { 0 } else { 100 };
                if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                    best = Some((cost, name.clone(), is_meant));
                }
            }
        }
    }
    let best = best.filter(|(cost, ..)| *cost <= 100 + rest.len());
    best.map(|(_, name, is_meant)| (format!("{PREFIX}{name}"), is_meant))
}

/// The names of the sections that a variable's key is in.
fn sections(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split("__").collect();
    parts[..parts.len() - 1].iter().map(|part| (*part).to_owned()).collect()
}

/// A key's parts with each choice of its sections left out, and how many those are.
fn forms(parts: &[&str]) -> Vec<(usize, String)> {
    let sections = parts.len() - 1;
    let form = |choice: usize| {
        let kept = (0..parts.len()).filter(|at| *at == sections || choice & (1 << at) == 0);
        let kept: Vec<&str> = kept.map(|at| parts[at]).collect();
        (parts.len() - kept.len(), kept.join("_"))
    };
    (0..1_usize << sections).map(form).collect()
}

/// Edits between two texts: insert, delete, replace, swap two neighbours.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
                let is_swap = i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1];
                let swapped = if is_swap { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                replaced.min(swapped).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
            };
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Result<Environment, ConfigError> {
        read([(name.to_owned(), Some(value.to_owned()))].into_iter())
    }

    #[test]
    fn a_near_miss_of_a_variable_is_an_error_that_names_the_right_one() {
        for (name, meant) in [
            ("TRAQQ_SERVER_TOKEN", "TRAQQ_SERVER__TOKEN"),
            ("traqq_server_token", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_TOKEN", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_STORE_TOKEN", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_STORE__TOKEN", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_SERVER__TOKNE", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_SERVER__TOKEN_", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ__SERVER__TOKEN", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_SERVER___TOKEN", "TRAQQ_SERVER__TOKEN"),
            ("TRAQQ_SERVER_TOKEN_FILE", "TRAQQ_SERVER__TOKEN_FILE"),
            ("TRAQQ_SERVER__TOKEN__FILE", "TRAQQ_SERVER__TOKEN_FILE"),
            ("TRAQQ_SERVER__TOKENFILE", "TRAQQ_SERVER__TOKEN_FILE"),
            ("TRAQQ_SERVER__TOKENS_FILE", "TRAQQ_SERVER__TOKEN_FILE"),
            ("TRAQQ_TOKEN_FILE", "TRAQQ_SERVER__TOKEN_FILE"),
            ("TRAQQ_REDIS_URL", "TRAQQ_STORE__REDIS__URL"),
            ("TRAQQ_STORE_REDIS_URL", "TRAQQ_STORE__REDIS__URL"),
            ("TRAQQ_STORE__URL", "TRAQQ_STORE__REDIS__URL"),
            ("TRAQQ_STORE__REDIS_URL", "TRAQQ_STORE__REDIS__URL"),
            ("TRAQQ_REDIS_PASSWORD_FILE", "TRAQQ_STORE__REDIS__PASSWORD_FILE"),
            ("TRAQQ_KAFKA_BROKERS", "TRAQQ_BROKER__KAFKA__BROKERS"),
            ("TRAQQ_BROKER_KAFKA_BROKER", "TRAQQ_BROKER__KAFKA__BROKERS"),
            ("TRAQQ_BROKER__KAFKA__BROKERS_FILE", "TRAQQ_BROKER__KAFKA__BROKERS"),
            ("TRAQQ_WORKER__BATCH_EVNTS", "TRAQQ_WORKER__BATCH_EVENTS"),
            ("TRAQQ_DATA_DIRECTORY", "TRAQQ_DATA__DIRECTORY"),
            ("TRAQQ_LOG_LEVEL", "TRAQQ_LOG__LEVEL"),
            ("TRAQQ_REDDIS_URL", "TRAQQ_STORE__REDIS__URL"),
            ("TRAQQ_STORE_URL", "TRAQQ_STORE__REDIS__URL"),
            ("TRAQQ_LOG", "TRAQQ_LOG__FORMAT or TRAQQ_LOG__LEVEL"),
            ("TRAQQ_CONFIGS", "TRAQQ_CONFIG"),
            ("traqq_config", "TRAQQ_CONFIG"),
        ] {
            let error = of(name, "x").err().unwrap_or_else(|| panic!("{name} is taken"));
            assert!(
                error.to_string().starts_with(name) && error.to_string().contains(&format!("is {meant} meant?")),
                "{error}"
            );
            assert!(!error.to_string().contains("\"x\""), "{error}");
        }
    }

    #[test]
    fn a_variable_that_resembles_nothing_is_a_warning() {
        for (name, value) in [
            ("TRAQQ_VERSION", "1"),
            ("TRAQQ_IMAGE", "1"),
            ("TRAQQ_IMAGE_TAG", "1"),
            ("TRAQQ_HOME", "1"),
            ("TRAQQ_X", "1"),
            ("TRAQQ_", "1"),
            ("TRAQQ_URL", "http://traqq.example"),
            ("TRAQQ_REPLICAS", "3"),
            ("TRAQQ_DOMAIN", "traqq.example"),
            ("TRAQQ_START", "1"),
            ("TRAQQ_TOPICS", "a"),
            ("TRAQQ_GROUP", "a"),
            ("TRAQQ_USER", "a"),
            ("TRAQQ_PASSWORD_FILE", "/run/secrets/a"),
            ("TRAQQ_DATA", "/data"),
            ("TRAQQ_LOG", "./traqq.log"),
        ] {
            let environment = of(name, value).unwrap_or_else(|error| panic!("{error}"));
            assert!(environment.settings.is_empty());
            assert!(environment.warnings[0].starts_with(&format!("{name} is set, and sets nothing")), "{name}");
        }
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        for (name, value) in [
            ("TRAQQ_SERVICE_HOST", "10.0.0.1"),
            ("TRAQQ_SERVICE_PORT", "9877"),
            ("TRAQQ_SERVICE_PORT_HTTP", "9877"),
            ("TRAQQ_PORT", "tcp://10.0.0.1:9877"),
            ("TRAQQ_PORT_9877_TCP", "tcp://10.0.0.1:9877"),
            ("TRAQQ_PORT_9877_TCP_PROTO", "tcp"),
            ("TRAQQ_PORT_9877_TCP_PORT", "9877"),
            ("TRAQQ_PORT_9877_TCP_ADDR", "10.0.0.1"),
            ("TRAQQ_SERVER_SERVICE_HOST", "10.0.0.1"),
            ("TRAQQ_SERVER_PORT", "tcp://10.0.0.1:9877"),
            ("TRAQQ_SERVER_PORT_9876_TCP_ADDR", "10.0.0.1"),
            ("TRAQQ_CONFIG", "a.toml"),
            ("TRAQQ_PYTHON", "python3"),
            ("TRAQQ_SERVERS_CACHE", "/tmp"),
            ("PATH", "/bin"),
            ("TRAQQX_SERVER_TOKEN", "x"),
        ] {
            let environment = of(name, value).unwrap_or_else(|error| panic!("{error}"));
            assert!(environment.settings.is_empty() && environment.warnings.is_empty(), "{name}");
        }
        assert!(
            of("TRAQQ_SERVER_PORT", "9877").is_err() || !of("TRAQQ_SERVER_PORT", "9877").unwrap().warnings.is_empty()
        );
    }

    #[test]
    fn a_variable_sets_a_property_of_the_client() {
        for (name, property) in [
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__GROUP_INSTANCE_ID", "group.instance.id"),
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__group.instance.id", "group.instance.id"),
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__GROUP__INSTANCE__ID", "group.instance.id"),
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__DEBUG", "debug"),
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__SASL_OAUTHBEARER_ASSERTION_FILE", "sasl.oauthbearer.assertion.file"),
        ] {
            let environment = of(name, "7").unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(environment.settings[0].path.join("/"), format!("broker/kafka/properties/{property}"));
        }
    }

    #[test]
    fn secrets_come_from_files_also_those_of_the_client() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "hush\n").unwrap();
        for (name, key) in [
            ("TRAQQ_SERVER__TOKEN_FILE", "server.token"),
            ("TRAQQ_STORE__REDIS__URL_FILE", "store.redis.url"),
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", "broker.kafka.properties.sasl.password"),
            ("TRAQQ_BROKER__KAFKA__PROPERTIES__SSL_KEY_PEM_FILE", "broker.kafka.properties.ssl.key.pem"),
        ] {
            let environment = of(name, file.to_str().unwrap()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(environment.settings[0].path.join("."), key);
            assert!(of(name, "/there/is/none").err().unwrap().to_string().starts_with(name));
        }
        let both = ["TRAQQ_SERVER__TOKEN", "TRAQQ_SERVER__TOKEN_FILE"];
        let both = both.map(|name| (name.to_owned(), file.to_str().map(str::to_owned)));
        assert!(read(both.into_iter()).err().unwrap().to_string().contains("are both set; keep one"));
    }

    #[test]
    fn distances_are_edits() {
        for (one, other, edits) in
            [("", "", 0), ("a", "", 1), ("token", "tokne", 1), ("ab", "ba", 1), ("cat", "cut", 1)]
        {
            assert_eq!(distance(one, other), edits, "{one} {other}");
        }
    }
}
