//! What a terminal is and can do.

use std::borrow::Cow;
use std::io::{IsTerminal, Stderr, Stdin, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::output::Stdout;
use traqq_core::model::escape;

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

/// Ends every style.
const PLAIN: &str = "\x1b[0m";

impl Style {
    const ALL: [Self; 6] = [Self::Bold, Self::Dim, Self::Red, Self::Green, Self::Yellow, Self::Cyan];

    const fn code(self) -> &'static str {
        match self {
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Red => "\x1b[31m",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Cyan => "\x1b[36m",
        }
    }
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

    /// The text, escaped, in a style.
    pub fn paint(&self, style: Style, text: &str) -> String {
        let text = escape::terminal(text);
        if !self.colors || text.is_empty() {
            return text.into_owned();
        }
        format!("{}{text}{PLAIN}", style.code())
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

/// A line, escaped but for our own styles, if there are colours at all.
pub fn with_styles(line: &str, has_colors: bool) -> Cow<'_, str> {
    if !has_colors || !line.contains('\x1b') {
        return escape::terminal(line);
    }
    let (mut escaped, mut rest) = (String::with_capacity(line.len()), line);
    while let Some(at) = rest.find('\x1b') {
        escaped += &escape::terminal(&rest[..at]);
        rest = &rest[at..];
        let mut codes = Style::ALL.iter().map(|style| style.code()).chain([PLAIN]);
        let code = codes.find(|code| rest.starts_with(code));
        escaped += code.unwrap_or("\\u{1b}");
        rest = &rest[code.map_or(1, str::len)..];
    }
    escaped += &escape::terminal(rest);
    Cow::Owned(escaped)
}

/// A text from outside, which may be a part of a line with styles.
pub fn printable(text: &str) -> String {
    escape::terminal(text).into_owned()
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
        let has_colors = Terminal::stdout().has_colors();
        let lines: Vec<String> = lines.iter().map(|line| format!("{}\x1b[K", with_styles(line, has_colors))).collect();
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
    fn of_a_line_with_styles_nothing_else_acts() {
        let terminal = Terminal { colors: true, ..Terminal::test(true, 80) };
        let painted = terminal.paint(Style::Red, "a\x1b[31mb\x1b[0m");
        assert_eq!(painted, "\x1b[31ma\\u{1b}[31mb\\u{1b}[0m\x1b[0m");
        let line = format!("\r\u{9b}{painted}\x1b[2J\x1b]0;x\x07\x1b");
        let shown = r"\r\u{9b}".to_owned() + &painted + r"\u{1b}[2J\u{1b}]0;x\u{7}\u{1b}";
        assert_eq!(with_styles(&line, true), shown);
        assert!(!with_styles(&line, false).contains('\x1b'));
    }
}
