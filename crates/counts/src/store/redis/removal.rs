//! Removing everything of a prefix, and nothing of another one.
//!
//! Keys are found by SCAN and known by the documented layout, for one prefix may begin like
//! another: `a:b:meta` is not of prefix `a`. Names are bytes, since labels of events stand in them.

use std::collections::BTreeMap;

use redis::cmd;

use super::restore::whole;
use super::{Keys, Place, RedisStore, StoreResult};
use crate::store::keys::slot_of;
use crate::store::meta::DROPPED;

/// Keys looked at by one SCAN, and so about as many removed by one UNLINK.
const STEP: usize = 1000;

/// A meta that is gone stays gone. Also where there is no memory left: that is when a store is
/// removed.
const MARK: &str = "#!lua flags=allow-oom
    if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
    return redis.call('HSET', KEYS[1], 'plan', ARGV[1])";

pub async fn begin(store: &RedisStore) -> StoreResult<()> {
    for keys in store.homes() {
        store.change::<()>(keys, cmd("EVAL").arg(MARK).arg(1).arg(keys.meta()).arg(DROPPED)).await?;
    }
    Ok(())
}

pub async fn size(store: &RedisStore) -> StoreResult<u64> {
    let mut keys = 0;
    for homes in places(store) {
        keys += each(store, &homes, false).await?;
    }
    Ok(keys)
}

/// How many keys were removed. Those that say that the store is being removed go last, and that of
/// the store behind those of its lanes.
pub async fn remove(store: &RedisStore) -> StoreResult<u64> {
    let mut removed = 0;
    for homes in places(store) {
        removed += each(store, &homes, true).await?;
    }
    for keys in store.homes() {
        removed += store.change::<u64>(keys, cmd("UNLINK").arg(keys.meta())).await?;
    }
    Ok(removed)
}

/// The lanes, and the bare prefix, by where they are.
fn places(store: &RedisStore) -> Vec<Vec<&Keys>> {
    let mut places: BTreeMap<u16, Vec<&Keys>> = BTreeMap::new();
    store.homes().for_each(|keys| places.entry(store.slot(keys)).or_default().push(keys));
    places.into_values().collect()
}

/// Counts the keys of lanes that are in one place, or removes all but meta.
async fn each(store: &RedisStore, homes: &[&Keys], is_removal: bool) -> StoreResult<u64> {
    let is_cluster = matches!(store.connector.place, Place::Cluster(_));
    if is_cluster && homes[0].meta() == store.root.meta() {
        // Nothing else has this slot.
        let found = store.query(homes[0], cmd("EXISTS").arg(homes[0].meta())).await?;
        return Ok(if is_removal { 0 } else { found });
    }
    let (mut cursor, mut count) = (0_u64, 0);
    // A cursor is one server's, and a slot that is moving away has a part of the keys elsewhere.
    let mut node = store.node(homes[0]).await?;
    whole(&mut node, homes[0]).await?;
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(store.root.all_names()).arg("COUNT").arg(STEP);
        let (next, names): (u64, Vec<Vec<u8>>) = node.query(&scan).await?;
        for keys in homes {
            let (meta, slot) = (keys.meta(), store.slot(keys));
            // One command is for one slot.
            let is_here = |name: &[u8]| !is_cluster || slot_of(&String::from_utf8_lossy(name)) == slot;
            let is_found =
                |name: &&Vec<u8>| keys.has(name) && is_here(name) && !(is_removal && **name == *meta.as_bytes());
            let found: Vec<&Vec<u8>> = names.iter().filter(is_found).collect();
            if is_removal && !found.is_empty() {
                count += node.query::<u64>(cmd("UNLINK").arg(&found)).await?;
            } else {
                count += found.len() as u64;
            }
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    whole(&mut node, homes[0]).await?;
    Ok(count)
}
