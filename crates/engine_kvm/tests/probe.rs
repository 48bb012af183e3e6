//! The probe against what the engine itself finds.

use engine_kvm::KvmEngine;
use engine_kvm::probe::{KvmReport, Usable, probe};

#[test]
fn the_verdict_follows_from_the_checks() {
    let started = std::time::Instant::now();
    let report = probe();
    eprintln!("{:?} after {:?}: {}", report.verdict.usable, started.elapsed(), report.verdict.reason);
    for check in &report.checks {
        eprintln!(
            "  {} {}: {} {:?}",
            if check.ok { "ok " } else { "BAD" },
            check.name,
            check.detail,
            check.measured
        );
    }
    assert_eq!(KvmEngine::open().is_err(), report.api_version == 0);
    let bad = report.failed().iter().any(|name| !name.starts_with("capability"));
    match report.verdict.usable {
        Usable::Full => assert!(!bad),
        Usable::EmulatedRing0 => assert!(bad),
        Usable::Unusable => assert!(!report.verdict.reason.is_empty()),
    }
}

#[test]
fn the_report_survives_its_written_form() {
    let report = KvmReport {
        api_version: 12,
        checks: Vec::new(),
        verdict: engine_kvm::probe::Verdict {
            usable: Usable::EmulatedRing0,
            reason: "slow".to_owned(),
            findings: vec!["slow".to_owned()],
        },
    };
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.contains("emulated_ring0"), "{text}");
    assert_eq!(serde_json::from_str::<KvmReport>(&text).unwrap(), report);
}
