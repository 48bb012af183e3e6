//! What the probe tells.

use super::machine::Outcome;
use super::snippets::{self, LOOP_INSTRUCTIONS, LOOPS, PORT_EXITS};
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
    /// Machines run, but kernel code is emulated or lacks instructions, or programs are not shown their machine: with the
    /// help of the software engine only.
    EmulatedRing0,
    /// Not at all.
    Unusable,
}

/// The conclusion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What KVM can be used for.
    pub usable: Usable,
    /// Why, for people: all findings in one line.
    pub reason: String,
    /// What was found, one sentence a finding; empty if everything is as it should be.
    #[serde(default)]
    pub findings: Vec<String>,
}

impl KvmReport {
    pub(super) fn unusable(reason: String) -> Self {
        KvmReport {
            api_version: 0,
            checks: Vec::new(),
            verdict: Verdict { usable: Usable::Unusable, findings: vec![reason.clone()], reason },
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

/// What a failed check of what programs see means.
fn program_finding(name: &str) -> String {
    match name {
        snippets::PROGRAM_CPUID => "programs see the host's CPUID instead of the machine's".to_owned(),
        snippets::PROGRAM_TSC => {
            "programs read the host's time-stamp counter instead of the machine's".to_owned()
        }
        snippets::PROGRAM_XCR0 => "programs see the host's XCR0 instead of the machine's".to_owned(),
        snippets::PROGRAM_CALLS => "interrupts break programs' system calls".to_owned(),
        other => format!("programs fail at this: {}", other.trim_start_matches(PROGRAM)),
    }
}

pub(super) fn instruction_check(name: &str, outcome: &Outcome) -> Check {
    let ok = matches!(outcome, Outcome::Finished { .. });
    let of_programs = name.starts_with(PROGRAM);
    let detail = if of_programs && !ok {
        format!("{}: the check {}", program_finding(name), outcome.words())
    } else {
        outcome.words()
    };
    let name = if of_programs { name.to_owned() } else { format!("{INSTRUCTION}{name}") };
    Check { name, ok, detail, measured: None }
}

/// Draws the conclusion when a loop runs at all.
pub(super) fn judge(checks: &[Check], speeds: &Speeds, emulated_ns: f64) -> Verdict {
    let failed = || checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str());
    let mut findings = Vec::new();
    if speeds.is_emulated(emulated_ns) {
        findings.push(format!(
            "kernel code is emulated at {:.0} ns an instruction ({:.0} times the native time)",
            speeds.instruction,
            speeds.instruction / speeds.native.max(0.01)
        ));
    }
    let in_kernels: Vec<&str> = failed().filter_map(|name| name.strip_prefix(INSTRUCTION)).collect();
    if !in_kernels.is_empty() {
        findings.push(format!("these fail in ring 0: {}", in_kernels.join(", ")));
    }
    findings.extend(failed().filter(|name| name.starts_with(PROGRAM)).map(program_finding));
    if findings.is_empty() {
        let reason = "kernel code runs at hardware speed and every instruction tried works".to_owned();
        return Verdict { usable: Usable::Full, reason, findings };
    }
    Verdict { usable: Usable::EmulatedRing0, reason: findings.join("; "), findings }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, ok: bool) -> Check {
        Check { name: name.to_owned(), ok, detail: String::new(), measured: None }
    }

    #[test]
    fn every_finding_has_its_own_sentence() {
        let speeds = |instruction| Speeds { instruction, native: 0.5, port_exit: 1000.0 };
        let all = |ok: bool| {
            [
                "ring 0: int3",
                "ring 0: SSE",
                "ring 3: CPUID is the machine's",
                "ring 3: the time-stamp counter is the machine's",
                "ring 3: XCR0 is the machine's",
                "ring 3: interrupts leave system calls alone",
            ]
            .map(|name| check(name, ok))
        };
        let good = judge(&all(true), &speeds(0.5), 10.0);
        assert_eq!((good.usable, good.findings), (Usable::Full, vec![]));
        let bad = judge(&all(false), &speeds(300.0), 10.0);
        assert_eq!(
            bad.findings,
            [
                "kernel code is emulated at 300 ns an instruction (600 times the native time)",
                "these fail in ring 0: int3, SSE",
                "programs see the host's CPUID instead of the machine's",
                "programs read the host's time-stamp counter instead of the machine's",
                "programs see the host's XCR0 instead of the machine's",
                "interrupts break programs' system calls",
            ]
        );
        // A KVM of hardware speed that fails programs alone is not said to emulate kernels.
        let calls = judge(&all(false)[5..], &speeds(0.5), 10.0);
        assert_eq!(
            (calls.usable, calls.reason.as_str()),
            (Usable::EmulatedRing0, "interrupts break programs' system calls")
        );
        let told = serde_json::to_value(&bad).unwrap();
        assert_eq!(told["findings"].as_array().unwrap().len(), 6);
    }
}
