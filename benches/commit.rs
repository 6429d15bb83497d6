//! The commit of merged batches to Redis, beside the same field operations as a plain pipeline.
//!
//! `commit REDIS_URL CORPUS.ndjson [--batch EVENTS]` prints one JSON line.

use std::sync::Arc;
use std::time::Instant;

use traqq_core::model::{Checkpoint, Part, RecordBatch, Secret, TopicPartition};
use traqq_counts::compile::{Folded, Folder, Plan};
use traqq_counts::mapping::{Rules, WriteBatch, Writes};
use traqq_counts::store::redis::{Config, RedisStore};
use traqq_counts::store::{Meta, Outcome, Store};

const RULES: &str = r#"{"mapping":{"bitmap":["ip"],"add":["event","event~utm_source","event~geo","utm_source~utm_campaign"],
    "add_value":[{"key":"event","add_key":"amount"},{"key":"event~utm_campaign","add_key":"amount"}],"top":["geo","url"]}}"#;
const PASSES: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let corpus = std::fs::read(&arguments[1]).expect("a readable corpus");
    let at = arguments.iter().position(|argument| argument == "--batch");
    let batch = at.map_or(50_000, |at| arguments[at + 1].parse().expect("a number"));
    let rules: Rules = serde_json::from_str(RULES).expect("rules");
    let plan = Arc::new(Plan::new(rules.validate().expect("valid rules")));
    let partition = TopicPartition::new("corpus", 0);
    let mut script = Vec::new();
    let mut pipeline = Vec::new();
    let mut operations = 0;
    for pass in 0..PASSES {
        let prefix = format!("bench-{pass}-{}", std::process::id());
        let config = Config { url: Secret(arguments[0].clone()), prefix: prefix.clone(), ..Config::default() };
        let store = RedisStore::new(&config).expect("a store");
        let mut meta = Meta::new(&plan.rules, "bench", Vec::new());
        meta.starts.insert(partition.clone(), 0);
        store.create(&meta).await.expect("meta");
        let batches = fold(&plan, &partition, &corpus, batch);
        operations = batches.iter().map(WriteBatch::operations).sum();
        pipeline.push(plain(&arguments[0], &prefix, &batches).await);
        let mut session = store.session(0).await.expect("a session");
        let begun = Instant::now();
        let mut answers = Vec::new();
        for batch in batches {
            answers.push(session.commit(Arc::new(batch)).await);
        }
        for answer in answers {
            assert!(matches!(answer.await, Ok(Outcome::Applied(_))), "a batch was refused");
        }
        script.push(begun.elapsed().as_secs_f64());
    }
    let median = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let (script, pipeline) = (median(script), median(pipeline));
    println!(
        "{}",
        serde_json::json!({
            "operations": operations,
            "commit_operations_per_second": operations as f64 / script,
            "pipeline_operations_per_second": operations as f64 / pipeline,
        })
    );
}

fn fold(plan: &Arc<Plan>, partition: &TopicPartition, corpus: &[u8], batch: usize) -> Vec<WriteBatch> {
    let mut folder = Folder::new(Arc::clone(plan), usize::MAX);
    let lines: Vec<&[u8]> = corpus.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    let mut from = Checkpoint::start(0);
    let mut batches = Vec::new();
    let mut offset = 0;
    for lines in lines.chunks(batch) {
        let mut records = RecordBatch::new(partition.clone(), 0);
        for line in lines {
            // Before the year 2000: the checks of time are off, and the keys get no expiry in the
            // past.
            records.push(offset, 0, None, Some(line));
            offset += 1;
        }
        let next = records.checkpoint_after(from);
        batches.extend(folder.fold(&[Part { records, from }]).into_iter().map(|Folded { batch, .. }| batch));
        from = next;
    }
    batches
}

/// The same operations without a fence, without limits and without tracking: what the script is
/// measured against.
async fn plain(url: &str, prefix: &str, batches: &[WriteBatch]) -> f64 {
    let client = redis::Client::open(url).expect("a client");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let mut seconds = 0.0;
    for batch in batches {
        let mut pipe = redis::pipe();
        for write in &batch.writes {
            let metric = &write.metric;
            let key = format!("{prefix}-plain:{}:{}:{}", metric.kind(), metric.pattern(), write.bucket.start);
            match &write.writes {
                Writes::Count(values) => values.iter().for_each(|(label, count)| {
                    pipe.cmd("HINCRBY").arg(&key).arg(&**label).arg(*count).ignore();
                }),
                Writes::Top(values) => values.iter().for_each(|(label, count)| {
                    pipe.cmd("ZINCRBY").arg(&key).arg(*count).arg(&**label).ignore();
                }),
                Writes::Sum(values, _) => values.iter().for_each(|(label, sum, count)| {
                    pipe.cmd("HINCRBY").arg(&key).arg(&**label).arg(*sum as i64).ignore();
                    pipe.cmd("HINCRBY").arg(format!("{key}:n")).arg(&**label).arg(*count).ignore();
                }),
                Writes::Unique(elements) => {
                    pipe.cmd("PFADD").arg(&key).arg(elements.iter().collect::<Vec<_>>()).ignore();
                }
                Writes::UniqueBy(_) => unreachable!("not in this mapping"),
            }
        }
        let begun = Instant::now();
        pipe.query_async::<()>(&mut connection).await.expect("a pipeline");
        seconds += begun.elapsed().as_secs_f64();
    }
    seconds
}
