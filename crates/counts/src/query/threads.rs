//! Threads that answer questions and do nothing else. A question over many values does not wait for
//! anything between two of them, and what shares its thread would wait for it: connections, health
//! checks, events that come in. Most questions are small: they are answered where they were asked,
//! because the way to another thread and back would take longer than the answer.

use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::{QueryError, QueryResult};
use traqq_core::error::ErrorLine;

/// More than there are places for large questions, so that small ones find one; the system shares
/// the processors among them.
const THREADS: usize = 3;
/// They make way for what keeps connections alive.
const NICE: i32 = 5;
/// How long a question may keep the thread on which it was asked.
const HERE_MAX: Duration = Duration::from_millis(1);
const PANICKED: &str = "the question made traqq panic; this is a bug, please report it with the log";

pub(super) struct Threads {
    /// There until this is dropped.
    runtime: Option<Runtime>,
    here_max: Duration,
}

impl Threads {
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("question")
            .on_thread_start(|| _ = rustix::process::nice(NICE))
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime), here_max: HERE_MAX })
    }

    /// Begins here, unless the work is known to be long, and goes on at a thread of its own once it
    /// has taken long enough. Ended when this is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        is_long: bool,
        work: impl Future<Output = QueryResult<T>> + Send + 'static,
    ) -> QueryResult<T> {
        // A panic is a fault of ours, and no reason for the connection to end.
        let work = AssertUnwindSafe(work).catch_unwind();
        let mut work =
            Box::pin(work.map(|done| done.unwrap_or_else(|_| Err(QueryError::Unavailable(PANICKED.into())))));
        if !is_long {
            let mut taken = Duration::ZERO;
            let here = poll_fn(|context| {
                let begun = Instant::now();
                if let Poll::Ready(result) = work.as_mut().poll(context) {
                    return Poll::Ready(Some(result));
                }
                taken += begun.elapsed();
                if taken < self.here_max { Poll::Pending } else { Poll::Ready(None) }
            });
            if let Some(result) = here.await {
                return result;
            }
        }
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        let mut task = Ending(runtime.spawn(work));
        (&mut task.0).await.unwrap_or_else(|error| Err(QueryError::Unavailable(ErrorLine::from_error(error))))
    }
}

impl Drop for Threads {
    /// Also on a thread that must not wait.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A task that ends with whoever waits for it.
struct Ending<T>(JoinHandle<T>);

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn is_here() -> bool {
        thread::current().name() != Some("question")
    }

    /// Whether it was on the caller's thread at its first and at its last step.
    async fn steps() -> QueryResult<(bool, bool)> {
        let first = is_here();
        tokio::task::yield_now().await;
        Ok((first, is_here()))
    }

    #[tokio::test]
    async fn work_stays_until_it_has_taken_long() {
        const EVER: Duration = Duration::from_secs(3600);
        for (is_long, here_max, where_it_was) in
            [(false, EVER, (true, true)), (false, Duration::ZERO, (true, false)), (true, EVER, (false, false))]
        {
            let mut threads = Threads::start().unwrap();
            threads.here_max = here_max;
            assert_eq!(threads.run(is_long, steps()).await, Ok(where_it_was), "{is_long} {here_max:?}");
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_wherever_it_does() {
        let threads = Threads::start().unwrap();
        for is_long in [false, true] {
            let work = async { panic!("a fault") };
            let result = threads.run::<()>(is_long, work).await;
            assert!(matches!(&result, Err(QueryError::Unavailable(line)) if line.text() == PANICKED), "{result:?}");
        }
    }
}
