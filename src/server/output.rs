//! What a connection of the TCP protocol answers, until it is written.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use traqq_counts::query::MemoryPermit;

/// Answers are sent when there are so many bytes of them, or when all answers together hold too
/// many.
const BYTES_MAX: usize = 256 << 10;
/// So many of them are what a connection may hold.
const BYTES_FREE: usize = 4 << 10;

pub(super) struct Output {
    bytes: Vec<u8>,
    /// What they count for among all answers.
    memory: MemoryPermit,
    /// For one piece of it to be written.
    timeout: Duration,
}

impl Output {
    pub const fn new(memory: MemoryPermit, timeout: Duration) -> Self {
        Self { bytes: Vec::new(), memory, timeout }
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn fail(&mut self, error: &str) {
        #[derive(Serialize)]
        struct Failure<'a> {
            error: &'a str,
            success: bool,
        }
        serde_json::to_writer(&mut self.bytes, &Failure { error, success: false })
            .expect("memory takes what is written");
        self.bytes.push(b'\n');
    }

    /// Whether it is to be sent before anything is added to it.
    pub fn is_full(&self) -> bool {
        let bytes = self.bytes.capacity();
        bytes > BYTES_FREE && (self.bytes.len() >= BYTES_MAX || self.memory.hold(bytes).is_err())
    }

    /// Sends it. `waiting` is what else the connection holds meanwhile: it counts when the client
    /// does not read, and who does not read is the first to go when there is no more memory.
    pub async fn flush(&mut self, waiting: usize, stream: &mut (impl AsyncWrite + Unpin + ?Sized)) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let write = tokio::time::timeout(self.timeout, async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        });
        let mut write = std::pin::pin!(write);
        let written = match poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await {
            Poll::Ready(written) => written,
            Poll::Pending => {
                let held = bytes.capacity() + waiting;
                if held > BYTES_FREE && self.memory.hold(held).is_err() {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                write.await
            }
        };
        written.map_err(|_| io::ErrorKind::TimedOut)??;
        _ = self.memory.hold(0);
        Ok(())
    }
}
