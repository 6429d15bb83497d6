//! Answers as tables, and their flags in words.

use super::answer::{Cell, Data, MetricName, Row};
use super::chart::grouped;
use super::table::{self, Table};
use super::terminal::{Style, Terminal, printable};

/// A bucket's start as a person writes it: `2026-01-31`, or `2026-01-31 14:05` for finer ones.
pub fn bucket_name(start: &str, bucket: &str) -> String {
    match (start.get(..10), start.get(11..16)) {
        (Some(day), _) if bucket == "d" => day.to_owned(),
        (Some(day), Some(time)) => format!("{day} {time}"),
        _ => start.to_owned(),
    }
}

/// The metric with its total, then the rows with bars, then what is to be known about them.
pub fn metric_lines(name: &MetricName, cell: &Cell, terminal: &Terminal) -> Vec<String> {
    let total = cell.data.as_ref().map_or_else(String::new, total);
    let head = printable(&name.to_string());
    let mut lines = vec![if total.is_empty() { head } else { printable(&format!("{head}  {total}")) }];
    lines[0] = terminal.paint(Style::Bold, &terminal.fit(&lines[0]));
    lines.extend(cell_lines(cell, terminal));
    lines
}

/// The rows of one cell with bars, and its flags in words.
pub fn cell_lines(cell: &Cell, terminal: &Terminal) -> Vec<String> {
    let rows = cell.data.as_ref().and_then(|data| data.values.as_deref()).unwrap_or(&[]);
    let mut lines = if rows.is_empty() { Vec::new() } else { rows_table(rows).lines(terminal) };
    lines.extend(remarks(cell).iter().map(|remark| terminal.paint(Style::Yellow, &terminal.fit(&printable(remark)))));
    lines
}

fn rows_table(rows: &[Row]) -> Table {
    let max = rows.iter().filter_map(Row::number).map(super::answer::Number::size).fold(0.0, f64::max);
    let mut table = Table::new(&["", "", ""]);
    for row in rows {
        let number = row.number();
        let fraction = number.map_or(0.0, |number| number.size() / max);
        table.row([
            table::Cell::from(row.value.to_string()),
            row.text().unwrap_or_default().into(),
            table::Cell::Bar(fraction),
        ]);
    }
    table
}

/// Over all values.
pub fn total(data: &Data) -> String {
    let Some(number) = data.number() else { return String::new() };
    if let (Some(unique), Some(error)) = (&data.unique, data.error) {
        let band = (unique.size() * error * 2.0).ceil();
        return format!("{unique} unique, ± {} (95 %)", grouped(&band.to_string()));
    }
    let mut text = number.to_string();
    if let (Some(_), Some(count)) = (&data.sum, &data.count) {
        text.push_str(&format!(" in {count} events"));
    }
    if let (Some(min), Some(max)) = (&data.min, &data.max) {
        text.push_str(&format!(", from {min} to {max}"));
    }
    text
}

/// What a reader must know about the numbers, each in a line.
pub fn remarks(cell: &Cell) -> Vec<String> {
    let mut remarks = Vec::new();
    match &cell.data {
        None => {
            let reason = cell.reason.as_deref().map_or("the server does not say why", reason_in_words);
            remarks.push(format!("not known: {reason}"));
        }
        Some(data) => {
            let shown = data.values.as_ref().map_or(0, Vec::len) as u64;
            match data.values_seen {
                Some(0) => remarks.push("nothing was counted".to_owned()),
                Some(seen) if seen > shown && data.values.is_some() => {
                    let more = grouped(&(seen - shown).to_string());
                    remarks.push(format!("and {more} more values"));
                }
                None if data.exact.is_some() && shown == 0 => remarks.push("nothing was counted".to_owned()),
                _ => {}
            }
            if data.exact == Some(false) {
                remarks.push("not exact: the range has more values than are read; a shorter one is exact".to_owned());
            }
        }
    }
    for (reason, buckets) in &cell.missing {
        let buckets = super::chart::counted(*buckets, "bucket");
        remarks.push(format!("without {buckets}: {}", reason_in_words(reason)));
    }
    for (flag, text) in [
        (cell.capped, "capped: values beyond the limit are counted together as __other__"),
        (cell.incomplete, "incomplete: a write failed or a key is unreadable; the true numbers are higher"),
        (cell.partial, "partial: counting of this metric began inside the bucket"),
    ] {
        if flag {
            remarks.push(text.to_owned());
        }
    }
    remarks
}

fn reason_in_words(reason: &str) -> &str {
    match reason {
        "expired" => "retention has passed",
        "before_since" => "the metric was not counted yet",
        "unreadable" => "a key cannot be read; see traqq doctor",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(text: &str) -> Cell {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn flags_are_said_in_words() {
        let text = r#"{"data":{"count":9,"values_seen":12,"values":[{"value":"a","count":9}]},"capped":true,
            "partial":true,"incomplete":true,"missing":{"expired":2,"before_since":1}}"#;
        let remarks = remarks(&cell(text)).join("\n");
        for part in
            ["11 more values", "2 buckets: retention", "1 bucket: the metric", "__other__", "higher", "began inside"]
        {
            assert!(remarks.contains(part), "{part}: {remarks}");
        }
    }

    #[test]
    fn what_is_unknown_says_why() {
        assert_eq!(remarks(&cell(r#"{"data":null,"reason":"expired"}"#)), ["not known: retention has passed"]);
        assert_eq!(remarks(&cell(r#"{"data":{"exact":true,"values":[]}}"#)), ["nothing was counted"]);
        assert_eq!(remarks(&cell(r#"{"data":{"unique":0,"error":0.0081}}"#)), Vec::<String>::new());
    }

    #[test]
    fn totals_have_their_units() {
        let total = |text: &str| total(&serde_json::from_str(text).unwrap());
        assert_eq!(total(r#"{"unique":10000,"error":0.0081}"#), "10,000 unique, ± 162 (95 %)");
        assert_eq!(total(r#"{"sum":99.5,"count":2,"min":1,"max":98.5}"#), "99.5 in 2 events, from 1 to 98.5");
        assert_eq!(total(r#"{"count":1200,"values_seen":2,"values":[]}"#), "1,200");
        assert_eq!(total(r#"{"exact":true,"values":[]}"#), "");
    }

    #[test]
    fn estimates_look_like_estimates_and_exact_numbers_do_not() {
        let lines = |text: &str| cell_lines(&cell(text), &Terminal::test(false, 80)).join("\n");
        let unique = lines(r#"{"data":{"error":0.0081,"values":[{"value":"DE","unique":1200}]}}"#);
        assert!(unique.contains("~1,200"), "{unique}");
        let count = lines(r#"{"data":{"values":[{"value":"DE","count":1200}]}}"#);
        assert!(count.contains("1,200") && !count.contains('~'), "{count}");
    }

    #[test]
    fn buckets_have_short_names() {
        assert_eq!(bucket_name("2026-01-31T00:00:00+01:00", "d"), "2026-01-31");
        assert_eq!(bucket_name("2026-01-31T14:05:00Z", "h"), "2026-01-31 14:05");
    }
}
