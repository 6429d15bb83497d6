//! What others do with the workloads of traqq's benchmarks.
//!
//! `generate` writes the corpora. `corpus_file` reads one and times passes over it. `fields` is
//! what a parser has to extract, `contender` the parsers, `conformance` the documents that tell
//! which of them may be compared.

pub mod conformance;
pub mod contender;
pub mod corpus_file;
pub mod fields;
pub mod generate;
