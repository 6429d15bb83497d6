//! What is measured of each partition, in Prometheus' text format. Written from the partitions that
//! this worker has, so that one which was given back takes its series with it: the recorder keeps
//! what it has seen once for ever.

use std::fmt::Write;

use super::status::PartitionStatus;
use traqq_core::metric::Definition;

use crate::names;

type Measure = fn(&PartitionStatus) -> f64;

const MEASURES: [(&str, Measure); 3] = [
    (names::POSITION, |status| status.position as f64),
    (names::LAG_RECORDS, |status| status.lag_records as f64),
    (names::LAG_SECONDS, |status| status.lag_seconds),
];

/// Of some projections, each with its partitions.
pub fn render(projections: &[(&str, Vec<PartitionStatus>)]) -> String {
    let mut text = String::new();
    for (name, measure) in MEASURES {
        if projections.iter().all(|(_, partitions)| partitions.is_empty()) {
            break;
        }
        let help =
            names::ALL.iter().find(|definition| definition.name == name).map_or("", |Definition { help, .. }| help);
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (projection, partitions) in projections {
            for status in partitions {
                let (topic, partition, value) = (escape(&status.topic), status.partition, measure(status));
                let _ = writeln!(
                    text,
                    "{name}{{projection=\"{projection}\",topic=\"{topic}\",partition=\"{partition}\"}} {value}"
                );
            }
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
        let text = render(&[("p", statuses.to_vec()), ("q", Vec::new())]);
        assert!(
            text.contains(
                "# TYPE traqq_position gauge\ntraqq_position{projection=\"p\",topic=\"a\\\"b\",partition=\"0\"} 7\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("traqq_position{projection=\"p\",topic=\"a\\\"b\",partition=\"3\"} 1700000000123\n"),
            "{text}"
        );
        assert!(text.contains("traqq_lag_seconds{projection=\"p\",topic=\"a\\\"b\",partition=\"3\"} 1.5\n"), "{text}");
        assert_eq!(render(&[("p", Vec::new())]), "");
    }
}
