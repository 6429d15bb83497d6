//! Tables for a terminal.

use std::io::{IsTerminal, Write};

/// Columns aligned; numbers to the right.
pub struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heads: &[&str]) -> Self {
        Self { heads: heads.iter().map(|head| (*head).to_owned()).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    pub fn print(&self) {
        let bold = if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let widths: Vec<usize> = (0..self.heads.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| width(&row[column]));
                cells.chain([width(&self.heads[column])]).max().unwrap_or(0)
            })
            .collect();
        let mut out = std::io::stdout().lock();
        let heads = self.line(&self.heads, &widths);
        // A reader that has seen enough, such as `head`, is no error.
        let _ = writeln!(out, "{}{}{}", bold.0, heads, bold.1);
        for row in &self.rows {
            let _ = writeln!(out, "{}", self.line(row, &widths));
        }
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[column].saturating_sub(width(cell)));
            let is_number = self.rows.iter().all(|row| is_numeric(&row[column]));
            let parts = if is_number { [pad.as_str(), cell.as_str()] } else { [cell.as_str(), pad.as_str()] };
            line.push_str(&parts.concat());
            line.push_str("  ");
        }
        line.trim_end().to_owned()
    }
}

fn is_numeric(cell: &str) -> bool {
    let rest = cell.trim_start_matches('-');
    rest.starts_with(|c: char| c.is_ascii_digit()) && rest.chars().all(|c| c.is_ascii_digit() || ".,_%".contains(c))
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Labels come from events: nothing in them may move the cursor.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A bar of eighths, `full` columns long at `max`.
pub fn bar(value: f64, max: f64, full: usize) -> String {
    const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
    if max <= 0.0 || value <= 0.0 {
        return String::new();
    }
    let eighths = ((value / max) * full as f64 * 8.0).round().max(1.0) as usize;
    let mut bar: String = std::iter::repeat_n('█', eighths / 8).collect();
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}
