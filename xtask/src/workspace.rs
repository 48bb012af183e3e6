//! Where the repository is and what `cargo metadata` says about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command;

/// The repository's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that started us, so that a toolchain override is kept.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// What we read of `cargo metadata`.
#[derive(Deserialize)]
pub struct Metadata {
    /// Every package of the dependency graph.
    pub packages: Vec<Package>,
    /// Identifiers of our own packages.
    pub workspace_members: Vec<String>,
    /// Where cargo builds.
    pub target_directory: PathBuf,
}

/// One package, ours or somebody else's.
#[derive(Deserialize)]
pub struct Package {
    /// Cargo's identifier.
    pub id: String,
    /// Name in `Cargo.toml`.
    pub name: String,
    /// Version, for messages.
    pub version: String,
    /// SPDX expression.
    pub license: Option<String>,
    /// Path of its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// Direct dependencies of every kind.
    pub dependencies: Vec<Dependency>,
}

/// One direct dependency.
#[derive(Deserialize)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// The name the code uses, when it differs.
    pub rename: Option<String>,
    /// `None` for a normal dependency, else `dev` or `build`.
    pub kind: Option<String>,
    /// Whether it is only wanted by a feature.
    pub optional: bool,
}

impl Metadata {
    /// Asks cargo.
    pub fn load() -> Result<Self> {
        let text = command::output(cargo().args(["metadata", "--format-version", "1", "--locked"]))
            .or_else(|_| command::output(cargo().args(["metadata", "--format-version", "1"])))?;
        serde_json::from_str(&text).context("Cannot read the answer of cargo metadata")
    }

    /// Our own packages by name.
    pub fn members(&self) -> BTreeMap<&str, &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
            .map(|package| (package.name.as_str(), package))
            .collect()
    }
}

impl Package {
    /// The folder that holds the package.
    pub fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }
}

/// Builds the `vireo` program with optimisation and returns its path.
pub fn build_vireo() -> Result<PathBuf> {
    command::run(cargo().args(["build", "--release", "--package", "cli", "--bin", "vireo"]))?;
    Ok(Metadata::load()?.target_directory.join("release/vireo"))
}

/// Every file below a folder with one of the extensions, sorted, build output and hidden folders left out.
pub fn files_below(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("Cannot list {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|ext| extensions.iter().any(|wanted| ext == *wanted)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A path as the repository names it.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
