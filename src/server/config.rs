//! `[server]` of the configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use traqq_core::error::ConfigError;
use traqq_core::model::Secret;
use traqq_core::model::address::has_credentials;
use traqq_counts::query::Limits;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen, `host:port`.
    pub http: String,
    /// Where to listen for the TCP protocol, `host:port`, or `off`.
    pub tcp: String,
    /// PEM files of the certificate, with what leads to its authority, and its key: both listeners
    /// speak TLS.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    /// PEM file of the authorities that commands trust which talk to a server. `None`: the
    /// system's.
    pub tls_ca_file: Option<PathBuf>,
    /// Required as `Authorization: Bearer` by every route but the health checks.
    pub token: Option<Secret>,
    /// The same, for questions only.
    pub read_token: Option<Secret>,
    /// The same, for sending events only.
    pub write_token: Option<Secret>,
    /// Listen beyond this machine without a token.
    pub allow_public_without_token: bool,
    /// `/metrics` needs no token.
    pub metrics_public: bool,
    /// For the head of a request, and for a new connection without one.
    pub header_timeout_ms: u64,
    /// For the next request on a connection.
    pub keep_alive_ms: u64,
    /// From the head of a request to its answer; also how long a client may leave an answer unread.
    pub request_timeout_ms: u64,
    /// Of a request.
    pub body_bytes_max: usize,
    pub connections_max: usize,
    /// Of one address, or of one /64 network of IPv6. `None`: half of them, so that no client keeps
    /// out all others.
    pub connections_per_address_max: Option<usize>,
    /// Buckets of one question.
    pub max_buckets: usize,
    /// Keys of the store that one question may touch.
    pub max_keys: usize,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            http: "127.0.0.1:9877".to_owned(),
            tcp: "127.0.0.1:9876".to_owned(),
            tls_cert_file: None,
            tls_key_file: None,
            tls_ca_file: None,
            token: None,
            read_token: None,
            write_token: None,
            allow_public_without_token: false,
            metrics_public: false,
            header_timeout_ms: 10_000,
            keep_alive_ms: 75_000,
            request_timeout_ms: 30_000,
            body_bytes_max: 8 << 20,
            connections_max: 16_384,
            connections_per_address_max: None,
            max_buckets: limits.buckets_max,
            max_keys: limits.keys_max,
        }
    }
}

impl Config {
    /// What is wrong, and how to mend it.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_address("http", &self.http)?;
        if self.has_tcp() {
            self.check_address("tcp", &self.tcp)?;
        }
        for (name, value) in [
            ("header_timeout_ms", self.header_timeout_ms),
            ("keep_alive_ms", self.keep_alive_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("connections_max", self.connections_max as u64),
            ("connections_per_address_max", self.connections_per_address_max() as u64),
            ("max_buckets", self.max_buckets as u64),
            ("max_keys", self.max_keys as u64),
        ] {
            if value == 0 {
                return Err(format!("server.{name} = 0 would refuse every request; it must be at least 1").into());
            }
        }
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            return Err("server.tls_cert_file and tls_key_file belong together; set both or none".into());
        }
        for (name, token) in self.tokens() {
            let Some(Secret(token)) = token else { continue };
            if token.is_empty() {
                return Err(format!("server.{name} is empty; write a long random string, or remove the key").into());
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "server.{name} has characters that an Authorization header cannot carry; use letters and digits"
                )
                .into());
            }
            if self
                .tokens()
                .iter()
                .any(|(other, known)| *other != name && known.as_ref().is_some_and(|known| known.0 == *token))
            {
                return Err(format!(
                    "server.{name} is the same as another token; they must differ to mean different things"
                )
                .into());
            }
        }
        Ok(())
    }

    const fn tokens(&self) -> [(&'static str, &Option<Secret>); 3] {
        [("token", &self.token), ("read_token", &self.read_token), ("write_token", &self.write_token)]
    }

    /// Whether a stranger is asked for one.
    pub fn has_token(&self) -> bool {
        self.tokens().iter().any(|(_, token)| token.is_some())
    }

    /// Whether the listeners speak TLS.
    pub const fn has_tls(&self) -> bool {
        self.tls_cert_file.is_some()
    }

    /// Whether the TCP protocol is spoken.
    pub fn has_tcp(&self) -> bool {
        self.tcp != "off"
    }

    /// Where it is reached from its own machine, if `port` is the one that it listens at.
    pub fn url(&self, port: u16) -> String {
        let host = self.http.rsplit_once(':').map_or(self.http.as_str(), |(host, _)| host);
        let host = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() || address == Ipv4Addr::LOCALHOST => "localhost",
            _ => host,
        };
        let scheme = if self.has_tls() { "https" } else { "http" };
        format!("{scheme}://{host}:{port}")
    }

    fn check_address(&self, name: &str, address: &str) -> Result<(), ConfigError> {
        if has_credentials(address) {
            return Err(
                format!("server.{name}: only an address and a port belong into it; a token is server.token").into()
            );
        }
        let Some((host, port)) = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
            return Err(
                format!("server.{name} = {address:?} is not host:port; write it like \"127.0.0.1:9877\"").into()
            );
        };
        if port.parse::<u16>().is_err() {
            return Err(
                format!("server.{name} = {address:?}: {port:?} is not a port; write a number up to 65535").into()
            );
        }
        let needs_brackets = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if needs_brackets {
            return Err(
                format!("server.{name} = {address:?}: put an IPv6 address in brackets, like \"[::1]:9877\"").into()
            );
        }
        let is_local =
            host == "localhost" || address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
        if !self.has_token() && !is_local && !self.allow_public_without_token {
            return Err(format!(
                "server.{name} = {address:?} listens beyond this machine without a token, so that anybody who reaches it reads every \
                 number; set server.token (or TRAQQ_SERVER__TOKEN_FILE), or, if the network is trusted, \
                 server.allow_public_without_token = true"
            ).into());
        }
        Ok(())
    }

    /// Connections of one address.
    pub fn connections_per_address_max(&self) -> usize {
        self.connections_per_address_max.unwrap_or(self.connections_max.div_ceil(2))
    }

    /// What one question may cost.
    pub fn limits(&self) -> Limits {
        Limits { buckets_max: self.max_buckets, keys_max: self.max_keys, ..Limits::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(http: &str, token: Option<&str>) -> Result<(), ConfigError> {
        let token = token.map(|token| Secret(token.to_owned()));
        Config { http: http.to_owned(), token, ..Config::default() }.check()
    }

    #[test]
    fn beyond_loopback_a_token_is_needed_or_a_decision() {
        for local in ["127.0.0.1:9877", "127.9.9.9:1", "[::1]:9877", "localhost:0"] {
            assert_eq!(check(local, None), Ok(()), "{local}");
        }
        for public in ["0.0.0.0:9877", "[::]:9877", "10.0.0.1:80", "example.test:80"] {
            let message = check(public, None).unwrap_err();
            assert!(
                message.to_string().contains("TRAQQ_SERVER__TOKEN_FILE")
                    && message.to_string().contains("allow_public_without_token")
            );
            assert_eq!(check(public, Some("secret")), Ok(()), "{public}");
        }
        let open = Config { http: "0.0.0.0:1".to_owned(), allow_public_without_token: true, ..Config::default() };
        assert_eq!(open.check(), Ok(()));
    }

    #[test]
    fn the_page_has_an_address_that_can_be_opened() {
        for (http, url) in [
            ("127.0.0.1:9877", "http://localhost:9877"),
            ("localhost:9877", "http://localhost:9877"),
            ("0.0.0.0:9877", "http://localhost:9877"),
            ("[::]:9877", "http://localhost:9877"),
            ("[::1]:9877", "http://[::1]:9877"),
            ("10.0.0.1:80", "http://10.0.0.1:9877"),
            ("127.0.0.1:0", "http://localhost:9877"),
        ] {
            let config = Config { http: http.to_owned(), ..Config::default() };
            assert_eq!(config.url(9877), url);
            let config = Config { tls_cert_file: Some("a.pem".into()), ..config };
            assert_eq!(config.url(9877), url.replace("http:", "https:"));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (http, token, part) in [
            ("9877", None, "host:port"),
            (":9877", None, "host:port"),
            ("127.0.0.1:x", None, "not a port"),
            ("::1:9877", None, "brackets"),
            ("127.0.0.1:1", Some(""), "empty"),
            ("127.0.0.1:1", Some("a b"), "characters"),
        ] {
            let message = check(http, token).unwrap_err();
            assert!(message.to_string().contains(part), "{http}: {message}");
        }
        let half = Config { tls_cert_file: Some("a.pem".into()), ..Config::default() };
        assert!(half.check().unwrap_err().to_string().contains("belong together"));
        assert!(
            Config { connections_max: 0, ..Config::default() }
                .check()
                .unwrap_err()
                .to_string()
                .contains("connections_max")
        );
        let none = Config { connections_per_address_max: Some(0), ..Config::default() };
        assert!(none.check().unwrap_err().to_string().contains("connections_per_address_max"));
    }

    #[test]
    fn an_address_may_have_half_of_the_connections_unless_it_is_said() {
        for (all, said, expected) in [(16_384, None, 8192), (1, None, 1), (50, None, 25), (50, Some(50), 50)] {
            let config = Config { connections_max: all, connections_per_address_max: said, ..Config::default() };
            assert_eq!(config.connections_per_address_max(), expected);
        }
    }

    #[test]
    fn the_token_does_not_show() {
        let config = Config { token: Some(Secret("hunter2".to_owned())), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
