//! Where the consumer and the folds run: on threads of their own, where each may block; or as
//! tasks, so that a simulation has the clock and the order of everything in its hand. The code is
//! the same: on a thread nothing of it is ever waited for but by blocking.

use std::time::Duration;

use tokio::sync::mpsc::Sender;

use super::chance;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Execution {
    #[default]
    Threads,
    Tasks,
}

impl Execution {
    /// How long a call may block that would like to block so long.
    pub const fn blocking(self, wish: Duration) -> Duration {
        match self {
            Self::Threads => wish,
            Self::Tasks => Duration::ZERO,
        }
    }

    pub async fn sleep(self, duration: Duration) {
        match self {
            Self::Threads => std::thread::sleep(duration),
            Self::Tasks => tokio::time::sleep(duration).await,
        }
    }

    /// Lets the others go on, where a thread has blocked already.
    pub async fn pass(self, duration: Duration) {
        if self == Self::Tasks {
            tokio::time::sleep(chance::most_of(duration)).await;
        }
    }

    /// `false` when nobody receives any more.
    pub async fn send<T>(self, channel: &Sender<T>, value: T) -> bool {
        match self {
            Self::Threads => channel.blocking_send(value).is_ok(),
            Self::Tasks => channel.send(value).await.is_ok(),
        }
    }
}
