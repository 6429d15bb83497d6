//! Keys as a whole: listing them, writing what another store held, and letting them live longer.

use std::collections::HashMap;

use super::Inner;
use super::rows::{self, KeyRow, SumTotals, Value};
use crate::mapping::metrics_of;
use crate::mapping::{Metric, OTHER};
use crate::store::{Contents, KeyDump, Quarantined, StoreResult, StoredKey};
use traqq_core::model::{Bucket, BucketKind};

impl Inner {
    pub(super) fn stored_keys(&self) -> StoreResult<Vec<StoredKey>> {
        let (_, known) = self.current()?;
        let Some(meta) = &known.meta else { return Ok(Vec::new()) };
        let metrics = metrics_of(&meta.valid_rules()?.rules);
        drop(known);
        let now = (self.clock)();
        let mut of_bucket: HashMap<Bucket, HashMap<String, Metric>> = HashMap::new();
        let mut keys = Vec::new();
        for (name, row) in self.index.rows() {
            let Some(bucket) = bucket_of(&name).filter(|_| !row.has_expired(now)) else { continue };
            let names = of_bucket.entry(bucket).or_insert_with(|| {
                metrics.iter().map(|metric| (self.key_name(bucket, metric), metric.clone())).collect()
            });
            if let Some(metric) = names.get(&*name) {
                keys.push(StoredKey { bucket, metric: metric.clone(), expires_at: row.expires_at });
            }
        }
        keys.sort_by(|left, right| (left.bucket, &left.metric).cmp(&(right.bucket, &right.metric)));
        Ok(keys)
    }

    pub(super) fn restore(&self, keys: &[KeyDump]) -> StoreResult<()> {
        let _writing = self.writing();
        for KeyDump { key, contents } in keys {
            let name = self.key_name(key.bucket, &key.metric);
            let open = self.database.get()?;
            self.remove_key(&open, &name)?;
            let number = self.known(&open)?.next_number;
            let mut row = KeyRow { number, expires_at: key.expires_at, values: 0, totals: SumTotals::default() };
            let mut batch = open.batch();
            let mut put = |label: &str, value: Vec<u8>| {
                row.values += u32::from(label != OTHER);
                batch.insert(open.tree(rows::TREE), rows::value(number, label), value);
            };
            match contents {
                Contents::Counts(values) => values.iter().for_each(|(label, count)| put(label, count.encode())),
                Contents::Sums(values, _) => {
                    values.iter().for_each(|(label, sum, count)| put(label, (*sum, *count).encode()));
                }
                Contents::Unique(registers) => put("", registers.encode()),
                Contents::UniqueBy(values) => {
                    values.iter().for_each(|(label, registers)| put(label, registers.encode()));
                }
            }
            if let Contents::Sums(_, [sum, count, min, max]) = contents {
                row.totals = SumTotals { sum: *sum, count: *count, bounds: Some((*min, *max)) };
            }
            batch.insert(open.tree(rows::TREE), rows::NEXT, (number + 1).to_le_bytes());
            batch.insert(open.tree(rows::TREE), rows::named(rows::KEYS, &name), row.encode());
            self.write(&open, batch)?;
            self.known(&open)?.next_number = number + 1;
            self.index.load(&name, row);
        }
        Ok(())
    }

    pub(super) fn extend(&self, expiries: &[(Bucket, Option<i64>)]) -> StoreResult<()> {
        let expiries: HashMap<Bucket, Option<i64>> = expiries.iter().copied().collect();
        let _writing = self.writing();
        let open = self.database.get()?;
        // In memory is what is on disk.
        drop(self.known(&open)?);
        let mut batch = open.batch();
        let mut extended = Vec::new();
        for (name, row) in self.index.rows() {
            if let Some(expires_at) = bucket_of(&name).and_then(|bucket| expiries.get(&bucket).copied()) {
                batch.insert(
                    open.tree(rows::TREE),
                    rows::named(rows::KEYS, &name),
                    KeyRow { expires_at, ..row }.encode(),
                );
                extended.push((name, expires_at));
            }
        }
        self.write(&open, batch)?;
        for (name, expires_at) in extended {
            if let Some(key) = self.index.get(&name) {
                key.lock().row.expires_at = expires_at;
            }
        }
        Ok(())
    }

    pub(super) fn restore_quarantine(&self, quarantined: &[Quarantined]) -> StoreResult<()> {
        let _writing = self.writing();
        let open = self.database.get()?;
        let mut batch = open.batch();
        for Quarantined { key, error } in quarantined {
            batch.insert(open.tree(rows::TREE), rows::named(rows::QUARANTINE, key), error.as_str());
        }
        self.write(&open, batch)?;
        let pairs = quarantined.iter().map(|quarantined| (quarantined.key.clone(), quarantined.error.clone()));
        self.known(&open)?.quarantined.extend(pairs);
        Ok(())
    }
}

/// The bucket in a key's name: `traqq:add:d:1699920000:event`.
fn bucket_of(name: &str) -> Option<Bucket> {
    let mut parts = name.split(':').skip(2);
    let letter = parts.next()?;
    let kind = BucketKind::parse(letter)?;
    Some(Bucket { kind, start: parts.next()?.parse().ok()? })
}
