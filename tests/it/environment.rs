//! What the machine around the program may do to it: clocks that jump, a link that goes down, a
//! disk that cannot write.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cli::traqq;
use crate::kafka_faults::{RECOVERY_MAX, assert_recovers, behind_proxy};
use crate::local::{NDJSON, Site, event, open_remains};
use crate::process::{PATIENCE, Process, total};
use crate::proxy::Proxy;
use crate::redis_store::now;
use crate::scene::Scene;
use crate::servers::{Redis, poll_until};

// ---- clocks -------------------------------------------------------------------------------------

/// A clock that can be set while a process runs, by libfaketime.
///
/// The monotonic clock is left alone, as it is when somebody sets the clock. The kernel does not
/// know of the jumps: waits until a time of day, as librdkafka's are, would be days long, and say
/// nothing about a clock that was really set.
struct Clock {
    directory: tempfile::TempDir,
}

impl Clock {
    fn new() -> Self {
        let clock = Self { directory: tempfile::tempdir().unwrap() };
        clock.set("+0");
        clock
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("clock")
    }

    /// From the true time, as `+1d`.
    fn set(&self, offset: &str) {
        // Whole at any time: it is read at every look at the clock.
        let new = self.directory.path().join("new");
        std::fs::write(&new, format!("{offset}\n")).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn start(&self, config: &Path) -> Process {
        // The wrapper knows where its library is.
        let output = Command::new("faketime").args(["-f", "+0", "env"]).output().expect("tests/run installs faketime");
        let variables = String::from_utf8(output.stdout).unwrap();
        let library = variables.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("a library");
        let mut command = traqq();
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.file());
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Process::launch(config, command, "log")
    }
}

/// Seconds of the processor that it has used.
fn processor_s(process: &Process) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // A tick is a hundredth of a second on every Linux that is not built by hand.
    ticks / 100.0
}

fn assert_does_not_spin(process: &Process) {
    let before = processor_s(process);
    // What is measured; nothing is waited for.
    std::thread::sleep(Duration::from_secs(2));
    let used = processor_s(process) - before;
    assert!(used < 1.0, "{used} s of the processor in 2 s without work");
}

/// Lines that say when they were, today and yesterday, come in under a clock that jumps, and are
/// counted; how many there are.
fn ingest_under_jumps(clock: &Clock, site: &Site, process: &Process) -> usize {
    process.wait_for_line("listening for TCP");
    let began = now();
    let mut number = 0;
    for offset in ["+0", "+1d", "+0", "-1d", "+1d", "-1d", "+0"] {
        clock.set(offset);
        for _ in 0..5 {
            let line = |at: usize| {
                let when = began - [0, 86_400][at % 2];
                event(&format!("c{number}-{at}"), at).replacen('{', &format!("{{\"ts\":{when},"), 1)
            };
            let lines: Vec<String> = (0..100).map(line).collect();
            let answer = site.post(&format!("{NDJSON}idempotency-key: c{number}\r\n"), lines.join("\n").as_bytes());
            assert_eq!(answer.unwrap().status, 200);
            number += 1;
        }
        let since = Instant::now();
        poll_until(PATIENCE, "all is counted", || (site.events() == number as u64 * 100).then_some(()));
        assert!(since.elapsed() < RECOVERY_MAX, "{offset}: {:?}", since.elapsed());
    }
    assert_does_not_spin(process);
    assert!(process.is_ready());
    assert_eq!(process.metric("traqq_keys_expired_total") + process.metric("traqq_buckets_expired_total"), 0.0);
    number * 100
}

/// Events count when they say that they were, whatever the clock says when they come in. With a
/// clock that is years ahead the next round of tidying up removed everything: all of it was too old
/// by then. And what came in behind an event of that time had its time too, so that events with one
/// of their own were dead letters: far too old.
#[test]
fn clocks_that_jump_move_no_event_in_the_embedded_store() {
    let (clock, site) = (Clock::new(), Site::new("", ""));
    let process = clock.start(&site.config);
    let events = ingest_under_jumps(&clock, &site, &process);
    clock.set("+3650d");
    let line = process.wait_for_line("seconds=3153");
    assert!(line.contains("the clock has jumped ahead"), "{line}");
    assert_eq!(site.post(NDJSON, event("ahead", 1).as_bytes()).unwrap().status, 200);
    clock.set("+0");
    // What comes behind an event of ten years ahead has the day that it has: its own, or today.
    let lines = [event("late", 1), event("late", 2).replacen('{', &format!("{{\"ts\":{},", now()), 1)];
    assert_eq!(site.post(NDJSON, lines.join("\n").as_bytes()).unwrap().status, 200);
    poll_until(PATIENCE, "all is counted", || (site.events() == events as u64 + 3).then_some(()));
    let found = site.get("/api/v1/find?q=add/id&days=2&merge=true&value=late");
    assert_eq!(found["results"][0]["data"]["count"], 2, "{found}");
    assert_eq!(process.metric("traqq_dead_letters_total"), 0.0);
    assert_eq!(process.stop(), 0);
    let remains = open_remains(&site.data_directory()).unwrap();
    assert_eq!(remains.ids().len(), events + 2);
    remains.assert_exact(&site.config);
}

#[test]
fn clocks_that_jump_move_no_event_in_redis() {
    let (clock, redis) = (Clock::new(), Redis::start(&[]));
    let day = || now().div_euclid(86_400) * 86_400;
    let today = day();
    let site = Site::new("", &format!("[store.redis]\nurl = \"{}\"\nprefix = \"t\"\n", redis.url()));
    let process = clock.start(&site.config);
    let events = ingest_under_jumps(&clock, &site, &process);
    assert_eq!(process.metric("traqq_resyncs_total"), 0.0);
    assert_eq!(process.stop(), 0);
    assert_eq!(total(&redis), events as i64);
    let days = BTreeSet::from([today - 86_400, today, day()]);
    for key in redis.cli(&["--raw", "KEYS", "t:add:d:*:event"]).lines() {
        let counted = key.split(':').nth(3).unwrap().parse().unwrap();
        assert!(days.contains(&counted), "{key} is none of {days:?}");
    }
}

// ---- a link that goes down ----------------------------------------------------------------------

/// A network namespace and a cable to it; `None` where that is not allowed.
struct Namespace {
    name: String,
    /// Of this end.
    address: Ipv4Addr,
}

fn ip(arguments: &str) -> io::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr))) }
}

impl Namespace {
    fn new() -> Option<Self> {
        let number = std::process::id();
        let name = format!("traqq{number}");
        // Of what is set aside for tests of networks, so that it is nobody's.
        let [.., high, low] = (number % (1 << 14) * 4).to_be_bytes();
        let address = |end: u8| Ipv4Addr::new(198, 18 + (high >> 7), high, low + end);
        let (here, there) = (address(1), address(2));
        if let Err(error) = ip(&format!("netns add {name}")) {
            eprintln!("NOT tested: a link that goes down: {error}");
            return None;
        }
        let made = Self { name, address: here };
        let name = &made.name;
        for arguments in [
            format!("link add tq{number} type veth peer name cable netns {name}"),
            format!("addr add {here}/30 dev tq{number}"),
            format!("link set tq{number} up"),
            format!("-n {name} addr add {there}/30 dev cable"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set cable up"),
        ] {
            ip(&arguments).unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
        }
        Some(made)
    }

    /// A command in it; the process is the command's own.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    fn set_link(&self, state: &str) {
        ip(&format!("-n {} link set cable {state}", self.name)).unwrap();
    }

    /// What a process in it answers, which only listens there.
    fn ask(&self, process: &Process, path: &str) -> String {
        let port = process.address().port();
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let output = self.command("bash").args(["-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // With it goes its end of the cable, and so the other one.
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// A cable is pulled and put back: nobody is told, and both ends believe in connections over which
/// nothing comes. With the log behind the same link there is soon nothing to commit, and a worker
/// was ready all the while: that its look at the stored positions failed was only logged.
#[test]
fn a_link_to_kafka_and_redis_that_goes_down_and_comes_back() {
    let Some(namespace) = Namespace::new() else { return };
    let (nodes, kafka) = behind_proxy(namespace.address);
    let scene = Scene::at(kafka.address().to_string(), "it-link", 3, "");
    let scene = Scene { direct: nodes.variable("KAFKA_DIRECT"), ..scene };
    let redis = Proxy::at(namespace.address);
    redis.aim(scene.redis.port());
    let file = scene.changed("inside", &scene.redis.url(), &redis.url());
    let is_over = Arc::new(AtomicBool::new(false));
    let producer = scene.keep_producing(0, &is_over);
    let worker = Process::launch(&file, namespace.command(env!("CARGO_BIN_EXE_traqq")), "log");
    poll_until(PATIENCE, "it counts", || (total(&scene.redis) > 500).then_some(()));
    let is_ready = || namespace.ask(&worker, "/readyz").starts_with("HTTP/1.1 200");
    assert!(is_ready());
    namespace.set_link("down");
    let since = Instant::now();
    poll_until(PATIENCE, "it is unready", || (!is_ready()).then_some(()));
    // How long the fault lasts at least; nothing is waited for.
    std::thread::sleep(Duration::from_secs(15).saturating_sub(since.elapsed()));
    // A commit that is under way is given up last.
    let store_errors = || {
        let metrics = namespace.ask(&worker, "/metrics");
        let errors = metrics.lines().filter(|line| line.starts_with("traqq_store_errors_total{"));
        errors.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    poll_until(PATIENCE, "errors of the store are counted", || (store_errors() > 0.0).then_some(()));
    let before = total(&scene.redis);
    is_over.store(true, Ordering::Relaxed);
    let events = producer.join().unwrap();
    assert!(before < events as i64, "it counts over a link that is down");
    namespace.set_link("up");
    assert_recovers(&scene, events);
    poll_until(RECOVERY_MAX, "it is ready", || is_ready().then_some(()));
    assert_eq!(worker.stop(), 0);
    scene.assert_exact(events);
    drop(nodes);
}

// ---- a disk that cannot write -------------------------------------------------------------------

/// Makes fsync, or writing to the database, fail as a broken disk does, while a file is there.
const BROKEN_DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_broken(const char *what) {
    char path[4096];
    const char *directory = getenv("BROKEN_DISK");
    snprintf(path, sizeof path, "%s/%s", directory ? directory : "", what);
    return directory && access(path, F_OK) == 0;
}

static int is_database(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strstr(path, "/database/") != NULL;
}

#define SYNC(name) \
    int name(int fd) { \
        static int (*real)(int); \
        if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        if (is_broken("sync")) { errno = EIO; return -1; } \
        return real(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)

ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (is_broken("write") && is_database(fd)) { errno = EIO; return -1; }
    return real(fd, bytes, count);
}
"#;

/// Half a second after a failed sync the data directory was open again. The system forgets what it
/// failed to sync and calls the next sync a success. Once one has failed nothing is acknowledged
/// any more, also when the disk seems to work again, until somebody has looked at it and starts the
/// program again.
fn break_the_disk(durability: &str, what: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("disk.c"), directory.path().join("disk.so"));
    std::fs::write(&source, BROKEN_DISK).unwrap();
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(built.expect("tests/run installs gcc").success());
    let site = Site::new(&format!("durability = \"{durability}\""), "");
    let mut command = traqq();
    command.env("LD_PRELOAD", &library).env("BROKEN_DISK", directory.path());
    let process = Process::launch(&site.config, command, "log");
    process.wait_for_line("listening for TCP");
    let send = |number: usize| {
        let lines: Vec<String> = (0..50).map(|at| event(&format!("b{number}-{at}"), at)).collect();
        site.post(&format!("{NDJSON}idempotency-key: b{number}\r\n"), lines.join("\n").as_bytes()).unwrap()
    };
    (0..20).for_each(|number| assert_eq!(send(number).status, 200));
    let fault = directory.path().join(what);
    std::fs::write(&fault, "").unwrap();
    // What is synced later is acknowledged before that; each of these is in the log all the same.
    let mut acknowledged = 20;
    let refused = poll_until(PATIENCE, "events are refused", || {
        let answer = send(acknowledged);
        acknowledged += usize::from(answer.status == 200);
        (answer.status != 200).then_some(answer)
    });
    std::fs::remove_file(&fault).unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    // Longer than a full disk takes to be opened again.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        let answer = send(acknowledged);
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.text().contains("restart traqq"), "{}", answer.text());
    }
    poll_until(PATIENCE, "it is unready", || (!process.is_ready()).then_some(()));
    process.wait_for_line("until a restart");
    // It has nothing to wait for; a supervisor's patience is 10 s and more.
    let since = Instant::now();
    process.stop();
    assert!(since.elapsed() < RECOVERY_MAX, "it takes {:?} to end", since.elapsed());

    let process = site.start();
    let since = Instant::now();
    assert_eq!(send(acknowledged).status, 200);
    site.wait_until_counted();
    assert!(since.elapsed() < RECOVERY_MAX, "counted after {:?}", since.elapsed());
    assert!(process.is_ready());
    assert_eq!(process.stop(), 0);
    let remains = open_remains(&site.data_directory()).unwrap();
    let ids = remains.ids();
    assert_eq!((ids.len(), ids.values().max()), ((acknowledged + 1) * 50, Some(&1)));
    remains.assert_exact(&site.config);
}

#[test]
fn a_failed_sync_closes_the_data_directory_until_a_restart() {
    break_the_disk("every-write", "sync");
}

#[test]
fn a_failed_sync_in_the_background_closes_it_too() {
    break_the_disk("periodic", "sync");
}

#[test]
fn a_failed_write_closes_the_data_directory_until_a_restart() {
    break_the_disk("every-write", "write");
}
