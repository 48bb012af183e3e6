//! Model-specific registers.

use crate::host::host;
use engine::EngineError;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use x86::{CpuState, MsrValue, msr};

/// Registers that are single numbers. TSC_ADJUST precedes TSC: writing it must not move the TSC after.
const SINGLE: [u32; 21] = [
    msr::TSC_ADJUST,
    msr::TSC,
    msr::FEATURE_CONTROL,
    msr::SPEC_CTRL,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::MCG_STATUS,
    msr::MISC_ENABLE,
    msr::PAT,
    msr::MTRR_FIX64K_00000,
    msr::MTRR_FIX16K_80000,
    msr::MTRR_FIX16K_A0000,
    msr::XSS,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::FMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
    // After the fixed ranges, which it enables.
    msr::MTRR_DEF_TYPE,
];
/// Base and mask of the eight variable ranges.
const MTRR_VARIABLE: u32 = 16;
const MTRR_FIX4K: u32 = 8;

/// What an excursion may change and needs besides the registers.
pub(crate) const EXCURSION_MSRS: [u32; 11] = [
    msr::SPEC_CTRL,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::FMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
];

fn candidates() -> Vec<u32> {
    let variable = (0..MTRR_VARIABLE).map(|at| msr::MTRR_PHYS_BASE0 + at);
    let fixed = (0..MTRR_FIX4K).map(|at| msr::MTRR_FIX4K_C0000 + at);
    let mut all: Vec<u32> = SINGLE.into_iter().chain(variable).chain(fixed).collect();
    // The deadline counts against the TSC, and the local APIC must be in deadline mode: last.
    all.push(msr::TSC_DEADLINE);
    all
}

/// The registers of a fresh processor that KVM lets be saved and loaded, in the order to load them. Trying each
/// is better than KVM's index list, which leaves out the MTRRs and names what the guest's CPUID forbids.
pub(crate) fn find_saved(fd: &VcpuFd) -> Vec<u32> {
    candidates().into_iter().filter(|index| can_be_saved(fd, *index)).collect()
}

fn can_be_saved(fd: &VcpuFd, index: u32) -> bool {
    let Ok(mut msrs) = list(&[kvm_msr_entry { index, ..Default::default() }]) else { return false };
    matches!(fd.get_msrs(&mut msrs), Ok(1)) && matches!(fd.set_msrs(&msrs), Ok(1))
}

/// Reads registers, sorted by number as [`CpuState::msrs`] wants them.
pub(super) fn read(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrValue>, EngineError> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut msrs = list(&entries)?;
    let done = fd.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))?;
    if let Some(failed) = indices.get(done) {
        let source = std::io::Error::other(format!("MSR {failed:#x}"));
        return Err(EngineError::Host { operation: "KVM_GET_MSRS", source });
    }
    let value = |entry: &kvm_msr_entry| MsrValue { index: entry.index, value: entry.data };
    let mut values: Vec<MsrValue> = msrs.as_slice().iter().map(value).collect();
    values.sort_unstable_by_key(|entry| entry.index);
    Ok(values)
}

/// Loads those of the state's registers that `indices` names, in its order.
pub(super) fn write(fd: &VcpuFd, state: &CpuState, indices: &[u32]) -> Result<(), EngineError> {
    for unknown in state.msrs.iter().filter(|entry| entry.value != 0 && !candidates().contains(&entry.index))
    {
        tracing::debug!(index = unknown.index, value = unknown.value, "MSR is not part of KVM's state");
    }
    let entries: Vec<kvm_msr_entry> = indices
        .iter()
        .filter_map(|&index| Some(kvm_msr_entry { index, data: state.msr(index)?, ..Default::default() }))
        .collect();
    let done = fd.set_msrs(&list(&entries)?).map_err(host("KVM_SET_MSRS"))?;
    match entries.get(done) {
        None => Ok(()),
        Some(kvm_msr_entry { index, data, .. }) => {
            Err(EngineError::InvalidState { reason: format!("KVM refuses {data:#x} for MSR {index:#x}") })
        }
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, EngineError> {
    Msrs::from_entries(entries).map_err(|_| EngineError::Host {
        operation: "Building a list of MSRs",
        source: std::io::ErrorKind::OutOfMemory.into(),
    })
}
