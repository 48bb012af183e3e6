//! The exit that the shared `kvm_run` page describes, as owned data.
#![expect(unsafe_code, reason = "kvm_run is a C union, and port data lie behind it in the same mapping")]

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};

/// The kernel puts port data on the page after `kvm_run`, and never more than a page.
const PORT_DATA_MAX: usize = 4096;

/// A port access: `count` elements of `size` bytes, `offset` bytes behind the start of `kvm_run`.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortAccess {
    pub(super) write: bool,
    pub(super) port: u16,
    pub(super) size: usize,
    pub(super) count: usize,
    offset: usize,
}

/// Why `KVM_RUN` returned.
#[derive(Clone, Debug)]
pub(super) enum Exit {
    Port(PortAccess),
    Mmio {
        address: u64,
        data: [u8; 8],
        len: usize,
        write: bool,
    },
    Eoi(u8),
    InterruptWindow,
    Interrupted,
    Halt,
    Shutdown,
    /// What DR6 would say.
    Debug {
        dr6: u64,
    },
    /// KVM cannot go on at this instruction; its words.
    CannotEmulate(String),
    SystemEvent(u32),
    Msr,
    Unknown(u32),
}

/// Reads the exit after a `KVM_RUN` that succeeded.
pub(super) fn read(run: &kvm_run) -> Exit {
    let about = &run.__bindgen_anon_1;
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says which member is valid; so in the arms below.
            let io = unsafe { about.io };
            Exit::Port(PortAccess {
                write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
                port: io.port,
                size: usize::from(io.size.max(1)),
                count: io.count as usize,
                offset: io.data_offset as usize,
            })
        }
        KVM_EXIT_MMIO => {
            // SAFETY: see above.
            let mmio = unsafe { about.mmio };
            let len = (mmio.len as usize).min(mmio.data.len());
            Exit::Mmio { address: mmio.phys_addr, data: mmio.data, len, write: mmio.is_write != 0 }
        }
        // SAFETY: see above.
        KVM_EXIT_IOAPIC_EOI => Exit::Eoi(unsafe { about.eoi }.vector),
        KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_HLT => Exit::Halt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        // SAFETY: see above.
        KVM_EXIT_DEBUG => Exit::Debug { dr6: unsafe { about.debug }.arch.dr6 },
        KVM_EXIT_INTERNAL_ERROR => Exit::CannotEmulate(internal_error(run)),
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: see above.
            let reason = unsafe { about.fail_entry }.hardware_entry_failure_reason;
            Exit::CannotEmulate(format!("the processor refuses to enter the guest, reason {reason:#x}"))
        }
        // SAFETY: see above.
        KVM_EXIT_SYSTEM_EVENT => Exit::SystemEvent(unsafe { about.system_event }.type_),
        KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => Exit::Msr,
        other => Exit::Unknown(other),
    }
}

fn internal_error(run: &kvm_run) -> String {
    // SAFETY: called for KVM_EXIT_INTERNAL_ERROR; the two members share their first fields.
    let (internal, failure) =
        unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
    let words = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate the instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "KVM met simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM failed while it delivered an event",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "KVM met an unexpected processor exit",
        _ => "KVM met an internal error",
    };
    let has_bytes = internal.suberror == KVM_INTERNAL_ERROR_EMULATION
        && internal.ndata > 0
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    if has_bytes {
        // SAFETY: the flag says that the bytes are there.
        let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let size = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
        return format!("{words}{}", hex(" ", &bytes.insn_bytes[..size]));
    }
    let data = internal.data.iter().take((internal.ndata as usize).min(internal.data.len()));
    let data: Vec<String> = data.map(|word| format!("{word:#x}")).collect();
    format!("{words} (suberror {}, data [{}])", internal.suberror, data.join(", "))
}

/// Bytes in hexadecimal, each after `before`.
pub(super) fn hex(before: &str, bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{before}{byte:02x}")).collect()
}

/// The data of a port access, element after element.
pub(super) fn port_data<'a>(run: &'a mut kvm_run, access: &PortAccess) -> &'a mut [u8] {
    let len = access.size.saturating_mul(access.count).min(PORT_DATA_MAX);
    let start: *mut u8 = std::ptr::from_mut(run).cast();
    // SAFETY: the kernel places `len` bytes at this offset of the mapping that `run` begins.
    unsafe { std::slice::from_raw_parts_mut(start.add(access.offset), len) }
}

/// Answers an MMIO read.
pub(super) fn set_mmio_data(run: &mut kvm_run, data: [u8; 8]) {
    run.__bindgen_anon_1.mmio.data = data;
}

/// Answers an MSR exit with #GP.
pub(super) fn refuse_msr(run: &mut kvm_run) {
    run.__bindgen_anon_1.msr.error = 1;
}
