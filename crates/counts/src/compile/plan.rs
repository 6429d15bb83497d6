//! The mapping, compiled: which fields to extract, which combinations of their values to number,
//! and what to count under each.
//!
//! Combinations form a trie over the sorted fields of the patterns, so that `event~geo` and
//! `event~geo~os` share the work of `event~geo`. A node's value in an event is one number, its
//! *id*: 0 when a field is absent.

use std::sync::Arc;

use crate::mapping::{Metric, Pattern, ValidRules};
use traqq_core::decode::{EventReader, FieldId};
use traqq_core::model::Retention;

pub(super) type NodeId = usize;
pub(super) type SourceId = usize;

/// One field added to a combination.
pub(super) struct Node {
    /// `None` for a single field.
    pub parent: Option<NodeId>,
    pub field: FieldId,
}

/// What a unique count is over.
pub(super) struct Source {
    pub fields: Vec<FieldId>,
}

pub(super) struct UniqueUse {
    pub metric: Metric,
    pub source: SourceId,
}

pub(super) struct UniqueByUse {
    pub metric: Metric,
    pub source: SourceId,
    pub node: NodeId,
}

pub(super) struct CountUse {
    pub node: NodeId,
    /// A counter, a leaderboard, or both.
    pub metrics: Vec<Metric>,
}

pub(super) struct SumUse {
    pub node: NodeId,
    pub metric: Metric,
    /// Index into [`Plan::amounts`].
    pub amount: usize,
}

/// A mapping ready to run; shared by all fold threads.
pub struct Plan {
    pub rules: ValidRules,
    pub hash: String,
    pub reader: EventReader,
    /// Fields whose values become labels.
    pub(super) label_fields: Vec<FieldId>,
    /// Fields that are summed.
    pub(super) amounts: Vec<FieldId>,
    pub(super) nodes: Vec<Node>,
    pub(super) sources: Vec<Source>,
    pub(super) uniques: Vec<UniqueUse>,
    pub(super) unique_bys: Vec<UniqueByUse>,
    pub(super) counts: Vec<CountUse>,
    pub(super) sums: Vec<SumUse>,
    /// For each kind of bucket, how long it is kept after its end, in milliseconds; `None` for
    /// ever.
    pub(super) retention_ms: Vec<Option<i64>>,
    /// Whether an event could become more operations than it may.
    pub(super) must_count_metrics: bool,
}

impl Plan {
    pub fn new(rules: ValidRules) -> Self {
        let mut builder = Builder::default();
        let mapping = &rules.rules.mapping;
        let uniques = mapping
            .bitmap
            .iter()
            .map(|of| UniqueUse { metric: Metric::Unique { of: of.clone() }, source: builder.source(of) });
        let uniques = uniques.collect();
        let unique_bys = mapping.bitmap_by.iter().map(|by| UniqueByUse {
            metric: Metric::UniqueBy { of: by.of.clone(), by: by.key.clone() },
            source: builder.source(&by.of),
            node: builder.node(&by.key),
        });
        let unique_bys = unique_bys.collect();
        for of in &mapping.add {
            builder.count(of, Metric::Count { of: of.clone() });
        }
        for of in &mapping.top {
            builder.count(of, Metric::Top { of: of.clone() });
        }
        let sums = mapping.add_value.iter().map(|sum| SumUse {
            node: builder.node(&sum.key),
            metric: Metric::Sum { of: sum.key.clone(), add_key: sum.add_key.as_str().into() },
            amount: builder.amount(&sum.add_key),
        });
        let sums = sums.collect();
        let retention_ms = rules.kinds.iter().map(|&kind| match rules.rules.buckets.retention.of(kind) {
            Retention::Seconds(seconds) => Some(seconds * 1000),
            Retention::Forever => None,
        });
        Self {
            hash: rules.plan_hash(),
            reader: EventReader::new(&rules.rules.events, builder.names.iter().map(|name| &**name)),
            label_fields: builder.label_fields,
            amounts: builder.amounts,
            nodes: builder.nodes,
            sources: builder.sources,
            uniques,
            unique_bys,
            counts: builder.counts,
            sums,
            retention_ms: retention_ms.collect(),
            must_count_metrics: mapping.patterns() * rules.kinds.len() > rules.rules.events.max_metrics_per_event,
            rules,
        }
    }
}

#[derive(Default)]
struct Builder {
    names: Vec<Arc<str>>,
    label_fields: Vec<FieldId>,
    amounts: Vec<FieldId>,
    nodes: Vec<Node>,
    sources: Vec<Source>,
    counts: Vec<CountUse>,
}

impl Builder {
    fn field(&mut self, name: &str) -> FieldId {
        position_or_push(&mut self.names, |known| **known == *name, || name.into())
    }

    fn source(&mut self, of: &Pattern) -> SourceId {
        let fields: Vec<FieldId> = of.fields().map(|name| self.field(name)).collect();
        position_or_push(&mut self.sources, |known| known.fields == fields, || Source { fields: fields.clone() })
    }

    fn amount(&mut self, name: &str) -> usize {
        let field = self.field(name);
        position_or_push(&mut self.amounts, |known| *known == field, || field)
    }

    fn node(&mut self, pattern: &Pattern) -> NodeId {
        let mut parent = None;
        for name in pattern.fields() {
            let field = self.field(name);
            position_or_push(&mut self.label_fields, |known| *known == field, || field);
            let is_it = |node: &Node| node.parent == parent && node.field == field;
            parent = Some(position_or_push(&mut self.nodes, is_it, || Node { parent, field }));
        }
        parent.expect("a pattern has a field")
    }

    fn count(&mut self, pattern: &Pattern, metric: Metric) {
        let node = self.node(pattern);
        let index =
            position_or_push(&mut self.counts, |known| known.node == node, || CountUse { node, metrics: Vec::new() });
        self.counts[index].metrics.push(metric);
    }
}

fn position_or_push<T>(items: &mut Vec<T>, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> usize {
    items.iter().position(is_it).unwrap_or_else(|| {
        items.push(make());
        items.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Rules;

    fn plan(mapping: &str) -> Plan {
        let rules: Rules = serde_json::from_str(&format!(r#"{{"mapping":{{{mapping}}}}}"#)).unwrap();
        Plan::new(rules.validate().unwrap())
    }

    /// Patterns that begin alike share the work, and each field is looked for once.
    #[test]
    fn combinations_form_a_trie_over_sorted_fields() {
        // A mapping; fields that are looked for, nodes of the trie, sources of unique counts,
        // counters.
        for (mapping, fields, nodes, sources, counts) in [
            (r#""add":["event"]"#, 1, 1, 0, 1),
            (r#""add":["event","geo"]"#, 2, 3, 0, 3),
            (r#""add":["event~geo","event~geo~os"]"#, 3, 3, 0, 2),
            (r#""add":["geo~event","event~os"]"#, 3, 3, 0, 2),
            (r#""add":["event"],"top":["event"]"#, 1, 1, 0, 1),
            (r#""bitmap":["ip","ip~ua"],"bitmap_by":[{"key":"geo","of":"ip"}]"#, 3, 1, 2, 0),
            (r#""add_value":[{"key":"event","add_key":"n"},{"key":"geo","add_key":"n"}]"#, 3, 2, 0, 0),
        ] {
            let plan = plan(mapping);
            let own = plan.label_fields.len()
                + plan.amounts.len()
                + plan
                    .sources
                    .iter()
                    .flat_map(|source| &source.fields)
                    .collect::<std::collections::BTreeSet<_>>()
                    .len();
            assert_eq!(
                (own, plan.nodes.len(), plan.sources.len(), plan.counts.len()),
                (fields, nodes, sources, counts),
                "{mapping}"
            );
            assert!(plan.nodes.iter().enumerate().all(|(at, node)| node.parent.is_none_or(|parent| parent < at)));
        }
    }

    #[test]
    fn the_hash_is_that_of_the_rules_and_limits_are_looked_at_only_where_they_could_be_met() {
        let small = plan(r#""add":["a","b"]"#);
        assert_eq!(small.hash, small.rules.plan_hash());
        assert!(!small.must_count_metrics);
        let rules = r#"{"mapping":{"add":["a","b"]},"events":{"max_metrics_per_event":2}}"#;
        let rules: Rules = serde_json::from_str(rules).unwrap();
        assert!(Plan::new(rules.validate().unwrap()).must_count_metrics);
    }
}
