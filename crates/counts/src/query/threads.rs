//! Threads that answer questions and do nothing else. A question over many values does not wait for
//! anything between two of them, and what shares its thread would wait for it: connections, health
//! checks, events that come in.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::{QueryError, QueryResult};

/// More than there are places for large questions, so that small ones find one; the system shares
/// the processors among them.
const THREADS: usize = 3;
/// They make way for what keeps connections alive.
const NICE: i32 = 5;

pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("question")
            .on_thread_start(|| _ = rustix::process::nice(NICE))
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Ended when this is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = QueryResult<T>> + Send + 'static,
    ) -> QueryResult<T> {
        let runtime = self.0.as_ref().expect("it is there until it is dropped");
        let mut task = Ending(runtime.spawn(work));
        (&mut task.0).await.unwrap_or_else(|error| Err(QueryError::Unavailable(error.to_string())))
    }
}

impl Drop for Threads {
    /// Also on a thread that must not wait.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
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
