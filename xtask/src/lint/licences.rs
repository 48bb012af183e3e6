//! Third-party packages must carry a licence that fits our own MIT or Apache-2.0.

use super::allow::AllowList;
use crate::workspace::Metadata;

/// Licences we take, by their SPDX identifiers.
const TAKEN: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    "Unlicense",
    "CC0-1.0",
    "Unicode-3.0",
    "MIT-0",
    "bzip2-1.0.6",
];

/// Packages whose licence does not fit, or that name none.
pub fn check(metadata: &Metadata, allowed: &mut AllowList) -> Vec<String> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let fits = package.license.as_deref().is_some_and(fits);
        if !fits && !allowed.excuses("licence", &package.name) {
            let licence = package.license.as_deref().unwrap_or("no licence");
            findings.push(format!("licences: {} {} has {licence}", package.name, package.version));
        }
    }
    findings
}

/// Whether an SPDX expression can be satisfied by licences we take: one alternative of every `AND` part.
///
/// Parentheses are honoured one level deep, which is as deep as published crates go.
fn fits(expression: &str) -> bool {
    split(expression, " AND ").iter().all(|part| {
        let part = part.trim().trim_start_matches('(').trim_end_matches(')');
        split(&part.replace('/', " OR "), " OR ").iter().any(|licence| {
            let licence = licence.trim();
            TAKEN.contains(&licence) || (licence.contains(" AND ") && fits(licence))
        })
    })
}

/// Splits at a separator that is not inside parentheses.
fn split(expression: &str, separator: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    let mut rest = expression;
    while let Some(character) = rest.chars().next() {
        if depth == 0 && rest.starts_with(separator) {
            parts.push(String::new());
            rest = &rest[separator.len()..];
            continue;
        }
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
        rest = &rest[character.len_utf8()..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn expressions() {
        assert!(fits("MIT OR Apache-2.0"));
        assert!(fits("MIT/Apache-2.0"));
        assert!(fits("GPL-3.0 OR MIT"));
        assert!(fits("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(fits("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT"));
        assert!(!fits("GPL-2.0"));
        assert!(!fits("MIT AND GPL-3.0"));
    }
}
