//! Events as real senders write them: nine of thirteen shapes had no member `event`, and were dead
//! letters.

use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use traqq::config::load;
use traqq_core::decode::DeadLetter;
use traqq_core::model::{Checkpoint, Header, Part, RecordBatch, TopicPartition};
use traqq_counts::compile::{Folder, Plan};
use traqq_counts::store::redis::RedisStore;
use traqq_counts::store::{Meta, Store};

use crate::cli::write_config;
use crate::local::{NDJSON, Site, base64, oracle_says};
use crate::process::PATIENCE;
use crate::redis_store::{commit, config as redis_config};
use crate::servers::{Redis, poll_until};

const JSON: &str = "content-type: application/json\r\n";

/// What each sender documents, cut to what matters, the headers of its requests, and the names it
/// must count under.
fn senders() -> Vec<(&'static str, String, String, Vec<&'static str>)> {
    let json = |value: Value| value.to_string();
    let mut senders = vec![
        ("GA4 in BigQuery", json(json!({"event_name": "purchase", "event_timestamp": 1})), vec!["purchase"]),
        ("Segment", json(json!({"type": "page", "name": "Home", "userId": "u"})), vec!["page"]),
        (
            "Segment's batch",
            json(json!({"sentAt": "2026-11-28T08:00:08Z", "batch": [{"type": "track"}, {"type": "identify"}]})),
            vec!["track", "identify"],
        ),
        (
            "Stripe",
            json(json!({"id": "evt_1", "object": "event", "type": "charge.succeeded"})),
            vec!["charge.succeeded"],
        ),
        ("Plausible", json(json!({"name": "pageview", "domain": "example.org"})), vec!["pageview"]),
        ("an OpenTelemetry span", json(json!({"name": "GET /cart", "kind": 2})), vec!["GET /cart"]),
        ("Amplitude", json(json!({"api_key": "k", "events": [{"event_type": "watch"}]})), vec!["watch"]),
        ("Slack", json(json!({"type": "event_callback", "event": {"type": "message"}})), vec!["event_callback"]),
        ("Mixpanel", json(json!([{"event": "Signed up", "properties": {"plan": "pro"}}])), vec!["Signed up"]),
        (
            "an array of CloudEvents",
            json(json!([{"specversion": "1.0", "type": "in.array", "id": "1"}])),
            vec!["in.array"],
        ),
        ("objects in a row", "{\"event\":\"row\"} {\n\"event\":\"row\"}".to_owned(), vec!["row", "row"]),
    ]
    .into_iter()
    .map(|(sender, body, names)| (sender, JSON.to_owned(), body, names))
    .collect::<Vec<_>>();
    let cloud = "content-type: application/json\r\nce-specversion: 1.0\r\nce-type: com.shop.made\r\nce-id: 1\r\n";
    senders.push(("CloudEvents in binary mode", cloud.to_owned(), json(json!({"amount": 5})), vec!["com.shop.made"]));
    let text = "content-type: text/plain\r\nce-specversion: 1.0\r\nce-type: text.sent\r\n";
    senders.push(("CloudEvents of text", text.to_owned(), "hello".to_owned(), vec!["text.sent"]));
    let topic = format!("{JSON}x-shopify-topic: orders/create\r\n");
    senders.push(("Shopify", topic, json(json!({"id": 1, "name": "#1001"})), vec!["orders/create"]));
    senders.push(("an access log", NDJSON.to_owned(), json(json!({"status": 200, "uri": "/"})), vec!["request"]));
    senders
}

#[test]
fn what_real_senders_post_is_counted_under_its_name() {
    let site = Site::new("", "[events]\nname_header = \"X-Shopify-Topic\"\nname_default = \"request\"\n");
    let process = site.start();
    let mut expected = std::collections::BTreeMap::<&str, u64>::new();
    for (sender, headers, body, names) in senders() {
        let answer = site.post(&headers, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{sender}: {}", answer.text());
        assert_eq!(answer.json()["accepted"], names.len(), "{sender}: {}", answer.text());
        names.into_iter().for_each(|name| *expected.entry(name).or_default() += 1);
    }
    let total: u64 = expected.values().sum();
    poll_until(PATIENCE, "all are counted", || (site.events() == total).then_some(()));
    let found = site.get("/api/v1/find?q=add/event&limit=100");
    for (name, count) in expected {
        let values = found["results"][0]["data"]["values"].as_array().unwrap();
        let value = values.iter().find(|value| value["value"] == name);
        assert_eq!(value.map(|value| &value["count"]), Some(&json!(count)), "{name}: {found}");
    }
    assert_eq!(process.stop(), 0);
}

/// "invalid_json" alone sent people through their events byte by byte.
#[test]
fn a_refusal_says_where_and_why() {
    let site = Site::new("", "");
    let process = site.start();
    let lines = [
        "{\"event\":\"a\",}",
        "{\"action\":\"a\",\"user\":{\"id\":1}}",
        "{\"event\":\"a\",\"ts\":\"yesterday\"}",
        "[{\"event\":\"a\"},{\"event\":\"b\",\"time\":[]}]",
    ];
    let answer = site.post(NDJSON, lines.join("\n").as_bytes()).unwrap().json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(1), &json!(4)));
    for (error, (index, reason, part)) in answer["errors"].as_array().unwrap().iter().zip([
        (0, "invalid_json", "line 1, column 14: key must be a string"),
        (1, "no_event", "the event has action, user.id"),
        (2, "time_unreadable", "ts is \"yesterday\""),
        (4, "time_unreadable", "time is an object or an array"),
    ]) {
        assert_eq!((&error["index"], &error["reason"]), (&json!(index), &json!(reason)), "{error}");
        assert!(error["detail"].as_str().unwrap().contains(part), "{error}");
    }
    let cloud = site.post(&format!("{JSON}ce-specversion: 1.0\r\n"), b"{}").unwrap();
    assert!(cloud.status == 400 && cloud.text().contains("ce-type"), "{}", cloud.text());
    assert_eq!(process.stop(), 0);
}

/// Rules of `[events]` that the events of the chaos runs do not come by: the oracle folds the same
/// records under each of them.
#[tokio::test]
async fn the_oracle_agrees_under_every_rule_of_events() {
    for events in [
        "",
        "name_header = \"kind\"\nname_default = \"some\"\nbatch_fields = [\"items\"]\n",
        "name_fields = [\"payload.op\", \"event\"]\nrequire_time = true\n",
        "name_fields = []\nname_default = \"all\"\ntime_zone_default = \"Europe/Berlin\"\nmax_events_per_record = 2\n",
        "time_zone_default = \"\"\ntime_fields = [\"at\", \"ts\"]\nbatch_fields = []\n",
    ] {
        assert_oracle_agrees(events).await;
    }
}

const BROKER_MS: i64 = 1_792_900_000_000;

type Sent = (i64, Vec<Header<'static>>, &'static str);

fn records() -> Vec<Sent> {
    let kind: Vec<Header<'static>> = vec![("kind", Some(b"header")), ("kind", Some(b"second"))];
    let empty: Vec<Header<'static>> = vec![("kind", None)];
    let binary: Vec<Header<'static>> = vec![("ce-specversion", Some(b"1.0")), ("ce_type", Some(b"binary"))];
    let values = [
        r#"{"event":"e","geo":"A","ts":1792800000}"#,
        r#"{"type":"t","event":7,"geo":"A","at":"2026-10-25 02:30:00"}"#,
        r#"{"payload":{"op":"c"},"ts":"2026-10-25T02:30:00.5"}"#,
        r#"{"geo":"B","ts":"2026-10-23 12:00:00.003+02"}"#,
        r#"{"geo":"B","ts":"2026-03-29 02:30:00"}"#,
        r#"{"name":"n"}"#,
        r#"{"items":[{"event":"i","ts":1792800000},{"geo":"C","ts":1792800000},{"a":1}],"geo":"D"}"#,
        r#"{"batch":[{"type":"b","ts":1792800000},5,[],{"event":"x","ts":"soon"}]}"#,
        r#"{"event":"own","ts":1792800000,"batch":[{"event":"not"}]}"#,
        r#"[{"event":"a","ts":1792800000},{"specversion":"1.0","type":"cloud","time":"2026-10-24 10:00:00 UTC"}]"#,
        r#"{"event":"a","ts":1792800000}{"event":"b","ts":1792800000}"#,
        r#"{"event":"a","ts":1792800000}{"event":"b"} 5"#,
        r#"{"specversion":"1.0","type":"cloud","data":{"event":"hidden","geo":"E","ts":1792800000}}"#,
        r#"{"specversion":"1.0","type":"","name":"n"}"#,
        "[]",
        r#"{"batch":[],"events":[{"event":"never"}]}"#,
    ];
    let mut records: Vec<Sent> = Vec::new();
    for value in values {
        for headers in [Vec::new(), kind.clone(), empty.clone(), binary.clone()] {
            records.push((BROKER_MS, headers, value));
        }
        records.push((1, Vec::new(), value));
    }
    records
}

async fn assert_oracle_agrees(events: &str) {
    let redis = Redis::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let mapping = "[mapping]\nadd = [\"event\", \"geo\"]\nbitmap = [\"event~geo\"]\ntop = [\"ce.type\"]\n[buckets]\nminute = true\n\
                   [buckets.retention]\nd = \"forever\"\nm = \"forever\"\n";
    let file = write_config(directory.path(), &format!("[store.redis]\nprefix = \"p\"\n{mapping}[events]\n{events}"));
    let rules = load(Some(&file), &[]).unwrap().config.rules().validate().unwrap();
    let store = RedisStore::new(&redis_config(&redis.url(), 1)).unwrap();
    let mut meta = Meta::new(&rules, "g", Vec::new());
    let partition = TopicPartition::new("t", 0);
    meta.starts = [(partition.clone(), 0)].into();
    store.create(&meta).await.unwrap();

    let mut batch = RecordBatch::new(partition, 0);
    let dump = directory.path().join("records");
    let mut lines = std::fs::File::create(&dump).unwrap();
    for (offset, (timestamp_ms, headers, value)) in records().into_iter().enumerate() {
        batch.push(offset as i64, timestamp_ms, None, Some(value.as_bytes()));
        headers.iter().for_each(|header| batch.push_header(*header));
        let headers: Vec<_> = headers.iter().map(|(name, value)| json!([name, value.map(base64)])).collect();
        let record = json!({"topic": "t", "partition": 0, "offset": offset, "timestamp_ms": timestamp_ms,
            "headers": headers, "value_b64": base64(value.as_bytes())});
        writeln!(lines, "{record}").unwrap();
    }
    let part = Part { records: batch, from: Checkpoint::start(0) };
    let folded = Folder::new(Arc::new(Plan::new(rules)), usize::MAX).fold([part]).pop().unwrap();
    let (counted, letters) = (folded.stats.events, folded.dead_letters);
    let mut session = store.session(0).await.unwrap();
    commit(&mut session, folded.batch).await.unwrap();

    let text = oracle_says(&file, &dump, &redis);
    let expected = format!("{counted} events, {} dead letters", letters.len());
    assert!(text.contains(" 0 differences") && text.contains(&expected), "{events}{expected}: {text}");
    letters.iter().for_each(assert_named);
}

/// One event of several is named by its index, and only its own bytes are in the letter.
fn assert_named(letter: &DeadLetter) {
    let value = letter.value.as_deref().unwrap();
    let whole = records()[letter.offset as usize].2.as_bytes();
    assert_eq!(letter.index.is_none(), value == whole, "{letter:?}");
    assert!(letter.index.is_none() || (letter.headers.is_empty() && letter.key.is_none()), "{letter:?}");
}
