//! `traqq query`: every metric, per bucket.

use clap::Args;

use super::answer::{Both, QueryAnswer, read};
use super::client::{ServerArgument, path_with};
use super::show::{bucket_name, metric_lines};
use super::terminal::{Style, Terminal};
use super::{Failure, Outcome, block_on, print_document};
use crate::config::Config;
use crate::model::BucketKind;
use crate::query::Range;

/// Values of a metric in the overview.
const OVERVIEW_VALUES: &str = "5";

#[derive(Args)]
pub struct Query {
    #[command(flatten)]
    range: RangeArguments,

    /// The server's answer as it is
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: ServerArgument,
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
    /// As parameters of a question, checked as far as that is possible here.
    pub fn parameters(&self) -> Result<[(&'static str, Option<&str>); 4], Failure> {
        let [days, from, to] = [&self.days, &self.from, &self.to].map(|text| text.as_deref());
        Range::of(days, from, to).map_err(|error| Failure::Usage(error.to_string()))?;
        if BucketKind::parse(&self.bucket).is_none() {
            let text = format!("--bucket {:?} is not d (day), h (hour) or m (minute)", self.bucket);
            return Err(Failure::Usage(text));
        }
        Ok([("days", days), ("from", from), ("to", to), ("bucket", Some(&self.bucket))])
    }
}

impl Query {
    pub fn run(self, config: &Config) -> Outcome {
        let mut parameters = self.range.parameters()?.to_vec();
        parameters.push(("limit", Some(OVERVIEW_VALUES).filter(|_| !self.json)));
        let mut client = self.server.client(&config.server)?;
        let body = block_on(client.get(&path_with("/api/v1/query", &parameters)))??;
        if self.json {
            return print_document(&body);
        }
        let answer: QueryAnswer = read(&body)?;
        let terminal = Terminal::stdout();
        for bucket in &answer.results {
            say!("{}", terminal.paint(Style::Cyan, &bucket_name(&bucket.start, &answer.bucket)));
            for Both(name, cell) in &bucket.metrics {
                say!("");
                for line in metric_lines(name, cell, &terminal) {
                    say!("{line}");
                }
            }
            say!("");
        }
        Ok(())
    }
}
