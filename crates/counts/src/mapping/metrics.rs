//! The metrics of a mapping, and their names.

use super::{Metric, Rules};

/// Every metric of the rules.
pub fn metrics_of(rules: &Rules) -> Vec<Metric> {
    let mapping = &rules.mapping;
    let mut metrics: Vec<Metric> = Vec::with_capacity(mapping.patterns());
    metrics.extend(mapping.bitmap.iter().map(|of| Metric::Unique { of: of.clone() }));
    metrics.extend(mapping.bitmap_by.iter().map(|by| Metric::UniqueBy { of: by.of.clone(), by: by.key.clone() }));
    metrics.extend(mapping.add.iter().map(|of| Metric::Count { of: of.clone() }));
    metrics.extend(
        mapping.add_value.iter().map(|sum| Metric::Sum { of: sum.key.clone(), add_key: sum.add_key.as_str().into() }),
    );
    metrics.extend(mapping.top.iter().map(|of| Metric::Top { of: of.clone() }));
    metrics
}

/// One name for each metric of a mapping: `add:event~geo`, `add_value:amount:event`,
/// `bitmap_by:ip@geo`.
pub fn metric_name(metric: &Metric) -> String {
    match metric {
        Metric::Unique { of } | Metric::Count { of } | Metric::Top { of } => format!("{}:{of}", metric.kind()),
        Metric::Sum { of, add_key } => format!("add_value:{add_key}:{of}"),
        Metric::UniqueBy { of, by } => format!("bitmap_by:{of}@{by}"),
    }
}
