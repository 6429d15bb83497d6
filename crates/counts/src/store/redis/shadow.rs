//! A local copy of the registers of unique counts, so that elements which can raise nothing are not
//! sent.
//!
//! Only what this connection sent and the store acknowledged enters it. It is safe as long as the
//! store is at or above it: every batch that left something out carries the positions up to which
//! the shadow was built, and the script refuses it if a stored position is lower or a key it relied
//! on is gone.

use std::collections::{BTreeMap, HashMap};

use crate::mapping::{Elements, KeyWrite, Metric, WriteBatch, Writes};
use traqq_core::hll::{Hll, observe};
use traqq_core::model::{Bucket, TopicPartition};

pub struct Shadow {
    registers: HashMap<(Bucket, Metric), Hll>,
    built_to: BTreeMap<TopicPartition, i64>,
    bytes_max: usize,
}

impl Shadow {
    pub fn new(bytes_max: usize) -> Self {
        Self { registers: HashMap::new(), built_to: BTreeMap::new(), bytes_max }
    }

    /// The elements that could raise a register of the store; `None` when the shadow does not know
    /// the key.
    ///
    /// A key that it knows must still be there even if all elements are sent: it would be made anew
    /// with them alone, and the next batch would be trusted to a shadow that knows more.
    pub fn filter(&self, write: &KeyWrite, elements: &Elements) -> Option<Elements> {
        let registers = self.registers.get(&(write.bucket, write.metric.clone()))?;
        let mut kept = Elements::default();
        for element in elements.iter().filter(|element| registers.would_raise(observe(element))) {
            kept.push(element);
        }
        Some(kept)
    }

    /// The positions below which the shadow must not be trusted.
    pub fn built_to(&self) -> impl ExactSizeIterator<Item = (&TopicPartition, i64)> {
        self.built_to.iter().map(|(partition, position)| (partition, *position))
    }

    /// Takes an acknowledged batch in. Keys that the store left out because they had expired are
    /// never asked for again.
    pub fn absorb(&mut self, batch: &WriteBatch) {
        if self.bytes_max == 0 {
            return;
        }
        for write in &batch.writes {
            if let Writes::Unique(elements) = &write.writes {
                let registers = self.registers.entry((write.bucket, write.metric.clone())).or_default();
                elements.iter().for_each(|element| _ = registers.add(element));
            }
        }
        for span in &batch.spans {
            self.built_to.insert(span.partition.clone(), span.to.position);
        }
        if self.bytes() > self.bytes_max {
            self.registers.clear();
        }
    }

    fn bytes(&self) -> usize {
        self.registers.values().map(|registers| registers.heap_bytes() + 200).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Pattern;
    use traqq_core::model::BucketKind;

    fn write(elements: &[&str]) -> KeyWrite {
        let mut list = Elements::default();
        elements.iter().for_each(|element| list.push(element.as_bytes()));
        KeyWrite {
            bucket: Bucket { kind: BucketKind::Day, start: 0 },
            expires_at: None,
            metric: Metric::Unique { of: Pattern::parse("ip").unwrap() },
            writes: Writes::Unique(list),
        }
    }

    fn kept(shadow: &Shadow, elements: &[&str]) -> Option<usize> {
        let write = write(elements);
        let Writes::Unique(list) = &write.writes else { unreachable!() };
        shadow.filter(&write, list).map(|kept| kept.len())
    }

    #[test]
    fn only_acknowledged_elements_are_left_out() {
        let mut shadow = Shadow::new(1 << 20);
        assert_eq!(kept(&shadow, &["a", "b"]), None);
        shadow.absorb(&WriteBatch { spans: Vec::new(), writes: vec![write(&["a"])] });
        assert_eq!(kept(&shadow, &["a", "b"]), Some(1));
        assert_eq!(kept(&shadow, &["b"]), Some(1));
    }

    #[test]
    fn the_bound_on_memory_is_kept() {
        let mut shadow = Shadow::new(300);
        shadow.absorb(&WriteBatch { spans: Vec::new(), writes: vec![write(&["a"])] });
        assert_eq!(kept(&shadow, &["a"]), Some(0));
        let many: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        shadow.absorb(&WriteBatch { spans: Vec::new(), writes: vec![write(&many)] });
        assert_eq!(kept(&shadow, &["a"]), None);
    }
}
