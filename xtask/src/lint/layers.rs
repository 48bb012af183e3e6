//! Who may know whom: arrows between crates only point down.
//!
//! Every crate stands on a floor. A crate may depend on crates of its own floor or a lower one, except where
//! [`NEVER`] forbids a pair outright. Test-only dependencies are held to the same rule, because a test that
//! looks upward is a design that does. A crate that has no floor yet is a finding: put it into [`FLOORS`].

use crate::workspace::Metadata;

/// The floors, lowest first, and who lives there.
const FLOORS: &[(&str, &[&str])] = &[
    ("ground", GROUND),
    ("host I/O", &["block", "nbd", "http_disk", "iscsi", "net"]),
    ("engines", &["engine", "engine_kvm", "engine_soft"]),
    ("hardware", &["device", "chipset", "virtio", "loader"]),
    ("one VM", &["machine", "vmm"]),
    ("many VMs", &["api", "cluster", "daemon", "cli"]),
    ("development", &["cpu_oracle", "vm_tests", "xtask", "fuzz"]),
];

/// The lowest floor, whose crates do not even know each other.
const GROUND: &[&str] = &["x86", "guest_memory", "guest_clock", "vm_config"];

/// Crates that the first may never depend on, whatever the floors say.
const NEVER: &[(&[&str], &[&str], &str)] = &[
    (
        &["chipset", "virtio", "loader", "device"],
        &["engine", "engine_kvm", "engine_soft"],
        "hardware does not know which CPU drives it",
    ),
    (
        &["engine", "engine_kvm", "engine_soft"],
        &["device", "chipset", "virtio", "loader", "block", "nbd", "http_disk", "iscsi", "net"],
        "an engine reaches the world only through VcpuIo",
    ),
    (&["block", "nbd", "http_disk", "iscsi", "net"], &["device", "virtio"], "host I/O does not know guests"),
    (GROUND, GROUND, "the ground knows nobody"),
    (&["block"], &["nbd", "http_disk", "iscsi"], "a disk does not know who serves it"),
    (&["engine_kvm"], &["engine_soft"], "one engine does not know the other; `machine` moves state"),
    (&["engine_soft"], &["engine_kvm"], "one engine does not know the other; `machine` moves state"),
    (&["vm_tests"], &["machine", "vmm"], "guests are tested through the public interface"),
];

/// The only crates that may see engines and hardware together.
const SEES_BOTH: &[&str] = &["machine"];

/// Everything that breaks the rule.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let members = metadata.members();
    let mut findings = Vec::new();
    for (name, package) in &members {
        let uses: Vec<&str> = package
            .dependencies
            .iter()
            .map(|dependency| dependency.name.as_str())
            .filter(|dependency| members.contains_key(dependency))
            .collect();
        findings.extend(findings_of(name, &uses));
    }
    findings
}

/// What one crate does wrong, given the workspace crates it depends on.
fn findings_of(name: &str, uses: &[&str]) -> Vec<String> {
    let Some(floor) = floor_of(name) else {
        return vec![format!("layers: {name} has no floor; give it one in xtask/src/lint/layers.rs")];
    };
    let mut findings = Vec::new();
    for dependency in uses {
        if floor_of(dependency).is_some_and(|other| other > floor) {
            findings.push(format!("layers: {name} depends on {dependency}, which lives on a higher floor"));
        }
        for (who, whom, why) in NEVER {
            if who.contains(&name) && whom.contains(dependency) && name != *dependency {
                findings.push(format!("layers: {name} must never depend on {dependency}: {why}"));
            }
        }
    }
    let engine = uses.iter().any(|name| name.starts_with("engine"));
    let hardware = uses.iter().any(|name| ["device", "chipset", "virtio", "loader"].contains(name));
    if engine && hardware && !SEES_BOTH.contains(&name) {
        findings.push(format!("layers: {name} sees engines and hardware; only `machine` may"));
    }
    findings
}

/// Index of the floor a crate lives on.
fn floor_of(name: &str) -> Option<usize> {
    FLOORS.iter().position(|(_, crates)| crates.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::findings_of;

    #[test]
    fn downward_arrows_are_fine() {
        assert!(
            findings_of("machine", &["engine", "engine_kvm", "engine_soft", "virtio", "block"]).is_empty()
        );
        assert!(findings_of("virtio", &["device", "guest_memory", "block"]).is_empty());
    }

    #[test]
    fn upward_and_forbidden_arrows_are_found() {
        assert_eq!(findings_of("x86", &["machine"]).len(), 1);
        assert_eq!(findings_of("engine_soft", &["engine_kvm"]).len(), 1);
        assert!(!findings_of("chipset", &["engine"]).is_empty());
        assert!(!findings_of("cli", &["engine", "device"]).is_empty());
        assert_eq!(findings_of("a_new_crate", &[]).len(), 1);
    }
}
