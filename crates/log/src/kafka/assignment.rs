//! Partitions and offsets as librdkafka takes and gives them.

use std::collections::{BTreeMap, HashMap};

use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::Opening;
use traqq_core::model::TopicPartition;

pub(super) fn to_partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| TopicPartition::new(element.topic(), element.partition())).collect()
}

pub(super) fn to_list<'p>(partitions: impl IntoIterator<Item = &'p TopicPartition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    list
}

/// Eager: the assignment is replaced as a whole. What is opened begins where it is asked to, also
/// when it was sought before, which a new assignment undoes; the others go on from where they are.
pub(super) fn whole_assignment<'a>(
    open: &'a BTreeMap<TopicPartition, (u64, i64)>,
    openings: &'a [Opening],
) -> BTreeMap<&'a TopicPartition, i64> {
    let going_on = open.iter().map(|(partition, (_, next))| (partition, *next));
    going_on.chain(openings.iter().map(|opening| (&opening.partition, opening.offset))).collect()
}

pub(super) fn to_offsets<'a>(
    begin: impl IntoIterator<Item = (&'a TopicPartition, i64)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in begin {
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(offset))?;
    }
    Ok(list)
}

pub(super) fn offsets(list: &TopicPartitionList) -> HashMap<TopicPartition, i64> {
    let elements = list.elements();
    let known = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((TopicPartition::new(element.topic(), element.partition()), offset)),
        _ => None,
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that was sought went back to where it had been read to, and the records in between were
    /// never counted.
    #[test]
    fn a_new_assignment_undoes_no_seek() {
        let at = |number| TopicPartition::new("t", number);
        let opening = |number, offset| Opening { partition: at(number), offset, position: offset, generation: 2 };
        let open = BTreeMap::from([(at(0), (1, 1000)), (at(2), (1, 70))]);
        let openings = [opening(0, 499), opening(1, 5)];
        let assignment: Vec<(i32, i64)> = whole_assignment(&open, &openings)
            .iter()
            .map(|(partition, offset)| (partition.partition, *offset))
            .collect();
        assert_eq!(assignment, [(0, 499), (1, 5), (2, 70)]);
    }
}
