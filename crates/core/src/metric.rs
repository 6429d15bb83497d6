//! What a metric is. Each crate has a list of its own, `names.rs`, and nobody writes a name
//! anywhere else.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    /// Joined by commas.
    pub labels: &'static str,
    pub help: &'static str,
}

/// A constant for each name, and the list of all.
#[macro_export]
macro_rules! metric_names {
    ($(#[$about:meta])* $list:ident: $($constant:ident = $kind:ident $name:literal [$labels:literal] $help:literal;)*) => {
        $(pub const $constant: &str = $name;)*

        $(#[$about])*
        pub const $list: &[$crate::metric::Definition] = &[
            $($crate::metric::Definition { name: $name, kind: $crate::metric::Kind::$kind, labels: $labels, help: $help },)*
        ];
    };
}
