use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{Config, LocalConsumer, LocalLog, retention};
use crate::{
    AppendError, Appended, Appender, Consumer, Event, Events, Idempotency, Mark, Opening, RequestCounts, Start,
};
use traqq_core::model::{Retention, TopicPartition};
use traqq_disk::{Config as DataConfig, Database, DatabaseError};

const HOUR_MS: i64 = 3_600_000;

/// Epoch milliseconds. One test moves it on, and no other looks at it.
fn clock() -> i64 {
    NOW_MS.load(Ordering::Relaxed)
}

static NOW_MS: AtomicI64 = AtomicI64::new(1_700_000_000_000);

fn open_at(directory: &TempDir, config: &Config, reserves: bool) -> Result<LocalLog, DatabaseError> {
    let data = DataConfig { directory: directory.path().join("data"), ..DataConfig::default() };
    let database = Database::open(&data, 8 << 20, &[super::rows::TREE])?;
    LocalLog::open(&database, config, reserves, 1 << 20, clock)
}

fn open(directory: &TempDir, config: &Config) -> LocalLog {
    open_at(directory, config, false).unwrap()
}

fn events(values: &[&str]) -> Events {
    let mut events = Events::default();
    values.iter().for_each(|value| events.push(Some(value.as_bytes()), value.as_bytes()));
    events
}

async fn append(log: &LocalLog, values: &[&str]) {
    assert_eq!(log.append(events(values), None).await, Ok(Appended::New));
}

fn at(number: i32) -> TopicPartition {
    TopicPartition::new("events", number)
}

/// A consumer that reads a partition from an offset on.
fn reader(log: &LocalLog, number: i32, offset: i64) -> LocalConsumer {
    let mut consumer = log.consumer();
    assert!(matches!(&consumer.poll(Duration::ZERO, 1).unwrap()[..], [Event::Assigned(_)]));
    consumer.open(&[Opening { partition: at(number), offset, position: offset, generation: 1 }]).unwrap();
    consumer
}

/// Offset and value of what one poll brings, and the position after it.
fn poll(consumer: &mut LocalConsumer) -> (Vec<(i64, String)>, i64) {
    let (mut found, mut position) = (Vec::new(), -1);
    for event in consumer.poll(Duration::from_millis(1), 1 << 20).unwrap() {
        let Event::Records(batch) = event else { panic!("records are all there is") };
        let value = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        found.extend(batch.iter().map(|record| (record.offset, value(record.value))));
        position = batch.position;
    }
    (found, position)
}

#[tokio::test]
async fn records_come_back_in_order_from_any_offset_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory, &Config::default());
    append(&log, &["a", "b"]).await;
    append(&log, &["c"]).await;
    let expected = [(0, "a"), (1, "b"), (2, "c")].map(|(offset, value)| (offset, value.to_owned()));
    for offset in [0, 1, 2] {
        // From memory, then from disk.
        for _ in 0..2 {
            assert_eq!(poll(&mut reader(&log, 0, offset)), (expected[offset as usize..].to_vec(), 3));
        }
    }
    assert_eq!(poll(&mut reader(&log, 0, 3)), (Vec::new(), -1));
    log.close().await;
    drop(log);
    let log = open(&directory, &Config::default());
    append(&log, &["d"]).await;
    let (found, position) = poll(&mut reader(&log, 0, 2));
    assert_eq!((found, position), (vec![(2, "c".to_owned()), (3, "d".to_owned())], 4));
    let mut consumer = reader(&log, 0, 5);
    assert!(matches!(consumer.poll(Duration::ZERO, 1).unwrap()[..], [Event::OutOfRange]));
}

#[tokio::test]
async fn a_repeated_request_counts_once_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory, &Config::default());
    let counts = RequestCounts { accepted: 1, rejected: 2 };
    let key = |fingerprint| Idempotency { key: "k".to_owned(), fingerprint, counts };
    assert_eq!(log.append(events(&["a"]), Some(key(1))).await, Ok(Appended::New));
    assert_eq!(log.append(events(&["a"]), Some(key(1))).await, Ok(Appended::Replayed(counts)));
    assert_eq!(log.append(events(&["b"]), Some(key(2))).await, Err(AppendError::KeyReused));
    // Two at once: they may meet in one step.
    let twice = || Idempotency { key: "twice".to_owned(), fingerprint: 1, counts: RequestCounts::default() };
    let both = tokio::join!(log.append(events(&["c"]), Some(twice())), log.append(events(&["c"]), Some(twice())));
    assert!(matches!(both, (Ok(Appended::New), Ok(Appended::Replayed(_)))), "{both:?}");
    log.close().await;
    drop(log);
    let log = open(&directory, &Config::default());
    assert_eq!(log.append(events(&["a"]), Some(key(1))).await, Ok(Appended::Replayed(counts)));
    assert_eq!(poll(&mut reader(&log, 0, 0)).1, 2);
}

#[tokio::test]
async fn a_key_always_leads_to_the_same_partition_and_partitions_only_grow() {
    let directory = tempfile::tempdir().unwrap();
    let config = |partitions| Config { partitions, partition_by: Some("id".to_owned()), ..Config::default() };
    let log = open(&directory, &config(3));
    let values: Vec<String> = (0..30).map(|n| format!("v{n}")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    append(&log, &values).await;
    append(&log, &values).await;
    let mut all = 0;
    for number in 0..3 {
        let (found, position) = poll(&mut reader(&log, number, 0));
        assert_eq!(position, found.len() as i64);
        let (first, second) = found.split_at(found.len() / 2);
        assert!(first.iter().map(|(_, value)| value).eq(second.iter().map(|(_, value)| value)), "{found:?}");
        assert!(!found.is_empty(), "thirty keys leave no partition of three empty");
        all += found.len();
    }
    assert_eq!(all, 60);
    log.close().await;
    drop(log);
    let error = open_at(&directory, &config(2), false).err().unwrap().to_string();
    assert!(error.contains("3 partitions") && error.contains("broker.local.partitions"), "{error}");
    assert_eq!(open(&directory, &config(4)).consumer().partitions().unwrap().len(), 4);
}

#[tokio::test]
async fn retention_removes_what_is_old_or_too_much_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { retention: Retention::Seconds(7200), ..Config::default() };
    let log = open(&directory, &config);
    for value in ["a", "b", "c", "d"] {
        append(&log, &[value]).await;
    }
    let mut consumer = log.consumer();
    let low = |consumer: &mut LocalConsumer| consumer.watermarks(&at(0)).unwrap().low;
    let start = NOW_MS.fetch_add(3 * HOUR_MS, Ordering::Relaxed);
    retention::remove_old(log.shared(), clock()).unwrap();
    assert_eq!(low(&mut consumer), 0, "nothing is counted yet");
    consumer.commit(&[Mark { partition: at(0), position: 3, note: String::new() }], true).unwrap();
    retention::remove_old(log.shared(), clock()).unwrap();
    assert_eq!(low(&mut consumer), 2, "the last counted record stays, so that the log is recognised by it");
    assert_eq!(poll(&mut reader(&log, 0, 2)).1, 4);
    assert_eq!(consumer.starts(Start::TimeMs(start), &[at(0)]).unwrap(), [2]);
    assert_eq!(consumer.starts(Start::TimeMs(start + HOUR_MS), &[at(0)]).unwrap(), [4]);
    let mut old = reader(&log, 0, 1);
    assert!(matches!(old.poll(Duration::ZERO, 1).unwrap()[..], [Event::OutOfRange]));
    log.close().await;
    drop((log, consumer, old));

    let config = Config { retention: Retention::Forever, ..config };
    let log = open(&directory, &config);
    append(&log, &["e"]).await;
    log.close().await;
    drop(log);
    let log = open(&directory, &Config { retention_bytes: 1, ..config });
    let mut consumer = log.consumer();
    assert_eq!(low(&mut consumer), 2);
    consumer.commit(&[Mark { partition: at(0), position: 5, note: String::new() }], true).unwrap();
    retention::remove_old(log.shared(), clock()).unwrap();
    assert_eq!(low(&mut consumer), 4);
    // What stays though it was counted keeps nothing out.
    append(&log, &["f"]).await;
}

#[tokio::test]
async fn reserved_offsets_are_never_used_twice() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_at(&directory, &Config::default(), true).unwrap();
    append(&log, &["a"]).await;
    log.close().await;
    drop(log);
    let log = open_at(&directory, &Config::default(), true).unwrap();
    append(&log, &["b"]).await;
    assert_eq!(log.consumer().watermarks(&at(0)).unwrap().high, 2, "closed in order, nothing is left out");
    // A process that is killed gives nothing back: here its directory is copied while it runs.
    let copy = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("cp")
        .args(["-r".as_ref(), directory.path().join("data").as_os_str(), copy.path().as_os_str()])
        .status();
    assert!(status.unwrap().success());
    let log = open_at(&copy, &Config::default(), true).unwrap();
    append(&log, &["c"]).await;
    let mut consumer = reader(&log, 0, 1);
    let (found, position) = poll(&mut consumer);
    assert_eq!(found[0], (1, "b".to_owned()));
    assert!(position > 1_000_000 && found[1] == (position - 1, "c".to_owned()), "{found:?} {position}");
}

#[tokio::test]
async fn a_log_that_comes_back_shorter_is_noticed_and_its_offsets_are_not_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory, &Config::default());
    append(&log, &["a"]).await;
    // What a loss of power leaves: the file beside the database is newer.
    log.shared().watermark.write([5].into_iter());
    log.close().await;
    drop(log);
    let log = open(&directory, &Config::default());
    append(&log, &["b"]).await;
    assert_eq!(poll(&mut reader(&log, 0, 0)), (vec![(0, "a".to_owned()), (5, "b".to_owned())], 6));
    assert_eq!(log.raise(&at(0), 8), Ok(2));
    assert_eq!(poll(&mut reader(&log, 0, 6)), (Vec::new(), 8));
    // It stays so, whoever opens it next.
    log.close().await;
    drop(log);
    std::fs::remove_file(directory.path().join("data/acknowledged")).unwrap();
    let log = open(&directory, &Config::default());
    assert_eq!(log.consumer().watermarks(&at(0)).unwrap().high, 8);
}

#[tokio::test]
async fn a_directory_has_one_process_and_one_format() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory, &Config::default());
    let error = open_at(&directory, &Config::default(), false).err().unwrap().to_string();
    assert!(error.contains("in use by another traqq") && error.contains("data.directory"), "{error}");
    log.close().await;
    drop(log);
    let file = directory.path().join("data/format");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace('1', "2")).unwrap();
    let error = open_at(&directory, &Config::default(), false).err().unwrap().to_string();
    assert!(error.contains("format 2") && error.contains("format 1"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = open_at(&directory, &Config::default(), false).err().unwrap().to_string();
    assert!(error.contains("is missing"), "{error}");
}

/// A clock that was a year ahead for a moment dated all that came after it: events that say when
/// they were passed for old.
#[tokio::test]
async fn arrivals_are_those_of_the_clock_and_keys_are_remembered_though_it_goes_back() {
    fn wrong_clock() -> i64 {
        WRONG_MS.load(Ordering::Relaxed)
    }
    static WRONG_MS: AtomicI64 = AtomicI64::new(0);
    let (directory, now, day) = (tempfile::tempdir().unwrap(), 1_700_000_000_000, 24 * HOUR_MS);
    let data = DataConfig { directory: directory.path().join("data"), ..DataConfig::default() };
    let database = Database::open(&data, 8 << 20, &[super::rows::TREE]).unwrap();
    let log = LocalLog::open(&database, &Config::default(), false, 1 << 20, wrong_clock).unwrap();
    let instants = [now, now + 365 * day, now + 1000, now - 2 * day, now - 2 * day, now + 2000];
    for (number, instant) in instants.into_iter().enumerate() {
        WRONG_MS.store(instant, Ordering::Relaxed);
        let key = Idempotency { key: number.to_string(), fingerprint: 1, counts: RequestCounts::default() };
        assert_eq!(log.append(events(&["a"]), Some(key)).await, Ok(Appended::New));
    }
    let batches = reader(&log, 0, 0).poll(Duration::ZERO, 1 << 20).unwrap();
    let arrivals = batches.iter().map(|event| {
        let Event::Records(batch) = event else { panic!("records are all there is") };
        batch.get(0).timestamp_ms
    });
    assert_eq!(arrivals.collect::<Vec<_>>(), instants);
    retention::remove_old(log.shared(), now + 2000).unwrap();
    for number in 0..instants.len() {
        let key = Idempotency { key: number.to_string(), fingerprint: 1, counts: RequestCounts::default() };
        let replayed = Appended::Replayed(RequestCounts::default());
        assert_eq!(log.append(events(&["a"]), Some(key)).await, Ok(replayed), "key {number}");
    }
}

/// The records of the first partition were gone: the error of the second was returned in their
/// place, and reading went on behind them.
#[tokio::test]
async fn what_was_read_before_an_error_is_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { partitions: 2, partition_by: Some("id".to_owned()), ..Config::default() };
    let data = DataConfig { directory: directory.path().join("data"), ..DataConfig::default() };
    let database = Database::open(&data, 8 << 20, &[super::rows::TREE]).unwrap();
    // Nothing is kept in memory.
    let log = LocalLog::open(&database, &config, false, 0, clock).unwrap();
    append(&log, &["a", "b", "c", "d", "e", "f"]).await;
    let mut consumer = reader(&log, 0, 0);
    let opening = Opening { partition: at(1), offset: 0, position: 0, generation: 1 };
    consumer.open(&[opening]).unwrap();
    let open = database.get().unwrap();
    let (last, _) =
        open.tree(super::rows::TREE).prefix(super::rows::block_prefix(1)).next().unwrap().into_inner().unwrap();
    open.tree(super::rows::TREE).insert(&*last, "damaged").unwrap();
    let mut found = Vec::new();
    let mut errors = 0;
    for _ in 0..4 {
        match consumer.poll(Duration::from_millis(1), 1 << 20) {
            Ok(events) => found.extend(events),
            Err(_) => errors += 1,
        }
    }
    let [Event::Records(batch)] = &found[..] else { panic!("{} events", found.len()) };
    assert!(batch.partition == at(0) && !batch.is_empty() && errors == 3, "{errors} errors");
}

/// Each of 22,000 requests of 214 bytes left an answer of 7 KB behind for a day, until the disk was
/// full for everybody.
#[tokio::test]
async fn keys_are_bounded_and_all_other_requests_go_on() {
    fn later_clock() -> i64 {
        LATER_MS.load(Ordering::Relaxed)
    }
    static LATER_MS: AtomicI64 = AtomicI64::new(1_700_000_000_000);
    const BYTES_MAX: u64 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let data = DataConfig { directory: directory.path().join("data"), ..DataConfig::default() };
    let database = Database::open(&data, 8 << 20, &[super::rows::TREE]).unwrap();
    let open =
        || LocalLog::open_with_keys(&database, &Config::default(), false, 1 << 20, BYTES_MAX, later_clock).unwrap();
    let counts = RequestCounts { accepted: 1, rejected: u64::MAX };
    let key = |number: usize, length: usize| Idempotency { key: format!("{number:0length$}"), fingerprint: 1, counts };
    let mut log = open();
    for length in [8, 255] {
        // A row for the key, one for the time when it goes.
        let bytes = 2 * length as u64 + 1 + 33 + 1 + 8;
        let fitting = (BYTES_MAX / bytes) as usize;
        for number in 0..fitting {
            assert_eq!(log.append(events(&["a"]), Some(key(number, length))).await, Ok(Appended::New), "{number}");
        }
        for is_reopened in [false, true] {
            if is_reopened {
                log.close().await;
                log = open();
            }
            assert_eq!(log.keys_bytes(), fitting as u64 * bytes);
            let refused = log.append(events(&["a"]), Some(key(fitting, length))).await;
            assert!(
                matches!(&refused, Err(AppendError::KeysFull(text)) if text.contains("without a key")),
                "{refused:?}"
            );
            assert_eq!(log.append(events(&["a"]), Some(key(0, length))).await, Ok(Appended::Replayed(counts)));
            assert_eq!(log.replayed(&key(0, length).key, 1).await, Ok(Some(counts)));
            assert_eq!(log.replayed(&key(0, length).key, 2).await, Err(AppendError::KeyReused));
            assert_eq!(log.replayed("unknown", 1).await, Ok(None));
            append(&log, &["without a key"]).await;
        }
        // A day later they count no more, whether they have been removed or not.
        LATER_MS.fetch_add(25 * HOUR_MS, Ordering::Relaxed);
        if length == 8 {
            retention::remove_old(log.shared(), later_clock()).unwrap();
            assert_eq!(log.keys_bytes(), 0);
        } else {
            log.close().await;
            log = open();
            assert_eq!(
                (log.keys_bytes(), log.append(events(&["a"]), Some(key(fitting, 8))).await),
                (0, Ok(Appended::New))
            );
            retention::remove_old(log.shared(), later_clock()).unwrap();
            assert_eq!(log.keys_bytes(), 2 * 8 + 43, "what was not counted is not taken off");
        }
    }
}

/// Opens a reader's partition 0 from an offset.
fn begin(consumer: &mut LocalConsumer, offset: i64) {
    consumer.poll(Duration::ZERO, 1).unwrap();
    consumer.open(&[Opening { partition: at(0), offset, position: offset, generation: 1 }]).unwrap();
}

fn commit(consumer: &mut LocalConsumer, position: i64) {
    consumer.commit(&[Mark { partition: at(0), position, note: "n".to_owned() }], false).unwrap();
}

/// The one that read a block first took it away, and the other read it from the disk.
#[tokio::test]
async fn every_reader_has_every_record_and_a_position_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory, &Config::default());
    let (mut first, mut second) = (log.consumer(), log.reader("archive").unwrap());
    begin(&mut first, 0);
    begin(&mut second, 0);
    for round in 0..3 {
        append(&log, &["a", "b"]).await;
        let expected = [(2 * round, "a"), (2 * round + 1, "b")].map(|(offset, value)| (offset, value.to_owned()));
        assert_eq!(poll(&mut first).0, expected);
        let copies = log.shared().lock().partitions[0].fresh.len();
        assert_eq!(poll(&mut second).0, expected);
        assert_eq!((copies, log.shared().lock().partitions[0].fresh.len()), (1, 0), "the last one took it");
    }
    // One that lags goes on from memory, and from the disk where memory was needed for something
    // else.
    append(&log, &["c"]).await;
    assert_eq!(poll(&mut first).1, 7);
    append(&log, &["d"]).await;
    assert_eq!((poll(&mut first).1, poll(&mut second).1), (8, 8));
    assert_eq!(log.shared().lock().fresh_bytes, 0);
    commit(&mut first, 8);
    commit(&mut second, 5);
    for (consumer, position) in [(&mut first, 8), (&mut second, 5)] {
        assert_eq!(consumer.marks(&[at(0)]).unwrap()[0].position, position);
        assert_eq!(consumer.starts(Start::Committed, &[at(0)]).unwrap(), [position]);
    }
    // One that is closed keeps nothing in memory.
    drop(second);
    append(&log, &["e"]).await;
    assert_eq!((poll(&mut first).1, log.shared().lock().fresh_bytes), (9, 0));
}

#[tokio::test]
async fn retention_waits_for_the_slowest_reader_whether_it_runs_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { retention: Retention::Seconds(3600), ..Config::default() };
    let low = |log: &LocalLog| log.shared().current().unwrap().1.partitions[0].low;
    let trim = |log: &LocalLog| retention::remove_old(log.shared(), 1_800_000_000_000).unwrap();
    {
        let log = open(&directory, &config);
        for value in ["a", "b", "c", "d"] {
            append(&log, &[value]).await;
        }
        commit(&mut log.consumer(), 4);
        let mut archive = log.reader("archive").unwrap();
        trim(&log);
        assert_eq!(low(&log), 0, "it has committed nothing yet");
        commit(&mut archive, 3);
        commit(&mut archive, 2);
        trim(&log);
        assert_eq!(low(&log), 1, "it went back, and its last record stays");
        log.close().await;
    }
    let log = open(&directory, &config);
    trim(&log);
    assert_eq!(low(&log), 1, "it is not running, and waited for all the same");
    commit(&mut log.reader("archive").unwrap(), 4);
    log.reader("other").unwrap();
    trim(&log);
    assert_eq!(low(&log), 1);
    log.forget_reader("other").unwrap();
    trim(&log);
    assert_eq!(low(&log), 3);
    assert!(log.reader("").is_err() && log.reader("a\0b").is_err());
}

/// What a reader has not had is never trimmed; so what comes in is refused, and the reader is
/// named.
#[tokio::test]
async fn a_log_that_is_full_of_what_a_reader_has_not_had_takes_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory, &Config { retention_bytes: 100_000, ..Config::default() });
    let (mut counts, mut archive) = (log.consumer(), log.reader("archive").unwrap());
    // Random, so that it is as large on the disk.
    let mut state = 1_u64;
    let mut random = move || {
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + (state >> 33) as u8 % 90)
        };
        std::iter::repeat_with(next).take(10_000).collect::<String>()
    };
    let mut taken = 0;
    let refused = loop {
        match log.append(events(&[&random()]), None).await {
            Ok(_) => taken += 1,
            Err(error) => break error.to_string(),
        }
        commit(&mut counts, taken);
        assert!(taken < 100, "it is never full");
    };
    assert!(refused.contains("\"archive\"") && refused.contains("retention_bytes"), "{refused}");
    assert!((8..20).contains(&taken), "{taken}");
    // Nothing that it has not had is gone.
    assert_eq!(log.shared().current().unwrap().1.partitions[0].low, 0);
    commit(&mut archive, taken);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = log.append(events(&[&random()]), None).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(log.shared().current().unwrap().1.partitions[0].low > 0);
}
