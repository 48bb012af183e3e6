//! A new processor, and loading and saving of its state.

use crate::code::CodeCache;
use crate::cpu::{Cpu, gpr, seg};
use crate::flags::LazyFlags;
use crate::mmu::Mmu;
use crate::system::SystemState;
use engine::EngineError;
use guest_memory::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use x86::{CpuState, Cr0, Cr4, Efer, Exception, PendingException, RFlags, Segment, Segments, Vector};

impl Cpu {
    /// A processor in the state after reset, with `physical_bits` of guest-physical address.
    pub fn new(
        memory: Arc<GuestMemory>,
        system: SystemState,
        events: Arc<AtomicU32>,
        physical_bits: u32,
    ) -> Box<Cpu> {
        let mut cpu = Box::new(Cpu {
            regs: std::array::from_fn(|word| if word == usize::from(gpr::HALF) / 8 { 1 << 31 } else { 0 }),
            flags: LazyFlags::default(),
            system_flags: RFlags::FIXED.bits(),
            block_end: 0,
            segment_base: [0; 8],
            segment_ends: [[0; 8]; 2],
            last_code_page: 0,
            kind: Default::default(),
            flat_read: 0,
            flat_write: 0,
            long64: false,
            cpl: 0,
            code_size: 16,
            shadow: 0,
            mmu: Mmu::new(physical_bits),
            segments: [Segment::default(); 8],
            gdtr: x86::DescriptorTable::default(),
            idtr: x86::DescriptorTable::default(),
            cr0: Cr0::empty(),
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            xcr0: 1,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            exception: Exception::plain(Vector::Divide),
            exit: None,
            mp_state: x86::MpState::Runnable,
            instructions: 0,
            step_end: u64::MAX,
            next_tick: 0,
            pio_accesses: 0,
            halts: 0,
            kept_resume_flag: false,
            repeating: false,
            delivered: false,
            pending_exception: None,
            pending_interrupt: None,
            vector: Default::default(),
            fpu: Default::default(),
            system,
            memory,
            events,
            event_mask: u32::MAX,
            io: None,
            code: CodeCache::new(),
            shared: Default::default(),
            translator: None,
            tracer: None,
            times: Default::default(),
            store_log: None,
            debug: None,
            last_stale: u64::MAX,
        });
        cpu.load_registers(&CpuState::reset(true));
        cpu
    }

    /// Saves the whole state.
    pub fn save(&self) -> CpuState {
        let segment = |number: u8| self.segments[usize::from(number)];
        let mut state = CpuState {
            rip: self.rip(),
            rflags: self.rflags() | if self.repeating { RFlags::RF.bits() } else { 0 },
            segments: Segments {
                es: segment(seg::ES),
                cs: segment(seg::CS),
                ss: segment(seg::SS),
                ds: segment(seg::DS),
                fs: segment(seg::FS),
                gs: segment(seg::GS),
                ldtr: segment(seg::LDTR),
                tr: segment(seg::TR),
            },
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0.bits(),
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4.bits(),
            xcr0: self.xcr0,
            efer: self.efer.bits(),
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            mp_state: self.mp_state,
            ..CpuState::default()
        };
        state.gprs.copy_from_slice(&self.regs[..16]);
        state.events.sti_shadow = self.shadow & crate::cpu::shadow::STI != 0;
        state.events.mov_ss_shadow = self.shadow & crate::cpu::shadow::MOV_SS != 0;
        if state.events.mov_ss_shadow {
            state.events.breakpoints = self.mmu.breakpoints_hit as u8;
        }
        state.events.exception = self.pending_exception.map(|exception| PendingException { exception });
        self.save_vector(&mut state.xsave);
        self.save_system(&mut state);
        state
    }

    /// Loads a whole state.
    pub fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.load_registers(state);
        self.load_vector(&state.xsave);
        self.load_system(state);
        self.mode_changed();
        self.update_event_mask();
        Ok(())
    }

    fn load_registers(&mut self, state: &CpuState) {
        self.regs[..16].copy_from_slice(&state.gprs);
        self.set_rip(state.rip);
        let s = &state.segments;
        self.segments = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldtr, s.tr];
        (self.gdtr, self.idtr) = (state.gdtr, state.idtr);
        self.cr0 = Cr0::from_bits_retain(state.cr0);
        (self.cr2, self.cr3) = (state.cr2, state.cr3);
        self.cr4 = Cr4::from_bits_retain(state.cr4);
        self.xcr0 = state.xcr0;
        self.efer = Efer::from_bits_retain(state.efer);
        (self.dr, self.dr6, self.dr7) = (state.dr, state.dr6, state.dr7);
        self.mp_state = state.mp_state;
        self.shadow = u8::from(state.events.sti_shadow) * crate::cpu::shadow::STI
            | u8::from(state.events.mov_ss_shadow) * crate::cpu::shadow::MOV_SS;
        self.pending_exception = state.events.exception.map(|pending| pending.exception);
        self.repeating = false;
        self.mmu.breakpoints_hit = (state.events.breakpoints & 0xf).into();
        self.flags.set_bits(state.rflags);
        self.system_flags = state.rflags & !RFlags::ARITHMETIC.bits() | RFlags::FIXED.bits();
        self.cpl = self.privilege_of_state();
        self.mode_changed();
        self.flush_tlb(false);
        if self.is_pae_paging() {
            // A state saved under PAE paging had legal entries; what cannot be read leaves none present.
            let _ = self.load_pdptes(self.cr3);
        }
    }

    /// The privilege level is the DPL of SS; real mode has 0 and virtual-8086 mode 3 (SDM 3C 24.4.1).
    fn privilege_of_state(&self) -> u8 {
        if !self.cr0.contains(Cr0::PE) {
            0
        } else if self.is_v86() {
            3
        } else {
            self.segments[usize::from(seg::SS)].attributes.dpl()
        }
    }
}
