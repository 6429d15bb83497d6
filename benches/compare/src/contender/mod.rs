//! The parsers. A type a parser, each made once and asked for every event, so that it may keep its
//! buffers.

mod serde_json;
mod simd_json;
mod sonic;
mod typed;

pub use self::serde_json::{RawSlots, RawSlotsUtf8, SerdeTyped, SerdeTypedUtf8, SerdeValue};
pub use self::simd_json::{SimdBorrowed, SimdTape, SimdTyped};
pub use self::sonic::{SonicGetMany, SonicObjectIter, SonicTyped, SonicValue};

use crate::fields::Fields;

pub trait Contender: Default {
    const NAME: &'static str;
    const NOTE: &'static str;

    /// Calls `read` with the fields and returns true, or returns false where the document is
    /// refused.
    fn parse(&mut self, document: &[u8], read: impl FnOnce(Fields<'_>)) -> bool;
}
