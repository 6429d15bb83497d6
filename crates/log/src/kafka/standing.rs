//! Why nothing can be read, as far as it is known without asking: from what librdkafka counts every
//! second, the errors it reports, and what the brokers say of the topics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::Statistics;
use rdkafka::error::RDKafkaErrorCode;

use traqq_core::model::TopicPartition;

/// A leader that moves is there again sooner, and so is a group that shares its partitions anew.
const PATIENCE: Duration = Duration::from_secs(10);
/// A broker may take a reading back and allow it again; librdkafka says the former once and the
/// latter never.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
const REFUSED_AGAIN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Standing {
    /// No broker has a connection.
    is_away: bool,
    /// What was said last of a connection that failed.
    connection: Option<String>,
    /// Since when this is no member of its group, and what librdkafka does about it.
    outside: Option<(Instant, String)>,
    group: Option<String>,
    /// Partitions whose broker has no connection, or that have none.
    out_of_reach: BTreeMap<TopicPartition, (Instant, String)>,
    /// When a broker refused a reading, and when it was asked again.
    refused: Option<(Instant, Option<Instant>)>,
    /// What is wrong with the topics.
    topics: Vec<String>,
}

/// What the consumer knows itself.
pub struct Reading<'a> {
    pub brokers: &'a str,
    pub group: &'a str,
    /// Topics that are subscribed to; none as long as none is known.
    pub topics: Vec<&'a str>,
    pub has_partitions: bool,
    /// Those of them that are being fetched.
    pub partitions: Vec<&'a TopicPartition>,
}

impl Standing {
    pub fn observe(&mut self, statistics: &Statistics, now: Instant) {
        // The coordinator's own connection is one more to a broker that is listed as well.
        let brokers = || statistics.brokers.values().filter(|broker| broker.source != "logical");
        self.is_away = !statistics.brokers.values().any(|broker| broker.state == "UP");
        let Some(group) = &statistics.cgrp else { return };
        if group.join_state == "steady" {
            self.outside = None;
            self.group = None;
        } else {
            let since = self.outside.as_ref().map_or(now, |(since, _)| *since);
            self.outside = Some((since, group.join_state.clone()));
        }
        let mut out_of_reach = BTreeMap::new();
        for (topic, statistics) in &statistics.topics {
            for partition in statistics.partitions.values().filter(|partition| partition.desired) {
                let why = match (partition.broker, partition.leader) {
                    (-1, -1) => "it has no leader".to_owned(),
                    (-1, id) | (id, _) => {
                        if brokers().any(|broker| broker.nodeid == id && broker.state == "UP") {
                            continue;
                        }
                        let name = brokers().find(|broker| broker.nodeid == id).map(|broker| broker.nodename.clone());
                        format!("broker {id} ({}), which has it, cannot be reached", name.unwrap_or_default())
                    }
                };
                let partition = TopicPartition::new(topic, partition.partition);
                let since = self.out_of_reach.get(&partition).map_or(now, |(since, _)| *since);
                out_of_reach.insert(partition, (since, why));
            }
        }
        self.out_of_reach = out_of_reach;
    }

    pub const fn is_away(&self) -> bool {
        self.is_away
    }

    /// For another client, which has none yet.
    #[must_use]
    pub fn without_connection(self) -> Self {
        Self { is_away: true, connection: self.connection, topics: self.topics, ..Self::default() }
    }

    pub fn connection_failed(&mut self, why: &str) {
        self.connection = Some(why.to_owned());
    }

    /// The group does not take this member; librdkafka goes on trying.
    pub fn group_failed(&mut self, why: String) {
        self.group = Some(why);
    }

    pub fn topics_seen(&mut self, problems: Vec<String>) {
        self.topics = problems;
    }

    pub fn reading_refused(&mut self, now: Instant) {
        self.refused = Some((now, None));
    }

    /// Whether partitions are to be read once more to see if they may be.
    pub fn is_to_ask_again(&mut self, now: Instant) -> bool {
        match self.refused {
            Some((at, None)) if now - at >= REFUSED_EVERY => {
                self.refused = Some((at, Some(now)));
                true
            }
            Some((_, Some(asked))) if now - asked >= REFUSED_AGAIN_WITHIN => {
                self.refused = None;
                false
            }
            _ => false,
        }
    }

    pub fn why(&self, reading: &Reading<'_>, now: Instant) -> Option<String> {
        let Reading { brokers, group, topics, has_partitions, partitions } = reading;
        if self.is_away {
            let because = self.connection.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            return Some(format!("kafka {brokers}: no broker can be reached{because}"));
        }
        if let Some(problem) = self.topics.first() {
            let more = self.topics.len() - 1;
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            return Some(format!("kafka {brokers}: {problem}{more}"));
        }
        if self.refused.is_some() {
            let topics = topics.join(", ");
            return Some(format!("kafka {brokers}: this user may not read a topic; grant it READ on {topics}"));
        }
        if let Some((since, join_state)) = &self.outside
            && !has_partitions
            && !topics.is_empty()
        {
            if let Some(why) = &self.group {
                return Some(format!("kafka {brokers}: group {group:?}: {why}"));
            }
            if now - *since >= PATIENCE {
                let waited = (now - *since).as_secs();
                return Some(format!(
                    "kafka {brokers}: group {group:?} has not taken this worker in for {waited} s ({join_state})"
                ));
            }
        }
        partitions.iter().find_map(|partition| {
            let (since, why) = self.out_of_reach.get(*partition)?;
            (now - *since >= PATIENCE).then(|| format!("kafka {brokers}: {partition}: {why}"))
        })
    }
}

impl Standing {
    /// Which of these partitions cannot be read, and why. The others may be read all the same.
    pub fn unread(&self, partitions: &[&TopicPartition], now: Instant) -> Vec<(TopicPartition, String)> {
        let why = |partition: &TopicPartition| {
            if self.is_away {
                return Some("no broker can be reached".to_owned());
            }
            let (since, why) = self.out_of_reach.get(partition)?;
            (now - *since >= PATIENCE).then(|| why.clone())
        };
        partitions.iter().filter_map(|partition| Some(((*partition).clone(), why(partition)?))).collect()
    }
}

/// What to do when a group does not take a member; `None` for errors that are not of that kind.
pub const fn group_refusal(code: RDKafkaErrorCode) -> Option<&'static str> {
    Some(match code {
        RDKafkaErrorCode::InconsistentGroupProtocol => {
            "another member of this group uses another assignor or group protocol: choose another broker.kafka.group, or set \
             \"partition.assignment.strategy\" or \"group.protocol\" in broker.kafka.properties to what it uses"
        }
        RDKafkaErrorCode::GroupAuthorizationFailed => "grant this user READ on the group",
        RDKafkaErrorCode::GroupMaxSizeReached => {
            "the broker allows no more members (group.max.size): run fewer workers, or raise it there"
        }
        RDKafkaErrorCode::InvalidSessionTimeout => {
            "the broker allows no such \"session.timeout.ms\" (group.min.session.timeout.ms, group.max.session.timeout.ms): \
             set another one in broker.kafka.properties"
        }
        RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::UnreleasedInstanceId => {
            "another member has the same \"group.instance.id\": give each worker one of its own in broker.kafka.properties, or none"
        }
        RDKafkaErrorCode::UnsupportedAssignor => {
            "the broker has no such assignor: set another \"group.remote.assignor\" in broker.kafka.properties, or none"
        }
        RDKafkaErrorCode::InvalidGroupId => "set another broker.kafka.group",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Broker, ConsumerGroup, Partition, Topic};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn statistics(state: &str, join_state: &str, leader: i32) -> Statistics {
        let broker = |nodeid: i32, state: &str| Broker {
            nodeid,
            nodename: format!("b{nodeid}:9092"),
            state: state.to_owned(),
            source: "learned".to_owned(),
            ..Broker::default()
        };
        let partition = Partition { partition: 3, broker: leader, leader, desired: true, ..Partition::default() };
        let topic = Topic { partitions: [(3, partition)].into(), ..Topic::default() };
        Statistics {
            brokers: [("1".to_owned(), broker(1, state)), ("2".to_owned(), broker(2, "DOWN"))].into(),
            topics: [("t".to_owned(), topic)].into(),
            cgrp: Some(ConsumerGroup { join_state: join_state.to_owned(), ..ConsumerGroup::default() }),
            ..Statistics::default()
        }
    }

    fn why(standing: &Standing, partitions: &[TopicPartition], now: Instant) -> Option<String> {
        let has_partitions = !partitions.is_empty();
        let partitions = partitions.iter().collect();
        let reading = Reading { brokers: "b:9092", group: "g", topics: vec!["t"], has_partitions, partitions };
        standing.why(&reading, now)
    }

    #[test]
    fn what_keeps_a_worker_from_reading_is_said_and_what_passes_is_not() {
        let (mut standing, start) = (Standing::default(), Instant::now());
        let ours = [TopicPartition::new("t", 3)];
        standing.observe(&statistics("UP", "steady", 1), start);
        assert_eq!(why(&standing, &ours, start), None);
        assert_eq!(why(&standing, &[], start), None, "others have the partitions");

        standing.observe(&statistics("DOWN", "steady", 1), start);
        standing.connection_failed("authentication failed");
        assert!(why(&standing, &ours, start).unwrap().ends_with("no broker can be reached: authentication failed"));

        // A group that shares its partitions anew, and one that does not come to an end.
        standing.observe(&statistics("UP", "wait-join", 1), start);
        assert_eq!(why(&standing, &[], start + SECOND), None);
        assert_eq!(why(&standing, &ours, start + 20 * SECOND), None, "it keeps its partitions meanwhile");
        assert!(why(&standing, &[], start + 20 * SECOND).unwrap().contains("for 20 s (wait-join)"));
        standing.group_failed("another assignor".to_owned());
        assert!(why(&standing, &[], start + SECOND).unwrap().ends_with("group \"g\": another assignor"));
        standing.observe(&statistics("UP", "steady", 1), start + SECOND);
        assert_eq!(why(&standing, &[], start + 30 * SECOND), None);

        standing.topics_seen(vec!["there is no topic \"t\"".to_owned(), "nor another".to_owned()]);
        assert!(why(&standing, &[], start).unwrap().ends_with("there is no topic \"t\" (and 1 more)"));
    }

    #[test]
    fn a_partition_without_its_broker_is_said_after_a_while() {
        let (mut standing, start) = (Standing::default(), Instant::now());
        let ours = [TopicPartition::new("t", 3)];
        for (leader, text) in [(2, "broker 2 (b2:9092), which has it, cannot be reached"), (-1, "it has no leader")] {
            standing.observe(&statistics("UP", "steady", leader), start);
            assert_eq!(why(&standing, &ours, start + SECOND), None, "a leader that moves");
            assert!(why(&standing, &ours, start + 11 * SECOND).unwrap().ends_with(text));
            let other = TopicPartition::new("t", 4);
            let unread = standing.unread(&[&ours[0], &other], start + 11 * SECOND);
            assert_eq!(unread, [(ours[0].clone(), text.to_owned())]);
            assert_eq!(why(&standing, &[], start + 11 * SECOND), None, "it is another worker's");
        }
        standing.observe(&statistics("UP", "steady", 1), start + 12 * SECOND);
        assert_eq!(why(&standing, &ours, start + 30 * SECOND), None);
    }

    #[test]
    fn a_refused_reading_is_asked_for_again_until_nothing_refuses_it() {
        let (mut standing, start) = (Standing::default(), Instant::now());
        let ours = [TopicPartition::new("t", 3)];
        standing.observe(&statistics("UP", "steady", 1), start);
        standing.reading_refused(start);
        assert!(!standing.is_to_ask_again(start + SECOND));
        assert!(standing.is_to_ask_again(start + 10 * SECOND));
        standing.reading_refused(start + 11 * SECOND);
        assert!(!standing.is_to_ask_again(start + 16 * SECOND));
        assert!(why(&standing, &ours, start + 16 * SECOND).unwrap().contains("grant it READ on t"));
        assert!(standing.is_to_ask_again(start + 21 * SECOND));
        assert!(!standing.is_to_ask_again(start + 26 * SECOND));
        assert_eq!(why(&standing, &ours, start + 26 * SECOND), None);
    }
}
