//! Text from outside, made harmless for the place it goes to: one function for each sink.
//!
//! Names, values and errors come from events, files and servers, and whoever sends them chooses
//! every character. What is escaped is what does something to a reader instead of being read:
//! control characters (C0, DEL and C1), characters that end a line, that change the direction of
//! text, and those that take no room, so that two texts look alike. An escaped text stays as it
//! is when it is escaped again.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character acts on a terminal or an editor, or hides in it.
///
/// Besides control characters these are Unicode's `Default_Ignorable_Code_Point`s without the two
/// that choose how an emoji looks, and the marks of annotations and of the bidirectional
/// algorithm.
pub const fn is_active(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0d}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// For one line of a terminal or of a log in text: `\n`, `\u{1b}`.
pub fn terminal(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    let (mut before, mut chars) = ('\0', text.chars().peekable());
    while let Some(c) = chars.next() {
        if is_active(c) && !(is_joiner(c) && is_joined(before) && chars.peek().copied().is_some_and(is_joined)) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
        before = c;
    }
    Cow::Owned(escaped)
}

/// What joins letters of some scripts, or emoji to one, and has its place between them only.
const fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

const fn is_joined(c: char) -> bool {
    !c.is_ascii() && !is_active(c)
}

/// For a JSON document, which means the same afterwards. Line feeds between its values stay; other
/// white space of that kind becomes a blank. What is no JSON is harmless too.
pub fn json(document: &str) -> Cow<'_, str> {
    if !document.contains(|c| c != '\n' && is_active(c)) {
        return Cow::Borrowed(document);
    }
    let mut escaped = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        match c {
            '\r' | '\t' => escaped.push(' '),
            c if c != '\n' && is_active(c) => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| _ = write!(escaped, "\\u{unit:04x}"));
            }
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// One argument for the prompt of `redis-cli`, and for `redis-cli --quoted-input`: as it stands, or
/// in double quotes with `\xHH` for bytes. A shell that it is pasted into by mistake runs nothing
/// of it.
pub fn redis_cli(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "~._-/:@+%".contains(c);
    // The shell's own: a home directory.
    if !argument.is_empty() && !argument.starts_with('~') && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    let mut quoted = String::with_capacity(argument.len() + 2);
    quoted.push('"');
    for c in argument.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if is_active(c) || matches!(c, '$' | '`' | '!') => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| _ = write!(quoted, "\\x{byte:02x}"));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// One argument for a shell: in single quotes, or in `$'...'` where it has characters that cannot
/// be typed. A NUL ends an argument, whatever is written.
pub fn shell(argument: &str) -> String {
    if !argument.contains(is_active) {
        return format!("'{}'", argument.replace('\'', r"'\''"));
    }
    let mut quoted = "$'".to_owned();
    for c in argument.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if is_active(c) => {
                let mut bytes = [0; 4];
                // Always three digits, so that one that follows is not taken for a fourth.
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| _ = write!(quoted, "\\{byte:03o}"));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// What a sink may be hurt with; every other test of a sink uses it too.
    const HOSTILE: &str = "a\x1b[2J\r\nFLUSHALL u\0\u{7f}\u{9b}31m\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\u{feff}\
        \u{e0041}{}{0}\"'$(touch x)`id`!x\\n $HOME * ~ # ; | & < > ä日本語";

    #[test]
    fn nothing_that_acts_on_a_terminal_is_left() {
        for text in [HOSTILE, "\u{180e}\u{200d}\u{2060}\u{206a}\u{fff9}", "\u{ad}\u{115f}\u{3164}\u{e0100}"] {
            let escaped = terminal(text);
            assert!(!escaped.contains(is_active), "{escaped:?}");
            assert_eq!(terminal(&escaped), escaped);
        }
        assert_eq!(terminal("a\x1b[2J\r\n\u{9b}\u{202e}c"), r"a\u{1b}[2J\r\n\u{9b}\u{202e}c");
        assert_eq!(terminal("ä日本語 e\u{301} ❤\u{fe0f} \\n"), "ä日本語 e\u{301} ❤\u{fe0f} \\n");
    }

    #[test]
    fn a_json_document_means_the_same_and_is_harmless() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, { "\u{9b}": 1 }] });
        for document in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let document = document.replace(':', "\r\t:");
            let escaped = json(&document);
            assert!(escaped.chars().all(|c| c == '\n' || !is_active(c)), "{escaped:?}");
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
                serde_json::from_str::<serde_json::Value>(&document).unwrap()
            );
        }
        assert_eq!(json("[1,\n\"ä\"]"), "[1,\n\"ä\"]");
        assert_eq!(json("\"\u{e0041}\""), "\"\\udb40\\udc41\"");
        assert_eq!(json("no JSON \x1b]0;x\x07"), "no JSON \\u001b]0;x\\u0007");
    }

    /// What `redis-cli` makes of an argument, as its source has it (`sdssplitargs`).
    fn unquoted(argument: &str) -> Vec<u8> {
        let Some(inner) = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return argument.into();
        };
        let (mut bytes, mut rest) = (Vec::new(), inner.as_bytes());
        while let Some((first, more)) = rest.split_first() {
            rest = match (first, more) {
                (b'\\', [b'x', high, low, rest @ ..]) => {
                    let digits = [*high, *low];
                    bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                    rest
                }
                (b'\\', [c, rest @ ..]) => {
                    assert!(b"\"\\".contains(c), "{argument}");
                    bytes.push(*c);
                    rest
                }
                (b'"', _) => panic!("a quote ends {argument} too early"),
                (c, rest) => {
                    bytes.push(*c);
                    rest
                }
            };
        }
        bytes
    }

    #[test]
    fn an_argument_of_redis_cli_is_one_and_the_same() {
        for text in [HOSTILE, "", " ", "'", "\"", "\\", "\\x41", "a b", "~root", "x\ny", "\u{e9}", "日本語"] {
            let argument = redis_cli(text);
            assert!(!argument.contains(is_active), "{argument:?}");
            assert_eq!(unquoted(&argument), text.as_bytes(), "{argument}");
        }
        for plain in ["purchase~US", "t:add:d:1699920000:event", "1.2.3.4", "a%3Ab@c/d-e_f+g"] {
            assert_eq!(redis_cli(plain), plain);
        }
        assert_eq!(redis_cli("$(a)`b`!\n"), r#""\x24(a)\x60b\x60\x21\x0a""#);
    }

    #[test]
    fn an_argument_of_a_shell_is_one_and_the_same() {
        let said = |argument: &str| {
            let script = format!("printf %s {argument}");
            let output = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let hostile = HOSTILE.replace('\0', "");
        for text in [&*hostile, "", "'", "it's", "$(echo x)", "`id`!", "a\nb", "\\\u{9b}7'", "{a,b}", "-n *"] {
            let argument = shell(text);
            assert!(!argument.contains(is_active), "{argument:?}");
            assert_eq!(said(&argument), *text, "{argument}");
        }
        assert_eq!(shell("traqq:quarantine"), "'traqq:quarantine'");
        assert_eq!(shell("a\x1b'"), r"$'a\033\''");
    }

    /// A line of several arguments, pasted into a shell by mistake.
    #[test]
    fn what_is_meant_for_redis_cli_runs_nothing_in_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let line = format!("HINCRBY {} {} 1", redis_cli(HOSTILE), redis_cli("$(touch x)`touch y`; touch z"));
        let mut bash = Command::new("bash");
        _ = bash.args(["-c", &line]).current_dir(&directory).output().unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }
}
