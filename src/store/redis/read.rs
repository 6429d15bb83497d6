//! Reads for queries, pipelined.

use redis::{Cmd, Value, cmd};

use super::{Keys, RedisStore, StoreError, StoreResult, asked_elsewhere};
use crate::hll::Hll;
use crate::store::{Read, Reply};

/// Commands sent at once; bounds the memory of answers in flight.
const PIPELINE: usize = 200;

pub async fn read(store: &RedisStore, keys: &Keys, reads: &[Read]) -> StoreResult<Vec<Reply>> {
    let mut replies = Vec::with_capacity(reads.len());
    for chunk in reads.chunks(PIPELINE) {
        let mut pipeline = redis::pipe();
        for read in chunk {
            pipeline.add_command(command(keys, read));
        }
        let mut node = store.node(keys).await?;
        let answers = node.connection.send_packed_commands(&pipeline, 0, chunk.len()).await;
        let mut answers = store.settle(keys, &node, answers).await?;
        follow(store, keys, chunk, &mut answers).await?;
        for (read, answer) in chunk.iter().zip(answers) {
            replies.push(match answer.extract_error() {
                Ok(answer) => parse(read, answer)?,
                // Of all errors only this one is about the key; the others are about the server or the user.
                Err(error) if error.code() == Some("WRONGTYPE") => Reply::Unreadable(error.to_string()),
                Err(error) => return store.settle(keys, &node, Err(error)).await,
            });
        }
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
        Read::Counts { bucket, of } => get(keys.count(*bucket, of), "HGETALL"),
        Read::Sums { bucket, of, add_key } => get(keys.sum(*bucket, of, add_key), "HGETALL"),
        Read::SumCounts { bucket, of, add_key } => get(keys.sum_counts(*bucket, of, add_key), "HGETALL"),
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

fn get(key: String, command: &str) -> Cmd {
    let mut command = cmd(command);
    command.arg(key);
    command
}

fn parse(read: &Read, answer: Value) -> StoreResult<Reply> {
    let unexpected = |error: redis::ParsingError| StoreError::Stop(format!("redis: unexpected answer: {error}"));
    Ok(match read {
        Read::Counts { .. } | Read::Sums { .. } | Read::SumCounts { .. } | Read::SumTotals { .. } => {
            let pairs: Vec<(Vec<u8>, Vec<u8>)> = redis::from_redis_value(answer).map_err(unexpected)?;
            let values: Option<Vec<(String, i64)>> =
                pairs.iter().map(|(label, value)| Some((lossy(label), lossy(value).parse().ok()?))).collect();
            values.map_or_else(|| Reply::Unreadable("a value is not an integer".to_owned()), Reply::Values)
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
            Reply::Labels(labels.iter().map(|label| lossy(label)).collect())
        }
        Read::TopFirst { .. } | Read::TopAtLeast { .. } => {
            let pairs: Vec<(Vec<u8>, f64)> = redis::from_redis_value(answer).map_err(unexpected)?;
            Reply::Values(pairs.iter().map(|(member, score)| (lossy(member), *score as i64)).collect())
        }
        Read::TopScores { members, .. } => {
            let scores: Vec<Option<f64>> = redis::from_redis_value(answer).map_err(unexpected)?;
            let present =
                members.iter().zip(scores).filter_map(|(member, score)| Some((member.clone(), score? as i64)));
            Reply::Values(present.collect())
        }
    })
}

/// Labels were UTF-8 when traqq wrote them; somebody else's bytes must not fail a query.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
