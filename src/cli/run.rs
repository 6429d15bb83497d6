//! `traqq run` and `traqq serve`.

use clap::Args;

use super::{Failure, Outcome, warn};
use crate::config::Loaded;
use crate::{app, telemetry};
use traqq_core::error::ConfigError;
use traqq_core::model::escape;

#[derive(Args, Default)]
pub struct Run {
    /// Make the configured mapping the store's before counting, as `traqq mapping apply` does
    #[arg(long)]
    apply_mapping: bool,
}

impl Run {
    pub fn run(self, loaded: &Loaded) -> Outcome {
        let config = &loaded.config;
        config.check_worker().map_err(|error| wrong(loaded, error))?;
        let metrics = start_telemetry(&config.log, &loaded.warnings)?;
        runtime()?.block_on(app::run(config, self.apply_mapping, metrics)).map_err(Failure::from)
    }
}

pub fn serve(loaded: &Loaded) -> Outcome {
    let config = &loaded.config;
    config.check_server().map_err(|error| wrong(loaded, error))?;
    let metrics = start_telemetry(&config.log, &loaded.warnings)?;
    runtime()?.block_on(app::serve(config, metrics)).map_err(Failure::from)
}

/// There will be no log for the warnings, and one of them may be the reason: a file was not read.
fn wrong(loaded: &Loaded, error: ConfigError) -> Failure {
    loaded.warnings.iter().for_each(|warning| warn(warning));
    error.into()
}

pub(super) fn start_telemetry(
    log: &telemetry::Config,
    warnings: &[String],
) -> Result<metrics_exporter_prometheus::PrometheusHandle, Failure> {
    let escapes = telemetry::Escapes { text: escape::terminal, json: escape::json };
    telemetry::init_logs(log, escapes)?;
    telemetry::log_panics();
    for warning in warnings {
        tracing::warn!(warning, "environment");
    }
    telemetry::init_metrics().map_err(Failure::from)
}

/// Folding has threads of its own; what is left is I/O.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(error.to_string()))
}
