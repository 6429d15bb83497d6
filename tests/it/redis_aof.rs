//! Power cuts inside the append-only file: whatever byte the last block ends at, and even if the
//! next crash comes while the file is being rewritten, the counts are those of every batch once.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use traqq_core::model::{Bucket, BucketKind, Checkpoint, Fingerprint, Span, TopicPartition};
use traqq_counts::mapping::metrics_of;
use traqq_counts::mapping::{Elements, KeyWrite, Metric, Rules, WriteBatch, Writes};
use traqq_counts::store::memory::MemoryStore;
use traqq_counts::store::redis::RedisStore;
use traqq_counts::store::{Meta, Outcome, Read, Store, StoreError};

use crate::redis_store::{assert_same, config, pattern, reads_of};
use crate::servers::{Redis, poll_until};

const PERSISTENT: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
const BUCKET: Bucket = Bucket { kind: BucketKind::Day, start: 0 };
const BATCHES: i64 = 2;
const WORKERS: usize = 3;

fn meta() -> Meta {
    let rules: Rules = serde_json::from_str(r#"{"mapping":{"bitmap":["i"],"add":["e"],"top":["u"]}}"#).unwrap();
    let mut meta = Meta::new(&rules.validate().unwrap(), "g", Vec::new());
    meta.starts = [(TopicPartition::new("t", 0), 0)].into();
    meta
}

fn reads() -> Vec<Read> {
    reads_of(&metrics_of(&meta().valid_rules().unwrap().rules), &[BUCKET], &["a", "b"])
}

/// Batch `n` of the log: positions `n` to `n + 1`.
fn batch(n: i64) -> Arc<WriteBatch> {
    let at = |position: i64| Checkpoint {
        position,
        last: (position > 0).then(|| Fingerprint { offset: position - 1, timestamp_ms: 1, hash: position as u64 }),
    };
    let mut elements = Elements::default();
    elements.push(&[b'0' + n as u8]);
    let counts = || vec![(Box::from("a"), 1), (Box::from("b"), 2 + n)];
    let write = |metric, writes| KeyWrite { bucket: BUCKET, expires_at: None, metric, writes };
    Arc::new(WriteBatch {
        spans: vec![Span { partition: TopicPartition::new("t", 0), from: at(n), to: at(n + 1) }],
        writes: vec![
            write(Metric::Count { of: pattern("e") }, Writes::Count(counts())),
            write(Metric::Unique { of: pattern("i") }, Writes::Unique(elements)),
            write(Metric::Top { of: pattern("u") }, Writes::Top(vec![("a".into(), 1)])),
        ],
    })
}

/// Goes on from the stored position to the end of the log.
async fn replay(store: &dyn Store) -> Result<i64, StoreError> {
    let mut session = store.session(0).await?;
    let position = session.positions().await?[&TopicPartition::new("t", 0)].position;
    for n in position..BATCHES {
        assert!(matches!(session.commit(batch(n)).await.await?, Outcome::Applied(_)));
    }
    Ok(position)
}

fn store(redis: &Redis) -> RedisStore {
    RedisStore::new(&config(&redis.url(), 1)).unwrap()
}

/// What a crash leaves of a directory, with the last block of its append-only file marked.
struct Template {
    files: Vec<(String, Vec<u8>)>,
    incremental: String,
    block: Range<usize>,
    reference: MemoryStore,
}

impl Template {
    async fn make() -> Self {
        let mut redis = Redis::start(&PERSISTENT);
        let ours = store(&redis);
        ours.create(&meta()).await.unwrap();
        assert_eq!(replay(&ours).await.unwrap(), 0);
        redis.kill9();
        let mut files = Vec::new();
        for entry in fs::read_dir(redis.dir().join("appendonlydir")).unwrap() {
            let entry = entry.unwrap();
            files.push((entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
        }
        let (incremental, bytes) = files.iter().find(|(name, _)| name.ends_with(".incr.aof")).unwrap();
        let start = String::from_utf8_lossy(bytes).rfind("*1\r\n$5\r\nMULTI\r\n").unwrap();
        assert!(bytes.ends_with(b"*1\r\n$4\r\nEXEC\r\n"));
        let block = start..bytes.len();
        let reference = MemoryStore::new(1);
        reference.create(&meta()).await.unwrap();
        replay(&reference).await.unwrap();
        Self { incremental: incremental.clone(), block, files, reference }
    }

    /// The directory after a power cut that left `length` bytes of the append-only file.
    fn lay_out(&self, redis: &Redis, length: usize) {
        let dir = redis.dir().join("appendonlydir");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        for (name, bytes) in &self.files {
            let length = if *name == self.incremental { length } else { bytes.len() };
            fs::write(dir.join(name), &bytes[..length]).unwrap();
        }
    }

    async fn assert_exact(&self, redis: &Redis, context: &str) {
        assert_same(&store(redis), &self.reference, &reads(), context).await;
    }
}

/// Deals the cuts out to a few servers at once, each with a thread and a runtime.
fn at_every(cuts: &[usize], check: impl AsyncFn(&mut Redis, usize) + Sync) {
    let check = &check;
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut redis = Redis::start(&PERSISTENT);
                for cut in cuts.iter().skip(worker).step_by(WORKERS) {
                    redis.kill9();
                    runtime.block_on(check(&mut redis, *cut));
                }
            });
        }
    });
}

fn template() -> Template {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(Template::make())
}

/// Redis rolls a half block back but leaves its opening in the file; what is appended behind it
/// would count twice after the second restart.
#[test]
fn a_power_cut_at_any_byte_of_the_last_block_is_survived() {
    let template = template();
    let whole = template.block.end;
    at_every(&(template.block.start..=whole).collect::<Vec<_>>(), async |redis, cut| {
        template.lay_out(redis, cut);
        redis.restart();
        let position = replay(&store(redis)).await.unwrap();
        let context = format!("{} of {} bytes of the block", cut - template.block.start, template.block.len());
        assert_eq!(position, if cut == whole { 2 } else { 1 }, "{context}");
        template.assert_exact(redis, &context).await;
        for restart in ["restarted", "restarted twice"] {
            redis.kill9();
            redis.restart();
            template.assert_exact(redis, &format!("{context}, {restart}")).await;
        }
    });
}

/// The second crash comes while the file is rewritten: Redis finds an open block at the end of a
/// file that is not the last one, cuts it off and refuses to start (7.0.15), once. The ways back:
/// start it again, or `redis-check-aof --fix` on that very file, because on the manifest the tool
/// refuses too.
#[test]
fn a_crash_during_the_rewrite_is_survived() {
    let template = template();
    let (refused, refused_by_tool) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut cuts: Vec<usize> = template.block.clone().step_by(23).collect();
    cuts.push(template.block.end);
    let all = cuts.len();
    at_every(&cuts, async |redis, cut| {
        let context = format!("{} bytes of the block", cut - template.block.start);
        template.lay_out(redis, cut);
        redis.restart();
        // Slow enough to be killed in the middle.
        redis.cli(&["CONFIG", "SET", "rdb-key-save-delay", "200000"]);
        let slow = store(redis);
        let session = slow.session(0);
        tokio::pin!(session);
        loop {
            // Cancel safety: the session is pinned and polled on; the timer is thrown away.
            tokio::select! {
                result = &mut session => panic!("{context}: the session did not wait for the rewrite: {:?}", result.err()),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            if redis.cli(&["INFO", "persistence"]).contains("aof_rewrite_in_progress:1") {
                break;
            }
        }
        redis.kill9();
        let error = session.await.err().expect("the server is gone");
        assert!(matches!(error, StoreError::Reconnect(_)), "{error:?}");
        let incrementals = fs::read_dir(redis.dir().join("appendonlydir")).unwrap();
        let names = incrementals.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.ends_with(".incr.aof")).count(), 2, "{context}");
        let dir = redis.dir().join("appendonlydir");
        if cut % 2 == 0 {
            let is_sound = check_aof(&dir.join("appendonly.aof.manifest"));
            refused_by_tool.fetch_add(usize::from(!is_sound), Ordering::SeqCst);
            assert!(check_aof(&dir.join(&template.incremental)), "{context}: redis-check-aof");
            redis.restart();
        } else if catch_unwind(AssertUnwindSafe(|| redis.restart())).is_err() {
            refused.fetch_add(1, Ordering::SeqCst);
            assert!(redis.log().contains("the truncated file is not the last file"), "{context}: {}", redis.log());
            // It has cut the file before it gave up: the next start succeeds.
            redis.restart();
        }
        let position = replay(&store(redis)).await.unwrap();
        assert_eq!(position, if cut == template.block.end { 2 } else { 1 }, "{context}");
        template.assert_exact(redis, &context).await;
        redis.kill9();
        redis.restart();
        template.assert_exact(redis, &format!("{context}, restarted")).await;
    });
    // Both happened, so that both ways back were taken.
    let (refused, refused_by_tool) = (refused.into_inner(), refused_by_tool.into_inner());
    assert!(refused > 0 && refused_by_tool > 0, "{refused} and {refused_by_tool} of {all} files");
}

/// A sector in the middle of the file is garbage: Redis refuses to start, and what
/// `redis-check-aof --fix` leaves is a shorter past, which is counted on from. (Garbage inside a
/// value is no error to Redis: its file has no checksums.)
#[test]
fn damage_in_the_middle_is_cut_off_and_counted_again() {
    let template = template();
    let (_, bytes) = template.files.iter().find(|(name, _)| *name == template.incremental).unwrap();
    let begin = String::from_utf8_lossy(&bytes[..template.block.start]).rfind("*1\r\n$5\r\nMULTI\r\n").unwrap();
    // Where a command begins, in the first batch or the second.
    let commands = (begin..template.block.end).filter(|at| bytes[..*at].ends_with(b"\r\n*"));
    let damages: Vec<usize> = commands.step_by(3).collect();
    assert!(damages.len() > 5);
    at_every(&damages, async |redis, at| {
        let context = format!("damage at {at}, blocks at {begin} and {}", template.block.start);
        template.lay_out(redis, template.block.end);
        let file = redis.dir().join("appendonlydir").join(&template.incremental);
        let mut damaged = bytes.clone();
        damaged[at] = b'!';
        fs::write(&file, damaged).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| redis.restart())).is_err(), "{context}: Redis takes it");
        assert!(redis.log().contains("redis-check-aof --fix"), "{context}: {}", redis.log());
        assert!(check_aof(&file), "{context}: redis-check-aof");
        redis.restart();
        let position = replay(&store(redis)).await.unwrap();
        assert_eq!(position, i64::from(at > template.block.start), "{context}");
        for restart in ["mended", "restarted", "restarted twice"] {
            template.assert_exact(redis, &format!("{context}, {restart}")).await;
            redis.kill9();
            redis.restart();
        }
    });
}

/// Whether `redis-check-aof --fix` mended the file.
fn check_aof(path: &Path) -> bool {
    let mut child = Command::new("redis-check-aof")
        .arg("--fix")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One that has nothing to ask may have ended already.
    _ = child.stdin.take().unwrap().write_all(b"y\n");
    child.wait().unwrap().success()
}

/// The rewrite happens once for each life of the server, and only where there is an append-only
/// file.
#[tokio::test]
async fn the_file_is_rewritten_once_for_each_life_of_the_server() {
    let finished = |redis: &Redis| redis.log().matches("Background AOF rewrite finished successfully").count();
    let mut redis = Redis::start(&PERSISTENT);
    store(&redis).create(&meta()).await.unwrap();
    let before = finished(&redis);
    for life in 1..=2 {
        for _ in 0..3 {
            replay(&store(&redis)).await.unwrap();
        }
        poll_until(Duration::from_secs(5), "the rewrite is logged", || {
            (finished(&redis) == before + life).then_some(())
        });
        redis.kill9();
        redis.restart();
    }
    let plain = Redis::start(&[]);
    store(&plain).create(&meta()).await.unwrap();
    replay(&store(&plain)).await.unwrap();
    assert_eq!(finished(&plain), 0);
    assert!(!plain.cli(&["HGET", "p:meta", "clean_run_id"]).is_empty());
}
