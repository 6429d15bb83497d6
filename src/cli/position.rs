//! `traqq position`: where counting stands in the log.

use clap::Subcommand;

use super::table::Table;
use super::{Failure, Outcome, block_on, print_json};
use crate::app;
use crate::config::Config;
use traqq_core::model::{Checkpoint, TopicPartition};
use traqq_counts::store::{Store, StoreError, StoreResult, fitting_meta};

#[derive(Subcommand)]
pub enum Position {
    /// The stored position of every partition
    Show {
        #[arg(long)]
        json: bool,
    },
    /// Move a partition. Records in between are not counted, or counted again: this is for a
    /// partition that has stopped
    Set {
        /// As `topic/partition`
        partition: TopicPartition,
        /// The next offset to count
        offset: i64,
    },
}

impl Position {
    pub fn run(self, config: &Config) -> Outcome {
        let store = app::store(config)?;
        let failed = |error: StoreError| Failure::Failed(error.to_string());
        match self {
            Self::Show { json } => show(&block_on(stored(store.as_ref()))?.map_err(failed)?, json),
            Self::Set { partition, offset } => {
                let from = block_on(set(store.as_ref(), &partition, offset))?.map_err(failed)?;
                let from = from.map_or("nothing".to_owned(), |from| from.position.to_string());
                say!("{partition}: {from} -> {offset}; restart the worker that has it");
                Ok(())
            }
        }
    }
}

/// The stored position of every partition.
async fn stored(store: &dyn Store) -> StoreResult<Vec<(TopicPartition, Checkpoint)>> {
    fitting_meta(store).await?;
    let mut rows = Vec::new();
    for lane in 0..store.lanes() {
        rows.extend(store.positions(lane).await?);
    }
    Ok(rows)
}

fn show(rows: &[(TopicPartition, Checkpoint)], json: bool) -> Outcome {
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(partition, checkpoint)| {
                serde_json::json!({
                    "topic": &*partition.topic, "partition": partition.partition, "position": checkpoint.position,
                })
            })
            .collect();
        return print_json(&rows.into());
    }
    let mut table = Table::new(&["partition", "position", "last record at", "its timestamp"]);
    for (partition, checkpoint) in rows {
        let time =
            |ms: i64| chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |time| time.to_rfc3339());
        let (offset, timestamp) = checkpoint
            .last
            .map_or(("-".to_owned(), "-".to_owned()), |last| (last.offset.to_string(), time(last.timestamp_ms)));
        table.row(vec![partition.to_string(), checkpoint.position.to_string(), offset, timestamp]);
    }
    table.print()
}

/// Moves a partition; where it stood.
async fn set(store: &dyn Store, partition: &TopicPartition, offset: i64) -> StoreResult<Option<Checkpoint>> {
    fitting_meta(store).await?;
    let lane = partition.lane(store.lanes());
    let stored = store.positions(lane).await?.get(partition).copied();
    if !store.set_position(partition, stored, Checkpoint::start(offset)).await? {
        return Err(StoreError::retry("the position moved meanwhile; stop the worker that counts it, or try again"));
    }
    Ok(stored)
}
