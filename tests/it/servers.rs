//! Real servers for the integration tests.
//!
//! Every test has Redis processes of its own (50 ms each); all tests of the binary share one Kafka
//! and take topics and groups of their own in it. No server outlives the test process: not after a
//! panic, not after `kill -9`.

#![allow(dead_code, reason = "a toolbox: what one test needs, the next does not")]

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const READY_MAX: Duration = Duration::from_secs(20);
const START_ATTEMPTS: usize = 5;

/// Asks `condition` until it answers, and panics with `what` when it has not within `deadline`. The
/// longer that takes the less often it is asked: a question may be a process, and the processors
/// are for those who are waited for.
pub fn poll_until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        let elapsed = started.elapsed();
        assert!(elapsed < deadline, "after {deadline:?} still not: {what}");
        std::thread::sleep((elapsed / 10).clamp(Duration::from_millis(5), Duration::from_millis(100)));
    }
}

/// A port nobody listens on.
///
/// It is below the range that systems hand to outgoing connections (32768 and up): there, any
/// client may take the port while a killed server is down, even one that reconnects to that server
/// and so connects to itself.
pub fn free_port() -> u16 {
    const RANGE: std::ops::Range<u32> = 15_000..32_000;
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    // A counter, so that two tests of this process never get the same port; from a random start, so
    // that two processes rarely do.
    let next = NEXT.get_or_init(|| AtomicU32::new(RandomState::new().hash_one(std::process::id()) as u32 >> 1));
    for _ in RANGE {
        let at = next.fetch_add(1, Ordering::Relaxed) % (RANGE.end - RANGE.start);
        let port = (RANGE.start + at) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {RANGE:?}");
}

/// A redis-server process with its own port, Unix socket and directory; it ends with the value.
///
/// Without further arguments it persists nothing.
pub struct Redis {
    child: Option<Child>,
    port: u16,
    args: Vec<String>,
    dir: TempDir,
}

impl Redis {
    /// Starts a server and returns once it answers. `args` come last, so `["--appendonly", "yes"]`
    /// wins over the default.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("traqq-redis-").tempdir().expect("a temporary directory");
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut redis = Self { child: None, port: 0, args, dir };
        for _ in 0..START_ATTEMPTS {
            redis.port = free_port();
            match redis.launch() {
                Ok(()) => return redis,
                // Another process was faster to take the port.
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("redis-server did not start:\n{log}"),
            }
        }
        panic!("redis-server found no port in {START_ATTEMPTS} attempts");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket(&self) -> PathBuf {
        self.dir().join("redis.sock")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("redis-server is running").id()
    }

    /// The server's log of all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("redis.log")).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.pid().to_string()]).status().expect("kill").success());
    }

    /// Ends the server as a crash does: it writes nothing more, and clients see a closed
    /// connection.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill redis-server");
            child.wait().expect("redis-server ends");
        }
    }

    /// Ends the server in order, without a snapshot; an append-only file is complete afterwards.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.cli(&["shutdown", "nosave"]);
            poll_until(READY_MAX, "redis-server has shut down", || child.try_wait().expect("wait for redis-server"));
        }
    }

    /// Starts the server again with the same port, directory and arguments; one that still runs is
    /// stopped in order.
    pub fn restart(&mut self) {
        self.stop();
        if let Err(log) = self.launch() {
            panic!("redis-server did not start again:\n{log}");
        }
    }

    /// What redis-cli prints for a command, without the last line end.
    pub fn cli(&self, args: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli")
            .args(["-p", &port])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("run redis-cli");
        let printed = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "redis-cli {args:?}: {printed} {complaint}");
        printed
    }

    /// An error is the log of a server that ended instead of answering.
    fn launch(&mut self) -> Result<(), String> {
        let log = fs::File::options().create(true).append(true).open(self.dir().join("redis.log")).expect("redis.log");
        // Or another one that speaks the same, such as Valkey.
        let program = std::env::var("TRAQQ_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut command = mortal(&program);
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.arg("--dir").arg(self.dir()).arg("--unixsocket").arg(self.socket());
        command.args(["--save", "", "--appendonly", "no"]).args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("redis.log")).stderr(log);
        let child = self.child.insert(spawn(command).expect("start redis-server (is it on PATH?)"));
        let port = self.port;
        poll_until(READY_MAX, "redis-server answers", || match child.try_wait().expect("wait for redis-server") {
            Some(_) => Some(Err(())),
            None => answers_ping(port).unwrap_or(false).then_some(Ok(())),
        })
        .map_err(|()| {
            self.child = None;
            self.log()
        })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A panic here, while a test unwinds, would abort the whole binary.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// True for a server that serves commands (or would, after a password); not while it loads its
/// data.
fn answers_ping(port: u16) -> io::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    connection.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    connection.read_exact(&mut answer)?;
    Ok(matches!(&answer, b"+PONG" | b"-NOAU"))
}

/// A nats-server process with JetStream, its own port and directory; it ends with the value.
pub struct Nats {
    child: Option<Child>,
    port: u16,
    dir: TempDir,
}

impl Nats {
    /// Starts a server and returns once it answers.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with a configuration file.
    pub fn start_with(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("traqq-nats-").tempdir().expect("a temporary directory");
        fs::write(dir.path().join("nats.conf"), config).expect("nats.conf");
        let mut nats = Self { child: None, port: 0, dir };
        for _ in 0..START_ATTEMPTS {
            nats.port = free_port();
            match nats.launch() {
                Ok(()) => return nats,
                // Another process was faster to take the port.
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("nats-server did not start:\n{log}"),
            }
        }
        panic!("nats-server found no port in {START_ATTEMPTS} attempts");
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where its streams are.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends the server as a crash does.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill nats-server");
            child.wait().expect("nats-server ends");
        }
    }

    /// Starts it again with the same port and directory.
    pub fn restart(&mut self) {
        self.kill9();
        if let Err(log) = self.launch() {
            panic!("nats-server did not start again:\n{log}");
        }
    }

    /// An error is the log of a server that ended instead of answering.
    fn launch(&mut self) -> Result<(), String> {
        let path = self.dir.path().join("nats.log");
        let log = fs::File::options().create(true).append(true).open(&path).expect("nats.log");
        let mut command = mortal(nats_server());
        // Whether it is ready is asked at its monitoring port: the other one may want credentials,
        // or TLS.
        let port = free_port();
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string(), "--http_port", &port.to_string()]);
        command.arg("--config").arg(self.dir.path().join("nats.conf")).args(["--jetstream", "--store_dir"]);
        command.arg(self.data()).stdin(Stdio::null()).stdout(log.try_clone().expect("nats.log")).stderr(log);
        let child = self.child.insert(spawn(command).expect("start nats-server"));
        poll_until(READY_MAX, "nats-server answers", || match child.try_wait().expect("wait for nats-server") {
            Some(_) => Some(Err(())),
            None => is_healthy(port).unwrap_or(false).then_some(Ok(())),
        })
        .map_err(|()| {
            self.child = None;
            fs::read_to_string(&path).unwrap_or_default()
        })
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A panic here, while a test unwinds, would abort the whole binary.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// True once a nats-server takes clients and JetStream is there.
fn is_healthy(monitoring: u16) -> io::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, monitoring));
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    connection.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer.contains(" 200 OK"))
}

/// The binary, which `tests/servers` fetches at the first call.
fn nats_server() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        let output = servers(&["install", "nats"]);
        let text = String::from_utf8(output.stdout).expect("a path is UTF-8");
        text.trim().strip_prefix("nats: ").expect("tests/servers printed the path").to_owned()
    })
}

/// The brokers to use: `KAFKA_BROKERS`, or else one Kafka for this test binary, which
/// `tests/servers` starts at the first call and removes when this process has ended.
pub fn kafka_brokers() -> String {
    static BROKERS: OnceLock<String> = OnceLock::new();
    BROKERS
        .get_or_init(|| std::env::var("KAFKA_BROKERS").ok().filter(|b| !b.is_empty()).unwrap_or_else(start_kafka))
        .clone()
}

fn start_kafka() -> String {
    let exports = up("kafka", &[], &std::env::temp_dir().join(format!("traqq-it-{}.json", std::process::id())));
    exports["KAFKA_BROKERS"].clone()
}

/// Has `tests/servers` start something, which it removes when this process has ended; what it
/// exports.
fn up(name: &str, more: &[&str], state: &Path) -> BTreeMap<String, String> {
    let pid = std::process::id().to_string();
    let arguments = ["up", name, "--with-pid", &pid, "--state", state.to_str().expect("a path is UTF-8")];
    let output = servers(&[&arguments, more].concat());
    let exports = String::from_utf8(output.stdout).expect("exports are UTF-8");
    let pairs = exports.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    pairs.map(|(variable, value)| (variable.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

fn servers(arguments: &[&str]) -> Output {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("run tests/servers (is python3 on PATH?)");
    assert!(output.status.success(), "tests/servers {arguments:?} failed");
    output
}

/// Several servers that belong together, of `tests/servers`; they end with the value.
pub struct Nodes {
    state: PathBuf,
    exports: BTreeMap<String, String>,
    restarted: Vec<Child>,
}

impl Nodes {
    pub fn up(name: &str) -> Self {
        Self::up_with(name, &[])
    }

    /// With more arguments of `tests/servers`.
    pub fn up_with(name: &str, more: &[&str]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!("traqq-it-{}-{number}.json", std::process::id()));
        let exports = up(name, more, &state);
        Self { state, exports, restarted: Vec::new() }
    }

    pub fn variable(&self, name: &str) -> String {
        self.exports[name].clone()
    }

    fn directories(&self) -> impl Iterator<Item = &Path> {
        let nodes = self.exports.iter().find(|(name, _)| name.ends_with("_NODES")).expect("it has nodes").1;
        nodes.split(':').map(Path::new)
    }

    pub fn ports(&self) -> Vec<String> {
        self.directories().map(|node| fs::read_to_string(node.join("port")).expect("a port")).collect()
    }

    /// Ends a server as a crash does.
    pub fn kill9(&self, node: usize) {
        self.signal(node, "-9");
    }

    pub fn signal(&self, node: usize, name: &str) {
        let directory = self.directories().nth(node).expect("a node");
        let pid = fs::read_to_string(directory.join("pid")).expect("a pid");
        assert!(Command::new("kill").args([name, pid.trim()]).status().expect("kill").success());
    }

    /// Starts it again with the same port and directory.
    pub fn restart(&mut self, node: usize) {
        let directory = self.directories().nth(node).expect("a node").to_owned();
        let words = fs::read_to_string(directory.join("command")).expect("a command");
        let words: Vec<String> = serde_json::from_str(&words).expect("a list of words");
        let mut command = mortal(&words[0]);
        command.args(&words[1..]).current_dir(&directory).stdin(Stdio::null()).stdout(Stdio::null());
        self.restarted.push(spawn(command).expect("start a server again"));
    }
}

impl Nodes {
    /// Waits until a broker of Kafka serves clients again.
    pub fn wait_until_up(&self) {
        let brokers = self.variable("KAFKA_BROKERS");
        poll_until(READY_MAX * 3, "the broker answers", || {
            let mut kcat = Command::new("kcat");
            kcat.args(["-b", &brokers, "-L", "-m", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
            kcat.status().is_ok_and(|status| status.success()).then_some(())
        });
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in &mut self.restarted {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A panic here, while a test unwinds, would abort the whole binary; what stays is removed
        // when the process has ended.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers");
        let _ = Command::new(script).args(["down", "--state"]).arg(&self.state).output();
    }
}

/// A command whose process the kernel kills together with the thread that started it, where the
/// system can.
fn mortal(program: &str) -> Command {
    if !cfg!(target_os = "linux") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// Starts a child from a thread that lives as long as the process.
///
/// The parent-death signal follows the *thread*: a server started on a runtime's blocking thread
/// would be killed when that thread has idled for ten seconds, in the middle of a test.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in requests {
                // The caller waits for the reply; it cannot have gone away.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::channel();
    spawner.lock().expect("no panic under this lock").send((command, reply)).expect("the spawner lives");
    answer.recv().expect("the spawner answers")
}
