//! `traqq find`: one metric.

use std::collections::BTreeMap;

use clap::Args;

use super::answer::{Both, Cell, Data, FindAnswer, Span, Value, read};
use super::chart::{grouped, sparkline, squeeze};
use super::client::{ServerArgument, path_with};
use super::query::{FormArguments, RangeArguments};
use super::show::{bucket_name, cell_lines, remarks, total};
use super::table::{self, Table};
use super::terminal::{Style, Terminal, printable};
use super::{Failure, Outcome, block_on, output};
use crate::config::Config;
use traqq_counts::query::{Order, Selector};

/// Values that get a line of their own in an answer per bucket.
const LINES_MAX: usize = 20;

#[derive(Args)]
pub struct Find {
    /// KIND/PATTERN, for example top/geo, add/event~geo, bitmap/ip, bitmap_by/geo/ip,
    /// add_value/event/amount
    ///
    /// Unique counts (bitmap, bitmap_by) are estimates with a standard error of 0.81 % and are
    /// marked with ~ or ±; all other numbers are exact.
    #[arg(value_name = "METRIC")]
    metric: String,

    /// One value only
    #[arg(long)]
    value: Option<String>,

    #[command(flatten)]
    range: RangeArguments,

    /// One answer per bucket instead of one over the whole range
    #[arg(long)]
    per_bucket: bool,

    /// desc, asc or name
    #[arg(long)]
    order: Option<String>,

    /// At most this many values
    #[arg(long)]
    limit: Option<usize>,

    #[command(flatten)]
    form: FormArguments,

    #[command(flatten)]
    server: ServerArgument,
}

impl Find {
    pub fn run(self, config: &Config) -> Outcome {
        let usage = |error: traqq_counts::query::QueryError| Failure::Usage(error.to_string());
        Selector::parse(&self.metric).map_err(usage)?;
        self.order.as_deref().map(Order::parse).transpose().map_err(usage)?;
        let limit = self.limit.map(|limit| limit.to_string());
        let mut parameters = vec![("q", Some(self.metric.as_str())), ("value", self.value.as_deref())];
        parameters.extend(self.range.parameters()?);
        parameters.extend([
            ("merge", Some(if self.per_bucket { "false" } else { "true" })),
            ("order", self.order.as_deref()),
            ("limit", limit.as_deref()),
            self.form.parameter(),
        ]);
        let mut client = self.server.client(&config.server)?;
        let body = block_on(client.get(&path_with("/api/v1/find", &parameters)))??;
        if self.form.is_for_programs() {
            return self.form.print(&body);
        }
        let answer: FindAnswer = read(&body)?;
        let metric = self.value.map_or_else(|| self.metric.clone(), |value| format!("{} {value}", self.metric));
        show(&metric, &answer, &Terminal::stdout()).iter().try_for_each(|line| output::styled(line))
    }
}

fn show(metric: &str, answer: &FindAnswer, terminal: &Terminal) -> Vec<String> {
    let range = format!("{} to {}, {}", answer.from, answer.to, super::chart::counted(answer.buckets, "bucket"));
    let head = printable(&format!("{metric}  {range} ({})", answer.time_zone));
    let mut lines = vec![terminal.paint(Style::Cyan, &terminal.fit(&head))];
    if let Some(since) = &answer.since {
        lines.push(terminal.paint(Style::Dim, &terminal.fit(&printable(&format!("counted since {since}")))));
    }
    match &answer.results[..] {
        [Both(_, cell)] => {
            let total = cell.data.as_ref().map(total).filter(|total| !total.is_empty());
            lines.extend(total.map(|total| terminal.paint(Style::Bold, &terminal.fit(&total))));
            lines.extend(cell_lines(cell, terminal));
        }
        results => {
            lines.push(String::new());
            lines.extend(buckets_table(results, &answer.bucket).iter().flat_map(|table| table.lines(terminal)));
            let remarks = remarks_of(results, &answer.bucket);
            lines.extend(remarks.iter().map(|remark| terminal.paint(Style::Yellow, &terminal.fit(remark))));
            let values = values_table(results, terminal);
            if let Some(values) = values {
                lines.push(String::new());
                lines.extend(values.lines(terminal));
            }
        }
    }
    lines
}

/// One row per bucket, with its total; `None` for a leaderboard, which has no totals.
fn buckets_table(results: &[Both<Span, Cell>], kind: &str) -> Option<Table> {
    let size = |cell: &Cell| cell.data.as_ref().and_then(|data| data.number().map(super::answer::Number::size));
    let max = results.iter().filter_map(|Both(_, cell)| size(cell)).fold(0.0, f64::max);
    let mut table = Table::new(&["bucket", "total", ""]);
    for Both(span, cell) in results {
        table.row([
            bucket_name(&span.start, kind).into(),
            cell.data.as_ref().and_then(Data::text).unwrap_or_default().into(),
            table::Cell::Bar(size(cell).map_or(0.0, |size| size / max)),
        ]);
    }
    results.iter().any(|Both(_, cell)| size(cell).is_some()).then_some(table)
}

/// What must be known about some of the buckets, each remark once.
fn remarks_of(results: &[Both<Span, Cell>], kind: &str) -> Vec<String> {
    let mut buckets: BTreeMap<String, Vec<&Span>> = BTreeMap::new();
    for Both(span, cell) in results {
        remarks(cell).into_iter().for_each(|remark| buckets.entry(remark).or_default().push(span));
    }
    let lines = buckets.into_iter().map(|(remark, spans)| match &spans[..] {
        [first, _, ..] => format!("{} and {} more: {remark}", bucket_name(&first.start, kind), spans.len() - 1),
        spans => format!("{}: {remark}", bucket_name(&spans[0].start, kind)),
    });
    lines.map(|line| printable(&line)).collect()
}

/// One row per value, with a line over the buckets; `None` if there are no values.
fn values_table(results: &[Both<Span, Cell>], terminal: &Terminal) -> Option<Table> {
    let mut series: BTreeMap<&Value, Vec<Option<f64>>> = BTreeMap::new();
    for (index, Both(_, cell)) in results.iter().enumerate() {
        for row in cell.data.iter().filter_map(|data| data.values.as_ref()).flatten() {
            let values = series.entry(&row.value).or_insert_with(|| vec![None; results.len()]);
            values[index] = row.number().map(super::answer::Number::size);
        }
    }
    if series.is_empty() {
        return None;
    }
    // A value that a whole list does not have is 0 there; from a list that was cut nothing follows.
    let is_whole: Vec<bool> = results.iter().map(|Both(_, cell)| is_whole(cell)).collect();
    for values in series.values_mut() {
        for (value, is_whole) in values.iter_mut().zip(&is_whole) {
            *value = value.or(is_whole.then_some(0.0));
        }
    }
    let peak = |values: &[Option<f64>]| values.iter().flatten().copied().fold(f64::MIN, f64::max);
    let mut series: Vec<(&Value, Vec<Option<f64>>)> = series.into_iter().collect();
    series.sort_by(|left, right| peak(&right.1).total_cmp(&peak(&left.1)));
    let shown = series.len().min(LINES_MAX);
    let mut table = Table::new(&["value", "highest", "latest", "over the buckets"]);
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| grouped(&value.to_string()));
    for (value, values) in &series[..shown] {
        let line = sparkline(&squeeze(values, terminal.columns / 2));
        table.row([value.to_string(), number(Some(peak(values))), number(values.last().copied().flatten()), line]);
    }
    if series.len() > shown {
        let more = format!("and {} more", grouped(&(series.len() - shown).to_string()));
        table.row([more, String::new(), String::new(), String::new()]);
    }
    Some(table)
}

/// Whether every value of the bucket is in its list.
fn is_whole(cell: &Cell) -> bool {
    let data = cell.data.as_ref();
    data.and_then(|data| Some(data.values_seen? <= data.values.as_ref()?.len() as u64)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"metric":"add","pattern":"event","bucket":"d","time_zone":"UTC","buckets":3,"merged":false,
        "from":"2026-01-01T00:00:00Z","to":"2026-01-04T00:00:00Z","from_epoch":0,"to_epoch":0,"results":[
        {"start":"2026-01-01T00:00:00Z","end":"","start_epoch":0,"end_epoch":0,"data":null,"reason":"expired"},
        {"start":"2026-01-02T00:00:00Z","end":"","start_epoch":0,"end_epoch":0,
         "data":{"count":800,"values_seen":1,"values":[{"value":"view","count":800}]}},
        {"start":"2026-01-03T00:00:00Z","end":"","start_epoch":0,"end_epoch":0,"partial":true,
         "data":{"count":1700,"values_seen":2,"values":[{"value":"view","count":1600},{"value":"buy","count":100}]}}]}"#;

    #[test]
    fn buckets_and_values_over_them() {
        let answer: FindAnswer = serde_json::from_str(ANSWER).unwrap();
        let lines = show("add/event", &answer, &Terminal::test(false, 80)).join("\n");
        for part in [
            "add/event  2026-01-01T00:00:00Z to 2026-01-04T00:00:00Z, 3 buckets (UTC)",
            "2026-01-01: not known: retention has passed",
            "2026-01-02    800  ██████████████████▉\n",
            "view     1,600   1,600  ·▄█",
            "buy        100     100  ·▁█",
            "2026-01-03: partial: counting",
        ] {
            assert!(lines.contains(part), "{part:?} is not in\n{lines}");
        }
        for columns in 1..100 {
            for line in show("add/event", &answer, &Terminal::test(true, columns)) {
                assert!(crate::cli::terminal::width(&line) <= columns, "{columns}: {line}");
            }
        }
    }
}
