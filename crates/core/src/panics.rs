//! Panics of libraries over bytes that come from outside, as errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
    static TEXT: Cell<String> = const { Cell::new(String::new()) };
}

/// What it panicked with and where, on one line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Panicked(String);

/// Does the work, which may panic. Nothing of it is printed: what comes
/// from outside could fill the log with it. Not for work that contains other work.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IS_CONTAINED.get() {
                TEXT.set(info.to_string());
            } else {
                others(info);
            }
        }));
    });
    IS_CONTAINED.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(false);
    result.map_err(|_| Panicked(TEXT.take().lines().collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_one_line() {
        assert_eq!(contained(|| 7), Ok(7));
        let error = contained(|| panic!("one\ntwo")).unwrap_err().to_string();
        assert!(error.contains("one two") && error.contains("panics.rs"), "{error}");
        assert_eq!(contained(|| 8), Ok(8));
    }
}
