//! What Linux knows of this process, in Prometheus's text format: looked up when somebody asks, and
//! nothing elsewhere.

use std::fmt::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use traqq_core::metric::{Definition, Kind};

use super::names::{self, PROCESS};

/// In seconds since 1970.
static STARTED: OnceLock<f64> = OnceLock::new();

/// Remembers when the process started: now.
pub(super) fn started() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A second time does not count.
    let _ = STARTED.set(since.as_secs_f64());
}

/// What is known, as lines to append to the recorder's.
pub fn render() -> String {
    let mut text = String::new();
    for Definition { name, kind, help, .. } in PROCESS {
        let Some(value) = value(name) else { continue };
        let kind = if *kind == Kind::Counter { "counter" } else { "gauge" };
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
    }
    text
}

#[cfg(target_os = "linux")]
fn value(name: &str) -> Option<f64> {
    use rustix::process::{Resource, getrlimit};
    use rustix::time::{ClockId, clock_gettime};

    match name {
        names::PROCESS_START_SECONDS => STARTED.get().copied(),
        names::PROCESS_CPU_SECONDS => {
            let used = clock_gettime(ClockId::ProcessCPUTime);
            Some(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9)
        }
        names::PROCESS_RESIDENT_BYTES => status("VmRSS:").map(|kib| kib * 1024.0),
        names::PROCESS_VIRTUAL_BYTES => status("VmSize:").map(|kib| kib * 1024.0),
        names::PROCESS_THREADS => status("Threads:"),
        // The list itself is one of them while it is read.
        names::PROCESS_OPEN_FDS => Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64),
        names::PROCESS_MAX_FDS => getrlimit(Resource::Nofile).current.map(|files| files as f64),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn value(_: &str) -> Option<f64> {
    None
}

/// A number of `/proc/self/status`.
#[cfg(target_os = "linux")]
fn status(field: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_knows_every_metric_of_the_process() {
        started();
        let text = render();
        for definition in PROCESS {
            let line = text.lines().find(|line| line.starts_with(&format!("{} ", definition.name)));
            let value: f64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default();
            assert!(value > 0.0, "{}: {text}", definition.name);
        }
        let of = |name: &str| value(name).unwrap();
        assert!(of(names::PROCESS_RESIDENT_BYTES) < of(names::PROCESS_VIRTUAL_BYTES));
        assert!(of(names::PROCESS_OPEN_FDS) <= of(names::PROCESS_MAX_FDS));
    }
}
