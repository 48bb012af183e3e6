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
use engine::{Engine, Worth};
use kvm_ioctls::Cap;
use machine::{Bench, Outcome};
use report::Speeds;
use std::sync::Arc;

/// Above this, an instruction of a tight loop is not executed by a processor that has other things to do.
const EMULATED_NS: f64 = 20.0;

/// Capabilities that are worth having, beyond those the engine requires.
const OPTIONAL: [(Cap, &str, &str); 7] = [
    (Cap::Irqfd, "irqfd", "devices interrupt by a call for each message"),
    (Cap::IrqRouting, "irq_routing", "devices interrupt by a call for each message"),
    (Cap::Ioeventfd, "ioeventfd", "a vCPU leaves the guest for each notification of a device"),
    (Cap::TscDeadlineTimer, "tsc_deadline", "guests use the slower one-shot timer"),
    (Cap::ReadonlyMem, "readonly_mem", "firmware images are mapped writable"),
    (Cap::GetTscKhz, "tsc_khz", "guests must calibrate the time-stamp counter themselves"),
    (Cap::AdjustClock, "adjust_clock", "clocks jump when a machine is resumed"),
];

/// Tries all of the host's KVM; takes well under a second on a sound one.
pub fn probe() -> KvmReport {
    examine(true)
}

/// Tries the host's KVM until it is clear that it is not sound, which takes some milliseconds.
pub fn probe_briefly() -> KvmReport {
    examine(false)
}

fn examine(everything: bool) -> KvmReport {
    let engine = match KvmEngine::open() {
        Ok(engine) => Arc::new(engine),
        Err(error) => return KvmReport::unusable(error.to_string()),
    };
    let mut checks: Vec<Check> = OPTIONAL.iter().map(|entry| capability(&engine, entry)).collect();
    let mut bench = Bench::new(&engine);
    let speeds = match time(&mut bench) {
        Ok(speeds) => speeds,
        Err(words) => {
            let mut report = KvmReport::unusable(format!("a loop in ring 0 does not run: {words}"));
            report.checks = checks;
            return report;
        }
    };
    checks.extend(speeds.checks(EMULATED_NS));
    if everything || !speeds.is_emulated(EMULATED_NS) {
        for snippet in snippets::all() {
            let name = snippet.name;
            checks.push(report::instruction_check(name, &bench.run(snippet)));
        }
    }
    let verdict = report::judge(&checks, &speeds, EMULATED_NS);
    KvmReport { api_version: engine.kvm().get_api_version(), checks, verdict }
}

/// Runs everything that is tried on KVM on another engine. One that is sound passes, or the probe is wrong.
pub fn try_on(engine: Arc<dyn Engine>) -> Vec<Check> {
    let mut bench = Bench::on(engine);
    let check = |snippet: snippets::Snippet| report::instruction_check(snippet.name, &bench.run(snippet));
    snippets::all().into_iter().map(check).collect()
}

fn time(bench: &mut Bench) -> Result<Speeds, String> {
    let timing = bench.run(snippets::timing());
    match &timing {
        Outcome::Finished { times } => Speeds::from_times(times, snippets::native_loop_ns()),
        _ => None,
    }
    .ok_or_else(|| timing.words())
}

/// What a KVM is worth that machines are to run on. One that cannot even be tried emulates, and its programs see
/// what they like.
pub(crate) fn worth() -> Worth {
    let doubtful = Worth { emulates_kernels: true, is_faithful: false, shows_host_xcr0: true };
    let Ok(engine) = KvmEngine::open() else { return doubtful };
    let mut bench = Bench::new(&Arc::new(engine));
    let Ok(speeds) = time(&mut bench) else { return doubtful };
    let mut works = |snippet| matches!(bench.run(snippet), Outcome::Finished { .. });
    let [cpuid, tsc, xcr0] = snippets::programs();
    Worth {
        emulates_kernels: speeds.is_emulated(EMULATED_NS),
        is_faithful: works(cpuid) && works(tsc) && works(snippets::interrupted_calls()),
        shows_host_xcr0: !works(xcr0),
    }
}

fn capability(engine: &KvmEngine, (cap, name, otherwise): &(Cap, &'static str, &str)) -> Check {
    let ok = engine.kvm().check_extension(*cap);
    let detail = if ok { "there".to_owned() } else { format!("missing: {otherwise}") };
    Check { name: format!("capability {name}"), ok, detail, measured: None }
}
