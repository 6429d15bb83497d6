//! Kafka, its group and worker processes between it and Redis, with what goes wrong around them:
//! rows of the matrix in RELIABILITY.md, each on real servers.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::model::Random;
use crate::process::{PATIENCE, Process, total, wait_for_total};
use crate::proxy::{Direction, Proxy};
use crate::scene::{Scene, numbered};
use crate::servers::{Nodes, poll_until};

/// What is promised: counted again so long after the end of a fault.
pub const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// The group notices a dead member, and a member its own absence, sooner than it does by default.
const SOON: &str =
    "[broker.kafka.properties]\n\"session.timeout.ms\" = \"3000\"\n\"heartbeat.interval.ms\" = \"500\"\n";

/// A Kafka whose clients, once they have asked it where it is, all come through the proxy.
pub fn behind_proxy(address: Ipv4Addr) -> (Nodes, Proxy) {
    let proxy = Proxy::at(address);
    let address = proxy.address().to_string();
    let nodes = Nodes::up_with("kafka", &["--heap", "256m", "--kafka-advertise", &address]);
    let port = nodes.variable("KAFKA_BROKERS").rsplit(':').next().unwrap().parse().unwrap();
    proxy.aim(port);
    (nodes, proxy)
}

/// Tests that keep the processors busy and promise a time all the same: of each pair one at a time,
/// or a machine of two processors is what they test.
static PAIRS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];

fn turn_of(pair: usize) -> MutexGuard<'static, ()> {
    PAIRS[pair].lock().unwrap_or_else(PoisonError::into_inner)
}

/// All of it is counted within the promised time from now on.
pub fn assert_recovers(scene: &Scene, events: usize) {
    let since = Instant::now();
    wait_for_total(&scene.redis, events as i64);
    let took = since.elapsed();
    assert!(took < RECOVERY_MAX, "recovered after {took:?}");
    if std::env::var_os("TRAQQ_TIMES").is_some() {
        eprintln!("{}: recovered in {took:?}", scene.topic);
    }
}

/// A process that is killed leaves batches behind that are sent, applied and not known to be: its
/// successor neither misses nor repeats them. Each life gets as far as committing something.
#[test]
fn killed_a_hundred_times_in_the_middle_of_commits() {
    let _turn = turn_of(0);
    // With a name of its own a member that is started again takes over at once; without, the group
    // waits for the dead one.
    let more = "[worker]\nbatch_events = 5\n[broker.kafka.properties]\n\"group.instance.id\" = \"one\"\n";
    let scene = Scene::new("it-kills", 4, more);
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(0, &is_over);
    let mut random = Random(11);
    for life in 0..100 {
        let before = total(&scene.redis);
        let worker = scene.worker("killed");
        poll_until(PATIENCE, &format!("life {life} commits"), || (total(&scene.redis) > before).then_some(()));
        std::thread::sleep(Duration::from_micros(random.below(50_000)));
        // Dropped, which is kill -9.
        drop(worker);
    }
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    let worker = scene.worker("last");
    assert_recovers(&scene, events);
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(events);
}

/// A worker that is told to stop in the middle of a backlog finishes what it has read, and says so;
/// nothing is read to be counted twice or thrown away.
#[test]
fn a_stop_under_load_leaves_nothing_to_be_replayed() {
    const BACKLOG: usize = 200_000;
    let scene = Scene::new("it-stops", 4, "[worker]\nbatch_events = 1000\n");
    scene.produce(&[], &numbered(0..BACKLOG));
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(BACKLOG, &is_over);
    let mut records = 0;
    let mut stop = |worker: Process| {
        let (code, log) = worker.stop_and_log();
        assert_eq!(code, 0, "{log}");
        let line = log.lines().find(|line| line.contains("drained")).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("unfinished=0"), "{line}");
        assert!(!log.contains("going back to the stored positions"), "{log}");
        records += line.split("records=").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
        records
    };
    for _ in 0..8 {
        let before = total(&scene.redis);
        let worker = scene.worker("stopped");
        poll_until(PATIENCE, "it counts", || (total(&scene.redis) > before).then_some(()));
        stop(worker);
    }
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    let worker = scene.worker("last");
    assert_recovers(&scene, events);
    assert_eq!(stop(worker), events);
    scene.assert_exact(events);
}

/// Eight members come and go every half second, half of them without a word, while events come in.
#[test]
fn members_that_join_and_leave_all_the_time_count_once() {
    let _turn = turn_of(1);
    let scene = Scene::new("it-storm", 8, SOON);
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(0, &is_over);
    let mut random = Random(5);
    let mut members: Vec<Process> = Vec::new();
    let mut polite = Vec::new();
    let until = Instant::now() + Duration::from_secs(15);
    let mut joined = 0;
    while Instant::now() < until {
        if members.len() == 8 || (members.len() > 2 && random.below(3) == 0) {
            let member = members.swap_remove(random.below(members.len() as u64) as usize);
            if random.below(2) == 0 {
                polite.push(std::thread::spawn(|| member.stop()));
            }
        } else {
            members.push(scene.worker(&format!("member{joined}")));
            joined += 1;
        }
        // How fast they come and go; nothing is waited for.
        std::thread::sleep(Duration::from_millis(500));
    }
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    assert_recovers(&scene, events);
    let changes: f64 = members.iter().map(|member| member.metric("traqq_rebalances_total")).sum();
    assert!(joined >= 10 && changes > 0.0, "{joined} members and {changes} changes are no storm");
    polite.into_iter().for_each(|member| assert_eq!(member.join().unwrap(), 0));
    for member in members {
        assert_eq!(member.stop(), 0);
    }
    scene.assert_exact(events);
}

/// Partitions that are added to a topic are counted from their first record on, also what was in
/// them before the worker saw them.
#[test]
fn partitions_added_under_a_worker_are_counted_from_their_beginning() {
    let more = "[broker.kafka.properties]\n\"topic.metadata.refresh.interval.ms\" = \"2000\"\n";
    let scene = Scene::new("it-grows", 1, more);
    scene.produce(&[], &numbered(0..700));
    let worker = scene.worker("worker");
    wait_for_total(&scene.redis, 700);
    scene.tool("topics", &["--alter", "--topic", &scene.topic, "--partitions", "4"]);
    for (partition, from) in [("1", 700), ("2", 1_400), ("3", 2_100)] {
        scene.produce(&["-p", partition], &numbered(from..from + 700));
    }
    assert_recovers(&scene, 2_800);
    poll_until(PATIENCE, "four partitions are shown", || (worker.metric("traqq_partitions") == 4.0).then_some(()));
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(2_800);
}

/// No broker for a minute, which is longer than a session lasts: the worker comes back as a new
/// member, and the group waits for the one that it was, for as long as a session lasts. That was 45
/// s.
#[test]
fn no_broker_for_a_minute() {
    let mut nodes = Nodes::up_with("kafka", &["--heap", "256m"]);
    let scene = Scene::at(nodes.variable("KAFKA_BROKERS"), "it-minute", 3, "");
    scene.produce(&[], &numbered(0..7_000));
    let worker = scene.worker("worker");
    wait_for_total(&scene.redis, 7_000);
    assert_eq!(worker.metric("traqq_broker_errors_total"), 0.0);
    // In the middle of something.
    scene.produce(&[], &numbered(7_000..14_000));
    nodes.kill9(0);
    poll_until(PATIENCE, "it is noticed", || (worker.metric("traqq_broker_errors_total") > 0.0).then_some(()));
    worker.wait_for_line("broker text");
    poll_until(PATIENCE, "the worker is unready", || (worker.metric("traqq_ready") == 0.0).then_some(()));
    // How long the fault lasts; nothing is waited for.
    std::thread::sleep(Duration::from_secs(60));
    assert!(worker.log().lines().count() < 400, "it fills its log: {}", worker.log());
    nodes.restart(0);
    let since = Instant::now();
    nodes.wait_until_up();
    let took = since.elapsed();
    scene.produce(&[], &numbered(14_000..21_000));
    assert_recovers(&scene, 21_000);
    if std::env::var_os("TRAQQ_TIMES").is_some() {
        eprintln!("the broker itself was up after {took:?}");
    }
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(21_000);
}

/// A worker that stands still longer than its session loses its partitions to another one. When it
/// goes on, what it still has in flight is refused, it notices its loss, and takes part again.
#[test]
fn a_frozen_worker_is_replaced_and_comes_back() {
    let scene = Scene::new(
        "it-frozen",
        4,
        &format!("[worker]\nbatch_events = 50\n{SOON}\"max.poll.interval.ms\" = \"3000\"\n"),
    );
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(0, &is_over);
    let frozen = scene.worker("frozen");
    poll_until(PATIENCE, "it counts", || (total(&scene.redis) > 500).then_some(()));
    frozen.signal("-STOP");
    let other = scene.worker("other");
    other.wait_for_line("assigned");
    let before = total(&scene.redis);
    poll_until(PATIENCE, "the other one counts", || (total(&scene.redis) > before + 500).then_some(()));
    frozen.signal("-CONT");
    let since = Instant::now();
    poll_until(RECOVERY_MAX, "both have partitions", || {
        [&frozen, &other].iter().all(|worker| worker.metric("traqq_partitions") == 2.0).then_some(())
    });
    if std::env::var_os("TRAQQ_TIMES").is_some() {
        eprintln!("{}: both have partitions after {:?}", scene.topic, since.elapsed());
    }
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    assert_recovers(&scene, events);
    let lost = frozen.get("/metrics").unwrap();
    let lost = lost.lines().find(|line| line.starts_with("traqq_rebalances_total{change=\"lost\",")).unwrap();
    // On a machine that is busy it may lose some of them once more before the end.
    let count: f64 = lost.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count >= 4.0, "{lost}");
    assert_eq!((frozen.stop(), other.stop()), (0, 0));
    scene.assert_exact(events);
}

/// A store that hangs longer than a member may be silent does not cost the worker its partitions:
/// the group is polled all the while.
#[test]
fn a_store_that_hangs_longer_than_the_poll_interval_costs_no_partitions() {
    let more = "[worker]\nmemory_max_bytes = 134217728\n[broker.kafka.properties]\n\"session.timeout.ms\" = \"10000\"\n\"max.poll.interval.ms\" = \"10000\"\n";
    let scene = Scene::new("it-hangs", 2, more);
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(0, &is_over);
    let worker = scene.worker("worker");
    poll_until(PATIENCE, "it counts", || (total(&scene.redis) > 500).then_some(()));
    scene.redis.signal("-STOP");
    let since = Instant::now();
    // A Kafka that stands still for a moment makes it unready too, and long before the store has
    // failed to answer in time.
    worker.wait_until_unready("cannot commit to the store");
    // Twice the interval; nothing is waited for.
    std::thread::sleep(Duration::from_secs(20).saturating_sub(since.elapsed()));
    scene.redis.signal("-CONT");
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    assert_recovers(&scene, events);
    poll_until(RECOVERY_MAX, "it is ready", || worker.is_ready().then_some(()));
    assert!(worker.metric("traqq_store_errors_total") > 0.0);
    assert_eq!(worker.metric("traqq_rebalances_total"), 2.0, "assigned once, and never lost");
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(events);
}

/// A slow or broken way to the broker: connections cut in the middle of answers, answers that come
/// drop by drop, and none at all for longer than a session.
#[test]
fn fetches_and_commits_that_fail() {
    let _turn = turn_of(1);
    let (nodes, proxy) = behind_proxy(Ipv4Addr::LOCALHOST);
    let scene = Scene::at(proxy.address().to_string(), "it-proxy", 3, SOON);
    let scene = Scene { direct: nodes.variable("KAFKA_DIRECT"), ..scene };
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(0, &is_over);
    let worker = scene.worker("worker");
    let goes_on = |what: &str| {
        let (before, since) = (total(&scene.redis), Instant::now());
        poll_until(PATIENCE, what, || (total(&scene.redis) > before + 200).then_some(()));
        assert!(since.elapsed() < RECOVERY_MAX, "{what}: after {:?}", since.elapsed());
    };
    goes_on("it counts");
    let mut random = Random(9);
    for _ in 0..6 {
        let cuts = proxy.cuts();
        let direction = if random.below(2) == 0 { Direction::Up } else { Direction::Down };
        proxy.cut_after(direction, random.below(4_000) as usize);
        poll_until(PATIENCE, "a connection is cut", || (proxy.cuts() > cuts).then_some(()));
    }
    goes_on("after cuts");
    assert!(worker.metric("traqq_broker_errors_total") > 0.0);
    proxy.trickle();
    // How long the fault lasts, here and below; nothing is waited for.
    std::thread::sleep(Duration::from_secs(5));
    proxy.resume();
    goes_on("after a trickle");
    proxy.stall();
    std::thread::sleep(Duration::from_secs(8));
    proxy.resume();
    goes_on("after a stall");
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    assert_recovers(&scene, events);
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(events);
    drop(nodes);
}

/// Connections that die without a word, with a request under way on each: the answer to a question
/// never comes, and a member that asked to be taken into the group waited for it for five minutes,
/// with the others waiting for that member.
#[test]
fn connections_that_fall_silent_are_given_up_in_time() {
    let _turn = turn_of(0);
    let (nodes, proxy) = behind_proxy(Ipv4Addr::LOCALHOST);
    // As configured by default.
    let scene = Scene::at(proxy.address().to_string(), "it-silent", 8, "");
    let scene = Scene { direct: nodes.variable("KAFKA_DIRECT"), ..scene };
    scene.produce(&[], &numbered(0..700));
    let mut workers = vec![scene.worker("worker0")];
    wait_for_total(&scene.redis, 700);
    proxy.silence();
    scene.produce(&[], &numbered(700..1_400));
    assert_recovers(&scene, 1_400);
    // The group takes others in, each of which has come further than the next.
    for number in 1..4 {
        let before = proxy.passed(Direction::Up);
        workers.push(scene.worker(&format!("worker{number}")));
        poll_until(PATIENCE, "it talks to the broker", || {
            (proxy.passed(Direction::Up) > before + 3_000 / number).then_some(())
        });
    }
    proxy.silence();
    let since = Instant::now();
    scene.produce(&[], &numbered(1_400..2_100));
    assert_recovers(&scene, 2_100);
    poll_until(RECOVERY_MAX.saturating_sub(since.elapsed()), "all have partitions", || {
        workers.iter().all(|worker| worker.metric("traqq_partitions") == 2.0).then_some(())
    });
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), 0));
    scene.assert_exact(2_100);
    drop(nodes);
}

/// A broker that stood still is shut out by its cluster until it is heard again. Meanwhile it
/// answers, and names no brokers: whoever asked it then forgot them all, and was silent for ever.
#[test]
fn a_client_that_forgot_its_brokers_is_replaced() {
    let settings = ["broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=1000"];
    let mut arguments = vec!["--heap", "256m"];
    settings.iter().for_each(|setting| arguments.extend(["--kafka-set", setting]));
    let nodes = Nodes::up_with("kafka", &arguments);
    // The more often they are asked for, the more often at such a moment.
    let more = "[broker.kafka.properties]\n\"topic.metadata.refresh.interval.ms\" = \"100\"\n";
    let scene = Scene::at(nodes.variable("KAFKA_BROKERS"), "it-shut-out", 2, more);
    let worker = scene.worker("worker");
    for round in 0..3 {
        scene.produce(&[], &numbered(round * 700..(round + 1) * 700));
        assert_recovers(&scene, (round + 1) * 700);
        nodes.signal(0, "-STOP");
        // How long the fault lasts; nothing is waited for.
        std::thread::sleep(Duration::from_secs(5));
        nodes.signal(0, "-CONT");
        nodes.wait_until_up();
    }
    scene.produce(&[], &numbered(2_100..2_800));
    assert_recovers(&scene, 2_800);
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(2_800);
}

/// The topic of dead letters is gone: the partition waits in front of the bad record, says so, and
/// loses nothing when it is back.
#[test]
fn a_dead_letter_topic_that_is_gone_is_waited_for() {
    let more = "[broker.kafka.properties]\n\"topic.metadata.propagation.max.ms\" = \"500\"\n\"message.timeout.ms\" = \"2000\"\n";
    let mut scene = Scene::new("it-letters", 1, more);
    let letters = format!("{}-dead", scene.topic);
    scene.tool("topics", &["--create", "--topic", &letters, "--partitions", "1"]);
    scene.file = scene.changed("letters", "\"discard\"", &format!("{letters:?}"));
    let worker = scene.worker("worker");
    scene.produce(&[], &numbered(0..700));
    wait_for_total(&scene.redis, 700);
    scene.tool("topics", &["--delete", "--topic", &letters]);
    scene.produce(&[], &["this is no event".to_owned()]);
    scene.produce(&[], &numbered(700..1_400));
    poll_until(PATIENCE, "it is tried again", || {
        (worker.metric("traqq_dead_letter_retries_total") > 1.0).then_some(())
    });
    assert!(!worker.is_ready());
    assert_eq!(total(&scene.redis), 700, "the partition waits");
    scene.tool("topics", &["--create", "--topic", &letters, "--partitions", "1"]);
    assert_recovers(&scene, 1_400);
    poll_until(RECOVERY_MAX, "it is ready", || worker.is_ready().then_some(()));
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(1_400);
    let kcat = Command::new("kcat")
        .args(["-b", &scene.brokers, "-t", &letters, "-C", "-e", "-q", "-f", "%s %h\\n"])
        .output()
        .unwrap();
    let text = String::from_utf8(kcat.stdout).unwrap();
    // At least once: an attempt that was given up may have arrived.
    assert!(text.lines().count() > 0, "no letter");
    for line in text.lines() {
        assert!(line.contains("this is no event") && line.contains("traqq-offset=700"), "{line}");
    }
}

/// Records of transactions that were aborted, and the marks at the end of each, take offsets that
/// no event comes from. They are no loss, and the lag gets to 0 behind them; a worker that was
/// killed or frozen in the middle finds its place among them.
#[test]
fn aborted_transactions_leave_no_trace() {
    let scene = Scene::new(
        "it-aborted",
        2,
        "[worker]\nbatch_events = 20\n[broker.kafka.properties]\n\"group.instance.id\" = \"one\"\n",
    );
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &scene.brokers).set("transactional.id", &scene.topic);
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    let mut worker = Some(scene.worker("worker"));
    let mut events = 0;
    for round in 0..30 {
        producer.begin_transaction().unwrap();
        let is_committed = round % 3 != 1;
        let lines =
            if is_committed { numbered(events..events + 50) } else { vec![r#"{"event":"aborted"}"#.to_owned(); 50] };
        for (at, line) in lines.iter().enumerate() {
            producer.send(BaseRecord::<(), str>::to(&scene.topic).partition(at as i32 % 2).payload(line)).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
        if round % 10 == 4 {
            // In the middle of a transaction that is not yet decided.
            drop(worker.take());
            worker = Some(scene.worker("worker"));
        }
        if is_committed {
            producer.commit_transaction(PATIENCE).unwrap();
            events += 50;
        } else {
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }
    let worker = worker.unwrap();
    wait_for_total(&scene.redis, events as i64);
    poll_until(PATIENCE, "no lag is left behind the last mark", || {
        (worker.metric("traqq_lag_records") == 0.0 && worker.metric("traqq_position") > events as f64).then_some(())
    });
    assert_eq!(worker.metric("traqq_records_skipped_total"), 0.0);
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(events);
}

/// Compaction removes what was counted, the last of it included, and most of what is still to come.
/// What is left is counted, and what is gone stays counted.
#[test]
fn compaction_before_and_behind_the_position_changes_nothing_that_was_counted() {
    let settings = [
        "log.cleanup.policy=compact",
        "log.roll.ms=100",
        "log.cleaner.backoff.ms=200",
        "log.cleaner.min.cleanable.ratio=0.01",
    ];
    let mut arguments = vec!["--heap", "256m"];
    settings.iter().for_each(|setting| arguments.extend(["--kafka-set", setting]));
    let nodes = Nodes::up_with("kafka", &arguments);
    let scene = Scene::at(nodes.variable("KAFKA_BROKERS"), "it-compacted", 1, "");
    let keyed = |lines: &[String], keys: usize| -> Vec<String> {
        lines.iter().enumerate().map(|(n, line)| format!("k{}\t{line}", n % keys)).collect()
    };
    // The worker is faster than the segment's age, so nothing of it is gone before it is counted.
    let worker = scene.worker("before");
    worker.wait_for_line("assigned");
    scene.produce(&["-K", "\t"], &keyed(&numbered(0..2_000), 2_000));
    wait_for_total(&scene.redis, 2_000);
    assert_eq!(worker.stop(), 0);
    // The same keys again, half of them twice: of the first 2,000 nothing is left, and of these
    // 3,000 the last 2,000.
    scene.produce(&["-K", "\t"], &keyed(&numbered(0..1_000), 1_000));
    scene.produce(&["-K", "\t"], &keyed(&numbered(0..2_000), 2_000));
    let mut rolls = 0;
    poll_until(PATIENCE, "compaction", || {
        // The segment that is written to is never compacted; one that is old enough ends with the
        // next record.
        std::thread::sleep(Duration::from_millis(300));
        scene.produce(&["-K", "\t"], &[format!("roll{rolls}\t{}", numbered(0..1)[0])]);
        rolls += 1;
        (scene.offsets(0)[0] == 3_000).then_some(())
    });
    let left = scene.offsets(0).len();
    assert_eq!(left, 2_000 + rolls);
    let worker = scene.worker("after");
    let line = worker.wait_for_line("compacted away");
    assert!(line.contains("offset=1999"), "{line}");
    wait_for_total(&scene.redis, 2_000 + left as i64);
    poll_until(PATIENCE, "no lag", || (worker.metric("traqq_lag_records") == 0.0).then_some(()));
    assert_eq!(worker.metric("traqq_records_skipped_total"), 0.0);
    assert_eq!(worker.stop(), 0);
    assert_eq!(total(&scene.redis), 2_000 + left as i64);
}

/// Records whose values come once are larger when they are folded than they were. They used to be
/// folded as long as there were batches on their way: ten million of them took 700 MiB where 512
/// were allowed.
#[test]
fn a_store_that_hangs_under_values_that_come_once_does_not_fill_the_memory() {
    const MAX: f64 = (128 << 20) as f64;
    let scene = Scene::new("it-distinct", 4, &format!("[worker]\nmemory_max_bytes = {MAX}\n"));
    let mapping = "add = [\"event\", \"event~ip\", \"event~url\", \"ip~url\"]\ntop = [\"ip\", \"url\"]";
    let worker = Process::start(&scene.changed("mapping", "add = [\"event\"]", mapping));
    worker.wait_for_line("assigned");
    scene.produce(&[], &numbered(0..10));
    wait_for_total(&scene.redis, 10);
    scene.redis.cli(&["CLIENT", "PAUSE", "5000", "WRITE"]);
    let paused = Instant::now();
    let lines: Vec<String> = (0..400_000).map(|n| format!(r#"{{"event":"x{n}","ip":"{n}","url":"/{n}"}}"#)).collect();
    scene.produce(&[], &lines);
    let mut most: f64 = 0.0;
    while paused.elapsed() < Duration::from_secs(5) {
        most = most.max(worker.metric("traqq_in_flight_bytes"));
        std::thread::sleep(Duration::from_millis(20));
    }
    // A quarter for what is in flight, and what one batch of each thread may be beyond it.
    assert!(most > MAX / 32.0 && most < MAX * 0.4, "{most} bytes in flight");
    wait_for_total(&scene.redis, 400_010);
    assert_eq!(worker.stop(), 0);
}
