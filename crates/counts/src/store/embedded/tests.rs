//! What is remembered never outlives what it was made of. Agreement with the other stores is shown
//! in `tests/it/redis_store.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::mapping::{KeyWrite, Pattern, Rules, Totals, Writes};
use traqq_core::model::{BucketKind, Checkpoint, Span};
use traqq_disk::Config;

static NOW: AtomicI64 = AtomicI64::new(1_700_000_000);
const DAY: i64 = 86_400;
const DAYS: i64 = 5;

fn clock() -> i64 {
    NOW.load(Ordering::Relaxed)
}

fn event() -> Pattern {
    Pattern::parse("event").unwrap()
}

const fn up_to(values_max: usize) -> SumBounds<'static> {
    SumBounds { values_max, admits: &|_| true }
}

struct Case {
    store: EmbeddedStore,
    session: Box<dyn Session>,
    at: Checkpoint,
    _directory: tempfile::TempDir,
}

impl Case {
    async fn new(memory_bytes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { directory: directory.path().join("data"), reserve_bytes: 0, ..Config::default() };
        let store = EmbeddedStore::open(&Database::open(&config, 8 << 20, &[rows::TREE]).unwrap(), memory_bytes, clock)
            .unwrap();
        let rules: Rules =
            serde_json::from_str(r#"{"mapping":{"add":["event"],"add_value":[{"key":"event","add_key":"v"}]}}"#)
                .unwrap();
        let mut meta = Meta::new(&rules.validate().unwrap(), "g", vec![String::new()]);
        meta.starts = [(TopicPartition::new("t", 0), 0)].into();
        store.create(&meta).await.unwrap();
        let session = store.session(0).await.unwrap();
        Self { store, session, at: Checkpoint::start(0), _directory: directory }
    }

    /// Adds to the count and the sum of a label on a day.
    async fn add(&mut self, day: i64, label: &str, more: i64, expires_at: Option<i64>) {
        let bucket = Bucket { kind: BucketKind::Day, start: day * DAY };
        let write = |metric, writes| KeyWrite { bucket, expires_at, metric, writes };
        let totals = Totals { sum: i128::from(more), count: 1, min: more, max: more };
        let to = Checkpoint::start(self.at.position + 1);
        let batch = WriteBatch {
            spans: vec![Span { partition: TopicPartition::new("t", 0), from: self.at, to }],
            writes: vec![
                write(Metric::Count { of: event() }, Writes::Count(vec![(label.into(), more)])),
                write(
                    Metric::Sum { of: event(), add_key: "v".into() },
                    Writes::Sum(vec![(label.into(), i128::from(more), 1)], totals),
                ),
            ],
        };
        let Outcome::Applied(_) = self.session.commit(Arc::new(batch)).await.await.unwrap() else {
            panic!("the store refuses")
        };
        self.at = to;
    }

    /// Asks for sums twice, the second time of what is remembered, and compares with plain reads.
    async fn check(&self, what: &str) {
        let buckets = || (0..DAYS).map(|day| Bucket { kind: BucketKind::Day, start: day * DAY });
        let (of, add_key) = (event(), "v".to_owned());
        let all: [Vec<Read>; 3] = [
            buckets().map(|bucket| Read::Counts { bucket, of: of.clone() }).collect(),
            buckets().map(|bucket| Read::Sums { bucket, of: of.clone(), add_key: add_key.clone() }).collect(),
            buckets().map(|bucket| Read::SumCounts { bucket, of: of.clone(), add_key: add_key.clone() }).collect(),
        ];
        for reads in all {
            let mut expected: HashMap<String, i128> = HashMap::new();
            for reply in self.store.read(0, &reads).await.unwrap() {
                let Reply::Values(values) = reply else { panic!("{what}: {reply:?}") };
                values.into_iter().for_each(|(label, value)| *expected.entry(label).or_default() += i128::from(value));
            }
            for _ in 0..2 {
                let sums = self.store.sums(0, &reads, &up_to(1000)).await.unwrap().unwrap();
                assert_eq!(sums.into_iter().collect::<HashMap<_, _>>(), expected, "{what}");
            }
            let values: usize = self.store.sums(0, &reads, &up_to(1000)).await.unwrap().unwrap().len();
            assert!(
                values == 0 || self.store.sums(0, &reads, &up_to(0)).await.unwrap().is_none(),
                "{what}: more than asked for"
            );
        }
    }
}

#[tokio::test]
async fn sums_that_are_remembered_follow_every_change() {
    for memory_bytes in [0, 1 << 20] {
        let mut case = Case::new(memory_bytes).await;
        let expiry = clock() + 10;
        case.check("nothing there").await;
        for day in 0..DAYS - 1 {
            case.add(day, "a", day + 1, (day == 1).then_some(expiry)).await;
        }
        case.check("closed days").await;
        case.add(DAYS - 1, "b", 7, None).await;
        case.check("the open day is new").await;
        case.add(DAYS - 1, "a", 2, None).await;
        case.check("the open day grows").await;
        case.add(0, "c", 5, None).await;
        case.check("late, on a closed day").await;
        NOW.fetch_add(20, Ordering::Relaxed);
        case.check("a closed day has expired").await;
        case.add(1, "z", 3, None).await;
        case.check("and is born again").await;
    }
}

/// A question that never waits for anything kept its thread to the end, and all other tasks from
/// it: two such questions, and the server accepted no connection.
#[tokio::test]
async fn other_tasks_have_their_turn_while_a_long_question_is_answered() {
    let mut case = Case::new(1 << 20).await;
    case.add(0, "a", 1, None).await;
    let read = Read::Counts { bucket: Bucket { kind: BucketKind::Day, start: 0 }, of: event() };
    let reads = vec![read; 20_000];
    for is_sum in [false, true] {
        let turns = Arc::new(AtomicI64::new(0));
        let counted = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        if is_sum {
            assert_eq!(case.store.sums(0, &reads, &up_to(1 << 20)).await.unwrap().unwrap()["a"], 20_000);
        } else {
            assert_eq!(case.store.read(0, &reads).await.unwrap().len(), 20_000);
        }
        other.abort();
        assert!(turns.load(Ordering::Relaxed) >= 10, "{turns:?} turns, of sums: {is_sum}");
    }
}
