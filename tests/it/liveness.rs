//! `/livez` tells a worker that hangs from one that waits. The loop and the thread that reads the
//! log are made to hang by what they call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use traqq_core::model::TopicPartition;
use traqq_counts::store::memory::MemoryStore;
use traqq_log::{BrokerResult, Consumer, Event, Mark, Opening, Start, Watermarks};
use traqq_pipeline::{Config, DeadLetters, Execution, Status, Worker};

use crate::model::{NOW_MS, counts, status};
use crate::process::PATIENCE;
use crate::servers::poll_until;

/// Seconds that go by; more than either may take for one round.
const LONG: usize = 90;

/// A log without partitions, whose poll hangs while it is told to.
struct Hanging(Arc<AtomicBool>);

fn wait_while(is_hanging: &AtomicBool) {
    while is_hanging.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Consumer for Hanging {
    fn poll(&mut self, timeout: Duration, _: usize) -> BrokerResult<Vec<Event>> {
        wait_while(&self.0);
        std::thread::sleep(timeout.min(Duration::from_millis(1)));
        Ok(Vec::new())
    }

    fn open(&mut self, _: &[Opening]) -> BrokerResult<()> {
        Ok(())
    }

    fn halt(&mut self, _: &TopicPartition) {}

    fn release(&mut self, _: &[TopicPartition]) {}

    fn pause(&mut self, _: bool) {}

    fn watermarks(&mut self, _: &TopicPartition) -> BrokerResult<Watermarks> {
        Ok(Watermarks { low: 0, high: 0 })
    }

    fn ends(&self) -> Vec<(TopicPartition, i64)> {
        Vec::new()
    }

    fn commit(&mut self, _: &[Mark], _: bool) -> BrokerResult<()> {
        Ok(())
    }

    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>> {
        Ok(Vec::new())
    }

    fn starts(&mut self, _: Start, _: &[TopicPartition]) -> BrokerResult<Vec<i64>> {
        Ok(Vec::new())
    }

    fn marks(&mut self, _: &[TopicPartition]) -> BrokerResult<Vec<Mark>> {
        Ok(Vec::new())
    }

    fn close(&mut self) {}
}

/// The loop asks for the time once a second, to measure lag.
static LOOP_HANGS: AtomicBool = AtomicBool::new(false);

fn now_ms() -> i64 {
    wait_while(&LOOP_HANGS);
    NOW_MS
}

fn passes(status: &Status, seconds: usize) {
    (0..seconds).for_each(|_| status.tick());
}

fn wait_until_alive(status: &Status) {
    poll_until(PATIENCE, "alive", || status.liveness().is_ok().then_some(()));
}

#[test]
fn a_loop_or_a_reader_that_hangs_is_not_alive_and_what_waits_is() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let status = status();
    passes(&status, LONG);
    assert_eq!(status.liveness(), Ok(()), "a worker that has not begun");
    let reader_hangs = Arc::new(AtomicBool::new(false));
    let (shutdown, watch) = watch::channel(false);
    let worker = Worker {
        config: Config { fold_threads: 1, ..Config::default() },
        projection: counts(Arc::new(MemoryStore::new(1)), "p"),
        group: "g".to_owned(),
        start: Start::Earliest,
        consumer: Box::new(Hanging(Arc::clone(&reader_hangs))),
        dead_letters: DeadLetters::Discard,
        status: Arc::clone(&status),
        shutdown: watch,
        now_ms,
        execution: Execution::Threads,
    };
    let worker = runtime.spawn(worker.run());
    poll_until(PATIENCE, "it runs", || status.readiness().is_ok().then_some(()));
    // Time goes by, and both are back in between.
    for _ in 0..3 {
        wait_until_alive(&status);
        passes(&status, 30);
    }
    wait_until_alive(&status);
    for (is_hanging, who) in
        [(&*reader_hangs, "the thread that reads the log hangs"), (&LOOP_HANGS, "the worker's loop hangs")]
    {
        is_hanging.store(true, Ordering::Relaxed);
        let why = poll_until(PATIENCE, who, || {
            passes(&status, LONG);
            // The other one may be late for a moment, with so much time gone by at once.
            std::thread::sleep(Duration::from_millis(20));
            status.liveness().err().filter(|why| why.to_string().contains(who))
        });
        assert!(why.to_string().contains("restart"), "{why}");
        is_hanging.store(false, Ordering::Relaxed);
        wait_until_alive(&status);
    }
    shutdown.send_replace(true);
    runtime.block_on(worker).unwrap().unwrap();
    passes(&status, LONG);
    assert_eq!(status.liveness(), Ok(()), "a worker that has ended");
}
