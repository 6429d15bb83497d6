//! The nouns every layer shares. No I/O, no clock, no threads.

pub mod address;
mod bucket;
mod check;
pub mod escape;
mod position;
mod record;
mod retention;
mod secret;

pub use bucket::{Bucket, BucketKind, BucketSpan, Zone};
pub use check::{Check, Finding};
pub use position::{Checkpoint, CheckpointError, Fingerprint, Positions, Span, TopicPartition, TopicPartitionError};
pub use record::{Header, Part, Record, RecordBatch, RecordLengths, are_headers, put_header};
pub use retention::Retention;
pub use secret::Secret;
