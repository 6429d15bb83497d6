//! Other rules for a store that has counted already: `traqq mapping apply`.

use super::meta::{Meta, Since, kind_name, retention_name};
use super::{Store, StoreError, StoreResult};
use crate::mapping::{ValidRules, metric_name, metrics_of};
use traqq_core::model::{Bucket, BucketKind, Retention};

/// Events may be so far ahead of the clock, in seconds, and a bit.
const AHEAD_MAX: i64 = 2 * 86_400;
/// Keys of buckets that began before are not kept longer: a million minutes is two years.
const EXTENDED_MAX: i64 = 1_000_000;
/// What changed when rules were applied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AppliedRules {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// The plan changed at all, of the store or of a lane.
    pub changed: bool,
}

/// Makes rules the store's, with the positions from which each new metric counts. Nothing happens
/// on an empty store: the first worker writes its own.
pub async fn apply_rules(store: &dyn Store, rules: &ValidRules) -> StoreResult<AppliedRules> {
    let Some(stored) = fitting_meta(store).await? else { return Ok(AppliedRules::default()) };
    if let Some(difference) = stored.other_zone(rules) {
        return Err(StoreError::stop(difference));
    }
    let is_new = rules.plan_hash() != stored.plan;
    let before = stored.valid_rules()?;
    let mut expiries = Vec::with_capacity(store.lanes());
    for lane in 0..store.lanes() {
        expiries.push(match store.lane_meta(lane).await? {
            // A lane that went back behind the change before this one went back with the ends of
            // its keys.
            Some(meta) => longer_lives(&meta.valid_rules()?, rules),
            // A worker begins it again.
            None if !is_new => Vec::new(),
            None => {
                return Err(StoreError::stop(format!(
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
    // Before, so that a change which is cut off leaves nothing with too short a life; and behind,
    // for what was written in between.
    extend(store, &expiries).await?;
    let changed = store.replace_rules(is_new.then_some(&*stored.plan), &meta).await? || stored.tzdb != meta.tzdb;
    extend(store, &expiries).await?;
    // From here on batches of the old plan are refused, so these are the positions at which the new
    // metrics begin.
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

/// Notes in meta since when a retention holds, and what has expired of a kind of bucket that is
/// kept longer now.
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

/// The first meta, of the store or of a lane, that has other rules. A store without a meta has
/// nothing to change.
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
        meta.check(store.lanes())?;
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
    use super::super::meta::SECOND_MAX;
    use super::*;
    use crate::mapping::Rules;
    use crate::store::memory::MemoryStore;
    use traqq_core::model::{Checkpoint, Fingerprint, TopicPartition};

    /// A producer whose clock counted in nanoseconds ended every question for a metric that was
    /// added behind its record.
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
}
