//! The program itself, as a process.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
        Self::launch(config, traqq(), "log")
    }

    /// `command` ends in the program's name; `extension` is that of the log, beside the
    /// configuration.
    pub fn launch(config: &Path, mut command: Command, extension: &str) -> Self {
        let log = config.with_extension(extension);
        let file = std::fs::File::create(&log).unwrap();
        let child = command.arg("--config").arg(config).arg("run").stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What it answers; an error while it does not listen.
    pub fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Where it answers over HTTP.
    pub fn address(&self) -> SocketAddr {
        let line = self.wait_for_line(" listening ");
        line.split("address=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    }

    /// A metric of its own `/metrics`, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let values = answer.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        values.sum()
    }

    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Waits until it is not ready, and says why with these words.
    pub fn wait_until_unready(&self, words: &str) {
        poll_until(PATIENCE, &format!("unready: {words}"), || {
            let answer = self.get("/readyz").ok()?;
            (answer.starts_with("HTTP/1.1 503") && answer.contains(words)).then_some(())
        });
    }

    pub fn wait_until_ready(&self) {
        poll_until(PATIENCE, "ready", || self.is_ready().then_some(()));
    }

    pub fn id(&self) -> u32 {
        self.child.id()
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

    pub fn stop(self) -> i32 {
        self.stop_and_log().0
    }

    /// Its exit code, and its log up to the last line.
    pub fn stop_and_log(self) -> (i32, String) {
        self.stop_by("-TERM")
    }

    pub fn stop_by(mut self, signal: &str) -> (i32, String) {
        self.signal(signal);
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        (code, self.log())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of {}:\n{}", self.log.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        // Ended already, or ended now; a test that fails must not leave it behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events counted under prefix `t`.
pub fn total(redis: &Redis) -> i64 {
    counts(redis).values().sum()
}

/// The same by the value of `event`, all days together.
pub fn counts(redis: &Redis) -> BTreeMap<String, i64> {
    let keys = redis.cli(&["--raw", "KEYS", "t:add:d:*:event"]);
    let mut counts = BTreeMap::new();
    for key in keys.lines().filter(|key| !key.is_empty()) {
        let answer = redis.cli(&["--raw", "HGETALL", key]);
        let lines: Vec<&str> = answer.lines().collect();
        for pair in lines.chunks_exact(2) {
            *counts.entry(pair[0].to_owned()).or_default() += pair[1].parse::<i64>().unwrap();
        }
    }
    counts
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
