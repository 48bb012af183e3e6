//! What the probe tells.

use super::machine::Outcome;
use super::snippets::{LOOP_INSTRUCTIONS, LOOPS, PORT_EXITS};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What the names of instruction checks begin with.
const INSTRUCTION: &str = "ring 0: ";
/// And those of checks of what programs see.
pub(super) const PROGRAM: &str = "ring 3: ";

/// The findings about this host's KVM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvmReport {
    /// Version of the KVM API; zero if the device could not be opened.
    pub api_version: i32,
    /// Everything that was tried, in order.
    pub checks: Vec<Check>,
    /// What follows from it.
    pub verdict: Verdict,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// In words.
    pub detail: String,
    /// A number, if one was measured.
    pub measured: Option<Measured>,
}

/// A measured number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How much.
    pub value: f64,
    /// Of what, for example `ns`.
    pub unit: String,
}

/// What KVM can be used for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Usable {
    /// Hardware speed in every mode, and every instruction tried works.
    Full,
    /// Machines run, but kernel code is emulated or lacks instructions: with the help of the software engine only.
    EmulatedRing0,
    /// Not at all.
    Unusable,
}

/// The conclusion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What KVM can be used for.
    pub usable: Usable,
    /// Why, for people.
    pub reason: String,
}

impl KvmReport {
    pub(super) fn unusable(reason: String) -> Self {
        KvmReport {
            api_version: 0,
            checks: Vec::new(),
            verdict: Verdict { usable: Usable::Unusable, reason },
        }
    }

    /// The names of checks that failed.
    pub fn failed(&self) -> Vec<&str> {
        self.checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect()
    }
}

/// Nanoseconds of typical things.
pub(super) struct Speeds {
    instruction: f64,
    native: f64,
    port_exit: f64,
}

impl Speeds {
    /// From the moments of the timing snippet's port writes: [`PORT_EXITS`] in a row, then one after each of the
    /// [`LOOPS`]. The best of each counts: other work of the host only makes them longer.
    pub(super) fn from_times(times: &[Instant], native: f64) -> Option<Self> {
        if times.len() != PORT_EXITS + LOOPS {
            return None;
        }
        let gaps: Vec<f64> =
            times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_nanos() as f64).collect();
        let (exits, loops) = gaps.split_at_checked(PORT_EXITS - 1)?;
        let best = |gaps: &[f64]| gaps.iter().copied().fold(f64::INFINITY, f64::min);
        let port_exit = best(exits);
        let span = (best(loops) - port_exit).max(0.0);
        Some(Speeds { instruction: span / LOOP_INSTRUCTIONS as f64, native, port_exit })
    }

    pub(super) fn is_emulated(&self, emulated_ns: f64) -> bool {
        self.instruction > emulated_ns
    }

    pub(super) fn checks(&self, emulated_ns: f64) -> [Check; 2] {
        let measured =
            |value: f64| Some(Measured { value: (value * 100.0).round() / 100.0, unit: "ns".to_owned() });
        [
            Check {
                name: "ring-0 speed".to_owned(),
                ok: !self.is_emulated(emulated_ns),
                detail: format!("{:.1} ns an instruction, natively {:.1} ns", self.instruction, self.native),
                measured: measured(self.instruction),
            },
            Check {
                name: "port exit".to_owned(),
                ok: true,
                detail: format!("{:.1} µs a round trip", self.port_exit / 1000.0),
                measured: measured(self.port_exit),
            },
        ]
    }
}

pub(super) fn instruction_check(name: &str, outcome: &Outcome) -> Check {
    let ok = matches!(outcome, Outcome::Finished { .. });
    let name = if name.starts_with(PROGRAM) { name.to_owned() } else { format!("{INSTRUCTION}{name}") };
    Check { name, ok, detail: outcome.words(), measured: None }
}

/// Draws the conclusion when a loop runs at all.
pub(super) fn judge(checks: &[Check], speeds: &Speeds, emulated_ns: f64) -> Verdict {
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| !check.ok)
        .filter_map(|check| check.name.strip_prefix(INSTRUCTION))
        .collect();
    let unlike: Vec<&str> = checks
        .iter()
        .filter(|check| !check.ok)
        .filter_map(|check| check.name.strip_prefix(PROGRAM))
        .collect();
    let slow = speeds.is_emulated(emulated_ns);
    if !slow && failed.is_empty() && unlike.is_empty() {
        let reason = "kernel code runs at hardware speed and every instruction tried works".to_owned();
        return Verdict { usable: Usable::Full, reason };
    }
    let mut reasons = Vec::new();
    if slow {
        reasons.push(format!(
            "kernel code is emulated at {:.0} ns an instruction ({:.0} times the native time)",
            speeds.instruction,
            speeds.instruction / speeds.native.max(0.01)
        ));
    }
    if !failed.is_empty() {
        reasons.push(format!("these fail in ring 0: {}", failed.join(", ")));
    }
    if !unlike.is_empty() {
        reasons.push(format!(
            "programs see the host's processor instead of the machine's: {}",
            unlike.join(", ")
        ));
    }
    Verdict { usable: Usable::EmulatedRing0, reason: reasons.join("; ") }
}
