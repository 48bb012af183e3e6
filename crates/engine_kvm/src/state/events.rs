//! Pending events and the MP state.
//!
//! KVM tells an event that waits ("pending") from one whose delivery has begun ("injected": it was interrupted by an
//! exit half-way and starts over). Our state has one form, what will be delivered next; the payload of an
//! injected exception went into CR2 or DR6 already, so it is taken from there. An INT n under delivery is not
//! reported: KVM executes it again.
//!
//! During an excursion a waiting NMI stays in KVM, like the interrupts of the local APIC: others may arrive.

use super::{Extent, invalid};
use crate::host::host;
use engine::EngineError;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use x86::{Exception, MpState, PendingEvents, PendingException, PendingInterrupt, Vector};

const VECTORS: [Vector; 18] = [
    Vector::Divide,
    Vector::Debug,
    Vector::Nmi,
    Vector::Breakpoint,
    Vector::Overflow,
    Vector::Bound,
    Vector::InvalidOpcode,
    Vector::DeviceNotAvailable,
    Vector::DoubleFault,
    Vector::InvalidTss,
    Vector::SegmentNotPresent,
    Vector::Stack,
    Vector::GeneralProtection,
    Vector::PageFault,
    Vector::X87,
    Vector::Alignment,
    Vector::MachineCheck,
    Vector::Simd,
];

fn vector(number: u8) -> Result<Vector, EngineError> {
    VECTORS.into_iter().find(|vector| *vector as u8 == number).ok_or_else(|| EngineError::InvalidState {
        reason: format!("exception {number} is pending, which the state format does not know"),
    })
}

pub(super) fn from_kvm(
    events: &kvm_vcpu_events,
    cr2: u64,
    extent: Extent,
) -> Result<PendingEvents, EngineError> {
    let exception = match &events.exception {
        raised if raised.injected == 0 && raised.pending == 0 => None,
        raised => {
            let vector = vector(raised.nr)?;
            let payload = match vector {
                _ if events.exception_has_payload != 0 => events.exception_payload,
                Vector::PageFault => cr2,
                _ => 0,
            };
            let error_code = if raised.has_error_code != 0 { raised.error_code } else { 0 };
            Some(PendingException { exception: Exception { vector, error_code, payload } })
        }
    };
    let interrupt = (events.interrupt.injected != 0)
        .then_some(PendingInterrupt { vector: events.interrupt.nr, software: events.interrupt.soft != 0 });
    let shadow = u32::from(events.interrupt.shadow);
    // An NMI under delivery masks others already; delivered again, it does so again.
    let nmi_restarts = events.nmi.injected != 0;
    let nmi_waits = events.nmi.pending != 0 && extent == Extent::Whole;
    Ok(PendingEvents {
        exception,
        interrupt,
        nmi_pending: nmi_waits || nmi_restarts,
        nmi_masked: events.nmi.masked != 0 && !nmi_restarts,
        sti_shadow: shadow & KVM_X86_SHADOW_INT_STI != 0,
        mov_ss_shadow: shadow & KVM_X86_SHADOW_INT_MOV_SS != 0,
        // KVM_GET_MP_STATE has taken INIT and start-up IPIs before; its PIC is ours.
        init: false,
        start_up: None,
        ext_int: false,
        breakpoints: 0,
    })
}

/// `now` is what KVM says at present: an excursion must not take back NMIs that arrived meanwhile.
pub(super) fn to_kvm(events: &PendingEvents, now: &kvm_vcpu_events, extent: Extent) -> kvm_vcpu_events {
    let with_payload = now.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0;
    let mut kvm = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_SHADOW | now.flags & KVM_VCPUEVENT_VALID_PAYLOAD,
        ..Default::default()
    };
    if let Some(PendingException { exception: Exception { vector, error_code, payload } }) = events.exception
    {
        kvm.exception.nr = vector as u8;
        kvm.exception.has_error_code = u8::from(vector.has_error_code());
        kvm.exception.error_code = error_code;
        if with_payload {
            kvm.exception.pending = 1;
            kvm.exception_has_payload = u8::from(matches!(vector, Vector::PageFault | Vector::Debug));
            kvm.exception_payload = payload;
        } else {
            kvm.exception.injected = 1;
        }
    }
    if let Some(PendingInterrupt { vector, software }) = events.interrupt {
        kvm.interrupt.injected = 1;
        kvm.interrupt.nr = vector;
        kvm.interrupt.soft = u8::from(software);
    }
    if events.sti_shadow {
        kvm.interrupt.shadow |= KVM_X86_SHADOW_INT_STI as u8;
    }
    if events.mov_ss_shadow {
        kvm.interrupt.shadow |= KVM_X86_SHADOW_INT_MOV_SS as u8;
    }
    kvm.nmi.masked = u8::from(events.nmi_masked);
    kvm.nmi.pending = u8::from(events.nmi_pending);
    if extent == Extent::Whole || events.nmi_pending {
        kvm.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
    }
    kvm
}

pub(crate) fn read_mp_state(fd: &VcpuFd) -> Result<MpState, EngineError> {
    let kvm = fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?.mp_state;
    Ok(match kvm {
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        KVM_MP_STATE_HALTED => MpState::Halted,
        // A start-up IPI under way has set CS:IP already.
        _ => MpState::Runnable,
    })
}

pub(super) fn write_mp_state(fd: &VcpuFd, state: MpState) -> Result<(), EngineError> {
    let mp_state = match state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => KVM_MP_STATE_HALTED,
    };
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(invalid("MP state"))
}

/// Starts the delivery of an interrupt that the PIC handed out, waking the processor. `KVM_INTERRUPT` would do
/// the same, but KVM cannot tell a vector it accepted that way from none, so it would be lost on saving.
pub(crate) fn inject_interrupt(fd: &VcpuFd, vector: u8) -> Result<(), EngineError> {
    let mut events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    events.interrupt.injected = 1;
    events.interrupt.nr = vector;
    events.interrupt.soft = 0;
    // Leave alone what others change meanwhile.
    events.flags &= KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
    fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS"))?;
    if read_mp_state(fd)? == MpState::Halted {
        write_mp_state(fd, MpState::Runnable)?;
    }
    Ok(())
}
