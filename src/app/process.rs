//! What the system and the process say to each other: open files, signals.

use tokio::sync::watch;

/// Every connection is an open file, and the usual limit of 1,024 is a matter of courtesy.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Becomes true with SIGTERM or SIGINT, from now on; and with SIGHUP, when a terminal closes,
/// unless whoever started the process has it ignored, as `nohup` does.
pub fn shutdown() -> watch::Receiver<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be watched");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be watched");
    let mut hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup()).expect("signals can be watched"));
    let (asked, shutdown) = watch::channel(false);
    tokio::spawn(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        // Cancel safety: a signal that the other branches lost to is not needed any more.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
        asked.send_replace(true);
    });
    shutdown
}

/// Whether SIGHUP is ignored; `false` where the system does not say.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
