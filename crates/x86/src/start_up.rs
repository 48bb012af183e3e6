//! INIT and start-up IPIs that wait in a [`CpuState`].

use crate::{CpuState, LapicState, MpState};

/// IA32_APIC_BASE: boot processor.
const BOOTSTRAP: u64 = 1 << 8;
/// IA32_APIC_BASE: enabled, in x2APIC mode.
const X2APIC: u64 = 3 << 10;
/// CR0.CD and CR0.NW, which INIT leaves alone.
const CACHE_BITS: u64 = 3 << 29;
/// CR0.ET.
const EXTENSION_TYPE: u64 = 1 << 4;
/// Registers of the local APIC (SDM 3A table 10-1, byte offset divided by 16).
const ID: usize = 0x02;
const VERSION: usize = 0x03;
const LDR: usize = 0x0d;
const DFR: usize = 0x0e;
const SVR: usize = 0x0f;
const LVT: std::ops::RangeInclusive<usize> = 0x32..=0x37;
const LVT_MASKED: u32 = 1 << 16;

impl CpuState {
    /// Takes the INIT and the start-up IPI that wait in [`CpuState::events`], as the processor does before its next
    /// instruction (SDM 3A 8.4, table 9-1). For engines that cannot hold them back. RDX becomes the one of
    /// [`CpuState::reset`], not the model's signature.
    pub fn take_start_up(&mut self) {
        if std::mem::take(&mut self.events.init) {
            self.initialize();
        }
        if let Some(vector) = self.events.start_up.take()
            && self.mp_state == MpState::InitReceived
        {
            self.segments.cs.selector = u16::from(vector) << 8;
            self.segments.cs.base = u64::from(vector) << 12;
            self.rip = 0;
            self.mp_state = MpState::Runnable;
        }
    }

    fn initialize(&mut self) {
        let bootstrap = self.apic_base & BOOTSTRAP != 0;
        let reset = CpuState::reset(bootstrap);
        self.gprs = reset.gprs;
        (self.rip, self.rflags) = (reset.rip, reset.rflags);
        self.segments = reset.segments;
        (self.gdtr, self.idtr) = (reset.gdtr, reset.idtr);
        self.cr0 = EXTENSION_TYPE | self.cr0 & CACHE_BITS;
        (self.cr2, self.cr3, self.cr4, self.cr8, self.efer) = (0, 0, 0, 0, 0);
        (self.dr, self.dr6, self.dr7) = (reset.dr, reset.dr6, reset.dr7);
        self.events = crate::PendingEvents { start_up: self.events.start_up, ..Default::default() };
        self.mp_state = if bootstrap { MpState::Runnable } else { MpState::InitReceived };
        if self.msr(crate::msr::TSC_DEADLINE).is_some() {
            self.set_msr(crate::msr::TSC_DEADLINE, 0);
        }
        self.initialize_lapic();
    }

    /// SDM 3A 10.4.7.3: everything but the ID.
    fn initialize_lapic(&mut self) {
        let mut fresh = LapicState::default();
        let keep = |register: usize| self.lapic.registers.get(register).copied().unwrap_or(0);
        let x2apic = self.apic_base & X2APIC == X2APIC;
        for register in [ID, VERSION] {
            fresh.registers[register] = keep(register);
        }
        if x2apic {
            fresh.registers[LDR] = keep(LDR);
        }
        fresh.registers[DFR] = u32::MAX;
        fresh.registers[SVR] = 0xff;
        for register in LVT {
            fresh.registers[register] = LVT_MASKED;
        }
        if keep(VERSION) != 0 {
            self.lapic = fresh;
        }
    }
}
