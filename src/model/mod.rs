//! The nouns every layer shares. No I/O, no clock, no threads.

pub mod address;
mod bucket;
mod check;
pub mod escape;
mod pattern;
mod position;
mod record;
mod rules;
mod secret;
mod write;

pub use bucket::{Bucket, BucketKind, BucketSpan, Zone};
pub use check::{Check, Finding};
pub use pattern::{Pattern, PatternError};
pub use position::{Checkpoint, Fingerprint, Positions, Span, TopicPartition, TopicPartitionError};
pub use record::{Header, Part, Record, RecordBatch, RecordLengths, are_headers, put_header};
pub use rules::{
    BitmapBy, BucketRules, EventRules, Mapping, Retention, Retentions, Rules, RulesError, SumBy, ValidRules,
};
pub use secret::Secret;
pub use write::{Elements, KeyWrite, Metric, OTHER, Totals, VALUE_SCALE, WriteBatch, Writes, increments};
