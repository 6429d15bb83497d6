//! Which answers are incomplete: a key in quarantine could not take a write.
//!
//! Stores name keys in the documented layout, `<prefix>:<kind>:<bucket>:<ts>:<rest>`. The prefix is
//! anything, so a key is read from its end; that is unambiguous, because `:` is percent-encoded in
//! every name and value of the rest.

use std::borrow::Cow;
use std::collections::HashSet;

use futures_util::future::try_join_all;

use super::QueryResult;
use crate::mapping::Metric;
use crate::store::Store;
use traqq_core::model::{Bucket, BucketKind};

/// The quarantined keys of all lanes, without their prefixes.
#[derive(Default)]
pub(super) struct Incomplete {
    tails: HashSet<String>,
}

impl Incomplete {
    pub async fn load(store: &dyn Store) -> QueryResult<Self> {
        let lanes = try_join_all((0..store.lanes()).map(|lane| store.quarantined(lane))).await?;
        Ok(Self::of(lanes.iter().flatten().map(|quarantined| &*quarantined.key)))
    }

    fn of<'k>(keys: impl Iterator<Item = &'k str>) -> Self {
        let mut tails = HashSet::new();
        for key in keys {
            let Some(tail) = tail(key) else { continue };
            // A HyperLogLog of one value makes the answer over all values incomplete as well.
            if tail.starts_with("bmp:") && tail.split(':').count() == 5 {
                let names = tail.rsplit_once(':').expect("it has five parts").0;
                tails.insert(names.replacen("bmp:", "bmp*:", 1));
            }
            tails.insert(tail.to_owned());
        }
        Self { tails }
    }

    /// Whether a metric's count in a bucket misses something; of one value only, if it is named.
    pub fn touches(&self, bucket: Bucket, metric: &Metric, value: Option<&str>) -> bool {
        if self.tails.is_empty() {
            return false;
        }
        let has = |kind: &str, rest: &str| {
            self.tails.contains(&format!("{kind}:{}:{}:{rest}", bucket.kind.letter(), bucket.start))
        };
        let plain = encode(metric.pattern().as_str(), false);
        match metric {
            Metric::Unique { .. } => has("bmp", &plain),
            Metric::Count { .. } => has("add", &plain),
            Metric::Top { .. } => has("top", &plain),
            Metric::Sum { add_key, .. } => {
                let sum = format!("{}:{plain}", encode(add_key, false));
                has("adv", &sum) || has("adv", &format!("{sum}:n")) || has("adv", &format!("{sum}:i"))
            }
            Metric::UniqueBy { of, by } => {
                let names = format!("{}@{}", encode(of.as_str(), true), encode(by.as_str(), true));
                let registers = match value {
                    Some(value) => has("bmp", &format!("{names}:{}", encode(value, false))),
                    None => has("bmp*", &names),
                };
                registers || has("bmv", &names)
            }
        }
    }
}

/// From the kind on: `add:d:1699920000:event`.
fn tail(key: &str) -> Option<&str> {
    let starts: Vec<usize> = std::iter::once(0).chain(key.match_indices(':').map(|(at, _)| at + 1)).collect();
    starts.into_iter().rev().map(|start| &key[start..]).find(|tail| {
        let parts: Vec<&str> = tail.split(':').collect();
        parts.len() >= 4
            && matches!(parts[0], "bmp" | "bmv" | "add" | "adv" | "top")
            && BucketKind::parse(parts[1]).is_some()
            && parts[2].parse::<i64>().is_ok()
    })
}

fn encode(text: &str, is_by_name: bool) -> Cow<'_, str> {
    let is_encoded = |c: char| matches!(c, '%' | ':') || (is_by_name && c == '@');
    if !text.contains(is_encoded) {
        return Cow::Borrowed(text);
    }
    let encoded = text.chars().map(|c| if is_encoded(c) { format!("%{:02X}", u32::from(c)) } else { c.to_string() });
    Cow::Owned(encoded.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Pattern;

    const DAY: Bucket = Bucket { kind: BucketKind::Day, start: 1_699_920_000 };

    fn touches(key: &str, metric: &Metric, value: Option<&str>) -> bool {
        Incomplete::of([key].into_iter()).touches(DAY, metric, value)
    }

    #[test]
    fn keys_of_the_documented_layout_are_recognised() {
        let pattern = |text: &str| Pattern::parse(text).unwrap();
        let count = Metric::Count { of: pattern("event~geo") };
        assert!(touches("myapp:add:d:1699920000:event~geo", &count, None));
        assert!(touches("a:add:d:5:b{x}:add:d:1699920000:event~geo", &count, Some("x")));
        assert!(!touches("myapp:add:d:1699920000:event", &count, None));
        assert!(!touches("myapp:add:h:1699920000:event~geo", &count, None));
        assert!(!touches("myapp:top:d:1699920000:event~geo", &count, None));
        assert!(!touches("Bucket { kind: Day, start: 1699920000 }", &count, None));

        let sum = Metric::Sum { of: pattern("event"), add_key: "a:b".into() };
        for end in ["", ":n", ":i"] {
            assert!(touches(&format!("p:adv:d:1699920000:a%3Ab:event{end}"), &sum, None));
        }

        let by = Metric::UniqueBy { of: pattern("ip"), by: pattern("g@o") };
        assert!(touches("p:bmp:d:1699920000:ip@g%40o:a%3Ab", &by, None));
        assert!(touches("p:bmp:d:1699920000:ip@g%40o:a%3Ab", &by, Some("a:b")));
        assert!(!touches("p:bmp:d:1699920000:ip@g%40o:a%3Ab", &by, Some("US")));
        assert!(touches("p:bmv:d:1699920000:ip@g%40o", &by, None));
        assert!(touches("p:bmp:d:1699920000:ip", &Metric::Unique { of: pattern("ip") }, None));
    }
}
