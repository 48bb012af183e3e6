//! The list of excused findings.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::workspace;

/// Path of the list inside the repository.
const FILE: &str = "xtask/lint-allow.toml";

/// `lint-allow.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowList {
    #[serde(default)]
    allow: Vec<Entry>,
}

/// One excuse.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The rule: `file-size`, `function-size`, `unused-dependency` or `licence`.
    rule: String,
    /// What is excused: a file, `file::function`, `crate/dependency`, or a package.
    path: String,
    /// Why.
    reason: String,
    #[serde(skip)]
    used: bool,
}

impl AllowList {
    /// Reads the list.
    pub fn load() -> Result<Self> {
        let text = std::fs::read_to_string(workspace::root().join(FILE))
            .with_context(|| format!("Cannot read {FILE}"))?;
        toml::from_str(&text).with_context(|| format!("Cannot understand {FILE}"))
    }

    /// Whether `rule` is excused for `path`; remembers that the excuse was needed.
    pub fn excuses(&mut self, rule: &str, path: &str) -> bool {
        let mut excused = false;
        for entry in self.allow.iter_mut().filter(|entry| entry.rule == rule && entry.path == path) {
            entry.used = true;
            excused = true;
        }
        excused
    }

    /// Excuses nobody needs, and excuses without a reason.
    pub fn unused(&self) -> Vec<String> {
        self.allow
            .iter()
            .filter(|entry| !entry.used || entry.reason.trim().is_empty())
            .map(|entry| {
                format!("{FILE}: {} for {} excuses nothing, or has no reason", entry.rule, entry.path)
            })
            .collect()
    }
}
