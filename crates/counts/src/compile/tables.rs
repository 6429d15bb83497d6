//! The tables a fold works on. Each numbers what it has seen from 1 on, in the order of first
//! occurrence; 0 means absent. Clearing keeps the memory, so that a folder that has warmed up
//! allocates next to nothing.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::mapping::Elements;
use traqq_core::hll::{Hll, Observation};

/// Spreads a 64-bit key: the two halves of a 128-bit product, folded.
#[inline]
const fn spread(key: u64) -> u64 {
    let product = (key ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xf39c_c060_5ced_c835_u128;
    (product >> 64) as u64 ^ product as u64
}

pub const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// Labels of one field, numbered.
#[derive(Default)]
pub struct Symbols {
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    text: String,
    ends: Vec<u32>,
}

impl Symbols {
    pub fn id(&mut self, label: &str) -> u32 {
        let hash = self.hasher.hash_one(label.as_bytes());
        let (text, ends, hasher) = (&self.text, &self.ends, &self.hasher);
        let found = self.table.find(hash, |&id| slice(text, ends, id) == label);
        if let Some(&id) = found {
            return id;
        }
        let id = ends.len() as u32 + 1;
        self.table.insert_unique(hash, id, |&id| hasher.hash_one(slice(text, ends, id).as_bytes()));
        self.text.push_str(label);
        self.ends.push(self.text.len() as u32);
        id
    }

    pub fn label(&self, id: u32) -> &str {
        slice(&self.text, &self.ends, id)
    }

    pub fn clear(&mut self) {
        self.table.clear();
        self.text.clear();
        self.ends.clear();
    }

    pub fn bytes(&self) -> usize {
        self.text.len() + self.ends.len() * 16
    }
}

#[inline]
fn slice<'t>(text: &'t str, ends: &[u32], id: u32) -> &'t str {
    let index = id as usize - 1;
    let start = if index == 0 { 0 } else { ends[index - 1] as usize };
    &text[start..ends[index] as usize]
}

/// Things found by a 64-bit key.
pub struct Keyed<T> {
    table: HashTable<u32>,
    items: Vec<(u64, T)>,
}

impl<T> Default for Keyed<T> {
    fn default() -> Self {
        Self { table: HashTable::new(), items: Vec::new() }
    }
}

impl<T> Keyed<T> {
    /// The index of a key's item, and whether it was made just now.
    pub fn index_or_insert(&mut self, key: u64, make: impl FnOnce() -> T) -> (usize, bool) {
        let hash = spread(key);
        let items = &self.items;
        if let Some(&index) = self.table.find(hash, |&index| items[index as usize].0 == key) {
            return (index as usize, false);
        }
        let index = items.len();
        self.table.insert_unique(hash, index as u32, |&index| spread(items[index as usize].0));
        self.items.push((key, make()));
        (index, true)
    }

    pub fn item_mut(&mut self, index: usize) -> &mut T {
        &mut self.items[index].1
    }

    /// In the order of first occurrence.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.items.iter().map(|(key, item)| (*key, item))
    }

    pub fn drain(&mut self) -> impl Iterator<Item = (u64, T)> {
        self.table.clear();
        self.items.drain(..)
    }

    pub fn key(&self, id: u32) -> u64 {
        self.items[id as usize - 1].0
    }

    pub fn clear(&mut self) {
        self.table.clear();
        self.items.clear();
    }
}

/// The elements of one HyperLogLog that raised a register of this batch. An element that did not
/// could not raise one in the store either, which has the others by then.
#[derive(Default)]
pub struct UniqueCell {
    pub seen: u64,
    registers: Hll,
    pub elements: Elements,
}

impl UniqueCell {
    /// Whether the element must be kept, to be passed to `elements`.
    pub fn raise(&mut self, observation: Observation) -> bool {
        self.seen += 1;
        self.registers.raise(observation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_numbered_in_order_of_first_occurrence() {
        let mut symbols = Symbols::default();
        assert_eq!(["a", "b", "", "a", "b"].map(|label| symbols.id(label)), [1, 2, 3, 1, 2]);
        assert_eq!([1, 2, 3].map(|id| symbols.label(id).to_owned()), ["a", "b", ""]);
        symbols.clear();
        assert_eq!(symbols.id("b"), 1);
    }

    #[test]
    fn a_million_keys_stay_apart() {
        let mut keyed = Keyed::default();
        for high in 0..1000 {
            for low in 0..1000 {
                assert_eq!(keyed.index_or_insert(pair(high, low), || ()), ((high * 1000 + low) as usize, true));
            }
        }
        assert_eq!(keyed.index_or_insert(pair(999, 999), || ()), (999_999, false));
    }
}
