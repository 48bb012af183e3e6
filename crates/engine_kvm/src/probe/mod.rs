//! What this host's KVM is worth, found out by trying.
//!
//! A KVM may exist and still be a poor one: inside containers and nested hypervisors the kernel's own code may be
//! emulated at a hundredth of the speed, and some instructions may not run at all. The probe opens
//! the device, asks for capabilities, then runs snippets of the kind that kernels consist of, each in a
//! throw-away machine on a thread of its own with a time limit, so that a hanging KVM cannot hang the caller.

mod machine;
mod report;
mod snippets;

pub use report::{Check, KvmReport, Measured, Usable, Verdict};

use crate::KvmEngine;
use kvm_ioctls::Cap;
use machine::{Outcome, run_limited};
use std::sync::Arc;

/// Above this, an instruction of a tight loop is not executed by a processor that has other things to do.
const EMULATED_NS: f64 = 20.0;

/// Capabilities that are worth having, beyond those the engine requires.
const OPTIONAL: [(Cap, &str, &str); 6] = [
    (Cap::Irqfd, "irqfd", "devices in other processes cannot interrupt directly"),
    (Cap::Ioeventfd, "ioeventfd", "doorbells cannot be told to other processes directly"),
    (Cap::TscDeadlineTimer, "tsc_deadline", "guests use the slower one-shot timer"),
    (Cap::ReadonlyMem, "readonly_mem", "firmware images are mapped writable"),
    (Cap::GetTscKhz, "tsc_khz", "guests must calibrate the time-stamp counter themselves"),
    (Cap::AdjustClock, "adjust_clock", "clocks jump when a machine is resumed"),
];

/// Tries the host's KVM; takes well under a second on a sound one.
pub fn probe() -> KvmReport {
    let engine = match KvmEngine::open() {
        Ok(engine) => Arc::new(engine),
        Err(error) => return KvmReport::unusable(error.to_string()),
    };
    let mut checks: Vec<Check> = OPTIONAL.iter().map(|entry| capability(&engine, entry)).collect();
    let timing = run_limited(&engine, snippets::timing());
    let speeds = match &timing {
        Outcome::Finished { times, .. } => report::Speeds::from_times(times, snippets::native_loop_ns()),
        _ => None,
    };
    let Some(speeds) = speeds else {
        let mut report = KvmReport::unusable(format!("a loop in ring 0 does not run: {}", timing.words()));
        report.checks = checks;
        return report;
    };
    checks.extend(speeds.checks(EMULATED_NS));
    for snippet in snippets::all() {
        let name = snippet.name;
        checks.push(report::instruction_check(name, &run_limited(&engine, snippet)));
    }
    let verdict = report::judge(&checks, &speeds, EMULATED_NS);
    KvmReport { api_version: engine.kvm().get_api_version(), checks, verdict }
}

fn capability(engine: &KvmEngine, (cap, name, otherwise): &(Cap, &'static str, &str)) -> Check {
    let ok = engine.kvm().check_extension(*cap);
    let detail = if ok { "there".to_owned() } else { format!("missing: {otherwise}") };
    Check { name: format!("capability {name}"), ok, detail, measured: None }
}
