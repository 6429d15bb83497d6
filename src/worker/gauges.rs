//! What is measured of each partition, in Prometheus' text format. Written from the partitions that
//! this worker has, so that one which was given back takes its series with it: the recorder keeps
//! what it has seen once for ever.

use std::fmt::Write;

use super::status::PartitionStatus;
use crate::telemetry::names::{self, Definition};

type Measure = fn(&PartitionStatus) -> f64;

const MEASURES: [(&str, Measure); 3] = [
    (names::POSITION, |status| status.position as f64),
    (names::LAG_RECORDS, |status| status.lag_records as f64),
    (names::LAG_SECONDS, |status| status.lag_seconds),
];

pub fn render<'a>(partitions: &(impl Iterator<Item = &'a PartitionStatus> + Clone)) -> String {
    let mut text = String::new();
    for (name, measure) in MEASURES {
        if partitions.clone().next().is_none() {
            break;
        }
        let help =
            names::ALL.iter().find(|definition| definition.name == name).map_or("", |Definition { help, .. }| help);
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for status in partitions.clone() {
            let (topic, partition, value) = (escape(&status.topic), status.partition, measure(status));
            let _ = writeln!(text, "{name}{{topic=\"{topic}\",partition=\"{partition}\"}} {value}");
        }
        text.push('\n');
    }
    text
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_a_series_of_each_measure() {
        let status = |partition, position| PartitionStatus {
            topic: "a\"b".to_owned(),
            partition,
            position,
            lag_seconds: 1.5,
            ..PartitionStatus::default()
        };
        let statuses = [status(0, 7), status(3, 1_700_000_000_123)];
        let text = render(&statuses.iter());
        assert!(
            text.contains("# TYPE traqq_position gauge\ntraqq_position{topic=\"a\\\"b\",partition=\"0\"} 7\n"),
            "{text}"
        );
        assert!(text.contains("traqq_position{topic=\"a\\\"b\",partition=\"3\"} 1700000000123\n"), "{text}");
        assert!(text.contains("traqq_lag_seconds{topic=\"a\\\"b\",partition=\"3\"} 1.5\n"), "{text}");
        assert_eq!(render(&[].iter()), "");
    }
}
