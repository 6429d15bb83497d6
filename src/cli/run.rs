//! `traqq run` and `traqq serve`.

use clap::Args;

use super::{Failure, Outcome};
use crate::config::Config;
use crate::{app, telemetry};

#[derive(Args, Default)]
pub struct Run {
    /// Make the configured mapping the store's before counting, as `traqq mapping apply` does
    #[arg(long)]
    apply_mapping: bool,
}

impl Run {
    pub fn run(self, config: &Config) -> Outcome {
        config.check_worker().map_err(Failure::Usage)?;
        let metrics = start_telemetry(config)?;
        runtime()?.block_on(app::run(config, self.apply_mapping, metrics)).map_err(Failure::from)
    }
}

pub fn serve(config: &Config) -> Outcome {
    config.check_server().map_err(Failure::Usage)?;
    let metrics = start_telemetry(config)?;
    runtime()?.block_on(app::serve(config, metrics)).map_err(Failure::from)
}

fn start_telemetry(config: &Config) -> Result<metrics_exporter_prometheus::PrometheusHandle, Failure> {
    telemetry::init_logs(&config.log).map_err(Failure::Usage)?;
    telemetry::init_metrics().map_err(Failure::Failed)
}

/// Folding has threads of its own; what is left is I/O.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(error.to_string()))
}
