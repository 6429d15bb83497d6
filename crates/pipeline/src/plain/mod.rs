//! For projections that are a few tables in a database with transactions: the parts that all of
//! them would have alike.
//!
//! - `header`      a header that says whose ledger it is, and of what shape
//! - `fold`        one record after the other into a value
//! - `transaction` a ledger out of one function: what is stored, to what is to be written

mod fold;
mod header;
mod transaction;

pub use fold::{PlainBatch, PlainFold};
pub use header::{PlainHeader, PlainHeaderError};
pub use transaction::{Decide, Texts, TransactionLedger, Transactional, Writes};
