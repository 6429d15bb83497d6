//! Tables for a terminal.

use super::chart::bar;
use super::terminal::{Style, Terminal, cut, printable, width};
use super::{Outcome, output};

const GAP: &str = "  ";
/// A bar is no longer, however wide the terminal is.
const BAR_COLUMNS_MAX: usize = 40;
/// A bar that would be shorter is left out.
const BAR_COLUMNS_MIN: usize = 4;
/// A column of text is not made narrower.
const TEXT_COLUMNS_MIN: usize = 6;

pub enum Cell {
    Text(String),
    /// A fraction of the longest bar.
    Bar(f64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(printable(text))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// Columns aligned, numbers to the right, bars as long as there is room. On a terminal what is too
/// wide is cut, text first; elsewhere nothing is.
pub struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With heads that are all empty there is no line for them.
    pub fn new(heads: &[&str]) -> Self {
        Self { heads: heads.iter().map(|head| (*head).to_owned()).collect(), rows: Vec::new() }
    }

    pub fn row<T: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<Cell> = cells.into_iter().map(Into::into).collect();
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }

    pub fn print(&self) -> Outcome {
        self.lines(&Terminal::stdout()).iter().try_for_each(|line| output::styled(line))
    }

    pub fn lines(&self, terminal: &Terminal) -> Vec<String> {
        let columns: Vec<Column> = (0..self.heads.len()).map(|index| self.column(index)).collect();
        let widths = fit(&columns, terminal);
        let heads = self.heads.iter().map(|head| Cell::from(head.as_str())).collect::<Vec<_>>();
        let mut lines = Vec::new();
        if self.heads.iter().any(|head| !head.is_empty()) {
            lines.push(terminal.paint(Style::Bold, &line(&heads, &columns, &widths, terminal)));
        }
        lines.extend(self.rows.iter().map(|row| line(row, &columns, &widths, terminal)));
        lines
    }

    fn column(&self, index: usize) -> Column {
        let cells = || self.rows.iter().map(|row| &row[index]);
        let is_bar = cells().any(|cell| matches!(cell, Cell::Bar(_)));
        let texts = cells().filter_map(|cell| if let Cell::Text(text) = cell { Some(text) } else { None });
        let longest = texts.map(|text| width(text)).chain([width(&self.heads[index])]).max().unwrap_or(0);
        let is_number = !is_bar && cells().all(|cell| matches!(cell, Cell::Text(text) if is_numeric(text)));
        Column { is_bar, is_number, longest }
    }
}

struct Column {
    is_bar: bool,
    is_number: bool,
    /// Of its texts.
    longest: usize,
}

/// The columns' widths: bars take what is left over, and words give way to numbers.
fn fit(columns: &[Column], terminal: &Terminal) -> Vec<usize> {
    let mut widths: Vec<usize> = columns.iter().map(|column| column.longest).collect();
    let bars = columns.iter().filter(|column| column.is_bar).count();
    let room = terminal.columns.saturating_sub(GAP.len() * (columns.len() - bars).saturating_sub(1));
    while terminal.is_terminal && widths.iter().sum::<usize>() > room {
        let words = (0..columns.len()).filter(|index| !columns[*index].is_number && !columns[*index].is_bar);
        let Some(widest) = words.max_by_key(|index| widths[*index]).filter(|index| widths[*index] > TEXT_COLUMNS_MIN)
        else {
            break;
        };
        widths[widest] -= 1;
    }
    let left = room.saturating_sub(widths.iter().sum::<usize>() + GAP.len() * bars);
    for (column, width) in columns.iter().zip(&mut widths).filter(|(column, _)| column.is_bar) {
        *width = (left / bars + column.longest).min(BAR_COLUMNS_MAX);
    }
    widths
}

fn line(cells: &[Cell], columns: &[Column], widths: &[usize], terminal: &Terminal) -> String {
    let mut line = String::new();
    for ((cell, column), columns) in cells.iter().zip(columns).zip(widths) {
        let text = match cell {
            Cell::Text(text) if terminal.is_terminal => cut(text, *columns),
            Cell::Text(text) => text.clone(),
            Cell::Bar(_) if *columns < BAR_COLUMNS_MIN => String::new(),
            Cell::Bar(fraction) => bar(*fraction, *columns),
        };
        let pad = " ".repeat(columns.saturating_sub(width(&text)));
        let parts = if column.is_number { [pad, text] } else { [text, pad] };
        line.push_str(&parts.concat());
        line.push_str(GAP);
    }
    terminal.fit(line.trim_end())
}

fn is_numeric(cell: &str) -> bool {
    let rest = cell.trim_start_matches('-');
    cell.is_empty()
        || (rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.chars().all(|c| c.is_ascii_digit() || ".,_%".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["value", "count", ""]);
        for (value, count, fraction) in [("日本語のページ", "1,200", 1.0), ("/cart?a=b&c=d", "7", 0.25)] {
            table.row([Cell::from(value), count.into(), Cell::Bar(fraction)]);
        }
        table
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in 1..120 {
            for line in table().lines(&Terminal::test(true, columns)) {
                assert!(width(&line) <= columns, "{columns}: {line:?}");
            }
        }
    }

    #[test]
    fn words_give_way_to_numbers() {
        let lines = table().lines(&Terminal::test(true, 20));
        assert_eq!(lines, ["value          count", "日本語のペー…  1,200", "/cart?a=b&c=d      7"]);
    }

    #[test]
    fn bars_take_what_is_left() {
        let lines = table().lines(&Terminal::test(true, 31));
        assert_eq!(lines[1], "日本語のページ  1,200  ████████");
        assert_eq!(lines[2], "/cart?a=b&c=d       7  ██");
    }

    #[test]
    fn what_a_program_reads_is_whole() {
        let mut table = Table::new(&["key", "value"]);
        table.row(["k", &"v".repeat(500)]);
        assert_eq!(width(&table.lines(&Terminal::test(false, 80))[1]), 505);
    }
}
