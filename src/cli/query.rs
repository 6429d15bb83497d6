//! `traqq query`: every metric, per bucket.

use clap::Args;

use super::answer::{Both, QueryAnswer, read};
use super::client::{ServerArgument, path_with};
use super::show::{bucket_name, metric_lines};
use super::terminal::{Style, Terminal};
use super::{Failure, Outcome, block_on, output, print_csv, print_document};
use crate::config::Config;
use traqq_core::model::BucketKind;
use traqq_counts::query::{Align, Range};

/// Values of a metric in the overview.
const OVERVIEW_VALUES: &str = "5";

#[derive(Args)]
pub struct Query {
    #[command(flatten)]
    range: RangeArguments,

    #[command(flatten)]
    form: FormArguments,

    #[command(flatten)]
    server: ServerArgument,
}

/// In which form a program wants the answer.
#[derive(Args)]
pub struct FormArguments {
    /// The server's answer as it is
    #[arg(long, conflicts_with = "csv")]
    json: bool,

    /// A row per bucket and value, as CSV
    #[arg(long)]
    csv: bool,
}

impl FormArguments {
    /// Whether no person reads it.
    pub const fn is_for_programs(&self) -> bool {
        self.json || self.csv
    }

    pub fn parameter(&self) -> (&'static str, Option<&'static str>) {
        ("format", self.csv.then_some("csv"))
    }

    /// The server's answer as it came.
    pub fn print(&self, body: &[u8]) -> Outcome {
        if self.csv {
            return print_csv(body);
        }
        read::<serde::de::IgnoredAny>(body)?;
        print_document(body)
    }
}

/// Which buckets are asked about.
#[derive(Args)]
pub struct RangeArguments {
    /// So many days, today included [default: today]
    #[arg(long, conflicts_with_all = ["from", "to"])]
    days: Option<String>,

    /// First instant: RFC 3339, a date, epoch seconds or milliseconds, or a distance from now like
    /// now-6h
    #[arg(long)]
    from: Option<String>,

    /// The instant after the last, in any of these forms [default: the end of the current bucket]
    #[arg(long, requires = "from")]
    to: Option<String>,

    /// With out, bounds inside a bucket are rounded outwards instead of refused; those relative to
    /// now always are
    #[arg(long, value_name = "exact|out", conflicts_with = "days")]
    align: Option<String>,

    /// Kind of bucket: d, h or m
    #[arg(long, default_value = "d")]
    bucket: String,
}

impl RangeArguments {
    /// As parameters of a question, checked as far as that is possible here.
    pub fn parameters(&self) -> Result<[(&'static str, Option<&str>); 5], Failure> {
        let [days, from, to, align] = [&self.days, &self.from, &self.to, &self.align].map(|text| text.as_deref());
        let range = align.map_or(Ok(Align::default()), Align::parse).and_then(|it| Range::of(days, from, to, it));
        range.map_err(|error| Failure::Usage(error.to_string()))?;
        if BucketKind::parse(&self.bucket).is_none() {
            let text = format!("--bucket {:?} is not d (day), h (hour) or m (minute)", self.bucket);
            return Err(Failure::Usage(text));
        }
        Ok([("days", days), ("from", from), ("to", to), ("align", align), ("bucket", Some(&self.bucket))])
    }
}

impl Query {
    pub fn run(self, config: &Config) -> Outcome {
        let mut parameters = self.range.parameters()?.to_vec();
        parameters.push(("limit", Some(OVERVIEW_VALUES).filter(|_| !self.form.is_for_programs())));
        parameters.push(self.form.parameter());
        let mut client = self.server.client(&config.server)?;
        let body = block_on(client.get(&path_with("/api/v1/query", &parameters)))??;
        if self.form.is_for_programs() {
            return self.form.print(&body);
        }
        let answer: QueryAnswer = read(&body)?;
        let terminal = Terminal::stdout();
        for bucket in &answer.results {
            output::styled(&terminal.paint(Style::Cyan, &bucket_name(&bucket.start, &answer.bucket)))?;
            for Both(name, cell) in &bucket.metrics {
                say!("");
                metric_lines(name, cell, &terminal).iter().try_for_each(|line| output::styled(line))?;
            }
            say!("");
        }
        Ok(())
    }
}
