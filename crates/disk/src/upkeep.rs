//! A thread that tidies up now and then.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// It ends when this is dropped, after what it is doing.
pub struct Upkeep {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// `work` is done every so often; an error is logged, and the next round tries again.
    pub fn start<E: std::fmt::Display>(
        name: &'static str,
        every: Duration,
        mut work: impl FnMut() -> Result<(), E> + Send + 'static,
    ) -> Self {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Err(error) = work() {
                    tracing::warn!(%error, name, "not tidied up this time");
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        Self { stop: Some(stop), thread: Some(thread.expect("a thread can be started")) }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
