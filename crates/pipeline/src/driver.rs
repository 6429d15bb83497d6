//! The thread that owns the consumer: everything that touches it happens here, one thing after the
//! other, so that records read before a seek cannot pass for records read after it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc::Sender, oneshot};
use tokio::time::Instant;

use super::budget::{Budget, Permit};
use super::execution::Execution;
use super::pulse::Who;
use super::status::Status;
use crate::names;
use traqq_core::model::{Checkpoint, TopicPartition};
use traqq_log::{BrokerError, BrokerResult, Consumer, Event, Mark, Opening, Watermarks};

const POLL: Duration = Duration::from_millis(20);
const POLL_BYTES_MAX: usize = 8 << 20;
/// How long to wait for room before fetching is paused.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long opening partitions may keep the others from being polled; those that are left are asked
/// for again.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const KNOWN_EVERY: Duration = Duration::from_secs(1);
/// No call to the consumer takes this long, whatever the broker does: their own timeouts are a
/// tenth of it.
const POLL_MAX: Duration = Duration::from_secs(60);
/// Questions go over all partitions, one by one, and each may meet a broker that does not answer.
const ASK_MAX: Duration = Duration::from_secs(600);

/// What the loop asks of the driver.
pub enum Command {
    Open(Vec<Open>),
    /// Stop fetching a partition that waits for an operator; it stays ours.
    Halt(TopicPartition),
    Release(Vec<TopicPartition>),
    Commit(Vec<Mark>),
    /// A question to the broker, asked between two polls.
    Ask(Question),
    /// Commits, leaves the group and ends the thread.
    Close(Vec<Mark>, oneshot::Sender<()>),
}

type Question = Box<dyn FnOnce(&mut dyn Consumer) + Send>;

/// A partition to be read from the record before its checkpoint on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    pub partition: TopicPartition,
    pub checkpoint: Checkpoint,
    pub generation: u64,
}

/// What the driver tells the loop.
pub enum Notice {
    Event(Event, Option<Permit>),
    Opened {
        partition: TopicPartition,
        generation: u64,
        result: BrokerResult<Watermarks>,
    },
    /// What is known without asking: where the log ends, and why it cannot be read.
    Known {
        ends: Vec<(TopicPartition, i64)>,
        away: Option<String>,
        unread: Vec<(TopicPartition, String)>,
    },
    Failed(BrokerError),
}

#[derive(Clone)]
pub struct Driver {
    commands: mpsc::Sender<Command>,
}

impl Driver {
    pub fn start(
        mut consumer: Box<dyn Consumer>,
        budget: Arc<Budget>,
        notices: Sender<Notice>,
        execution: Execution,
        status: Arc<Status>,
    ) -> Self {
        let (commands, queue) = mpsc::channel();
        if execution == Execution::Tasks {
            tokio::spawn(async move {
                drive(consumer.as_mut(), &budget, queue, &notices, execution, &status).await;
            });
            return Self { commands };
        }
        let run = move || {
            let run = AssertUnwindSafe(|| {
                let drive = drive(consumer.as_mut(), &budget, queue, &notices, execution, &status);
                drive.now_or_never().expect("a thread blocks");
            });
            if catch_unwind(run).is_err() {
                let text = "the consumer thread panicked; this is a bug, please report it with the log above";
                let _ = notices.blocking_send(Notice::Failed(BrokerError::stop(text)));
                consumer.close();
            }
        };
        std::thread::Builder::new().name("consumer".to_owned()).spawn(run).expect("a thread can be started");
        Self { commands }
    }

    pub fn send(&self, command: Command) {
        // A driver that is gone has said why before it went.
        let _ = self.commands.send(command);
    }

    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Consumer) -> BrokerResult<T> + Send + 'static,
    ) -> BrokerResult<T> {
        let (answer, wait) = oneshot::channel();
        self.send(Command::Ask(Box::new(move |consumer| _ = answer.send(question(consumer)))));
        wait.await.unwrap_or_else(|_| Err(BrokerError::retry("the consumer is closed")))
    }
}

async fn drive(
    consumer: &mut dyn Consumer,
    budget: &Arc<Budget>,
    commands: mpsc::Receiver<Command>,
    notices: &Sender<Notice>,
    execution: Execution,
    status: &Status,
) {
    let pulse = &status.pulse;
    let mut pacer = Pacer { projection: status.projection(), full_since: None, is_paused: false };
    let mut known_at = Instant::now();
    loop {
        pulse.expect(Who::Driver, POLL_MAX);
        loop {
            match commands.try_recv() {
                Ok(Command::Close(marks, closed)) => {
                    if let Err(error) = consumer.commit(&marks, true) {
                        tracing::debug!(%error, "last commit to the broker");
                    }
                    consumer.close();
                    let _ = closed.send(());
                    return;
                }
                Ok(command) => {
                    let is_slow = matches!(command, Command::Open(_) | Command::Ask(_));
                    pulse.expect(Who::Driver, if is_slow { ASK_MAX } else { POLL_MAX });
                    for notice in obey(consumer, command) {
                        execution.send(notices, notice).await;
                    }
                    if is_slow {
                        break;
                    }
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return consumer.close(),
            }
        }
        let Some(room) = pacer.room(consumer, budget, execution) else {
            execution.pass(POLL).await;
            continue;
        };
        let events = match consumer.poll(execution.blocking(POLL), room.min(POLL_BYTES_MAX)) {
            Ok(events) => events,
            Err(error) => {
                if !execution.send(notices, Notice::Failed(error)).await {
                    return consumer.close();
                }
                execution.sleep(PATIENCE).await;
                continue;
            }
        };
        for event in events {
            let permit = if let Event::Records(batch) = &event { Some(budget.take(batch.bytes())) } else { None };
            if !execution.send(notices, Notice::Event(event, permit)).await {
                return consumer.close();
            }
        }
        if known_at.elapsed() >= KNOWN_EVERY {
            known_at = Instant::now();
            let known = Notice::Known { ends: consumer.ends(), away: consumer.away(), unread: consumer.unread() };
            execution.send(notices, known).await;
        }
        execution.pass(POLL).await;
    }
}

/// Does it, and returns what the loop is to hear of it.
fn obey(consumer: &mut dyn Consumer, command: Command) -> Vec<Notice> {
    match command {
        Command::Open(opens) => return open(consumer, opens),
        Command::Halt(partition) => consumer.halt(&partition),
        Command::Release(partitions) => consumer.release(&partitions),
        Command::Commit(marks) => {
            if let Err(error) = consumer.commit(&marks, false) {
                return vec![Notice::Event(Event::CommitFailed(error.to_string()), None)];
            }
        }
        Command::Ask(question) => question(consumer),
        Command::Close(..) => unreachable!("handled by the caller"),
    }
    Vec::new()
}

/// Opens what the log still has; the loop judges the rest by the watermarks.
fn open(consumer: &mut dyn Consumer, opens: Vec<Open>) -> Vec<Notice> {
    let mut openings = Vec::new();
    let mut results = Vec::new();
    let deadline = Instant::now() + OPEN_TIMEOUT;
    for Open { partition, checkpoint, generation } in opens {
        let result = if Instant::now() < deadline {
            consumer.watermarks(&partition)
        } else {
            Err(BrokerError::retry("other partitions took too long"))
        };
        if let Ok(Watermarks { low, high }) = result
            && (low..=high).contains(&checkpoint.position)
        {
            let offset = if checkpoint.read_from() < low { checkpoint.position } else { checkpoint.read_from() };
            let position = checkpoint.position;
            openings.push(Opening { partition: partition.clone(), offset, position, generation });
        }
        results.push((partition, generation, result));
    }
    let opened = if openings.is_empty() { Ok(()) } else { consumer.open(&openings) };
    let notice = |(partition, generation, result)| {
        let is_concerned = openings.iter().any(|opening| opening.partition == partition);
        let result = if is_concerned { opened.clone().and(result) } else { result };
        Notice::Opened { partition, generation, result }
    };
    results.into_iter().map(notice).collect()
}

/// Pauses fetching when there has been no room for a while; the group must be polled all the same.
struct Pacer {
    projection: &'static str,
    full_since: Option<Instant>,
    is_paused: bool,
}

impl Pacer {
    /// Bytes that may be read now; `None` when it is time to look at the commands again.
    fn room(&mut self, consumer: &mut dyn Consumer, budget: &Budget, execution: Execution) -> Option<usize> {
        let room = budget.room(execution.blocking(if self.is_paused { Duration::ZERO } else { POLL }));
        if room > 0 {
            self.full_since = None;
            self.set_paused(consumer, false);
            return Some(room);
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < PATIENCE {
            return None;
        }
        self.set_paused(consumer, true);
        Some(1)
    }

    fn set_paused(&mut self, consumer: &mut dyn Consumer, paused: bool) {
        if self.is_paused != paused {
            self.is_paused = paused;
            consumer.pause(paused);
            metrics::gauge!(names::PAUSED, "projection" => self.projection).set(if paused { 1.0 } else { 0.0 });
            tracing::debug!(paused, "fetching");
        }
    }
}
