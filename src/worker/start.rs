//! What must hold before anything is counted: one prefix, one group, one plan, and a recorded start for every partition.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::config::OnEmptyStore;
use super::driver::Driver;
use crate::broker::{BrokerError, Mark, Start};
use crate::compile::Plan;
use crate::model::{Rules, TopicPartition, ValidRules};
use crate::store::{Meta, Store, StoreError, metric_name, metrics_of};
use crate::telemetry::names;

/// Why a start did not come about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotStarted {
    Retry(String),
    Stop(String),
}

impl From<StoreError> for NotStarted {
    fn from(error: StoreError) -> Self {
        metrics::counter!(names::STORE_ERRORS, "class" => error.class()).increment(1);
        match error {
            StoreError::Stop(text) => Self::Stop(text),
            StoreError::Retry(text) | StoreError::Reconnect(text) => Self::Retry(text),
        }
    }
}

impl From<BrokerError> for NotStarted {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Stop(text) => Self::Stop(text),
            BrokerError::Retry(text) => Self::Retry(text),
        }
    }
}

#[derive(Clone)]
pub struct Starter {
    pub store: Arc<dyn Store>,
    pub driver: Driver,
    pub plan: Arc<Plan>,
    pub group: String,
    pub prefix: String,
    pub tags: Vec<String>,
    pub start: Start,
    pub on_empty_store: OnEmptyStore,
    pub now_ms: fn() -> i64,
}

impl Starter {
    /// The meta this worker may count under; written if the store is empty.
    pub async fn establish(&self) -> Result<Meta, NotStarted> {
        if let Some(meta) = self.store.meta().await? {
            return self.accept(meta);
        }
        let known = self.known_by_a_lane().await?;
        let partitions = self.driver.ask(|consumer| consumer.partitions()).await?;
        let asked = partitions.clone();
        let marks = self.driver.ask(move |consumer| consumer.marks(&asked)).await?;
        let recorded: Vec<(TopicPartition, i64)> =
            marks.iter().filter_map(|mark| Some((mark.partition.clone(), self.recorded_start(mark)?))).collect();
        let mut meta = known.unwrap_or_else(|| Meta {
            created: Some((self.now_ms)() / 1000),
            ..Meta::new(&self.plan.rules, &self.group, self.tags.clone())
        });
        if recorded.is_empty() {
            let (asked, start) = (partitions.clone(), self.start);
            let starts = self.driver.ask(move |consumer| consumer.starts(start, &asked)).await?;
            meta.starts = partitions.into_iter().zip(starts).collect();
        } else {
            self.lost(&format!("the store has nothing under prefix {:?}", self.prefix), recorded.len())?;
            let asked = partitions.clone();
            let lows = self.driver.ask(move |consumer| consumer.starts(Start::Earliest, &asked)).await?;
            meta.starts = partitions.into_iter().zip(lows).collect();
            meta.starts.extend(recorded);
        }
        let starts = meta.starts.len();
        let meta = self.accept(self.store.create(&meta).await?)?;
        tracing::info!(prefix = self.prefix, partitions = starts, "counting begins under a new prefix");
        Ok(meta)
    }

    /// The meta of the first lane that still has one though the store has none: the node that kept the store's lost everything. What
    /// the other lanes have counted they have counted since when their meta says.
    async fn known_by_a_lane(&self) -> Result<Option<Meta>, NotStarted> {
        for lane in 0..self.store.lanes() {
            let Some(meta) = self.store.lane_meta(lane).await? else { continue };
            // Other rules than ours may be applied once the store has a meta again.
            let rules = Meta::new(&self.plan.rules, &self.group, self.tags.clone());
            self.accept(Meta { plan: rules.plan, rules: rules.rules, tzdb: rules.tzdb, ..meta.clone() })?;
            return Ok(Some(meta));
        }
        Ok(None)
    }

    /// A lane has no meta though the store has one: its node lost everything, positions and counts together.
    pub async fn begin_again(&self, lane: usize) -> Result<(), NotStarted> {
        // Emptied altogether: the next try begins it.
        let Some(meta) = self.store.meta().await? else { return Ok(()) };
        let meta = self.accept(meta)?;
        let lanes = self.store.lanes();
        let partitions = meta.starts.keys().filter(|partition| partition.lane(lanes) == lane).count();
        self.lost(&format!("the store has nothing in lane {lane} of prefix {:?}", self.prefix), partitions)?;
        Ok(self.store.begin_lane(lane, &meta).await?)
    }

    fn lost(&self, what: &str, partitions: usize) -> Result<(), NotStarted> {
        let what =
            format!("{what}, but group {:?} has counted {partitions} partitions before: its data is gone", self.group);
        match self.on_empty_store {
            OnEmptyStore::Stop => Err(NotStarted::Stop(format!(
                "{what}; restore it, or set worker.on_empty_store = \"restart\" to count again from the recorded start"
            ))),
            OnEmptyStore::Restart => {
                metrics::counter!(names::STORE_LOST).increment(1);
                tracing::error!(
                    prefix = self.prefix,
                    group = self.group,
                    partitions,
                    "the store lost everything; counting again from the recorded start"
                );
                Ok(())
            }
        }
    }

    pub fn accept(&self, meta: Meta) -> Result<Meta, NotStarted> {
        meta.refuse_unfinished().map_err(NotStarted::Stop)?;
        let ours = Meta::new(&self.plan.rules, &self.group, self.tags.clone());
        let mut differences = meta.differences(&ours);
        differences.extend(plan_difference(&meta, &self.plan.rules));
        if differences.is_empty() {
            return Ok(meta);
        }
        Err(NotStarted::Stop(format!("prefix {:?} is counted otherwise: {}", self.prefix, differences.join("; "))))
    }

    /// The note beside our broker commits: where counting began, should the store ever be lost.
    pub fn note(&self, start: i64) -> String {
        note_of(&self.prefix, start)
    }

    fn recorded_start(&self, mark: &Mark) -> Option<i64> {
        start_in(&mark.note, &self.prefix)
    }
}

/// The note for a prefix.
pub fn note_of(prefix: &str, start: i64) -> String {
    format!("traqq prefix={prefix} start={start}")
}

/// The start in a note, if it is one for this prefix. Any tool may write anything there.
pub fn start_in(note: &str, prefix: &str) -> Option<i64> {
    let start = note.strip_prefix("traqq prefix=")?.strip_prefix(prefix)?.strip_prefix(" start=")?;
    start.parse().ok().filter(|start| *start >= 0)
}

/// How the plan of a prefix differs from these rules, and what to do about it.
pub fn plan_difference(meta: &Meta, rules: &ValidRules) -> Option<String> {
    if let Some(difference) = meta.other_zone(rules) {
        return Some(difference);
    }
    if meta.plan == rules.plan_hash() {
        let (stored, ours) = (&meta.tzdb, chrono_tz::IANA_TZDB_VERSION);
        let difference = || {
            format!("the time zone database is {stored} in the store and {ours} here; `traqq mapping apply` takes ours")
        };
        return (stored != ours).then(difference);
    }
    let names = |rules: &ValidRules| -> BTreeSet<String> { metrics_of(&rules.rules).iter().map(metric_name).collect() };
    let ours = names(rules);
    let stored_rules = meta.valid_rules();
    let stored = stored_rules.as_ref().map(names).unwrap_or_default();
    let list = |set: &BTreeSet<String>, other: &BTreeSet<String>| -> String {
        let items: Vec<&str> = set.difference(other).map(String::as_str).collect();
        items.join(", ")
    };
    let (added, removed) = (list(&ours, &stored), list(&stored, &ours));
    let what = match (added.is_empty(), removed.is_empty()) {
        (true, true) => match stored_rules {
            Ok(stored) => format!("in {}", settings_that_differ(&stored.rules, &rules.rules).join(", ")),
            Err(error) => error,
        },
        (false, true) => format!("only here: {added}"),
        (true, false) => format!("only in the store: {removed}"),
        (false, false) => format!("only here: {added}; only in the store: {removed}"),
    };
    Some(format!("the mapping differs ({what}); `traqq mapping apply` makes ours the store's, once no old worker runs"))
}

fn settings_that_differ(stored: &Rules, ours: &Rules) -> Vec<String> {
    let [stored, ours] = [stored, ours].map(|rules| serde_json::to_value(rules).expect("rules are plain data"));
    let sections = ["events", "buckets"].into_iter();
    let settings = sections.flat_map(|section| {
        let keys = ours[section].as_object().into_iter().flat_map(|section| section.keys());
        keys.map(move |key| (section, key))
    });
    let differing = settings.filter(|(section, key)| stored[section].get(key) != ours[section].get(key));
    differing.map(|(section, key)| format!("{section}.{key}")).collect()
}
