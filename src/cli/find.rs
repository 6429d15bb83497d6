//! `traqq find`: one metric.

use clap::Args;

use super::query::{RangeArguments, show_cell};
use super::table::Table;
use super::{Failure, Outcome, block_on, print_json};
use crate::app;
use crate::config::Config;
use crate::query::{Answer, Find as FindRequest, Order, Request, Selector};

#[derive(Args)]
pub struct Find {
    /// KIND/PATTERN, for example top/geo, add/event~geo, bitmap/ip, bitmap_by/geo/ip, add_value/event/amount
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

    #[arg(long)]
    json: bool,
}

impl Find {
    pub fn run(self, config: &Config) -> Outcome {
        let usage = |error: crate::query::QueryError| Failure::Usage(error.to_string());
        let request = Request::Find(FindRequest {
            selector: Selector::parse(&self.metric).map_err(usage)?,
            value: self.value,
            range: self.range.range()?,
            bucket: self.range.kind()?,
            merge: !self.per_bucket,
            order: self.order.as_deref().map(Order::parse).transpose().map_err(usage)?,
            limit: self.limit,
        });
        let engine = app::engine(config)?;
        let answer = block_on(engine.ask(&request, app::now()))?.map_err(|error| Failure::Failed(error.to_string()))?;
        if self.json {
            let json = serde_json::to_value(&answer).map_err(|error| Failure::Failed(error.to_string()))?;
            return print_json(&json);
        }
        let Answer::Find(answer) = answer else { unreachable!("a find is answered by a find") };
        for result in &answer.results {
            say!("{}  to  {}", result.span.start, result.span.end);
            let mut table = Table::new(&["value", "number", ""]);
            show_cell(&result.cell, &mut table);
            table.print();
            say!("");
        }
        Ok(())
    }
}
