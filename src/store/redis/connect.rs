//! Connections, and what is checked before the first commit on one.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError,
    TlsCertificates, cmd,
};
use serde::{Deserialize, Serialize};

use super::error::classify;
use crate::model::{Check, Finding, Secret};
use crate::store::{StoreError, StoreResult};

/// `[store.redis]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `redis://`, `rediss://` (TLS) or `unix://`; user, password and database number may stand in it.
    pub url: Secret,
    pub username: String,
    pub password: Secret,
    /// What every key begins with.
    pub prefix: String,
    /// Units of atomicity; more than one only for a cluster.
    pub lanes: usize,
    /// PEM file of the authority that signed the server's certificate; the system's authorities otherwise.
    pub tls_ca_file: Option<PathBuf>,
    /// PEM files of our own certificate and key, for servers that ask for one.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    pub connect_timeout_ms: u64,
    /// How long a commit may take before the connection is given up.
    pub response_timeout_ms: u64,
    /// Memory of the copy of HyperLogLog registers that saves sending elements twice; 0 turns it off.
    pub shadow_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret("redis://127.0.0.1:6379/0".to_owned()),
            username: String::new(),
            password: Secret::default(),
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

#[derive(Clone)]
pub struct Connector {
    client: Client,
    /// For messages: no user, no password.
    address: String,
    config: AsyncConnectionConfig,
}

impl Connector {
    pub fn new(config: &Config) -> Result<Self, String> {
        if config.prefix.is_empty() || config.prefix.contains(['{', '}', ' ', '*', '?', '[']) {
            return Err(format!(
                "store.redis.prefix = {:?} must be a name without braces, spaces or wildcards, like \"traqq\"",
                config.prefix
            ));
        }
        for (name, value) in
            [("connect_timeout_ms", config.connect_timeout_ms), ("response_timeout_ms", config.response_timeout_ms)]
        {
            if !(10..=600_000).contains(&value) {
                return Err(format!("store.redis.{name} = {value} must lie in 10 to 600000"));
            }
        }
        if !(1..=1024).contains(&config.lanes) {
            return Err(format!("store.redis.lanes = {} must lie in 1 to 1024", config.lanes));
        }
        let invalid = |error: RedisError| {
            format!("store.redis.url is not usable: {error}; write redis://HOST:PORT/DB, rediss://... or unix:///PATH")
        };
        let mut info: ConnectionInfo = config.url.0.as_str().into_connection_info().map_err(invalid)?;
        let mut settings = info.redis_settings().clone();
        if !config.username.is_empty() {
            settings = settings.set_username(&config.username);
        }
        if !config.password.0.is_empty() {
            settings = settings.set_password(&config.password.0);
        }
        info = info.set_redis_settings(settings);
        let address = info.addr().to_string();
        let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        let client = match tls_certificates(config)? {
            Some(_) if !is_tls => {
                return Err("store.redis.tls_* are set but the url is not rediss://".to_owned());
            }
            Some(certificates) => Client::build_with_tls(info, certificates).map_err(invalid)?,
            None => Client::open(info).map_err(invalid)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_millis(config.connect_timeout_ms)))
            .set_response_timeout(Some(Duration::from_millis(config.response_timeout_ms)));
        Ok(Self { client, address, config })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn classify(&self, error: &RedisError) -> StoreError {
        classify(error, &self.address)
    }

    pub async fn connect(&self) -> StoreResult<MultiplexedConnection> {
        let connected = self.client.get_multiplexed_async_connection_with_config(&self.config).await;
        connected.map_err(|error| match error.is_io_error() || error.is_timeout() {
            true => StoreError::Reconnect(format!("redis {}: cannot connect: {error}", self.address)),
            false => self.classify(&error),
        })
    }

    /// A connection to a server whose append-only file is known to be free of half-written blocks.
    ///
    /// After a power cut inside a MULTI block Redis rolls the half block back but leaves its opening in the file; the next
    /// restart would then apply what is appended behind it a second time. A rewrite of the file closes that.
    pub async fn connect_clean(&self, meta_key: &str) -> StoreResult<MultiplexedConnection> {
        let mut connection = self.connect().await?;
        let failed = |error: RedisError| self.classify(&error);
        let server = info(&mut connection, "all").await.map_err(failed)?;
        // The server that was looked at in the beginning may have been replaced.
        if let Finding::Bad(text) = eviction(field(&server, "maxmemory_policy"), &self.address) {
            return Err(StoreError::Stop(text));
        }
        let run_id = field(&server, "run_id").unwrap_or_default().to_owned();
        let recorded: Option<String> =
            cmd("HGET").arg(meta_key).arg(CLEAN_RUN_ID).query_async(&mut connection).await.map_err(failed)?;
        if recorded.as_deref() == Some(&run_id) {
            return Ok(connection);
        }
        if field(&server, "aof_enabled") == Some("1") && !self.rewrite(&mut connection).await? {
            return Ok(connection);
        }
        let mut record = cmd("EVAL");
        record.arg(RECORD).arg(1).arg(meta_key).arg(CLEAN_RUN_ID).arg(&run_id);
        let recorded: Result<i64, _> = record.query_async(&mut connection).await;
        recorded.map_err(failed)?;
        Ok(connection)
    }

    /// Rewrites the append-only file; `false` when the user may not.
    async fn rewrite(&self, connection: &mut MultiplexedConnection) -> StoreResult<bool> {
        const POLL: Duration = Duration::from_millis(50);
        tracing::info!(redis = self.address, "rewriting the append-only file before the first commit");
        let failed = |error: RedisError| self.classify(&error);
        // One that is under way may have begun before the restart was replayed; ours must begin after it.
        loop {
            let started: Result<String, RedisError> = cmd("BGREWRITEAOF").query_async(connection).await;
            match started {
                Ok(_) => break,
                Err(error) if error.to_string().contains("already in progress") => tokio::time::sleep(POLL).await,
                Err(error) if error.code() == Some("NOPERM") => {
                    tracing::warn!(
                        redis = self.address,
                        "may not run BGREWRITEAOF; a power cut can make counts double, grant +bgrewriteaof"
                    );
                    return Ok(false);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        loop {
            tokio::time::sleep(POLL).await;
            let persistence = info(connection, "persistence").await.map_err(failed)?;
            let is = |name: &str, value: &str| field(&persistence, name) == Some(value);
            if is("aof_rewrite_in_progress", "0") && is("aof_rewrite_scheduled", "0") {
                return match is("aof_last_bgrewrite_status", "ok") {
                    true => Ok(true),
                    false => Err(StoreError::Retry(format!(
                        "redis {}: rewriting the append-only file failed; see its log and mend the disk",
                        self.address
                    ))),
                };
            }
        }
    }
}

/// Meta's record of the server whose log is known to be clean.
const CLEAN_RUN_ID: &str = "clean_run_id";

/// A meta that is gone stays gone: one of a single field would keep the real one from being created.
const RECORD: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
    return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])";

fn tls_certificates(config: &Config) -> Result<Option<TlsCertificates>, String> {
    let read = |name: &str, path: &PathBuf| {
        std::fs::read(path).map_err(|error| format!("store.redis.{name} = {}: {error}", path.display()))
    };
    let root_cert = config.tls_ca_file.as_ref().map(|path| read("tls_ca_file", path)).transpose()?;
    let client_tls = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(cert), Some(key)) => {
            Some(ClientTlsConfig { client_cert: read("tls_cert_file", cert)?, client_key: read("tls_key_file", key)? })
        }
        (None, None) => None,
        _ => return Err("store.redis.tls_cert_file and tls_key_file go together; set both".to_owned()),
    };
    let is_set = root_cert.is_some() || client_tls.is_some();
    Ok(is_set.then_some(TlsCertificates { client_tls, root_cert }))
}

async fn info(connection: &mut MultiplexedConnection, section: &str) -> Result<String, RedisError> {
    cmd("INFO").arg(section).query_async(connection).await
}

fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

/// The ACL rule a worker needs.
fn acl_rule(config: &Config) -> String {
    format!(
        "~{prefix}:* ~{prefix}{{*}}:* +evalsha +eval +script|load +hget +hmget +hgetall +hset +hsetnx +hexists +hlen +hincrby \
         +exists +sadd +scard +sismember +smembers +expireat +time +pfadd +zcard +zscore +zincrby +zmscore +zrevrange \
         +zrevrangebyscore +get +info +ping +select +bgrewriteaof",
        prefix = config.prefix
    )
}

/// Looks at everything a worker relies on: reachability, version, eviction, persistence, permissions, clock.
pub async fn checks(config: &Config, now: i64) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |name, finding| checks.push(Check { name, finding });
    let connector = match Connector::new(config) {
        Ok(connector) => connector,
        Err(error) => {
            check("configuration", Finding::Bad(error));
            return checks;
        }
    };
    let mut connection = match connector.connect().await {
        Ok(connection) => connection,
        Err(error) => {
            check("connection", error.into());
            return checks;
        }
    };
    check("connection", Finding::Good(connector.address.clone()));
    let everything = match info(&mut connection, "all").await {
        Ok(everything) => everything,
        Err(error) => {
            check("permissions", connector.classify(&error).into());
            return checks;
        }
    };
    let value = |name: &str| field(&everything, name).unwrap_or("?").to_owned();
    check("version", version(&value("redis_version")));
    check(
        "role",
        match value("role").as_str() {
            "master" => Finding::Good("primary".to_owned()),
            _ => Finding::Bad("is a replica; point store.redis.url at the primary".to_owned()),
        },
    );
    check("eviction", eviction(field(&everything, "maxmemory_policy"), &connector.address));
    check("persistence", persistence(&value("aof_enabled"), &value("rdb_last_bgsave_status")));
    check("permissions", permissions(&mut connection, config).await);
    let clock: Result<(i64, i64), _> = cmd("TIME").query_async(&mut connection).await;
    check(
        "clock",
        match clock {
            Ok((second, _)) if (second - now).abs() <= 5 => Finding::Good(format!("{:+} s", second - now)),
            Ok((second, _)) => {
                Finding::Warning(format!("{:+} s from this machine's; keys expire by the server's", second - now))
            }
            Err(error) => connector.classify(&error).into(),
        },
    );
    checks
}

fn eviction(policy: Option<&str>, address: &str) -> Finding {
    match policy {
        Some("noeviction") => Finding::Good("noeviction".to_owned()),
        policy => Finding::Bad(format!(
            "redis {address}: maxmemory-policy is {}, which would evict counts; run `redis-cli CONFIG SET maxmemory-policy noeviction` and put it in redis.conf",
            policy.unwrap_or("unknown")
        )),
    }
}

fn version(version: &str) -> Finding {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0);
    if major >= 7 {
        Finding::Good(version.to_owned())
    } else {
        Finding::Bad(format!("{version} is too old; traqq needs Redis 7.0 or newer, or Valkey"))
    }
}

fn persistence(aof_enabled: &str, last_save: &str) -> Finding {
    match (aof_enabled, last_save) {
        ("1", _) => Finding::Good("append-only file".to_owned()),
        (_, "ok") => Finding::Warning(
            "no append-only file: a restart goes back to the last snapshot and is replayed from the log, if the log still reaches back that far; set appendonly yes".to_owned(),
        ),
        _ => Finding::Warning("the last snapshot failed; see the server's log".to_owned()),
    }
}

/// Tries each command with ACL DRYRUN where that is allowed; otherwise only what the checks above have used is known to work.
async fn permissions(connection: &mut MultiplexedConnection, config: &Config) -> Finding {
    let user: Result<String, _> = cmd("ACL").arg("WHOAMI").query_async(connection).await;
    let Ok(user) = user else {
        return Finding::Warning(format!("cannot be looked at (no +acl|whoami); needed are: {}", acl_rule(config)));
    };
    let key = format!("{}:ckpt", config.prefix);
    let commands: [&[&str]; 27] = [
        &["evalsha", "x", "1", ""],
        &["eval", "x", "1", ""],
        &["script", "load", "x"],
        &["hget", "", "f"],
        &["hset", "", "f", "v"],
        &["hsetnx", "", "f", "v"],
        &["hexists", "", "f"],
        &["hlen", ""],
        &["hincrby", "", "f", "1"],
        &["hmget", "", "f"],
        &["hgetall", ""],
        &["exists", ""],
        &["sadd", "", "m"],
        &["scard", ""],
        &["sismember", "", "m"],
        &["smembers", ""],
        &["expireat", "", "1"],
        &["time"],
        &["pfadd", "", "e"],
        &["zcard", ""],
        &["zscore", "", "m"],
        &["zincrby", "", "1", "m"],
        &["zmscore", "", "m"],
        &["zrevrange", "", "0", "1"],
        &["zrevrangebyscore", "", "1", "0"],
        &["get", ""],
        &["bgrewriteaof"],
    ];
    let mut denied = Vec::new();
    for command in commands {
        let mut dry_run = cmd("ACL");
        dry_run.arg("DRYRUN").arg(&user);
        for part in command {
            dry_run.arg(if part.is_empty() { &key } else { *part });
        }
        match dry_run.query_async::<String>(connection).await {
            Ok(answer) if answer == "OK" => {}
            Ok(_) => denied.push(command[0]),
            Err(_) => {
                return Finding::Warning(format!("cannot be tried (no +acl|dryrun); needed are: {}", acl_rule(config)));
            }
        }
    }
    match denied[..] {
        [] => Finding::Good(format!("user {user}")),
        ["bgrewriteaof"] => Finding::Warning(format!(
            "user {user} may not run BGREWRITEAOF, without which a power cut can make counts double; `ACL SETUSER {user} +bgrewriteaof`"
        )),
        _ => Finding::Bad(format!(
            "user {user} may not run {}; `ACL SETUSER {user} {}`",
            denied.join(", "),
            acl_rule(config)
        )),
    }
}
