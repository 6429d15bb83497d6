//! From a value's text to a label: trimming, cutting, and the escapes that keep labels apart.

use std::borrow::Cow;

/// What values beyond a key's limit are counted under; a label of this name is escaped.
pub const OTHER: &str = "__other__";

/// Removes white space and control characters at both ends.
pub fn trim(text: &str) -> &str {
    match text.as_bytes() {
        [] => text,
        [first, .., last] if is_plain(*first) && is_plain(*last) => text,
        [only] if is_plain(*only) => text,
        _ => text.trim_matches(|c: char| c.is_whitespace() || c.is_control()),
    }
}

const fn is_plain(byte: u8) -> bool {
    byte > b' ' && byte < 0x7f
}

/// A label and whether it had to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut<'a> {
    pub label: &'a str,
    pub was_cut: bool,
}

/// At most `chars_max` characters.
pub fn cut(text: &str, chars_max: usize) -> Cut<'_> {
    if text.len() <= chars_max {
        return Cut { label: text, was_cut: false };
    }
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => Cut { label: &text[..end], was_cut: true },
        None => Cut { label: text, was_cut: false },
    }
}

/// Appends one value of a compound label: `~` and `\` escaped.
pub fn escape_into(label: &mut String, value: &str) {
    if memchr::memchr2(b'~', b'\\', value.as_bytes()).is_none() {
        label.push_str(value);
        return;
    }
    for c in value.chars() {
        if matches!(c, '~' | '\\') {
            label.push('\\');
        }
        label.push(c);
    }
}

/// Whether a single-field label needs one more backslash so that it is not taken for [`OTHER`].
pub fn is_reserved(label: &str) -> bool {
    label.ends_with(OTHER) && label[..label.len() - OTHER.len()].bytes().all(|byte| byte == b'\\')
}

/// The value that a stored single-field label stands for.
pub fn unescape_single(label: &str) -> &str {
    if label.starts_with('\\') && is_reserved(label) { &label[1..] } else { label }
}

/// The values that a stored compound label stands for.
pub fn unescape_compound(label: &str) -> Vec<Cow<'_, str>> {
    if !label.contains('\\') {
        return label.split('~').map(Cow::Borrowed).collect();
    }
    let mut values = vec![String::new()];
    let mut chars = label.chars();
    while let Some(c) = chars.next() {
        match c {
            '~' => values.push(String::new()),
            '\\' => values.last_mut().expect("never empty").extend(chars.next()),
            c => values.last_mut().expect("never empty").push(c),
        }
    }
    values.into_iter().map(Cow::Owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_white_space_and_control_characters_outside_only() {
        assert_eq!(trim("\u{0}\u{a0} a\nb \t\u{7f}\u{2003}"), "a\nb");
        assert_eq!(trim(" \n"), "");
        assert_eq!(trim("é"), "é");
    }

    #[test]
    fn cuts_on_characters() {
        assert_eq!(cut("ééé", 2), Cut { label: "éé", was_cut: true });
        assert_eq!(cut("ééé", 3), Cut { label: "ééé", was_cut: false });
    }

    #[test]
    fn compound_labels_read_back() {
        for values in [vec!["a~b", "c\\"], vec!["", "x"], vec!["\\~", "~"], vec!["plain", "too"]] {
            let mut label = String::new();
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    label.push('~');
                }
                escape_into(&mut label, value);
            }
            assert_eq!(unescape_compound(&label), values);
        }
    }

    #[test]
    fn the_reserved_label_is_recognised_behind_any_number_of_backslashes() {
        assert!(is_reserved("__other__") && is_reserved("\\\\__other__"));
        assert!(!is_reserved("x__other__") && !is_reserved("other"));
        assert_eq!(unescape_single("\\\\__other__"), "\\__other__");
        assert_eq!(unescape_single("\\x"), "\\x");
    }
}
