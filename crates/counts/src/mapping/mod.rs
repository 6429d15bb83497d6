//! What is counted: the rules of a mapping, and what a batch of events becomes by them. No I/O, no
//! clock, no threads.

mod metrics;
mod pattern;
mod rules;
mod write;

pub use metrics::{metric_name, metrics_of};
pub use pattern::{Pattern, PatternError};
pub use rules::{BitmapBy, BucketRules, Mapping, Retentions, Rules, RulesError, SumBy, ValidRules};
pub use traqq_core::decode::OTHER;
pub use write::{Elements, KeyWrite, Metric, Totals, VALUE_SCALE, WriteBatch, Writes, increments};
