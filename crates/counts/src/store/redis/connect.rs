//! Connections to the server that takes a key now, and what is made sure of before the first commit
//! on one.

use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
    cmd,
};

use super::config::{Config, tls_certificates};
use super::error::{Said, classify, says};
use super::node::Node;
use super::place::{self, Address, Nodes, Place};
use crate::store::keys::slot_of;
use crate::store::{StoreError, StoreResult};
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::Finding;

pub struct Connector {
    /// How every server is reached; the address is replaced where there are several.
    info: ConnectionInfo,
    certificates: Option<TlsCertificates>,
    pub place: Place,
    /// How Sentinels are reached.
    sentinel: RedisConnectionInfo,
    config: AsyncConnectionConfig,
    /// For questions that somebody else can answer as well: a server that hangs must not hold them
    /// up.
    asking: AsyncConnectionConfig,
}

/// How long a connection is silent before the system asks whether somebody is still there, and asks
/// again: a firewall forgets what is silent, and a server that lost its power says nothing.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// Of what several servers say, what passes: one that is configured otherwise does not stop a
/// worker that others only keep waiting.
fn milder(kept: Option<StoreError>, new: StoreError) -> StoreError {
    match kept {
        Some(kept) if matches!(new, StoreError::Stop(_)) => kept,
        _ => new,
    }
}

impl Connector {
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        config.check()?;
        let (info, place) = place::parse(&config.url.0)?;
        if matches!(place, Place::Cluster(_)) && config.lanes < 2 {
            return Err("store.redis.lanes = 1 keeps all counts on one node of the cluster; set it to the number of primaries, or more if \
                        there may be more".into());
        }
        let with = |settings: RedisConnectionInfo, username: &str, password: &str| {
            // The server would note at each connection that this is not permitted.
            let settings = settings.set_skip_set_lib_name();
            let settings = if username.is_empty() { settings } else { settings.set_username(username) };
            if password.is_empty() { settings } else { settings.set_password(password) }
        };
        let settings = with(info.redis_settings().clone(), &config.username, &config.password.0);
        // Questions share a connection; with Nagle's algorithm the second would wait for the answer
        // to the first.
        let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        let certificates = tls_certificates(config)?;
        if certificates.is_some() && !is_tls {
            return Err("store.redis.tls_* are set but the url is not rediss://".into());
        }
        let timeout = Some(Duration::from_millis(config.connect_timeout_ms));
        let response_timeout = Some(Duration::from_millis(config.response_timeout_ms));
        let asking = AsyncConnectionConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout);
        let this = Self {
            info,
            certificates,
            place,
            sentinel: with(RedisConnectionInfo::default(), &config.sentinel_username, &config.sentinel_password.0),
            config: asking.clone().set_response_timeout(response_timeout),
            asking,
        };
        this.client(this.info.clone()).map_err(|error| ConfigError::of(format!("store.redis: {error}"), error))?;
        Ok(this)
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        }
    }

    async fn reach(&self, info: ConnectionInfo, config: &AsyncConnectionConfig) -> StoreResult<Node> {
        let address: Arc<str> = info.addr().to_string().into();
        let failed = |error: RedisError| match error.is_io_error() || error.is_timeout() {
            true => StoreError::Reconnect(ErrorLine::of(format!("redis {address}: cannot connect: {error}"), error)),
            false => classify(&error, &address),
        };
        let client = self.client(info).map_err(failed)?;
        let connection = client.get_multiplexed_async_connection_with_config(config).await.map_err(failed)?;
        Ok(Node { connection, address, is_new: true })
    }

    fn at(&self, (host, port): &Address) -> ConnectionInfo {
        let (host, port) = (host.clone(), *port);
        let address = match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.info.clone().set_addr(address)
    }

    /// Another server, by its address.
    pub async fn connect_to(&self, address: &Address) -> StoreResult<Node> {
        self.reach(self.at(address), &self.asking).await
    }

    /// The server that takes a key now.
    pub async fn connect(&self, key: &str) -> StoreResult<Node> {
        match &self.place {
            Place::Server => self.reach(self.info.clone(), &self.config).await,
            Place::Sentinel { sentinels, primary } => self.primary(sentinels, primary).await,
            Place::Cluster(nodes) => self.owner(nodes, slot_of(key)).await,
        }
    }

    async fn primary(&self, sentinels: &[Address], name: &str) -> StoreResult<Node> {
        let mut failure = None;
        for sentinel in sentinels {
            match self.primary_of(sentinel, name).await {
                Ok(node) => return Ok(node),
                Err(error) => failure = Some(milder(failure, error)),
            }
        }
        Err(failure.expect("a URL has addresses"))
    }

    async fn primary_of(&self, sentinel: &Address, name: &str) -> StoreResult<Node> {
        let info = self.at(sentinel).set_redis_settings(self.sentinel.clone());
        let mut sentinel = self.reach(info, &self.asking).await?;
        let ask = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).clone();
        let Some(address) = sentinel.query::<Option<Address>>(&ask).await? else {
            return Err(StoreError::stop(format!(
                "the Sentinel at {} knows no primary named {name:?}; correct it in store.redis.url",
                sentinel.address
            )));
        };
        // During a failover a Sentinel may still name the old one, which knows that it is a replica
        // now.
        let mut node = self.reach(self.at(&address), &self.config).await?;
        node.info().await?.refuse_replica(&node)?;
        Ok(node)
    }

    async fn owner(&self, nodes: &Nodes, slot: u16) -> StoreResult<Node> {
        let mut failure = None;
        for asked in nodes.all() {
            let error = match self.owner_by(&asked, slot).await {
                Ok((Some(owner), named)) => {
                    nodes.learn(named);
                    return self.reach(self.at(&owner), &self.config).await;
                }
                Ok((None, _)) => StoreError::retry(format!("redis {}:{}: nobody has slot {slot}", asked.0, asked.1)),
                Err(error) => error,
            };
            failure = Some(milder(failure, error));
        }
        Err(failure.expect("a URL has addresses"))
    }

    async fn owner_by(&self, node: &Address, slot: u16) -> StoreResult<(Option<Address>, Vec<Address>)> {
        let mut connection = self.connect_to(node).await?;
        let answer = connection.send(cmd("CLUSTER").arg("SLOTS")).await?;
        Ok(place::owner(&answer, slot, node))
    }

    /// A connection to a server whose append-only file is known to be free of half-written blocks.
    ///
    /// After a power cut inside a MULTI block Redis rolls the half block back but leaves its
    /// opening in the file; the next restart would then apply what is appended behind it a second
    /// time. A rewrite of the file closes that.
    pub async fn connect_clean(&self, meta_key: &str) -> StoreResult<Node> {
        let mut node = self.connect(meta_key).await?;
        let info = node.info().await?;
        info.refuse_replica(&node)?;
        // The server that was looked at in the beginning may have been replaced.
        if let Finding::Bad(text) = info.eviction(&node.address) {
            return Err(StoreError::stop(text));
        }
        let run_id = info.field("run_id").unwrap_or_default();
        if is_clean(&mut node, meta_key, run_id).await? {
            return Ok(node);
        }
        if info.is("aof_enabled", "1") && !rewrite(&mut node, meta_key, run_id).await? {
            return Ok(node);
        }
        node.send(cmd("EVAL").arg(RECORD).arg(1).arg(meta_key).arg(CLEAN_RUN_ID).arg(run_id)).await?;
        Ok(node)
    }
}

/// Meta's record of the server whose log is known to be clean.
const CLEAN_RUN_ID: &str = "clean_run_id";

async fn is_clean(node: &mut Node, meta_key: &str, run_id: &str) -> StoreResult<bool> {
    let recorded: Option<String> = node.query(cmd("HGET").arg(meta_key).arg(CLEAN_RUN_ID)).await?;
    Ok(recorded.as_deref() == Some(run_id))
}

/// A meta that is gone stays gone: one of a single field would keep the real one from being
/// created.
const RECORD: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
    return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])";

/// Rewrites the append-only file; `false` when the user may not, or another worker has done it
/// meanwhile.
async fn rewrite(node: &mut Node, meta_key: &str, run_id: &str) -> StoreResult<bool> {
    const POLL: Duration = Duration::from_millis(50);
    tracing::info!(redis = %node.address, "rewriting the append-only file before the first commit");
    // One that is under way may have begun before the restart was replayed; ours must begin after
    // it.
    loop {
        let started: Result<String, RedisError> = cmd("BGREWRITEAOF").query_async(&mut node.connection).await;
        match started {
            Ok(_) => break,
            Err(error) if says(&error) == Some(Said::InProgress) => {
                tokio::time::sleep(POLL).await;
                if is_clean(node, meta_key, run_id).await? {
                    return Ok(false);
                }
            }
            Err(error) if error.code() == Some("NOPERM") || says(&error) == Some(Said::UnknownCommand) => {
                tracing::warn!(
                    redis = %node.address,
                    "may not run BGREWRITEAOF; a power cut can make counts double, grant +bgrewriteaof"
                );
                return Ok(false);
            }
            Err(error) if says(&error) == Some(Said::CannotExecute) => {
                let text = format!(
                    "redis {}: rewriting the append-only file cannot begin: {error}; see its log, it may lack memory to fork",
                    node.address
                );
                return Err(StoreError::Retry(ErrorLine::of(text, error)));
            }
            Err(error) => return Err(node.classify(&error)),
        }
    }
    loop {
        tokio::time::sleep(POLL).await;
        let info = node.info().await?;
        if info.is("aof_rewrite_in_progress", "0") && info.is("aof_rewrite_scheduled", "0") {
            return match info.is("aof_last_bgrewrite_status", "ok") {
                true => Ok(true),
                false => Err(StoreError::retry(format!(
                    "redis {}: rewriting the append-only file failed; see its log and mend the disk",
                    node.address
                ))),
            };
        }
    }
}
