//! Which folder may import which, and what pure code must not touch. ARCHITECTURE.md says why.

use std::path::{Path, PathBuf};

/// Folder or file under `src`, and what of the crate it may import.
const MAY_IMPORT: [(&str, &[&str]); 19] = [
    ("model", &["hll"]),
    ("hll", &[]),
    ("courtesy.rs", &[]),
    ("panics.rs", &[]),
    ("telemetry", &[]),
    ("decode", &["model"]),
    ("mapping", &["model", "decode", "hll"]),
    ("compile", &["model", "mapping", "decode", "hll", "courtesy"]),
    ("database", &["panics"]),
    ("broker", &["model", "hll", "database", "courtesy", "panics"]),
    ("store", &["model", "mapping", "hll", "database", "courtesy"]),
    ("worker", &["model", "hll", "broker", "decode", "telemetry"]),
    ("counts", &["model", "mapping", "decode", "compile", "store", "telemetry", "worker"]),
    ("query", &["model", "mapping", "hll", "store", "decode"]),
    ("server", &["model", "mapping", "query", "broker", "hll", "compile", "courtesy", "decode", "telemetry"]),
    ("config", &["model", "mapping", "decode", "broker", "database", "store", "worker", "server", "telemetry"]),
    (
        "app",
        &[
            "model",
            "broker",
            "compile",
            "config",
            "counts",
            "database",
            "decode",
            "mapping",
            "query",
            "server",
            "store",
            "telemetry",
            "worker",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "broker",
            "compile",
            "config",
            "database",
            "decode",
            "mapping",
            "model",
            "query",
            "server",
            "store",
            "telemetry",
            "worker",
        ],
    ),
    ("main.rs", &["cli"]),
];

/// Folders that do no I/O and read no clock.
const PURE: [&str; 5] = ["model", "hll", "decode", "mapping", "compile"];
const IMPURE: [&str; 7] = ["tokio", "std::net", "std::fs", "std::thread", "SystemTime", "Instant::now", "async fn"];

fn source_files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let entries = std::fs::read_dir(place).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
    entries
        .flat_map(|entry| source_files(&entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// The code of a file without its tests and comments.
fn code_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What code imports of the crate, as `crate::name` or out of `crate::{name::..., name}`.
fn imports(code: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            names.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut is_begin = true;
        for (at, character) in list.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_begin = true,
                _ if is_begin && !character.is_whitespace() => {
                    names.push(name(&list[at..]));
                    is_begin = false;
                }
                _ => {}
            }
        }
    }
    names
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code = "use crate::{a::{b, c}, d,\n  e::f}; crate::g::h(); use crate::{i}; use other::{j};";
    assert_eq!(imports(code), ["a", "d", "e", "g", "i"]);
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn folders_import_only_what_they_may() {
    for (place, allowed) in MAY_IMPORT {
        let own = place.trim_end_matches(".rs");
        for path in source_files(&root().join(place)) {
            if path.ends_with("tests.rs") {
                continue;
            }
            for name in imports(&code_of(&path)) {
                let is_fine = name == own || allowed.contains(&name.as_str());
                assert!(is_fine, "{} imports crate::{name}, which {place} may not", path.display());
            }
        }
    }
}

#[test]
fn pure_folders_do_no_io_and_read_no_clock() {
    for place in PURE {
        for path in source_files(&root().join(place)) {
            let code = code_of(&path);
            for impure in IMPURE {
                assert!(!code.contains(impure), "{} uses {impure}", path.display());
            }
        }
    }
}

#[test]
fn every_folder_is_in_the_list() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "lib.rs" || MAY_IMPORT.iter().any(|(place, _)| *place == name), "{name} has no rule");
    }
}

#[test]
fn metric_names_stand_in_one_list() {
    for path in source_files(&root()) {
        if path.ends_with("telemetry/names.rs") {
            continue;
        }
        let code = code_of(&path);
        for (macro_name, _) in [("counter!(\"", 0), ("gauge!(\"", 0), ("histogram!(\"", 0)] {
            assert!(!code.contains(macro_name), "{} writes a metric's name inline", path.display());
        }
    }
}
