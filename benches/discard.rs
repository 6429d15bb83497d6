//! The floor of a Kafka consumer: a bare poll loop that throws the records of a topic away.
//!
//! `discard BROKERS TOPIC RECORDS` prints one JSON line; the clock runs from the first record to
//! the last.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [brokers, topic, records] = &arguments[..] else { panic!("discard BROKERS TOPIC RECORDS") };
    let records: u64 = records.parse().expect("a number of records");
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "discard")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("an assignment");
    let (mut seen, mut bytes, mut begun) = (0, 0, None);
    while seen < records {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            begun.get_or_insert_with(Instant::now);
            seen += 1;
            bytes += message.payload_len();
        }
    }
    let seconds = begun.expect("at least one record").elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({"records": seen, "bytes": bytes, "seconds": seconds, "records_per_second": seen as f64 / seconds})
    );
}
