//! Counts as a projection: the mapping is its shape, a [`Store`](crate::store::Store) its ledger.

mod difference;
mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use difference::plan_difference;

use crate::compile::{FoldStats, Folded, Folder, Plan};
use crate::names;
use crate::store::{Applied, Meta};
use traqq_core::decode::DeadLetter;
use traqq_core::model::{Span, TopicPartition};
use traqq_pipeline::{Batch, BudgetedPart, Compared, Fold, Header, Intake, Ledger, Observed, Projection, Remedies};

use ledger::CountsLedger;

/// What is counted, and where.
pub struct Counts {
    plan: Arc<Plan>,
    ledger: CountsLedger,
    /// What a store is that was written by this: rules, group, lanes.
    meta: Meta,
    prefix: String,
    batch_operations: usize,
}

impl Counts {
    /// `prefix` names the store among those that share a broker; `tags` are the hash tags of its
    /// lanes, if it has several; a batch is cut at `batch_operations` field operations.
    pub fn new(
        plan: Arc<Plan>,
        store: Arc<dyn crate::store::Store>,
        group: &str,
        prefix: &str,
        tags: Vec<String>,
        batch_operations: usize,
    ) -> Self {
        let meta = Meta::new(&plan.rules, group, tags);
        Self { plan, ledger: CountsLedger(store), meta, prefix: prefix.to_owned(), batch_operations }
    }
}

impl Projection for Counts {
    const NAME: &'static str = "counts";

    type Batch = Folded;
    type Report = Applied;
    type Fold = Folder;
    type Header = Meta;

    fn fold(&self) -> Folder {
        Folder::new(Arc::clone(&self.plan), self.batch_operations)
    }

    fn ledger(&self) -> &dyn Ledger<Self> {
        &self.ledger
    }

    fn ledger_name(&self) -> &str {
        &self.prefix
    }

    fn new_header(&self, now_ms: i64) -> Meta {
        Meta { created: Some(now_ms / 1000), ..self.meta.clone() }
    }

    fn difference(&self, stored: &Meta, compared: Compared) -> Option<String> {
        let rules = &self.plan.rules;
        let shape = match compared {
            Compared::Identity => stored.other_zone(rules),
            Compared::Everything => {
                if let Err(unfinished) = stored.refuse_unfinished() {
                    return Some(unfinished.to_string());
                }
                plan_difference(stored, rules)
            }
        };
        let mut differences = stored.differences(&self.meta);
        differences.extend(shape);
        (!differences.is_empty())
            .then(|| format!("prefix {:?} is counted otherwise: {}", self.prefix, differences.join("; ")))
    }

    fn describe(&self, letter: &DeadLetter) -> String {
        self.plan.reader.describe_letter(letter)
    }

    fn remedies(&self) -> Remedies {
        Remedies {
            begin_anew: "count it under a new store.redis.prefix".to_owned(),
            set_position: Some("traqq position set".to_owned()),
        }
    }
}

impl Fold for Folder {
    type Batch = Folded;

    fn fold(&mut self, parts: Vec<BudgetedPart>) -> Vec<Folded> {
        self.fold(parts)
    }
}

impl Batch for Folded {
    type Stats = FoldStats;

    fn ranges(&self) -> &[Span] {
        &self.batch.spans
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn intake(&self) -> Intake {
        let FoldStats { records, bytes, events, .. } = self.stats;
        Intake { records, bytes, events }
    }

    fn stats(&self) -> FoldStats {
        self.stats
    }

    fn dead_letters(&self) -> &[DeadLetter] {
        &self.dead_letters
    }
}

impl Observed for FoldStats {
    fn numbers(&self) -> Vec<(&'static str, u64)> {
        vec![
            (names::TOMBSTONES, self.tombstones),
            (names::OPERATIONS, self.operations),
            (names::OPERATIONS_MERGED, self.operations_merged),
            (names::VALUES_SKIPPED, self.values_skipped),
            (names::VALUES_CUT, self.values_cut),
            (names::VALUES_ROUNDED, self.values_rounded),
            (names::BUCKETS_EXPIRED, self.buckets_expired),
            (names::ELEMENTS_SAVED, self.elements - self.elements_merged),
        ]
    }
}

impl Observed for Applied {
    fn numbers(&self) -> Vec<(&'static str, u64)> {
        vec![
            (names::KEYS_EXPIRED, self.keys_expired),
            (names::VALUES_FOLDED, self.values_folded),
            (names::ELEMENTS_SENT, self.elements_sent),
            (names::ELEMENTS_SAVED, self.elements_saved),
            (names::QUARANTINED, self.quarantined.len() as u64),
        ]
    }

    fn log(&self) {
        for quarantined in &self.quarantined {
            tracing::error!(
                key = quarantined.key,
                error = quarantined.error,
                "a key cannot take its counts; its answers are incomplete, `traqq doctor` names the way back"
            );
        }
    }
}

impl Header for Meta {
    fn starts(&self) -> &BTreeMap<TopicPartition, i64> {
        &self.starts
    }

    fn starts_mut(&mut self) -> &mut BTreeMap<TopicPartition, i64> {
        &mut self.starts
    }
}
