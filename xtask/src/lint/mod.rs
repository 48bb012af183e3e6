//! `cargo xtask lint`: the rules of the house that rustc and clippy do not know.
//!
//! Each rule is one function from the repository to a list of findings, a finding is one line that says
//! where and what. Exceptions live in `xtask/lint-allow.toml`, each with its reason; an exception that no
//! longer excuses anything is a finding itself.

mod allow;
mod dependencies;
mod layers;
mod licences;
mod paths;
mod size;
mod wording;

use anyhow::{Result, bail};

use crate::workspace::Metadata;

/// Runs every rule and fails when there is a finding.
pub fn run() -> Result<()> {
    let metadata = Metadata::load()?;
    let mut allowed = allow::AllowList::load()?;
    let mut findings = layers::check(&metadata);
    findings.extend(size::check(&mut allowed)?);
    findings.extend(dependencies::check(&metadata, &mut allowed)?);
    findings.extend(licences::check(&metadata, &mut allowed));
    findings.extend(wording::check()?);
    findings.extend(paths::check()?);
    findings.extend(allowed.unused());
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} lint findings", findings.len());
    }
    eprintln!("lint: layers, sizes, dependencies, licences, wording and paths are in order");
    Ok(())
}
