//! Cases that once disagreed, kept in a file and run for ever.
//!
//! One case a line, as JSON. What a small case has in common with every other is left out: registers that are zero,
//! vector state that is initial.

use crate::case::{Case, Mode, Patch};
use crate::layout::USER_DS;
use crate::minimise::plain_xsave;
use crate::{CODE_MAX, CODE_SIZE, XSAVE_SIZE, undefined};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A kept case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regression {
    /// What was wrong, in a line.
    pub wrong: String,
    /// Bits of the code: 64, 32 (flat), or `"32s"` and `"16s"` for segments of the local table.
    #[serde(default = "long", skip_serializing_if = "is_long")]
    mode: String,
    /// Machine code.
    code: String,
    /// Offset of the code in its page.
    #[serde(default, skip_serializing_if = "is_zero")]
    at: u64,
    /// Registers that are not zero, by number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    gprs: BTreeMap<usize, String>,
    /// RFLAGS.
    rflags: String,
    /// ES, SS, DS, FS, GS.
    #[serde(default = "usual_selectors", skip_serializing_if = "are_usual")]
    selectors: [u16; 5],
    /// FS and GS bases.
    #[serde(default, skip_serializing_if = "are_zero")]
    bases: [u64; 2],
    /// Runs of bytes of the XSAVE area that are not initial, by offset.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    xsave: BTreeMap<usize, String>,
    /// Seed of the data.
    #[serde(default, skip_serializing_if = "is_zero")]
    seed: u64,
    /// What overlays the data, by offset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    patches: Vec<(usize, String)>,
    /// Flags that are undefined.
    #[serde(default, skip_serializing_if = "is_zero")]
    undefined: u64,
}

fn long() -> String {
    "64".into()
}

fn is_long(mode: &str) -> bool {
    mode == "64"
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn are_zero(values: &[u64; 2]) -> bool {
    *values == [0; 2]
}

fn usual_selectors() -> [u16; 5] {
    [0, USER_DS, 0, 0, 0]
}

fn are_usual(selectors: &[u16; 5]) -> bool {
    *selectors == usual_selectors()
}

/// Names of the modes.
const MODES: [(&str, Mode); 4] =
    [("64", Mode::Long), ("32", Mode::Flat32), ("32s", Mode::Segmented32), ("16s", Mode::Segmented16)];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.is_ascii() && text.len().is_multiple_of(2), "'{text}' is not pairs of hexadecimal digits");
    let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    pairs.collect::<Result<_, _>>().with_context(|| format!("'{text}' is not pairs of hexadecimal digits"))
}

fn number(text: &str) -> Result<u64> {
    u64::from_str_radix(text, 16).with_context(|| format!("'{text}' is not a hexadecimal number"))
}

impl Regression {
    /// Keeps a case.
    pub fn new(case: &Case, wrong: &str) -> Self {
        let mode = MODES.iter().find(|(_, mode)| *mode == case.mode).map_or("64", |(name, _)| name);
        let registers = case.gprs.iter().enumerate().filter(|(_, value)| **value != 0);
        let plain = plain_xsave();
        let mut xsave = BTreeMap::new();
        for (chunk, (is, was)) in case.xsave.chunks(8).zip(plain.chunks(8)).enumerate() {
            if is != was {
                xsave.insert(chunk * 8, hex(is));
            }
        }
        Regression {
            wrong: wrong.to_owned(),
            mode: mode.to_owned(),
            code: hex(&case.code),
            at: case.code_offset as u64,
            gprs: registers.map(|(number, value)| (number, format!("{value:x}"))).collect(),
            rflags: format!("{:x}", case.rflags),
            selectors: case.selectors,
            bases: [case.fs_base, case.gs_base],
            xsave,
            seed: case.data_seed,
            patches: case.patches.iter().map(|patch| (patch.at, hex(&patch.bytes))).collect(),
            undefined: case.undefined_flags,
        }
    }

    /// The case.
    pub fn case(&self) -> Result<Case> {
        let mode = MODES.iter().find(|(name, _)| *name == self.mode);
        let (_, mode) = mode.with_context(|| format!("there is no mode '{}'", self.mode))?;
        let code = unhex(&self.code)?;
        let undefined_flags = self.undefined | undefined::in_code(&code, mode.bits());
        let at = usize::try_from(self.at)?;
        ensure!(code.len() <= CODE_MAX && at + code.len() <= CODE_SIZE, "the code leaves its page");
        let mut gprs = [0; 16];
        for (&register, value) in &self.gprs {
            *gprs.get_mut(register).context("there are sixteen registers")? = number(value)?;
        }
        let mut xsave = plain_xsave();
        for (&at, bytes) in &self.xsave {
            let bytes = unhex(bytes)?;
            ensure!(at + bytes.len() <= XSAVE_SIZE, "the vector state is longer than its area");
            xsave[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let patches = self.patches.iter().map(|(at, bytes)| Ok(Patch { at: *at, bytes: unhex(bytes)? }));
        Ok(Case {
            mode: *mode,
            code,
            code_offset: at,
            gprs,
            rflags: number(&self.rflags)?,
            selectors: self.selectors,
            fs_base: self.bases[0],
            gs_base: self.bases[1],
            xsave,
            data_seed: self.seed,
            patches: patches.collect::<Result<_>>()?,
            undefined_flags,
            instructions: 1,
        })
    }
}

/// Reads a file of kept cases.
pub fn read(path: &Path) -> Result<Vec<Regression>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), at + 1))
        })
        .collect()
}

/// Appends to a file of kept cases.
pub fn append(path: &Path, kept: &[Regression]) -> Result<()> {
    use std::io::Write;
    let mut text = String::new();
    for regression in kept {
        text += &serde_json::to_string(regression)?;
        text.push('\n');
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
