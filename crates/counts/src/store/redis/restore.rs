//! Keys as a whole: listing them, writing what another store held, and letting them live longer.

use std::collections::HashSet;

use redis::{Cmd, Pipeline, cmd};

use super::{Keys, Node, RedisStore, StoreResult, meta};
use crate::mapping::Metric;
use crate::mapping::metrics_of;
use crate::store::keys::encode;
use crate::store::meta::SECOND_MAX;
use crate::store::{Contents, KeyDump, Quarantined, StoredKey};
use traqq_core::model::{Bucket, BucketKind};

/// Arguments of one command, so that none is too large to be sent.
const PAIRS_MAX: usize = 5_000;

pub async fn keys(store: &RedisStore, lane: &Keys) -> StoreResult<Vec<StoredKey>> {
    let Some(meta) = meta::load(store).await? else { return Ok(Vec::new()) };
    let metrics = metrics_of(&meta.valid_rules()?.rules);
    let mut keys = Vec::new();
    for bucket in buckets(store, lane).await? {
        let tracked: HashSet<String> = store.query(lane, cmd("SMEMBERS").arg(lane.tracking(bucket))).await?;
        for metric in &metrics {
            let name = lane.of_metric(bucket, metric).swap_remove(0);
            if !tracked.contains(&name) {
                continue;
            }
            // -2: it has expired; -1: it never does.
            let expires_at: i64 = store.query(lane, cmd("EXPIRETIME").arg(&name)).await?;
            if expires_at != -2 {
                let expires_at = Some(expires_at).filter(|expiry| (0..NEVER).contains(expiry));
                keys.push(StoredKey { bucket, metric: metric.clone(), expires_at });
            }
        }
    }
    Ok(keys)
}

/// The buckets that have keys.
async fn buckets(store: &RedisStore, lane: &Keys) -> StoreResult<Vec<Bucket>> {
    let (before, pattern) = lane.tracking_names();
    let (mut cursor, mut buckets) = (0_u64, HashSet::new());
    // A cursor is one server's, and a slot that is moving away has a part of the keys elsewhere.
    let mut node = store.node(lane).await?;
    whole(&mut node, lane).await?;
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
        let (next, names): (u64, Vec<String>) = node.query(&scan).await?;
        buckets.extend(names.iter().filter_map(|name| {
            let (kind, start) = name.strip_prefix(&before)?.split_once(':')?;
            Some(Bucket { kind: BucketKind::parse(kind)?, start: start.parse().ok()? })
        }));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    whole(&mut node, lane).await?;
    let mut buckets: Vec<Bucket> = buckets.into_iter().collect();
    buckets.sort_unstable();
    Ok(buckets)
}

/// Fails while the slot of a lane is moving: a key that is nowhere is then asked for elsewhere.
pub(super) async fn whole(node: &mut Node, lane: &Keys) -> StoreResult<()> {
    node.send(cmd("EXISTS").arg(lane.never())).await.map(|_| ())
}

pub async fn restore(store: &RedisStore, lane: &Keys, keys: &[KeyDump]) -> StoreResult<()> {
    for dump in keys {
        // No transaction: nobody looks before all is there.
        let mut pipeline = redis::pipe();
        let names = put(&mut pipeline, lane, dump);
        let tracking = lane.tracking(dump.key.bucket);
        pipeline.add_command(pairs_of("SADD", &tracking, names.iter().cloned()));
        if let Some(expiry) = dump.key.expires_at {
            for name in names.iter().chain([&tracking]) {
                let mut command = cmd("EXPIREAT");
                pipeline.add_command(std::mem::take(command.arg(name).arg(expiry)));
            }
        }
        let mut node = store.node(lane).await?;
        let count = pipeline.cmd_iter().count();
        let answers = node.connection.send_packed_commands(&pipeline, 0, count).await;
        let done =
            answers.and_then(|answers| answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop)));
        store.settle(lane, &node, done).await?;
    }
    Ok(())
}

/// The keys of a bucket, and the set that names them. KEYS: that set, and one that never exists, so
/// that a node which moves the slot away refuses the script before it begins. ARGV: the expiry.
const EXTEND: &str =
    "for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do redis.call('EXPIREAT', name, ARGV[1]) end
    redis.call('EXPIREAT', KEYS[1], ARGV[1])";
/// What a key that had an expiry gets in the place of none, which would take one more permission.
const NEVER: i64 = SECOND_MAX;

pub async fn extend(store: &RedisStore, lane: &Keys, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
    for (bucket, expiry) in expiries {
        let mut command = cmd("EVAL");
        command.arg(EXTEND).arg(2).arg(lane.tracking(*bucket)).arg(lane.never());
        store.change::<()>(lane, command.arg(expiry.unwrap_or(NEVER))).await?;
    }
    Ok(())
}

/// Adds what writes a key; the names of what it becomes.
fn put(pipeline: &mut Pipeline, lane: &Keys, dump: &KeyDump) -> Vec<String> {
    let StoredKey { bucket, metric, .. } = &dump.key;
    let mut names = lane.of_metric(*bucket, metric);
    pipeline.add_command(pairs_of("DEL", &names[0], names[1..].iter().cloned()));
    let mut hash = |command: &str, name: &str, pairs: Vec<[String; 2]>| {
        for chunk in pairs.chunks(PAIRS_MAX) {
            pipeline.add_command(pairs_of(command, name, chunk.iter().flatten().cloned()));
        }
    };
    match (&dump.contents, metric) {
        (Contents::Counts(values), Metric::Top { .. }) => {
            hash("ZADD", &names[0], values.iter().map(|(label, count)| [count.to_string(), label.clone()]).collect());
        }
        (Contents::Counts(values), _) => {
            hash("HSET", &names[0], values.iter().map(|(label, count)| [label.clone(), count.to_string()]).collect());
        }
        (Contents::Sums(values, [sum, count, min, max]), _) => {
            let pairs = |number: fn(&(String, i64, i64)) -> i64| {
                values.iter().map(|value| [value.0.clone(), number(value).to_string()]).collect()
            };
            hash("HSET", &names[0], pairs(|value| value.1));
            hash("HSET", &names[1], pairs(|value| value.2));
            let totals = [("sum", sum), ("count", count), ("min", min), ("max", max)];
            hash("HSET", &names[2], totals.map(|(name, value)| [name.to_owned(), value.to_string()]).into());
        }
        (Contents::Unique(registers), _) => {
            let mut set = cmd("SET");
            pipeline.add_command(std::mem::take(set.arg(&names[0]).arg(registers.encode())));
        }
        (Contents::UniqueBy(values), _) => {
            let Metric::UniqueBy { of, by } = metric else { unreachable!("the importer has compared the kinds") };
            pipeline.add_command(pairs_of("SADD", &names[0], values.iter().map(|(label, _)| label.clone())));
            let prefix = lane.unique_by_prefix(*bucket, of, by);
            for (label, registers) in values {
                let name = format!("{prefix}{}", encode(label));
                let mut set = cmd("SET");
                pipeline.add_command(std::mem::take(set.arg(&name).arg(registers.encode())));
                names.push(name);
            }
        }
    }
    names
}

fn pairs_of(command: &str, name: &str, arguments: impl Iterator<Item = String>) -> Cmd {
    let mut command = cmd(command);
    command.arg(name);
    arguments.for_each(|argument| _ = command.arg(argument));
    command
}

pub async fn restore_quarantine(store: &RedisStore, lane: &Keys, quarantined: &[Quarantined]) -> StoreResult<()> {
    for Quarantined { key, error } in quarantined {
        store.change::<()>(lane, cmd("HSET").arg(lane.quarantine()).arg(key).arg(error)).await?;
    }
    Ok(())
}
