//! What the compiler does not see to: which folder of a crate may import which, and what pure code
//! must not touch. Which crate may use which stands in their manifests. ARCHITECTURE.md says why.

use std::path::{Path, PathBuf};

/// A folder or file of a crate, and which others of the crate, and which crates of ours, it may
/// import.
type Rule = (&'static str, &'static [&'static str]);

/// A crate's sources, and the rules of all that is in them.
const MAY_IMPORT: [(&str, &[Rule]); 3] = [
    (
        "crates/core/src",
        &[
            ("model", &["hll", "error"]),
            ("hll", &[]),
            ("decode", &["model"]),
            ("courtesy.rs", &[]),
            ("panics.rs", &[]),
            ("error.rs", &[]),
            ("pem.rs", &["error"]),
            ("metric.rs", &[]),
        ],
    ),
    (
        "crates/counts/src",
        &[
            ("mapping", &["traqq_core"]),
            ("compile", &["mapping", "traqq_core"]),
            ("store", &["mapping", "traqq_core", "traqq_disk"]),
            ("query", &["mapping", "store", "traqq_core"]),
            ("projection", &["mapping", "compile", "store", "names", "traqq_core", "traqq_pipeline"]),
            ("names.rs", &["traqq_core"]),
        ],
    ),
    (
        "src",
        &[
            ("telemetry", &["traqq_core", "traqq_counts", "traqq_pipeline"]),
            ("server", &["telemetry", "traqq_core", "traqq_counts", "traqq_log", "traqq_pipeline"]),
            (
                "config",
                &["server", "telemetry", "traqq_core", "traqq_counts", "traqq_disk", "traqq_log", "traqq_pipeline"],
            ),
            (
                "app",
                &[
                    "config",
                    "server",
                    "telemetry",
                    "traqq_core",
                    "traqq_counts",
                    "traqq_disk",
                    "traqq_log",
                    "traqq_pipeline",
                ],
            ),
            (
                "cli",
                &[
                    "app",
                    "config",
                    "server",
                    "telemetry",
                    "traqq_core",
                    "traqq_counts",
                    "traqq_disk",
                    "traqq_log",
                    "traqq_pipeline",
                ],
            ),
            ("main.rs", &["cli"]),
        ],
    ),
];

/// Folders that do no I/O and read no clock.
const PURE: [&str; 5] = [
    "crates/core/src/model",
    "crates/core/src/hll",
    "crates/core/src/decode",
    "crates/counts/src/mapping",
    "crates/counts/src/compile",
];
const IMPURE: [&str; 7] = ["tokio", "std::net", "std::fs", "std::thread", "SystemTime", "Instant::now", "async fn"];
/// Names of projections, which the pipeline must not know.
const PROJECTIONS: [&str; 4] = ["traqq_counts", "Counts", "mapping", "Redis"];

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

/// What code imports of its crate, as `crate::name` or out of `crate::{name::..., name}`, and which
/// crates of ours.
fn imports(code: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let of_ours = |rest: &str| format!("traqq_{}", name(rest));
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
    names.extend(code.split("traqq_").skip(1).map(of_ours).filter(|name| code.contains(&format!("{name}::"))));
    names
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code = "use crate::{a::{b, c}, d,\n  e::f}; crate::g::h(); use crate::{i}; use other::{j};";
    assert_eq!(imports(code), ["a", "d", "e", "g", "i"]);
    assert_eq!(imports("use traqq_core::model; \"traqq_records_total\""), ["traqq_core"]);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn folders_import_only_what_they_may() {
    for (sources, places) in MAY_IMPORT {
        for (place, allowed) in places {
            let own = place.trim_end_matches(".rs");
            for path in source_files(&root().join(sources).join(place)) {
                if path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests") {
                    continue;
                }
                for name in imports(&code_of(&path)) {
                    let is_fine = name == own || allowed.contains(&name.as_str());
                    assert!(is_fine, "{} imports {name}, which {place} may not", path.display());
                }
            }
        }
    }
}

#[test]
fn every_folder_is_in_the_list() {
    for (sources, places) in MAY_IMPORT {
        for entry in std::fs::read_dir(root().join(sources)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_known = name == "lib.rs" || places.iter().any(|(place, _)| *place == name);
            assert!(is_known, "{sources}/{name} has no rule");
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

/// Adding a projection changes nothing in the pipeline.
#[test]
fn the_pipeline_names_no_projection() {
    for path in source_files(&root().join("crates/pipeline/src")) {
        let code = code_of(&path);
        for name in PROJECTIONS {
            assert!(!code.contains(name), "{} names {name}", path.display());
        }
    }
}

#[test]
fn metric_names_stand_in_lists() {
    for sources in ["src", "crates"] {
        for path in source_files(&root().join(sources)).iter().filter(|path| !path.ends_with("names.rs")) {
            let code = code_of(path);
            for call in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
                assert!(!code.contains(call), "{} writes a metric's name inline", path.display());
            }
        }
    }
}
