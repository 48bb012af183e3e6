//! Paths the book, the README and the change log name must exist.
//!
//! A path is a word in backticks that starts with one of our top folders and a slash. A trailing `::item`,
//! `:line` or `/` is left out of the question, and a star matches anything in one folder.

use anyhow::Result;

use crate::workspace;

/// Folders that make a word in backticks a path of ours.
const TOPS: &[&str] = &["crates/", "xtask/", "book/", "fuzz/", ".ci/", ".cargo/"];

/// Named paths that do not exist.
pub fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut pages = workspace::files_below(&workspace::root().join("book"), &["md"])?;
    pages.extend(["README.md", "CHANGELOG.md"].map(|name| workspace::root().join(name)));
    for page in pages {
        let text = std::fs::read_to_string(&page)?;
        for (index, line) in text.lines().enumerate() {
            for path in named_paths(line) {
                if !exists(path) {
                    findings.push(format!(
                        "{}:{}: {path} does not exist",
                        workspace::relative(&page),
                        index + 1
                    ));
                }
            }
        }
    }
    Ok(findings)
}

/// The paths of ours that one line names.
fn named_paths(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|word| TOPS.iter().any(|top| word.starts_with(top)))
}

/// Whether the repository has such a path.
fn exists(path: &str) -> bool {
    let path = path.split("::").next().unwrap_or(path);
    let path = path.split(':').next().unwrap_or(path).trim_end_matches('/');
    match path.split_once('*') {
        None => workspace::root().join(path).exists(),
        Some((start, end)) => {
            let (folder, prefix) = start.rsplit_once('/').unwrap_or(("", start));
            let folder = workspace::root().join(folder);
            std::fs::read_dir(folder).is_ok_and(|entries| {
                entries.flatten().any(|entry| {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    name.starts_with(prefix) && name.ends_with(end)
                })
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{exists, named_paths};

    #[test]
    fn paths_are_found_in_backticks() {
        let line =
            "See `crates/x86` and `cargo test`, not crates/nothing or `VmExit`; also `xtask/src/main.rs:12`.";
        assert_eq!(named_paths(line).collect::<Vec<_>>(), ["crates/x86", "xtask/src/main.rs:12"]);
    }

    #[test]
    fn existence() {
        assert!(exists("xtask/src/main.rs::main"));
        assert!(exists("xtask/src/*.rs"));
        assert!(!exists("xtask/src/nothing.rs"));
    }
}
