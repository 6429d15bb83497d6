//! How long a connection is kept for the next request.
//!
//! hyper has one timeout for a head that is arriving and for a connection without one. They are
//! told apart here, by the timer that it is given: after an answer the next request may take
//! `server.keep_alive_ms` to begin, and from its first byte on `server.header_timeout_ms` to have
//! its head. A new connection has the latter for both, because nothing is known of it. Only a head
//! whose first part had been read together with the request before may take `server.keep_alive_ms`:
//! its first byte is not seen to arrive.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// Whether something was read since the last request had been answered.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<AtomicBool>);

impl Heard {
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The timer of one connection.
pub(super) struct HeadTimer {
    heard: Heard,
    keep_alive: Duration,
    header_timeout: Duration,
    has_begun: AtomicBool,
}

impl HeadTimer {
    pub fn new(heard: Heard, keep_alive: Duration, header_timeout: Duration) -> Self {
        Self { heard, keep_alive, header_timeout, has_begun: AtomicBool::new(false) }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// Called when the connection begins to wait for a head; the deadline is of the header timeout.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let is_first = !self.has_begun.swap(true, Ordering::Relaxed);
        self.heard.0.store(false, Ordering::Relaxed);
        let deadline = if is_first { deadline } else { self.now() + self.keep_alive };
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
            // The deadline of a head that has begun does not move.
            begins: (!is_first).then(|| (self.heard.clone(), self.header_timeout)),
        })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// What tells that a head begins, until it does, and how long it may take then.
    begins: Option<(Heard, Duration)>,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    /// Polled whenever what was read is no whole head.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some((_, header_timeout)) = self.begins.take_if(|(heard, _)| heard.0.load(Ordering::Relaxed)) {
            self.sleep.as_mut().reset(tokio::time::Instant::now() + header_timeout);
        }
        self.sleep.as_mut().poll(context)
    }
}
