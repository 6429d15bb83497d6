//! A reader: all partitions, always; blocks from memory when they are fresh, else from disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::block::Block;
use super::rows;
use super::shared::{Shared, TOPIC};
use crate::{BrokerResult, Consumer, Event, Mark, Opening, Start, Watermarks};
use traqq_core::model::{RecordBatch, TopicPartition};
use traqq_disk::{DatabaseResult, Open};

pub struct LocalConsumer {
    shared: Arc<Shared>,
    /// Under which its positions are kept; `None` for the first reader.
    name: Option<String>,
    /// Which of this process's readers it is.
    index: u64,
    is_offered: bool,
    is_paused: bool,
    /// Next offset, and the generation.
    open: BTreeMap<i32, (i64, u64)>,
    /// The partition that is read first in the next poll.
    turn: usize,
}

impl LocalConsumer {
    pub(super) fn new(shared: Arc<Shared>, name: Option<String>) -> Self {
        let index = shared.lock().add_reader();
        Self { shared, name, index, is_offered: false, is_paused: false, open: BTreeMap::new(), turn: 0 }
    }

    fn all(&self) -> Vec<TopicPartition> {
        (0..self.shared.config.partitions).map(|number| TopicPartition::new(TOPIC, number)).collect()
    }

    /// Reads blocks of one partition until `bytes_max`; `true` when an offset does not exist.
    fn fetch(&mut self, number: i32, bytes_max: usize, events: &mut Vec<Event>) -> DatabaseResult<usize> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some((next, generation)) = self.open.get(&number).copied() else { break };
            let (open, mut inner) = self.shared.current()?;
            let partition = &inner.partitions[number as usize];
            if next < partition.low || next > partition.next {
                self.open.remove(&number);
                inner.set_next(self.index, number, None);
                events.push(Event::OutOfRange);
                break;
            }
            if next == partition.next {
                break;
            }
            let end = partition.next;
            let fresh = inner.fresh(self.index, number, next);
            drop(inner);
            let found = match fresh {
                Some(fresh) => Some(fresh),
                None => self.read(&open, number, next)?,
            };
            let name = TopicPartition::new(TOPIC, number);
            let batch = match found {
                Some((first, block)) => {
                    let mut batch = block.into_batch(name, generation, first);
                    batch.drop_front((next - first).max(0) as usize);
                    batch
                }
                // Offsets that were reserved, and lost or never used.
                None => {
                    let mut batch = RecordBatch::new(name, generation);
                    batch.position = end;
                    batch
                }
            };
            self.open.insert(number, (batch.position, generation));
            bytes += batch.bytes();
            events.push(Event::Records(batch));
        }
        Ok(bytes)
    }

    /// The block that holds `offset`, or the first one behind it.
    fn read(&self, open: &Arc<Open>, number: i32, offset: i64) -> DatabaseResult<Option<(i64, Block)>> {
        let range = rows::block(number, offset)..=rows::block(number, i64::MAX);
        let Some(row) = open.tree(rows::TREE).range(range).next() else { return Ok(None) };
        let (key, value) = row.into_inner().map_err(|error| self.shared.database.failed(open, error))?;
        let block = Block::decode(&value).ok_or_else(|| self.shared.damaged())?;
        let last = rows::block_last(&key).ok_or_else(|| self.shared.damaged())?;
        Ok(Some((last + 1 - i64::from(block.count), block)))
    }

    /// The first offset of the first block that arrived at or after an instant.
    fn offset_at(&self, number: i32, ms: i64) -> DatabaseResult<i64> {
        let (open, inner) = self.shared.current()?;
        let end = inner.partitions[number as usize].next;
        drop(inner);
        for row in open.tree(rows::TREE).prefix(rows::block_prefix(number)) {
            let (key, value) = row.into_inner().map_err(|error| self.shared.database.failed(&open, error))?;
            let (arrival, count) = Block::head(&value).ok_or_else(|| self.shared.damaged())?;
            if arrival >= ms {
                return Ok(rows::block_last(&key).ok_or_else(|| self.shared.damaged())? + 1 - i64::from(count));
            }
        }
        Ok(end)
    }

    fn mark_key(&self, partition: &TopicPartition) -> Vec<u8> {
        let number = partition.partition;
        self.name.as_ref().map_or_else(|| rows::mark(number), |name| rows::reader_mark(name, number))
    }

    fn stored_mark(&self, partition: &TopicPartition) -> DatabaseResult<Option<Mark>> {
        let open = self.shared.database.get()?;
        let row = open.tree(rows::TREE).get(self.mark_key(partition));
        let row = row.map_err(|error| self.shared.database.failed(&open, error))?;
        row.map(|row| {
            let (position, note) = rows::parse_mark(&row).ok_or_else(|| self.shared.damaged())?;
            let note = String::from_utf8_lossy(note).into_owned();
            Ok(Mark { partition: partition.clone(), position, note })
        })
        .transpose()
    }
}

impl Consumer for LocalConsumer {
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>> {
        if !self.is_offered {
            self.is_offered = true;
            return Ok(vec![Event::Assigned(self.all())]);
        }
        let mut events = Vec::new();
        if !self.is_paused {
            let numbers: Vec<i32> = self.open.keys().copied().collect();
            let mut bytes = 0;
            self.turn = (self.turn + 1) % numbers.len().max(1);
            for number in numbers.iter().cycle().skip(self.turn).take(numbers.len()) {
                if bytes >= bytes_max {
                    break;
                }
                match self.fetch(*number, bytes_max - bytes, &mut events) {
                    Ok(fetched) => bytes += fetched,
                    Err(error) if events.is_empty() => return Err(error.into()),
                    // What was taken is handed over; the next poll meets the error again.
                    Err(_) => break,
                }
            }
        }
        if events.is_empty() {
            let (_, inner) = self.shared.current()?;
            let is_behind = |(number, (next, _)): (&i32, &(i64, u64))| *next < inner.partitions[*number as usize].next;
            if self.is_paused || !self.open.iter().any(is_behind) {
                self.shared.wait(inner, timeout);
            }
        }
        Ok(events)
    }

    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()> {
        let mut inner = self.shared.lock();
        for opening in openings {
            let number = opening.partition.partition;
            self.open.insert(number, (opening.offset, opening.generation));
            inner.set_next(self.index, number, Some(opening.offset));
        }
        Ok(())
    }

    fn halt(&mut self, partition: &TopicPartition) {
        self.open.remove(&partition.partition);
        self.shared.lock().set_next(self.index, partition.partition, None);
    }

    fn release(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|partition| self.halt(partition));
    }

    fn pause(&mut self, paused: bool) {
        self.is_paused = paused;
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks> {
        self.shared.current()?.1.watermarks(partition)
    }

    fn ends(&self) -> Vec<(TopicPartition, i64)> {
        let Ok((_, inner)) = self.shared.current() else { return Vec::new() };
        self.all().into_iter().zip(&inner.partitions).map(|(name, partition)| (name, partition.next)).collect()
    }

    fn commit(&mut self, marks: &[Mark], _wait: bool) -> BrokerResult<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let open = self.shared.database.get()?;
        let mut batch = open.batch();
        for mark in marks {
            let row = [&mark.position.to_be_bytes(), mark.note.as_bytes()].concat();
            batch.insert(open.tree(rows::TREE), self.mark_key(&mark.partition), row);
        }
        Ok(self.shared.database.commit(&open, batch, false)?)
    }

    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>> {
        Ok(self.all())
    }

    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>> {
        let start_of = |partition: &TopicPartition| {
            let watermarks = self.shared.current()?.1.watermarks(partition)?;
            Ok(match start {
                Start::Earliest => watermarks.low,
                Start::Latest => watermarks.high,
                Start::Committed => self.stored_mark(partition)?.map_or(watermarks.low, |mark| mark.position),
                Start::TimeMs(ms) => self.offset_at(partition.partition, ms)?,
            })
        };
        partitions.iter().map(start_of).collect()
    }

    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>> {
        let marks: DatabaseResult<Vec<Option<Mark>>> = partitions.iter().map(|name| self.stored_mark(name)).collect();
        Ok(marks?.into_iter().flatten().collect())
    }

    fn close(&mut self) {
        self.open.clear();
        if let Some(open) = self.shared.lock().readers.get_mut(&self.index) {
            open.clear();
        }
    }
}

impl Drop for LocalConsumer {
    fn drop(&mut self) {
        self.shared.lock().readers.remove(&self.index);
    }
}
