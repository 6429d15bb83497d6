//! The listener: plain hyper, because `axum::serve` has no limit on how long a client may take for
//! its headers.
//!
//! What a client can hold is bounded: so many connections, of all clients and of one address, so
//! long for the head of a request, so long between two, so long for the answer, so long without
//! reading it, so many bytes of headers. A client that has said all it will say, and closed its
//! half of the connection, is answered; one that has gone altogether looks the same until the
//! answer is written, so that it holds no more than the deadline of an answer allows.
//!
//! A connection beyond the limits has one of a few places that are kept for probes: it is asked one
//! thing, has little time for it, and is told 503 unless it is a health check. So whoever takes all
//! connections does not have the process restarted by its orchestrator.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Sleep};

use super::connections::{Connections, Place};
use super::guard::{RightOf, probes_only};
use super::head::Checked;
use super::keep_alive::{HeadTimer, Heard};
use super::routes::right_of;
use super::{Config, Tls};

/// Of the head of a request, and of what is read ahead.
pub(super) const HEADER_BYTES_MAX: usize = 16 << 10;
/// How long open requests may take after the shutdown began.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// The pause after `accept` failed, which it does when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond the limits in which probes are answered; a quarter of them of one address.
const PROBES_MAX: usize = 32;
/// For the head of a request, or a session of TLS, on such a connection.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// What somebody is told who speaks plain HTTP where TLS is spoken.
const TLS_NEEDED: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
                          This port speaks TLS: ask for https://\n";

/// A bound socket.
struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
    connections: Connections,
    probes: Connections,
    timeouts: Timeouts,
}

/// What a connection may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Anything,
    Probe,
}

/// What is waited for on a connection.
#[derive(Clone, Copy)]
struct Timeouts {
    /// The head of a request, or a session of TLS.
    header: Duration,
    /// The next request.
    keep_alive: Duration,
    /// That the client takes some of its answer.
    write: Duration,
}

/// A server that is running; it stops when this is dropped.
pub struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Binds, and serves in the background until `shutdown` is ready or [`Listening::stop`] is called.
pub async fn serve(
    config: &Config,
    tls: Option<Tls>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Listening> {
    let listener = Listener::bind(config, tls).await?;
    let address = listener.socket.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    // Cancel safe: both only wait.
    let end = async {
        tokio::select! {
            () = shutdown => {}
            _ = stopped => {}
        }
    };
    Ok(Listening { address, stop, task: tokio::spawn(listener.serve(router, end)) })
}

impl Listening {
    /// Where it listens, with the port that the system chose if 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, and waits a bounded time for the requests that are open.
    pub async fn stop(self) {
        _ = self.stop.send(());
        _ = self.task.await;
    }
}

impl Listener {
    async fn bind(config: &Config, tls: Option<Tls>) -> io::Result<Self> {
        let explain = |error: io::Error| {
            let (cause, mend) = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    ("address in use".to_owned(), "stop what listens there, or set server.http to another port")
                }
                io::ErrorKind::PermissionDenied => (
                    "permission denied".to_owned(),
                    "ports below 1024 are the system's; set server.http to a higher one",
                ),
                _ => (error.to_string(), "set server.http to an address of this machine"),
            };
            io::Error::new(error.kind(), format!("cannot listen on {}: {cause}; {mend}", config.http))
        };
        let socket = TcpListener::bind(&config.http).await.map_err(explain)?;
        Ok(Self {
            socket,
            tls,
            connections: Connections::new(config.connections_max, config.connections_per_address_max()),
            probes: Connections::new(PROBES_MAX, PROBES_MAX / 4),
            timeouts: Timeouts {
                header: Duration::from_millis(config.header_timeout_ms),
                keep_alive: Duration::from_millis(config.keep_alive_ms),
                write: Duration::from_millis(config.request_timeout_ms),
            },
        })
    }

    async fn serve(self, router: Router, shutdown: impl Future<Output = ()>) {
        let probed = router.clone().layer(axum::middleware::from_fn_with_state(right_of as RightOf, probes_only));
        let (closing, closed) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            // Cancel safe: `accept` is.
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    // One that has no place at all is closed.
                    let Some((place, wanted)) = self.place(address) else { continue };
                    let router = if wanted == Use::Probe { &probed } else { &router };
                    let connection = self.connection(stream, wanted, router.clone(), closed.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "http connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        drop(closing);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!(open = connections.len(), "http connections cut off at shutdown");
        }
    }

    fn place(&self, address: SocketAddr) -> Option<(Place, Use)> {
        let anything = self.connections.try_enter(address.ip()).map(|place| (place, Use::Anything));
        anything.or_else(|| self.probes.try_enter(address.ip()).map(|place| (place, Use::Probe)))
    }

    fn connection(
        &self,
        stream: TcpStream,
        wanted: Use,
        router: Router,
        closed: watch::Receiver<()>,
    ) -> impl Future<Output = ()> + Send + 'static {
        _ = stream.set_nodelay(true);
        let (tls, mut timeouts, heard) = (self.tls.clone(), self.timeouts, Heard::default());
        if wanted == Use::Probe {
            timeouts.header = timeouts.header.min(PROBE_PATIENCE);
            timeouts.write = timeouts.write.min(PROBE_PATIENCE);
        }
        let timer = HeadTimer::new(heard.clone(), timeouts.keep_alive, timeouts.header);
        async move {
            let Some(Tls { acceptor }) = tls else {
                return answer(Watched::new(stream, timeouts, heard), wanted, router, timeouts, timer, closed).await;
            };
            let greet = async {
                if speaks_http(&stream).await? {
                    return refuse(stream).await.map(|()| None);
                }
                acceptor.accept(Watched::new(stream, timeouts, heard)).await.map(Some)
            };
            match tokio::time::timeout(timeouts.header, greet).await {
                Ok(Ok(Some(stream))) => answer(stream, wanted, router, timeouts, timer, closed).await,
                Ok(Ok(None)) => tracing::debug!("plain http refused"),
                Ok(Err(error)) => tracing::debug!(%error, "no tls session"),
                Err(_) => tracing::debug!("no tls session in time"),
            }
        }
    }
}

/// Whether the first byte belongs to a method; a TLS session begins with 22.
async fn speaks_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    Ok(first[0].is_ascii_uppercase())
}

/// Says that TLS is needed, and reads what comes: a connection that is closed with something unread
/// takes the answer with it.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(TLS_NEEDED.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(HEADER_BYTES_MAX as u64), &mut tokio::io::sink()).await.map(drop)
}

/// Answers requests until the client goes or `closed` says that it is enough.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    wanted: Use,
    router: Router,
    timeouts: Timeouts,
    timer: HeadTimer,
    mut closed: watch::Receiver<()>,
) {
    let connection = http1::Builder::new()
        .timer(timer)
        .header_read_timeout(timeouts.header)
        .half_close(true)
        .keep_alive(wanted == Use::Anything)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(Checked::new(stream)), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    // Cancel safe: the connection is only borrowed, and awaited again below.
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = closed.changed() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "http connection ended");
    }
}

/// A stream that notes when something is read, and whose writes fail when the other side has taken
/// nothing for a while.
struct Watched {
    stream: TcpStream,
    heard: Heard,
    timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    const fn new(stream: TcpStream, timeouts: Timeouts, heard: Heard) -> Self {
        Self { stream, heard, timeout: timeouts.write, stalled: None }
    }

    fn watched<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + self.timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > filled {
            self.heard.note();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
