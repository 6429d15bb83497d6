//! What stands in the key-value bucket, as text. Anybody may write there whom the server lets, so
//! that all of it is read with care.
//!
//! ```text
//! worker.<id>         nothing; written twice a second
//! lease.<partition>   the id of its owner, or nothing
//! mark.<partition>    "<position> <note>"
//! ```

/// Longer ids and notes are nobody's.
const TEXT_MAX: usize = 1024;

/// A key of the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key<'a> {
    Worker(&'a str),
    Lease(i32),
}

impl<'a> Key<'a> {
    /// `None` for keys of others, and for partitions that there are not.
    pub fn parse(key: &'a str, partitions: i32) -> Option<Self> {
        if let Some(id) = key.strip_prefix("worker.") {
            return (id.len() <= TEXT_MAX).then_some(Self::Worker(id));
        }
        let number = key.strip_prefix("lease.")?;
        let partition: i32 = number.parse().ok().filter(|partition| (0..partitions).contains(partition))?;
        // Another spelling is another key, with revisions of its own.
        (partition.to_string() == number).then_some(Self::Lease(partition))
    }
}

/// The owner that a lease names; nobody if it is no text.
pub fn owner(value: &[u8]) -> &str {
    std::str::from_utf8(value).ok().filter(|id| id.len() <= TEXT_MAX).unwrap_or_default()
}

pub fn mark_key(partition: i32) -> String {
    format!("mark.{partition}")
}

pub fn mark(position: i64, note: &str) -> String {
    format!("{position} {note}")
}

/// Position and note.
pub fn parse_mark(value: &[u8]) -> Option<(i64, &str)> {
    let (position, note) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let position = position.parse().ok().filter(|position| *position >= 0)?;
    (note.len() <= TEXT_MAX).then_some((position, note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_others_are_nobodys() {
        assert_eq!(Key::parse("worker.ab", 4), Some(Key::Worker("ab")));
        assert_eq!(Key::parse("lease.3", 4), Some(Key::Lease(3)));
        for other in [
            "lease.4",
            "lease.-1",
            "lease.99999999999",
            "lease.",
            "lease.x",
            "lease.+3",
            "lease.03",
            "mark.1",
            "",
            "workers.a",
        ] {
            assert_eq!(Key::parse(other, 4), None, "{other}");
        }
        assert_eq!(owner(b"w1"), "w1");
        assert_eq!(owner(&[0xff]), "");
        assert_eq!(owner(&[b'x'; TEXT_MAX + 1]), "");
        assert_eq!(parse_mark(mark(7, "a b").as_bytes()), Some((7, "a b")));
        for other in [&b""[..], b"7", b"x y", b"-7 a", b"7 \xff", b"99999999999999999999 a"] {
            assert_eq!(parse_mark(other), None, "{other:?}");
        }
    }
}
