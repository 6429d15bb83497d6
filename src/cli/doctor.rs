//! `traqq doctor`: looks at everything a worker relies on.

use clap::Args;

use super::terminal::{Style, Terminal};
use super::{Failure, Outcome, block_on, print_json};
use crate::app;
use crate::broker::kafka;
use crate::config::Config;
use crate::store::redis::{self, Check, Finding};

#[derive(Args)]
pub struct Doctor {
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self, config: &Config) -> Outcome {
        let mut sections: Vec<(&str, Vec<Check>)> = vec![("configuration", vec![configuration(config)])];
        sections.push(("redis", block_on(redis::checks(&config.store.redis, app::now()))?));
        if !sections[1].1.iter().any(|check| check.name == "connection" && matches!(check.finding, Finding::Bad(_))) {
            sections.push(("counts", block_on(counts(config))?));
        }
        sections.push((
            "kafka",
            vec![Check {
                name: "topics",
                finding: match kafka::checks(&config.broker.kafka) {
                    Ok(()) => Finding::Good(config.broker.kafka.brokers.clone()),
                    Err(text) => Finding::Bad(text),
                },
            }],
        ));
        let bad =
            sections.iter().flat_map(|(_, checks)| checks).filter(|check| matches!(check.finding, Finding::Bad(_)));
        let bad = bad.count();
        if self.json {
            print_json(&to_json(&sections))?;
        } else {
            print(&sections);
        }
        if bad > 0 { Err(Failure::Failed(format!("{bad} of the checks above must be mended"))) } else { Ok(()) }
    }
}

fn configuration(config: &Config) -> Check {
    let finding = match config.check_worker() {
        Ok(rules) => Finding::Good(format!("{} metrics", rules.rules.mapping.patterns())),
        Err(text) => Finding::Bad(text),
    };
    Check { name: "configuration", finding }
}

/// Meta, plan and quarantined keys of the prefix.
async fn counts(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let store = match app::store(config) {
        Ok(store) => store,
        Err(error) => return vec![Check { name: "store", finding: Finding::Bad(error.to_string()) }],
    };
    let prefix = &config.store.redis.prefix;
    checks.push(Check {
        name: "meta",
        finding: match store.meta().await {
            Ok(Some(meta)) => Finding::Good(format!("prefix {prefix:?}, {} partitions", meta.starts.len())),
            Ok(None) => Finding::Good(format!("prefix {prefix:?} is empty; the first worker begins it")),
            Err(error) => Finding::Bad(error.to_string()),
        },
    });
    checks.push(Check {
        name: "mapping",
        finding: match app::pending_mapping(config).await {
            Ok(None) => Finding::Good("the store's".to_owned()),
            Ok(Some(difference)) => Finding::Bad(difference),
            Err(error) => Finding::Bad(error.to_string()),
        },
    });
    for lane in 0..store.lanes() {
        match store.quarantined(lane).await {
            Ok(quarantined) if quarantined.is_empty() => {
                checks.push(Check { name: "quarantined keys", finding: Finding::Good("none".to_owned()) });
            }
            Ok(quarantined) => checks.extend(quarantined.into_iter().map(|quarantined| Check {
                name: "quarantined keys",
                finding: Finding::Bad(format!(
                    "{key}: {error}; its counts are incomplete. Rename or delete the key, then `redis-cli HDEL {prefix}:quarantine {key}`; \
                     to have them whole again count once more under a new store.redis.prefix",
                    key = quarantined.key,
                    error = quarantined.error,
                )),
            })),
            Err(error) => checks.push(Check { name: "quarantined keys", finding: Finding::Bad(error.to_string()) }),
        }
    }
    checks
}

fn print(sections: &[(&str, Vec<Check>)]) {
    let terminal = Terminal::stdout();
    for (section, checks) in sections {
        say!("{section}");
        for Check { name, finding } in checks {
            let (mark, text) = match finding {
                Finding::Good(text) => (terminal.paint(Style::Green, "ok  "), text),
                Finding::Warning(text) => (terminal.paint(Style::Yellow, "warn"), text),
                Finding::Bad(text) => (terminal.paint(Style::Red, "BAD "), text),
            };
            say!("  {mark}  {name}: {text}");
        }
    }
}

fn to_json(sections: &[(&str, Vec<Check>)]) -> serde_json::Value {
    let rows: Vec<_> = sections
        .iter()
        .flat_map(|(section, checks)| checks.iter().map(move |check| (section, check)))
        .map(|(section, Check { name, finding })| {
            let (level, text) = match finding {
                Finding::Good(text) => ("good", text),
                Finding::Warning(text) => ("warning", text),
                Finding::Bad(text) => ("bad", text),
            };
            serde_json::json!({"section": section, "check": name, "level": level, "text": text})
        })
        .collect();
    rows.into()
}
