//! A machine under a debugger: where its processors stop, which of them run, and what they see.
//!
//! What the debugger asked for belongs to the machine, not to the engine: it is loaded again when the processors move
//! to another engine and after a reset.

use crate::life::{Machine, MachineError};
use engine::{DebugStop, DebugStops, EngineError, Vcpu};
use x86::{CpuState, Cr0, Cr4, Efer, PageFlags};

/// What a processor does when the machine is resumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunMode {
    /// It runs.
    #[default]
    Run,
    /// It executes one instruction.
    Step,
    /// It stands.
    Hold,
}

/// What the debugger asked for.
#[derive(Default)]
pub(crate) struct Debugged {
    stops: DebugStops,
    modes: Vec<RunMode>,
}

impl Debugged {
    /// Loads a processor.
    pub fn load(&self, index: u32, vcpu: &mut dyn Vcpu) -> Result<(), EngineError> {
        let mode = self.modes.get(index as usize).copied().unwrap_or_default();
        vcpu.set_debug_stops(&DebugStops { single_step: mode == RunMode::Step, ..self.stops.clone() })
    }

    /// Whether a debugger asked for anything.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty() && self.modes.is_empty()
    }
}

impl Machine {
    /// Replaces the breakpoints and watchpoints of all processors. The machine is paused.
    ///
    /// # Errors
    /// When the engine cannot; everything is as before then.
    pub fn set_debug_stops(&mut self, stops: DebugStops) -> Result<(), MachineError> {
        let before = std::mem::replace(&mut self.debugged.stops, stops);
        self.load_debugged().inspect_err(|_| {
            self.debugged.stops = before;
            if let Err(error) = self.load_debugged() {
                tracing::error!(%error, "breakpoints are lost");
            }
        })
    }

    /// What each processor does from the next resume on; those behind the end run. The machine is paused.
    ///
    /// # Errors
    /// When the engine cannot make single steps.
    pub fn set_run_modes(&mut self, modes: Vec<RunMode>) -> Result<(), MachineError> {
        self.herd.hold(modes.iter().map(|mode| *mode == RunMode::Hold).collect());
        self.debugged.modes = modes;
        self.load_debugged()
    }

    fn load_debugged(&mut self) -> Result<(), MachineError> {
        let debugged = &self.debugged;
        Ok(self.herd.for_each(|index, vcpu| debugged.load(index, vcpu))?)
    }

    /// Why processors stopped for the debugger since this was asked last. The machine is paused.
    pub fn take_debug_stops(&self) -> Vec<(u32, DebugStop)> {
        self.herd.take_stops()
    }

    /// How many processors there are.
    pub fn processors(&self) -> u32 {
        self.settings.cpus
    }

    /// A processor's state, without its local APIC. The machine is paused.
    ///
    /// # Errors
    /// When there is no such processor, or the engine fails.
    pub fn processor(&self, index: u32) -> Result<CpuState, MachineError> {
        let mut found = Err(no_processor(index));
        self.herd.visit(index, |vcpu| found = vcpu.excursion_state());
        Ok(found?)
    }

    /// Changes a processor's state, but for its local APIC. The machine is paused.
    ///
    /// # Errors
    /// When there is no such processor, or no processor can be in the state.
    pub fn set_processor(&mut self, index: u32, state: &CpuState) -> Result<(), MachineError> {
        let mut done = Err(no_processor(index));
        self.herd.visit(index, |vcpu| done = vcpu.set_excursion_state(state));
        Ok(done?)
    }

    /// Reads RAM at a linear address of a processor, page after page; how many bytes could be read. Neither rights nor
    /// accessed flags matter.
    pub fn read_linear(&self, state: &CpuState, linear: u64, bytes: &mut [u8]) -> usize {
        let memory = self.memory();
        self.for_pages(state, linear, bytes.len(), |physical, part| {
            memory.read(physical, &mut bytes[part]).is_ok()
        })
    }

    /// Writes RAM, as [`Machine::read_linear`] reads it, also to pages that the guest may not write.
    pub fn write_linear(&self, state: &CpuState, linear: u64, bytes: &[u8]) -> usize {
        let memory = self.memory();
        self.for_pages(state, linear, bytes.len(), |physical, part| {
            memory.write(physical, &bytes[part]).is_ok()
        })
    }

    fn for_pages(
        &self,
        state: &CpuState,
        linear: u64,
        len: usize,
        mut visit: impl FnMut(u64, std::ops::Range<usize>) -> bool,
    ) -> usize {
        let mut done = 0;
        while done < len {
            let at = linear.wrapping_add(done as u64);
            let end = len.min(done + (PAGE - at % PAGE) as usize);
            let Some(physical) = self.physical(state, at) else { break };
            if !visit(physical, done..end) {
                break;
            }
            done = end;
        }
        done
    }

    /// Guest-physical address of a linear one (SDM 3A 4.3 to 4.5), `None` where nothing is mapped.
    pub fn physical(&self, state: &CpuState, linear: u64) -> Option<u64> {
        if !Cr0::from_bits_retain(state.cr0).contains(Cr0::PG) {
            return Some(linear);
        }
        let cr4 = Cr4::from_bits_retain(state.cr4);
        let wide = cr4.contains(Cr4::PAE);
        let long = Efer::from_bits_retain(state.efer).contains(Efer::LMA);
        let levels = match (wide, long) {
            (false, _) => 2,
            (true, false) => 3,
            (true, true) => 4 + u32::from(cr4.contains(Cr4::LA57)),
        };
        let bits = if wide { 9 } else { 10 };
        let mut table = if long { state.cr3 & ADDRESS & !(PAGE - 1) } else { state.cr3 & 0xffff_ffe0 };
        if !wide {
            table &= !(PAGE - 1);
        }
        for level in (1..=levels).rev() {
            let shift = 12 + bits * (level - 1);
            // The top table of PAE paging has four entries.
            let mask = if level == 3 && !long { 3 } else { (1 << bits) - 1 };
            let entry = self.entry(table, linear >> shift & mask, wide)?;
            let flags = PageFlags::from_bits_retain(entry);
            if !flags.contains(PageFlags::PRESENT) {
                return None;
            }
            let may_be_large = level == 2 || level == 3 && long;
            if level == 1 || may_be_large && flags.contains(PageFlags::LARGE) {
                let inside = (1 << shift) - 1;
                // A 4 MiB page has physical bits 39 to 32 in bits 20 to 13 (PSE-36).
                let high = if wide || level == 1 { 0 } else { (entry >> 13 & 0xff) << 32 };
                return Some(entry & ADDRESS & !inside & wide_mask(wide) | high | linear & inside);
            }
            table = entry & ADDRESS & !(PAGE - 1) & wide_mask(wide);
        }
        None
    }

    fn entry(&self, table: u64, index: u64, wide: bool) -> Option<u64> {
        let mut bytes = [0; 8];
        let size = if wide { 8 } else { 4 };
        self.memory().read(table + index * size as u64, &mut bytes[..size]).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Physical-address bits of an entry or CR3.
const ADDRESS: u64 = (1 << 52) - 1;

/// Entries of 32-bit paging have four bytes.
fn wide_mask(wide: bool) -> u64 {
    if wide { u64::MAX } else { 0xffff_ffff }
}

fn no_processor(index: u32) -> EngineError {
    EngineError::InvalidState { reason: format!("There is no processor {index}") }
}
