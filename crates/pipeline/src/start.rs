//! What must hold before anything is folded: one ledger, one group, one shape, and a recorded start
//! for every partition.

use std::sync::Arc;

use super::config::OnEmptyStore;
use super::driver::Driver;
use super::ledger::{Cause, LedgerError, LedgerResult};
use super::projection::{Compared, Header, Projection};
use crate::names;
use traqq_core::model::TopicPartition;
use traqq_log::{BrokerError, Mark, Start};

/// Why a start did not come about.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    #[error(transparent)]
    Retry(Cause),
    #[error(transparent)]
    Stop(Cause),
}

impl From<BrokerError> for NotStarted {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Stop(_) => Self::Stop(error.into()),
            BrokerError::Retry(_) => Self::Retry(error.into()),
        }
    }
}

/// Counts an error of the ledger.
pub fn count_ledger_error<P: Projection>(error: &LedgerError) {
    metrics::counter!(names::STORE_ERRORS, "class" => error.class(), "projection" => P::NAME).increment(1);
}

pub struct Starter<P> {
    pub projection: Arc<P>,
    pub driver: Driver,
    pub group: String,
    pub start: Start,
    pub on_empty_store: OnEmptyStore,
    pub now_ms: fn() -> i64,
}

impl<P> Clone for Starter<P> {
    fn clone(&self) -> Self {
        Self {
            projection: Arc::clone(&self.projection),
            driver: self.driver.clone(),
            group: self.group.clone(),
            start: self.start,
            on_empty_store: self.on_empty_store,
            now_ms: self.now_ms,
        }
    }
}

impl<P: Projection> Starter<P> {
    /// The ledger's answer; an error is counted.
    pub async fn ledger<T>(&self, answer: impl Future<Output = LedgerResult<T>>) -> Result<T, NotStarted> {
        answer.await.map_err(|error| {
            count_ledger_error::<P>(&error);
            match error {
                LedgerError::Stop(cause) => NotStarted::Stop(cause),
                LedgerError::Retry(cause) | LedgerError::Reconnect(cause) => NotStarted::Retry(cause),
            }
        })
    }

    /// The header under which this worker may go on; written if the ledger is empty.
    pub async fn establish(&self) -> Result<P::Header, NotStarted> {
        let ledger = self.projection.ledger();
        if let Some(header) = self.ledger(ledger.header()).await? {
            return self.accept(header);
        }
        let known = self.known_by_a_lane().await?;
        let partitions = self.driver.ask(|consumer| consumer.partitions()).await?;
        let asked = partitions.clone();
        let marks = self.driver.ask(move |consumer| consumer.marks(&asked)).await?;
        let recorded: Vec<(TopicPartition, i64)> =
            marks.iter().filter_map(|mark| Some((mark.partition.clone(), self.recorded_start(mark)?))).collect();
        let mut header = known.unwrap_or_else(|| self.projection.new_header((self.now_ms)()));
        let name = self.projection.ledger_name();
        let start = if recorded.is_empty() {
            self.start
        } else {
            self.lost(&format!("the store has nothing under prefix {name:?}"), recorded.len())?;
            Start::Earliest
        };
        let asked = partitions.clone();
        let starts = self.driver.ask(move |consumer| consumer.starts(start, &asked)).await?;
        *header.starts_mut() = partitions.into_iter().zip(starts).collect();
        header.starts_mut().extend(recorded);
        let starts = header.starts().len();
        let header = self.accept(self.ledger(ledger.create(&header)).await?)?;
        tracing::info!(prefix = name, partitions = starts, projection = P::NAME, "counting begins under a new prefix");
        Ok(header)
    }

    /// The header of the first lane that still has one though the ledger has none: what kept the
    /// ledger's lost everything. What the other lanes have counted they have counted since when
    /// their header says.
    async fn known_by_a_lane(&self) -> Result<Option<P::Header>, NotStarted> {
        let ledger = self.projection.ledger();
        for lane in 0..ledger.lanes() {
            if let Some(header) = self.ledger(ledger.lane_header(lane)).await? {
                // Another shape than ours may be applied once the ledger has a header again.
                return self.compare(header, Compared::Identity).map(Some);
            }
        }
        Ok(None)
    }

    /// A lane has no header though the ledger has one: its node lost everything, positions and
    /// results together.
    pub async fn begin_again(&self, lane: usize) -> Result<(), NotStarted> {
        let ledger = self.projection.ledger();
        // Emptied altogether: the next try begins it.
        let Some(header) = self.ledger(ledger.header()).await? else { return Ok(()) };
        let header = self.accept(header)?;
        let lanes = ledger.lanes();
        let partitions = header.starts().keys().filter(|partition| partition.lane(lanes) == lane).count();
        let name = self.projection.ledger_name();
        self.lost(&format!("the store has nothing in lane {lane} of prefix {name:?}"), partitions)?;
        self.ledger(ledger.begin_lane(lane, &header)).await
    }

    fn lost(&self, what: &str, partitions: usize) -> Result<(), NotStarted> {
        let what =
            format!("{what}, but group {:?} has counted {partitions} partitions before: its data is gone", self.group);
        match self.on_empty_store {
            OnEmptyStore::Stop => Err(NotStarted::Stop(
                format!(
                    "{what}; restore it, or set worker.on_empty_store = \"restart\" to count again from the recorded start"
                )
                .into(),
            )),
            OnEmptyStore::Restart => {
                metrics::counter!(names::STORE_LOST, "projection" => P::NAME).increment(1);
                tracing::error!(
                    prefix = self.projection.ledger_name(),
                    group = self.group,
                    partitions,
                    projection = P::NAME,
                    "the store lost everything; counting again from the recorded start"
                );
                Ok(())
            }
        }
    }

    pub fn accept(&self, header: P::Header) -> Result<P::Header, NotStarted> {
        self.compare(header, Compared::Everything)
    }

    fn compare(&self, header: P::Header, compared: Compared) -> Result<P::Header, NotStarted> {
        let difference = self.projection.difference(&header, compared);
        difference.map_or(Ok(header), |difference| Err(NotStarted::Stop(difference.into())))
    }

    fn recorded_start(&self, mark: &Mark) -> Option<i64> {
        start_in(&mark.note, self.projection.ledger_name())
    }
}

/// The note beside the offsets that a ledger of this name commits to the broker: where reading
/// began, should the ledger ever be lost.
pub fn note_of(ledger_name: &str, start: i64) -> String {
    format!("traqq prefix={ledger_name} start={start}")
}

/// The start in a note, if it is one of this ledger. Any tool may write anything there.
pub fn start_in(note: &str, ledger_name: &str) -> Option<i64> {
    let start = note.strip_prefix("traqq prefix=")?.strip_prefix(ledger_name)?.strip_prefix(" start=")?;
    start.parse().ok().filter(|start| *start >= 0)
}
