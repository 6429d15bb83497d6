//! A store as the ledger of counts.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Counts;
use crate::compile::Folded;
use crate::store::{self, Applied, Meta, Store, StoreError};
use traqq_core::model::{Checkpoint, Positions, TopicPartition};
use traqq_pipeline::{Ledger, LedgerError, LedgerResult, Outcome, Permit, Session, Stale};

pub struct CountsLedger(pub Arc<dyn Store>);

impl From<StoreError> for LedgerError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Retry(_) => Self::Retry(error.into()),
            StoreError::Reconnect(_) => Self::Reconnect(error.into()),
            StoreError::Stop(_) => Self::Stop(error.into()),
        }
    }
}

#[async_trait]
impl Ledger<Counts> for CountsLedger {
    fn lanes(&self) -> usize {
        self.0.lanes()
    }

    async fn header(&self) -> LedgerResult<Option<Meta>> {
        Ok(self.0.meta().await?)
    }

    async fn lane_header(&self, lane: usize) -> LedgerResult<Option<Meta>> {
        Ok(self.0.lane_meta(lane).await?)
    }

    async fn create(&self, meta: &Meta) -> LedgerResult<Meta> {
        Ok(self.0.create(meta).await?)
    }

    async fn begin_lane(&self, lane: usize, meta: &Meta) -> LedgerResult<()> {
        Ok(self.0.begin_lane(lane, meta).await?)
    }

    async fn adopt(&self, starts: &[(TopicPartition, i64)]) -> LedgerResult<()> {
        Ok(self.0.adopt(starts).await?)
    }

    async fn positions(&self, lane: usize) -> LedgerResult<Positions> {
        Ok(self.0.positions(lane).await?)
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> LedgerResult<bool> {
        Ok(self.0.set_position(partition, from, to).await?)
    }

    async fn session(&self, lane: usize) -> LedgerResult<Box<dyn Session<Counts>>> {
        Ok(Box::new(CountsSession(self.0.session(lane).await?)))
    }

    async fn disconnect(&self) {
        self.0.disconnect().await;
    }
}

struct CountsSession(Box<dyn store::Session>);

#[async_trait]
impl Session<Counts> for CountsSession {
    async fn stored(&mut self) -> LedgerResult<Option<(Meta, Positions)>> {
        Ok(self.0.stored().await?)
    }

    async fn commit(&mut self, folded: Folded, permit: Permit) -> BoxFuture<'static, LedgerResult<Outcome<Applied>>> {
        let answer = self.0.commit(Arc::new(folded.batch)).await;
        async move {
            let outcome = answer.await;
            // The store may have had to send it again until now.
            drop(permit);
            Ok(match outcome? {
                store::Outcome::Applied(applied) => Outcome::Applied(applied),
                store::Outcome::Fenced(stored) => Outcome::Fenced(stored),
                // Either the store is empty now, or another mapping was applied: establishing again
                // tells which.
                store::Outcome::PlanChanged(_) => {
                    Outcome::Stale(Stale { what: "plan", why: "the stored plan is not ours" })
                }
                store::Outcome::ShadowStale => {
                    Outcome::Stale(Stale { what: "shadow", why: "the register shadow was stale" })
                }
            })
        }
        .boxed()
    }
}
