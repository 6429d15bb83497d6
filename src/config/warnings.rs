//! What works and is not safe: for `traqq config check` and `traqq doctor`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Config;
use super::load::Loaded;
use super::show::{flatten, is_secret};
use traqq_core::model::Secret;
use traqq_core::model::address::{has_credentials, shown};
use traqq_core::model::escape::shell;

/// A token that is shorter can be tried out: 16 random letters and digits are 80 bits or more.
const TOKEN_CHARACTERS: usize = 16;
const READABLE_BY_OTHERS: u32 = 0o004;
const ENTERED_BY_OTHERS: u32 = 0o001;

/// Whether what is sent to a host leaves this machine.
pub fn beyond_loopback(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    match name.parse::<IpAddr>() {
        Ok(address) => !address.to_canonical().is_loopback(),
        Err(_) => !name.eq_ignore_ascii_case("localhost"),
    }
}

impl Loaded {
    /// Each in a line, with what to do about it.
    pub fn advice(&self) -> Vec<String> {
        let mut advice = self.config.advice_on_tokens();
        let mut files = self.config.key_files();
        files.extend(self.secret_files.iter().cloned());
        files.extend(self.files_with_secrets().into_iter().map(|file| ("the configuration".to_owned(), file)));
        advice.extend(files.iter().filter(|(_, file)| may_be_read_by_others(file)).map(|(what, file)| {
            let (file, quoted) = (file.display(), shell(&file.to_string_lossy()));
            format!(
                "{what}: {file:?} has a secret in it, and every user of this machine may read it; chmod o= {quoted}"
            )
        }));
        advice
    }

    /// Configuration files that have a secret in them, not only the name of a file that has it.
    fn files_with_secrets(&self) -> BTreeSet<PathBuf> {
        let value = serde_json::to_value(&self.config).expect("the configuration is plain data");
        let mut leaves = Vec::new();
        flatten(&[], &value, &mut leaves);
        let secrets = leaves.iter().filter(|(path, value)| {
            let key = path.join(".");
            let is_set = !matches!(value.as_str(), "\"\"" | "null");
            is_secret(&key) && is_set && (!key.ends_with("url") || has_credentials(value))
        });
        secrets.filter_map(|(path, _)| self.file_of(path)).collect()
    }
}

/// Whether others may read a file, and enter the directories that it is in.
fn may_be_read_by_others(file: &Path) -> bool {
    let allows =
        |place: &Path, mode| std::fs::metadata(place).is_ok_and(|place| place.permissions().mode() & mode != 0);
    let Ok(file) = file.canonicalize() else { return false };
    allows(&file, READABLE_BY_OTHERS) && file.ancestors().skip(1).all(|above| allows(above, ENTERED_BY_OTHERS))
}

impl Config {
    fn advice_on_tokens(&self) -> Vec<String> {
        let server = &self.server;
        let tokens =
            [("token", &server.token), ("read_token", &server.read_token), ("write_token", &server.write_token)];
        let given = tokens.into_iter().filter_map(|(name, token)| Some((name, token.as_ref()?)));
        let short = given.filter(|(_, Secret(token))| token.chars().count() < TOKEN_CHARACTERS);
        let mut advice: Vec<String> = short
            .map(|(name, _)| {
                format!(
                    "server.{name} is shorter than {TOKEN_CHARACTERS} characters and can be guessed; make one with \
                     `openssl rand -hex 32`"
                )
            })
            .collect();
        let listens = [("http", &server.http, true), ("tcp", &server.tcp, server.has_tcp())];
        for (name, address, _) in listens.into_iter().filter(|(.., is_on)| *is_on) {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            if server.has_token() && !server.has_tls() && beyond_loopback(host) {
                let address = shown(address);
                advice.push(format!(
                    "server.{name} = {address:?} listens beyond this machine without TLS, so that whoever is on the \
                     way reads the tokens; set server.tls_cert_file and server.tls_key_file, or listen at 127.0.0.1 \
                     behind a proxy that speaks TLS"
                ));
            }
        }
        advice
    }

    /// Files with private keys and passwords, and the keys that name them.
    fn key_files(&self) -> Vec<(String, PathBuf)> {
        let (nats, redis, kafka) = (&self.broker.nats, &self.store.redis, &self.broker.kafka.properties);
        let own = [
            ("server.tls_key_file", &self.server.tls_key_file),
            ("store.redis.tls_key_file", &redis.tls_key_file),
            ("broker.nats.tls_key_file", &nats.tls_key_file),
            ("broker.nats.credentials_file", &nats.credentials_file),
        ];
        let own = own.into_iter().filter_map(|(key, file)| Some((key.to_owned(), file.clone()?)));
        let of_client = ["ssl.key.location", "ssl.keystore.location", "sasl.oauthbearer.assertion.private.key.file"];
        let of_client = of_client
            .into_iter()
            .filter_map(|name| Some((format!("broker.kafka.properties.{name}"), kafka.get(name)?.into())));
        own.chain(of_client).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::load_with;
    use super::*;

    #[test]
    fn what_leaves_this_machine_is_known() {
        for host in ["127.0.0.1", "127.9.9.9", "[::1]", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"] {
            assert!(!beyond_loopback(host), "{host}");
        }
        for host in ["0.0.0.0", "[::]", "10.0.0.1", "traqq.example", "localhost.example", ""] {
            assert!(beyond_loopback(host), "{host}");
        }
    }

    #[test]
    fn short_tokens_and_tokens_without_tls_are_said() {
        let long = "0123456789abcdef";
        for (http, token, tls, parts) in [
            ("127.0.0.1:1", Some(long), false, &[][..]),
            ("0.0.0.0:1", Some(long), true, &[]),
            ("0.0.0.0:1", None, false, &[]),
            ("127.0.0.1:1", Some("x"), false, &["server.token is shorter than 16"]),
            ("127.0.0.1:1", Some(&long[1..]), false, &["server.token is shorter than 16"]),
            ("0.0.0.0:1", Some(long), false, &["server.http = \"0.0.0.0:1\" listens beyond"]),
            ("example.test:1", Some("x"), false, &["shorter than 16", "listens beyond"]),
        ] {
            let mut config = Config::default();
            config.server.http = http.to_owned();
            config.server.token = token.map(|token| Secret(token.to_owned()));
            config.server.tls_cert_file = tls.then(|| "a.pem".into());
            let advice = config.advice_on_tokens();
            assert_eq!(advice.len(), parts.len(), "{advice:?}");
            assert!(
                advice.iter().zip(parts).all(|(line, part)| line.contains(part) && !line.contains(long)),
                "{advice:?}"
            );
        }
    }

    #[test]
    fn files_with_secrets_that_others_may_read_are_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let [open, closed] = [("open", 0o644), ("closed", 0o640)].map(|(name, mode)| file(name, "x", mode));
        let advice = |key: &Path, token: &Path, text: &str, mode: u32| {
            let text = format!("[server]\ntls_key_file = {key:?}\n[store.redis]\n{text}\n");
            let config = file("traqq.toml", &text, mode);
            let token = Some(token.to_str().unwrap().to_owned());
            let variables = [("TRAQQ_SERVER__WRITE_TOKEN_FILE".to_owned(), token)].into_iter();
            let loaded = load_with(Some(&config), variables, &[]).unwrap_or_else(|error| panic!("{error}"));
            let advice = loaded.advice();
            advice.into_iter().filter(|line| line.contains("every user")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(advice(&closed, &closed, "password = \"x\"", 0o600), "");
        assert_eq!(advice(&closed, &closed, "url = \"redis://h:1\"", 0o644), "");
        assert!(advice(&open, &closed, "", 0o644).starts_with("server.tls_key_file: "));
        assert!(advice(&closed, &open, "", 0o644).starts_with("TRAQQ_SERVER__WRITE_TOKEN_FILE: "));
        for secret in ["password = \"x\"", "url = \"redis://u:p@h:1\""] {
            assert!(advice(&closed, &closed, secret, 0o644).starts_with("the configuration: "), "{secret}");
        }
    }
}
