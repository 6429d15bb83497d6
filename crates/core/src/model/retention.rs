//! How long something is kept, as configurations say it.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::BucketSpan;

/// Retention of the keys beyond the retention of the bucket, in seconds.
const EXPIRY_GRACE_SECONDS: i64 = 86_400;

/// How long a bucket is kept after its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    Seconds(i64),
    Forever,
}

impl Retention {
    /// When the keys of a bucket expire, in epoch seconds: a day after the bucket itself has.
    pub fn expiry(self, span: &BucketSpan) -> Option<i64> {
        match self {
            Self::Seconds(seconds) => Some(span.end + seconds + EXPIRY_GRACE_SECONDS),
            Self::Forever => None,
        }
    }

    /// Reads `400d`, `14h`, `90m`, `forever`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "forever" {
            return Some(Self::Forever);
        }
        let unit = match text.bytes().last()? {
            b'd' => 86_400,
            b'h' => 3600,
            b'm' => 60,
            _ => return None,
        };
        let count: u32 = text[..text.len() - 1].parse().ok()?;
        (count > 0).then(|| Self::Seconds(i64::from(count) * unit))
    }
}

impl Serialize for Retention {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Forever => serializer.serialize_str("forever"),
            Self::Seconds(seconds) if seconds % 86_400 == 0 => {
                serializer.collect_str(&format_args!("{}d", seconds / 86_400))
            }
            Self::Seconds(seconds) if seconds % 3600 == 0 => {
                serializer.collect_str(&format_args!("{}h", seconds / 3600))
            }
            Self::Seconds(seconds) => serializer.collect_str(&format_args!("{}m", seconds / 60)),
        }
    }
}

impl<'de> Deserialize<'de> for Retention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is not a retention; write a whole number and d, h or m, like \"400d\", or \"forever\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retentions_read_back_as_written() {
        for text in ["400d", "5h", "90m", "forever"] {
            let retention = Retention::parse(text).unwrap();
            assert_eq!(serde_json::to_string(&retention).unwrap(), format!("{text:?}"));
        }
        for text in ["", "d", "0d", "-1d", "5", "5w", "1.5d"] {
            assert_eq!(Retention::parse(text), None, "{text:?}");
        }
    }
}
