//! A projection of one's own: how often each event was seen, in SQLite, every event once whatever
//! happens.
//!
//! ```text
//! cargo run --example sqlite -- localhost:9092 events totals.db
//! sqlite3 totals.db 'select * from totals'
//! ```
//!
//! It may be killed at any time, and run several times at once: each commit checks in its own
//! transaction that it begins where the last one ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::watch;
use traqq_core::decode::{DeadLetter, Reason};
use traqq_core::model::{Record, Span};
use traqq_log::Start;
use traqq_log::kafka::{self, KafkaConsumer};
use traqq_pipeline::plain::{Decide, PlainBatch, PlainFold, PlainHeader, TransactionLedger, Transactional};
use traqq_pipeline::{Cause, Compared, Config, DeadLetters, Execution, Ledger, Projection, Status, Worker};

/// How often each event was seen in some records.
type Seen = HashMap<String, i64>;

/// The name of an event is the string in its member `event`.
fn add(batch: &mut PlainBatch<Seen>, range: &Span, record: &Record<'_>) {
    let json = serde_json::from_slice::<serde_json::Value>(record.value.unwrap_or_default());
    let event = json.as_ref().ok().and_then(|json| json["event"].as_str());
    match event {
        Some(event) => {
            batch.grow(event.len() + 64);
            *batch.value.entry(event.to_owned()).or_default() += 1;
        }
        None => batch.refuse(DeadLetter::of_record(&range.partition, record, Reason::NoEvent)),
    }
}

struct Sqlite(Mutex<Connection>);

impl Sqlite {
    fn open(path: &str) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch(
            "pragma journal_mode = wal;
             pragma synchronous = full;
             create table if not exists totals (event text primary key, seen integer not null);
             create table if not exists texts (name text primary key, text text not null);",
        )?;
        Ok(Self(Mutex::new(connection)))
    }
}

impl Transactional for Sqlite {
    type Batch = PlainBatch<Seen>;

    fn transaction(&self, decide: Decide<'_, Self::Batch>) -> Result<(), Cause> {
        let mut connection = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // From the beginning the only one that may write, or two could read the same texts.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let texts = transaction
            .prepare("select name, text from texts")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let Some(writes) = decide(texts) else { return Ok(()) };
        for (name, text) in &writes.texts {
            transaction.execute("insert or replace into texts values (?, ?)", [name, text])?;
        }
        for (event, seen) in writes.batch.iter().flat_map(|batch| &batch.value) {
            let add = "insert into totals values (?1, ?2) on conflict do update set seen = seen + ?2";
            transaction.execute(add, params![event, seen])?;
        }
        Ok(transaction.commit()?)
    }
}

struct Totals {
    header: PlainHeader,
    ledger: TransactionLedger<Sqlite>,
}

impl Projection for Totals {
    const NAME: &'static str = "totals";

    type Batch = PlainBatch<Seen>;
    type Report = ();
    type Fold = PlainFold<Seen>;
    type Header = PlainHeader;

    fn fold(&self) -> PlainFold<Seen> {
        PlainFold::new(add)
    }

    fn ledger(&self) -> &dyn Ledger<Self> {
        &self.ledger
    }

    fn ledger_name(&self) -> &str {
        Self::NAME
    }

    fn new_header(&self, _now_ms: i64) -> PlainHeader {
        self.header.clone()
    }

    fn difference(&self, stored: &PlainHeader, compared: Compared) -> Option<String> {
        self.header.difference(stored, compared)
    }
}

#[tokio::main]
async fn main() -> Result<(), Cause> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brokers, topic, path] = &arguments[..] else { return Err("usage: sqlite BROKERS TOPIC FILE".into()) };
    let group = "totals".to_owned();
    let (brokers, topics) = (brokers.clone(), vec![topic.clone()]);
    let kafka = kafka::Config { brokers, topics, group: group.clone(), ..kafka::Config::default() };
    let config = Config::default();
    let consumer = KafkaConsumer::new(&kafka, config.fetch_bytes_max())?;
    let projection =
        Totals { header: PlainHeader::new(&group, "1"), ledger: TransactionLedger::new(Sqlite::open(path)?) };
    let (stop, shutdown) = watch::channel(false);
    tokio::spawn(async move { tokio::signal::ctrl_c().await.map(|()| stop.send_replace(true)) });
    let worker = Worker {
        config,
        projection: Arc::new(projection),
        group,
        start: Start::Earliest,
        consumer: Box::new(consumer),
        dead_letters: DeadLetters::Discard,
        status: Arc::new(Status::of::<Totals>("discard")),
        shutdown,
        now_ms: || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64),
        execution: Execution::Threads,
    };
    Ok(worker.run().await?)
}
