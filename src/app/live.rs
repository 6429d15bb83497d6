//! What the process says of itself: probes, metrics, status, dead letters.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;

use super::clock::now_ms;
use crate::server::{DeadLetters, Letters, Live};
use crate::telemetry::{self, names};
use traqq_core::decode::Reason;
use traqq_core::model::{Record, RecordBatch};
use traqq_counts::Counts;
use traqq_counts::query::Engine;
use traqq_log::BrokerResult;
use traqq_log::local::LocalLog;
use traqq_pipeline::{Projection, Statuses};

/// How often the recorder folds its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Counters with a fixed set of labels are there from the start: a rate needs a zero to rise from.
pub fn announce_metrics() {
    for reason in Reason::ALL {
        metrics::counter!(names::INGEST_REJECTED, "reason" => reason.name()).increment(0);
    }
    for protocol in ["http", "tcp"] {
        metrics::counter!(names::INGESTED, "protocol" => protocol).increment(0);
    }
    for stored in ["plan", "shadow"] {
        metrics::counter!(traqq_pipeline::names::FENCES, "stored" => stored, "projection" => Counts::NAME).increment(0);
    }
}

pub fn live(statuses: Statuses, metrics: PrometheusHandle, log: Option<LocalLog>, engine: &Engine) -> Live {
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
        liveness: Box::new(move || liveness.liveness()),
        readiness: Box::new(move || readiness.readiness()),
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
fn dead_letters(log: &LocalLog, before: Option<i64>, limit: usize, bytes_max: usize) -> BrokerResult<Letters> {
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
    log.dead_letters(before, take)?;
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
