//! Records that hold several events: an array, objects in a row, or an object without a name that
//! has them in one member, such as `{"batch": [...]}`.
//!
//! Only records that are no single event come here, so each function reads the text once more.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::elements;
use super::scan::Scanner;

/// How many events a text holds: the elements of an array, or two and more objects in a row with or
/// without white space between them. `None` when it is neither, or malformed.
pub fn count(text: &str) -> Option<usize> {
    let mut count = 0;
    scan(text, |_| count += 1).then_some(count)
}

/// Hands out the events of a text that [`count`] has counted.
pub fn for_each<'a>(text: &'a str, take: impl FnMut(&'a str)) {
    scan(text, take);
}

/// The array in the first of the fields that holds one, in the text of an object.
pub fn array_in<'a>(text: &'a str, fields: &[String]) -> Option<&'a str> {
    #[derive(Deserialize)]
    struct Last<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);
    if fields.is_empty() {
        return None;
    }
    let members: Last<'a> = serde_json::from_str(text).ok()?;
    let raw = fields.iter().filter_map(|field| members.0.get(&**field).map(|raw| raw.get()));
    raw.into_iter().find(|raw| raw.starts_with('['))
}

fn scan<'a>(text: &'a str, mut take: impl FnMut(&'a str)) -> bool {
    let mut scanner = Scanner::new(text);
    if scanner.peek() == Some(b'[') {
        return elements(text, take).is_ok();
    }
    let mut objects = 0;
    while let Some(byte) = scanner.peek() {
        let start = scanner.position();
        if byte != b'{' || scanner.skip_value().is_err() {
            return false;
        }
        take(&text[start..scanner.position()]);
        objects += 1;
    }
    objects > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Option<Vec<&str>> {
        let count = count(text)?;
        let mut found = Vec::new();
        for_each(text, |event| found.push(event));
        assert_eq!(found.len(), count);
        Some(found)
    }

    #[test]
    fn arrays_and_objects_in_a_row_are_taken_apart() {
        assert_eq!(events(r#" [{"a":1}, 2 ,[3]] "#), Some(vec![r#"{"a":1}"#, "2", "[3]"]));
        assert_eq!(events("[]"), Some(vec![]));
        assert_eq!(events("{\"a\":1}\n{} {\"b\":[{}]}"), Some(vec![r#"{"a":1}"#, "{}", r#"{"b":[{}]}"#]));
        assert_eq!(events("{}{}"), Some(vec!["{}", "{}"]));
        for neither in ["", "{}", "1 2", "{} 1", "{}[]", "[]{}", "[1,]", "{}{", "{},{}", "\"a\"\"b\""] {
            assert_eq!(count(neither), None, "{neither}");
        }
    }

    #[test]
    fn the_first_field_that_holds_an_array_has_the_events() {
        let fields = ["batch".to_owned(), "events".to_owned()];
        let find = |text| array_in(text, &fields);
        assert_eq!(find(r#"{"events":[1],"batch":[2,3]}"#), Some("[2,3]"));
        assert_eq!(find(r#"{"events":[1],"batch":5}"#), Some("[1]"));
        assert_eq!(find(r#"{"batch":[1],"batch":[ ]}"#), Some("[ ]"));
        assert_eq!(find(r#"{"b\u0061tch":[1]}"#), Some("[1]"));
        assert_eq!(find(r#"{"data":{"batch":[1]}}"#), None);
        assert_eq!(array_in(r#"{"batch":[1]}"#, &[]), None);
    }
}
