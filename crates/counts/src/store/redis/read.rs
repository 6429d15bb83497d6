//! Reads for queries, pipelined.

use redis::{Cmd, RedisError, Value, cmd};

use super::{Keys, RedisStore, StoreError, StoreResult, Unanswered, asked_elsewhere, unexpected};
use crate::store::{Read, Reply};
use traqq_core::courtesy::Turn;
use traqq_core::hll::Hll;

/// Commands sent at once; bounds the memory of answers in flight.
const PIPELINE: usize = 200;
/// Values that are converted without a look at the clock.
const VALUES_A_STEP: usize = 1000;
const NO_INTEGER: &str = "a value is not an integer";

pub async fn read(store: &RedisStore, keys: &Keys, reads: &[Read]) -> StoreResult<Vec<Reply>> {
    let mut replies = Vec::with_capacity(reads.len());
    for chunk in reads.chunks(PIPELINE) {
        let answered = match read_at_once(store, keys, chunk).await {
            Err(unanswered) if unanswered.is_stale => read_at_once(store, keys, chunk).await,
            answered => answered,
        };
        replies.extend(answered?);
    }
    Ok(replies)
}

async fn read_at_once(store: &RedisStore, keys: &Keys, reads: &[Read]) -> Result<Vec<Reply>, Unanswered> {
    let mut pipeline = redis::pipe();
    for read in reads {
        pipeline.add_command(command(keys, read));
    }
    let mut node = store.node(keys).await?;
    let answers = node.connection.send_packed_commands(&pipeline, 0, reads.len()).await;
    let mut answers = store.settle(keys, &node, answers).await?;
    follow(store, keys, reads, &mut answers).await?;
    let (turn, mut replies) = (Turn::begin(), Vec::with_capacity(reads.len()));
    for (read, answer) in reads.iter().zip(answers) {
        // An error is the whole answer; no need to look for more of them inside of it.
        let Value::ServerError(error) = answer else {
            replies.push(parse(read, answer, &turn).await?);
            continue;
        };
        let error = RedisError::from(error);
        // Of all errors only this one is about the key; the others are about the server or the
        // user.
        if error.code() != Some("WRONGTYPE") {
            return store.settle(keys, &node, Err(error)).await;
        }
        replies.push(Reply::Unreadable(error.to_string()));
    }
    Ok(replies)
}

/// Asks again for keys that have moved to where the rest of their slot is moving.
async fn follow(store: &RedisStore, keys: &Keys, reads: &[Read], answers: &mut [Value]) -> StoreResult<()> {
    let moved = |answer: &Value| match answer {
        Value::ServerError(error) => asked_elsewhere(&error.clone().into()),
        _ => None,
    };
    let Some(to) = answers.iter().find_map(moved) else { return Ok(()) };
    let (mut places, mut commands) = (Vec::new(), Vec::new());
    for (read, answer) in reads.iter().zip(answers) {
        if moved(answer).as_ref() == Some(&to) {
            commands.push(command(keys, read));
            places.push(answer);
        }
    }
    for (place, answer) in places.into_iter().zip(store.ask(&to, &commands).await?) {
        *place = answer;
    }
    Ok(())
}

fn command(keys: &Keys, read: &Read) -> Cmd {
    match read {
        Read::Counts { .. } | Read::Sums { .. } | Read::SumCounts { .. } => get(hash(keys, read), "HGETALL"),
        Read::Only { read, labels } => {
            let mut command = get(hash(keys, read), "HMGET");
            command.arg(labels);
            command
        }
        Read::SumTotals { bucket, of, add_key } => get(keys.sum_totals(*bucket, of, add_key), "HGETALL"),
        Read::Unique { bucket, of } => get(keys.unique(*bucket, of), "GET"),
        Read::UniqueBy { bucket, of, by, value } => get(keys.unique_by(*bucket, of, by, value), "GET"),
        Read::UniqueByValues { bucket, of, by } => get(keys.unique_by_values(*bucket, of, by), "SMEMBERS"),
        Read::TopFirst { bucket, of, limit } => {
            let mut command = cmd("ZREVRANGE");
            command.arg(keys.top(*bucket, of)).arg(0).arg(*limit as i64 - 1).arg("WITHSCORES");
            command
        }
        Read::TopAtLeast { bucket, of, count, limit } => {
            let mut command = cmd("ZREVRANGEBYSCORE");
            command.arg(keys.top(*bucket, of)).arg("+inf").arg(*count).arg("WITHSCORES");
            command.arg("LIMIT").arg(0).arg(*limit);
            command
        }
        Read::TopScores { bucket, of, members } => {
            let mut command = cmd("ZMSCORE");
            command.arg(keys.top(*bucket, of)).arg(members);
            command
        }
    }
}

/// The key of a hash that holds a number for each label.
fn hash(keys: &Keys, read: &Read) -> String {
    match read {
        Read::Counts { bucket, of } => keys.count(*bucket, of),
        Read::Sums { bucket, of, add_key } => keys.sum(*bucket, of, add_key),
        Read::SumCounts { bucket, of, add_key } => keys.sum_counts(*bucket, of, add_key),
        other => unreachable!("{other:?} is no hash of labels"),
    }
}

fn get(key: String, command: &str) -> Cmd {
    let mut command = cmd(command);
    command.arg(key);
    command
}

async fn parse(read: &Read, answer: Value, turn: &Turn) -> StoreResult<Reply> {
    Ok(match read {
        Read::Counts { .. } | Read::Sums { .. } | Read::SumCounts { .. } | Read::SumTotals { .. } => {
            let values = pairs(answer, turn, integer).await?;
            values.map_or_else(|| Reply::Unreadable(NO_INTEGER.to_owned()), Reply::Values)
        }
        Read::Only { labels, .. } => {
            let found: Vec<Value> = redis::from_redis_value(answer).map_err(unexpected)?;
            let present = labels.iter().zip(found).filter(|(_, value)| *value != Value::Nil);
            let values: Option<Vec<(String, i64)>> =
                present.map(|(label, value)| Some((label.clone(), integer(value)?))).collect();
            values.map_or_else(|| Reply::Unreadable(NO_INTEGER.to_owned()), Reply::Values)
        }
        Read::Unique { .. } | Read::UniqueBy { .. } => {
            let bytes: Option<Vec<u8>> = redis::from_redis_value(answer).map_err(unexpected)?;
            match bytes.map_or_else(|| Ok(Hll::default()), |bytes| Hll::decode(&bytes)) {
                Ok(registers) => Reply::Registers(Box::new(registers)),
                Err(malformed) => Reply::Unreadable(malformed.to_string()),
            }
        }
        Read::UniqueByValues { .. } => {
            let labels: Vec<Vec<u8>> = redis::from_redis_value(answer).map_err(unexpected)?;
            Reply::Labels(labels.into_iter().map(lossy).collect())
        }
        Read::TopFirst { .. } | Read::TopAtLeast { .. } => {
            let score = |value| redis::from_redis_value(value).ok().map(|score: f64| score as i64);
            let values = pairs(answer, turn, score).await?;
            values.map_or_else(|| Reply::Unreadable("a score is not a number".to_owned()), Reply::Values)
        }
        Read::TopScores { members, .. } => {
            let scores: Vec<Option<f64>> = redis::from_redis_value(answer).map_err(unexpected)?;
            let present =
                members.iter().zip(scores).filter_map(|(member, score)| Some((member.clone(), score? as i64)));
            Reply::Values(present.collect())
        }
    })
}

fn integer(value: Value) -> Option<i64> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(&bytes).ok()?.parse().ok(),
        _ => None,
    }
}

/// Labels and numbers in turn; `None` if one is no number. There may be a hundred thousand of them:
/// labels are moved, not copied, and others have the thread in between.
async fn pairs(
    answer: Value,
    turn: &Turn,
    number: impl Fn(Value) -> Option<i64>,
) -> StoreResult<Option<Vec<(String, i64)>>> {
    let unexpected = |answer: &dyn std::fmt::Debug| StoreError::stop(format!("redis: unexpected answer {answer:?}"));
    let Value::Array(parts) = answer else { return Err(unexpected(&answer)) };
    let mut values = Vec::with_capacity(parts.len() / 2);
    let mut parts = parts.into_iter();
    while let (Some(label), Some(value)) = (parts.next(), parts.next()) {
        let Value::BulkString(label) = label else { return Err(unexpected(&label)) };
        let Some(value) = number(value) else { return Ok(None) };
        values.push((lossy(label), value));
        if values.len().is_multiple_of(VALUES_A_STEP) {
            turn.pause().await;
        }
    }
    Ok(Some(values))
}

/// Labels were UTF-8 when traqq wrote them; somebody else's bytes must not fail a query.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
