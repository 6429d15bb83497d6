//! The reference broker: topics, a group and its rebalances in one process's memory.
//!
//! Partitions move as in a cooperative group: an owner is asked to give back what it has too much,
//! and only then, or when the group has lost patience with it, does somebody else get it. A member
//! that was expired goes on reading until it notices: a zombie.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;

use super::{
    BrokerError, BrokerResult, Consumer, Event, Mark, Message, Opening, ProduceError, Producer, Start, Watermarks,
};
use traqq_core::model::{RecordBatch, TopicPartition};

#[derive(Clone)]
struct Stored {
    timestamp_ms: i64,
    message: Message,
    /// A control or aborted record: takes an offset and is never delivered.
    is_hidden: bool,
}

#[derive(Default)]
struct Partition {
    low: i64,
    records: Vec<Stored>,
}

impl Partition {
    fn high(&self) -> i64 {
        self.low + self.records.len() as i64
    }
}

#[derive(Default)]
struct Inner {
    partitions: BTreeMap<TopicPartition, Partition>,
    members: BTreeSet<u64>,
    owners: BTreeMap<TopicPartition, u64>,
    next_member: u64,
    marks: BTreeMap<TopicPartition, Mark>,
    dead_letters: Vec<Message>,
    silent: BTreeSet<TopicPartition>,
}

impl Inner {
    fn answers(&self, partition: &TopicPartition) -> BrokerResult<()> {
        if self.silent.contains(partition) {
            return Err(BrokerError::retry(format!("{partition} has no leader")));
        }
        Ok(())
    }
}

#[derive(Clone, Default)]
pub struct MemoryBroker {
    inner: Arc<Mutex<Inner>>,
}

impl MemoryBroker {
    pub fn new(topic: &str, partitions: i32) -> Self {
        let broker = Self::default();
        for partition in 0..partitions {
            broker.lock().partitions.insert(TopicPartition::new(topic, partition), Partition::default());
        }
        broker
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Appends a record; returns its offset.
    pub fn append(&self, partition: &TopicPartition, timestamp_ms: i64, value: &[u8]) -> i64 {
        let message = Message { key: None, value: Some(value.to_vec()), headers: Vec::new(), timestamp_ms: None };
        self.push(partition, Stored { timestamp_ms, message, is_hidden: false })
    }

    /// Appends an offset that no consumer will see.
    pub fn append_hidden(&self, partition: &TopicPartition) -> i64 {
        let message = Message { key: None, value: None, headers: Vec::new(), timestamp_ms: None };
        self.push(partition, Stored { timestamp_ms: 0, message, is_hidden: true })
    }

    fn push(&self, partition: &TopicPartition, stored: Stored) -> i64 {
        let mut inner = self.lock();
        let log = inner.partitions.entry(partition.clone()).or_default();
        log.records.push(stored);
        log.high() - 1
    }

    /// Removes records below `low`, as retention does.
    pub fn trim(&self, partition: &TopicPartition, low: i64) {
        let mut inner = self.lock();
        let log = inner.partitions.get_mut(partition).expect("a partition of this broker");
        let count = (low - log.low).clamp(0, log.records.len() as i64);
        log.records.drain(..count as usize);
        log.low += count;
    }

    /// Deletes a partition and makes an empty one of the same name.
    pub fn recreate(&self, partition: &TopicPartition) {
        self.lock().partitions.insert(partition.clone(), Partition::default());
    }

    /// Whether the partition has no leader: where it begins and ends is not answered.
    pub fn set_silent(&self, partition: &TopicPartition, silent: bool) {
        let mut inner = self.lock();
        if silent {
            inner.silent.insert(partition.clone())
        } else {
            inner.silent.remove(partition)
        };
    }

    pub fn dead_letters(&self) -> Vec<Message> {
        self.lock().dead_letters.clone()
    }

    pub fn marks(&self) -> Vec<Mark> {
        self.lock().marks.values().cloned().collect()
    }

    /// The offsets of the records whose values are like this.
    pub fn offsets_where(&self, partition: &TopicPartition, is_it: impl Fn(&[u8]) -> bool) -> Vec<i64> {
        let inner = self.lock();
        let log = &inner.partitions[partition];
        let offsets = (log.low..).zip(&log.records);
        let found = offsets.filter(|(_, stored)| stored.message.value.as_deref().is_some_and(&is_it));
        found.map(|(offset, _)| offset).collect()
    }

    pub fn high(&self, partition: &TopicPartition) -> i64 {
        self.lock().partitions[partition].high()
    }

    /// The group stops waiting for this member, which does not know.
    pub fn expire(&self, member: u64) {
        let mut inner = self.lock();
        inner.members.remove(&member);
        inner.owners.retain(|_, owner| *owner != member);
    }

    pub fn consumer(&self) -> MemoryConsumer {
        let mut inner = self.lock();
        inner.next_member += 1;
        let member = inner.next_member;
        inner.members.insert(member);
        MemoryConsumer {
            broker: self.clone(),
            member,
            offered: BTreeSet::new(),
            asked_back: BTreeSet::new(),
            open: BTreeMap::new(),
            is_paused: false,
        }
    }
}

impl Inner {
    /// The partitions a member should have: every n-th of the sorted ones.
    fn target(&self, member: u64) -> BTreeSet<TopicPartition> {
        let Some(rank) = self.members.iter().position(|known| *known == member) else { return BTreeSet::new() };
        self.partitions.keys().skip(rank).step_by(self.members.len()).cloned().collect()
    }
}

pub struct MemoryConsumer {
    broker: MemoryBroker,
    member: u64,
    offered: BTreeSet<TopicPartition>,
    asked_back: BTreeSet<TopicPartition>,
    /// Next offset to deliver, and the generation.
    open: BTreeMap<TopicPartition, (i64, u64)>,
    is_paused: bool,
}

impl MemoryConsumer {
    pub fn member(&self) -> u64 {
        self.member
    }

    fn rebalance(&mut self, inner: &mut Inner) -> Vec<Event> {
        let mut events = Vec::new();
        let (lost, held): (Vec<_>, Vec<_>) =
            self.offered.iter().cloned().partition(|partition| inner.owners.get(partition) != Some(&self.member));
        if inner.members.insert(self.member) || !lost.is_empty() {
            for partition in &lost {
                self.offered.remove(partition);
                self.asked_back.remove(partition);
            }
            events.push(Event::Revoked { partitions: lost, lost: true });
        }
        let target = inner.target(self.member);
        let too_much: Vec<TopicPartition> = held
            .into_iter()
            .filter(|partition| !target.contains(partition) && !self.asked_back.contains(partition))
            .collect();
        if !too_much.is_empty() {
            self.asked_back.extend(too_much.iter().cloned());
            events.push(Event::Revoked { partitions: too_much, lost: false });
        }
        let free: Vec<TopicPartition> =
            target.into_iter().filter(|partition| !inner.owners.contains_key(partition)).collect();
        if !free.is_empty() {
            for partition in &free {
                inner.owners.insert(partition.clone(), self.member);
                self.offered.insert(partition.clone());
            }
            events.push(Event::Assigned(free));
        }
        events
    }

    fn fetch(&mut self, inner: &Inner, bytes_max: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let mut bytes = 0;
        for (partition, (next, generation)) in &mut self.open {
            let Some(log) = inner.partitions.get(partition) else { continue };
            if *next < log.low || *next > log.high() {
                events.push(Event::OutOfRange);
                continue;
            }
            let mut batch = RecordBatch::new(partition.clone(), *generation);
            for (index, stored) in log.records[(*next - log.low) as usize..].iter().enumerate() {
                if bytes >= bytes_max {
                    break;
                }
                let offset = *next + index as i64;
                if !stored.is_hidden {
                    let message = &stored.message;
                    batch.push(offset, stored.timestamp_ms, message.key.as_deref(), message.value.as_deref());
                    message.headers.iter().for_each(|(name, value)| batch.push_header((name, value.as_deref())));
                    bytes += message.value.as_ref().map_or(0, Vec::len) + 1;
                }
                batch.position = offset + 1;
            }
            if batch.position > *next {
                *next = batch.position;
                events.push(Event::Records(batch));
            }
        }
        events
    }
}

impl Consumer for MemoryConsumer {
    fn poll(&mut self, timeout: Duration, bytes_max: usize) -> BrokerResult<Vec<Event>> {
        let broker = self.broker.clone();
        let mut inner = broker.lock();
        let mut events = self.rebalance(&mut inner);
        if !self.is_paused {
            events.extend(self.fetch(&inner, bytes_max));
        }
        drop(inner);
        if events.is_empty() {
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
        }
        Ok(events)
    }

    fn open(&mut self, openings: &[Opening]) -> BrokerResult<()> {
        for opening in openings {
            self.open.insert(opening.partition.clone(), (opening.offset, opening.generation));
        }
        Ok(())
    }

    fn halt(&mut self, partition: &TopicPartition) {
        self.open.remove(partition);
    }

    fn release(&mut self, partitions: &[TopicPartition]) {
        let mut inner = self.broker.lock();
        for partition in partitions {
            self.open.remove(partition);
            self.offered.remove(partition);
            self.asked_back.remove(partition);
            if inner.owners.get(partition) == Some(&self.member) {
                inner.owners.remove(partition);
            }
        }
    }

    fn pause(&mut self, paused: bool) {
        self.is_paused = paused;
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> BrokerResult<Watermarks> {
        let inner = self.broker.lock();
        inner.answers(partition)?;
        let log = &inner.partitions[partition];
        Ok(Watermarks { low: log.low, high: log.high() })
    }

    fn ends(&self) -> Vec<(TopicPartition, i64)> {
        let inner = self.broker.lock();
        inner.partitions.iter().map(|(partition, log)| (partition.clone(), log.high())).collect()
    }

    fn commit(&mut self, marks: &[Mark], _wait: bool) -> BrokerResult<()> {
        let mut inner = self.broker.lock();
        for mark in marks {
            inner.marks.insert(mark.partition.clone(), mark.clone());
        }
        Ok(())
    }

    fn partitions(&mut self) -> BrokerResult<Vec<TopicPartition>> {
        Ok(self.broker.lock().partitions.keys().cloned().collect())
    }

    fn starts(&mut self, start: Start, partitions: &[TopicPartition]) -> BrokerResult<Vec<i64>> {
        let inner = self.broker.lock();
        partitions.iter().try_for_each(|partition| inner.answers(partition))?;
        let start_of = |partition: &TopicPartition| {
            let log = &inner.partitions[partition];
            match start {
                Start::Earliest => log.low,
                Start::Latest => log.high(),
                Start::Committed => inner.marks.get(partition).map_or(log.low, |mark| mark.position),
                Start::TimeMs(ms) => {
                    let index = log.records.iter().position(|stored| stored.timestamp_ms >= ms);
                    index.map_or(log.high(), |index| log.low + index as i64)
                }
            }
        };
        Ok(partitions.iter().map(start_of).collect())
    }

    fn marks(&mut self, partitions: &[TopicPartition]) -> BrokerResult<Vec<Mark>> {
        let inner = self.broker.lock();
        Ok(partitions.iter().filter_map(|partition| inner.marks.get(partition).cloned()).collect())
    }

    fn close(&mut self) {
        let mut inner = self.broker.lock();
        inner.members.remove(&self.member);
        inner.owners.retain(|_, owner| *owner != self.member);
    }
}

#[async_trait]
impl Producer for MemoryBroker {
    async fn send(&self, message: &Message) -> Result<(), ProduceError> {
        self.lock().dead_letters.push(message.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(consumer: &mut MemoryConsumer) -> Vec<String> {
        let events = consumer.poll(Duration::ZERO, 1 << 20).unwrap();
        let show = |event: &Event| match event {
            Event::Records(batch) => format!("{}:{}..{}", batch.partition, batch.len(), batch.position),
            Event::Assigned(partitions) => format!("+{}", partitions.len()),
            Event::Revoked { partitions, lost } => format!("-{}{}", partitions.len(), if *lost { "!" } else { "" }),
            Event::OutOfRange => "out of range".to_owned(),
            Event::Trouble(text) | Event::CommitFailed(text) => text.clone(),
        };
        events.iter().map(show).collect()
    }

    #[test]
    fn partitions_move_when_they_are_released() {
        let broker = MemoryBroker::new("t", 4);
        let mut first = broker.consumer();
        assert_eq!(poll(&mut first), ["+4"]);
        let mut second = broker.consumer();
        assert_eq!(poll(&mut second), [""; 0]);
        assert_eq!(poll(&mut first), ["-2"]);
        first.release(&[TopicPartition::new("t", 1), TopicPartition::new("t", 3)]);
        assert_eq!(poll(&mut second), ["+2"]);
    }

    #[test]
    fn hidden_records_move_the_position() {
        let broker = MemoryBroker::new("t", 1);
        let partition = TopicPartition::new("t", 0);
        broker.append(&partition, 0, b"x");
        broker.append_hidden(&partition);
        let mut consumer = broker.consumer();
        poll(&mut consumer);
        consumer.open(&[Opening { partition: partition.clone(), offset: 0, position: 0, generation: 1 }]).unwrap();
        assert_eq!(poll(&mut consumer), ["t/0:1..2"]);
        broker.append_hidden(&partition);
        assert_eq!(poll(&mut consumer), ["t/0:0..3"]);
    }
}
