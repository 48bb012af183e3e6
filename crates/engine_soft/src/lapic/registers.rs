//! The register file, as a memory page (xAPIC) and as MSRs (x2APIC).

use super::bus::{Destination, Message, Mode, delivery, error};
use super::timer::TimerMode;
use super::{Lapic, Rejected, lvt};
use std::sync::atomic::Ordering;

/// Register numbers: byte offset in the xAPIC page divided by 16, and MSR number minus 0x800.
pub mod register {
    #![expect(missing_docs, reason = "the manual's names, SDM 3A table 10-1")]
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}
use register as r;

/// Version 0x14 with six LVT entries and EOI-broadcast suppression.
const VERSION: u32 = 0x14 | 5 << 16 | 1 << 24;
/// Writable bits of the spurious-interrupt vector register: vector, enable, EOI-broadcast suppression.
pub(super) const SVR_WRITABLE: u32 = 0x11ff;
/// Writable bits of the LVT entries: timer, thermal, performance, LINT0, LINT1, error.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Writable bits of the interrupt command register's low half.
const ICR_WRITABLE: u32 = 0x000c_cfff;

/// Whether the xAPIC page has a register there (SDM 3A table 10-1; what this version lacks counts as reserved).
fn is_register(register: u32) -> bool {
    matches!(
        register,
        r::ID
            | r::VERSION
            | r::TPR
            | r::PPR
            | r::EOI
            | r::LDR..=r::SVR
            | r::ISR..=r::ESR
            | r::ICR..=r::TIMER_CURRENT
            | r::TIMER_DIVIDE
    )
}

impl Lapic {
    /// A register; `None` if there is no such register to read.
    pub fn read(&self, register: u32, now_ns: u64) -> Option<u32> {
        let word = (register & 7) as usize;
        Some(match register {
            r::ID if self.mode() == Mode::X2apic => self.index,
            r::ID => u32::from(self.id) << 24,
            r::VERSION => VERSION,
            r::TPR => u32::from(self.tpr),
            r::PPR => u32::from(self.processor_priority()),
            r::LDR => self.ldr,
            r::DFR => self.dfr,
            r::SVR => self.svr,
            r::ISR..0x18 => self.isr[word],
            r::TMR..0x20 => self.port.tmr[word].load(Ordering::SeqCst),
            r::IRR..0x28 => self.port.irr[word].load(Ordering::SeqCst),
            r::ESR => self.esr,
            r::ICR => self.icr as u32,
            r::ICR_HIGH => (self.icr >> 32) as u32,
            r::LVT_TIMER..=r::LVT_ERROR => self.lvt[(register - r::LVT_TIMER) as usize],
            r::TIMER_INITIAL => self.timer.initial,
            r::TIMER_CURRENT => self.timer.current(now_ns),
            r::TIMER_DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    /// Writes a register. Returns a vector whose EOI the IOAPICs must hear of.
    pub fn write(&mut self, register: u32, value: u32, now_ns: u64) -> Option<u8> {
        match register {
            r::ID => self.id = (value >> 24) as u8,
            r::TPR => self.set_task_priority(value as u8),
            r::EOI => return self.end_of_interrupt(),
            r::LDR => self.ldr = value & 0xff00_0000,
            r::DFR => self.dfr = value | 0x0fff_ffff,
            r::SVR => self.write_spurious(value),
            r::ESR => self.esr = self.port.errors.swap(0, Ordering::SeqCst),
            r::ICR => self.send(self.icr & !0xffff_ffff | u64::from(value & ICR_WRITABLE)),
            r::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            r::LVT_TIMER..=r::LVT_ERROR => self.write_lvt((register - r::LVT_TIMER) as usize, value),
            r::TIMER_INITIAL => self.timer.start(value, now_ns, 0),
            r::TIMER_DIVIDE => self.timer.set_divide(value, now_ns),
            _ => {}
        }
        if matches!(register, r::ID | r::LDR | r::DFR | r::SVR) {
            self.publish();
        }
        None
    }

    fn write_spurious(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & 1 << 8 == 0 {
            for entry in &mut self.lvt {
                *entry |= lvt::MASKED;
            }
        }
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let disabled = if self.svr & 1 << 8 == 0 { lvt::MASKED } else { 0 };
        self.lvt[entry] = value & LVT_WRITABLE[entry] | disabled;
        if entry == lvt::TIMER {
            self.timer.set_mode(TimerMode::of_entry(value));
        }
        if entry == lvt::LINT0 {
            self.recheck();
        }
    }

    /// Writes the interrupt command register and sends (SDM 3A 10.6.1).
    fn send(&mut self, icr: u64) {
        self.icr = icr;
        let (vector, mode) = (icr as u8, (icr >> 8 & 7) as u8);
        let id = match self.mode() {
            Mode::X2apic => (icr >> 32) as u32,
            _ => match (icr >> 56) as u32 {
                0xff => u32::MAX,
                id => id,
            },
        };
        let level_deassert = icr & 1 << 14 == 0 && icr & 1 << 15 != 0;
        if mode == delivery::INIT && level_deassert || mode == 3 || mode == delivery::EXT_INT {
            return;
        }
        if mode <= delivery::LOWEST_PRIORITY && vector < 16 {
            return self.raise_error(error::SEND_ILLEGAL_VECTOR);
        }
        let own = self.port.id.load(Ordering::Relaxed);
        let destination = match icr >> 18 & 3 {
            0 if icr & 1 << 11 != 0 => Destination::Logical(id),
            0 => Destination::Physical(id),
            1 => return self.port.accept(delivery::FIXED, vector, false),
            2 => Destination::AllExcept(None),
            _ => Destination::AllExcept(Some(own)),
        };
        self.bus.deliver(Message { destination, mode, vector, level: false });
    }

    /// Reads from the xAPIC page, `offset` bytes from its start. Reserved registers are an error and read zero.
    pub fn read_page(&self, offset: u64, bytes: &mut [u8], now_ns: u64) {
        let within = (offset & 15) as usize;
        let register = (offset >> 4) as u32;
        if !is_register(register) {
            self.raise_error(error::ILLEGAL_REGISTER);
        }
        let value = self.read(register, now_ns).unwrap_or(0).to_le_bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = value.get(within + at).copied().unwrap_or(0);
        }
    }

    /// Writes to the xAPIC page. Only aligned 32-bit writes count (SDM 3A 10.4.1).
    pub fn write_page(&mut self, offset: u64, bytes: &[u8], now_ns: u64) -> Option<u8> {
        let word = <[u8; 4]>::try_from(bytes.get(..4)?).ok()?;
        if offset & 15 != 0 {
            return None;
        }
        let register = (offset >> 4) as u32;
        if !is_register(register) {
            self.raise_error(error::ILLEGAL_REGISTER);
        }
        self.write(register, u32::from_le_bytes(word), now_ns)
    }

    /// RDMSR of an x2APIC register.
    pub fn read_msr(&self, register: u32, now_ns: u64) -> Result<u64, Rejected> {
        if self.mode() != Mode::X2apic {
            return Err(Rejected);
        }
        match register {
            r::ICR => Ok(self.icr),
            r::ICR_HIGH | r::DFR => Err(Rejected),
            _ => self.read(register, now_ns).map(u64::from).ok_or(Rejected),
        }
    }

    /// WRMSR of an x2APIC register.
    pub fn write_msr(&mut self, register: u32, value: u64, now_ns: u64) -> Result<Option<u8>, Rejected> {
        if self.mode() != Mode::X2apic {
            return Err(Rejected);
        }
        let writable = match register {
            r::TPR | r::SELF_IPI => 0xff,
            r::EOI | r::ESR => 0,
            r::SVR => u64::from(SVR_WRITABLE),
            r::ICR => 0xffff_ffff_0000_0000 | u64::from(ICR_WRITABLE),
            r::LVT_TIMER..=r::LVT_ERROR => {
                u64::from(LVT_WRITABLE[(register - r::LVT_TIMER) as usize]) | 1 << 12
            }
            r::TIMER_INITIAL => 0xffff_ffff,
            r::TIMER_DIVIDE => 0xb,
            _ => return Err(Rejected),
        };
        if value & !writable != 0 {
            return Err(Rejected);
        }
        match register {
            r::ICR => self.send(value),
            r::SELF_IPI if value < 16 => self.raise_error(error::SEND_ILLEGAL_VECTOR),
            r::SELF_IPI => self.port.accept(delivery::FIXED, value as u8, false),
            _ => return Ok(self.write(register, value as u32, now_ns)),
        }
        Ok(None)
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline
    }

    /// Sets IA32_TSC_DEADLINE, given also as guest time (`None` for never).
    pub fn set_tsc_deadline(&mut self, value: u64, due_ns: Option<u64>) {
        self.timer.set_tsc_deadline(value, due_ns);
    }
}
