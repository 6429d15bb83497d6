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

/// Connects to a lane after a while and reads its positions, until that has worked or an operator must act.
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
        // The lane may have lost what it stood on, and nobody else would notice while it has nothing to commit.
        let _ = internal.send(Internal::Doubt { lane, epoch, why: "new partitions cannot begin" });
    }
}

/// Sends what an attempt finds, or that a person must act; `false` after so many tries without either.
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

/// Reads the positions of new partitions, which begin at their first record. One whose broker does not answer is left out: it will be
/// asked for again, and is no doubt of the lane.
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
            Err(BrokerError::Retry(text)) => {
                silent = Some(text);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // A partition that others know of may have been lost by its lane, with all that was counted of it.
        starts.push((partition.clone(), header.starts().get(partition).copied().unwrap_or(low)));
    }
    if let Some(text) = silent {
        tracing::warn!(lane, text, projection = P::NAME, "cannot begin with new partitions yet");
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
