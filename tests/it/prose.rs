//! Comments and documents end at 100 columns, and links between documents lead somewhere.

use std::path::{Path, PathBuf};

const COLUMNS: usize = 100;
/// What is not ours, or not written by hand.
const SKIPPED: [&str; 5] = ["target", ".git", "corpus", "vendor", "fixtures"];

fn files(place: &Path) -> Vec<PathBuf> {
    let name = place.file_name().unwrap_or_default();
    if SKIPPED.iter().any(|skipped| name == *skipped) {
        return Vec::new();
    }
    if place.is_file() {
        return vec![place.to_owned()];
    }
    std::fs::read_dir(place).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect()
}

/// The lines of a text that are prose, with their numbers.
fn prose<'t>(path: &Path, text: &'t str) -> Vec<(usize, &'t str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let starts = |line: &str, marks: &[&str]| marks.iter().any(|mark| line.trim_start().starts_with(mark));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "rs" => lines.filter(|(_, line)| starts(line, &["//"])).collect(),
        "lua" => lines.filter(|(_, line)| starts(line, &["--"])).collect(),
        "py" | "toml" | "yaml" => lines.filter(|(_, line)| starts(line, &["#"])).collect(),
        "" if text.starts_with("#!") => lines.filter(|(_, line)| starts(line, &["# "])).collect(),
        "md" => {
            // Tables have no shorter lines, and code is as long as it is.
            let mut is_code = false;
            lines
                .filter(|(_, line)| {
                    is_code ^= line.trim_start().starts_with("```");
                    !is_code && !line.starts_with("    ") && !starts(line, &["|", "```"])
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn comments_and_documents_end_at_100_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut long, mut count) = (Vec::new(), 0);
    for path in files(root) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        for (number, line) in prose(&path, &text) {
            count += 1;
            if line.chars().count() > COLUMNS && !line.contains("://") {
                long.push(format!("{name}:{number}: {line}"));
            }
        }
    }
    assert!(count > 5_000, "only {count} lines were found");
    assert!(long.is_empty(), "these are longer:\n{}", long.join("\n"));
}

/// The names that a document's headings can be reached by.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let link = regex::Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let documents = files(root).into_iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
    let (mut broken, mut count) = (Vec::new(), 0);
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        let targets = link.captures_iter(&text).map(|found| found[1].to_owned());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")) {
            count += 1;
            let (file, anchor) = target.split_once('#').map_or((&*target, None), |(file, anchor)| (file, Some(anchor)));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let leads = match (std::fs::read_to_string(&file), anchor) {
                (Ok(text), Some(anchor)) => anchors(&text).iter().any(|known| known == anchor),
                (Ok(_), None) => true,
                (Err(_), _) => file.is_dir(),
            };
            if !leads {
                broken.push(format!("{}: {target}", path.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert!(count > 40, "only {count} links were found");
    assert!(broken.is_empty(), "these lead nowhere:\n{}", broken.join("\n"));
}
