//! Reads the configuration: defaults < file < environment < flags.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};

use super::environment;
use super::setting::{Named, ReadFile, Setting, parse_key};
use super::show::is_secret;
use super::trust::{NotRead, read_own};
use super::{BrokerKind, Config};
use traqq_core::error::ConfigError;

const DEFAULT_FILE: &str = "traqq.toml";
pub(super) const FLAG: &str = "--set";
/// Types of values, as errors name them.
const INTEGERS: [&str; 5] = ["usize", "u64", "i64", "u32", "i32"];
/// What is counted when there is no file and nobody said anything.
const STARTER: &str = include_str!("../../config/starter.toml");

/// A file that a secret was read from: what named it, and its path.
pub(super) type SecretFile = (String, PathBuf);

/// A configuration with where each value came from.
pub struct Loaded {
    pub config: Config,
    /// What was set and sets nothing, and a file that is there and is not read.
    pub warnings: Vec<String>,
    /// Why the file that is there is not read.
    pub untrusted: Option<String>,
    /// Files that secrets were read from.
    pub(super) secret_files: Vec<SecretFile>,
    pub(super) figment: Figment,
}

impl Loaded {
    fn of(figment: Figment) -> Result<Self, ConfigError> {
        let config: Config = figment.extract().map_err(|error| explain(&error))?;
        Ok(Self { config, warnings: Vec::new(), untrusted: None, secret_files: Vec::new(), figment })
    }
}

/// Reads the configuration. `overrides` are `section.key = value` from flags.
pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Loaded, ConfigError> {
    let variables =
        std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.into_string().ok()));
    load_with(file, variables, overrides)
}

/// The same, with another environment than this process has.
pub(super) fn load_with(
    file: Option<&Path>,
    variables: impl Iterator<Item = (String, Option<String>)>,
    overrides: &[(String, String)],
) -> Result<Loaded, ConfigError> {
    let mut figment = Figment::new();
    let mut warnings = Vec::new();
    let (mut has_file, mut untrusted) = (file.is_some(), None);
    match file {
        Some(file) if !file.is_file() => return Err(format!("{}: there is no such file", file.display()).into()),
        Some(file) => figment = figment.merge(Named(Toml::file_exact(file))),
        None if !Path::new(DEFAULT_FILE).is_file() => {}
        None => match read_own(Path::new(DEFAULT_FILE)) {
            Ok(text) => {
                figment = figment.merge(Named(ReadFile { file: DEFAULT_FILE.into(), text }));
                has_file = true;
            }
            Err(why @ NotRead::Failed(_)) => return Err(format!("{DEFAULT_FILE}: {why}").into()),
            Err(why) => {
                let text =
                    format!("./{DEFAULT_FILE} is not read: {why}; `--config ./{DEFAULT_FILE}` reads it all the same");
                warnings.push(text.clone());
                untrusted = Some(text);
            }
        },
    }
    let environment = environment::read(variables)?;
    for setting in environment.settings {
        figment = figment.merge(setting);
    }
    for (key, value) in overrides {
        let path = parse_key(key).map_err(|error| ConfigError::of(format!("{FLAG}: {error}"), error))?;
        figment = figment.merge(if is_secret(&path.join(".")) {
            Setting::verbatim(path, value.clone(), FLAG.to_owned())
        } else {
            Setting::new(path, value, FLAG.to_owned())
        });
    }
    let defaults = Figment::from(Serialized::defaults(Config::default()));
    let mut loaded = Loaded::of(defaults.clone().merge(figment.clone()))?;
    let is_bare = !has_file && loaded.config.mapping.patterns() == 0;
    if is_bare && loaded.config.broker.kind() == BrokerKind::Local {
        loaded = Loaded::of(defaults.merge(Toml::string(STARTER)).merge(figment))?;
    }
    warnings.extend(environment.warnings);
    loaded.warnings = warnings;
    loaded.untrusted = untrusted;
    loaded.secret_files = environment.secret_files;
    Ok(loaded)
}

/// What holds where nothing was configured, and nothing else: no environment, no flags.
pub fn starter() -> Config {
    parse(STARTER).map(|loaded| loaded.config).unwrap_or_else(|error| panic!("config/starter.toml: {error}"))
}

/// The text of a file and nothing else: no environment, no flags, no starter.
pub fn parse(text: &str) -> Result<Loaded, ConfigError> {
    Loaded::of(Figment::from(Serialized::defaults(Config::default())).merge(Named(Toml::string(text))))
}

/// One line: where, what, and what would be right.
fn explain(error: &figment::Error) -> String {
    let key = error.path.join(".");
    let place = match error.metadata.as_ref().map(|metadata| (metadata.source.as_ref(), metadata.name.as_ref())) {
        // The defaults are right: a key that a section lacks.
        None | Some((Some(figment::Source::Code(_)), _)) => String::new(),
        Some((Some(source), _)) => format!("{source}: "),
        Some((None, name)) => format!("{name}: "),
    };
    let reason = match &error.kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected)
            if INTEGERS.contains(&expected.as_str()) =>
        {
            match found {
                figment::error::Actual::Str(_) => "it must be a whole number, digits only".to_owned(),
                found => format!("found {found}, it must be a whole number"),
            }
        }
        // What was found may be a secret in the wrong place.
        Kind::InvalidType(_, expected) if expected.starts_with("struct ") || expected == "a map" => {
            "it is a section; set the keys in it".to_owned()
        }
        Kind::InvalidType(_, expected) if expected == "a string" => "it must be a string, in quotes".to_owned(),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => format!("it must be {expected}"),
        Kind::UnknownField(found, expected) => format!("there is no {found:?}; there are {}", expected.join(", ")),
        Kind::UnknownVariant(_, expected) => format!("it must be one of {}", expected.join(", ")),
        // A file that is malformed is shown with its line, on which a secret may stand.
        reason => {
            let text = reason.to_string();
            let is_excerpt = |line: &&str| {
                line.split_once('|').is_some_and(|(number, _)| number.trim().bytes().all(|byte| byte.is_ascii_digit()))
            };
            let lines: Vec<&str> = text.lines().filter(|line| !is_excerpt(line)).collect();
            lines.join(": ")
        }
    };
    if key.is_empty() { format!("{place}{reason}") } else { format!("{place}{key}: {reason}") }
}

#[cfg(test)]
pub(super) fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("traqq.toml");
    std::fs::write(&file, text).unwrap();
    load_with(Some(&file), std::iter::empty(), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_named_with_its_place() {
        let error = load_text("[worker]\nbatch_event = 5\n").err().unwrap();
        assert!(error.to_string().contains("traqq.toml") && error.to_string().contains("batch_event"), "{error}");
        let error = load_text("[buckets.retention]\nd = \"soon\"\n").err().unwrap();
        assert!(error.to_string().contains("buckets.retention.d") && error.to_string().contains("400d"), "{error}");
        let error = load_text("[mapping]\nadd = [\"a~\"]\n").err().unwrap();
        assert!(error.to_string().contains("mapping.add") && error.to_string().contains("empty field name"), "{error}");
    }

    #[test]
    fn a_wrong_flag_is_named() {
        for (key, value, said) in [
            ("worker.batch_events", "1_000", "it must be a whole number, digits only"),
            ("worker.batch_events", "-1", "found signed int `-1`, it must be a whole number"),
            ("worker.batch_evnts", "5", "there is no \"batch_evnts\"; there are batch_events, batch_bytes, "),
            ("worker.on_log_gap", "jump", "it must be one of stop, skip"),
        ] {
            let error = load(None, &[(key.to_owned(), value.to_owned())]).err().unwrap();
            assert!(error.to_string().starts_with(&format!("--set: {key}: {said}")), "{error}");
        }
    }

    #[test]
    fn flags_come_after_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("traqq.toml");
        std::fs::write(&file, "[worker]\nbatch_events = 5\n[store.redis]\nurl = \"redis://u:secret@h:1/2\"\n").unwrap();
        let loaded = load(Some(&file), &[("worker.batch_events".to_owned(), "7".to_owned())]).unwrap();
        assert_eq!(loaded.config.worker.batch_events, 7);
        let values = loaded.values();
        let url = values.iter().find(|(key, ..)| key == "store.redis.url").unwrap();
        assert_eq!(url.1, "\"redis://********@h:1/2\"");
        assert!(url.2.contains("traqq.toml"), "{}", url.2);
        let age = values.iter().find(|(key, ..)| key == "worker.batch_age_ms").unwrap();
        assert_eq!(age.2, "default");
    }
}
