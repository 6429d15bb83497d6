//! `traqq mapping`: the mapping a prefix is counted by.

use clap::Subcommand;

use super::table::Table;
use super::{Failure, Outcome, block_on, print_json};
use crate::app;
use crate::config::Config;
use traqq_core::error::ErrorLine;
use traqq_counts::mapping::{metric_name, metrics_of};
use traqq_counts::store::apply_rules;

#[derive(Subcommand)]
pub enum Mapping {
    /// Make the configured mapping the store's. Stop workers with the old one first: they would
    /// only stop by themselves
    Apply {
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the store's mapping, with what was added later
    Show {
        #[arg(long)]
        json: bool,
    },
}

impl Mapping {
    pub fn run(self, config: &Config) -> Outcome {
        match self {
            Self::Apply { dry_run: true } => {
                let store = app::store(config)?;
                match block_on(app::pending_mapping(config, store.as_ref()))?? {
                    Some(difference) => say!("{difference}"),
                    None => say!("nothing to change"),
                }
            }
            Self::Apply { dry_run: false } => {
                let rules = config.rules().validate().map_err(|error| Failure::Usage(error.to_string()))?;
                let store = app::store(config)?;
                let applied = block_on(apply_rules(store.as_ref(), &rules))?
                    .map_err(|error| Failure::Failed(error.to_string()))?;
                for name in &applied.added {
                    say!("+ {name}");
                }
                for name in &applied.removed {
                    say!("- {name}");
                }
                say!("{}", if applied.changed { "applied" } else { "nothing to change" });
            }
            Self::Show { json } => show(config, json)?,
        }
        Ok(())
    }
}

fn show(config: &Config, json: bool) -> Outcome {
    let store = app::store(config)?;
    let meta = block_on(store.meta())?.map_err(|error| Failure::Failed(error.to_string()))?;
    let place = config.store_place();
    let meta = meta.ok_or_else(|| Failure::Failed(format!("nothing has been counted under {place} yet")))?;
    let rules = meta.valid_rules().map_err(ErrorLine::from_error)?;
    if json {
        let rules = serde_json::to_value(&rules.rules).map_err(|error| Failure::Failed(error.to_string()))?;
        return print_json(&rules);
    }
    let mut table = Table::new(&["metric", "counts since"]);
    for metric in metrics_of(&rules.rules) {
        let name = metric_name(&metric);
        let since = meta
            .since
            .get(&name)
            .map_or_else(|| "the start".to_owned(), |since| rules.zone.local(since.second).to_rfc3339());
        table.row(vec![name, since]);
    }
    table.print()
}
