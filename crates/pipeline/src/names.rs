//! What a worker measures, whatever its projection, whose name each has as a label.

traqq_core::metric_names! {
    /// In the order of the table in docs/metrics.md.
    ALL:
    RECORDS = Counter "traqq_records_total" ["projection"] "Records read from the log and folded.";
    BYTES = Counter "traqq_record_bytes_total" ["projection"] "Bytes of the values of those records.";
    EVENTS = Counter "traqq_events_total" ["projection"] "Events counted.";
    DEAD_LETTERS = Counter "traqq_dead_letters_total" ["reason,projection"] "Records that could not be counted, by reason.";
    SKIPPED_EVENTS = Counter "traqq_skipped_events_total" ["reason,projection"] "Records, or events in them, that a projection left out, and another one publishes as dead letters.";
    DEAD_LETTER_RETRIES = Counter "traqq_dead_letter_retries_total" ["projection"] "Times the dead-letter destination had to be tried again.";
    DEAD_LETTERS_SHORTENED = Counter "traqq_dead_letters_shortened_total" ["projection"] "Dead letters that the destination refused whole, of which it has the beginning.";
    BATCHES = Counter "traqq_batches_total" ["projection"] "Batches applied by the store.";
    COMMIT_SECONDS = Histogram "traqq_commit_duration_seconds" ["projection"] "Time from sending a batch to the store's answer.";
    FENCES = Counter "traqq_fences_total" ["stored,projection"] "Batches the store refused, by where its position was: ahead, unchanged, behind, absent; or by what else was no longer so: plan, shadow.";
    RESYNCS = Counter "traqq_resyncs_total" ["projection"] "Times a lane went back to the stored positions.";
    ROLLBACKS = Counter "traqq_store_rollbacks_total" ["projection"] "Times the store had lost what it had acknowledged.";
    STORE_LOST = Counter "traqq_store_lost_total" ["projection"] "Times the store was found empty though something had been counted.";
    STORE_ERRORS = Counter "traqq_store_errors_total" ["class,projection"] "Errors of the store, by class: retry, reconnect, stop.";
    BROKER_ERRORS = Counter "traqq_broker_errors_total" ["projection"] "Errors of the log: connections lost, requests that failed. All are tried again.";
    RECORDS_SKIPPED = Counter "traqq_records_skipped_total" ["projection"] "Offsets passed over because an operator chose to.";
    REBALANCES = Counter "traqq_rebalances_total" ["change,projection"] "Partitions assigned, revoked, lost.";
    PARTITIONS = Gauge "traqq_partitions" ["projection"] "Partitions this worker has.";
    PARTITIONS_STOPPED = Gauge "traqq_partitions_stopped" ["projection"] "Partitions that wait for an operator.";
    PARTITIONS_UNREADABLE = Gauge "traqq_partitions_unreadable" ["projection"] "Partitions whose log cannot be read at the moment; /readyz says why.";
    POSITION = Gauge "traqq_position" ["topic,partition,projection"] "Next offset to apply, as the store has it.";
    LAG_RECORDS = Gauge "traqq_lag_records" ["topic,partition,projection"] "Offsets between the stored position and the end of the log.";
    LAG_SECONDS = Gauge "traqq_lag_seconds" ["topic,partition,projection"] "Age of the last applied record while there is lag; 0 without.";
    IN_FLIGHT_BYTES = Gauge "traqq_in_flight_bytes" ["projection"] "Bytes of records read and not yet folded, and of what is folded and not yet committed.";
    PAUSED = Gauge "traqq_paused" ["projection"] "1 while fetching is paused because the store is slower than the log.";
    READY = Gauge "traqq_ready" ["projection"] "1 while the worker can count.";
}
