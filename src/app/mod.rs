//! The only place that names concrete brokers and stores: wiring, and the order in which things
//! start and stop.
//!
//! - `backends`  the log and the store, as they are configured
//! - `live`      what the process says of itself
//! - `clock`     its clocks; `process` open files and signals

mod backends;
mod clock;
mod live;
mod process;

use std::sync::Arc;

use anyhow::anyhow;
use metrics_exporter_prometheus::PrometheusHandle;

use self::backends::{Backends, answers_bytes, ingest_bytes};
use self::live::{announce_metrics, live};
use self::process::{raise_open_files, shutdown};
use crate::config::{BrokerKind, Config};
use crate::server::{self, Ingest, Listening, Tls};
use crate::telemetry::names;
use traqq_core::error::ErrorLine;
use traqq_counts::Counts;
use traqq_counts::compile::{GateRules, Plan};
use traqq_counts::query::{Engine, Limits};
use traqq_counts::store::{Store, meta_of_other_rules};
use traqq_pipeline::{Execution, Obstacle, Status, Statuses, Worker};

pub use self::backends::{idle_worker, open_store, store};
pub use self::clock::{now, now_ms};

/// Worker and server in one process, until SIGTERM, SIGINT or SIGHUP.
pub async fn run(config: &Config, apply: bool, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let rules = config.check_worker()?;
    raise_open_files();
    let mut shutdown = shutdown();
    // Cancel safety: nothing is in flight yet, and what is open is closed by being dropped.
    let backends = tokio::select! {
        backends = Backends::open(config) => backends?,
        _ = shutdown.wait_for(|is_asked| *is_asked) => return Ok(()),
    };
    let store = Arc::clone(&backends.store);
    if apply {
        traqq_counts::store::apply_rules(store.as_ref(), &rules).await?;
    }
    announce_metrics();
    traqq_pipeline::announce::<Counts>(&backends.dead_letters);
    let kind = match config.broker.kind() {
        BrokerKind::Kafka => "kafka",
        BrokerKind::Nats => "nats",
        BrokerKind::Auto | BrokerKind::Local => "local",
    };
    metrics::gauge!(names::BROKER_INFO, "broker" => kind).set(1.0);
    let ingest = backends.appender.clone().map(|appender| {
        let gate = GateRules::new(&rules, appender.key_field());
        Arc::new(Ingest::new(appender, gate, ingest_bytes(config), now_ms))
    });
    let plan = Arc::new(Plan::new(rules));
    let status = Arc::new(Status::of::<Counts>(&backends.dead_letters_to));
    status.watch();
    let counts = Counts::new(
        plan,
        Arc::clone(&store),
        &backends.group,
        &backends.prefix,
        backends.tags,
        config.worker.batch_operations,
    );
    let worker = Worker {
        config: config.worker.clone(),
        projection: Arc::new(counts),
        group: backends.group,
        start: backends.start,
        consumer: backends.consumer,
        dead_letters: backends.dead_letters,
        status: Arc::clone(&status),
        shutdown,
        now_ms,
        execution: Execution::Threads,
    };
    let log = backends.local.as_ref().and_then(|local| local.log.clone());
    let engine = Arc::new(engine(config, store)?);
    let live = live(Statuses::new(vec![status]), metrics, log, &engine);
    let router = server::router(&config.server, Arc::clone(&engine), live, ingest.clone());
    // The server outlives the worker, so that a probe sees the draining and not a closed port.
    let tls = Tls::load(&config.server)?;
    let listening = listen(config, tls.clone(), router).await?;
    let tcp = if config.server.has_tcp() {
        let event_bytes_max = config.events.max_event_bytes;
        let tcp = server::serve_tcp(&config.server, tls, event_bytes_max, engine, ingest, now).await;
        let (address, task) = tcp?;
        tracing::info!(%address, "listening for TCP");
        Some(task)
    } else {
        None
    };
    let result = worker.run().await;
    if let Some(tcp) = tcp {
        tcp.abort();
    }
    listening.stop().await;
    drop(backends.appender);
    if let Some(local) = backends.local {
        local.close().await;
    }
    result.map_err(|error| anyhow!(error))
}

/// Only queries.
pub async fn serve(config: &Config, metrics: PrometheusHandle) -> anyhow::Result<()> {
    config.check_server()?;
    raise_open_files();
    let mut shutdown = shutdown();
    let status = Arc::new(Status::of::<Counts>("discard"));
    status.clear(&Obstacle::Start);
    let engine = Arc::new(engine(config, store(config)?)?);
    let live = live(Statuses::new(vec![status]), metrics, None, &engine);
    let router = server::router(&config.server, engine, live, None);
    let tls = Tls::load(&config.server)?;
    let listening = listen(config, tls, router).await?;
    let _ = shutdown.wait_for(|is_asked| *is_asked).await;
    tracing::info!("stopping");
    listening.stop().await;
    Ok(())
}

fn engine(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Engine> {
    let limits = Limits { answers_bytes_max: answers_bytes(config), ..config.server.limits() };
    Engine::new(store, limits)
        .with_threads()
        .map_err(|error| ErrorLine::of(format!("threads that answer questions: {error}"), error).into())
}

async fn listen(config: &Config, tls: Option<Tls>, router: axum::Router) -> anyhow::Result<Listening> {
    let has_tls = tls.is_some();
    let listening = server::serve(&config.server, tls, router, std::future::pending()).await;
    let listening = listening.map_err(|error| ErrorLine::of(format!("server: {error}"), error))?;
    let address = listening.address();
    tracing::info!(%address, tls = has_tls, "listening");
    tracing::info!("open {}", config.server.url(address.port()));
    Ok(listening)
}

/// What `mapping apply` would change of a store, without changing it.
pub async fn pending_mapping(config: &Config, store: &dyn Store) -> anyhow::Result<Option<String>> {
    let rules = config.rules().validate()?;
    let other = meta_of_other_rules(store, &rules).await?;
    Ok(other.and_then(|meta| traqq_counts::plan_difference(&meta, &rules)))
}
