//! Comparing blocks with the interpreter while a guest runs (`--verify N`).
//!
//! Every N-th block is first run by the interpreter, with each store noted; then everything is put back, the
//! translation runs from the same state, and registers, flags, vectors and the stored bytes are compared. A
//! block that reaches a device or changes code is left as the interpreter ran it, or run without comparison. One whose
//! translation is left in its middle, because code memory is full, is put back and interpreted.
//! Other processors and devices that write the same bytes meanwhile look like differences: use one processor.
#![expect(unsafe_code, reason = "looks into decoded blocks")]

use super::thunks::Exit;
use crate::code::Block;
use crate::cpu::{Cpu, Stop, seg};
use crate::interp::x87::FpuState;
use engine::VmExit;
use x86::Exception;

/// What the interpreter did to memory.
#[derive(Default)]
pub(crate) struct StoreLog {
    /// Guest-physical address and the bytes before.
    pub stores: Vec<(u64, Vec<u8>)>,
    /// A device was reached.
    pub device: bool,
    /// Code became stale.
    pub code: bool,
}

/// What is compared.
#[derive(Clone, PartialEq)]
struct Picture {
    regs: [u64; 18],
    flags: u64,
    ymm: [[u8; 32]; 16],
    mxcsr: u32,
    fpu: FpuState,
    fault: Option<Exception>,
}

/// How the interpreter's run of a block ended.
enum Rehearsal {
    /// Compare.
    Done,
    /// The state is the block's end; there is nothing to compare.
    Final,
    /// A device would have been reached: nothing was done.
    Impossible,
    /// As an instruction ended that is no plain one.
    Stopped(Stop),
}

impl Cpu {
    fn picture(&self, fault: Option<Exception>) -> Picture {
        let mut regs = [0; 18];
        regs.copy_from_slice(&self.regs[..18]);
        let (ymm, mxcsr) = (self.vector.ymm, self.vector.mxcsr);
        Picture { regs, flags: self.flags.bits(), ymm, mxcsr, fpu: self.fpu.clone(), fault }
    }

    /// Puts back what a run of a block changed.
    fn undo(&mut self, log: &StoreLog, before: &Picture) {
        for (at, old) in log.stores.iter().rev() {
            self.put_bytes(*at, old);
        }
        self.regs[..18].copy_from_slice(&before.regs);
        self.flags.set_bits(before.flags);
        self.vector.ymm = before.ymm;
        self.vector.mxcsr = before.mxcsr;
        self.fpu = before.fpu.clone();
    }

    /// Enters the code at `host`, a block of `insns` copied instructions, and compares it with the interpreter,
    /// but for flags that are `undefined`.
    pub(super) fn enter_verified(&mut self, host: u64, insns: u32, undefined: u64) -> Result<Exit, Stop> {
        let before = self.picture(None);
        let page = self.shared.rip_page;
        let (rehearsal, log, wanted) = self.rehearse(insns, &before);
        match rehearsal {
            Rehearsal::Impossible => return Ok(self.enter(host)),
            Rehearsal::Final => return Ok(Exit::Lookup),
            Rehearsal::Stopped(stop) => return self.settle(stop).map(|()| Exit::Done),
            Rehearsal::Done => {}
        }
        let after: Vec<Vec<u8>> = log.stores.iter().map(|(at, old)| self.bytes_at(*at, old.len())).collect();
        self.undo(&log, &before);
        self.shared.rip_page = page;
        // A block that was not compared may have been left so.
        if let Some(translator) = &mut self.translator {
            translator.left_in_middle = false;
        }
        let exit = self.enter(host);
        if self.translator.as_ref().is_some_and(|translator| translator.left_in_middle) {
            self.undo(&log, &before);
            self.shared.rip_page = page;
            self.shared.argument = before.regs[17].wrapping_sub(page);
            return Ok(Exit::Interpret);
        }
        let at_start = matches!(exit, Exit::InPage | Exit::Interpret)
            && self.shared.argument == before.regs[17].wrapping_sub(page);
        if at_start {
            return Ok(exit);
        }
        self.settle_rip(exit);
        let got = self.picture((exit == Exit::Fault).then_some(self.exception));
        let memory_differs = log
            .stores
            .iter()
            .zip(&after)
            .any(|((at, old), new)| self.last_store(&log, *at) && self.bytes_at(*at, old.len()) != *new);
        let mask = |picture: &Picture| Picture { flags: picture.flags & !undefined, ..picture.clone() };
        if mask(&got) != mask(&wanted) || memory_differs {
            return Err(self.report(&before, &wanted, &got, memory_differs));
        }
        if let Some(translator) = &mut self.translator {
            translator.counts.verified += 1;
        }
        Ok(match exit {
            Exit::Fault | Exit::Stop | Exit::Done => exit,
            _ => Exit::Lookup,
        })
    }

    /// Whether only one store went to an address: the last bytes are what counts.
    fn last_store(&self, log: &StoreLog, at: u64) -> bool {
        log.stores.iter().filter(|(other, _)| *other >> 6 == at >> 6).count() == 1
    }

    /// Sets RIP as the loop would after an exit.
    fn settle_rip(&mut self, exit: Exit) {
        match exit {
            Exit::Link | Exit::EventAtLink => self.follow_link(false),
            Exit::InPage | Exit::Interpret => {
                self.set_rip(self.shared.rip_page.wrapping_add(self.shared.argument));
            }
            _ => {}
        }
    }

    fn rehearse(&mut self, insns: u32, before: &Picture) -> (Rehearsal, StoreLog, Picture) {
        self.store_log = Some(Box::default());
        self.update_translation_mode();
        let mut result = Ok(());
        for _ in 0..insns {
            let rip = self.rip();
            let Ok(block) = self.find_block() else {
                result = Err(Stop::Fault);
                break;
            };
            self.block_end = 0;
            let len = {
                // SAFETY: valid until the next lookup; blocks are not empty.
                let insns = unsafe { Block::insns(block) };
                let len = insns[0].len;
                result = self.run_block(insns.as_ptr());
                len
            };
            match result {
                // A taken jump leaves the block, even to the next instruction.
                Ok(()) if self.rip() == rip.wrapping_add(u64::from(len)) => {}
                _ => break,
            }
        }
        let log = self.store_log.take().map(|log| *log).unwrap_or_default();
        self.update_translation_mode();
        let fault = (result == Err(Stop::Fault)).then_some(self.exception);
        let wanted = self.picture(fault);
        let rehearsal = if log.device {
            self.undo(&log, before);
            Rehearsal::Impossible
        } else if log.code {
            if result == Err(Stop::Fault) { Rehearsal::Stopped(Stop::Fault) } else { Rehearsal::Final }
        } else {
            match result {
                Ok(()) | Err(Stop::Jump | Stop::Fault) => Rehearsal::Done,
                Err(stop) => Rehearsal::Stopped(stop),
            }
        };
        (rehearsal, log, wanted)
    }

    fn bytes_at(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // Not RAM reads as zeros on both sides.
        let _ = self.memory.read(at, &mut bytes);
        bytes
    }

    fn put_bytes(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(at, bytes);
    }

    fn report(&mut self, before: &Picture, wanted: &Picture, got: &Picture, memory: bool) -> Stop {
        let page =
            self.bytes_at_linear(before.regs[17].wrapping_add(self.segment_base[usize::from(seg::CS)]), 64);
        let detail = format!(
            "A translated block differs from the interpreter at {:#x} (code {page:02x?}): memory {memory}, \
             before {:x?} flags {:x}, interpreter {:x?} flags {:x} fault {:?}, translator {:x?} flags {:x} fault \
             {:?}, vectors equal: {}, x87 equal: {}",
            before.regs[17],
            before.regs,
            before.flags,
            wanted.regs,
            wanted.flags,
            wanted.fault,
            got.regs,
            got.flags,
            got.fault,
            wanted.ymm == got.ymm && wanted.mxcsr == got.mxcsr,
            wanted.fpu == got.fpu,
        );
        self.exit = Some(VmExit::Failed { detail });
        Stop::Exit
    }

    fn bytes_at_linear(&mut self, linear: u64, len: usize) -> Vec<u8> {
        let room = len.min(0x1000 - (linear & 0xfff) as usize);
        self.fetch_physical(linear).map_or_else(|_| Vec::new(), |physical| self.bytes_at(physical, room))
    }

    /// Notes the bytes before a store, while a block is rehearsed.
    pub(crate) fn log_store(&mut self, physical: u64, len: usize) {
        if self.store_log.is_none() {
            return;
        }
        let old = self.bytes_at(physical, len);
        if let Some(log) = &mut self.store_log {
            log.stores.push((physical, old));
        }
    }
}
