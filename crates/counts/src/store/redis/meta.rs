//! The meta hash. With several lanes each has a copy beside its checkpoint, because a script may
//! only read its own slot; the one at the bare prefix is the first to be written and the one that
//! is read.

use std::collections::BTreeMap;

use redis::cmd;

use super::commit::Limits;
use super::{Keys, RedisStore, StoreError, StoreResult};
use crate::store::Meta;
use crate::store::meta::{is_start, start_field};
use traqq_core::model::{Checkpoint, TopicPartition};

/// Writes the fields of ARGV unless there is a meta; the first number says how many pairs go to
/// meta, the rest to ckpt.
const CREATE: &str = "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
    local n = tonumber(ARGV[1]) * 2
    for i = 2, n + 1, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
    for i = n + 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
    return 1";

/// ARGV: meta field, start, and beside a checkpoint the partition.
const ADOPT: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('TRAQQNOMETA there is no meta') end
    if redis.call('HGET', KEYS[1], 'plan') == 'dropped' then return redis.error_reply('ERR traqq: the store is being removed') end
    if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 and KEYS[2] then redis.call('HSETNX', KEYS[2], ARGV[3], ARGV[2]) end
    return 1";

/// ARGV: expected plan or '' for any, then pairs. 0 when it is another, 1 when it is the new one
/// already, 2 when it is replaced, 3 when there is none.
const REPLACE: &str = "local plan = redis.call('HGET', KEYS[1], 'plan')
    if not plan then return 3 end
    if plan == 'dropped' then return 0 end
    if ARGV[1] ~= '' and plan ~= ARGV[1] and plan ~= ARGV[3] then return 0 end
    for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
    return plan == ARGV[3] and 1 or 2";

/// Where the meta is that is read.
fn home(store: &RedisStore) -> &Keys {
    if store.lanes.len() > 1 { &store.root } else { &store.lanes[0] }
}

pub async fn load(store: &RedisStore) -> StoreResult<Option<Meta>> {
    load_from(store, home(store)).await
}

pub async fn load_from(store: &RedisStore, keys: &Keys) -> StoreResult<Option<Meta>> {
    let fields: BTreeMap<String, String> = store.query(keys, cmd("HGETALL").arg(keys.meta())).await?;
    if fields.is_empty() { Ok(None) } else { Ok(Some(Meta::of_fields(&fields)?)) }
}

pub async fn limits(store: &RedisStore) -> StoreResult<Limits> {
    let meta = load(store).await?.ok_or_else(|| StoreError::retry("the store has no meta yet"))?;
    // A session takes this plan for its own.
    meta.refuse_unfinished()?;
    let rules = meta.valid_rules()?;
    Ok(Limits {
        plan: meta.plan,
        values_per_key: rules.rules.events.max_values_per_key,
        values_per_key_bitmap_by: rules.rules.events.max_values_per_key_bitmap_by,
    })
}

pub async fn create(store: &RedisStore, meta: &Meta) -> StoreResult<Meta> {
    for lane in 0..store.lanes.len() {
        begin_lane(store, lane, meta).await?;
    }
    if store.lanes.len() > 1 {
        // The bare prefix comes last: a meta there says that every lane has one.
        create_at(store, &store.root, meta, &[]).await?;
    }
    load(store).await?.ok_or_else(|| StoreError::retry("meta vanished while it was written"))
}

pub async fn begin_lane(store: &RedisStore, lane: usize, meta: &Meta) -> StoreResult<()> {
    let positions = meta.first_positions();
    let of_lane = positions.iter().filter(|(partition, _)| partition.lane(store.lanes.len()) == lane);
    create_at(store, &store.lanes[lane], meta, &of_lane.collect::<Vec<_>>()).await
}

async fn create_at(
    store: &RedisStore,
    keys: &Keys,
    meta: &Meta,
    positions: &[(&TopicPartition, &Checkpoint)],
) -> StoreResult<()> {
    let fields = meta.to_fields();
    let mut command = cmd("EVAL");
    // At the bare prefix the two are in different slots of a cluster, and there are no positions.
    if positions.is_empty() {
        command.arg(CREATE).arg(1).arg(keys.meta());
    } else {
        command.arg(CREATE).arg(2).arg(keys.meta()).arg(keys.checkpoint());
    }
    command.arg(fields.len());
    for (name, value) in &fields {
        command.arg(name).arg(value);
    }
    for (partition, checkpoint) in positions {
        command.arg(partition.to_string()).arg(checkpoint.to_string());
    }
    store.change(keys, &command).await
}

pub async fn adopt(store: &RedisStore, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
    for (partition, start) in starts {
        let lane = &store.lanes[partition.lane(store.lanes.len())];
        let mut command = cmd("EVAL");
        command.arg(ADOPT).arg(2).arg(lane.meta()).arg(lane.checkpoint());
        command.arg(start_field(partition)).arg(*start).arg(partition.to_string());
        store.change::<()>(lane, &command).await?;
        if store.lanes.len() > 1 {
            let mut command = cmd("EVAL");
            command.arg(ADOPT).arg(1).arg(store.root.meta()).arg(start_field(partition)).arg(*start);
            store.change::<()>(&store.root, &command).await?;
        }
    }
    Ok(())
}

pub async fn replace_rules(store: &RedisStore, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool> {
    // Starts are each lane's own: one that went back to before it knew a partition must not learn
    // of it without its position.
    let mut fields = meta.to_fields();
    fields.retain(|(name, _)| !is_start(name));
    let plan = fields.iter().position(|(name, _)| name == "plan").expect("meta has a plan");
    // The plan goes first: the script knows its new value by its place, so that a replacement cut
    // short can be repeated.
    let ordered = std::iter::once(&fields[plan]).chain(fields.iter().filter(|(name, _)| name != "plan"));
    let ordered: Vec<&(String, String)> = ordered.collect();
    let mut changed = false;
    for keys in store.homes() {
        let is_home = keys.meta() == home(store).meta();
        let expected = expected_plan.unwrap_or(if is_home { &meta.plan } else { "" });
        let mut command = cmd("EVAL");
        command.arg(REPLACE).arg(1).arg(keys.meta()).arg(expected);
        for (name, value) in &ordered {
            command.arg(name).arg(value);
        }
        let replaced: i64 = store.change(keys, &command).await?;
        changed |= replaced == 2;
        // A lane that is lost is begun again with the rules that are the store's already.
        if replaced == 3 && expected.is_empty() {
            continue;
        }
        if replaced == 3 {
            return Err(StoreError::stop(format!(
                "{} is gone: the store lost it meanwhile; start a worker, and try again when it counts",
                keys.meta()
            )));
        }
        if replaced == 0 {
            return Err(StoreError::stop(
                "the mapping was changed by somebody else meanwhile; look at it with `traqq mapping show` and try again",
            ));
        }
    }
    Ok(changed)
}
