//! What a worker measures that counts.

traqq_core::metric_names! {
    /// In the order of the table in docs/metrics.md.
    ALL:
    TOMBSTONES = Counter "traqq_tombstones_total" ["projection"] "Records with a null value.";
    OPERATIONS = Counter "traqq_operations_total" ["projection"] "Operations events became, before merging.";
    OPERATIONS_MERGED = Counter "traqq_operations_merged_total" ["projection"] "Field operations sent to the store, after merging.";
    QUARANTINED = Counter "traqq_quarantined_keys_total" ["projection"] "Writes to keys that could not take them; their answers are incomplete.";
    VALUES_FOLDED = Counter "traqq_values_folded_total" ["projection"] "Values counted under __other__ because their key was full.";
    VALUES_SKIPPED = Counter "traqq_values_skipped_total" ["projection"] "Values that were no number though one was needed, or beyond a double.";
    VALUES_CUT = Counter "traqq_values_cut_total" ["projection"] "Labels that were longer than max_value_length.";
    VALUES_ROUNDED = Counter "traqq_values_rounded_total" ["projection"] "Summed values finer than a millionth.";
    BUCKETS_EXPIRED = Counter "traqq_buckets_expired_total" ["projection"] "Buckets of events not written because their retention had passed.";
    KEYS_EXPIRED = Counter "traqq_keys_expired_total" ["projection"] "Keys not written because they had expired by the store's clock.";
    ELEMENTS_SENT = Counter "traqq_hll_elements_sent_total" ["projection"] "Elements of unique counts sent to the store.";
    ELEMENTS_SAVED = Counter "traqq_hll_elements_saved_total" ["projection"] "Elements of unique counts not sent because they could change nothing.";
}
