//! Words that must not be in our sources: unfinished work and silent exceptions.
//!
//! The words are looked for in code and comments alike. They are spelled in two halves here, so that this
//! file does not find itself.

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace;

/// What is looked for, and what to do instead.
const WORDS: &[(&str, &str)] = &[
    (concat!("#[", "allow("), "use #[expect(…, reason = \"…\")]"),
    (concat!("#![", "allow("), "use #![expect(…, reason = \"…\")]"),
    (concat!("TO", "DO"), "finish it or file an issue"),
    (concat!("FIX", "ME"), "fix it or file an issue"),
    (concat!("XX", "X"), "say what is wrong"),
    (concat!("to", "do!("), "finish it"),
    (concat!("unimple", "mented!("), "finish it, or answer as the hardware would"),
];

/// Every Rust source of ours.
pub fn rust_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "fuzz"] {
        let folder = workspace::root().join(folder);
        if folder.is_dir() {
            files.extend(workspace::files_below(&folder, &["rs"])?);
        }
    }
    Ok(files)
}

/// Lines with a word that must not be there.
pub fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in rust_files()? {
        let text = std::fs::read_to_string(&file)?;
        for (index, line) in text.lines().enumerate() {
            for (word, instead) in WORDS {
                if is_word(line, word) {
                    findings.push(format!(
                        "{}:{}: {word} is not for our sources: {instead}",
                        workspace::relative(&file),
                        index + 1
                    ));
                }
            }
        }
    }
    Ok(findings)
}

/// Whether `word` is in the line and not part of a longer name.
fn is_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let joins = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !joins(before) && (word.ends_with('(') || !joins(after))
    })
}
