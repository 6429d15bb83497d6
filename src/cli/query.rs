//! `traqq query`: every metric, per bucket.

use clap::Args;

use super::table::{Table, bar};
use super::{Failure, Outcome, block_on, print_json};
use crate::app;
use crate::config::Config;
use crate::model::BucketKind;
use crate::query::{Answer, Cell, Data, Range, Request};

const BAR_COLUMNS: usize = 30;
/// Values of a metric in the overview.
const OVERVIEW_VALUES: usize = 5;

#[derive(Args)]
pub struct Query {
    #[command(flatten)]
    range: RangeArguments,

    #[arg(long)]
    json: bool,
}

/// Which buckets are asked about.
#[derive(Args)]
pub struct RangeArguments {
    /// So many days, today included [default: today]
    #[arg(long, conflicts_with_all = ["from", "to"])]
    days: Option<String>,

    /// First instant, RFC 3339 or epoch seconds
    #[arg(long, requires = "to")]
    from: Option<String>,

    /// The instant after the last, RFC 3339 or epoch seconds
    #[arg(long, requires = "from")]
    to: Option<String>,

    /// Kind of bucket: d, h or m
    #[arg(long, default_value = "d")]
    bucket: String,
}

impl RangeArguments {
    pub fn range(&self) -> Result<Range, Failure> {
        Range::of(self.days.as_deref(), self.from.as_deref(), self.to.as_deref())
            .map_err(|error| Failure::Usage(error.to_string()))
    }

    pub fn kind(&self) -> Result<BucketKind, Failure> {
        let kind = BucketKind::ALL.into_iter().find(|kind| kind.to_string() == self.bucket);
        kind.ok_or_else(|| Failure::Usage(format!("--bucket {:?} is not d (day), h (hour) or m (minute)", self.bucket)))
    }
}

impl Query {
    pub fn run(self, config: &Config) -> Outcome {
        let limit = if self.json { None } else { Some(OVERVIEW_VALUES) };
        let request = Request::Query { range: self.range.range()?, bucket: self.range.kind()?, limit };
        let engine = app::engine(config)?;
        let answer = block_on(engine.ask(&request, app::now()))?.map_err(|error| Failure::Failed(error.to_string()))?;
        if self.json {
            let json = serde_json::to_value(&answer).map_err(|error| Failure::Failed(error.to_string()))?;
            return print_json(&json);
        }
        let Answer::Query(answer) = answer else { unreachable!("a query is answered by a query") };
        for bucket in &answer.buckets {
            say!("{}  to  {}", bucket.span.start, bucket.span.end);
            for metric in &bucket.metrics {
                let name = &metric.metric;
                let of = name.of.as_ref().or(name.add_key.as_ref()).map_or_else(String::new, |of| format!("/{of}"));
                say!("\n  {}/{}{of}", name.metric, name.pattern);
                let mut table = Table::new(&["  value", "number", ""]);
                show_cell(&metric.cell, &mut table);
                table.print();
            }
            say!("");
        }
        Ok(())
    }
}

/// The rows of one cell, with bars.
pub fn show_cell(cell: &Cell, table: &mut Table) {
    let Some(data) = &cell.data else {
        let reason = cell.reason.map_or_else(String::new, |reason| format!("{reason:?}").to_lowercase());
        table.row(vec!["-".to_owned(), "unknown".to_owned(), reason]);
        return;
    };
    let mut rows = |rows: Vec<(String, String, f64)>| {
        let max = rows.iter().map(|row| row.2).fold(0.0, f64::max);
        for (value, number, size) in rows {
            table.row(vec![format!("  {value}"), number, bar(size, max, BAR_COLUMNS)]);
        }
    };
    match data {
        Data::Unique { unique, error } => {
            let band = (*unique as f64 * error * 2.0).ceil();
            table.row(vec!["  unique".to_owned(), unique.to_string(), format!("± {band} (95 %)")]);
        }
        Data::UniqueBy { values, .. } => {
            rows(values.iter().map(|row| (row.value.to_string(), row.unique.to_string(), row.unique as f64)).collect());
        }
        Data::Count { values, .. } | Data::Top { values, .. } => {
            rows(values.iter().map(|row| (row.value.to_string(), row.count.to_string(), row.count as f64)).collect());
        }
        Data::CountOne { count } => table.row(vec!["  count".to_owned(), count.to_string(), String::new()]),
        Data::Sum { sum, count, values, .. } => {
            rows(values.iter().map(|row| (row.value.to_string(), row.sum.to_string(), row.sum.0 as f64)).collect());
            table.row(vec!["  all".to_owned(), sum.to_string(), format!("of {count}")]);
        }
        Data::SumOne { sum, count } => table.row(vec!["  sum".to_owned(), sum.to_string(), format!("of {count}")]),
    }
    for (flag, text) in [
        (cell.capped, "(capped: more values are counted under __other__)"),
        (cell.incomplete, "(incomplete: a key could not take all of its writes)"),
        (cell.partial, "(partial: counting began inside this bucket)"),
    ] {
        if flag {
            table.row(vec![format!("  {text}"), String::new(), String::new()]);
        }
    }
}
