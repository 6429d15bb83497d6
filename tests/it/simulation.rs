//! Thousands of schedules of everything that can go wrong, with the clock and the order of all that
//! happens in the hand of a seed.
//!
//! The worker, its loop, lanes and folds are the real ones; so are the rules of the memory store
//! and the group of the memory broker. Simulated are the way to the store (delays, replies lost
//! after the batch was applied, connections that break while commands are still on their way to be
//! applied, crashes that roll back acknowledged batches or take everything), the broker's moods
//! (polls and commits that fail, members that are thrown out without noticing) and the destination
//! of dead letters. Time is tokio's paused clock, so that a minute takes milliseconds.
//!
//!     TRAQQ_SCHEDULES=100000 cargo test --test it simulation
//!     TRAQQ_SEED=4711 TRAQQ_SCHEDULES=1 cargo test --test it simulation     # what failed, again

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use traqq_core::model::{Bucket, Checkpoint, TopicPartition};
use traqq_counts::mapping::WriteBatch;
use traqq_counts::store::memory::{MemoryStore, State};
use traqq_counts::store::{
    KeyDump, Meta, Outcome, Positions, Quarantined, Read, Reply, Session, Store, StoreError, StoreResult, StoredKey,
};
use traqq_log::memory::{MemoryBroker, MemoryConsumer};
use traqq_log::{
    BrokerError, BrokerResult, Consumer, Event, Mark, Message, Opening, ProduceError, Producer, Start, Watermarks,
};
use traqq_pipeline::{Config, DeadLetters, Execution, Worker, WorkerError};

use crate::model::{Harness, NOW_MS, Random, counts, status};

/// How long all faults may take to be overcome, by the clock of the simulation.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// States of the store that a crash can go back to.
const HISTORY: usize = 40;
/// What a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is between the workers and the memory of the store.
struct World {
    random: Random,
    /// Counts up with every crash; what belongs to an older one is gone.
    incarnation: u64,
    /// Nothing answers before.
    down_until: Instant,
    /// After each batch, the last one last.
    history: Vec<State>,
    is_calm: bool,
    /// Of what happened, for a comparison of two runs.
    trace: u64,
}

impl World {
    fn chance(&mut self, percent: u64) -> bool {
        !self.is_calm && self.random.below(100) < percent
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0100_0000_01b3);
    }

    /// How long something is on its way: mostly short.
    fn delay(&mut self) -> Duration {
        let longest = match self.random.below(20) {
            0 if !self.is_calm => 3_000,
            1..=4 => 100,
            _ => 5,
        };
        Duration::from_micros(self.random.below(longest * 1000))
    }
}

#[derive(Clone)]
struct SimStore {
    memory: MemoryStore,
    world: Arc<Mutex<World>>,
}

impl SimStore {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// A question on its way there and back; the answer is of the moment when it arrives.
    async fn ask<T>(&self, answer: impl AsyncFnOnce(&MemoryStore) -> StoreResult<T>) -> StoreResult<T> {
        let (there, back, is_lost) = {
            let mut world = self.world();
            (world.delay(), world.delay(), world.chance(3))
        };
        tokio::time::sleep(there).await;
        let (incarnation, is_down) = {
            let world = self.world();
            (world.incarnation, Instant::now() < world.down_until)
        };
        let gone = || StoreError::reconnect("the connection is gone");
        if is_down {
            return Err(gone());
        }
        let found = answer(&self.memory).await;
        tokio::time::sleep(back).await;
        // What was done may have been done.
        if is_lost || self.world().incarnation != incarnation { Err(gone()) } else { found }
    }

    /// The node of one lane alone goes back, or loses everything.
    fn crash_lane(&self) {
        let empty = MemoryStore::new(self.memory.lanes()).snapshot();
        let mut world = self.world();
        world.incarnation += 1;
        let (lane, kinds, state) =
            (world.random.below(self.memory.lanes() as u64) as usize, world.random.below(4), self.memory.snapshot());
        let back = world.random.below(10) as usize;
        let other = match kinds {
            0 => &empty,
            _ => world.history.iter().rev().nth(back).unwrap_or(&empty),
        };
        let state = state.with_lane_of(lane, other);
        world.history = vec![state.clone()];
        self.memory.restore(state);
        world.note(lane as u64);
    }

    /// Goes back some batches; with `None` everything is lost.
    fn crash(&self, back: Option<usize>) {
        let empty = MemoryStore::new(self.memory.lanes()).snapshot();
        let mut world = self.world();
        world.incarnation += 1;
        let down = Duration::from_millis(world.random.below(3_000));
        world.down_until = Instant::now() + down;
        match back {
            None => world.history.clear(),
            Some(batches) => {
                let kept = world.history.len().saturating_sub(batches);
                world.history.truncate(kept.max(1));
            }
        }
        let state = world.history.last().cloned().unwrap_or(empty);
        self.memory.restore(state);
        world.note(back.map_or(999, |batches| batches as u64));
    }
}

/// A connection for commits: what is sent arrives in order, whatever becomes of the sender.
struct SimSession {
    store: SimStore,
    lane: usize,
    incarnation: u64,
    /// When the batch before arrives.
    arrives_at: Instant,
    is_broken: Arc<Mutex<bool>>,
}

#[async_trait]
impl Session for SimSession {
    async fn stored(&mut self) -> StoreResult<Option<(Meta, Positions)>> {
        if *self.is_broken.lock().unwrap() || self.store.world().incarnation != self.incarnation {
            return Err(StoreError::reconnect("the connection is gone"));
        }
        let lane = self.lane;
        self.store.ask(async |memory: &MemoryStore| memory.session(lane).await?.stored().await).await
    }

    async fn commit(&mut self, batch: Arc<WriteBatch>) -> BoxFuture<'static, StoreResult<Outcome>> {
        let gone = || Err(StoreError::reconnect("the connection is gone"));
        if *self.is_broken.lock().unwrap() {
            return futures_util::future::ready(gone()).boxed();
        }
        let (arrives_at, back, is_lost, breaks, is_refused) = {
            let mut world = self.store.world();
            let arrives_at = self.arrives_at.max(Instant::now() + world.delay());
            (arrives_at, world.delay(), world.chance(4), world.chance(2), world.chance(3))
        };
        self.arrives_at = arrives_at;
        if breaks {
            // The client is told at once; what it has sent before is still under way, and so may be
            // this.
            *self.is_broken.lock().unwrap() = true;
        }
        let (answered, answer) = oneshot::channel();
        let (store, lane, incarnation) = (self.store.clone(), self.lane, self.incarnation);
        tokio::spawn(async move {
            tokio::time::sleep_until(arrives_at).await;
            {
                let world = store.world();
                if world.incarnation != incarnation || Instant::now() < world.down_until {
                    return;
                }
            }
            if is_refused {
                let _ = answered.send(Err(StoreError::retry("out of memory")));
                return;
            }
            let mut session = store.memory.session(lane).await.expect("memory has sessions");
            let outcome = session.commit(batch).await.await;
            {
                let mut world = store.world();
                world.note(match &outcome {
                    Ok(Outcome::Applied(_)) => 1,
                    Ok(Outcome::Fenced(_)) => 2,
                    _ => 3,
                });
                if matches!(outcome, Ok(Outcome::Applied(_))) {
                    world.history.push(store.memory.snapshot());
                    if world.history.len() > HISTORY {
                        world.history.remove(0);
                    }
                }
            }
            if !is_lost {
                tokio::time::sleep(back).await;
                let _ = answered.send(outcome);
            }
        });
        let is_broken = Arc::clone(&self.is_broken);
        async move {
            if *is_broken.lock().unwrap() {
                return gone();
            }
            match tokio::time::timeout(TIMEOUT, answer).await {
                Ok(Ok(outcome)) => outcome,
                // Never answered, or not in time: nobody knows.
                Ok(Err(_)) | Err(_) => {
                    *is_broken.lock().unwrap() = true;
                    gone()
                }
            }
        }
        .boxed()
    }
}

#[async_trait]
impl Store for SimStore {
    fn lanes(&self) -> usize {
        self.memory.lanes()
    }

    async fn meta(&self) -> StoreResult<Option<Meta>> {
        self.ask(async |memory: &MemoryStore| memory.meta().await).await
    }

    async fn create(&self, meta: &Meta) -> StoreResult<Meta> {
        let created = self.ask(async |memory: &MemoryStore| memory.create(meta).await).await;
        self.world().history.push(self.memory.snapshot());
        created
    }

    async fn begin_lane(&self, lane: usize, meta: &Meta) -> StoreResult<()> {
        self.ask(async |memory: &MemoryStore| memory.begin_lane(lane, meta).await).await
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> StoreResult<()> {
        self.ask(async |memory: &MemoryStore| memory.adopt(starts).await).await
    }

    async fn replace_rules(&self, expected_plan: Option<&str>, meta: &Meta) -> StoreResult<bool> {
        self.memory.replace_rules(expected_plan, meta).await
    }

    async fn extend(&self, lane: usize, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
        self.memory.extend(lane, expiries).await
    }

    async fn session(&self, lane: usize) -> StoreResult<Box<dyn Session>> {
        let incarnation = self.world().incarnation;
        self.ask(async |_: &MemoryStore| Ok(())).await?;
        let (store, arrives_at) = (self.clone(), Instant::now());
        Ok(Box::new(SimSession { store, lane, incarnation, arrives_at, is_broken: Arc::default() }))
    }

    async fn positions(&self, lane: usize) -> StoreResult<Positions> {
        self.ask(async |memory: &MemoryStore| memory.positions(lane).await).await
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> StoreResult<bool> {
        self.ask(async |memory: &MemoryStore| memory.set_position(partition, from, to).await).await
    }

    async fn quarantined(&self, lane: usize) -> StoreResult<Vec<Quarantined>> {
        self.memory.quarantined(lane).await
    }

    async fn keys(&self, lane: usize) -> StoreResult<Vec<StoredKey>> {
        self.memory.keys(lane).await
    }

    async fn restore_keys(&self, lane: usize, keys: &[KeyDump]) -> StoreResult<()> {
        self.memory.restore_keys(lane, keys).await
    }

    async fn restore_quarantine(&self, lane: usize, quarantined: &[Quarantined]) -> StoreResult<()> {
        self.memory.restore_quarantine(lane, quarantined).await
    }

    async fn read(&self, lane: usize, reads: &[Read]) -> StoreResult<Vec<Reply>> {
        self.memory.read(lane, reads).await
    }
}

/// A member of the group whose broker has moods.
struct SimConsumer {
    memory: MemoryConsumer,
    world: Arc<Mutex<World>>,
}

impl SimConsumer {
    fn mood(&self, percent: u64) -> BrokerResult<()> {
        if self.world.lock().unwrap().chance(percent) {
            return Err(BrokerError::retry("the broker does not answer"));
        }
        Ok(())
    }
}

impl Consumer for SimConsumer {
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>> {
        self.mood(1)?;
        // A fetch brings as much as it brings.
        let bytes_max = bytes_max.min(1 + self.world.lock().unwrap().random.below(4_000) as usize);
        let mut events = self.memory.poll(timeout, bytes_max)?;
        if self.world.lock().unwrap().chance(1) {
            events.push(Event::OutOfRange);
        }
        Ok(events)
    }

    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()> {
        self.mood(3)?;
        self.memory.open(openings)
    }

    fn halt(&mut self, partition: &TopicPartition) {
        self.memory.halt(partition);
    }

    fn release(&mut self, partitions: &[TopicPartition]) {
        self.memory.release(partitions);
    }

    fn pause(&mut self, paused: bool) {
        self.memory.pause(paused);
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks> {
        self.mood(3)?;
        self.memory.watermarks(partition)
    }

    fn ends(&self) -> Vec<(TopicPartition, i64)> {
        self.memory.ends()
    }

    fn commit(&mut self, marks: &[Mark], wait: bool) -> BrokerResult<()> {
        self.mood(10)?;
        self.memory.commit(marks, wait)
    }

    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>> {
        self.mood(5)?;
        self.memory.partitions()
    }

    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>> {
        self.mood(5)?;
        self.memory.starts(start, partitions)
    }

    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>> {
        self.memory.marks(partitions)
    }

    fn close(&mut self) {
        self.memory.close();
    }
}

struct SimProducer {
    broker: MemoryBroker,
    world: Arc<Mutex<World>>,
}

#[async_trait]
impl Producer for SimProducer {
    async fn send(&self, message: &Message) -> Result<(), ProduceError> {
        let (delay, is_refused, is_lost) = {
            let mut world = self.world.lock().unwrap();
            (world.delay(), world.chance(10), world.chance(5))
        };
        tokio::time::sleep(delay).await;
        let failed = || Err(ProduceError::retry("the destination does not answer"));
        if is_refused {
            return failed();
        }
        self.broker.send(message).await?;
        if is_lost { failed() } else { Ok(()) }
    }
}

struct Running {
    member: u64,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Result<(), WorkerError>>,
}

struct Simulation {
    harness: Harness,
    store: SimStore,
    workers: Vec<Running>,
}

impl Simulation {
    fn start_worker(&mut self) {
        let memory = self.harness.broker.consumer();
        let member = memory.member();
        let (shutdown, watch) = watch::channel(false);
        let (batch_events, batches_in_flight) = {
            let random = &mut self.store.world().random;
            (1 + random.below(30) as usize, 1 + random.below(4) as usize)
        };
        let worker = Worker {
            config: Config {
                batch_events,
                batches_in_flight,
                batch_age_ms: 20,
                fold_threads: 2,
                position_check_ms: 1_000,
                broker_commit_ms: 500,
                drain_timeout_ms: 2_000,
                ..Config::default()
            },
            projection: counts(Arc::new(self.store.clone()), "p"),
            group: "g".to_owned(),
            start: Start::Earliest,
            consumer: Box::new(SimConsumer { memory, world: Arc::clone(&self.store.world) }),
            dead_letters: DeadLetters::Publish(Arc::new(SimProducer {
                broker: self.harness.broker.clone(),
                world: Arc::clone(&self.store.world),
            })),
            status: status(),
            shutdown: watch,
            now_ms: || NOW_MS,
            execution: Execution::Tasks,
        };
        self.workers.push(Running { member, shutdown, task: tokio::spawn(worker.run()) });
    }

    fn below(&self, bound: u64) -> u64 {
        self.store.world().random.below(bound)
    }

    async fn stop_worker(&mut self) {
        let worker = self.workers.remove(0);
        worker.shutdown.send_replace(true);
        worker.task.await.unwrap().unwrap();
    }

    /// One thing that goes wrong, or one that is normal.
    async fn step(&mut self) {
        let count = self.below(12) as usize;
        let mut events = Random(self.below(u64::MAX) | 1);
        self.harness.append(&mut events, count);
        match self.below(16) {
            0 | 1 => {
                let back = self.below(10) as usize;
                self.store.crash(Some(back));
            }
            2 if self.below(4) == 0 => self.store.crash(None),
            3 | 4 if self.workers.len() < 4 => self.start_worker(),
            13 => self.harness.grow(),
            14 | 15 if self.store.lanes() > 1 => self.store.crash_lane(),
            5 if self.workers.len() > 1 => self.stop_worker().await,
            6 | 7 if !self.workers.is_empty() => {
                // As kill -9 does; what it had sent to the store still arrives.
                let worker = self.workers.remove(0);
                worker.task.abort();
                self.harness.broker.expire(worker.member);
            }
            8 | 9 if !self.workers.is_empty() => {
                // A zombie: the group has given its partitions away, and it has not noticed.
                let index = self.below(self.workers.len() as u64) as usize;
                self.harness.broker.expire(self.workers[index].member);
            }
            _ => {}
        }
        let pause = self.below(400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Everything works again: the counts become those of the log, in bounded time.
    async fn recover(mut self, context: &str) -> (u64, Duration) {
        self.store.world().is_calm = true;
        if self.workers.is_empty() {
            self.start_worker();
        }
        let begun = Instant::now();
        loop {
            if let Some(worker) = self.workers.iter_mut().find(|worker| worker.task.is_finished()) {
                panic!("{context}: a worker ended: {:?}", (&mut worker.task).await);
            }
            if self.is_done().await {
                break;
            }
            assert!(begun.elapsed() < RECOVERY_MAX, "{context}: the positions do not reach the ends of the log");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let recovery = begun.elapsed();
        while !self.workers.is_empty() {
            self.stop_worker().await;
        }
        self.harness.assert_exact(context).await;
        self.assert_letters(context);
        (self.store.world().trace, recovery)
    }

    async fn is_done(&self) -> bool {
        self.harness.is_done().await
    }

    /// Every record that could not be counted is there, once or more often, and no other.
    fn assert_letters(&self, context: &str) {
        let mut expected = BTreeSet::new();
        for partition in self.harness.partitions() {
            for offset in self.harness.broker.offsets_where(&partition, |value| value == b"not json") {
                expected.insert((partition.partition.to_string(), offset.to_string()));
            }
        }
        let header = |letter: &Message, name: &str| {
            let found = letter.headers.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.clone());
            String::from_utf8(found.unwrap_or_default()).unwrap()
        };
        let letters = self.harness.broker.dead_letters();
        let found: BTreeSet<(String, String)> =
            letters.iter().map(|letter| (header(letter, "traqq-partition"), header(letter, "traqq-offset"))).collect();
        assert_eq!(found, expected, "{context}: the dead letters");
    }
}

/// Runs one schedule; what happened, and how long the recovery took by its own clock.
fn schedule(seed: u64) -> (u64, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    traqq_pipeline::seed(seed);
    runtime.block_on(async {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let lanes = if random.below(3) == 0 { 3 } else { 1 };
        let harness = Harness::new(1 + random.below(4) as i32, lanes);
        let steps = 5 + random.below(25);
        let memory = harness.store.clone();
        let world = World {
            random,
            incarnation: 0,
            down_until: Instant::now(),
            history: Vec::new(),
            is_calm: false,
            trace: 0xcbf2_9ce4_8422_2325,
        };
        let store = SimStore { memory, world: Arc::new(Mutex::new(world)) };
        let mut simulation = Simulation { harness, store, workers: Vec::new() };
        simulation.start_worker();
        for _ in 0..steps {
            simulation.step().await;
        }
        simulation.recover(&format!("TRAQQ_SEED={seed}")).await
    })
}

/// The simulation's clock, for its log.
struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        thread_local! {
            static BEGUN: Instant = Instant::now();
        }
        write!(out, "{:8.3}", BEGUN.with(Instant::elapsed).as_secs_f64())
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn counts_are_exact_in_every_schedule() {
    let (first, schedules) = (number("TRAQQ_SEED", 1), number("TRAQQ_SCHEDULES", 1_000));
    if schedules == 1 {
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_timer(Clock)
            .try_init();
    }
    let slowest = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                scope.spawn(move || {
                    let seeds = (first..first + schedules).skip(thread).step_by(2);
                    seeds.map(|seed| schedule(seed).1).max().unwrap_or_default()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    });
    println!("figure simulated_schedules {schedules} count");
    println!("figure simulated_recovery_slowest {:.1} seconds", slowest.as_secs_f64());
}

/// What a seed names is one schedule and not many.
#[test]
fn a_seed_happens_again_as_it_did() {
    let traces: BTreeMap<u64, (u64, Duration)> = (1..=20).map(|seed| (seed, schedule(seed))).collect();
    for (seed, trace) in &traces {
        assert_eq!(schedule(*seed), *trace, "seed {seed}");
    }
    assert_eq!(traces.values().collect::<BTreeSet<_>>().len(), traces.len());
}
