//! What a process measures beside its projections, and the one list of all that there is. Nobody
//! writes a name anywhere else.

use traqq_core::metric::Definition;
use traqq_core::metric_names;

metric_names! {
    /// In the order of the table in docs/metrics.md.
    OWN:
    INGESTED = Counter "traqq_ingested_events_total" ["protocol"] "Events that came in over HTTP or TCP and are in the log.";
    INGEST_REJECTED = Counter "traqq_ingest_rejected_total" ["reason"] "Events that were refused at the door, by reason.";
    INGEST_REPLAYED = Counter "traqq_ingest_replayed_total" [""] "Requests that the log had already, known by their idempotency key.";
    INGEST_REFUSED = Counter "traqq_ingest_refused_total" [""] "Times there was no room for a request's bytes, or for its idempotency key.";
    IDEMPOTENCY_BYTES = Gauge "traqq_idempotency_key_bytes" [""] "Bytes of the idempotency keys that are remembered; beyond 134217728 new ones are refused.";
    ANSWER_BYTES = Gauge "traqq_answer_bytes" [""] "Bytes held by answers that are being made or sent.";
    BROKER_INFO = Gauge "traqq_broker_info" ["broker"] "1 for the kind of log that is read: local, kafka, nats.";
    LOG_LINES_LOST = Counter "traqq_log_lines_lost_total" [""] "Lines of the log that could not be written, because of a full disk or a closed pipe.";
    BUILD_INFO = Gauge "traqq_build_info" ["version"] "1 for the version that runs.";
}

metric_names! {
    /// What the system knows of the process, under the names that every Prometheus client gives
    /// them; only on Linux.
    PROCESS:
    PROCESS_START_SECONDS = Gauge "process_start_time_seconds" [""] "When the process started, in seconds since 1970.";
    PROCESS_CPU_SECONDS = Counter "process_cpu_seconds_total" [""] "Seconds of the processor that all threads have used.";
    PROCESS_RESIDENT_BYTES = Gauge "process_resident_memory_bytes" [""] "Bytes of memory that are resident.";
    PROCESS_VIRTUAL_BYTES = Gauge "process_virtual_memory_bytes" [""] "Bytes of address space.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" [""] "Open files and connections.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [""] "How many of them there may be.";
    PROCESS_THREADS = Gauge "process_threads" [""] "Threads.";
}

/// Everything that is measured, in the order of the table in docs/metrics.md, but for [`PROCESS`].
pub fn all() -> impl Iterator<Item = &'static Definition> {
    OWN.iter().chain(traqq_pipeline::names::ALL).chain(traqq_counts::names::ALL)
}

#[cfg(test)]
mod tests {
    use traqq_core::metric::Kind;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let own = all().map(|definition| (definition, "traqq_"));
        for (definition, prefix) in own.chain(PROCESS.iter().map(|definition| (definition, "process_"))) {
            assert!(definition.name.starts_with(prefix), "{}", definition.name);
            assert_eq!(definition.kind == Kind::Counter, definition.name.ends_with("_total"), "{}", definition.name);
            assert!(definition.help.ends_with('.'), "{}", definition.name);
        }
        // What a worker measures has the name of its projection, or a sum over two of them would
        // mean nothing.
        for definition in traqq_pipeline::names::ALL.iter().chain(traqq_counts::names::ALL) {
            assert!(definition.labels.split(',').any(|label| label == "projection"), "{}", definition.name);
        }
    }
}
