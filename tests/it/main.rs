//! Everything that needs more than one folder, in one binary.

mod hll;
mod model;
mod servers;
