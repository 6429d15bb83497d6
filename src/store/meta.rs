//! What a prefix knows about itself.

use std::collections::BTreeMap;

use super::{Positions, Store, StoreError, StoreResult};
use crate::mapping::{Metric, Rules, VALUE_SCALE, ValidRules};
use crate::model::{Bucket, BucketKind, Checkpoint, Retention, TopicPartition};

const START: &str = "start:";
const SINCE: &str = "since:";
const CREATED: &str = "created";
const GONE: &str = "gone:";
/// Events may be so far ahead of the clock, in seconds, and a bit.
const AHEAD_MAX: i64 = 2 * 86_400;
/// Keys of buckets that began before are not kept longer: a million minutes is two years.
const EXTENDED_MAX: i64 = 1_000_000;
/// What the plan of a store begins with that is being filled from a file.
const IMPORT: &str = "import ";
/// The plan of a store that is being removed.
pub const DROPPED: &str = "dropped";
/// The last second of the year 9999.
pub const SECOND_MAX: i64 = 253_402_300_799;

/// Version of the key layout.
pub const LAYOUT: u32 = 1;

/// From when on a metric counts: it was added to the mapping after the first start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Since {
    /// Newest broker timestamp that had been applied by then, in epoch seconds.
    pub second: i64,
    /// `topic/partition:position`, joined by spaces.
    pub positions: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    pub layout: u32,
    pub lanes: usize,
    /// The hash tags of the lanes; empty with one lane.
    pub tags: Vec<String>,
    pub group: String,
    pub value_scale: i64,
    pub time_zone: String,
    /// Version of the time zone database.
    pub tzdb: String,
    pub plan: String,
    /// The rules as JSON, pairs written out.
    pub rules: String,
    /// Where counting began, for every partition that is known.
    pub starts: BTreeMap<TopicPartition, i64>,
    /// By [`metric_name`], for metrics that were added later; by [`kind_name`] for hours and minutes; by `retention:` and the kind for a
    /// retention that was changed.
    pub since: BTreeMap<String, Since>,
    /// When counting began, in epoch seconds; what was written by earlier versions does not say it.
    pub created: Option<i64>,
    /// Buckets that had expired when their retention became longer: of each kind those that ended after the first of two
    /// seconds and not after the second.
    pub gone: BTreeMap<BucketKind, Vec<(i64, i64)>>,
}

impl Meta {
    pub fn new(rules: &ValidRules, group: &str, tags: Vec<String>) -> Self {
        Self {
            layout: LAYOUT,
            lanes: tags.len().max(1),
            tags,
            group: group.to_owned(),
            value_scale: VALUE_SCALE,
            time_zone: rules.zone.name().to_owned(),
            tzdb: chrono_tz::IANA_TZDB_VERSION.to_owned(),
            plan: rules.plan_hash(),
            rules: rules.to_json(),
            starts: BTreeMap::new(),
            since: BTreeMap::new(),
            created: None,
            gone: BTreeMap::new(),
        }
    }

    /// What stands in for this one while a store is filled from a file, and keeps workers and questions away.
    pub fn of_import(&self, file: u64) -> Self {
        let (starts, since) = Default::default();
        Self { plan: format!("{IMPORT}{file:016x}"), starts, since, ..self.clone() }
    }

    pub fn is_import(&self) -> bool {
        self.plan.starts_with(IMPORT)
    }

    pub fn is_dropped(&self) -> bool {
        self.plan == DROPPED
    }

    /// A store that is being filled or removed, or was left so, is nobody's to use.
    pub fn refuse_unfinished(&self) -> Result<(), String> {
        if self.is_dropped() {
            return Err("this store is being removed; run `traqq store drop` again to have it empty, or use another \
                        store.redis.prefix or data.directory"
                .to_owned());
        }
        if self.is_import() {
            return Err("an import into this store was not finished; run `traqq store import` again with the same file, or use \
                        another store.redis.prefix or data.directory"
                .to_owned());
        }
        Ok(())
    }

    /// Why a store of so many lanes that has this meta cannot be used here, and what to do about it.
    pub fn check(&self, lanes: usize) -> Result<(), String> {
        self.refuse_unfinished()?;
        let other = |what: &str, stored: i64, ours: i64, mend: &str| {
            Err(format!("{what} is {stored} in the store and {ours} here; {mend}"))
        };
        let wrote = "use the version of traqq that wrote it";
        if self.layout != LAYOUT {
            return other("the layout version", self.layout.into(), LAYOUT.into(), wrote);
        }
        if self.value_scale != VALUE_SCALE {
            return other("the value scale", self.value_scale, VALUE_SCALE, wrote);
        }
        if self.lanes != lanes {
            let mend = format!("set store.redis.lanes = {}", self.lanes);
            return other("the number of lanes", self.lanes as i64, lanes as i64, &mend);
        }
        Ok(())
    }

    /// Why these rules cannot be applied to it.
    pub fn other_zone(&self, rules: &ValidRules) -> Option<String> {
        let (stored, ours) = (&self.time_zone, rules.zone.name());
        let difference = || {
            format!(
                "the store counts in time zone {stored:?} and the configuration says {ours:?}; days of another zone need a place of \
                 their own: set buckets.time_zone = {stored:?}, or another store.redis.prefix (data.directory on one machine)"
            )
        };
        (stored != ours).then(difference)
    }

    /// Every partition at its start.
    pub fn first_positions(&self) -> Positions {
        self.starts.iter().map(|(partition, start)| (partition.clone(), Checkpoint::start(*start))).collect()
    }

    pub fn valid_rules(&self) -> Result<ValidRules, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("meta's rules: {error}");
        let mut rules: serde_json::Value = serde_json::from_str(&self.rules).map_err(|error| wrong(&error))?;
        if let Some(events) = rules.get_mut("events").and_then(serde_json::Value::as_object_mut) {
            before_names(events);
        }
        let rules: Rules = serde_json::from_value(rules).map_err(|error| wrong(&error))?;
        rules.validate().map_err(|error| wrong(&error))
    }

    /// What differs from `other` in a way that forbids counting together, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |name: &str, stored: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            let (stored, ours) = (stored.to_string(), ours.to_string());
            if stored != ours {
                lines.push(format!("{name} is {stored:?} in the store and {ours:?} here"));
            }
        };
        compare("layout version", &self.layout, &other.layout);
        compare("group", &self.group, &other.group);
        compare("number of lanes", &self.lanes, &other.lanes);
        compare("value scale", &self.value_scale, &other.value_scale);
        lines
    }

    /// As a store keeps it: names and values.
    pub fn to_fields(&self) -> Vec<(String, String)> {
        let mut fields: Vec<(String, String)> = [
            ("layout", self.layout.to_string()),
            ("lanes", self.lanes.to_string()),
            ("tags", self.tags.join(" ")),
            ("group", self.group.clone()),
            ("value_scale", self.value_scale.to_string()),
            ("time_zone", self.time_zone.clone()),
            ("tzdb", self.tzdb.clone()),
            ("plan", self.plan.clone()),
            ("rules", self.rules.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        fields.extend(self.starts.iter().map(|(partition, start)| (start_field(partition), start.to_string())));
        fields.extend(self.since.iter().map(|(metric, since)| (format!("{SINCE}{metric}"), since.to_text())));
        fields.extend(self.created.map(|created| (CREATED.to_owned(), created.to_string())));
        fields.extend(self.gone.iter().map(|(kind, spans)| {
            let spans: Vec<String> = spans.iter().map(|(after, until)| format!("{after}:{until}")).collect();
            (format!("{GONE}{kind}"), spans.join(" "))
        }));
        fields
    }

    /// `Err` says which field is missing or malformed.
    pub fn of_fields(fields: &BTreeMap<String, String>) -> Result<Self, String> {
        let field = |name: &str| {
            fields.get(name).ok_or_else(|| format!("meta has no field {name:?}; was it written by traqq?"))
        };
        let number = |name: &str| {
            field(name)?.parse::<u32>().map_err(|_| format!("meta's field {name:?} is not a number from 0 to 2^32 - 1"))
        };
        let mut meta = Self {
            layout: number("layout")?,
            lanes: number("lanes")? as usize,
            tags: field("tags")?.split_whitespace().map(str::to_owned).collect(),
            group: field("group")?.clone(),
            value_scale: number("value_scale")?.into(),
            time_zone: field("time_zone")?.clone(),
            tzdb: field("tzdb")?.clone(),
            plan: field("plan")?.clone(),
            rules: field("rules")?.clone(),
            starts: BTreeMap::new(),
            since: BTreeMap::new(),
            created: None,
            gone: BTreeMap::new(),
        };
        for (name, value) in fields {
            let malformed = || format!("meta's field {name:?} is malformed");
            if let Some(partition) = name.strip_prefix(START) {
                let partition = partition.parse().map_err(|error| format!("meta: {error}"))?;
                let start = value.parse().map_err(|_| format!("meta's field {name:?} is not a number"))?;
                meta.starts.insert(partition, start);
            } else if let Some(metric) = name.strip_prefix(SINCE) {
                meta.since.insert(metric.to_owned(), Since::parse(value).ok_or_else(malformed)?);
            } else if let Some(letter) = name.strip_prefix(GONE) {
                let kind = BucketKind::parse(letter).ok_or_else(malformed)?;
                let span = |text: &str| {
                    let (after, until) = text.split_once(':')?;
                    Some((after.parse().ok()?, until.parse().ok()?))
                };
                let spans: Option<Vec<(i64, i64)>> = value.split_whitespace().map(span).collect();
                meta.gone.insert(kind, spans.ok_or_else(malformed)?);
            } else if name == CREATED {
                meta.created = Some(value.parse().map_err(|_| malformed())?);
            }
        }
        Ok(meta)
    }
}

/// The field of a partition's start.
pub fn start_field(partition: &TopicPartition) -> String {
    format!("{START}{partition}")
}

pub fn is_start(field: &str) -> bool {
    field.starts_with(START)
}

impl Since {
    pub fn parse(text: &str) -> Option<Self> {
        let (second, positions) = text.split_once(' ').unwrap_or((text, ""));
        // Whatever a producer's clock said, it can be shown as a date.
        let second = second.parse::<i64>().ok()?.clamp(0, SECOND_MAX);
        Some(Self { second, positions: positions.to_owned() })
    }

    pub fn to_text(&self) -> String {
        format!("{} {}", self.second, self.positions)
    }

    /// Timestamps of a broker may be those of producers, whose clocks may be years ahead or count in nanoseconds. What counts from now on
    /// does not count from later on.
    fn settle(&mut self) {
        self.second = self.second.min(chrono::Utc::now().timestamp());
    }
}

/// One name for each metric of a mapping: `add:event~geo`, `add_value:amount:event`, `bitmap_by:ip@geo`.
pub fn metric_name(metric: &Metric) -> String {
    match metric {
        Metric::Unique { of } | Metric::Count { of } | Metric::Top { of } => format!("{}:{of}", metric.kind()),
        Metric::Sum { of, add_key } => format!("add_value:{add_key}:{of}"),
        Metric::UniqueBy { of, by } => format!("bitmap_by:{of}@{by}"),
    }
}

/// The name under which a kind of bucket that was added later has its beginning.
pub fn kind_name(kind: BucketKind) -> String {
    format!("bucket:{kind}")
}

/// The name under which stands since when the retention of a kind holds.
fn retention_name(kind: BucketKind) -> String {
    format!("retention:{kind}")
}

/// Rules that were written before names and times could be configured say nothing of them; this is what held.
fn before_names(events: &mut serde_json::Map<String, serde_json::Value>) {
    for (key, value) in [
        ("name_fields", serde_json::json!(["event"])),
        ("batch_fields", serde_json::json!([])),
        ("time_zone_default", serde_json::json!("")),
    ] {
        events.entry(key).or_insert(value);
    }
}

/// Every metric of the rules.
pub fn metrics_of(rules: &Rules) -> Vec<Metric> {
    let mapping = &rules.mapping;
    let mut metrics: Vec<Metric> = Vec::with_capacity(mapping.patterns());
    metrics.extend(mapping.bitmap.iter().map(|of| Metric::Unique { of: of.clone() }));
    metrics.extend(mapping.bitmap_by.iter().map(|by| Metric::UniqueBy { of: by.of.clone(), by: by.key.clone() }));
    metrics.extend(mapping.add.iter().map(|of| Metric::Count { of: of.clone() }));
    metrics.extend(
        mapping.add_value.iter().map(|sum| Metric::Sum { of: sum.key.clone(), add_key: sum.add_key.as_str().into() }),
    );
    metrics.extend(mapping.top.iter().map(|of| Metric::Top { of: of.clone() }));
    metrics
}

/// What changed when rules were applied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AppliedRules {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// The plan changed at all, of the store or of a lane.
    pub changed: bool,
}

/// Makes rules the store's, with the positions from which each new metric counts. Nothing happens on an empty store:
/// the first worker writes its own.
pub async fn apply_rules(store: &dyn Store, rules: &ValidRules) -> StoreResult<AppliedRules> {
    let Some(stored) = fitting_meta(store).await? else { return Ok(AppliedRules::default()) };
    if let Some(difference) = stored.other_zone(rules) {
        return Err(StoreError::Stop(difference));
    }
    let is_new = rules.plan_hash() != stored.plan;
    let before = stored.valid_rules().map_err(StoreError::Stop)?;
    let mut expiries = Vec::with_capacity(store.lanes());
    for lane in 0..store.lanes() {
        expiries.push(match store.lane_meta(lane).await? {
            // A lane that went back behind the change before this one went back with the ends of its keys.
            Some(meta) => longer_lives(&meta.valid_rules().map_err(StoreError::Stop)?, rules),
            // A worker begins it again.
            None if !is_new => Vec::new(),
            None => {
                return Err(StoreError::Stop(format!(
                    "the store has nothing in lane {lane}: its data is gone; start a worker with the mapping of before, and apply this \
                     one when it counts again"
                )));
            }
        });
    }
    let names = |rules: &ValidRules| -> Vec<String> {
        let metrics = metrics_of(&rules.rules);
        metrics.iter().map(metric_name).chain(rules.kinds.iter().map(|kind| kind_name(*kind))).collect()
    };
    let (known, wanted) = (names(&before), names(rules));
    let missing_in = |list: &[String], name: &&String| !list.contains(*name);
    let added: Vec<String> = wanted.iter().filter(|name| missing_in(&known, name)).cloned().collect();
    let removed: Vec<String> = known.iter().filter(|name| missing_in(&wanted, name)).cloned().collect();
    let since = since_now(store).await?;
    let mut meta = stored.clone();
    meta.plan = rules.plan_hash();
    meta.rules = rules.to_json();
    meta.tzdb = chrono_tz::IANA_TZDB_VERSION.to_owned();
    meta.since.values_mut().for_each(Since::settle);
    for name in &added {
        meta.since.insert(name.clone(), since.clone());
    }
    note_retention(&before, rules, &mut meta);
    // Before, so that a change which is cut off leaves nothing with too short a life; and behind, for what was written in between.
    extend(store, &expiries).await?;
    let changed = store.replace_rules(is_new.then_some(&*stored.plan), &meta).await? || stored.tzdb != meta.tzdb;
    extend(store, &expiries).await?;
    // From here on batches of the old plan are refused, so these are the positions at which the new metrics begin.
    if !added.is_empty() {
        let since = since_now(store).await?;
        for name in &added {
            meta.since.insert(name.clone(), since.clone());
        }
        store.replace_rules(Some(&meta.plan), &meta).await?;
    }
    Ok(AppliedRules { added, removed, changed })
}

/// The kinds of buckets that are kept for another time than before: how long before, how long now.
fn kept_otherwise(before: &ValidRules, rules: &ValidRules) -> Vec<(BucketKind, Retention, Retention)> {
    let of = |rules: &ValidRules, kind| rules.rules.buckets.retention.of(kind);
    let kinds = rules.kinds.iter().copied().filter(|kind| before.kinds.contains(kind));
    kinds.map(|kind| (kind, of(before, kind), of(rules, kind))).filter(|(_, was, becomes)| was != becomes).collect()
}

const fn is_longer(was: i64, becomes: Retention) -> bool {
    !matches!(becomes, Retention::Seconds(seconds) if seconds < was)
}

/// Notes in meta since when a retention holds, and what has expired of a kind of bucket that is kept longer now.
fn note_retention(before: &ValidRules, rules: &ValidRules, meta: &mut Meta) {
    let now = chrono::Utc::now().timestamp();
    for (kind, was, becomes) in kept_otherwise(before, rules) {
        let since = meta.since.insert(retention_name(kind), Since { second: now, positions: String::new() });
        let since = since.map(|since| since.second).or(meta.created);
        if let (Retention::Seconds(was), Some(since)) = (was, since)
            && is_longer(was, becomes)
        {
            meta.gone.entry(kind).or_default().push((since - was, now - was));
        }
    }
}

/// When the keys of buckets that are kept longer now shall expire.
fn longer_lives(before: &ValidRules, rules: &ValidRules) -> Vec<(Bucket, Option<i64>)> {
    let now = chrono::Utc::now().timestamp();
    let mut expiries = Vec::new();
    for (kind, was, becomes) in kept_otherwise(before, rules) {
        let Retention::Seconds(was) = was else { continue };
        if !is_longer(was, becomes) {
            continue;
        }
        let unit = match kind {
            BucketKind::Day => 86_400,
            BucketKind::Hour => 3600,
            BucketKind::Minute => 60,
        };
        let mut next = (now - was).max(now - EXTENDED_MAX * unit).max(0);
        while next < now + AHEAD_MAX {
            let span = rules.zone.bucket_at(kind, next);
            expiries.push((span.bucket, becomes.expiry(&span)));
            next = span.end;
        }
    }
    expiries
}

/// By lane.
async fn extend(store: &dyn Store, expiries: &[Vec<(Bucket, Option<i64>)>]) -> StoreResult<()> {
    for (lane, expiries) in expiries.iter().enumerate().filter(|(_, expiries)| !expiries.is_empty()) {
        store.extend(lane, expiries).await?;
    }
    Ok(())
}

/// The first meta, of the store or of a lane, that has other rules. A store without a meta has nothing to change.
pub async fn meta_of_other_rules(store: &dyn Store, rules: &ValidRules) -> StoreResult<Option<Meta>> {
    let plan = rules.plan_hash();
    let is_other = |meta: &Meta| meta.plan != plan || meta.tzdb != chrono_tz::IANA_TZDB_VERSION;
    let Some(mut meta) = fitting_meta(store).await? else { return Ok(None) };
    for lane in 0..store.lanes() {
        if !is_other(&meta) {
            meta = store.lane_meta(lane).await?.unwrap_or(meta);
        }
    }
    Ok(is_other(&meta).then_some(meta))
}

/// The meta of a store that can be used here; `None` when it is empty.
pub async fn fitting_meta(store: &dyn Store) -> StoreResult<Option<Meta>> {
    let meta = store.meta().await?;
    if let Some(meta) = &meta {
        meta.check(store.lanes()).map_err(StoreError::Stop)?;
    }
    Ok(meta)
}

async fn since_now(store: &dyn Store) -> StoreResult<Since> {
    let mut since = Since::default();
    let mut positions = Vec::new();
    for lane in 0..store.lanes() {
        for (partition, checkpoint) in store.positions(lane).await? {
            let second = checkpoint.last.map_or(0, |last| last.timestamp_ms.div_euclid(1000));
            since.second = since.second.max(second);
            positions.push(format!("{partition}:{}", checkpoint.position));
        }
    }
    since.positions = positions.join(" ");
    since.settle();
    Ok(since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fingerprint;
    use crate::store::memory::MemoryStore;

    /// A producer whose clock counted in nanoseconds ended every question for a metric that was added behind its record.
    #[tokio::test]
    async fn a_metric_counts_from_now_on_whatever_the_clocks_of_producers_say() {
        let rules = |add: &str| {
            let text = format!(r#"{{"mapping":{{"add":[{add}]}}}}"#);
            serde_json::from_str::<Rules>(&text).unwrap().validate().unwrap()
        };
        let store = MemoryStore::new(1);
        let partition = TopicPartition::new("t", 0);
        let mut meta = Meta::new(&rules(r#""event""#), "g", Vec::new());
        meta.starts.insert(partition.clone(), 0);
        store.create(&meta).await.unwrap();
        let last = |timestamp_ms| Some(Fingerprint { offset: 6, timestamp_ms, hash: 1 });
        let now = chrono::Utc::now().timestamp();
        let sane = now - 60;
        for (timestamp_ms, expected) in [(sane * 1000, sane..=sane), (sane * 1_000_000_000, now..=now + 60)] {
            let from = store.positions(0).await.unwrap().get(&partition).copied();
            let to = Checkpoint { position: 7, last: last(timestamp_ms) };
            assert!(store.set_position(&partition, from, to).await.unwrap());
            apply_rules(&store, &rules(r#""event","geo""#)).await.unwrap();
            let since = store.meta().await.unwrap().unwrap().since["add:geo"].second;
            assert!(expected.contains(&since), "{since} is not in {expected:?}");
            apply_rules(&store, &rules(r#""event""#)).await.unwrap();
        }
        // Hours too count from when they were asked for.
        let mut with_hours = rules(r#""event""#).rules;
        with_hours.buckets.hour = true;
        let applied = apply_rules(&store, &with_hours.validate().unwrap()).await.unwrap();
        assert_eq!(applied.added, ["bucket:h"]);
        assert!(store.meta().await.unwrap().unwrap().since.contains_key("bucket:h"));
        apply_rules(&store, &rules(r#""event""#)).await.unwrap();
        // What an earlier version wrote can be shown, and is put right by the next change.
        assert_eq!(Since::parse("1700000000000000000 t/0:7").unwrap().second, SECOND_MAX);
        let mut poisoned = store.meta().await.unwrap().unwrap();
        poisoned.since.insert("add:event".to_owned(), Since { second: SECOND_MAX, positions: String::new() });
        store.replace_rules(Some(&poisoned.plan), &poisoned).await.unwrap();
        apply_rules(&store, &rules(r#""event""#)).await.unwrap();
        assert!((now..=now + 60).contains(&store.meta().await.unwrap().unwrap().since["add:event"].second));
    }

    /// A number of lanes below 0 was read as one of 2^64, and a layout of 2^32 + 1 as ours.
    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let rules = serde_json::from_str::<Rules>(r#"{"mapping":{"add":["event"]}}"#).unwrap().validate().unwrap();
        let fields: BTreeMap<String, String> = Meta::new(&rules, "g", Vec::new()).to_fields().into_iter().collect();
        assert!(Meta::of_fields(&fields).is_ok());
        for (name, value) in [("lanes", "-1"), ("layout", "4294967297"), ("layout", "-1"), ("value_scale", "x")] {
            let mut fields = fields.clone();
            fields.insert(name.to_owned(), value.to_owned());
            assert!(Meta::of_fields(&fields).unwrap_err().contains(name), "{name}={value}");
        }
    }
}
