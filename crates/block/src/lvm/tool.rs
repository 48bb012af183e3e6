//! Calls of the `lvm` tool.

use crate::error::BlockError;
use crate::image::ImageResult;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Lines of the tool's words that an error has.
const LINES: usize = 4;

/// Runs `lvm` with arguments; answers what it says on its standard output.
pub(super) fn lvm(arguments: &[&str]) -> ImageResult<Vec<u8>> {
    let what = || format!("lvm {}", arguments.first().unwrap_or(&""));
    let mut command = Command::new("lvm");
    command.args(arguments).stdin(Stdio::null());
    // Its words are looked at; descriptors of ours are none of its business.
    command.env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let output = command.output().map_err(|error| {
        let advice = "the lvm tools are needed: install the package lvm2";
        BlockError::option(what(), format!("it cannot be run: {error}; {advice}"))
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("WARNING:"));
    let words = lines.take(LINES).map(|line| line.trim_end_matches('.')).collect::<Vec<_>>().join("; ");
    let advice = advice(&words);
    let words = if words.is_empty() { "nothing" } else { &words };
    Err(BlockError::option(what(), format!("it says: {words}{advice}")))
}

/// What to do about what the tool says.
fn advice(text: &str) -> &'static str {
    let says = |words: &str| text.contains(words);
    if says("device-mapper") {
        " - this kernel has no device-mapper: load it with: modprobe dm_mod, or use a kernel that has it"
    } else if says("Permission denied") || says("open failed: Operation not permitted") {
        " - only root may change volume groups"
    } else if says("not found") || says("Failed to find") {
        " - what there is shows: vireo lvm list"
    } else if says("insufficient free space") {
        " - how much is free shows: vireo lvm list; more comes with: vgextend"
    } else {
        ""
    }
}

/// Asks for columns of a table, of all or of what is named.
pub(super) fn report<T: DeserializeOwned>(
    command: &str,
    columns: &str,
    of: Option<&str>,
) -> ImageResult<Vec<T>> {
    #[derive(Deserialize)]
    struct Report<T> {
        report: Vec<BTreeMap<String, Vec<T>>>,
    }
    let mut arguments =
        vec![command, "--reportformat", "json", "--units", "b", "--nosuffix", "--options", columns];
    arguments.extend(of);
    let output = lvm(&arguments)?;
    let report: Report<T> = serde_json::from_slice(&output).map_err(|error| {
        BlockError::option(format!("lvm {command}"), format!("its report is not understood: {error}"))
    })?;
    Ok(report.report.into_iter().flat_map(BTreeMap::into_values).flatten().collect())
}

/// A number, which the report has as text.
pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}
