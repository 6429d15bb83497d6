//! `traqq config`.

use std::path::PathBuf;

use clap::Subcommand;

use super::table::Table;
use super::{Loaded, Outcome, print_json, sample, warn};
use crate::server::Tls;

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Check everything that can be checked without connecting
    Check {
        /// Check what `traqq serve` needs, not what a worker needs
        #[arg(long)]
        sidecar: bool,

        /// Show in how many of these events (one a line) each pattern of the mapping finds
        /// something
        #[arg(long, value_name = "FILE", conflicts_with = "sidecar")]
        sample: Option<PathBuf>,
    },
    /// Print the effective configuration with each value's origin; secrets are hidden
    Show {
        #[arg(long)]
        json: bool,
    },
}

impl ConfigCommand {
    pub fn run(self, loaded: &Loaded) -> Outcome {
        if let Self::Check { .. } = self {
            Tls::load(&loaded.config.server)?;
        }
        match self {
            Self::Check { sidecar: true, .. } => {
                loaded.config.check_server()?;
                loaded.advice().iter().for_each(|text| warn(text));
            }
            Self::Check { sample, .. } => {
                let rules = loaded.config.check_worker()?;
                let patterns = rules.rules.mapping.patterns();
                say!("the configuration is good: {patterns} metrics in {} kinds of buckets", rules.kinds.len());
                loaded.advice().iter().for_each(|text| warn(text));
                if let Some(file) = sample {
                    return sample::check(&file, rules);
                }
            }
            Self::Show { json } => {
                let values = loaded.values();
                if json {
                    let values: Vec<_> = values
                        .into_iter()
                        .map(|(key, value, origin)| serde_json::json!({"key": key, "value": value, "origin": origin}))
                        .collect();
                    return print_json(&values.into());
                }
                let mut table = Table::new(&["key", "value", "origin"]);
                for (key, value, origin) in values {
                    table.row(vec![key, value, origin]);
                }
                table.print()?;
            }
        }
        Ok(())
    }
}
