mod flat;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::compile::{Folder, Plan};
use crate::mapping::Rules;
use crate::store::memory::MemoryStore;
use crate::store::{KeyDump, Outcome, Positions, Quarantined, Read, Reply, Session, Since, StoreResult, StoredKey};
use traqq_core::model::{Bucket, Checkpoint, Part, RecordBatch, TopicPartition};

/// 2023-11-14T00:00:00Z.
const DAY_0: i64 = 1_699_920_000;
const DAY: i64 = 86_400;
const DAYS: i64 = 4;
const PARTITIONS: i32 = 5;

#[derive(Clone, Debug)]
struct Event {
    partition: i32,
    second: i64,
    name: &'static str,
    geo: String,
    url: u32,
    ip: u32,
    cents: i64,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let name = prop_oneof![Just("view"), Just("buy"), Just("__other__")];
    let geo = prop_oneof![Just("US"), Just("D~E"), Just("F\\R"), Just("JP")];
    // A product of two is skewed, so that leaderboards have a head, a tail and ties.
    let url = (1..12u32, 1..12u32).prop_map(|(left, right)| left * right);
    let event = (0..PARTITIONS, 0..DAYS * DAY, name, geo, url, 0..300u32, -500..500i64);
    let event = event.prop_map(|(partition, second, name, geo, url, ip, cents)| Event {
        partition,
        second: DAY_0 + second,
        name,
        geo: geo.to_owned(),
        url,
        ip,
        cents,
    });
    prop::collection::vec(event, 0..600)
}

fn rules(text: &str) -> ValidRules {
    serde_json::from_str::<Rules>(text).unwrap().validate().unwrap()
}

fn default_rules() -> ValidRules {
    rules(
        r#"{"mapping":{"bitmap":["ip"],"bitmap_by":[{"key":"geo","of":"ip"}],"add":["event","geo"],"top":["url"],
            "add_value":[{"key":"event~geo","add_key":"amount"}]},
            "buckets":{"hour":true,"retention":{"d":"10d","h":"2d"}}}"#,
    )
}

fn meta_of(rules: &ValidRules, lanes: usize) -> Meta {
    let tags = if lanes == 1 { Vec::new() } else { (0..lanes).map(|lane| lane.to_string()).collect() };
    let mut meta = Meta::new(rules, "g", tags);
    meta.starts = (0..PARTITIONS).map(|partition| (TopicPartition::new("t", partition), 0)).collect();
    meta
}

async fn filled(meta: &Meta, events: &[Event]) -> MemoryStore {
    let store = MemoryStore::new(meta.lanes);
    store.create(meta).await.unwrap();
    let mut folder = Folder::new(Arc::new(Plan::new(meta.valid_rules().unwrap())), 1000);
    for partition in 0..PARTITIONS {
        let topic_partition = TopicPartition::new("t", partition);
        let lane = topic_partition.lane(meta.lanes);
        let mut records = RecordBatch::new(topic_partition, 1);
        for (offset, event) in (0..).zip(events.iter().filter(|event| event.partition == partition)) {
            let Event { name, geo, url, ip, cents, .. } = event;
            let value =
                json!({"event": name, "geo": geo, "url": format!("/{url}"), "ip": ip, "amount": *cents as f64 / 100.0});
            records.push(offset, event.second * 1000, None, Some(value.to_string().as_bytes()));
        }
        let part = Part { records, from: Checkpoint::start(0) };
        let mut session = store.session(lane).await.unwrap();
        for folded in folder.fold(&[part]) {
            assert!(folded.dead_letters.is_empty());
            let outcome = session.commit(Arc::new(folded.batch)).await.await.unwrap();
            assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
        }
    }
    store
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn all_days() -> Range {
    Range::Between { from: DAY_0.to_string(), to: Some((DAY_0 + DAYS * DAY).to_string()), align: Align::Exact }
}

const NOW: i64 = DAY_0 + DAYS * DAY - 1;

fn find(selector: &str) -> Find {
    Find {
        selector: Selector::parse(selector).unwrap(),
        value: None,
        range: all_days(),
        bucket: BucketKind::Day,
        merge: true,
        order: None,
        limit: Some(1000),
    }
}

async fn answer(engine: &Engine, find: Find) -> FindAnswer {
    match engine.ask(&Request::Find(find), NOW).await.unwrap() {
        Answer::Find(answer) => answer,
        other => panic!("{other:?}"),
    }
}

async fn merged(engine: &Engine, selector: &str) -> Cell {
    answer(engine, find(selector)).await.results.remove(0).cell
}

fn many(values: [&str; 2]) -> Value {
    Value::Many(values.map(str::to_owned).into())
}

/// Rows in order: highest first, ties by the stored label.
fn sorted<L: Ord, T: Ord + Copy>(values: BTreeMap<L, T>) -> Vec<(L, T)> {
    let mut values: Vec<(L, T)> = values.into_iter().collect();
    values.sort_by_key(|(_, count)| Reverse(*count));
    values
}

fn tally<L: Ord>(labels: impl Iterator<Item = L>) -> BTreeMap<L, i128> {
    labels.fold(BTreeMap::new(), |mut counts, label| {
        *counts.entry(label).or_default() += 1;
        counts
    })
}

fn count_rows(data: Option<&Data>) -> Vec<(Value, i128)> {
    match data {
        Some(Data::Count { values, .. } | Data::Top { values, .. }) => {
            values.iter().map(|row| (row.value.clone(), row.count)).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn unique(events: &[&Event]) -> u64 {
    let mut registers = traqq_core::hll::Hll::new();
    events.iter().for_each(|event| _ = registers.add(event.ip.to_string().as_bytes()));
    registers.count()
}

async fn check_merged(engine: &Engine, events: &[Event]) {
    let counts = tally(events.iter().map(|event| event.name));
    let cell = merged(engine, "add/event").await;
    assert!(!cell.capped && !cell.incomplete && cell.reason.is_none());
    let rows: BTreeMap<Value, i128> = count_rows(cell.data.as_ref()).into_iter().collect();
    assert_eq!(rows, counts.into_iter().map(|(name, count)| (Value::One(name.to_owned()), count)).collect());

    let pairs = tally(events.iter().map(|event| many([event.name, &event.geo])));
    let rows: BTreeMap<Value, i128> =
        count_rows(merged(engine, "add/geo~event").await.data.as_ref()).into_iter().collect();
    assert_eq!(rows, pairs);

    let all: Vec<&Event> = events.iter().collect();
    assert_eq!(merged(engine, "bitmap/ip").await.data, Some(Data::Unique { unique: unique(&all), error: 0.0081 }));
    let Some(Data::UniqueBy { values, values_seen, .. }) = merged(engine, "bitmap_by/geo/ip").await.data else {
        panic!()
    };
    assert_eq!((values.len(), values_seen), (tally(events.iter().map(|event| &event.geo)).len(), values.len()));
    for row in values {
        let of_geo: Vec<&Event> = events.iter().filter(|event| Value::One(event.geo.clone()) == row.value).collect();
        assert_eq!(row.unique, unique(&of_geo));
    }

    let Some(Data::Sum { sum, count, min, max, values, .. }) = merged(engine, "add_value/event~geo/amount").await.data
    else {
        panic!()
    };
    let units = |event: &Event| i128::from(event.cents) * 10_000;
    assert_eq!((sum.0, count), (events.iter().map(units).sum::<i128>(), events.len() as i128));
    assert_eq!(min.map(|min| min.0), events.iter().map(units).min());
    assert_eq!(max.map(|max| max.0), events.iter().map(units).max());
    for row in values {
        let of_row = || events.iter().filter(|event| many([event.name, &event.geo]) == row.value);
        assert_eq!((row.sum.0, row.count), (of_row().map(units).sum::<i128>(), of_row().count() as i128));
    }
}

async fn check_top(engine: &Engine, events: &[Event], k: usize) -> bool {
    let urls = tally(events.iter().map(|event| format!("/{}", event.url)));
    let mut expected: Vec<(Value, i128)> =
        sorted(urls).into_iter().map(|(url, count)| (Value::One(url), count)).collect();
    expected.truncate(k);
    let cell = answer(engine, Find { limit: Some(k), ..find("top/url") }).await.results.remove(0).cell;
    let Some(Data::Top { exact, .. }) = cell.data else { panic!() };
    if exact {
        assert_eq!(count_rows(cell.data.as_ref()), expected, "k = {k}");
    }
    exact
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn merged_answers_equal_brute_force(events in events(), lanes in prop_oneof![Just(1usize), Just(3)]) {
        block_on(async {
            let store = filled(&meta_of(&default_rules(), lanes), &events).await;
            let engine = Engine::new(Arc::new(store.clone()), Limits::default());
            check_merged(&engine, &events).await;
            for k in [1, 2, 3, 5, 10, 30, 200] {
                assert!(check_top(&engine, &events, k).await);
            }
            for members_max in [100, 150, 400] {
                let engine = Engine::new(Arc::new(store.clone()), Limits { members_max, ..Limits::default() });
                for k in [1, 3, 5] {
                    check_top(&engine, &events, k).await;
                }
            }
        });
    }

    #[test]
    fn buckets_equal_brute_force(events in events(), lanes in prop_oneof![Just(1usize), Just(3)]) {
        block_on(async {
            let engine = Engine::new(Arc::new(filled(&meta_of(&default_rules(), lanes), &events).await), Limits::default());
            let request = Request::Query { range: all_days(), bucket: BucketKind::Day, limit: Some(1000) };
            let Answer::Query(answer) = engine.ask(&request, NOW).await.unwrap() else { panic!() };
            assert_eq!(answer.buckets.len(), DAYS as usize);
            for (bucket, start) in answer.buckets.iter().zip((DAY_0..).step_by(DAY as usize)) {
                assert_eq!(bucket.span.start_epoch, start);
                let of_day: Vec<&Event> = events.iter().filter(|event| (start..start + DAY).contains(&event.second)).collect();
                for MetricCell { metric, cell } in &bucket.metrics {
                    match (metric.metric, &*metric.pattern) {
                        ("bitmap", _) => {
                            assert_eq!(cell.data, Some(Data::Unique { unique: unique(&of_day), error: 0.0081 }));
                        }
                        ("top", _) => {
                            let urls = tally(of_day.iter().map(|event| format!("/{}", event.url)));
                            let expected: Vec<(Value, i128)> =
                                sorted(urls).into_iter().map(|(url, count)| (Value::One(url), count)).collect();
                            assert_eq!(count_rows(cell.data.as_ref()), expected);
                        }
                        ("add", "geo") => {
                            let Some(Data::Count { count, .. }) = cell.data else { panic!() };
                            assert_eq!(count, of_day.len() as i128);
                        }
                        _ => {}
                    }
                }
            }
        });
    }
}

fn event(second: i64, url: u32) -> Event {
    let partition = (url % PARTITIONS as u32) as i32;
    Event { partition, second, name: "view", geo: "US".to_owned(), url, ip: url, cents: 150 }
}

fn engine_of(meta: &Meta, events: &[Event]) -> Engine {
    Engine::new(Arc::new(block_on(filled(meta, events))), Limits::default())
}

fn json_of(engine: &Engine, request: &Request, now: i64) -> Json {
    serde_json::to_value(block_on(engine.ask(request, now)).unwrap()).unwrap()
}

#[test]
fn a_bucket_is_zero_or_null_with_the_reason() {
    let mut meta = meta_of(&default_rules(), 1);
    let positions = String::new();
    meta.since.insert("top:url".to_owned(), Since { second: DAY_0 + DAY + 5, positions });
    let engine = engine_of(&meta, &[event(DAY_0, 1), event(DAY_0 + DAY, 2)]);
    let per_bucket = |selector: &str| Request::Find(Find { merge: false, ..find(selector) });

    let now = DAY_0 + DAY + 10 * DAY;
    let answer = json_of(&engine, &per_bucket("add/event"), now);
    let results = answer["results"].as_array().unwrap();
    assert_eq!((&results[0]["data"], &results[0]["reason"]), (&Json::Null, &json!("expired")));
    assert_eq!(results[1]["data"], json!({"count": 1, "values_seen": 1, "values": [{"value": "view", "count": 1}]}));
    assert_eq!(results[3]["data"], json!({"count": 0, "values_seen": 0, "values": []}));
    assert_eq!(results[0]["start"], "2023-11-14T00:00:00Z");
    assert_eq!(answer["from"], "2023-11-14T00:00:00Z");

    let answer = json_of(&engine, &per_bucket("top/url"), NOW);
    let results = answer["results"].as_array().unwrap();
    assert_eq!((&results[0]["data"], &results[0]["reason"]), (&Json::Null, &json!("before_since")));
    assert_eq!((&results[1]["partial"], &results[2].get("partial")), (&json!(true), &None));

    // Hours that are counted from a certain one on.
    let mut meta = meta_of(&default_rules(), 1);
    meta.since.insert("bucket:h".to_owned(), Since { second: DAY_0 + 7200, positions: String::new() });
    let hours = engine_of(&meta, &[event(DAY_0 + 7200, 1)]);
    let range =
        Range::Between { from: DAY_0.to_string(), to: Some((DAY_0 + 4 * 3600).to_string()), align: Align::Exact };
    let request = Request::Find(Find { merge: false, bucket: BucketKind::Hour, range, ..find("add/event") });
    let results = json_of(&hours, &request, DAY_0 + DAY)["results"].clone();
    let reasons: Vec<&Json> = results.as_array().unwrap().iter().map(|result| &result["reason"]).collect();
    assert_eq!(reasons, [&json!("before_since"), &json!("before_since"), &Json::Null, &Json::Null]);

    // The second day had expired when the retention became longer, and nothing was counted when the
    // first one would have.
    let mut meta = meta_of(&default_rules(), 1);
    meta.gone.insert(BucketKind::Day, vec![(DAY_0 + DAY, DAY_0 + 2 * DAY)]);
    let longer = engine_of(&meta, &[event(DAY_0, 1), event(DAY_0 + DAY, 2)]);
    let results = json_of(&longer, &per_bucket("add/event"), NOW)["results"].clone();
    assert_eq!((&results[0]["data"]["count"], &results[1]["reason"]), (&json!(1), &json!("expired")));

    let answer = json_of(&engine, &Request::Find(find("top/url")), now + DAY);
    assert_eq!(answer["results"][0]["missing"], json!({"expired": 2}));
    assert_eq!(answer["results"][0]["data"], json!({"exact": true, "values": []}));
}

#[test]
fn folded_values_are_flagged_and_told_from_a_users_own() {
    let mut rules = default_rules().rules;
    rules.events.max_values_per_key = 1;
    rules.events.max_values_per_key_bitmap_by = 1;
    let own = Event { name: "__other__", ..event(DAY_0, 5) };
    let mut events = vec![own, event(DAY_0, 10)];
    events.extend(std::iter::repeat_n(event(DAY_0, 10), 3));
    let engine = engine_of(&meta_of(&rules.validate().unwrap(), 1), &events);
    let answer = json_of(&engine, &Request::Find(find("add/event")), NOW);
    assert_eq!(answer["results"][0]["capped"], true);
    let values = json!([{"value": "__other__", "other": true, "count": 4}, {"value": "__other__", "count": 1}]);
    assert_eq!(answer["results"][0]["data"]["values"], values);
    // The folded members are not among the first one, and yet the answer says so.
    let own_first = Find { limit: Some(1), ..find("top/url") };
    assert_eq!(json_of(&engine, &Request::Find(own_first), NOW)["results"][0]["capped"], true);
    let one = Find { value: Some("\\__other__".to_owned()), ..find("add/event") };
    assert_eq!(json_of(&engine, &Request::Find(one), NOW)["results"][0]["data"], json!({"count": 1}));
}

#[test]
fn one_value_is_one_number() {
    let engine = engine_of(&meta_of(&default_rules(), 3), &[event(DAY_0, 1), event(DAY_0 + DAY, 2)]);
    for (selector, value, data) in [
        ("add/geo~event", "US~view", json!({"count": 2})),
        ("add/event", "absent", json!({"count": 0})),
        ("top/url", "/2", json!({"count": 1})),
        ("bitmap_by/geo", "US", json!({"unique": 2, "error": 0.0081})),
        ("add_value/event~geo", "view~US", json!({"sum": 3, "count": 2})),
    ] {
        let find = Find { value: Some(value.to_owned()), ..find(selector) };
        assert_eq!(json_of(&engine, &Request::Find(find), NOW)["results"][0]["data"], data, "{selector}");
    }
}

#[test]
fn the_catalog_lists_every_metric() {
    let engine = engine_of(&meta_of(&default_rules(), 3), &[event(DAY_0, 1), event(DAY_0 + DAY, 2)]);
    let answer = json_of(&engine, &Request::Catalog { range: all_days(), bucket: BucketKind::Day }, NOW);
    assert_eq!(
        answer["metrics"],
        json!([
            {"metric": "bitmap", "pattern": "ip", "values": 2},
            {"metric": "bitmap_by", "pattern": "geo", "of": "ip", "values": 1},
            {"metric": "add", "pattern": "event", "values": 1},
            {"metric": "add", "pattern": "geo", "values": 1},
            {"metric": "add", "pattern": "event~geo", "values": 1},
            {"metric": "add_value", "pattern": "event~geo", "add_key": "amount", "values": 1},
            {"metric": "top", "pattern": "url", "values": 2},
        ])
    );
}

#[test]
fn limits_are_named() {
    let store = Arc::new(block_on(filled(&meta_of(&default_rules(), 3), &[event(DAY_0, 1)])));
    let message = |limits: Limits, request: &Request| {
        let engine = Engine::new(Arc::<MemoryStore>::clone(&store), limits);
        match block_on(engine.ask(request, NOW)) {
            Err(QueryError::TooLarge(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    let query = Request::Query { range: all_days(), bucket: BucketKind::Day, limit: None };
    assert!(message(Limits { buckets_max: 3, ..Limits::default() }, &query).contains("max_buckets"));
    assert!(message(Limits { keys_max: 50, ..Limits::default() }, &query).contains("max_keys"));
    assert!(message(Limits { rows_max: 5, ..Limits::default() }, &query).contains("rows"));
    let top = Request::Find(find("top/url"));
    assert!(message(Limits { members_max: 100, ..Limits::default() }, &top).contains("members"));
}

#[test]
fn an_empty_store_and_one_of_other_lanes_are_refused() {
    let request = Request::Catalog { range: Range::Days(1), bucket: BucketKind::Day };
    let empty = Engine::new(Arc::new(MemoryStore::new(1)), Limits::default());
    let error = block_on(empty.ask(&request, NOW)).unwrap_err();
    assert!(matches!(&error, QueryError::NotFound(message) if message.contains("nothing has been counted")));

    let other = MemoryStore::new(3);
    block_on(other.create(&meta_of(&default_rules(), 1))).unwrap();
    let error = block_on(Engine::new(Arc::new(other), Limits::default()).ask(&request, NOW)).unwrap_err();
    assert!(matches!(&error, QueryError::Unavailable(line) if line.text().contains("lanes")));
}

#[test]
fn uncounted_kinds_of_buckets_are_refused() {
    let engine = engine_of(&meta_of(&default_rules(), 1), &[]);
    let request = Request::Catalog { range: Range::Days(1), bucket: BucketKind::Minute };
    let error = block_on(engine.ask(&request, NOW)).unwrap_err();
    assert!(matches!(&error, QueryError::BadRequest(message) if message.contains("only d, h is")), "{error}");
}

#[test]
fn the_tag_changes_with_positions_and_with_the_day() {
    block_on(async {
        let meta = meta_of(&default_rules(), 3);
        let (few, more) = ([event(DAY_0, 1)], [event(DAY_0, 1), event(DAY_0 + 1, 2)]);
        let mut tags = BTreeSet::new();
        for events in [&few[..], &more[..]] {
            let engine = Engine::new(Arc::new(filled(&meta, events).await), Limits::default());
            for now in [DAY_0, DAY_0 + 1, DAY_0 + DAY] {
                let range = Range::Days(2);
                let question = engine.prepare(&Request::Catalog { range, bucket: BucketKind::Day }, now).await.unwrap();
                tags.insert(engine.tag(&question).await.unwrap());
            }
        }
        assert_eq!(tags.len(), 4);
    });
}

/// A memory store one of whose buckets can not be read, with keys in quarantine; counts the members
/// it hands out.
struct Faulty {
    inner: MemoryStore,
    unreadable: Option<i64>,
    quarantined: Option<&'static str>,
    members_read: AtomicUsize,
}

#[async_trait::async_trait]
impl Store for Faulty {
    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    async fn meta(&self) -> StoreResult<Option<Meta>> {
        self.inner.meta().await
    }

    async fn create(&self, meta: &Meta) -> StoreResult<Meta> {
        self.inner.create(meta).await
    }

    async fn keys(&self, lane: usize) -> StoreResult<Vec<StoredKey>> {
        self.inner.keys(lane).await
    }

    async fn restore_keys(&self, lane: usize, keys: &[KeyDump]) -> StoreResult<()> {
        self.inner.restore_keys(lane, keys).await
    }

    async fn restore_quarantine(&self, lane: usize, quarantined: &[Quarantined]) -> StoreResult<()> {
        self.inner.restore_quarantine(lane, quarantined).await
    }

    async fn begin_lane(&self, lane: usize, meta: &Meta) -> StoreResult<()> {
        self.inner.begin_lane(lane, meta).await
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
        self.inner.adopt(starts).await
    }

    async fn replace_rules(&self, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool> {
        self.inner.replace_rules(expected_plan, meta).await
    }

    async fn extend(&self, lane: usize, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
        self.inner.extend(lane, expiries).await
    }

    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>> {
        self.inner.session(lane).await
    }

    async fn positions(&self, lane: usize) -> StoreResult<Positions> {
        self.inner.positions(lane).await
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> StoreResult<bool> {
        self.inner.set_position(partition, from, to).await
    }

    async fn quarantined(&self, _: usize) -> StoreResult<Vec<Quarantined>> {
        let quarantined = |key: &str| Quarantined { key: key.to_owned(), error: "WRONGTYPE".to_owned() };
        Ok(self.quarantined.map(quarantined).into_iter().collect())
    }

    async fn read(&self, lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>> {
        let mut replies = self.inner.read(lane, reads).await?;
        for (read, reply) in reads.iter().zip(&mut replies) {
            if self.unreadable == Some(read.bucket().start) {
                *reply = Reply::Unreadable("WRONGTYPE".to_owned());
            } else if let Reply::Values(values) = &*reply {
                self.members_read.fetch_add(values.len(), Ordering::Relaxed);
            }
        }
        Ok(replies)
    }
}

fn faulty(events: &[Event], unreadable: Option<i64>, quarantined: Option<&'static str>) -> Arc<Faulty> {
    let inner = block_on(filled(&meta_of(&default_rules(), 3), events));
    Arc::new(Faulty { inner, unreadable, quarantined, members_read: AtomicUsize::new(0) })
}

#[test]
fn an_unreadable_bucket_is_null_and_leaves_the_others_alone() {
    let store = faulty(&[event(DAY_0, 1), event(DAY_0 + DAY, 2)], Some(DAY_0), None);
    let engine = Engine::new(store, Limits::default());
    for selector in ["add/event", "top/url", "bitmap/ip", "bitmap_by/geo", "add_value/event~geo"] {
        let answer = json_of(&engine, &Request::Find(Find { merge: false, ..find(selector) }), NOW);
        let (first, second) = (&answer["results"][0], &answer["results"][1]);
        assert_eq!(first["reason"], "unreadable", "{selector}");
        assert_eq!((&first["data"], &first["incomplete"]), (&Json::Null, &json!(true)), "{selector}");
        assert_eq!((second.get("incomplete"), second["data"].is_null()), (None, false), "{selector}");

        let merged = &json_of(&engine, &Request::Find(find(selector)), NOW)["results"][0];
        assert_eq!(merged["missing"], json!({"unreadable": 1}), "{selector}");
        assert_eq!((&merged["incomplete"], merged["data"].is_null()), (&json!(true), false), "{selector}");
    }
}

#[test]
fn a_quarantined_key_makes_its_metric_incomplete_in_its_bucket() {
    let store = faulty(&[event(DAY_0, 1)], None, Some("p{x}:add:d:1700006400:event"));
    let engine = Engine::new(store, Limits::default());
    let flags = |selector: &str, merge: bool| {
        let answer = json_of(&engine, &Request::Find(Find { merge, ..find(selector) }), NOW);
        let results = answer["results"].as_array().unwrap();
        results.iter().map(|result| result["incomplete"] == true).collect::<Vec<bool>>()
    };
    assert_eq!(flags("add/event", false), [false, true, false, false]);
    assert_eq!(flags("add/event", true), [true]);
    assert_eq!(flags("top/url", false), [false; 4]);
}

#[test]
fn the_first_of_a_skewed_leaderboard_cost_few_reads() {
    let mut events = Vec::new();
    for url in 1..=3000 {
        let times = if url <= 10 { 100 } else { 1 };
        events.extend((0..times).map(|n| event(DAY_0 + i64::from(n % 4) * DAY, url)));
    }
    let store = faulty(&events, None, None);
    let engine = Engine::new(Arc::<Faulty>::clone(&store), Limits::default());
    let answer = json_of(&engine, &Request::Find(Find { limit: Some(10), ..find("top/url") }), NOW);
    let data = &answer["results"][0]["data"];
    assert_eq!((&data["exact"], &data["values"][9]), (&json!(true), &json!({"value": "/9", "count": 100})));
    let members_read = store.members_read.load(Ordering::Relaxed);
    assert!(members_read < 400, "{members_read} of about 3000 were read");
}
