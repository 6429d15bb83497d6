//! `[store.redis]`.

use std::path::PathBuf;

use redis::{ClientTlsConfig, TlsCertificates};
use serde::{Deserialize, Serialize};

use traqq_core::error::ConfigError;
use traqq_core::model::Secret;
use traqq_core::pem::private_key;

/// `[store.redis]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `redis://HOST:PORT/DB`, `unix:///PATH`, `redis-sentinel://HOST:PORT,HOST:PORT/DB#PRIMARY` or
    /// `redis-cluster://HOST:PORT,HOST:PORT`; with `rediss` for TLS. User and password may stand in
    /// it.
    pub url: Secret,
    pub username: String,
    pub password: Secret,
    /// Of the Sentinels, where they ask for one; `username` and `password` are those of the
    /// servers.
    pub sentinel_username: String,
    pub sentinel_password: Secret,
    /// What every key begins with.
    pub prefix: String,
    /// Units of atomicity: one for a server, two or more for a cluster, best as many as it has
    /// primaries.
    pub lanes: usize,
    /// PEM file of the authority that signed the server's certificate; the system's authorities
    /// otherwise.
    pub tls_ca_file: Option<PathBuf>,
    /// PEM files of our own certificate and key, for servers that ask for one.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    pub connect_timeout_ms: u64,
    /// How long a commit may take before the connection is given up.
    pub response_timeout_ms: u64,
    /// Memory of the copy of HyperLogLog registers that saves sending elements twice; 0 turns it
    /// off.
    pub shadow_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret("redis://127.0.0.1:6379/0".to_owned()),
            username: String::new(),
            password: Secret::default(),
            sentinel_username: String::new(),
            sentinel_password: Secret::default(),
            prefix: "traqq".to_owned(),
            lanes: 1,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            connect_timeout_ms: 5_000,
            response_timeout_ms: 30_000,
            shadow_bytes_max: 32 << 20,
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.prefix.is_empty() || self.prefix.contains(['{', '}', ' ', '*', '?', '[']) {
            return Err(format!(
                "store.redis.prefix = {:?} must be a name without braces, spaces or wildcards, like \"traqq\"",
                self.prefix
            )
            .into());
        }
        for (name, value) in
            [("connect_timeout_ms", self.connect_timeout_ms), ("response_timeout_ms", self.response_timeout_ms)]
        {
            if !(10..=600_000).contains(&value) {
                return Err(format!("store.redis.{name} = {value} must lie in 10 to 600000").into());
            }
        }
        if !(1..=1024).contains(&self.lanes) {
            return Err(format!("store.redis.lanes = {} must lie in 1 to 1024", self.lanes).into());
        }
        Ok(())
    }
}

pub(super) fn tls_certificates(config: &Config) -> Result<Option<TlsCertificates>, ConfigError> {
    let read = |name: &str, path: &PathBuf| {
        std::fs::read(path)
            .map_err(|error| ConfigError::of(format!("store.redis.{name} = {}: {error}", path.display()), error))
    };
    let root_cert = config.tls_ca_file.as_ref().map(|path| read("tls_ca_file", path)).transpose()?;
    let client_tls = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(cert), Some(key)) => {
            let client_key = read("tls_key_file", key)?;
            private_key("store.redis.tls_key_file", &key.display().to_string(), &client_key)?;
            Some(ClientTlsConfig { client_cert: read("tls_cert_file", cert)?, client_key })
        }
        (None, None) => None,
        _ => return Err("store.redis.tls_cert_file and tls_key_file go together; set both".into()),
    };
    let is_set = root_cert.is_some() || client_tls.is_some();
    Ok(is_set.then_some(TlsCertificates { client_tls, root_cert }))
}
