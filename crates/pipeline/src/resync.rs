//! The one rule for every doubt: go back to the stored positions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::ledger::{Cause, Session};
use super::projection::{Header, Projection};
use super::run::{Internal, lane_name};
use super::start::{NotStarted, Starter};
use traqq_core::model::{Positions, TopicPartition};
use traqq_log::{BrokerError, Start};

/// Attempts to begin with new partitions before all of the lane is in doubt.
const ADOPT_TRIES: usize = 4;
/// How long new partitions wait whose broker does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What the ledger says of a lane.
pub struct View<P: Projection> {
    pub lane: usize,
    pub epoch: u64,
    pub header: P::Header,
    pub positions: Positions,
    /// Absent when only partitions that wait are concerned.
    pub session: Option<Box<dyn Session<P>>>,
}

/// Connects to a lane after a while and reads its positions, until that has worked or an operator
/// must act.
pub async fn resync<P: Projection>(
    starter: Starter<P>,
    internal: mpsc::UnboundedSender<Internal<P>>,
    lane: usize,
    epoch: u64,
    wait: Duration,
) {
    tokio::time::sleep(wait).await;
    let attempt = || view(&starter, lane, epoch);
    send_view(&internal, lane, "cannot start counting yet", usize::MAX, attempt).await;
}

/// Begins with partitions that appeared after the first start.
pub async fn adopt<P: Projection>(
    starter: Starter<P>,
    internal: mpsc::UnboundedSender<Internal<P>>,
    lane: usize,
    epoch: u64,
    unknown: Vec<TopicPartition>,
) {
    let attempt = || adopted(&starter, lane, epoch, &unknown);
    if !send_view(&internal, lane, "cannot begin with new partitions yet", ADOPT_TRIES, attempt).await {
        // The lane may have lost what it stood on, and nobody else would notice while it has
        // nothing to commit.
        let _ = internal.send(Internal::Doubt { lane, epoch, why: "new partitions cannot begin" });
    }
}

/// Sends what an attempt finds, or that a person must act; `false` after so many tries without
/// either.
async fn send_view<P: Projection, F>(
    internal: &mpsc::UnboundedSender<Internal<P>>,
    lane: usize,
    complaint: &str,
    tries: usize,
    attempt: impl Fn() -> F,
) -> bool
where
    F: Future<Output = Result<View<P>, NotStarted>>,
{
    let mut backoff = Backoff::default();
    for _ in 0..tries {
        let found = match attempt().await {
            Ok(view) => Internal::View(Box::new(view)),
            Err(NotStarted::Stop(cause)) => Internal::Stop(cause),
            Err(NotStarted::Retry(cause)) => {
                let text = cause.to_string();
                tracing::warn!(lane, text, projection = P::NAME, "{complaint}");
                let _ = internal.send(Internal::Waiting { lane, why: text });
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        // A loop that is gone needs no answer.
        let _ = internal.send(found);
        return true;
    }
    false
}

/// Connects to a lane and reads its positions.
async fn view<P: Projection>(starter: &Starter<P>, lane: usize, epoch: u64) -> Result<View<P>, NotStarted> {
    let ledger = starter.projection.ledger();
    ledger.disconnect().await;
    starter.establish().await?;
    let mut session = starter.ledger(ledger.session(lane)).await?;
    // The ledger may have been emptied since, and begun anew by somebody else.
    let Some((header, positions)) = starter.ledger(session.stored()).await? else {
        starter.begin_again(lane).await?;
        return Err(NotStarted::Retry(Cause::from(format!("{}: was empty", lane_name(lane)))));
    };
    let header = starter.accept(header)?;
    Ok(View { lane, epoch, header, positions, session: Some(session) })
}

/// Reads the positions of new partitions, which begin at their first record. One whose broker does
/// not answer is left out: it will be asked for again, and is no doubt of the lane.
async fn adopted<P: Projection>(
    starter: &Starter<P>,
    lane: usize,
    epoch: u64,
    partitions: &[TopicPartition],
) -> Result<View<P>, NotStarted> {
    let ledger = starter.projection.ledger();
    let mut header = starter.establish().await?;
    let known = starter.ledger(ledger.positions(lane)).await?;
    let mut starts = Vec::new();
    let mut silent = None;
    for partition in partitions.iter().filter(|partition| !known.contains_key(partition)) {
        let asked = [partition.clone()];
        let low = match starter.driver.ask(move |consumer| consumer.starts(Start::Earliest, &asked)).await {
            Ok(lows) => lows[0],
            Err(error @ BrokerError::Retry(_)) => {
                silent = Some(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // A partition that others know of may have been lost by its lane, with all that was counted
        // of it.
        starts.push((partition.clone(), header.starts().get(partition).copied().unwrap_or(low)));
    }
    if let Some(error) = silent {
        tracing::warn!(lane, %error, projection = P::NAME, "cannot begin with new partitions yet");
        if starts.is_empty() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    starter.ledger(ledger.adopt(&starts)).await?;
    header.starts_mut().extend(starts);
    let positions = starter.ledger(ledger.positions(lane)).await?;
    Ok(View { lane, epoch, header, positions, session: None })
}

/// Moves a partition's stored position to where the log begins, because the operator chose to.
pub async fn skip<P: Projection>(projection: Arc<P>, internal: mpsc::UnboundedSender<Internal<P>>, skip: Skip) {
    let Skip { partition, generation, lane, epoch, from, to } = skip;
    let message = match projection.ledger().set_position(&partition, Some(from), to).await {
        Ok(true) => Internal::Skipped { partition, generation, to },
        // Somebody else moved it, or this did and the reply was lost: the ledger knows.
        Ok(false) | Err(_) => Internal::Doubt { lane, epoch, why: "a position could not be moved" },
    };
    let _ = internal.send(message);
}

/// What [`skip`] is to move.
pub struct Skip {
    pub partition: TopicPartition,
    pub generation: u64,
    pub lane: usize,
    pub epoch: u64,
    pub from: traqq_core::model::Checkpoint,
    pub to: traqq_core::model::Checkpoint,
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::Receiver;
    use traqq_core::model::Checkpoint;
    use traqq_log::memory::{MemoryBroker, MemoryConsumer};
    use traqq_log::{Consumer, Mark};

    use super::super::budget::Budget;
    use super::super::config::OnEmptyStore;
    use super::super::driver::{Driver, Notice};
    use super::super::execution::Execution;
    use super::super::fake::{Fake, Memory};
    use super::super::start::note_of;
    use super::super::status::Status;
    use super::*;

    fn name(number: i32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    /// The notices keep the driver going.
    fn starter(
        consumer: MemoryConsumer,
        memory: &Memory,
        shape: &'static str,
        on_empty_store: OnEmptyStore,
    ) -> (Starter<Fake>, Receiver<Notice>) {
        let (notices, kept) = mpsc::channel(100);
        let status = Arc::new(Status::of::<Fake>("nowhere"));
        let budget = Budget::new("test", 1 << 20);
        let driver = Driver::start(Box::new(consumer), budget, notices, Execution::Tasks, status);
        let projection = Arc::new(Fake::new(memory, shape));
        let (group, now_ms) = ("g".to_owned(), (|| 0) as fn() -> i64);
        (Starter { projection, driver, group, start: Start::Earliest, on_empty_store, now_ms }, kept)
    }

    /// Two partitions; the log of the first begins at 2.
    fn broker() -> MemoryBroker {
        let broker = MemoryBroker::new("t", 2);
        for number in 0..2 {
            (0..5).for_each(|_| _ = broker.append(&name(number), 0, b"x"));
        }
        broker.trim(&name(0), 2);
        broker
    }

    fn positions(view: &View<Fake>) -> Vec<i64> {
        view.positions.values().map(|at| at.position).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_ledger_is_begun_once_and_found_again() {
        let (broker, memory) = (broker(), Memory::default());
        for position in [0, 3] {
            let (starter, _kept) = starter(broker.consumer(), &memory, "1", OnEmptyStore::Stop);
            let found = view(&starter, 0, 1).await.unwrap();
            assert_eq!(positions(&found), [2 + position, 0]);
            assert_eq!(found.header.starts().values().copied().collect::<Vec<_>>(), [2, 0]);
            assert!(found.session.is_some());
            let to = Checkpoint::start(5);
            let ledger = starter.projection.ledger();
            assert!(position > 0 || ledger.set_position(&name(0), Some(Checkpoint::start(2)), to).await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ledger_of_another_shape_is_for_an_operator() {
        let (broker, memory) = (broker(), Memory::default());
        let (first, _kept) = starter(broker.consumer(), &memory, "1", OnEmptyStore::Stop);
        view(&first, 0, 1).await.unwrap();
        let (second, _kept) = starter(broker.consumer(), &memory, "2", OnEmptyStore::Stop);
        let Err(NotStarted::Stop(cause)) = view(&second, 0, 1).await else { panic!("it goes on") };
        assert!(cause.to_string().contains("shape"), "{cause}");
    }

    /// What is committed to the broker tells a ledger that was lost from one that is new.
    #[tokio::test(start_paused = true)]
    async fn a_ledger_that_was_lost_is_begun_where_it_was_begun_or_not_at_all() {
        for (note, on_empty_store, expected) in [
            (note_of("fake", 1), OnEmptyStore::Restart, Some([2, 1])),
            (note_of("fake", 1), OnEmptyStore::Stop, None),
            (note_of("another", 1), OnEmptyStore::Stop, Some([2, 0])),
            ("somebody's".to_owned(), OnEmptyStore::Stop, Some([2, 0])),
        ] {
            let broker = broker();
            let mut consumer = broker.consumer();
            consumer.commit(&[Mark { partition: name(1), position: 4, note: note.clone() }], true).unwrap();
            let (starter, _kept) = starter(consumer, &Memory::default(), "1", on_empty_store);
            match (view(&starter, 0, 1).await, expected) {
                (Ok(found), Some(expected)) => assert_eq!(positions(&found), expected, "{note} {on_empty_store:?}"),
                (Err(NotStarted::Stop(cause)), None) => {
                    assert!(cause.to_string().contains("on_empty_store"), "{cause}");
                }
                (found, _) => panic!("{note} {on_empty_store:?}: {:?}", found.map(|found| positions(&found))),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn partitions_that_appear_are_begun_with_and_known_ones_left_alone() {
        let (broker, memory) = (broker(), Memory::default());
        let (starter, _kept) = starter(broker.consumer(), &memory, "1", OnEmptyStore::Stop);
        view(&starter, 0, 1).await.unwrap();
        broker.append_hidden(&name(2));
        broker.trim(&name(2), 1);
        for _ in 0..2 {
            let found = adopted(&starter, 0, 1, &[name(1), name(2)]).await.unwrap();
            assert_eq!(positions(&found), [2, 0, 1]);
            assert!(found.session.is_none() && found.header.starts()[&name(2)] == 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_fails_is_made_again_and_says_why_meanwhile() {
        let (broker, memory) = (broker(), Memory::default());
        let (starter, _kept) = starter(broker.consumer(), &memory, "1", OnEmptyStore::Stop);
        memory.0.lock().unwrap().fails = true;
        let (internal, mut told) = mpsc::unbounded_channel();
        resync(starter, internal, 0, 1, Duration::ZERO).await;
        assert!(matches!(told.recv().await, Some(Internal::Waiting { lane: 0, why }) if why == "the disk is full"));
        assert!(matches!(told.recv().await, Some(Internal::View(found)) if found.epoch == 1));
    }
}
