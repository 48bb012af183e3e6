//! `/dev/kvm`: opening it and what it must offer.

use crate::cpuid;
use crate::vm::KvmVm;
use engine::cpu_model::{FeatureSet, HostIdentity};
use engine::{Engine, EngineError, EngineKind, Vm, VmSettings, Worth};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use std::sync::{Arc, OnceLock};

/// The only API version there ever was (KVM API 4.1).
const API_VERSION: i32 = 12;
const DEVICE: &str = "/dev/kvm";

/// Capabilities without which the engine cannot run a machine, with the name to tell the user.
const REQUIRED: [(Cap, &str); 13] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The host's KVM.
pub struct KvmEngine {
    kvm: Kvm,
    supported: CpuId,
    worth: OnceLock<Worth>,
}

impl KvmEngine {
    /// Opens `/dev/kvm` and checks that it can run machines.
    pub fn open() -> Result<Self, EngineError> {
        let kvm = Kvm::new().map_err(|error| unavailable(open_failure(error.errno())))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(unavailable(format!("{DEVICE} speaks API version {version}, not {API_VERSION}")));
        }
        let missing: Vec<&str> =
            REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
        if !missing.is_empty() {
            return Err(unavailable(format!("the kernel's KVM lacks {}", missing.join(", "))));
        }
        let mut supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
        cpuid::complete(&mut supported, kvm.check_extension(Cap::TscDeadlineTimer));
        Ok(KvmEngine { kvm, supported, worth: OnceLock::new() })
    }

    /// The device, for capability reports.
    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What KVM can offer a guest.
    pub(crate) fn supported_cpuid(&self) -> &CpuId {
        &self.supported
    }
}

impl Engine for KvmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn features(&self) -> FeatureSet {
        cpuid::features(&self.supported)
    }

    fn identity(&self) -> Option<HostIdentity> {
        cpuid::identity(&self.supported)
    }

    fn worth(&self) -> Worth {
        *self.worth.get_or_init(crate::probe::worth)
    }

    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, EngineError> {
        let cpuid = cpuid::for_model(self.supported.clone(), &settings.model)?;
        Ok(Arc::new(KvmVm::create(&self.kvm, settings.memory, settings.cpus, cpuid, settings.tsc_khz)?))
    }
}

fn unavailable(reason: String) -> EngineError {
    EngineError::Unavailable { engine: EngineKind::Kvm, reason }
}

/// What a failed open of the device means to its user.
fn open_failure(errno: i32) -> String {
    match errno {
        libc::ENOENT => format!(
            "{DEVICE} does not exist: load the kvm_intel or kvm_amd module, and enable VT-x or AMD-V in the \
             firmware (or nested virtualisation in the outer hypervisor)"
        ),
        libc::EACCES | libc::EPERM => {
            format!("no permission to open {DEVICE}: add the user to the group that owns it, usually kvm")
        }
        libc::ENXIO | libc::ENODEV => {
            format!("{DEVICE} exists but no KVM driver stands behind it: load kvm_intel or kvm_amd")
        }
        other => format!("cannot open {DEVICE}: {}", std::io::Error::from_raw_os_error(other)),
    }
}

/// Turns a failed KVM call into an engine error.
pub(crate) fn host(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Host { operation, source: std::io::Error::from_raw_os_error(error.errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_not_having_kvm_has_its_own_advice() {
        assert!(open_failure(libc::ENOENT).contains("module"));
        assert!(open_failure(libc::EACCES).contains("permission"));
        assert!(open_failure(libc::ENXIO).contains("driver"));
        assert!(open_failure(libc::EIO).contains("cannot open"));
    }
}
