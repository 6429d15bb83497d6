//! The only place that names concrete brokers and stores: wiring, and the order in which things start and stop.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::broker::kafka::{self, KafkaConsumer, KafkaProducer};
use crate::broker::local::{self, LocalLog};
use crate::broker::nats::{self, NatsConsumer, NatsProducer};
use crate::broker::{Appender, Consumer, Start};
use crate::compile::{GateRules, Plan};
use crate::config::{BrokerKind, Config, StoreKind};
use crate::counts::Counts;
use crate::database::{AgeClock, Database, Upkeep};
use crate::decode::Reason;
use crate::model::{Check, Finding, Record, RecordBatch};
use crate::query::{Engine, Limits};
use crate::server::{self, DeadLetters, Ingest, Letters, Listening, Live, Tls, Unfit};
use crate::store::embedded::{self, EmbeddedStore};
use crate::store::redis::{self, RedisStore, lane_tags};
use crate::store::{Store, meta_of_other_rules};
use crate::telemetry::{self, names};
use crate::worker::{self, Execution, Projection, Status, Statuses, Worker};

/// How often the recorder folds its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

pub fn now() -> i64 {
    now_ms() / 1000
}

/// The clock by which what is too old is removed.
fn age_ms() -> i64 {
    static CLOCK: AgeClock = AgeClock::new();
    CLOCK.believe(now_ms())
}

fn age() -> i64 {
    age_ms() / 1000
}

/// The store alone, for commands that do not count. An embedded one must be there already.
pub fn store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    if config.store_kind() != StoreKind::Redis && Database::inspect(&config.data)?.is_none() {
        let directory = config.data.directory.display();
        return Err(anyhow!(
            "there is no data directory at {directory}; is data.directory right? The first `traqq run` makes it"
        ));
    }
    open_store(config)
}

/// The same; an embedded store is made if it is not there.
pub fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    if config.store_kind() == StoreKind::Redis {
        return Ok(Arc::new(RedisStore::new(&config.store.redis).map_err(|error| anyhow!(error))?));
    }
    let database = open_database(config)?;
    Ok(Arc::new(EmbeddedStore::open(&database, index_bytes(config), now)?))
}

/// Why a worker of this configuration may be running that counts into a store of this group and has
/// nothing to count just now; `None` where none is known.
pub fn idle_worker(config: &Config, group: &str) -> Option<String> {
    match config.broker.kind() {
        BrokerKind::Local if config.store_kind() == StoreKind::Redis && Database::is_in_use(&config.data) => {
            let directory = config.data.directory.display();
            Some(format!("{directory} is in use by a traqq, which may count into this store; stop it, and try again"))
        }
        BrokerKind::Kafka => {
            let members = config.broker.kafka.members(group).filter(|members| *members > 0)?;
            Some(format!(
                "group {group:?}, which counts into this store, has {members} members; stop them, and try again (one that was \
                 killed is forgotten after a moment)"
            ))
        }
        _ => None,
    }
}

/// Log and store as they are configured, and what looks after them.
struct Backends {
    store: Arc<dyn Store>,
    consumer: Box<dyn Consumer>,
    dead_letters: worker::DeadLetters,
    /// Where they go, for a person.
    dead_letters_to: String,
    /// `None` when events cannot come in here.
    appender: Option<Arc<dyn Appender>>,
    group: String,
    prefix: String,
    tags: Vec<String>,
    start: Start,
    local: Option<Local>,
}

/// What the data directory needs while it is used; dropped in this order.
struct Local {
    upkeep: Vec<Upkeep>,
    log: Option<LocalLog>,
    database: Arc<Database>,
}

/// Of what the process may use, a part is the block cache and the write buffers of the database,
fn database_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 8
}

/// a part the values of the embedded store,
fn index_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 16
}

/// a part blocks that the worker has not had yet,
fn fresh_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 32
}

/// a part answers, from the replies they are made of until the client has taken them, of which one
/// answer may have half,
fn answers_bytes(config: &Config) -> usize {
    config.worker.memory_max_bytes / 4
}

/// and a part requests that bring events: at least what one of them may need, packed, unpacked and judged.
fn ingest_bytes(config: &Config) -> usize {
    let largest = config.server.body_bytes_max.max(config.events.max_event_bytes);
    (config.worker.memory_max_bytes / 8).max(largest * 4 + (1 << 20))
}

fn open_database(config: &Config) -> anyhow::Result<Arc<Database>> {
    config.check_directory().map_err(|error| anyhow!(error))?;
    Ok(Database::open(&config.data, database_bytes(config), &[local::rows::TREE, embedded::rows::TREE])?)
}

fn discard() -> String {
    "discard".to_owned()
}

impl Backends {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let is_embedded = config.store_kind() != StoreKind::Redis;
        let is_local = config.broker.kind() == BrokerKind::Local;
        let database = if is_embedded || is_local { Some(open_database(config)?) } else { None };
        let embedded = match &database {
            Some(database) if is_embedded => Some(EmbeddedStore::open(database, index_bytes(config), age)?),
            _ => None,
        };
        let store: Arc<dyn Store> = match &embedded {
            Some(embedded) => Arc::new(embedded.clone()),
            None => open_store(config)?,
        };
        let (prefix, tags) = if is_embedded {
            (config.data.directory.display().to_string(), Vec::new())
        } else {
            refuse_bad("redis", redis::checks(&config.store.redis, now()).await)?;
            (config.store.redis.prefix.clone(), lane_tags(config.store.redis.lanes))
        };
        let mut upkeep: Vec<Upkeep> = embedded.iter().map(EmbeddedStore::upkeep).collect();
        let local = |upkeep| database.clone().map(|database| Local { upkeep, log: None, database });
        if config.broker.kind() == BrokerKind::Nats {
            let nats = &config.broker.nats;
            refuse_bad("nats", nats::checks(nats).await)?;
            let made = |error| anyhow!("broker.nats: {error}");
            let consumer = NatsConsumer::new(nats, config.worker.fetch_bytes_max()).await.map_err(made)?;
            let dead_letters = NatsProducer::dead_letters(nats).await.map_err(made)?;
            let appender = NatsProducer::ingest(nats).await.map_err(made)?;
            return Ok(Self {
                store,
                consumer: Box::new(consumer),
                dead_letters: worker::DeadLetters::to(dead_letters.map(|producer| Arc::new(producer) as _)),
                dead_letters_to: nats.dead_letters().map_or_else(discard, |subject| format!("subject {subject}")),
                appender: Some(Arc::new(appender)),
                group: nats.group.clone(),
                prefix,
                tags,
                start: nats.start().map_err(|error| anyhow!(error))?,
                local: local(upkeep),
            });
        }
        if !is_local {
            let kafka = &config.broker.kafka;
            let broker = kafka.clone();
            refuse_bad("kafka", tokio::task::spawn_blocking(move || kafka::checks(&broker)).await?)?;
            let consumer =
                KafkaConsumer::new(kafka, config.worker.fetch_bytes_max()).map_err(|error| anyhow!(error))?;
            let dead_letters = KafkaProducer::dead_letters(kafka).map_err(|error| anyhow!(error))?;
            let appender = KafkaProducer::ingest(kafka).map_err(|error| anyhow!(error))?;
            return Ok(Self {
                store,
                consumer: Box::new(consumer),
                dead_letters: worker::DeadLetters::to(dead_letters.map(|producer| Arc::new(producer) as _)),
                dead_letters_to: kafka.dead_letters().map_or_else(discard, |topic| format!("topic {topic}")),
                appender: appender.map(|producer| Arc::new(producer) as Arc<dyn Appender>),
                group: kafka.group.clone(),
                prefix,
                tags,
                start: kafka.start().map_err(|error| anyhow!(error))?,
                local: local(upkeep),
            });
        }
        let database = database.expect("the local log has a database");
        let log = LocalLog::open(&database, &config.broker.local, !is_embedded, fresh_bytes(config), now_ms)?;
        if let Some(embedded) = &embedded {
            say_what_is_missing(&log, embedded).await?;
        }
        upkeep.push(log.upkeep(age_ms));
        Ok(Self {
            store,
            consumer: Box::new(log.consumer()),
            dead_letters: worker::DeadLetters::Publish(Arc::new(log.clone())),
            dead_letters_to: "GET /api/v1/dead-letters".to_owned(),
            appender: Some(Arc::new(log.clone())),
            group: config.broker.local.group.clone(),
            prefix,
            tags,
            start: Start::Earliest,
            local: Some(Local { upkeep, log: Some(log), database }),
        })
    }
}

/// The log may have lost records that are counted already, if the directory was damaged; their offsets are not used again.
async fn say_what_is_missing(log: &LocalLog, store: &EmbeddedStore) -> anyhow::Result<()> {
    for (partition, checkpoint) in store.positions(0).await? {
        let missing = log.raise(&partition, checkpoint.position)?;
        if missing > 0 {
            tracing::error!(
                %partition, missing,
                "the log has lost records at its end that were counted already; the counts stand, a replay would not have them"
            );
        }
    }
    Ok(())
}

impl Local {
    async fn close(self) {
        let Self { upkeep, log, database } = self;
        drop(upkeep);
        if let Some(log) = log {
            log.close().await;
        }
        if let Err(error) = database.sync() {
            tracing::warn!(%error, "the data directory was not synced at the end");
        }
    }
}

/// Worker and server in one process, until SIGTERM, SIGINT or SIGHUP.
pub async fn run(config: &Config, apply: bool, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let rules = config.check_worker().map_err(|error| anyhow!(error))?;
    raise_open_files();
    let mut shutdown = shutdown();
    // Cancel safety: nothing is in flight yet, and what is open is closed by being dropped.
    let backends = tokio::select! {
        backends = Backends::open(config) => backends?,
        _ = shutdown.wait_for(|is_asked| *is_asked) => return Ok(()),
    };
    let store = Arc::clone(&backends.store);
    if apply {
        crate::store::apply_rules(store.as_ref(), &rules).await.map_err(|error| anyhow!(error))?;
    }
    announce_metrics();
    worker::announce::<Counts>(&backends.dead_letters);
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
    let tls = Tls::load(&config.server).map_err(|error| anyhow!(error))?;
    let listening = listen(config, tls.clone(), router).await?;
    let tcp = if config.server.has_tcp() {
        let event_bytes_max = config.events.max_event_bytes;
        let tcp = server::serve_tcp(&config.server, tls, event_bytes_max, engine, ingest, now).await;
        let (address, task) = tcp.map_err(|error| anyhow!(error))?;
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
    config.check_server().map_err(|error| anyhow!(error))?;
    raise_open_files();
    let mut shutdown = shutdown();
    let status = Arc::new(Status::of::<Counts>("discard"));
    status.clear("worker");
    let engine = Arc::new(engine(config, store(config)?)?);
    let live = live(Statuses::new(vec![status]), metrics, None, &engine);
    let router = server::router(&config.server, engine, live, None);
    let tls = Tls::load(&config.server).map_err(|error| anyhow!(error))?;
    let listening = listen(config, tls, router).await?;
    let _ = shutdown.wait_for(|is_asked| *is_asked).await;
    tracing::info!("stopping");
    listening.stop().await;
    Ok(())
}

fn engine(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Engine> {
    let limits = Limits { answers_bytes_max: answers_bytes(config), ..config.server.limits() };
    Engine::new(store, limits).with_threads().context("threads that answer questions")
}

async fn listen(config: &Config, tls: Option<Tls>, router: axum::Router) -> anyhow::Result<Listening> {
    let has_tls = tls.is_some();
    let listening = server::serve(&config.server, tls, router, std::future::pending()).await.context("server")?;
    let address = listening.address();
    tracing::info!(%address, tls = has_tls, "listening");
    tracing::info!("open {}", config.server.url(address.port()));
    Ok(listening)
}

/// Every connection is an open file, and the usual limit of 1,024 is a matter of courtesy.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Counters with a fixed set of labels are there from the start: a rate needs a zero to rise from.
fn announce_metrics() {
    for reason in Reason::ALL {
        metrics::counter!(names::INGEST_REJECTED, "reason" => reason.name()).increment(0);
    }
    for protocol in ["http", "tcp"] {
        metrics::counter!(names::INGESTED, "protocol" => protocol).increment(0);
    }
    for stored in ["plan", "shadow"] {
        metrics::counter!(names::FENCES, "stored" => stored, "projection" => Counts::NAME).increment(0);
    }
}

fn live(statuses: Statuses, metrics: PrometheusHandle, log: Option<LocalLog>, engine: &Engine) -> Live {
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(UPKEEP);
        loop {
            interval.tick().await;
            upkeep.run_upkeep();
        }
    });
    let statuses = Arc::new(statuses);
    let (liveness, readiness, measured) = (Arc::clone(&statuses), Arc::clone(&statuses), Arc::clone(&statuses));
    let (answers, keys) = (Arc::clone(engine.memory()), log.clone());
    Live {
        liveness: Box::new(move || {
            liveness.liveness().map_err(|reason| Unfit { class: "worker hangs".to_owned(), reason })
        }),
        readiness: Box::new(move || {
            readiness.readiness().map_err(|reason| Unfit { class: readiness.affected(), reason })
        }),
        metrics: Box::new(move || {
            metrics::gauge!(names::ANSWER_BYTES).set(answers.used() as f64);
            if let Some(log) = &keys {
                metrics::gauge!(names::IDEMPOTENCY_BYTES).set(log.keys_bytes() as f64);
            }
            metrics.render() + &measured.partition_gauges() + &telemetry::render_process()
        }),
        stats: Box::new(move || statuses.to_json(now_ms())),
        dead_letters: log.map(|log| {
            let read = move |before, limit, bytes_max| dead_letters(&log, before, limit, bytes_max);
            Arc::new(read) as DeadLetters
        }),
    }
}

/// The first of those asked for whatever its size, and the others while there is room.
fn dead_letters(log: &LocalLog, before: Option<i64>, limit: usize, bytes_max: usize) -> Result<Letters, String> {
    let (mut letters, mut count) = (Letters { text: b"[".to_vec(), more_before: None }, 0);
    let mut last = None;
    let take = |batch: RecordBatch| {
        for letter in batch.iter() {
            let length = letters.text.len();
            if count > 0 {
                letters.text.push(b',');
            }
            serde_json::to_writer(&mut letters.text, &dead_letter(&letter)).expect("memory takes what is written");
            if count == limit || (count > 0 && letters.text.len() > bytes_max) {
                letters.text.truncate(length);
                letters.more_before = last;
                return ControlFlow::Break(());
            }
            (count, last) = (count + 1, Some(letter.offset));
        }
        ControlFlow::Continue(())
    };
    log.dead_letters(before, take).map_err(|error| error.to_string())?;
    letters.text.push(b']');
    Ok(letters)
}

fn dead_letter(letter: &Record<'_>) -> serde_json::Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = |(name, value): (&str, Option<&[u8]>)| (name.to_owned(), value.map(text).into());
    serde_json::json!({
        "number": letter.offset,
        "at": letter.timestamp_ms,
        "headers": letter.headers().map(header).collect::<serde_json::Map<_, _>>(),
        "value": letter.value.map(text),
    })
}

/// Eviction, a replica, a missing permission or stream: counting must not begin. A server that is down comes back.
fn refuse_bad(server: &'static str, checks: Vec<Check>) -> anyhow::Result<()> {
    for check in checks {
        match check.finding {
            Finding::Unavailable(text) => tracing::warn!(text, server, "starting all the same"),
            Finding::Bad(text) => return Err(anyhow!(text)),
            Finding::Warning(text) => tracing::warn!(text, check = check.name, server, "checks"),
            Finding::Good(_) => {}
        }
    }
    Ok(())
}

/// What `mapping apply` would change of a store, without changing it.
pub async fn pending_mapping(config: &Config, store: &dyn Store) -> anyhow::Result<Option<String>> {
    let rules = config.rules().validate().map_err(|error| anyhow!(error))?;
    let other = meta_of_other_rules(store, &rules).await?;
    Ok(other.and_then(|meta| crate::counts::plan_difference(&meta, &rules)))
}

/// Becomes true with SIGTERM or SIGINT, from now on; and with SIGHUP, when a terminal closes, unless whoever started the process has
/// it ignored, as `nohup` does.
fn shutdown() -> watch::Receiver<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be watched");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be watched");
    let mut hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup()).expect("signals can be watched"));
    let (asked, shutdown) = watch::channel(false);
    tokio::spawn(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        // Cancel safety: a signal that the other branches lost to is not needed any more.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
        asked.send_replace(true);
    });
    shutdown
}

/// Whether SIGHUP is ignored; `false` where the system does not say.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
