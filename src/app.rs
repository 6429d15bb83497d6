//! The only place that names concrete brokers and stores: wiring, and the order in which things start and stop.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::broker::Producer;
use crate::broker::kafka::{self, KafkaConsumer, KafkaProducer};
use crate::compile::Plan;
use crate::config::Config;
use crate::decode::Reason;
use crate::query::Engine;
use crate::server::{self, Live};
use crate::store::redis::{self, Finding, RedisStore, lane_tags};
use crate::store::{Meta, Store};
use crate::telemetry::names;
use crate::worker::{Status, Worker};

/// How often the recorder folds its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

pub fn now() -> i64 {
    now_ms() / 1000
}

pub fn store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    Ok(Arc::new(RedisStore::new(&config.store.redis).map_err(|error| anyhow!(error))?))
}

pub fn engine(config: &Config) -> anyhow::Result<Engine> {
    Ok(Engine::new(store(config)?, config.server.limits()))
}

/// Worker and server in one process, until SIGTERM or SIGINT.
pub async fn run(config: &Config, apply: bool, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let rules = config.check_worker().map_err(|error| anyhow!(error))?;
    refuse_bad_store(config).await?;
    let broker = config.broker.kafka.clone();
    tokio::task::spawn_blocking(move || kafka::checks(&broker)).await?.or_else(|error| {
        // A broker that is down comes back; a topic that is missing does not.
        if error.contains("cannot be reached") {
            tracing::warn!(error, "starting all the same");
            return Ok(());
        }
        Err(anyhow!(error))
    })?;
    for warning in kafka::warn_unknown(&config.broker.kafka) {
        tracing::warn!(warning, "configuration");
    }
    let store = store(config)?;
    if apply {
        crate::store::apply_rules(store.as_ref(), &rules).await.map_err(|error| anyhow!(error))?;
    }
    let plan = Arc::new(Plan::new(rules));
    announce_metrics();
    let status = Arc::new(Status::default());
    let (shutdown, watch) = watch::channel(false);
    let kafka = &config.broker.kafka;
    let consumer = KafkaConsumer::new(kafka, config.worker.fetch_bytes_max()).map_err(|error| anyhow!(error))?;
    let producer = KafkaProducer::new(kafka).map_err(|error| anyhow!(error))?;
    let worker = Worker {
        config: config.worker.clone(),
        plan,
        group: kafka.group.clone(),
        prefix: config.store.redis.prefix.clone(),
        tags: lane_tags(config.store.redis.lanes),
        start: kafka.start().map_err(|error| anyhow!(error))?,
        store: Arc::clone(&store),
        consumer: Box::new(consumer),
        producer: producer.map(|producer| Arc::new(producer) as Arc<dyn Producer>),
        status: Arc::clone(&status),
        shutdown: watch,
        now_ms,
    };
    let live = live(Arc::clone(&status), metrics);
    let router = server::router(&config.server, engine(config)?, live);
    // The server outlives the worker, so that a probe sees the draining and not a closed port.
    let listening = server::serve(&config.server, router, std::future::pending()).await.context("server")?;
    tracing::info!(address = %listening.address(), "listening");
    tokio::spawn(async move {
        interrupted().await;
        shutdown.send_replace(true);
    });
    let result = worker.run().await;
    listening.stop().await;
    result.map_err(|error| anyhow!(error))
}

/// Only queries.
pub async fn serve(config: &Config, metrics: PrometheusHandle) -> anyhow::Result<()> {
    config.check_server().map_err(|error| anyhow!(error))?;
    let status = Arc::new(Status::default());
    status.clear("worker");
    let router = server::router(&config.server, engine(config)?, live(status, metrics));
    let listening = server::serve(&config.server, router, std::future::pending()).await.context("server")?;
    tracing::info!(address = %listening.address(), "listening");
    interrupted().await;
    tracing::info!("stopping");
    listening.stop().await;
    Ok(())
}

/// Counters with a fixed set of labels are there from the start: a rate needs a zero to rise from.
fn announce_metrics() {
    for reason in Reason::ALL {
        metrics::counter!(names::DEAD_LETTERS, "reason" => reason.name()).increment(0);
    }
    for class in ["retry", "reconnect", "stop"] {
        metrics::counter!(names::STORE_ERRORS, "class" => class).increment(0);
    }
    for stored in ["ahead", "unchanged", "behind", "absent", "shadow"] {
        metrics::counter!(names::FENCES, "stored" => stored).increment(0);
    }
    for change in ["assigned", "revoked", "lost"] {
        metrics::counter!(names::REBALANCES, "change" => change).increment(0);
    }
}

fn live(status: Arc<Status>, metrics: PrometheusHandle) -> Live {
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(UPKEEP);
        loop {
            interval.tick().await;
            upkeep.run_upkeep();
        }
    });
    let readiness = Arc::clone(&status);
    Live {
        readiness: Box::new(move || readiness.readiness()),
        stats: Box::new(move || status.to_json()),
        metrics: Box::new(move || metrics.render()),
    }
}

/// Eviction, a replica, a missing permission: counting must not begin. A server that is down comes back.
async fn refuse_bad_store(config: &Config) -> anyhow::Result<()> {
    for check in redis::checks(&config.store.redis, now()).await {
        match check.finding {
            Finding::Bad(text) if check.name == "connection" && !text.contains("refuses") => {
                tracing::warn!(text, "starting all the same");
            }
            Finding::Bad(text) => return Err(anyhow!(text)),
            Finding::Warning(text) => tracing::warn!(text, check = check.name, "redis"),
            Finding::Good(_) => {}
        }
    }
    Ok(())
}

/// What `mapping apply` would change, without changing it.
pub async fn pending_mapping(config: &Config) -> anyhow::Result<Option<String>> {
    let rules = config.rules().validate().map_err(|error| anyhow!(error))?;
    let meta: Option<Meta> = store(config)?.meta().await?;
    Ok(meta.filter(|meta| meta.plan != rules.plan_hash()).map(|meta| crate::worker::plan_difference(&meta, &rules)))
}

/// SIGTERM or SIGINT.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be watched");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be watched");
    // Cancel safety: a signal that the other branch lost to is not needed any more.
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
