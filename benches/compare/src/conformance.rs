//! Which parser keeps the rules, found out by asking it.
//!
//! `validates` stands for three things: every broken document is refused, wherever the break is and
//! whether the part is read or not; text that is no UTF-8 is refused everywhere; of members that
//! appear twice the last one counts. Beside it: valid documents that a parser refuses or misreads,
//! and whether its numbers keep all their digits.

use crate::contender::Contender;
use crate::fields::{Fields, NAMES};

pub struct Conformance {
    pub validates: bool,
    pub exact_numbers: bool,
    /// Names of the cases in which the parser does otherwise than the rules say.
    pub deviations: Vec<String>,
}

/// Values that are no JSON.
const BROKEN_VALUES: [(&str, &[u8]); 29] = [
    ("literal_cut", b"tru"),
    ("literal_long", b"nulll"),
    ("number_leading_zero", b"01"),
    ("number_bare_point", b"1."),
    ("number_no_integer", b".5"),
    ("number_plus", b"+1"),
    ("number_minus", b"-"),
    ("number_exponent", b"1e"),
    ("number_two_points", b"1.2.3"),
    ("number_nan", b"NaN"),
    ("escape_unknown", b"\"a\\x\""),
    ("escape_hex", b"\"\\u12g4\""),
    ("escape_short", b"\"\\u12\""),
    ("control_nul", b"\"a\x00b\""),
    ("control_tab", b"\"a\tb\""),
    ("control_unit", b"\"a\x1fb\""),
    ("single_quotes", b"'a'"),
    ("array_trailing_comma", b"[1,]"),
    ("array_no_comma", b"[1 2]"),
    ("array_closed_as_object", b"[1}"),
    ("array_two_commas", b"[1,,2]"),
    ("object_trailing_comma", b"{\"a\":1,}"),
    ("object_no_colon", b"{\"a\" 1}"),
    ("object_no_value", b"{\"a\":}"),
    ("object_name_number", b"{1:2}"),
    ("object_closed_as_array", b"{\"a\":1]"),
    ("object_no_comma", b"{\"a\":1 \"b\":2}"),
    ("comment", b"1/**/"),
    ("nothing", b""),
];

/// Strings that are no UTF-8.
const BROKEN_TEXTS: [(&str, &[u8]); 7] = [
    ("utf8_stray_continuation", b"\"a\x80\""),
    ("utf8_cut", b"\"\xe2\x82\""),
    ("utf8_overlong", b"\"\xc0\xaf\""),
    ("utf8_surrogate", b"\"\xed\xa0\x80\""),
    ("utf8_too_high", b"\"\xf4\x90\x80\x80\""),
    ("utf8_no_byte_of_it", b"\"a\xff\""),
    ("utf8_latin_1", b"\"caf\xe9 au lait, a string of more than thirty-two bytes\""),
];

const EVENT: &str = r#""ip":"1.2.3.4","event":"buy","utm_source":"s","geo":"US","utm_campaign":"c","amount":99.9,"url":"https://a.b/","ts":1793577600000"#;
const EVENT_READ: [&str; NAMES.len()] = [
    "text 1.2.3.4",
    "text buy",
    "text s",
    "text US",
    "text c",
    "number 99.9",
    "text https://a.b/",
    "number 1793577600000",
];

/// Members to put behind [`EVENT`], the field they change, what that field must read.
const TWICE: [(&str, &str, usize, &str); 7] = [
    ("twice_text", r#""event":"sell""#, 1, "text sell"),
    ("twice_number", r#""amount":7"#, 5, "number 7"),
    ("twice_other_kind", r#""geo":12"#, 3, "number 12"),
    ("twice_null", r#""geo":null"#, 3, "absent"),
    ("twice_object", r#""geo":{"geo":"FR"}"#, 3, "absent"),
    ("twice_escaped_name", r#""\u0065vent":"sell""#, 1, "text sell"),
    ("twice_thrice", r#""ts":"a","x":{"ts":3},"ts":2"#, 7, "number 2"),
];

/// As [`TWICE`], for documents in which nothing is wrong and nothing appears twice but what is
/// changed.
const VALID: [(&str, &str, usize, &str); 12] = [
    ("unread_float_beyond_f64", r#""x":1e999"#, 0, "text 1.2.3.4"),
    ("unread_integer_of_40_digits", r#""x":1234567890123456789012345678901234567890"#, 0, "text 1.2.3.4"),
    ("unread_lone_surrogate", r#""x":"\ud800""#, 0, "text 1.2.3.4"),
    ("unread_nul_escape", r#""x":"\u0000""#, 0, "text 1.2.3.4"),
    ("unread_delete_character", "\"x\":\"\u{7f}\"", 0, "text 1.2.3.4"),
    ("read_escapes", r#""url":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00""#, 6, "text \"\\/\u{8}\u{c}\n\r\té😀"),
    ("read_utf8", r#""url":"é€💩""#, 6, "text é€💩"),
    ("read_bool", r#""geo":true"#, 3, "bool true"),
    ("read_array", r#""geo":["US"]"#, 3, "absent"),
    ("read_empty", r#""geo":"""#, 3, "text "),
    ("read_amount_as_text", r#""amount":"0\u002e99""#, 5, "text 0.99"),
    ("read_float_beyond_f64", r#""amount":1e999"#, 5, "number 1e999"),
];

const EXACT: [(&str, usize); 3] =
    [("999999999999.123456", 5), ("0.1234565000000000001", 5), ("9223372036854775807", 7)];

pub fn examine<C: Contender>() -> Conformance {
    let mut contender = C::default();
    let mut deviations = Vec::new();

    for (name, document) in broken_documents() {
        let deviation = format!("accepts_{name}");
        if read(&mut contender, &document).is_some() && !deviations.contains(&deviation) {
            deviations.push(deviation);
        }
    }
    for (name, members, slot, expected) in TWICE {
        if !reads(&mut contender, &document(members), slot, expected) {
            deviations.push(name.to_string());
        }
    }
    let validates = deviations.is_empty();

    for (name, members, slot, expected) in VALID {
        if !reads(&mut contender, &document_without(slot, members), slot, expected) {
            deviations.push(name.to_string());
        }
    }
    for (name, document) in valid_documents() {
        if !reads(&mut contender, &document, 0, EVENT_READ[0]) {
            deviations.push(name.to_string());
        }
    }
    let exact_numbers = EXACT.iter().all(|(number, slot)| {
        let member = format!("\"{}\":{number}", NAMES[*slot]);
        reads(&mut contender, &document_without(*slot, &member), *slot, &format!("number {number}"))
    });
    Conformance { validates, exact_numbers, deviations }
}

/// The fields as text, or `None` where the parser refuses.
pub fn read<C: Contender>(contender: &mut C, document: &[u8]) -> Option<[String; NAMES.len()]> {
    let mut seen = None;
    let accepted = contender.parse(document, |fields: Fields<'_>| seen = Some(fields.map(|field| field.to_string())));
    assert!(!accepted || seen.is_some(), "{} accepts without reading", C::NAME);
    seen.filter(|_| accepted)
}

fn reads<C: Contender>(contender: &mut C, document: &[u8], slot: usize, expected: &str) -> bool {
    let mut all = EVENT_READ;
    all[slot] = expected;
    read(contender, document).is_some_and(|fields| fields == all)
}

/// [`EVENT`] and `members` behind it.
fn document(members: &str) -> Vec<u8> {
    format!("{{{EVENT},{members}}}").into_bytes()
}

/// [`EVENT`] and `members` behind it; without the field in `slot` where `members` has it.
fn document_without(slot: usize, members: &str) -> Vec<u8> {
    let field = format!("\"{}\":", NAMES[slot]);
    if !members.starts_with(&field) {
        return document(members);
    }
    let kept: Vec<&str> = EVENT.split(',').filter(|member| !member.starts_with(&field)).collect();
    format!("{{{},{members}}}", kept.join(",")).into_bytes()
}

/// Every broken value as an unread member in front, behind and within, and as a read one. Cases
/// that differ only in where the unread member stands share a name.
fn broken_documents() -> Vec<(String, Vec<u8>)> {
    let mut documents = Vec::new();
    for (name, value) in BROKEN_VALUES.iter().chain(&BROKEN_TEXTS) {
        let event = EVENT.as_bytes();
        let places: [(&str, [&[u8]; 5]); 5] = [
            ("unread", [b"{\"x\":", value, b",", event, b"}"]),
            ("unread", [b"{", event, b",\"x\":", value, b"}"]),
            ("unread", [b"{", event, b",\"x\":{\"geo\":", value, b"}}"]),
            ("unread", [b"{\"x\":[[],", value, b",2],", event, b"}"]),
            ("read", [b"{", event, b",\"geo\":", value, b"}"]),
        ];
        for (place, pieces) in places {
            documents.push((format!("{place}_{name}"), pieces.concat()));
        }
    }
    for (name, text) in BROKEN_TEXTS {
        let event = EVENT.as_bytes();
        documents.push((format!("name_{name}"), [b"{", event, b",", text, b":1}"].concat()));
        documents.push((format!("inner_name_{name}"), [b"{\"x\":{", text, b":1},", event, b"}"].concat()));
    }
    let whole = document(r#""x":1"#);
    for (name, behind) in [("text", "x"), ("object", "{}"), ("brace", "}"), ("nul", "\0"), ("comma", ",")] {
        documents.push((format!("{name}_behind_the_event"), [&whole, behind.as_bytes()].concat()));
    }
    documents.push(("comma_before_the_end".into(), document("")));
    documents.push(("comma_in_front".into(), format!("{{,{EVENT}}}").into_bytes()));
    documents.push(("two_commas".into(), document(r#""x":1,,"y":2"#)));
    documents.push(("empty".into(), Vec::new()));
    for length in [1, whole.len() / 2, whole.len() - 1] {
        documents.push((format!("cut_at_{length}"), whole[..length].to_vec()));
    }
    documents
}

fn valid_documents() -> [(&'static str, Vec<u8>); 3] {
    let deep = format!("\"x\":{}1{}", "[".repeat(62), "]".repeat(62));
    let spaced = format!(" {{\t{}\r\n}} \r", EVENT.replace("\":", "\" \n: ").replace(",\"", " ,\t\""));
    let escaped_names = EVENT.replace("\"ip\"", r#""\u0069p""#);
    [
        ("unread_63_levels", document(&deep)),
        ("white_space", spaced.into_bytes()),
        ("escaped_name", format!("{{{escaped_names}}}").into_bytes()),
    ]
}
