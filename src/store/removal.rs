//! Removing a whole store: everything of a prefix, or of the embedded store.
//!
//! First meta says so, whereupon no worker commits any more and none begins. Then the keys go, in
//! steps, and meta last: what was cut off in the middle is nobody's to use, and is done again.

use std::time::Duration;

use super::{Positions, Store, StoreError, StoreResult};

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
        return Err(StoreError::Stop(text));
    }
    let keys = store.size().await?;
    Ok((meta.is_some() || keys > 0).then_some(keys))
}

/// Removes everything; how many keys that were. Positions are watched for a while first, and one
/// that moves is a worker's. A worker that has nothing to count is not noticed here; it finds a
/// store that is being removed, or an empty one, when it has.
pub async fn remove(store: &dyn Store, watch: Duration) -> StoreResult<u64> {
    let is_begun = store.meta().await?.is_some_and(|meta| meta.is_dropped());
    if !is_begun {
        let before = positions(store).await?;
        let until = tokio::time::Instant::now() + watch;
        while !before.is_empty() && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
            if positions(store).await? != before {
                let text = "a worker counts into the store; stop it, and try again";
                return Err(StoreError::Stop(text.to_owned()));
            }
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
