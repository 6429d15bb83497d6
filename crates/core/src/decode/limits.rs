//! What stands in front of every parser: size, UTF-8 and depth, none of which recurses.

use super::{EventRules, Reason};

/// A Confluent schema-registry prefix: a zero byte and a 4-byte schema id.
const SCHEMA_PREFIX_LEN: usize = 5;

/// The record's text, if it is within the limits and nested no deeper than allowed.
pub fn check<'a>(value: &'a [u8], rules: &EventRules) -> Result<&'a str, Reason> {
    if value.len() > rules.max_event_bytes {
        return Err(Reason::TooLarge);
    }
    let body = body(value);
    let text = simdutf8::basic::from_utf8(body).map_err(|_| Reason::InvalidUtf8)?;
    if is_deeper_than(body, rules.max_depth) { Err(Reason::TooDeep) } else { Ok(text) }
}

/// The value behind a schema-registry prefix.
pub fn body(value: &[u8]) -> &[u8] {
    match value {
        [0, ..] if value.len() > SCHEMA_PREFIX_LEN => &value[SCHEMA_PREFIX_LEN..],
        _ => value,
    }
}

/// Depth is bounded by the number of opening brackets, and counting those is far cheaper than
/// following strings.
fn is_deeper_than(body: &[u8], depth_max: usize) -> bool {
    let opening: usize = body.chunks(COUNT_CHUNK).map(count_opening).sum();
    opening > depth_max && depth(body) > depth_max
}

/// As many as a byte can count, so that the loop runs on vectors of bytes.
const COUNT_CHUNK: usize = u8::MAX as usize;

fn count_opening(chunk: &[u8]) -> usize {
    usize::from(chunk.iter().fold(0_u8, |count, byte| count + u8::from(byte | 0x20 == b'{')))
}

fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for &byte in body {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_are_not_depth() {
        let rules = EventRules { max_depth: 2, ..EventRules::default() };
        assert!(check(br#"{"a":"[[[[{{{{\"[["}"#, &rules).is_ok());
        assert!(check(br#"{"a":[1]}"#, &rules).is_ok());
        assert_eq!(check(br#"{"a":[[1]]}"#, &rules), Err(Reason::TooDeep));
        assert_eq!(check("[".repeat(100_000).as_bytes(), &rules), Err(Reason::TooDeep));
    }

    #[test]
    fn size_is_judged_before_anything_else() {
        let rules = EventRules { max_event_bytes: 3, ..EventRules::default() };
        assert_eq!(check(b"\xff\xff\xff\xff", &rules), Err(Reason::TooLarge));
        assert_eq!(check(b"\xff\xff\xff", &rules), Err(Reason::InvalidUtf8));
    }

    #[test]
    fn a_schema_registry_prefix_is_skipped() {
        let rules = EventRules::default();
        assert_eq!(check(b"\0\xff\xff\xff\xff{}", &rules), Ok("{}"));
        assert_eq!(check(b"\0{}", &rules), Ok("\0{}"));
    }
}
