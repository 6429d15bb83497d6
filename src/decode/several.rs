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

/// The elements of an array, or two and more objects in a row with or without white space between
/// them. `None` when the text is neither.
pub fn in_text(text: &str) -> Option<Vec<&str>> {
    if Scanner::new(text).peek() == Some(b'[') { in_array(text) } else { in_a_row(text) }
}

/// The elements of the first of the fields that holds an array, in the text of an object.
pub fn in_field<'a>(text: &'a str, fields: &[String]) -> Option<Vec<&'a str>> {
    #[derive(Deserialize)]
    struct Last<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);
    if fields.is_empty() {
        return None;
    }
    let members: Last<'a> = serde_json::from_str(text).ok()?;
    let arrays = fields.iter().filter_map(|field| members.0.get(&**field).map(|raw| raw.get()));
    arrays.filter(|raw| raw.starts_with('[')).find_map(in_array)
}

fn in_array(text: &str) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    elements(text, |element| found.push(element)).ok().map(|()| found)
}

fn in_a_row(text: &str) -> Option<Vec<&str>> {
    let mut scanner = Scanner::new(text);
    let mut objects = Vec::new();
    while let Some(byte) = scanner.peek() {
        if byte != b'{' {
            return None;
        }
        let start = scanner.position();
        scanner.skip_value().ok()?;
        objects.push(&text[start..scanner.position()]);
    }
    (objects.len() > 1).then_some(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_and_objects_in_a_row_are_taken_apart() {
        assert_eq!(in_text(r#" [{"a":1}, 2 ,[3]] "#), Some(vec![r#"{"a":1}"#, "2", "[3]"]));
        assert_eq!(in_text("[]"), Some(vec![]));
        assert_eq!(in_text("{\"a\":1}\n{} {\"b\":[{}]}"), Some(vec![r#"{"a":1}"#, "{}", r#"{"b":[{}]}"#]));
        assert_eq!(in_text("{}{}"), Some(vec!["{}", "{}"]));
        for neither in ["", "{}", "1 2", "{} 1", "{}[]", "[]{}", "[1,]", "{}{", "{},{}", "\"a\"\"b\""] {
            assert_eq!(in_text(neither), None, "{neither}");
        }
    }

    #[test]
    fn the_first_field_that_holds_an_array_has_the_events() {
        let fields = ["batch".to_owned(), "events".to_owned()];
        let find = |text| in_field(text, &fields);
        assert_eq!(find(r#"{"events":[1],"batch":[2,3]}"#), Some(vec!["2", "3"]));
        assert_eq!(find(r#"{"events":[1],"batch":5}"#), Some(vec!["1"]));
        assert_eq!(find(r#"{"batch":[1],"batch":[ ]}"#), Some(vec![]));
        assert_eq!(find(r#"{"b\u0061tch":[1]}"#), Some(vec!["1"]));
        assert_eq!(find(r#"{"data":{"batch":[1]}}"#), None);
        assert_eq!(in_field(r#"{"batch":[1]}"#, &[]), None);
    }
}
