//! Events to a [`WriteBatch`](crate::mapping::WriteBatch): the mapping compiled once into a
//! [`Plan`], and the [`Folder`] that runs it. Pure code.

mod explain;
mod fold;
mod gate;
mod plan;
mod tables;

pub use explain::{Absent, Explained, ExplainedEvent, ExplainedPattern, Explainer, Refused};
pub use fold::{FoldStats, Folded, Folder};
pub use gate::{Admitted, Gate, GateRules};
pub use plan::Plan;
