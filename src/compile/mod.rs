//! Events to a [`WriteBatch`](crate::model::WriteBatch): the mapping compiled once into a [`Plan`], and the [`Folder`] that runs it. Pure code.

mod fold;
mod plan;
mod tables;

pub use fold::{DeadLetter, FoldStats, Folded, Folder, Part};
pub use plan::Plan;
