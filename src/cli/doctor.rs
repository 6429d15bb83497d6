//! `traqq doctor`: looks at everything a worker relies on.

use std::time::Duration;

use clap::Args;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};

use super::chart::counted;
use super::client::{ClientError, ServerArgument};
use super::stats::Stats;
use super::terminal::{Style, Terminal, printable};
use super::{Failure, Outcome, block_on, output, print_json};
use crate::app;
use crate::config::{BrokerKind, Config, Loaded, StoreKind};
use crate::server::Tls;
use traqq_core::error::ErrorLine;
use traqq_core::model::escape::{redis_cli, shell};
use traqq_core::model::{Check, Finding};
use traqq_counts::store::{fitting_meta, redis};
use traqq_disk::{Database, DatabaseError, Durability};
use traqq_log::{kafka, nats};

/// A traqq that runs here and is slower has other worries.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Args)]
pub struct Doctor {
    #[arg(long)]
    json: bool,
    /// With NATS: make the stream and that of dead letters where they are missing, as [broker.nats]
    /// says
    #[arg(long)]
    create: bool,
}

impl Doctor {
    pub fn run(self, loaded: &Loaded) -> Outcome {
        let config = &loaded.config;
        let mut sections: Vec<(&str, Vec<Check>)> = vec![("configuration", configuration(loaded))];
        let uses_redis = config.store_kind() == StoreKind::Redis;
        let broker = config.broker.kind();
        if self.create {
            create(config)?;
        }
        let mut has_counts = true;
        if !uses_redis || broker == BrokerKind::Local {
            let (checks, is_usable) = data_directory(config);
            sections.push(("data directory", checks));
            has_counts = uses_redis || is_usable;
        }
        if uses_redis {
            let checks = block_on(redis::checks(&config.store.redis, app::now()))?;
            has_counts &= !checks.iter().any(|check| check.name == "connection" && check.is_bad());
            sections.push(("redis", checks));
        }
        if has_counts {
            sections.push(("counts", block_on(counts(config))?));
        }
        if let Some(checks) = block_on(running(config))? {
            sections.push(("running traqq", checks));
        }
        let usable = match broker {
            BrokerKind::Kafka => {
                config.broker.kafka.check_brokers().and_then(|()| config.broker.kafka.check_properties())
            }
            BrokerKind::Nats => config.broker.nats.check_servers(),
            BrokerKind::Auto | BrokerKind::Local => Ok(()),
        };
        // Nothing is asked for at an address that may have a password in it: others would show it.
        // And no client is made of properties that have it run something.
        let is_usable = usable.is_ok();
        if let Err(error) = usable {
            sections.push(("broker", vec![Check { name: "settings", finding: error.into() }]));
        }
        match broker {
            _ if !is_usable => {}
            BrokerKind::Kafka => sections.push(("kafka", kafka::examine(&config.broker.kafka))),
            BrokerKind::Nats => {
                let mut checks = block_on(nats::checks(&config.broker.nats))?;
                if !checks[0].is_bad() {
                    checks.extend(block_on(nats::limits(&config.broker.nats))?);
                }
                sections.push(("nats", checks));
            }
            BrokerKind::Auto | BrokerKind::Local => {}
        }
        let bad = sections.iter().flat_map(|(_, checks)| checks).filter(|check| check.is_bad()).count();
        let printed = if self.json { print_json(&to_json(&sections)) } else { print(&sections) };
        if bad > 0 { Err(Failure::Failed(format!("{bad} of the checks above must be mended"))) } else { printed }
    }
}

fn create(config: &Config) -> Outcome {
    if config.broker.kind() != BrokerKind::Nats {
        return Err(Failure::Failed(
            "--create makes streams of NATS; topics of Kafka belong to whoever runs it".to_owned(),
        ));
    }
    config.broker.nats.check().map_err(ErrorLine::from)?;
    let made = block_on(nats::create(&config.broker.nats))?.map_err(ErrorLine::from_error)?;
    for what in &made {
        complain!("created {what}");
    }
    if made.is_empty() {
        complain!("nothing to create: the streams are there");
    }
    Ok(())
}

fn configuration(loaded: &Loaded) -> Vec<Check> {
    let config = &loaded.config;
    let checked = config.check_worker().and_then(|rules| Tls::load(&config.server).map(|_| rules));
    let finding = match checked {
        Ok(rules) => Finding::Good(format!("{} metrics", rules.rules.mapping.patterns())),
        Err(error) => error.into(),
    };
    let advice = loaded.advice().into_iter();
    let unsafe_ones = advice.map(|text| Check { name: "secrets", finding: Finding::Warning(text) });
    std::iter::once(Check { name: "configuration", finding }).chain(unsafe_ones).collect()
}

/// Where it is, how much room there is, and what an acknowledged event survives; whether there are
/// counts to be looked at.
fn data_directory(config: &Config) -> (Vec<Check>, bool) {
    let data = &config.data;
    let directory = data.directory.display();
    let mut is_usable = false;
    let found = match Database::inspect(data) {
        Ok(None) => Finding::Good(format!("{directory} is made by the first run")),
        Ok(Some(format)) => {
            is_usable = true;
            Finding::Good(format!("{directory}, format {format}"))
        }
        Err(DatabaseError::InUse(_)) => {
            Finding::Warning(format!("{directory} is in use by a running traqq, which says more: `traqq top`"))
        }
        Err(error) => Finding::Bad(error.to_string()),
    };
    let free = match Database::free_bytes(data) {
        Ok(bytes) if bytes < data.reserve_bytes => Finding::Bad(format!(
            "{} MiB are free and {} are kept in reserve: no events are taken; free some space, or lower data.reserve_bytes",
            bytes >> 20,
            data.reserve_bytes >> 20
        )),
        Ok(bytes) => Finding::Good(format!("{} MiB", bytes >> 20)),
        Err(error) => Finding::Bad(error.to_string()),
    };
    let rights = Database::is_open_to_others(data).then(|| Check {
        name: "rights",
        finding: Finding::Warning(format!(
            "every user of this machine may enter {directory}, where events and counts are; chmod o= {}",
            shell(&data.directory.to_string_lossy())
        )),
    });
    let promise = format!("{}: {}", data.durability.name(), data.durability.promise());
    let promise = if data.durability == Durability::None { Finding::Warning(promise) } else { Finding::Good(promise) };
    let mut checks = vec![
        Check { name: "directory", finding: found },
        Check { name: "free space", finding: free },
        Check { name: "durability", finding: promise },
    ];
    checks.extend(rights);
    (checks, is_usable)
}

/// Meta, plan and quarantined keys of the prefix.
async fn counts(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let store = match app::store(config) {
        Ok(store) => store,
        Err(error) => return vec![Check { name: "store", finding: Finding::Bad(error.to_string()) }],
    };
    let place = config.store_place();
    checks.push(Check {
        name: "meta",
        finding: match fitting_meta(store.as_ref()).await {
            Ok(Some(meta)) => Finding::Good(format!("{place}, {} partitions", meta.starts.len())),
            Ok(None) => Finding::Good(format!("{place} is empty; the first worker begins it")),
            Err(error) => Finding::Bad(error.to_string()),
        },
    });
    checks.push(Check {
        name: "mapping",
        finding: match app::pending_mapping(config, store.as_ref()).await {
            Ok(None) => Finding::Good("the store's".to_owned()),
            Ok(Some(difference)) => Finding::Bad(difference),
            Err(error) => Finding::Bad(error.to_string()),
        },
    });
    let mut is_sound = true;
    for lane in 0..store.lanes() {
        let quarantined = store.quarantined(lane).await;
        is_sound &= quarantined.as_ref().is_ok_and(Vec::is_empty);
        match quarantined {
            Ok(quarantined) => checks.extend(quarantined.into_iter().map(|quarantined| Check {
                name: "quarantined keys",
                finding: Finding::Bad(format!(
                    "{}: {}; its counts are incomplete. {}",
                    redis_cli(&quarantined.key),
                    quarantined.error,
                    way_back(config, lane, &quarantined.key)
                )),
            })),
            Err(error) => checks.push(Check { name: "quarantined keys", finding: error.into() }),
        }
    }
    if is_sound {
        checks.push(Check { name: "quarantined keys", finding: Finding::Good("none".to_owned()) });
    }
    checks
}

/// What a traqq says of itself that runs here, if one does; `None` where it cannot be asked without
/// knowing its port.
async fn running(config: &Config) -> Option<Vec<Check>> {
    let mut client = ServerArgument::default().client(&config.server).ok()?;
    let answer = tokio::time::timeout(ANSWER_MAX, client.send(Method::GET, "/api/v1/stats", &[], Bytes::new())).await;
    let silent = || {
        let text = format!("{} does not answer within {} s", client.url(), ANSWER_MAX.as_secs());
        ClientError::Lost(text.into())
    };
    let finding = match answer.unwrap_or_else(|_| Err(silent())) {
        Ok(reply) if reply.status == StatusCode::OK => match serde_json::from_slice::<Stats>(&reply.body) {
            Ok(stats) => return Some(judge(&stats)),
            Err(error) => Finding::Warning(format!("its answer cannot be read: {error}; is it another version?")),
        },
        Ok(reply) => Finding::Warning(format!("it does not say how it is: {}", reply.problem())),
        Err(ClientError::Unreachable(why)) => Finding::Good(format!("none to ask: {why}")),
        Err(ClientError::Lost(why)) => Finding::Warning(why.to_string()),
    };
    Some(vec![Check { name: "stats", finding }])
}

/// Whether it counts, and whether what it reads is counted.
fn judge(stats: &Stats) -> Vec<Check> {
    let readiness = match &stats.not_ready_because {
        _ if stats.ready => Finding::Good("it is ready".to_owned()),
        Some(why) => Finding::Warning(format!("it is not ready: {why}")),
        None => Finding::Warning("it is not ready".to_owned()),
    };
    let of = counted(stats.totals.records, "record");
    let uncounted: Vec<String> = stats.uncounted().iter().map(|line| line.trim().to_owned()).collect();
    let finding = if uncounted.is_empty() {
        Finding::Good(format!("{} in {of}, nothing left out", counted(stats.totals.events, "event")))
    } else if stats.is_mostly_uncounted() {
        Finding::Bad(format!("most is not counted: {}", uncounted.join("; ")))
    } else {
        Finding::Warning(uncounted.join("; "))
    };
    vec![Check { name: "readiness", finding: readiness }, Check { name: "events counted", finding }]
}

fn way_back(config: &Config, lane: usize, key: &str) -> String {
    if config.store_kind() != StoreKind::Redis {
        return "To have them whole again count once more into a new data.directory".to_owned();
    }
    let redis::Config { prefix, lanes, .. } = &config.store.redis;
    // Each lane has its own, beside its keys.
    let tag = redis::lane_tags(*lanes).get(lane).map(|tag| format!("{{{tag}}}")).unwrap_or_default();
    // Labels of events stand in it, with any character: an argument for redis-cli in one for the
    // shell.
    let [quarantine, key] = [&format!("{prefix}{tag}:quarantine"), key].map(|name| shell(&redis_cli(name)));
    format!(
        "Rename or delete the key, then `redis-cli --quoted-input HDEL {quarantine} {key}`; to have them whole again \
         count once more under a new store.redis.prefix"
    )
}

fn print(sections: &[(&str, Vec<Check>)]) -> Outcome {
    let terminal = Terminal::stdout();
    for (section, checks) in sections {
        say!("{section}");
        for Check { name, finding } in checks {
            let (mark, text) = match finding {
                Finding::Good(text) => (terminal.paint(Style::Green, "ok  "), text),
                Finding::Warning(text) => (terminal.paint(Style::Yellow, "warn"), text),
                Finding::Unavailable(text) => (terminal.paint(Style::Red, "DOWN"), text),
                Finding::Bad(text) => (terminal.paint(Style::Red, "BAD "), text),
            };
            output::styled(&format!("  {mark}  {name}: {}", printable(text)))?;
        }
    }
    Ok(())
}

fn to_json(sections: &[(&str, Vec<Check>)]) -> serde_json::Value {
    let rows: Vec<_> = sections
        .iter()
        .flat_map(|(section, checks)| checks.iter().map(move |check| (section, check)))
        .map(|(section, Check { name, finding })| {
            let (level, text) = match finding {
                Finding::Good(text) => ("good", text),
                Finding::Warning(text) => ("warning", text),
                Finding::Unavailable(text) => ("unavailable", text),
                Finding::Bad(text) => ("bad", text),
            };
            serde_json::json!({"section": section, "check": name, "level": level, "text": text})
        })
        .collect();
    rows.into()
}
