//! JetStream for the benchmark: a stream full of a corpus, and the floor of a consumer of it.
//!
//! ```text
//! jetstream fill URL STREAM CORPUS RECORDS     publishes over the partitions
//! jetstream discard URL STREAM RECORDS         pulls all partitions, acknowledges as traqq does
//! ```
//!
//! `discard` prints one JSON line; the clock runs from the first record to the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;

const PARTITIONS: usize = 8;
const PULL_MESSAGES: usize = 20_000;
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// One acknowledgement for so many messages, about what a commit brings.
const ACK_EVERY: u64 = 5000;

async fn fill(url: &str, name: &str, corpus: &str, records: usize) {
    let client = async_nats::connect(url).await.expect("a server");
    let jetstream =
        jetstream::context::ContextBuilder::new().max_ack_inflight(8192).backpressure_on_inflight(true).build(client);
    let destination = format!("{name}.{{{{partition({PARTITIONS},1)}}}}.{{{{wildcard(1)}}}}");
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.*")],
        subject_transform: Some(stream::SubjectTransform { source: format!("{name}.*"), destination }),
        ..stream::Config::default()
    };
    jetstream.create_stream(config).await.expect("a stream");
    let text = std::fs::read_to_string(corpus).expect("the corpus");
    let mut acks = Vec::new();
    for (number, line) in text.lines().cycle().take(records).enumerate() {
        let subject = format!("{name}.{}", number % 1024);
        acks.push(jetstream.publish(subject, line.to_owned().into()).await.expect("room"));
        if acks.len() == 4096 {
            for ack in acks.drain(..) {
                ack.await.expect("an acknowledgement");
            }
        }
    }
    for ack in acks {
        ack.await.expect("an acknowledgement");
    }
}

async fn discard(url: &str, name: &str, records: u64) -> serde_json::Value {
    let client = async_nats::connect(url).await.expect("a server");
    let jetstream = jetstream::new(client);
    let seen = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for number in 0..PARTITIONS {
        let stream = jetstream.get_stream(name).await.expect("the stream");
        let durable = format!("discard-{number}");
        let _ = stream.delete_consumer(&durable).await;
        let config = pull::Config {
            durable_name: Some(durable),
            ack_policy: AckPolicy::All,
            max_ack_pending: 2_000_000,
            filter_subject: format!("{name}.{number}.*"),
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let seen = Arc::clone(&seen);
        tasks.push(tokio::spawn(async move {
            let mut count = 0;
            loop {
                let pull = consumer.fetch().max_messages(PULL_MESSAGES).expires(PULL_EXPIRES);
                let mut messages = pull.messages().await.expect("messages");
                while let Some(message) = messages.next().await {
                    let message = message.expect("a message");
                    count += 1;
                    seen.fetch_add(1, Ordering::Relaxed);
                    if count % ACK_EVERY == 0 {
                        message.ack().await.expect("an acknowledgement");
                    }
                }
            }
        }));
    }
    while seen.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begun = Instant::now();
    while seen.load(Ordering::Relaxed) < records {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    serde_json::json!({"records": records, "seconds": seconds, "records_per_second": records as f64 / seconds})
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fill", url, stream, corpus, records] => fill(url, stream, corpus, records.parse().expect("a number")).await,
        ["discard", url, stream, records] => {
            println!("{}", discard(url, stream, records.parse().expect("a number")).await);
        }
        _ => panic!("see the top of benches/jetstream.rs"),
    }
}
