//! The protocol of commit, fence and resync as a model, of which a checker visits every state that
//! can be reached.
//!
//! Two workers both believe that they own all partitions of one lane, which is the worst that
//! rebalances, zombies and leases can do. They read records one by one, send batches of one or two
//! over connections that deliver in order, with two in flight, and resync.
//!
//! What a worker does with a partition is not written down here a second time: each has a
//! [`Cursor`], the state machine that the product runs, over real records, checkpoints and
//! fingerprints. Written down here is what cannot be cloned and hashed: the log, the ledger with
//! its fence (a script in Redis, a batch in an embedded database), the way between them, and of a
//! lane that it sends in order and forgets what is under way in a doubt (its own state counts jobs
//! and epochs without end, and holds memory and timers; `worker/lane.rs` has its tests beside it).
//!
//! Whenever it likes, and as often as the bounds allow,
//!
//! - a connection breaks: requests on their way arrive later, in any order, or never; answers are
//!   lost;
//! - the store falls back to what it last wrote to disk, and connections break with it, or do not
//!   (a failover behind a proxy);
//! - the topic is deleted and made again with other records.
//!
//! In every state the counts must be those of the records below the stored position, each once, of
//! one log. And where nothing more happens by itself all must be counted, or the workers have
//! stopped because the log is another one. Each rule of the protocol is left out in turn to see
//! that the checker notices. `TRAQQ_MODEL=large` visits some four million states.

use std::num::NonZeroUsize;

use std::sync::LazyLock;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use traqq_core::model::{Checkpoint, Fingerprint, RecordBatch, TopicPartition};
use traqq_log::Watermarks;
use traqq_pipeline::cursor::{Arrival, Cursor, Opened, Phase};

const WORKERS: usize = 2;
const IN_FLIGHT: usize = 2;
const BUFFERED: usize = 2;
/// Requests of broken connections that may still arrive.
const LATE: usize = 2;
const RECORDS_MAX: usize = 3;
/// The topic is made again once at most.
const LOGS: usize = 2;

/// The product counts generations up. Here two are enough: that of the last opening, and one that
/// is over.
const CURRENT: u64 = 1;
const OVER: u64 = 0;

/// What is left out of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// A batch applies only where it begins at the stored positions.
    Fence,
    /// After an answer other than "applied" the worker goes back to the stored positions.
    Resync,
    /// What was read before a resync is dropped.
    Generations,
    /// The first record must be the one that was counted last.
    Fingerprint,
    /// A worker with nothing to send looks at the stored positions.
    IdleCheck,
}

/// A record: which log, and where in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Record {
    log: u8,
    offset: u8,
}

impl Record {
    /// As the consumer delivers it; the log is its timestamp.
    fn delivered(self, generation: u64) -> RecordBatch {
        static PARTITION: LazyLock<TopicPartition> = LazyLock::new(|| TopicPartition::new("t", 0));
        let mut batch = RecordBatch::new(PARTITION.clone(), generation);
        batch.push(self.offset.into(), self.log.into(), None, Some(&[self.log]));
        batch
    }

    fn of(fingerprint: Fingerprint) -> Self {
        Self { log: fingerprint.timestamp_ms as u8, offset: fingerprint.offset as u8 }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Span {
    partition: usize,
    from: Checkpoint,
    to: Checkpoint,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Batch {
    spans: Vec<Span>,
    records: Vec<(usize, Record)>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Answer {
    Applied(Batch),
    Fence,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Stored {
    positions: Vec<Checkpoint>,
    /// By partition, log and offset: how often it was counted.
    counts: Vec<[[u8; RECORDS_MAX]; LOGS]>,
}

/// What a worker knows of a partition, and what is on its way to it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
struct Reader {
    cursor: Cursor,
    /// What the broker's client reads next.
    next: u8,
    /// Read and not taken yet, each with the generation it was read under.
    buffered: Vec<(u64, Record)>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Worker {
    readers: Vec<Reader>,
    sent: Vec<Batch>,
    answers: Vec<Answer>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    log: u8,
    /// Of all partitions.
    end: u8,
    workers: Vec<Worker>,
    store: Stored,
    durable: Stored,
    late: Vec<Batch>,
    faults: u8,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Persist,
    Read(usize, usize),
    /// What is not to be counted is dropped.
    Drop(usize, usize),
    /// Records to take, by partition.
    Send(usize, Vec<usize>),
    Handle(usize),
    HandleLate(usize),
    Answer(usize),
    Resync(usize),
    Check(usize),
    Break(usize),
    Crash,
    FallBack,
    /// With so many records.
    Recreate(u8),
}

impl Step {
    const fn is_fault(&self) -> bool {
        matches!(self, Self::Break(_) | Self::Crash | Self::FallBack | Self::Recreate(_))
    }
}

struct Protocol {
    partitions: usize,
    /// Of each partition.
    records: u8,
    faults: u8,
    without: Without,
}

impl Reader {
    fn is_reading(&self) -> bool {
        matches!(self.cursor.phase(), Phase::Verifying(_) | Phase::Running)
    }

    fn stop(&mut self) {
        *self = Self::default();
        self.cursor.stop();
    }

    /// A doubt. What a cursor that waits knew before is overwritten when it is restored: states
    /// that differ in nothing else are one.
    fn wait(&mut self) {
        self.cursor.wait();
        if self.cursor.phase() == Phase::Waiting {
            *self = Self { buffered: std::mem::take(&mut self.buffered), ..Self::default() };
            self.buffered.iter_mut().for_each(|(generation, _)| *generation = OVER);
        }
    }

    /// The first record that is buffered arrives; `None` when it is not to be counted.
    fn take(&mut self) -> Option<Record> {
        let (generation, record) = self.buffered.remove(0);
        match self.cursor.arrived(record.delivered(generation)) {
            Arrival::Take { .. } => Some(record),
            Arrival::Drop => None,
            Arrival::Misfit(_) => {
                self.stop();
                None
            }
        }
    }

    /// How many of the buffered records may be taken now.
    fn ready(&self) -> usize {
        if self.cursor.phase() == Phase::Running { self.buffered.len() } else { 0 }
    }
}

impl Worker {
    fn new(partitions: usize) -> Self {
        Self { readers: vec![Reader::default(); partitions], sent: Vec::new(), answers: Vec::new() }
    }

    fn is_waiting(&self) -> bool {
        self.readers.iter().any(|reader| reader.cursor.phase() == Phase::Waiting)
    }

    fn is_idle(&self) -> bool {
        self.sent.is_empty() && self.answers.is_empty()
    }

    /// Whatever is in doubt: nothing of what is in flight is remembered.
    fn doubt(&mut self) {
        self.sent.clear();
        self.answers.clear();
        self.readers.iter_mut().for_each(Reader::wait);
    }
}

impl World {
    fn readers(&self) -> impl Iterator<Item = &Reader> {
        self.workers.iter().flat_map(|worker| &worker.readers)
    }

    /// Requests that left may arrive all the same.
    fn break_connection(&mut self, worker: usize) {
        self.late.append(&mut self.workers[worker].sent);
        self.late.sort();
        self.late.truncate(LATE);
        self.workers[worker].doubt();
    }
}

impl Protocol {
    fn is_without(&self, rule: Without) -> bool {
        self.without == rule
    }

    /// `commit.lua`.
    fn commit(&self, store: &mut Stored, batch: &Batch) -> bool {
        let holds = |span: &Span| store.positions[span.partition] == span.from;
        if !self.is_without(Without::Fence) && !batch.spans.iter().all(holds) {
            return false;
        }
        for span in &batch.spans {
            store.positions[span.partition] = span.to;
        }
        for (partition, record) in &batch.records {
            store.counts[*partition][usize::from(record.log)][usize::from(record.offset)] += 1;
        }
        true
    }

    /// Back to the stored positions.
    fn resync(&self, world: &mut World, worker: usize) {
        let World { store, workers, end, .. } = world;
        for (partition, reader) in workers[worker].readers.iter_mut().enumerate() {
            if reader.cursor.phase() != Phase::Waiting {
                continue;
            }
            let stored = store.positions[partition];
            reader.cursor.restore(stored);
            reader.cursor.open(CURRENT);
            let is_believed = self.is_without(Without::Fingerprint);
            let high = if is_believed { stored.position.max((*end).into()) } else { (*end).into() };
            match reader.cursor.opened(CURRENT, Watermarks { low: 0, high }) {
                Opened::Reads { .. } => {}
                Opened::Misfit(_) => {
                    reader.stop();
                    continue;
                }
                Opened::Outdated => unreachable!("it was opened just now"),
            }
            reader.next = stored.read_from() as u8;
            if let Some(last) = stored.last.filter(|_| is_believed) {
                // It believes what it is told without reading it.
                reader.cursor.arrived(Record::of(last).delivered(CURRENT));
                reader.next = stored.position as u8;
            }
            if self.is_without(Without::Generations) {
                reader.buffered.iter_mut().for_each(|(of, _)| *of = CURRENT);
            }
            while reader.buffered.first().is_some_and(|(of, _)| *of != CURRENT) {
                assert_eq!(reader.take(), None, "a record of an opening that is over was taken");
            }
        }
    }

    fn sends(&self, world: &World, worker: usize) -> Vec<Vec<usize>> {
        let ready: Vec<usize> = world.workers[worker].readers.iter().map(Reader::ready).collect();
        let mut choices = vec![Vec::new()];
        for ready in ready {
            choices = choices
                .into_iter()
                .flat_map(|choice| (0..=ready.min(2)).map(move |taken| [choice.clone(), vec![taken]].concat()))
                .collect();
        }
        choices.retain(|choice| choice.iter().sum::<usize>() > 0);
        choices
    }

    fn is_quiet(&self, world: &World) -> bool {
        let mut steps = Vec::new();
        self.actions(world, &mut steps);
        !steps.iter().any(|step| !step.is_fault() && self.next_state(world, step.clone()).is_some())
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let stored = Stored {
            positions: vec![Checkpoint::start(0); self.partitions],
            counts: vec![[[0; RECORDS_MAX]; LOGS]; self.partitions],
        };
        vec![World {
            log: 0,
            end: self.records,
            workers: vec![Worker::new(self.partitions); WORKERS],
            store: stored.clone(),
            durable: stored,
            late: Vec::new(),
            faults: 0,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.durable != world.store {
            steps.push(Step::Persist);
        }
        steps.extend((0..world.late.len()).map(Step::HandleLate));
        for (index, worker) in world.workers.iter().enumerate() {
            for (partition, reader) in worker.readers.iter().enumerate() {
                if reader.is_reading() && reader.next < world.end && reader.buffered.len() < BUFFERED {
                    steps.push(Step::Read(index, partition));
                }
                if !reader.buffered.is_empty() && reader.cursor.phase() != Phase::Waiting && reader.ready() == 0 {
                    steps.push(Step::Drop(index, partition));
                }
            }
            if !worker.sent.is_empty() {
                steps.push(Step::Handle(index));
            }
            if !worker.answers.is_empty() {
                steps.push(Step::Answer(index));
            }
            if worker.is_waiting() {
                steps.push(Step::Resync(index));
            } else if worker.sent.len() + worker.answers.len() < IN_FLIGHT {
                steps.extend(self.sends(world, index).into_iter().map(|taken| Step::Send(index, taken)));
            }
            let differs = |(partition, reader): (usize, &Reader)| {
                !reader.cursor.agrees_with(Some(&world.store.positions[partition]))
            };
            let is_checked = !self.is_without(Without::IdleCheck);
            if is_checked && worker.is_idle() && worker.readers.iter().enumerate().any(differs) {
                steps.push(Step::Check(index));
            }
            if world.faults < self.faults && !worker.is_waiting() {
                steps.push(Step::Break(index));
            }
        }
        if world.faults < self.faults {
            if world.durable != world.store {
                steps.extend([Step::Crash, Step::FallBack]);
            }
            if usize::from(world.log) + 1 < LOGS {
                steps.extend([Step::Recreate(1), Step::Recreate(self.records)]);
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.faults += u8::from(step.is_fault());
        match step {
            Step::Persist => next.durable = next.store.clone(),
            Step::Read(worker, partition) => {
                let reader = &mut next.workers[worker].readers[partition];
                let record = Record { log: world.log, offset: reader.next };
                reader.buffered.push((CURRENT, record));
                reader.next += 1;
            }
            Step::Drop(worker, partition) => {
                next.workers[worker].readers[partition].take();
            }
            Step::Send(worker, taken) => {
                let mut batch = Batch { spans: Vec::new(), records: Vec::new() };
                for (partition, taken) in taken.into_iter().enumerate().filter(|(_, taken)| *taken > 0) {
                    let reader = &mut next.workers[worker].readers[partition];
                    let from = reader.cursor.from();
                    for _ in 0..taken {
                        batch.records.push((partition, reader.take()?));
                    }
                    batch.spans.push(Span { partition, from, to: reader.cursor.from() });
                }
                next.workers[worker].sent.push(batch);
            }
            Step::Handle(worker) => {
                let batch = next.workers[worker].sent.remove(0);
                let is_applied = self.commit(&mut next.store, &batch);
                next.workers[worker].answers.push(if is_applied { Answer::Applied(batch) } else { Answer::Fence });
            }
            Step::HandleLate(index) => {
                let batch = next.late.remove(index);
                self.commit(&mut next.store, &batch);
            }
            Step::Answer(worker) => match next.workers[worker].answers.remove(0) {
                Answer::Applied(batch) => {
                    for span in batch.spans {
                        next.workers[worker].readers[span.partition].cursor.applied(span.to);
                    }
                }
                Answer::Fence if self.is_without(Without::Resync) => {}
                Answer::Fence => next.break_connection(worker),
            },
            Step::Resync(worker) => self.resync(&mut next, worker),
            Step::Check(worker) => next.workers[worker].doubt(),
            Step::Break(worker) => next.break_connection(worker),
            Step::Crash | Step::FallBack => {
                next.store = next.durable.clone();
                if step == Step::Crash {
                    (0..WORKERS).for_each(|worker| next.break_connection(worker));
                }
            }
            // Whoever reads the old topic is told: its id is gone, or its consumer.
            Step::Recreate(end) => {
                (next.log, next.end) = (world.log + 1, end);
                (0..WORKERS).for_each(|worker| next.break_connection(worker));
            }
        }
        // They are alike: which of them did it makes no difference.
        next.workers.sort();
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("each record below the position is counted once", |_, world: &World| {
                world.store.positions.iter().zip(&world.store.counts).all(|(stored, counts)| {
                    let log = stored.last.map_or(0, |last| Record::of(last).log);
                    let expected =
                        |of: usize, offset: usize| of == usize::from(log) && (offset as i64) < stored.position;
                    let is_right = |of: usize, offset: usize| counts[of][offset] == u8::from(expected(of, offset));
                    (0..LOGS).all(|of| (0..RECORDS_MAX).all(|offset| is_right(of, offset)))
                })
            }),
            Property::always("where nothing happens all is counted or stopped", |model: &Self, world: &World| {
                let is_settled = |partition: usize| {
                    let is_stopped = |worker: &Worker| worker.readers[partition].cursor.phase() == Phase::Stopped;
                    world.store.positions[partition].position == i64::from(world.end)
                        || world.workers.iter().all(is_stopped)
                };
                (0..model.partitions).all(is_settled) || !model.is_quiet(world)
            }),
            Property::always("no worker stops over the log that it counted", |_, world: &World| {
                world.log > 0 || world.readers().all(|reader| reader.cursor.phase() != Phase::Stopped)
            }),
            Property::sometimes("all is counted after the last fault", |model: &Self, world: &World| {
                let is_done = |stored: &Checkpoint| stored.position == i64::from(model.records);
                world.faults == model.faults && world.store.positions.iter().all(is_done)
            }),
            Property::sometimes("another log is noticed", |model: &Self, world: &World| {
                model.faults == 0 || world.readers().any(|reader| reader.cursor.phase() == Phase::Stopped)
            }),
        ]
    }
}

/// Partitions, records of each, and faults.
type Size = (usize, u8, u8);

const SMALL: [Size; 3] = [(1, 2, 2), (2, 1, 1), (1, 3, 1)];
const LARGE: [Size; 3] = [(1, 2, 3), (1, 3, 2), (2, 1, 2)];

fn check((partitions, records, faults): Size, without: Without) -> impl Checker<Protocol> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let until = if without == Without::Nothing { HasDiscoveries::All } else { HasDiscoveries::AnyFailures };
    let model = Protocol { partitions, records, faults, without };
    model.checker().threads(threads).finish_when(until).spawn_bfs().join()
}

#[test]
fn every_state_is_exact() {
    let is_large = std::env::var("TRAQQ_MODEL").is_ok_and(|size| size == "large");
    for size in SMALL.iter().chain(LARGE.iter().filter(|_| is_large)) {
        let checker = check(*size, Without::Nothing);
        println!("(partitions, records, faults) = {size:?}: {} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn no_rule_can_be_left_out() {
    for without in [Without::Fence, Without::Resync, Without::Generations, Without::Fingerprint, Without::IdleCheck] {
        let checker = check((1, 3, 2), without);
        let properties = checker.model().properties();
        let is_always = |name: &&str| {
            properties.iter().any(|property| property.name == *name && property.expectation == Expectation::Always)
        };
        let broken: Vec<&str> = checker.discoveries().into_keys().filter(is_always).collect();
        println!("without {without:?}: {broken:?} after {} states", checker.unique_state_count());
        assert!(!broken.is_empty(), "nothing fails without {without:?}");
    }
}
