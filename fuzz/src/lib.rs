//! What the targets share: one mapping that has every kind of metric, records, and a server without
//! sockets.
//!
//! A target must do the same for the same bytes, so that a find can be repeated: no clock, no
//! randomness, nothing kept from one input to the next that could be seen.

use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use traqq::server::Ingest;
use traqq_core::decode::{Reason, for_each_event};
use traqq_core::model::{Checkpoint, Header, Part, RecordBatch, TopicPartition};
use traqq_counts::compile::{Folder, Gate, GateRules, Plan};
use traqq_counts::mapping::{Rules, ValidRules};
use traqq_counts::query::{Engine, Limits};
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::redis::lane_tags;
use traqq_counts::store::{Meta, Store};
use traqq_log::{AppendError, Appended, Appender, Events, Idempotency};

/// 2023-11-14T22:13:20Z.
pub const NOW: i64 = 1_700_000_000;
const RULES: &str = r#"{
    "mapping": {
        "bitmap": ["ip"], "bitmap_by": [{"key": "geo", "of": "ip"}], "add": ["event", "geo"],
        "add_value": [{"key": "event~geo", "add_key": "amount"}], "top": ["device.type", "ce.subject"]
    },
    "events": {"max_value_length": 8, "max_metrics_per_event": 20},
    "buckets": {"time_zone": "Europe/Berlin", "hour": true}
}"#;

static VALID_RULES: LazyLock<ValidRules> =
    LazyLock::new(|| serde_json::from_str::<Rules>(RULES).expect("JSON").validate().expect("good rules"));
static PLAN: LazyLock<Arc<Plan>> = LazyLock::new(|| Arc::new(Plan::new(VALID_RULES.clone())));
static GATE_RULES: LazyLock<Arc<GateRules>> = LazyLock::new(|| Arc::new(GateRules::new(&VALID_RULES, Some("ip"))));

/// What the door says to each event of a text that arrives [`NOW`].
pub fn judge(value: &[u8]) -> Vec<Result<(), Reason>> {
    let mut gate = Gate::new(&GATE_RULES);
    let whole = gate.check(value, NOW * 1000).map(|_| ());
    let part = std::str::from_utf8(value).ok().and_then(|text| gate.several_in(text, false));
    let mut events = Vec::new();
    part.into_iter().for_each(|part| for_each_event(part, |event| events.push(event)));
    if whole.is_ok() || events.is_empty() {
        return vec![whole];
    }
    events.into_iter().map(|event| gate.check(event.as_bytes(), NOW * 1000).map(|_| ())).collect()
}

/// The fold of one record: why it, or each of its events, is a dead letter, if it is.
pub fn fold(records: RecordBatch) -> Vec<Result<(), Reason>> {
    let part = Part { records, from: Checkpoint::start(0) };
    let folded = Folder::new(Arc::clone(&PLAN), usize::MAX).fold([part]);
    let [folded] = &folded[..] else { panic!("{} batches of one record", folded.len()) };
    let count = folded.stats.events as usize + folded.dead_letters.len();
    let mut results = vec![Ok(()); count.max(1)];
    for letter in &folded.dead_letters {
        results[letter.index.unwrap_or(0) as usize] = Err(letter.reason);
        let detail = PLAN.reader.describe_letter(letter);
        assert!(detail.starts_with(letter.reason.explain()) && !detail.contains(char::is_control), "{detail}");
    }
    results
}

/// A batch of one record that arrived [`NOW`].
pub fn record<'h>(value: Option<&[u8]>, headers: impl Iterator<Item = Header<'h>>) -> RecordBatch {
    let mut batch = RecordBatch::new(TopicPartition::new("t", 0), 0);
    batch.push(0, NOW * 1000, None, value);
    headers.for_each(|header| batch.push_header(header));
    batch
}

/// Runs a future that waits for nothing outside this process.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a thread is enough");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A store in memory that has counted nothing yet.
pub fn store(lanes: usize) -> MemoryStore {
    let store = MemoryStore::new(lanes);
    let mut meta = Meta::new(&VALID_RULES, "g", lane_tags(lanes));
    meta.starts = (0..2).map(|partition| (TopicPartition::new("t", partition), 0)).collect();
    run(store.create(&meta)).expect("memory takes it");
    store
}

pub fn engine() -> Arc<Engine> {
    let limits = Limits { buckets_max: 50, ..Limits::default() };
    Arc::new(Engine::new(Arc::new(store(1)), limits))
}

/// Key and value.
pub type Event = (Option<Vec<u8>>, Vec<u8>);

/// The log that events go to.
#[derive(Default)]
pub struct Log(Mutex<Vec<Event>>);

impl Log {
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().expect("no panic under this lock"))
    }
}

#[async_trait]
impl Appender for Log {
    fn key_field(&self) -> Option<&str> {
        Some("ip")
    }

    async fn append(&self, events: Events, _: Option<Idempotency>) -> Result<Appended, AppendError> {
        let own = events.iter().map(|(key, value)| (key.map(<[u8]>::to_vec), value.to_vec()));
        self.0.lock().expect("no panic under this lock").extend(own);
        Ok(Appended::New)
    }
}

/// Where events come in, and where they go.
pub fn ingest() -> (Arc<Ingest>, Arc<Log>) {
    let log = Arc::new(Log::default());
    let gate = GateRules::new(&VALID_RULES, log.key_field());
    (Arc::new(Ingest::new(Arc::clone(&log) as Arc<dyn Appender>, gate, 1 << 24, || NOW * 1000)), log)
}
