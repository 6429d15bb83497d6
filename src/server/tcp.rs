//! The TCP protocol: a command a line in, an answer a line out, in order, pipelined.
//!
//! ```text
//! {"cmd":"record","event":{...}}
//! {"cmd":"query","min":1700000000,"max":1700086400}       any time that HTTP reads; "align":"out"
//! {"cmd":"query_days","days":7}
//! {"cmd":"find","min":...,"max":...,"metric_type":"add","key":"event","add_key":null,"merge":true}
//! {"cmd":"auth","token":"..."}                            first, when server.token is set
//! ```
//!
//! Another `auth` has its token looked at like the first: a right one says what the connection may
//! do from then on, a wrong one ends it. Without tokens in the configuration everybody may do
//! everything, and `auth` is answered with success whatever it says.
//!
//! A connection that says anything else than commands, that leaves a line unfinished for
//! `server.header_timeout_ms`, or that gives a wrong token, is closed; so is one that has been
//! silent for ten minutes. One that the client has closed for its part is answered to its last
//! line, with a line feed behind it or without. Answers are `{"success":true}`,
//! `{"success":true,"data":[...]}` or `{"success":false,"error":"..."}`. Consecutive records go to
//! the log in one step.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::Config;
use super::access::{Access, Tokens};
use super::command::{Command, NoCommand};
use super::connections::Connections;
use super::ingest::{Hold, Ingest, Judge, NotAll};
use super::output::Output;
use super::tls::{Stream, Tls};
use traqq_core::error::ErrorLine;
use traqq_counts::query::{Answer, Engine, Extent, MemoryPermit, Nested};

/// What a connection that sends nothing holds.
const IDLE_BYTES: usize = 4 << 10;
/// Read at once.
const READ_BYTES: usize = 128 << 10;
/// One step to the log takes this many records,
const STEP_RECORDS: usize = 4096;
/// or bytes.
const STEP_BYTES: usize = 1 << 20;
/// A command around its event.
const ENVELOPE_BYTES: usize = 4 << 10;
/// A line of somebody who has not said the token yet.
const STRANGER_BYTES: usize = 1 << 10;
const SILENCE_MAX: Duration = Duration::from_secs(600);
const OK: &[u8] = b"{\"success\":true}\n";
const DATA: &[u8] = b"{\"success\":true,\"data\":";
const CROWDED: &[u8] = b"{\"success\":false,\"error\":\"too many connections of this address \
    (server.connections_per_address_max)\"}\n";

/// What all connections share.
struct Shared {
    ingest: Option<Arc<Ingest>>,
    engine: Arc<Engine>,
    tokens: Tokens,
    line_bytes_max: usize,
    line_timeout: Duration,
    /// For an answer, and again for its way out.
    request_timeout: Duration,
    clock: fn() -> i64,
}

impl Shared {
    fn new(
        config: &Config,
        event_bytes_max: usize,
        engine: Arc<Engine>,
        ingest: Option<Arc<Ingest>>,
        clock: fn() -> i64,
    ) -> Self {
        // Without events there is nothing that counts what lines hold together, so each is short.
        let line_bytes_max = ENVELOPE_BYTES + if ingest.is_some() { event_bytes_max } else { 0 };
        Self {
            ingest,
            engine,
            tokens: Tokens::new(config),
            line_bytes_max,
            line_timeout: Duration::from_millis(config.header_timeout_ms),
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            clock,
        }
    }
}

/// Listens until the task is aborted. `Err` says what to do.
pub async fn serve(
    config: &Config,
    tls: Option<Tls>,
    event_bytes_max: usize,
    engine: Arc<Engine>,
    ingest: Option<Arc<Ingest>>,
    clock: fn() -> i64,
) -> Result<(SocketAddr, JoinHandle<()>), ErrorLine> {
    let explain = |error: std::io::Error| {
        let text =
            format!("cannot listen on {}: {error}; set server.tcp to another address, or to \"off\"", config.tcp);
        ErrorLine::of(text, error)
    };
    let listener = TcpListener::bind(&config.tcp).await.map_err(explain)?;
    let address = listener.local_addr().map_err(explain)?;
    let shared = Arc::new(Shared::new(config, event_bytes_max, engine, ingest, clock));
    let connections = Connections::new(config.connections_max, config.connections_per_address_max());
    let accept = async move {
        loop {
            // Connections beyond the limit wait in the kernel's queue.
            let permit = connections.room().await;
            match listener.accept().await {
                Ok((stream, address)) => {
                    let Some(place) = connections.enter(address.ip(), permit) else {
                        if tls.is_none() {
                            _ = stream.try_write(CROWDED);
                        }
                        continue;
                    };
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    tokio::spawn(async move {
                        // An error of the connection is the client's to notice.
                        if let Ok(stream) = Stream::greet(stream, tls, shared.line_timeout).await {
                            _ = Connection::new(shared).run(stream).await;
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "tcp connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    Ok((address, tokio::spawn(accept)))
}

/// A connection without a socket and its timeouts: what is said to it, in whatever pieces, and what
/// it answers.
pub struct Conversation(Connection);

impl Conversation {
    pub fn new(
        config: &Config,
        event_bytes_max: usize,
        engine: Arc<Engine>,
        ingest: Option<Arc<Ingest>>,
        clock: fn() -> i64,
    ) -> Self {
        Self(Connection::new(Arc::new(Shared::new(config, event_bytes_max, engine, ingest, clock))))
    }

    /// The answers to what was read at once; `None` when the connection has been closed before.
    pub async fn hear(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        let Self(connection) = self;
        if connection.is_over {
            return None;
        }
        let scanned = connection.input.len();
        connection.input.extend_from_slice(piece);
        let mut answers = Vec::new();
        connection.understand(scanned, &mut answers).await.expect("memory takes what is written");
        connection.output.flush(0, &mut answers).await.expect("memory takes what is written");
        Some(answers)
    }

    /// The answers to what was left when the other side said no more.
    pub async fn end(mut self) -> Vec<u8> {
        let mut answers = Vec::new();
        if !self.0.is_over {
            self.0.end(&mut answers).await.expect("memory takes what is written");
        }
        answers
    }

    /// Bytes that were heard and are no line yet.
    pub fn held(&self) -> usize {
        self.0.input.len()
    }
}

struct Connection {
    shared: Arc<Shared>,
    /// What it may do; nothing before it has said a token.
    access: Option<Access>,
    /// Bytes that were read and not yet understood: the beginning of a line.
    input: Vec<u8>,
    /// When it began.
    begun_at: Instant,
    hold: Option<Hold>,
    output: Output,
    is_over: bool,
}

/// Records that wait to go to the log together, and how many lines they are.
struct Step {
    judge: Judge,
    /// Why each line's event was rejected, if it was.
    verdicts: Vec<Result<(), NotAll>>,
    bytes: usize,
}

impl Connection {
    fn new(shared: Arc<Shared>) -> Self {
        let access = shared.tokens.of_strangers();
        let output = Output::new(shared.engine.memory().permit(), shared.request_timeout);
        Self { shared, access, input: Vec::new(), begun_at: Instant::now(), hold: None, output, is_over: false }
    }

    async fn run(mut self, mut stream: Stream) -> std::io::Result<()> {
        while !self.is_over {
            let patience = if self.input.is_empty() && self.access.is_some() {
                SILENCE_MAX
            } else {
                self.shared.line_timeout.saturating_sub(self.begun_at.elapsed())
            };
            let scanned = self.input.len();
            let read = tokio::time::timeout(patience, stream.read(&mut self.input, READ_BYTES)).await;
            let bytes = read.map_err(|_| std::io::ErrorKind::TimedOut)??;
            if bytes == 0 {
                return self.end(stream.writer()).await;
            }
            if scanned == 0 && self.access.is_some() {
                self.begun_at = Instant::now();
            }
            self.understand(scanned, stream.writer()).await?;
            self.output.flush(self.input.capacity(), stream.writer()).await?;
        }
        Ok(())
    }

    /// The other side says no more, and may have left out the end of its last line: a command that
    /// is whole is one all the same.
    async fn end(&mut self, stream: &mut (impl AsyncWrite + Unpin + ?Sized)) -> std::io::Result<()> {
        let scanned = self.input.len();
        if scanned > 0 {
            self.input.push(b'\n');
            self.understand(scanned, stream).await?;
        }
        self.output.flush(0, stream).await
    }

    /// Deals with every complete line; the first `scanned` bytes are known to be none.
    async fn understand(
        &mut self,
        scanned: usize,
        stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> std::io::Result<()> {
        let mut input = std::mem::take(&mut self.input);
        let (mut begin, mut from) = (0, scanned);
        let mut step: Option<Step> = None;
        while let Some(end) = memchr::memchr(b'\n', &input[from..]) {
            let line = &input[begin..from + end];
            if line.len() > self.line_bytes_max() {
                self.finish(&mut step, stream).await?;
                self.refuse_length();
                return Ok(());
            }
            let line = line.trim_ascii();
            begin = from + end + 1;
            from = begin;
            if !line.is_empty() {
                self.line(line, &mut step, stream).await?;
            }
            if self.output.is_full() {
                self.output.flush(input.capacity(), stream).await?;
            }
            if self.is_over {
                return Ok(());
            }
        }
        self.finish(&mut step, stream).await?;
        input.drain(..begin);
        if begin > 0 {
            // What is left is the beginning of another line; what was reserved for reading is given
            // back. A stranger has no more time for blank lines.
            if self.access.is_some() {
                self.begun_at = Instant::now();
            }
            self.hold = None;
        }
        if input.len() > self.line_bytes_max() {
            self.refuse_length();
            return Ok(());
        }
        // What a client has begun to say counts against what all may hold.
        if input.len() > IDLE_BYTES && !self.take_hold(input.len()) {
            self.is_over = true;
        }
        self.input = input;
        Ok(())
    }

    fn line_bytes_max(&self) -> usize {
        if self.access.is_some() { self.shared.line_bytes_max } else { STRANGER_BYTES }
    }

    fn refuse_length(&mut self) {
        self.output.fail(&format!("a line may have {} bytes (events.max_event_bytes)", self.line_bytes_max()));
        self.is_over = true;
    }

    fn take_hold(&mut self, bytes: usize) -> bool {
        let Some(ingest) = &self.shared.ingest else { return true };
        let mut hold = ingest.hold();
        let is_held = hold.take(bytes).is_ok();
        self.hold = Some(hold);
        if !is_held {
            self.output.fail("too many events are on their way at once; connect again in a moment");
        }
        is_held
    }

    async fn line(
        &mut self,
        line: &[u8],
        step: &mut Option<Step>,
        stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> std::io::Result<()> {
        let command: Command<'_> = match Command::read(line) {
            Ok(command) => command,
            Err(NoCommand { error, is_foreign }) => {
                self.finish(step, stream).await?;
                self.is_over |= is_foreign;
                self.output.fail(&error);
                return Ok(());
            }
        };
        if command.cmd == "auth" || self.access.is_none() {
            self.finish(step, stream).await?;
            self.auth(&command);
            return Ok(());
        }
        let may = |access: Access| if command.cmd == "record" { access.may_write() } else { access.may_read() };
        if !self.access.is_some_and(may) {
            self.finish(step, stream).await?;
            self.output
                .fail("this token is for something else: server.read_token asks, server.write_token sends events");
            return Ok(());
        }
        if command.cmd == "record" {
            return self.record(&command, step, stream).await;
        }
        self.finish(step, stream).await?;
        match command.cmd {
            "query" | "query_days" | "find" => match self.ask(&command).await {
                Ok((answer, memory)) => return self.send(answer, memory, stream).await,
                Err(error) => self.output.fail(error.text()),
            },
            other => {
                self.output
                    .fail(&format!("there is no command {other:?}; there are record, query, query_days, find, auth"));
            }
        }
        Ok(())
    }

    /// An answer goes out piece by piece, so that its text is never held whole.
    async fn send(
        &mut self,
        answer: Answer,
        memory: MemoryPermit,
        stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> std::io::Result<()> {
        self.output.add(DATA);
        for piece in Nested::new(answer, Extent::Results) {
            self.output.add(&piece);
            drop(piece);
            if self.output.is_full() {
                self.output.flush(0, stream).await?;
            }
        }
        drop(memory);
        self.output.add(b"}\n");
        Ok(())
    }

    fn auth(&mut self, command: &Command<'_>) {
        let given = command.token.as_deref().filter(|_| command.cmd == "auth");
        let of_given = || self.shared.tokens.of(given?.as_bytes());
        self.access = self.shared.tokens.of_strangers().or_else(of_given);
        if self.access.is_some() {
            self.output.add(OK);
        } else {
            self.is_over = true;
            self.output.fail("send {\"cmd\":\"auth\",\"token\":\"<server.token>\"} first, with a token that is right");
        }
    }

    async fn record(
        &mut self,
        command: &Command<'_>,
        step: &mut Option<Step>,
        stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> std::io::Result<()> {
        let Some(ingest) = &self.shared.ingest else {
            self.output.fail("this process takes no events");
            return Ok(());
        };
        let Some(event) = command.event else {
            self.finish(step, stream).await?;
            self.output.fail("record needs an event: {\"cmd\":\"record\",\"event\":{...}}");
            return Ok(());
        };
        let event = event.get().as_bytes();
        let current = step.get_or_insert_with(|| Step { judge: ingest.judge(), verdicts: Vec::new(), bytes: 0 });
        let verdict = current.judge.event(event);
        current.verdicts.push(verdict);
        current.bytes += event.len();
        if current.verdicts.len() >= STEP_RECORDS || current.bytes >= STEP_BYTES {
            self.finish(step, stream).await?;
        }
        Ok(())
    }

    async fn finish(
        &mut self,
        step: &mut Option<Step>,
        stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> std::io::Result<()> {
        let (Some(Step { judge, verdicts, bytes }), Some(ingest)) = (step.take(), self.shared.ingest.clone()) else {
            return Ok(());
        };
        let mut hold = ingest.hold();
        if hold.take(bytes).is_err() {
            let busy = "too many events are on their way at once; send this again in a moment";
            verdicts.iter().for_each(|_| self.output.fail(busy));
            return Ok(());
        }
        let appended = ingest.append(judge.finish(), None, hold, "tcp").await;
        for verdict in verdicts {
            match (verdict, &appended) {
                (Err(NotAll { why, taken: 0 }), _) => self.output.fail(&why),
                (Err(NotAll { why, taken }), Ok(_)) => {
                    self.output.fail(&format!("{why}; the other {taken} of its events were taken"));
                }
                (Err(_), Err(error)) => self.output.fail(&error.to_string()),
                (Ok(()), Ok(_)) => self.output.add(OK),
                (Ok(()), Err(error)) => self.output.fail(&error.to_string()),
            }
            if self.output.is_full() {
                self.output.flush(READ_BYTES, stream).await?;
            }
        }
        Ok(())
    }

    async fn ask(&self, command: &Command<'_>) -> Result<(Answer, MemoryPermit), ErrorLine> {
        let request = command.request().map_err(ErrorLine::from_error)?;
        let engine = &self.shared.engine;
        let answer = async {
            let question = engine.prepare(&request, (self.shared.clock)()).await?;
            engine.answer_with_memory(question).await
        };
        let late = |_| {
            let limit = self.shared.request_timeout.as_millis();
            ErrorLine::from(format!("no answer within {limit} ms (server.request_timeout_ms); ask for a shorter range"))
        };
        let answer = tokio::time::timeout(self.shared.request_timeout, answer).await.map_err(late)?;
        answer.map_err(ErrorLine::from_error)
    }
}
