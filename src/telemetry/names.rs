//! Every metric, in one list. Nobody writes a name anywhere else.

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static str,
    pub help: &'static str,
}

macro_rules! metrics {
    ($(#[$about:meta])* $list:ident: $($constant:ident = $kind:ident $name:literal [$labels:literal] $help:literal;)*) => {
        $(pub const $constant: &str = $name;)*

        $(#[$about])*
        pub const $list: &[Definition] = &[
            $(Definition { name: $name, kind: Kind::$kind, labels: $labels, help: $help },)*
        ];
    };
}

metrics! {
    /// In the order of the README's table. What a worker measures has the name of its projection as a label.
    ALL:
    INGESTED = Counter "traqq_ingested_events_total" ["protocol"] "Events that came in over HTTP or TCP and are in the log.";
    INGEST_REJECTED = Counter "traqq_ingest_rejected_total" ["reason"] "Events that were refused at the door, by reason.";
    INGEST_REPLAYED = Counter "traqq_ingest_replayed_total" [""] "Requests that the log had already, known by their idempotency key.";
    INGEST_REFUSED = Counter "traqq_ingest_refused_total" [""] "Times there was no room for a request's bytes, or for its idempotency key.";
    IDEMPOTENCY_BYTES = Gauge "traqq_idempotency_key_bytes" [""] "Bytes of the idempotency keys that are remembered; beyond 134217728 new ones are refused.";
    ANSWER_BYTES = Gauge "traqq_answer_bytes" [""] "Bytes held by answers that are being made or sent.";
    RECORDS = Counter "traqq_records_total" ["projection"] "Records read from the log and folded.";
    BYTES = Counter "traqq_record_bytes_total" ["projection"] "Bytes of the values of those records.";
    EVENTS = Counter "traqq_events_total" ["projection"] "Events counted.";
    TOMBSTONES = Counter "traqq_tombstones_total" ["projection"] "Records with a null value.";
    DEAD_LETTERS = Counter "traqq_dead_letters_total" ["reason,projection"] "Records that could not be counted, by reason.";
    SKIPPED_EVENTS = Counter "traqq_skipped_events_total" ["reason,projection"] "Records, or events in them, that a projection left out, and another one publishes as dead letters.";
    DEAD_LETTER_RETRIES = Counter "traqq_dead_letter_retries_total" ["projection"] "Times the dead-letter destination had to be tried again.";
    DEAD_LETTERS_SHORTENED = Counter "traqq_dead_letters_shortened_total" ["projection"] "Dead letters that the destination refused whole, of which it has the beginning.";
    BATCHES = Counter "traqq_batches_total" ["projection"] "Batches applied by the store.";
    OPERATIONS = Counter "traqq_operations_total" ["projection"] "Operations events became, before merging.";
    OPERATIONS_MERGED = Counter "traqq_operations_merged_total" ["projection"] "Field operations sent to the store, after merging.";
    COMMIT_SECONDS = Histogram "traqq_commit_duration_seconds" ["projection"] "Time from sending a batch to the store's answer.";
    FENCES = Counter "traqq_fences_total" ["stored,projection"] "Batches the store refused, by where its position was: ahead, unchanged, behind, absent; or by what else was no longer so: plan, shadow.";
    RESYNCS = Counter "traqq_resyncs_total" ["projection"] "Times a lane went back to the stored positions.";
    ROLLBACKS = Counter "traqq_store_rollbacks_total" ["projection"] "Times the store had lost what it had acknowledged.";
    STORE_LOST = Counter "traqq_store_lost_total" ["projection"] "Times the store was found empty though something had been counted.";
    STORE_ERRORS = Counter "traqq_store_errors_total" ["class,projection"] "Errors of the store, by class: retry, reconnect, stop.";
    BROKER_ERRORS = Counter "traqq_broker_errors_total" ["projection"] "Errors of the log: connections lost, requests that failed. All are tried again.";
    QUARANTINED = Counter "traqq_quarantined_keys_total" ["projection"] "Writes to keys that could not take them; their answers are incomplete.";
    VALUES_FOLDED = Counter "traqq_values_folded_total" ["projection"] "Values counted under __other__ because their key was full.";
    VALUES_SKIPPED = Counter "traqq_values_skipped_total" ["projection"] "Values that were no number though one was needed, or beyond a double.";
    VALUES_CUT = Counter "traqq_values_cut_total" ["projection"] "Labels that were longer than max_value_length.";
    VALUES_ROUNDED = Counter "traqq_values_rounded_total" ["projection"] "Summed values finer than a millionth.";
    BUCKETS_EXPIRED = Counter "traqq_buckets_expired_total" ["projection"] "Buckets of events not written because their retention had passed.";
    KEYS_EXPIRED = Counter "traqq_keys_expired_total" ["projection"] "Keys not written because they had expired by the store's clock.";
    ELEMENTS_SENT = Counter "traqq_hll_elements_sent_total" ["projection"] "Elements of unique counts sent to the store.";
    ELEMENTS_SAVED = Counter "traqq_hll_elements_saved_total" ["projection"] "Elements of unique counts not sent because they could change nothing.";
    RECORDS_SKIPPED = Counter "traqq_records_skipped_total" ["projection"] "Offsets passed over because an operator chose to.";
    REBALANCES = Counter "traqq_rebalances_total" ["change,projection"] "Partitions assigned, revoked, lost.";
    BROKER_INFO = Gauge "traqq_broker_info" ["broker"] "1 for the kind of log that is read: local, kafka, nats.";
    PARTITIONS = Gauge "traqq_partitions" ["projection"] "Partitions this worker has.";
    PARTITIONS_STOPPED = Gauge "traqq_partitions_stopped" ["projection"] "Partitions that wait for an operator.";
    PARTITIONS_UNREADABLE = Gauge "traqq_partitions_unreadable" ["projection"] "Partitions whose log cannot be read at the moment; /readyz says why.";
    POSITION = Gauge "traqq_position" ["topic,partition,projection"] "Next offset to apply, as the store has it.";
    LAG_RECORDS = Gauge "traqq_lag_records" ["topic,partition,projection"] "Offsets between the stored position and the end of the log.";
    LAG_SECONDS = Gauge "traqq_lag_seconds" ["topic,partition,projection"] "Age of the last applied record while there is lag; 0 without.";
    IN_FLIGHT_BYTES = Gauge "traqq_in_flight_bytes" ["projection"] "Bytes of records read and not yet folded, and of what is folded and not yet committed.";
    PAUSED = Gauge "traqq_paused" ["projection"] "1 while fetching is paused because the store is slower than the log.";
    READY = Gauge "traqq_ready" ["projection"] "1 while the worker can count.";
    LOG_LINES_LOST = Counter "traqq_log_lines_lost_total" [""] "Lines of the log that could not be written, because of a full disk or a closed pipe.";
    BUILD_INFO = Gauge "traqq_build_info" ["version"] "1 for the version that runs.";
}

metrics! {
    /// What the system knows of the process, under the names that every Prometheus client gives them; only on Linux.
    PROCESS:
    PROCESS_START_SECONDS = Gauge "process_start_time_seconds" [""] "When the process started, in seconds since 1970.";
    PROCESS_CPU_SECONDS = Counter "process_cpu_seconds_total" [""] "Seconds of the processor that all threads have used.";
    PROCESS_RESIDENT_BYTES = Gauge "process_resident_memory_bytes" [""] "Bytes of memory that are resident.";
    PROCESS_VIRTUAL_BYTES = Gauge "process_virtual_memory_bytes" [""] "Bytes of address space.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" [""] "Open files and connections.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [""] "How many of them there may be.";
    PROCESS_THREADS = Gauge "process_threads" [""] "Threads.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let own = ALL.iter().map(|definition| (definition, "traqq_"));
        for (definition, prefix) in own.chain(PROCESS.iter().map(|definition| (definition, "process_"))) {
            assert!(definition.name.starts_with(prefix), "{}", definition.name);
            assert_eq!(definition.kind == Kind::Counter, definition.name.ends_with("_total"), "{}", definition.name);
            assert!(definition.help.ends_with('.'), "{}", definition.name);
        }
    }
}
