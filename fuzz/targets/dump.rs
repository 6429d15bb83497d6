//! A file of `traqq store export`: what is imported is exported again, and that export is a fixed
//! point.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq_counts::store::dump::{export, import};
use traqq_counts::store::memory::MemoryStore;
use traqq_fuzz::run;

fuzz_target!(|bytes: &[u8]| {
    let lanes = if bytes.windows(9).any(|window| window == b"\"lanes\":2") { 2 } else { 1 };
    let Some(first) = moved(lanes, bytes) else { return };
    let second = moved(lanes, first.as_bytes()).expect("what was exported is imported");
    // The store in memory has no order of keys.
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(sorted).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(lines(&first), lines(&second));
});

/// A line, its values in their order.
fn sorted(line: &str) -> String {
    let mut line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
    // Of each export its own.
    line.as_object_mut().expect("a line is an object").remove("id");
    for name in ["counts", "sums"] {
        if let Some(values) = line.get_mut(name).and_then(serde_json::Value::as_array_mut) {
            values.sort_unstable_by_key(serde_json::Value::to_string);
        }
    }
    line.to_string()
}

/// The export of a store that was filled from a file; `None` when the file is refused.
fn moved(lanes: usize, file: &[u8]) -> Option<String> {
    run(async {
        let store = MemoryStore::new(lanes);
        import(&store, file).await.ok()?;
        let mut out = Vec::new();
        export(&store, &mut out).await.expect("a store that was filled can be exported");
        Some(String::from_utf8(out).expect("an export is text"))
    })
}
