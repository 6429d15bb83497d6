//! `examples/sqlite.rs`, a projection of one's own, against a real Kafka: killed in the middle,
//! started again, and two at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::model::Random;
use crate::process::PATIENCE;
use crate::scene::{counts_of, create_topic, numbered, produce, unique};
use crate::servers::{kafka_brokers, poll_until};

/// Cargo builds examples beside tests.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples/sqlite");
    assert!(built.exists(), "{} is built by `cargo test`, or `cargo build --examples`", built.display());
    built
}

/// Dropped, which is kill -9.
struct Example(Child);

impl Example {
    fn start(topic: &str, file: &Path) -> Self {
        Self(Command::new(binary()).arg(kafka_brokers()).arg(topic).arg(file).spawn().unwrap())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How often each event was seen; nothing before the tables are there.
fn totals(file: &Path) -> BTreeMap<String, i64> {
    let read = || -> rusqlite::Result<BTreeMap<String, i64>> {
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        let mut query = connection.prepare("select event, seen from totals")?;
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    read().unwrap_or_default()
}

fn seen(file: &Path) -> i64 {
    totals(file).values().sum()
}

#[test]
fn a_projection_of_ones_own_sees_every_event_once_though_it_is_killed() {
    let (topic, directory) = (unique("it-example"), tempfile::tempdir().unwrap());
    let file = directory.path().join("totals.db");
    create_topic(&topic, 3);
    let mut random = Random(5);
    let mut produced = 0;
    let mut more = |events: usize| {
        produce(&topic, &numbered(produced..produced + events));
        produced += events;
        produced
    };
    for life in 0..4 {
        let before = seen(&file);
        let (_first, _second) = (Example::start(&topic, &file), (life % 2 == 1).then(|| Example::start(&topic, &file)));
        more(20_000);
        poll_until(PATIENCE, &format!("life {life} commits"), || (seen(&file) > before).then_some(()));
        more(20_000);
        std::thread::sleep(Duration::from_micros(random.below(300_000)));
    }
    let _last = Example::start(&topic, &file);
    let events = more(1_000);
    poll_until(PATIENCE, "all is seen", || (seen(&file) >= events as i64).then_some(()));
    assert_eq!(totals(&file), counts_of(events));
    // What is no event is passed over, and what follows is seen.
    produce(&topic, &["no event".to_owned(), r#"{"event":"e0"}"#.to_owned()]);
    poll_until(PATIENCE, "what follows is seen", || (seen(&file) > events as i64).then_some(()));
    assert_eq!(seen(&file), events as i64 + 1);
}
