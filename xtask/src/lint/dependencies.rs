//! A dependency that no source file of the crate mentions is a finding.
//!
//! The search is textual: the dependency's name in code, as a whole word. A crate that is used only through
//! a feature or a link goes to the allow-list as `crate/dependency`.

use anyhow::Result;

use super::allow::AllowList;
use crate::workspace::{self, Metadata};

/// Dependencies that nothing uses.
pub fn check(metadata: &Metadata, allowed: &mut AllowList) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (name, package) in metadata.members() {
        let mut sources = String::new();
        for file in workspace::files_below(package.folder(), &["rs"])? {
            sources.push_str(&std::fs::read_to_string(file)?);
        }
        for dependency in &package.dependencies {
            let used_as = dependency.rename.as_deref().unwrap_or(&dependency.name).replace('-', "_");
            if !mentions(&sources, &used_as)
                && !allowed.excuses("unused-dependency", &format!("{name}/{}", dependency.name))
            {
                let kind = dependency.kind.as_deref().unwrap_or("normal");
                let optional = if dependency.optional { " optional" } else { "" };
                findings
                    .push(format!("{name}: the{optional} {kind} dependency {} is not used", dependency.name));
            }
        }
    }
    Ok(findings)
}

/// Whether `word` appears in `text` with no identifier character on either side.
fn mentions(text: &str, word: &str) -> bool {
    let identifier = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(identifier)
            && !text[at + word.len()..].chars().next().is_some_and(identifier)
    })
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn whole_words_only() {
        assert!(mentions("use libc::c_int;", "libc"));
        assert!(!mentions("use mylibc::c_int; libc_ext", "libc"));
    }
}
