//! One line on standard error that says how far something is.

use std::time::{Duration, Instant};

use super::output::write_error as write;
use super::terminal::{Terminal, printable};

const REDRAW: Duration = Duration::from_millis(100);
/// Between two lines where output is no terminal.
const LOG: Duration = Duration::from_secs(10);

/// Redrawn in place on a terminal; elsewhere a line now and then.
pub struct StatusLine {
    terminal: Terminal,
    drawn: Option<Instant>,
}

impl StatusLine {
    pub fn new() -> Self {
        Self { terminal: Terminal::stderr(), drawn: None }
    }

    /// How often it is worth to call [`StatusLine::update`].
    pub fn interval(&self) -> Duration {
        if self.terminal.is_terminal { REDRAW } else { LOG }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal.is_terminal
    }

    /// Shows `text` if it is time to.
    pub fn update(&mut self, text: impl FnOnce(&Terminal) -> String) {
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < self.interval()) {
            return;
        }
        self.drawn = Some(Instant::now());
        if self.terminal.is_terminal {
            // The size may have changed meanwhile.
            self.terminal = Terminal::stderr();
            let text = printable(&text(&self.terminal));
            write(&format!("\r{}\x1b[K", self.terminal.fit(&text)));
        } else {
            write(&format!("{}\n", printable(&text(&self.terminal))));
        }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        self.clear();
        write(&format!("{}\n", printable(text)));
    }

    /// Nothing is left of it.
    pub fn clear(&mut self) {
        if self.terminal.is_terminal && self.drawn.take().is_some() {
            write("\r\x1b[K");
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.clear();
    }
}
