//! The program itself, as a process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::cli::traqq;
use crate::servers::{Redis, poll_until};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A worker process; killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(config: &Path) -> Self {
        let log = config.with_extension("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = traqq().arg("--config").arg(config).arg("run").stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub fn wait_for_line(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap();
            if let Some(line) = text.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "{part:?} does not come in the worker's log:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The most memory it has held.
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn stop(mut self) -> i32 {
        self.signal("-TERM");
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or ended now; a test that fails must not leave it behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events counted under prefix `t`.
pub fn total(redis: &Redis) -> i64 {
    let keys = redis.cli(&["--raw", "KEYS", "t:add:d:*:event"]);
    let sum_of = |key: &str| {
        redis.cli(&["--raw", "HVALS", key]).lines().filter_map(|line| line.parse::<i64>().ok()).sum::<i64>()
    };
    keys.lines().filter(|key| !key.is_empty()).map(sum_of).sum()
}

pub fn wait_for_total(redis: &Redis, expected: i64) {
    poll_until(PATIENCE, &format!("{expected} events in Redis"), || (total(redis) == expected).then_some(()));
}

/// Sends events; the whole answer.
pub fn post(http: u16, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
    let length = body.len();
    let head = format!(
        "POST /api/v1/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
