//! Rust functions that translated code calls.
#![expect(unsafe_code, reason = "called from generated code with a raw processor pointer")]

use super::thunks::Exit;
use super::unit::Next;
use crate::cpu::{Cpu, Stop};
use std::sync::atomic::AtomicU8;

/// Runs the interpreter on the instruction of a site.
pub(super) extern "sysv64" fn run_site(cpu: *mut Cpu, site: u64, _: u64) -> u64 {
    // SAFETY: `Shared::own`, which `Cpu::run_translated` has set to the processor that it borrows.
    let cpu = unsafe { &mut *cpu };
    cpu.interpret_site(site as usize) as u64
}

/// After a store to a page that somebody watches.
pub(super) extern "sysv64" fn note_store(cpu: *mut Cpu, flags: *const AtomicU8, site: u64) -> u64 {
    // SAFETY: as above.
    let cpu = unsafe { &mut *cpu };
    cpu.note_site_store(flags, site as usize) as u64
}

impl Cpu {
    fn interpret_site(&mut self, number: usize) -> Exit {
        let Some(mut translator) = self.translator.take() else { return Exit::Done };
        let found = translator.site_insn(&self.system, number);
        self.translator = Some(translator);
        let Some((offset, insn)) = found else { return Exit::Done };
        self.set_rip(self.shared.rip_page.wrapping_add(offset));
        self.flags.set_bits(self.shared.arithmetic());
        // Anything but zero: a store to code, or a device, sets it to zero.
        self.block_end = 1;
        let result = (insn.handler)(self, &insn);
        self.instructions += 1;
        let exit = match result {
            Ok(()) | Err(Stop::Done) => {
                self.set_rip(self.rip().wrapping_add(u64::from(insn.len)));
                if result.is_ok() && self.block_end != 0 { Exit::Continue } else { Exit::Done }
            }
            Err(Stop::Jump) => Exit::Lookup,
            Err(Stop::Again) => Exit::Done,
            Err(Stop::Exit) => Exit::Stop,
            Err(Stop::Fault) => Exit::Fault,
        };
        self.shared.set_arithmetic(self.flags.bits());
        exit
    }

    fn note_site_store(&mut self, flags: *const AtomicU8, site: usize) -> Exit {
        let mut stale = false;
        for region in self.memory.regions() {
            let Some(first) = region.tracker().flag_byte(0) else { continue };
            let page = (flags as usize).wrapping_sub(&raw const *first as usize);
            if (page as u64) < region.size() >> 12 {
                stale = region.tracker().note_write(page);
            }
        }
        if !stale {
            return Exit::Continue;
        }
        let next = self.translator.as_ref().map_or(Next::InPage(0), |translator| translator.site_next(site));
        let spare = self.shared.spare;
        let rip = match next {
            Next::InPage(offset) => self.shared.rip_page.wrapping_add(offset as u64),
            Next::Spare => spare,
        };
        self.set_rip(rip);
        Exit::Lookup
    }
}
