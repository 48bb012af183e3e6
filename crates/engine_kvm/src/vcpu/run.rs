//! The run loop.
#![expect(unsafe_code, reason = "shares a byte of kvm_run with the kicker")]

use super::KvmVcpu;
use super::exit::{self, Exit, PortAccess};
use crate::kick::Kicker;
use crate::state;
use engine::{VcpuIo, VmExit};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuFd;
use std::sync::atomic::Ordering;

/// A kicker for a fresh vCPU.
pub(super) fn kicker(fd: &mut VcpuFd) -> Kicker {
    let byte = &raw mut fd.get_kvm_run().immediate_exit;
    // SAFETY: the page stays mapped while `fd` lives, and `KvmVcpu` detaches the kicker when it is dropped.
    unsafe { Kicker::new(byte) }
}

impl KvmVcpu {
    /// Enters the guest until something is to be told to the caller. A debug exit is told.
    pub(super) fn run_until_exit(&mut self, io: &dyn VcpuIo) -> VmExit {
        loop {
            if !self.completion_pending {
                if self.kicker.take() {
                    return VmExit::Kicked;
                }
                if let Err(error) = self.offer_pic_interrupt(io) {
                    return VmExit::Failed { detail: format!("PIC interrupt: {error}") };
                }
            }
            self.counts.entries += 1;
            let entered = self.fd.run().map(drop);
            self.completion_pending = false;
            self.readiness_known = true;
            match entered {
                Ok(()) => {
                    if let Some(end) = self.handle(io) {
                        return end;
                    }
                }
                // A kick, or a processor that waited for its start-up IPI.
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => self.counts.signal += 1,
                Err(error) => return VmExit::Failed { detail: format!("KVM_RUN: {error}") },
            }
        }
    }

    /// Handles an exit; `Some` ends the run.
    fn handle(&mut self, io: &dyn VcpuIo) -> Option<VmExit> {
        match exit::read(self.fd.get_kvm_run()) {
            Exit::Port(access) => self.port(io, &access),
            Exit::Mmio { address, data, len, write } => self.mmio(io, address, data, len, write),
            Exit::Eoi(vector) => {
                self.counts.eoi += 1;
                io.eoi(vector);
            }
            Exit::InterruptWindow => self.counts.interrupt_window += 1,
            Exit::Interrupted => self.counts.signal += 1,
            Exit::Msr => {
                self.counts.other += 1;
                exit::refuse_msr(self.fd.get_kvm_run());
                self.completion_pending = true;
            }
            Exit::Halt => return Some(VmExit::Halted),
            Exit::Shutdown | Exit::SystemEvent(KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_SHUTDOWN) => {
                return Some(VmExit::TripleFault);
            }
            Exit::Debug { dr6 } => return Some(VmExit::Debug(self.debug.stop(dr6))),
            Exit::CannotEmulate(detail) => {
                self.counts.emulation_failure += 1;
                return Some(VmExit::EmulationFailure { detail: self.with_place(detail) });
            }
            Exit::SystemEvent(kind) => {
                return Some(VmExit::Failed { detail: format!("KVM reports system event {kind}") });
            }
            Exit::Unknown(reason) => {
                return Some(VmExit::Failed { detail: format!("KVM exits for unknown reason {reason}") });
            }
        }
        None
    }

    fn port(&mut self, io: &dyn VcpuIo, access: &PortAccess) {
        self.counts.port += 1;
        for element in exit::port_data(self.fd.get_kvm_run(), access).chunks_mut(access.size) {
            if access.write {
                io.pio_write(access.port, element);
            } else {
                io.pio_read(access.port, element);
            }
        }
        self.completion_pending = true;
    }

    fn mmio(&mut self, io: &dyn VcpuIo, address: u64, mut data: [u8; 8], len: usize, write: bool) {
        self.counts.mmio += 1;
        let mut done = 0;
        // Accesses that cross a page come in odd pieces; the machine knows only powers of two.
        while done < len {
            let size = 1 << (len - done).ilog2();
            let (at, piece) = (address.wrapping_add(done as u64), &mut data[done..done + size]);
            if write {
                io.mmio_write(at, piece);
            } else {
                io.mmio_read(at, piece);
            }
            done += size;
        }
        if !write {
            exit::set_mmio_data(self.fd.get_kvm_run(), data);
        }
        self.completion_pending = true;
    }

    /// Delivers the PIC's interrupt if its line is high and the guest can take one, or asks KVM to exit
    /// when it can.
    fn offer_pic_interrupt(&mut self, io: &dyn VcpuIo) -> Result<(), engine::EngineError> {
        if self.index != 0 {
            return Ok(());
        }
        let asserted = self.shared.pic_line.load(Ordering::SeqCst);
        let known = self.readiness_known;
        let run = self.fd.get_kvm_run();
        let ready = known && run.ready_for_interrupt_injection != 0;
        run.request_interrupt_window = u8::from(asserted && !ready);
        if !asserted || !ready {
            return Ok(());
        }
        self.readiness_known = false;
        self.counts.pic_interrupt += 1;
        state::inject_interrupt(&self.fd, io.acknowledge_pic())
    }

    /// Adds where the failure happened.
    fn with_place(&self, detail: String) -> String {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else { return detail };
        let bytes = self.code_at(regs.rip.wrapping_add(sregs.cs.base));
        format!(
            "{detail}, at {:#x}:{:#x}, bytes there{}",
            sregs.cs.selector,
            regs.rip,
            exit::hex(" ", &bytes)
        )
    }

    /// The bytes of the longest instruction at a linear address, fewer where memory ends.
    fn code_at(&self, linear: u64) -> Vec<u8> {
        let Ok(translation) = self.fd.translate_gva(linear) else { return Vec::new() };
        let mut bytes = [0; 15];
        let room = (4096 - (translation.physical_address % 4096) as usize).min(bytes.len());
        let read = translation.valid != 0
            && self.shared.memory.read(translation.physical_address, &mut bytes[..room]).is_ok();
        if read { bytes[..room].to_vec() } else { Vec::new() }
    }
}
