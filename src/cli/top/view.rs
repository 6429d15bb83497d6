//! What `traqq top` shows, as lines.

use std::collections::VecDeque;

use crate::cli::answer::{Cell, MetricName};
use crate::cli::chart::{counted, grouped, sparkline, squeeze};
use crate::cli::show::{metric_lines, total};
use crate::cli::stats::{Partition, Stats};
use crate::cli::table::Table;
use crate::cli::terminal::{Style, Terminal, printable, width};

/// Wide enough for two leaders side by side.
const TWO_COLUMNS: usize = 100;
const GAP: usize = 4;
/// Wide enough for the offsets of partitions.
const OFFSETS_COLUMNS: usize = 64;

/// Everything that is known.
#[derive(Default)]
pub struct Board {
    pub url: String,
    pub stats: Option<Stats>,
    /// Why what is shown may be old.
    pub trouble: Option<String>,
    /// Events per second, the latest last; `None` where it is not known.
    pub rates: VecDeque<Option<f64>>,
    pub leaders: Vec<(MetricName, Cell)>,
    /// Why nothing leads.
    pub remark: Option<String>,
}

impl Board {
    /// At most as many lines as `rows`, none wider than the terminal.
    pub fn lines(&self, terminal: &Terminal, rows: usize) -> Vec<String> {
        let mut lines = self.head(terminal);
        if let Some(stats) = &self.stats {
            lines.extend(self.totals(stats, terminal));
            lines.extend(uncounted(stats, terminal, (rows / 4).max(2)));
            lines.extend(partitions(&stats.partitions, terminal, (rows / 3).max(3)));
        }
        lines.extend(self.remark.iter().map(|why| terminal.fit(&printable(why))));
        lines.extend(self.leaders(terminal, rows.saturating_sub(lines.len())));
        lines.truncate(rows);
        lines
    }

    fn head(&self, terminal: &Terminal) -> Vec<String> {
        let (style, state) = match (&self.trouble, &self.stats) {
            (Some(_), _) => (Style::Red, "no answer"),
            (None, Some(stats)) if !stats.ready => (Style::Yellow, "not ready"),
            (None, Some(stats)) if stats.is_mostly_uncounted() => (Style::Red, "most events are not counted"),
            (None, Some(_)) => (Style::Green, "ready"),
            (None, None) => (Style::Dim, "asking"),
        };
        let head = terminal.fit(&printable(&format!("traqq  {}  {state}", self.url)));
        // The state is painted where it was not cut.
        let head = match head.strip_suffix(state) {
            Some(start) => format!("{}{}", terminal.paint(Style::Bold, start), terminal.paint(style, state)),
            None => head,
        };
        let because = self.stats.as_ref().and_then(|stats| stats.not_ready_because.as_ref());
        let reasons = self.trouble.iter().chain(because).map(|why| terminal.fit(&printable(why)));
        let mut lines = vec![head];
        lines.extend(reasons.map(|why| terminal.paint(style, &why)));
        lines.push(String::new());
        lines
    }

    fn totals(&self, stats: &Stats, terminal: &Terminal) -> Vec<String> {
        let rate = self.rates.back().copied().flatten();
        let rate = rate.map_or_else(|| "-".to_owned(), |rate| grouped(&rate.round().to_string()));
        let now = format!("{rate:>7} events/s  ");
        let room = terminal.columns.saturating_sub(width(&now)).min(120);
        let rates: Vec<Option<f64>> = self.rates.iter().copied().collect();
        let line = terminal.paint(Style::Cyan, &sparkline(&squeeze(&rates, room)));
        let number = |number: u64| grouped(&number.to_string());
        let totals = format!(
            "{} in {} of {}, {} behind",
            counted(stats.totals.events, "event"),
            counted(stats.totals.records, "record"),
            number(stats.totals.batches) + if stats.totals.batches == 1 { " batch" } else { " batches" },
            counted(stats.lag_records.max(0).unsigned_abs(), "record"),
        );
        let first = if room > 1 { format!("{now}{line}") } else { terminal.fit(&now) };
        vec![first, terminal.fit(&totals), String::new()]
    }

    /// One number in a line first, then the lists in as many rows as there are.
    fn leaders(&self, terminal: &Terminal, rows: usize) -> Vec<String> {
        let is_list = |cell: &Cell| cell.data.as_ref().is_none_or(|data| data.values.is_some());
        let (lists, numbers): (Vec<_>, Vec<_>) = self.leaders.iter().partition(|(_, cell)| is_list(cell));
        let mut lines = Vec::new();
        let mut table = Table::new(&["", ""]);
        for (name, cell) in &numbers {
            table.row([name.to_string(), cell.data.as_ref().map_or_else(String::new, total)]);
        }
        if !numbers.is_empty() {
            lines.extend(table.lines(terminal));
            lines.push(String::new());
        }
        let columns = if terminal.columns >= TWO_COLUMNS { 2 } else { 1 };
        let part = terminal.part((terminal.columns - (columns - 1) * GAP) / columns);
        let rows_of_lists = lists.len().div_ceil(columns).max(1);
        let height = (rows.saturating_sub(lines.len()) / rows_of_lists).saturating_sub(1).clamp(2, 12);
        for group in lists.chunks(columns) {
            let panels: Vec<Vec<String>> = group.iter().map(|(name, cell)| metric_lines(name, cell, &part)).collect();
            let shown = panels.iter().map(Vec::len).max().unwrap_or(0).min(height);
            for row in 0..shown {
                let cell = |panel: &Vec<String>| {
                    let text = panel.get(row).cloned().unwrap_or_default();
                    let pad = " ".repeat(part.columns.saturating_sub(width(&text)));
                    (if row == 0 { terminal.paint(Style::Bold, &text) } else { text }) + &pad
                };
                let cells: Vec<String> = panels.iter().map(cell).collect();
                lines.push(cells.join(&" ".repeat(GAP)).trim_end().to_owned());
            }
            lines.push(String::new());
        }
        lines
    }
}

/// What is not counted, and why.
fn uncounted(stats: &Stats, terminal: &Terminal, rows: usize) -> Vec<String> {
    let mut lines = stats.uncounted();
    lines.truncate(rows);
    let style = if stats.is_mostly_uncounted() { Style::Red } else { Style::Yellow };
    let mut lines: Vec<String> =
        lines.iter().map(|line| terminal.paint(style, &terminal.fit(&printable(line)))).collect();
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

fn partitions(partitions: &[Partition], terminal: &Terminal, rows: usize) -> Vec<String> {
    if partitions.is_empty() {
        return Vec::new();
    }
    // Where there is little room, how far behind it is says more than where that is.
    let is_narrow = terminal.columns < OFFSETS_COLUMNS;
    let shown = |cells: [String; 7]| -> Vec<String> {
        let offsets = [2, 3];
        let cells = cells.into_iter().enumerate().filter(|(index, _)| !(is_narrow && offsets.contains(index)));
        cells.map(|(_, cell)| cell).collect()
    };
    let heads = shown(["partition", "state", "position", "end", "behind", "by", ""].map(str::to_owned));
    let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    // Those that wait for a person first, then those with the most to do.
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|partition| (partition.reason.is_none(), std::cmp::Reverse(partition.lag_records)));
    let number = |number: i64| grouped(&number.to_string());
    for partition in sorted.iter().take(rows) {
        table.row(shown([
            format!("{}/{}", partition.topic, partition.partition),
            partition.state.clone(),
            number(partition.position),
            number(partition.end),
            number(partition.lag_records),
            format!("{:.0} s", partition.lag_seconds),
            partition.reason.clone().unwrap_or_default(),
        ]));
    }
    let mut lines = table.lines(terminal);
    if sorted.len() > rows {
        lines.push(terminal.fit(&format!("and {} more", sorted.len() - rows)));
    }
    lines.push(String::new());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let metric = |text: &str| serde_json::from_str::<MetricName>(text).unwrap();
        let cell = |text: &str| serde_json::from_str::<Cell>(text).unwrap();
        let stats = r#"{"ready":true,"not_ready_because":null,"totals":{"records":12,"events":12345,"batches":1},
            "lag_records":7,"partitions":[
            {"topic":"events","partition":0,"state":"counting","position":12,"end":19,"lag_records":7,"lag_seconds":2.4,"reason":null},
            {"topic":"events","partition":1,"state":"stopped","position":5,"end":5,"lag_records":0,"lag_seconds":0,"reason":"the log lost records"}]}"#;
        let rows =
            r#"{"data":{"exact":true,"values":[{"value":"/ünïcode/日本語","count":9000},{"value":"/b","count":3}]}}"#;
        Board {
            url: "http://127.0.0.1:9877".to_owned(),
            stats: serde_json::from_str(stats).unwrap(),
            trouble: None,
            rates: (0..500).map(|rate| Some(f64::from(rate))).collect(),
            leaders: vec![
                (metric(r#"{"metric":"top","pattern":"url"}"#), cell(rows)),
                (metric(r#"{"metric":"add","pattern":"event"}"#), cell(rows)),
                (metric(r#"{"metric":"bitmap","pattern":"ip"}"#), cell(r#"{"data":{"unique":5,"error":0.0081}}"#)),
            ],
            remark: None,
        }
    }

    #[test]
    fn it_fits_every_terminal() {
        for columns in 1..160 {
            for rows in 1..50 {
                let lines = board().lines(&Terminal::test(true, columns), rows);
                assert!(lines.len() <= rows);
                for line in lines {
                    assert!(width(&line) <= columns, "{columns}x{rows}: {line:?}");
                }
            }
        }
    }

    #[test]
    fn everything_is_there() {
        let text = board().lines(&Terminal::test(false, 120), 60).join("\n");
        for part in [
            "traqq  http://127.0.0.1:9877  ready",
            "    499 events/s  ▁",
            "12,345 events in 12 records of 1 batch, 7 records behind",
            "events/1   stopped          5    5       0  0 s  the log lost records",
            "bitmap/ip  5 unique, ± 1 (95 %)",
            "/ünïcode/日本語  9,000  █",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        // Side by side.
        assert!(text.lines().any(|line| line.contains("top/url") && line.contains("add/event")), "{text}");
    }

    #[test]
    fn events_that_are_not_counted_are_said() {
        let stats = r#"{"ready":true,"totals":{"records":301,"events":1,"batches":1,"dead_letters":300},"most_uncounted":true,
            "dead_letters":{"to":"discard","reasons":[{"reason":"no_event","explanation":"an event has a name","records":300,
            "first":{"topic":"events","partition":0,"offset":1},"last":{"topic":"events","partition":0,"offset":300}}]}}"#;
        let board = Board { stats: serde_json::from_str(stats).unwrap(), ..board() };
        let text = board.lines(&Terminal::test(false, 120), 60).join("\n");
        for part in [
            "most events are not counted\n",
            "300 of 301 events not counted; they are discarded\n",
            "  no_event 300 (first events/0@1, last events/0@300): an event has a name\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        for columns in 1..160 {
            for rows in 1..50 {
                let lines = board.lines(&Terminal::test(true, columns), rows);
                assert!(lines.len() <= rows && lines.iter().all(|line| width(line) <= columns));
            }
        }
    }

    /// Labels of events, names of topics and what a server says of itself stand on it.
    #[test]
    fn nothing_on_the_board_acts_on_the_terminal() {
        let hostile = "\u{1b}[2J\u{1b}]0;x\u{7}\r\n\u{9b}1m\u{202e}\u{200f}\u{7f}";
        let text = serde_json::to_string(hostile).unwrap();
        let stats = format!(
            r#"{{"ready":false,"not_ready_because":{text},"totals":{{"records":2,"events":1,"dead_letters":1}},
            "dead_letters":{{"to":{text},"reasons":[{{"reason":{text},"explanation":{text},"records":1}}]}},
            "partitions":[{{"topic":{text},"partition":0,"state":{text},"reason":{text}}}]}}"#
        );
        let name = format!(r#"{{"metric":{text},"pattern":{text},"of":{text}}}"#);
        let list = format!(r#"{{"data":{{"values":[{{"value":{text},"count":1}}]}},"missing":{{{text}:2}}}}"#);
        let number = format!(r#"{{"data":{{"count":1,"min":{text},"max":{text}}},"reason":{text}}}"#);
        let leaders =
            [list, number].map(|cell| (serde_json::from_str(&name).unwrap(), serde_json::from_str(&cell).unwrap()));
        let board = Board {
            url: hostile.to_owned(),
            stats: serde_json::from_str(&stats).unwrap(),
            trouble: Some(hostile.to_owned()),
            rates: VecDeque::new(),
            leaders: leaders.into(),
            remark: Some(hostile.to_owned()),
        };
        for columns in [20, 80, 160] {
            for line in board.lines(&Terminal::test(true, columns), 60) {
                assert!(!line.contains(traqq_core::model::escape::is_active), "{line:?}");
                assert!(width(&line) <= columns, "{columns}: {line:?}");
            }
        }
    }

    #[test]
    fn a_server_that_is_gone_is_said() {
        let board = Board { trouble: Some("nothing answers\nthere".to_owned()), ..board() };
        let text = board.lines(&Terminal::test(true, 80), 24).join("\n");
        assert!(text.contains("no answer\nnothing answers\\nthere\n"), "{text}");
    }
}
