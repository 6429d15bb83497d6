//! Whether the loop and the driver still go round. Each says, before it does anything, within which
//! time it will be back; who is not back by then hangs, and only a restart helps.
//!
//! Seconds are counted by a thread that sleeps one after the other, and not read from a clock: a
//! machine that was suspended or a process that was stopped or frozen finds hours gone on any
//! clock, and nobody hangs. Here it finds one second more, at most; and where the processors are
//! overloaded the count is late with everything else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Not expected back: not begun, or over.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Loop,
    Driver,
}

pub struct Pulse {
    ticks: AtomicU64,
    /// The tick at which each is late.
    due: [AtomicU64; 2],
    /// The tick at which each said something last.
    heard: [AtomicU64; 2],
    is_over: AtomicBool,
}

/// Who hangs, and for how long.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} hangs for {seconds} s; restart the process, and report it with its log")]
pub struct Hang {
    what: &'static str,
    seconds: u64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            ticks: AtomicU64::new(0),
            due: [const { AtomicU64::new(NEVER) }; 2],
            heard: [const { AtomicU64::new(0) }; 2],
            is_over: AtomicBool::new(false),
        }
    }
}

impl Pulse {
    pub const TICK: Duration = Duration::from_secs(1);

    pub fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// Whoever calls this calls it again within this time.
    pub fn expect(&self, who: Who, within: Duration) {
        let now = self.ticks.load(Ordering::Relaxed);
        self.heard[who as usize].store(now, Ordering::Relaxed);
        self.due[who as usize].store(now + within.as_secs(), Ordering::Relaxed);
    }

    /// From here on nobody is expected.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn check(&self) -> Result<(), Hang> {
        let now = self.ticks.load(Ordering::Relaxed);
        for (who, what) in [(Who::Loop, "the worker's loop"), (Who::Driver, "the thread that reads the log")] {
            let late = self.due[who as usize].load(Ordering::Relaxed);
            if now > late && !self.is_over.load(Ordering::Relaxed) {
                let seconds = now - self.heard[who as usize].load(Ordering::Relaxed);
                return Err(Hang { what, seconds });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_back_in_time_hangs() {
        let pulse = Pulse::default();
        (0..1000).for_each(|_| pulse.tick());
        assert_eq!(pulse.check(), Ok(()), "nobody has begun");
        pulse.expect(Who::Loop, Duration::from_secs(60));
        pulse.expect(Who::Driver, Duration::from_secs(600));
        (0..60).for_each(|_| pulse.tick());
        assert_eq!(pulse.check(), Ok(()));
        pulse.tick();
        assert_eq!(pulse.check(), Err(Hang { what: "the worker's loop", seconds: 61 }));
        pulse.expect(Who::Loop, Duration::from_secs(60));
        assert_eq!(pulse.check(), Ok(()), "it is back");
        pulse.end();
        pulse.expect(Who::Driver, Duration::from_secs(60));
        (0..1000).for_each(|_| pulse.tick());
        assert_eq!(pulse.check(), Ok(()), "it is over");
    }
}
