//! What `traqq doctor` finds.

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    pub name: &'static str,
    pub finding: Finding,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    Good(String),
    /// Works, but with a risk that the text names.
    Warning(String),
    /// Counting must not start; the text says how to mend it.
    Bad(String),
}
