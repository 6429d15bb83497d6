//! Removing a whole store: everything of a prefix, or of the embedded store.
//!
//! First meta says so, whereupon no worker commits any more and none begins. Then the keys go, in
//! steps, and meta last: what was cut off in the middle is nobody's to use, and is done again.

use std::time::Duration;

use super::{Meta, Positions, Store, StoreError, StoreResult};

/// Between two looks at the positions.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How many keys a store has; `None` where there is nothing at all.
pub async fn size(store: &dyn Store) -> StoreResult<Option<u64>> {
    let meta = store.meta().await?;
    if let Some(meta) = &meta
        && meta.lanes != store.lanes()
    {
        let (stored, ours) = (meta.lanes, store.lanes());
        let text =
            format!("the number of lanes is {stored} in the store and {ours} here; set store.redis.lanes = {stored}");
        return Err(StoreError::stop(text));
    }
    let keys = store.size().await?;
    Ok((meta.is_some() || keys > 0).then_some(keys))
}

/// Removes everything; how many keys that were. Positions are watched for a while first, and one
/// that moves is a worker's. A worker that has nothing to count is not noticed here; it finds a
/// store that is being removed, or an empty one, when it has.
pub async fn remove(store: &dyn Store, watch: Duration) -> StoreResult<u64> {
    let meta = store.meta().await?;
    if !meta.as_ref().is_some_and(Meta::is_dropped) {
        let is_import = meta.as_ref().is_some_and(Meta::is_import);
        let before = positions(store).await?;
        // An import moves no position before its end.
        let keys_before = if is_import { store.size().await? } else { 0 };
        let until = tokio::time::Instant::now() + watch;
        while (is_import || !before.is_empty()) && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
            let what = if positions(store).await? != before {
                "a worker counts into the store"
            } else if is_import && store.size().await? != keys_before {
                "an import into the store is under way"
            } else {
                continue;
            };
            return Err(StoreError::stop(format!("{what}; stop it, and try again")));
        }
    }
    store.begin_removal().await?;
    store.remove_all().await
}

async fn positions(store: &dyn Store) -> StoreResult<Positions> {
    let mut all = Positions::new();
    for lane in 0..store.lanes() {
        all.extend(store.positions(lane).await?);
    }
    Ok(all)
}
