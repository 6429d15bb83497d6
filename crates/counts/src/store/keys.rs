//! The key layout, which is a promise: a person with `redis-cli` can read their numbers.
//!
//! ```text
//! <prefix>:bmp:<bucket>:<ts>:<pattern>                 HyperLogLog
//! <prefix>:bmp:<bucket>:<ts>:<of>@<pattern>:<value>    HyperLogLog of `of` for one value
//! <prefix>:bmv:<bucket>:<ts>:<of>@<pattern>            set of those values
//! <prefix>:add:<bucket>:<ts>:<pattern>                 hash  value -> count
//! <prefix>:adv:<bucket>:<ts>:<add_key>:<pattern>       hash  value -> sum
//! <prefix>:adv:<bucket>:<ts>:<add_key>:<pattern>:n     hash  value -> count
//! <prefix>:adv:<bucket>:<ts>:<add_key>:<pattern>:i     hash  sum, count, min, max
//! <prefix>:top:<bucket>:<ts>:<pattern>                 sorted set  member -> count
//! <prefix>:k:<bucket>:<ts>                             set of the keys above
//! <prefix>:ckpt                                        hash  topic/partition -> checkpoint
//! <prefix>:quarantine                                  hash  key -> error
//! <prefix>:meta                                        hash
//! <prefix>:never                                       never exists
//! ```
//!
//! With more than one lane the prefix is `<prefix>{<tag>}`; meta stands at the bare prefix too. In
//! names and values `%` and `:` are percent-encoded, in the names of a `bitmap_by` also `@`.

use std::borrow::Cow;

use crate::mapping::{Metric, Pattern};
use traqq_core::model::{Bucket, BucketKind};

/// The keys of one lane.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str, tag: Option<&str>) -> Self {
        Self { prefix: tag.map_or_else(|| prefix.to_owned(), |tag| format!("{prefix}{{{tag}}}")) }
    }

    pub fn meta(&self) -> String {
        format!("{}:meta", self.prefix)
    }

    pub fn checkpoint(&self) -> String {
        format!("{}:ckpt", self.prefix)
    }

    pub fn quarantine(&self) -> String {
        format!("{}:quarantine", self.prefix)
    }

    /// A key that nothing ever writes, see `commit.lua`.
    pub fn never(&self) -> String {
        format!("{}:never", self.prefix)
    }

    /// The set of the keys of a bucket.
    pub fn tracking(&self, bucket: Bucket) -> String {
        format!("{}:k:{}:{}", self.prefix, bucket.kind, bucket.start)
    }

    /// What stands before kind and start in the names of those sets, and a pattern for SCAN that
    /// finds them all.
    pub fn tracking_names(&self) -> (String, String) {
        let before = format!("{}:k:", self.prefix);
        let pattern = literal(&before) + "*";
        (before, pattern)
    }

    /// A pattern for SCAN that finds the keys of this prefix and those of its lanes, and others.
    pub fn all_names(&self) -> String {
        literal(&self.prefix) + "[:{]*"
    }

    /// Whether a key is one of these, by the layout above.
    pub fn has(&self, name: &[u8]) -> bool {
        let rest = name.strip_prefix(self.prefix.as_bytes()).and_then(|rest| rest.strip_prefix(b":"));
        let Some(rest) = rest else { return false };
        if [&b"ckpt"[..], b"quarantine", b"meta"].contains(&rest) {
            return true;
        }
        let mut parts = rest.splitn(4, |byte| *byte == b':');
        let mut part = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
        let (kind, bucket, start) = (part(), part(), part());
        let is_bucket =
            bucket.and_then(BucketKind::parse).is_some() && start.is_some_and(|it| it.parse::<i64>().is_ok());
        match (kind, parts.next()) {
            (Some("k"), None) => is_bucket,
            (Some("bmp" | "bmv" | "add" | "adv" | "top"), Some(_)) => is_bucket,
            _ => false,
        }
    }

    pub fn unique(&self, bucket: Bucket, of: &Pattern) -> String {
        self.key("bmp", bucket, &encode(of.as_str()))
    }

    /// What stands before the value in the key of a unique count by value.
    pub fn unique_by_prefix(&self, bucket: Bucket, of: &Pattern, by: &Pattern) -> String {
        self.key("bmp", bucket, &format!("{}@{}:", encode_name(of.as_str()), encode_name(by.as_str())))
    }

    pub fn unique_by(&self, bucket: Bucket, of: &Pattern, by: &Pattern, value: &str) -> String {
        self.unique_by_prefix(bucket, of, by) + &encode(value)
    }

    pub fn unique_by_values(&self, bucket: Bucket, of: &Pattern, by: &Pattern) -> String {
        self.key("bmv", bucket, &format!("{}@{}", encode_name(of.as_str()), encode_name(by.as_str())))
    }

    pub fn count(&self, bucket: Bucket, of: &Pattern) -> String {
        self.key("add", bucket, &encode(of.as_str()))
    }

    pub fn sum(&self, bucket: Bucket, of: &Pattern, add_key: &str) -> String {
        self.key("adv", bucket, &format!("{}:{}", encode(add_key), encode(of.as_str())))
    }

    pub fn sum_counts(&self, bucket: Bucket, of: &Pattern, add_key: &str) -> String {
        self.sum(bucket, of, add_key) + ":n"
    }

    pub fn sum_totals(&self, bucket: Bucket, of: &Pattern, add_key: &str) -> String {
        self.sum(bucket, of, add_key) + ":i"
    }

    pub fn top(&self, bucket: Bucket, of: &Pattern) -> String {
        self.key("top", bucket, &encode(of.as_str()))
    }

    /// The keys a metric's writes begin with, in the order the commit script expects them.
    pub fn of_metric(&self, bucket: Bucket, metric: &Metric) -> Vec<String> {
        match metric {
            Metric::Unique { of } => vec![self.unique(bucket, of)],
            Metric::UniqueBy { of, by } => vec![self.unique_by_values(bucket, of, by)],
            Metric::Count { of } => vec![self.count(bucket, of)],
            Metric::Top { of } => vec![self.top(bucket, of)],
            Metric::Sum { of, add_key } => vec![
                self.sum(bucket, of, add_key),
                self.sum_counts(bucket, of, add_key),
                self.sum_totals(bucket, of, add_key),
            ],
        }
    }

    fn key(&self, kind: &str, bucket: Bucket, rest: &str) -> String {
        format!("{}:{kind}:{}:{}:{rest}", self.prefix, bucket.kind, bucket.start)
    }
}

/// A text in a pattern for SCAN.
fn literal(text: &str) -> String {
    let escaped = |c| if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') { vec!['\\', c] } else { vec![c] };
    text.chars().flat_map(escaped).collect()
}

pub fn encode(text: &str) -> Cow<'_, str> {
    encode_where(text, |c| matches!(c, '%' | ':'))
}

fn encode_name(text: &str) -> Cow<'_, str> {
    encode_where(text, |c| matches!(c, '%' | ':' | '@'))
}

fn encode_where(text: &str, is_encoded: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_encoded) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_encoded(c) {
            encoded.push_str(&format!("%{:02X}", c as u32));
        } else {
            encoded.push(c);
        }
    }
    Cow::Owned(encoded)
}

/// `lanes` hash tags whose slots are spread evenly over a cluster's 16,384; none for one lane.
///
/// Small numbers are tried in turn, and the first whose slot falls into the next lane's share is
/// taken, so the same number of lanes always has the same tags.
pub fn lane_tags(lanes: usize) -> Vec<String> {
    if lanes <= 1 {
        return Vec::new();
    }
    (0..lanes)
        .map(|lane| {
            let share = SLOTS * lane / lanes..SLOTS * (lane + 1) / lanes;
            let falls_in = |tag: &String| share.contains(&usize::from(slot_of(tag)));
            (0..).map(|n: u32| n.to_string()).find(falls_in).expect("CRC-16 reaches every slot")
        })
        .collect()
}

const SLOTS: usize = 16_384;

/// The slot of a key in Redis Cluster: that of what stands between its first braces, if anything
/// does.
pub fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS as u16
}

/// CRC-16/XMODEM, which Redis Cluster maps keys to slots with.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use traqq_core::model::BucketKind;

    const DAY: Bucket = Bucket { kind: BucketKind::Day, start: 1_699_920_000 };

    #[test]
    fn keys_are_those_of_the_documented_layout() {
        let keys = Keys::new("myapp", None);
        let pattern = |text| Pattern::parse(text).unwrap();
        assert_eq!(keys.unique(DAY, &pattern("ip")), "myapp:bmp:d:1699920000:ip");
        assert_eq!(keys.unique_by(DAY, &pattern("ip"), &pattern("geo"), "a:b"), "myapp:bmp:d:1699920000:ip@geo:a%3Ab");
        assert_eq!(keys.count(DAY, &pattern("geo~event")), "myapp:add:d:1699920000:event~geo");
        assert_eq!(keys.sum_totals(DAY, &pattern("event"), "a:b%"), "myapp:adv:d:1699920000:a%3Ab%25:event:i");
        assert_eq!(Keys::new("p", Some("7")).tracking(DAY), "p{7}:k:d:1699920000");
    }

    /// `redis-cli --scan --pattern 'a:*'` found what was counted under `a:b` too.
    #[test]
    fn a_prefix_has_its_own_keys_and_no_others() {
        let keys = Keys::new("a", None);
        let pattern = Pattern::parse("geo").unwrap();
        let metrics = [
            Metric::Unique { of: pattern.clone() },
            Metric::UniqueBy { of: pattern.clone(), by: pattern.clone() },
            Metric::Count { of: pattern.clone() },
            Metric::Sum { of: pattern.clone(), add_key: "amount".into() },
            Metric::Top { of: pattern.clone() },
        ];
        let mut own: Vec<String> = metrics.iter().flat_map(|metric| keys.of_metric(DAY, metric)).collect();
        own.extend([keys.meta(), keys.checkpoint(), keys.quarantine(), keys.tracking(DAY)]);
        own.push(keys.unique_by(DAY, &pattern, &pattern, "x\n\" '*:%\u{e9}"));
        for name in &own {
            assert!(keys.has(name.as_bytes()), "{name}");
            for other in [name.replacen('a', "a2", 1), name.replacen('a', "a:b", 1), name.replacen('a', "a{1}", 1)] {
                assert!(!keys.has(other.as_bytes()), "{other}");
            }
        }
        assert!(keys.has(b"a:bmp:d:1699920000:x@y:\xff\xfe"));
        for other in
            ["a", "a:", "a:x", "a:k:d:1:x", "a:add:d:1", "a:add:x:1:y", "a:add:d:x:y", "aa:meta", "a:meta2", ":meta"]
        {
            assert!(!keys.has(other.as_bytes()), "{other}");
        }
        assert_eq!(Keys::new("p[^\\]-q", None).all_names(), "p\\[\\^\\\\\\]\\-q[:{]*");
    }

    #[test]
    fn lane_tags_fall_into_equal_shares_of_the_slots() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // As `CLUSTER KEYSLOT` says.
        assert_eq!([slot_of("foo"), slot_of("t{foo}:meta"), slot_of("t{}:meta{foo}")], [12_182, 12_182, 10_023]);
        assert_eq!(lane_tags(1), [""; 0]);
        for lanes in [2, 3, 8, 16] {
            let slots = lane_tags(lanes).iter().map(|tag| usize::from(slot_of(tag))).collect::<Vec<_>>();
            for (lane, slot) in slots.iter().enumerate() {
                assert_eq!(slot * lanes / SLOTS, lane, "{lanes} lanes: {slots:?}");
            }
        }
    }
}
