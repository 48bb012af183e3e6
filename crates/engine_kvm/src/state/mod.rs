//! [`x86::CpuState`] from and to KVM.
//!
//! Two extents: the whole state, and the [`Extent::Excursion`] that a processor needs to be carried over a
//! few instructions by another engine. An excursion leaves the local APIC and the clocks where they are,
//! because interrupts keep arriving and time keeps passing in KVM meanwhile.

mod events;
mod lapic;
mod msrs;
mod segments;
mod xsave;

pub(crate) use events::{inject_interrupt, read_mp_state};
pub(crate) use lapic::requests_interrupt as lapic_requests_interrupt;
pub(crate) use msrs::{EXCURSION_MSRS, find_saved};
pub use xsave::canonical as canonical_xsave;

use crate::host::host;
use engine::EngineError;
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs, kvm_xcrs};
use kvm_ioctls::VcpuFd;
use x86::CpuState;

/// How much of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// Not the local APIC, not the TSC, few MSRs.
    Excursion,
}

/// Reads a processor that is not inside `KVM_RUN`, with the MSRs named.
pub(crate) fn read(fd: &VcpuFd, msrs: &[u32], extent: Extent) -> Result<CpuState, EngineError> {
    // First, because KVM takes a waiting INIT or start-up IPI on this occasion.
    let mp_state = events::read_mp_state(fd)?;
    let regs = fd.get_regs().map_err(host("KVM_GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    let debug = fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
    let mut state = CpuState {
        gprs: gprs(&regs),
        rip: regs.rip,
        rflags: regs.rflags,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        dr: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        xcr0: read_xcr0(fd)?,
        msrs: msrs::read(fd, msrs)?,
        mp_state,
        ..CpuState::default()
    };
    segments::read(&sregs, &mut state);
    let xsave = fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
    state.xsave = xsave::from_kvm(&xsave);
    let events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    state.events = events::from_kvm(&events, state.cr2, extent)?;
    if extent == Extent::Whole {
        state.lapic = lapic::from_kvm(&fd.get_lapic().map_err(host("KVM_GET_LAPIC"))?);
    }
    Ok(state)
}

/// Loads a processor that is not inside `KVM_RUN`. The order matters: control registers before what they
/// gate, the local APIC before the deadline MSR, events last because KVM forgets them when RIP is set.
pub(crate) fn write(
    fd: &VcpuFd,
    state: &CpuState,
    index: u32,
    msrs: &[u32],
    extent: Extent,
) -> Result<(), EngineError> {
    let mut taken;
    let mut state = state;
    if state.events.init || state.events.start_up.is_some() {
        taken = state.clone();
        taken.take_start_up();
        state = &taken;
    }
    let mut sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    write_sregs(fd, state, &mut sregs, extent)?;
    fd.set_regs(&regs(state)).map_err(host("KVM_SET_REGS"))?;
    write_xcr0(fd, state.xcr0)?;
    let xsave = xsave::to_kvm(&state.xsave)?;
    xsave::load(fd, &xsave)?;
    let debug = kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Default::default() };
    fd.set_debug_regs(&debug).map_err(invalid("debug registers"))?;
    if extent == Extent::Whole {
        fd.set_lapic(&lapic::to_kvm(state, index)).map_err(invalid("local APIC"))?;
    }
    msrs::write(fd, state, msrs)?;
    events::write_mp_state(fd, state.mp_state)?;
    let now = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    let events = events::to_kvm(&state.events, &now, extent);
    fd.set_vcpu_events(&events).map_err(invalid("pending events"))
}

fn write_sregs(
    fd: &VcpuFd,
    state: &CpuState,
    sregs: &mut kvm_sregs,
    extent: Extent,
) -> Result<(), EngineError> {
    segments::write(state, sregs);
    sregs.cr0 = state.cr0;
    sregs.cr2 = state.cr2;
    sregs.cr3 = state.cr3;
    sregs.cr4 = state.cr4;
    sregs.cr8 = state.cr8;
    sregs.efer = state.efer;
    if extent == Extent::Whole {
        sregs.apic_base = state.apic_base;
    }
    // Interrupts under delivery are loaded with the other events.
    sregs.interrupt_bitmap = [0; 4];
    fd.set_sregs(sregs).map_err(invalid("control and segment registers"))
}

fn read_xcr0(fd: &VcpuFd) -> Result<u64, EngineError> {
    let xcrs = fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
    let used = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    Ok(used.filter(|entry| entry.xcr == 0).map(|entry| entry.value).next().unwrap_or(1))
}

fn write_xcr0(fd: &VcpuFd, value: u64) -> Result<(), EngineError> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = value;
    fd.set_xcrs(&xcrs).map_err(invalid("XCR0"))
}

fn gprs(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

fn regs(state: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gprs;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// A refusal by KVM that means the state is at fault.
pub(crate) fn invalid(part: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::InvalidState { reason: format!("KVM refuses the {part}: {error}") }
}
