//! What a terminal is and can do.

use std::io::{IsTerminal, Stderr, Stdin, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::output::Stdout;

/// Where nobody says how wide it is.
const COLUMNS: usize = 80;
const ROWS: usize = 24;

/// Where output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terminal {
    /// A person looks at it.
    pub is_terminal: bool,
    pub columns: usize,
    pub rows: usize,
    /// Whether to paint; `NO_COLOR` says no.
    colors: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Terminal {
    pub fn stdout() -> Self {
        let stdout = std::io::stdout();
        Self::of(stdout.is_terminal(), tcgetwinsize(&stdout).ok())
    }

    pub fn stderr() -> Self {
        let stderr: Stderr = std::io::stderr();
        Self::of(stderr.is_terminal(), tcgetwinsize(&stderr).ok())
    }

    fn of(is_terminal: bool, size: Option<rustix::termios::Winsize>) -> Self {
        let known = |length: u16, default| if length == 0 { default } else { usize::from(length) };
        let (columns, rows) = size
            .filter(|_| is_terminal)
            .map_or((COLUMNS, ROWS), |size| (known(size.ws_col, COLUMNS), known(size.ws_row, ROWS)));
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { is_terminal, columns, rows, colors: is_terminal && !no_color && !is_dumb }
    }

    #[cfg(test)]
    pub const fn test(is_terminal: bool, columns: usize) -> Self {
        Self { is_terminal, columns, rows: ROWS, colors: false }
    }

    pub const fn has_colors(&self) -> bool {
        self.colors
    }

    pub fn paint(&self, style: Style, text: &str) -> String {
        if !self.colors || text.is_empty() {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Red => "31",
            Style::Green => "32",
            Style::Yellow => "33",
            Style::Cyan => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A part of the terminal, without colours.
    pub fn part(&self, columns: usize) -> Self {
        Self { columns, colors: false, ..*self }
    }

    /// The text, cut where a line of the terminal ends; whole where output is no terminal.
    pub fn fit(&self, text: &str) -> String {
        if self.is_terminal { cut(text, self.columns) } else { text.to_owned() }
    }
}

/// Columns that a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// At most `columns` of a text; an ellipsis says that there was more.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > columns {
            break;
        }
        kept.push(c);
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// Texts come from events and servers: nothing in them may move the cursor or change the direction of a line.
pub fn printable(text: &str) -> String {
    let moves = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if moves(c) { '\u{fffd}' } else { c }).collect()
}

/// The alternate screen without a cursor, keys unbuffered; dropped, everything is as before.
pub struct Screen {
    before: Option<Termios>,
}

impl Screen {
    pub fn open() -> Self {
        let stdin: Stdin = std::io::stdin();
        // Without a terminal for keys there is still Ctrl-C.
        let before = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &before {
            let mut modes = before.clone();
            // Signals stay: Ctrl-C and Ctrl-Z do what they always do.
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            let _ = tcsetattr(&stdin, OptionalActions::Now, &modes);
        }
        write("\x1b[?1049h\x1b[?25l\x1b[2J");
        Self { before }
    }

    /// Replaces what is shown. Lines are no wider than the terminal, and no more than it has.
    pub fn show(&self, lines: &[String]) {
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\x1b[K")).collect();
        write(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write("\x1b[?25h\x1b[?1049l");
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// A terminal that has gone away is noticed elsewhere.
fn write(text: &str) {
    _ = Stdout.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_by_the_columns_they_take() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("e\u{301}e\u{301}", 2), "e\u{301}e\u{301}");
        assert_eq!((cut("abc", 1).as_str(), cut("abc", 0).as_str()), ("…", ""));
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c");
    }
}
