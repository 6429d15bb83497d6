//! A mapping that changes under a store that has counts.

use redis::cmd;
use traqq_core::model::{Bucket, BucketKind};
use traqq_counts::mapping::Metric;
use traqq_counts::plan_difference;
use traqq_counts::store::dump::{export, import};
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::redis::{RedisStore, lane_tags};
use traqq_counts::store::{Contents, KeyDump, Meta, Store, StoreError, StoredKey, apply_rules, meta_of_other_rules};

use crate::redis_store::{Embedded, config, now, pattern, plan, raw};
use crate::servers::Redis;

/// A node that loses its tail may go back behind `mapping apply`, so that its lane has the old
/// rules and the others the new ones: to apply the new ones again was refused as somebody else's
/// change.
#[tokio::test]
async fn a_lane_that_went_back_behind_a_change_takes_the_rules_again() {
    let redis = Redis::start(&[]);
    let store = RedisStore::new(&config(&redis.url(), 3)).unwrap();
    let (old, new) = (plan(r#"{"mapping":{"add":["event"]}}"#), plan(r#"{"mapping":{"add":["event","event~ip"]}}"#));
    let meta = Meta::new(&old.rules, "g", lane_tags(3));
    store.create(&meta).await.unwrap();
    let mut connection = raw(&redis.url()).await;
    let key = format!("p{{{}}}:meta", lane_tags(3)[1]);
    let before: Vec<u8> = cmd("DUMP").arg(&key).query_async(&mut connection).await.unwrap();
    let applied = apply_rules(&store, &new.rules).await.unwrap();
    assert_eq!((applied.changed, applied.added), (true, vec!["add:event~ip".to_owned()]));
    cmd("RESTORE").arg(&key).arg(0).arg(before).arg("REPLACE").exec_async(&mut connection).await.unwrap();
    let plan_of = async |lane: usize| store.session(lane).await.unwrap().stored().await.unwrap().unwrap().0.plan;
    assert_eq!(plan_of(1).await, old.rules.plan_hash());
    let behind = meta_of_other_rules(&store, &new.rules).await.unwrap();
    assert_eq!(behind.map(|meta| meta.plan), Some(old.rules.plan_hash()));
    let again = apply_rules(&store, &new.rules).await.unwrap();
    assert_eq!((again.changed, again.added), (true, vec![]));
    for lane in 0..3 {
        assert_eq!(plan_of(lane).await, new.rules.plan_hash(), "lane {lane}");
    }
    assert!(!apply_rules(&store, &new.rules).await.unwrap().changed);
    assert_eq!(meta_of_other_rules(&store, &new.rules).await, Ok(None));
    // What somebody else has changed meanwhile is still theirs.
    let refused = store.replace_rules(Some("a plan of before"), &meta).await;
    assert!(
        matches!(&refused, Err(StoreError::Stop(text)) if text.to_string().contains("somebody else")),
        "{refused:?}"
    );
}

/// A lane that went back behind a longer retention went back with the ends of its keys, and kept
/// them: months later its part of the counts was missing.
#[tokio::test]
async fn a_lane_that_went_back_behind_a_longer_retention_keeps_its_keys_as_long_as_the_others() {
    const DAY: i64 = 86_400;
    let redis = Redis::start(&[]);
    let store = RedisStore::new(&config(&redis.url(), 3)).unwrap();
    let rules = |days: u32| {
        let text = format!(r#"{{"mapping":{{"add":["event"]}},"buckets":{{"retention":{{"d":"{days}d"}}}}}}"#);
        plan(&text).rules.clone()
    };
    let today = now().div_euclid(DAY) * DAY;
    let key = |days: i64| StoredKey {
        bucket: Bucket { kind: BucketKind::Day, start: today },
        metric: Metric::Count { of: pattern("event") },
        expires_at: Some(today + DAY + days * DAY + DAY),
    };
    store.create(&Meta::new(&rules(30), "g", lane_tags(3))).await.unwrap();
    let contents = Contents::Counts(vec![("a".to_owned(), 1)]);
    for lane in 0..3 {
        store.restore_keys(lane, &[KeyDump { key: key(30), contents: contents.clone() }]).await.unwrap();
    }
    let tag = &lane_tags(3)[1];
    let mut connection = raw(&redis.url()).await;
    let names: Vec<String> = cmd("KEYS").arg(format!("p{{{tag}}}:*")).query_async(&mut connection).await.unwrap();
    let mut before = Vec::new();
    for name in &names {
        let dump: Vec<u8> = cmd("DUMP").arg(name).query_async(&mut connection).await.unwrap();
        let ends_ms: i64 = cmd("PEXPIRETIME").arg(name).query_async(&mut connection).await.unwrap();
        before.push((name, dump, ends_ms.max(0)));
    }
    assert!(before.len() >= 3, "meta, a key and what tracks it: {names:?}");
    apply_rules(&store, &rules(400)).await.unwrap();
    for (name, dump, ends_ms) in before {
        let mut restore = cmd("RESTORE");
        restore.arg(name).arg(ends_ms).arg(dump).arg("REPLACE").arg("ABSTTL");
        restore.exec_async(&mut connection).await.unwrap();
    }
    assert_eq!(store.keys(1).await.unwrap(), [key(30)]);
    assert!(apply_rules(&store, &rules(400)).await.unwrap().changed);
    for lane in 0..3 {
        assert_eq!(store.keys(lane).await.unwrap(), [key(400)], "lane {lane}");
    }
}

/// A node that lost everything: an import was refused, but left the lost lane as one that is being
/// filled, for ever; and to apply the mapping that the store has already was refused as somebody
/// else's change.
#[tokio::test]
async fn a_lost_lane_is_left_to_the_worker() {
    let redis = Redis::start(&[]);
    let store = RedisStore::new(&config(&redis.url(), 3)).unwrap();
    let rules = plan(r#"{"mapping":{"add":["event"]}}"#).rules.clone();
    store.create(&Meta::new(&rules, "g", lane_tags(3))).await.unwrap();
    let mut file = Vec::new();
    export(&store, &mut file).await.unwrap();
    let all = |tag: &str| format!("p{{{tag}}}:meta");
    for lost in [vec![all(&lane_tags(3)[1])], vec![all(&lane_tags(3)[0]), "p:meta".to_owned()]] {
        let lane = if lost.len() == 1 { 1 } else { 0 };
        let has_root = lost.len() == 1;
        lost.iter().for_each(|key| _ = redis.cli(&["DEL", key]));
        let refused = import(&store, &file[..]).await.unwrap_err();
        assert!(refused.to_string().contains("has counts already"), "{refused}");
        assert_eq!(store.lane_meta(lane).await.unwrap(), None);
        assert_eq!(store.meta().await.unwrap().is_some(), has_root);
        assert!(!apply_rules(&store, &rules).await.unwrap().changed);
        store.begin_lane(lane, &Meta::new(&rules, "g", lane_tags(3))).await.unwrap();
    }
}

/// `mapping apply` wrote the new time zone database and said that there was nothing to change; and
/// it was recommended for another zone, which it refuses.
#[tokio::test]
async fn what_apply_can_change_of_the_zone_is_said() {
    let store = MemoryStore::new(1);
    let rules = |zone: &str| {
        plan(&format!(r#"{{"mapping":{{"add":["event"]}},"buckets":{{"time_zone":"{zone}"}}}}"#)).rules.clone()
    };
    let berlin = rules("Europe/Berlin");
    store.create(&Meta { tzdb: "2020a".to_owned(), ..Meta::new(&berlin, "g", Vec::new()) }).await.unwrap();
    let other = meta_of_other_rules(&store, &berlin).await.unwrap().unwrap();
    assert!(plan_difference(&other, &berlin).unwrap().contains("the time zone database is 2020a"));
    let tokyo = rules("Asia/Tokyo");
    let difference = plan_difference(&other, &tokyo).unwrap();
    assert!(difference.contains("set buckets.time_zone = \"Europe/Berlin\""), "{difference}");
    assert_eq!(apply_rules(&store, &tokyo).await, Err(StoreError::stop(difference)));
    assert!(apply_rules(&store, &berlin).await.unwrap().changed);
    assert_eq!(meta_of_other_rules(&store, &berlin).await, Ok(None));
    assert!(!apply_rules(&store, &berlin).await.unwrap().changed);
}

/// Keys kept the end they were born with, so that a day of a month ago was a zero where the mapping
/// promised a year.
#[tokio::test]
async fn a_longer_retention_holds_for_what_is_there_and_what_is_gone_is_known() {
    const DAY: i64 = 86_400;
    let rules = |days: &str| {
        let text = format!(r#"{{"mapping":{{"add":["event"]}},"buckets":{{"retention":{{"d":"{days}"}}}}}}"#);
        plan(&text).rules.clone()
    };
    let (redis, site) = (Redis::start(&[]), Embedded::new(1 << 20));
    let in_lanes = RedisStore::new(&config(&redis.url(), 3)).unwrap();
    let today = now().div_euclid(DAY) * DAY;
    let key = |expires_at| StoredKey {
        bucket: Bucket { kind: BucketKind::Day, start: today },
        metric: Metric::Count { of: pattern("event") },
        expires_at,
    };
    // A day longer than its bucket.
    let expiry = |days: i64| today + DAY + days * DAY + DAY;
    for store in [&MemoryStore::new(1) as &dyn Store, &in_lanes, &site.open_store()] {
        let tags = if store.lanes() == 1 { Vec::new() } else { lane_tags(3) };
        let created = now() - 100 * DAY;
        let meta = Meta { created: Some(created), ..Meta::new(&rules("30d"), "g", tags) };
        store.create(&meta).await.unwrap();
        let contents = Contents::Counts(vec![("a".to_owned(), 1)]);
        for lane in 0..store.lanes() {
            let dump = KeyDump { key: key(Some(expiry(30))), contents: contents.clone() };
            store.restore_keys(lane, &[dump]).await.unwrap();
        }
        // A shorter one takes nothing away.
        for (days, lives_until) in [("400d", Some(expiry(400))), ("10d", Some(expiry(400))), ("forever", None)] {
            apply_rules(store, &rules(days)).await.unwrap();
            for lane in 0..store.lanes() {
                assert_eq!(store.keys(lane).await.unwrap(), [key(lives_until)], "{days} in lane {lane}");
            }
        }
        let gone = store.meta().await.unwrap().unwrap().gone[&BucketKind::Day].clone();
        // What expired while it was kept for thirty days, and in the moment in which it was kept
        // for ten.
        let expected = [(30, created), (10, now())].map(|(days, since)| (since - days * DAY, now() - days * DAY));
        assert_eq!(gone.len(), 2);
        for ((after, until), (since, now)) in gone.into_iter().zip(expected) {
            assert!((since - 60..=since).contains(&after) && (now - 60..=now).contains(&until), "{after} {until}");
        }
    }
    // Also on disk.
    assert_eq!(site.open_store().keys(0).await.unwrap(), [key(None)]);
    let keys = redis.cli(&["--raw", "KEYS", "p{*:k:d:*"]);
    for key in keys.lines() {
        assert_eq!(redis.cli(&["EXPIRETIME", key]), "253402300799", "{key}");
    }
    assert_eq!(keys.lines().count(), 3);
}
