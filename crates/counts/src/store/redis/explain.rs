//! A batch as the commands a person would type, each argument as `redis-cli` reads it. What the
//! commit script does is the same, in one step.

use crate::mapping::{KeyWrite, Metric, WriteBatch, Writes};
use crate::store::keys::Keys;
use traqq_core::model::escape::redis_cli as quote;

/// One command a line; the expiry of each key is not repeated.
pub fn commands(prefix: &str, batch: &WriteBatch) -> Vec<String> {
    let keys = Keys::new(prefix, None);
    let mut lines = Vec::new();
    for write in &batch.writes {
        explain(&keys, write, &mut lines);
    }
    let mut tracked: Vec<String> = Vec::new();
    for write in &batch.writes {
        let tracking = keys.tracking(write.bucket);
        if !tracked.contains(&tracking) {
            lines.push(format!("SADD    {} <the keys above>", quote(&tracking)));
            tracked.push(tracking);
        }
    }
    lines
}

fn explain(keys: &Keys, write: &KeyWrite, lines: &mut Vec<String>) {
    let names: Vec<String> = keys.of_metric(write.bucket, &write.metric).iter().map(|name| quote(name)).collect();
    let show = |bytes: &[u8]| quote(&String::from_utf8_lossy(bytes));
    match (&write.writes, &write.metric) {
        (Writes::Unique(elements), _) => {
            lines.extend(elements.iter().map(|element| format!("PFADD   {} {}", names[0], show(element))));
        }
        (Writes::UniqueBy(values), Metric::UniqueBy { of, by }) => {
            for (label, elements) in values {
                lines.push(format!("SADD    {} {}", names[0], quote(label)));
                let key = quote(&keys.unique_by(write.bucket, of, by, label));
                lines.extend(elements.iter().map(|element| format!("PFADD   {key} {}", show(element))));
            }
        }
        (Writes::Count(values), _) => {
            lines.extend(values.iter().map(|(label, count)| format!("HINCRBY {} {} {count}", names[0], quote(label))));
        }
        (Writes::Top(values), _) => {
            lines.extend(values.iter().map(|(label, count)| format!("ZINCRBY {} {count} {}", names[0], quote(label))));
        }
        (Writes::Sum(values, totals), _) => {
            for (label, sum, count) in values {
                lines.push(format!("HINCRBY {} {} {sum}", names[0], quote(label)));
                lines.push(format!("HINCRBY {} {} {count}", names[1], quote(label)));
            }
            lines.push(format!(
                "HINCRBY {} sum {}     (and count {}, min {}, max {})",
                names[2], totals.sum, totals.count, totals.min, totals.max
            ));
        }
        (Writes::UniqueBy(_), _) => unreachable!("writes fit their metric"),
    }
}
