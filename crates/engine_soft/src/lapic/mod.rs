//! The local APIC (SDM 3A chapter 10).
//!
//! Its state is in two parts: [`LapicPort`] is what messages from other threads touch, [`Lapic`] belongs to the
//! processor's thread. Time is passed in; the timer counts nanoseconds (a 1 GHz clock) before the divider.
//!
//! `Lapic` never delivers anything by itself: it sets [`event::INTR`] when something of higher priority than
//! the processor waits, and the processor asks [`Lapic::acknowledge`] when it can take an interrupt.

mod bus;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;

pub use bus::{ApicBus, Destination, LapicPort, Message, Mode, delivery, error};
pub use registers::register;

use crate::system::event;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use timer::Timer;

/// Frequency of the timer before its divider, in kHz.
pub const TIMER_KHZ: u32 = 1_000_000;

/// IA32_APIC_BASE bits.
pub mod base {
    /// Boot processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const X2APIC: u64 = 1 << 10;
    /// Global enable.
    pub const ENABLE: u64 = 1 << 11;
    /// The bits that are the page's address, up to the physical address width.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// LVT entries, in register order.
mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const MASKED: u32 = 1 << 16;
}

/// A request that makes no sense: `#GP(0)` for the MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected;

/// SVR: the guest tells the IOAPICs of an EOI itself.
const SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;

/// A local APIC.
pub struct Lapic {
    port: Arc<LapicPort>,
    bus: Arc<ApicBus>,
    index: u32,
    base: u64,
    /// xAPIC ID, which a guest may change.
    id: u8,
    tpr: u8,
    isr: [u32; 8],
    ldr: u32,
    dfr: u32,
    svr: u32,
    /// Errors as last latched by a write to ESR.
    esr: u32,
    icr: u64,
    lvt: [u32; 6],
    timer: Timer,
}

impl Lapic {
    /// The local APIC of processor `index` after reset; `None` if the bus has no such processor.
    pub fn new(bus: &Arc<ApicBus>, index: u32) -> Option<Self> {
        let port = Arc::clone(bus.port(index)?);
        let mut lapic = Lapic {
            port,
            bus: Arc::clone(bus),
            index,
            base: 0xfee0_0000 | base::ENABLE | if index == 0 { base::BSP } else { 0 },
            id: index as u8,
            tpr: 0,
            isr: [0; 8],
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            icr: 0,
            lvt: [lvt::MASKED; 6],
            timer: Timer::default(),
        };
        lapic.power_up();
        Some(lapic)
    }

    /// The state after reset, with LINT0 of the boot processor as firmware leaves it: virtual wire mode, so
    /// that a directly booted kernel hears the PIC.
    fn power_up(&mut self) {
        self.reset();
        if self.base & base::BSP != 0 {
            self.lvt[lvt::LINT0] = u32::from(delivery::EXT_INT) << 8;
        }
    }

    /// INIT (SDM 3A 10.4.7.3): everything but the ID and IA32_APIC_BASE.
    pub fn reset(&mut self) {
        self.tpr = 0;
        self.isr = [0; 8];
        (self.ldr, self.dfr, self.svr) = (0, u32::MAX, 0xff);
        (self.esr, self.icr) = (0, 0);
        self.lvt = [lvt::MASKED; 6];
        self.timer = Timer::default();
        for word in self.port.irr.iter().chain(&self.port.tmr) {
            word.store(0, Ordering::SeqCst);
        }
        self.port.errors.store(0, Ordering::SeqCst);
        if self.mode() == Mode::X2apic {
            self.ldr = self.x2apic_logical();
        }
        self.publish();
    }

    /// The port, to wait on.
    pub fn port(&self) -> &Arc<LapicPort> {
        &self.port
    }

    /// The bus.
    pub fn bus(&self) -> &ApicBus {
        &self.bus
    }

    /// Mode by IA32_APIC_BASE.
    pub fn mode(&self) -> Mode {
        match self.base & (base::ENABLE | base::X2APIC) {
            base::ENABLE => Mode::Xapic,
            bits if bits & base::ENABLE != 0 => Mode::X2apic,
            _ => Mode::Disabled,
        }
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE (SDM 3A 10.12.5): only the transitions of figure 10-27.
    pub fn set_base(&mut self, value: u64, physical_bits: u32, x2apic: bool) -> Result<(), Rejected> {
        let address = base::ADDRESS & ((1 << physical_bits.min(52)) - 1);
        let extended = if x2apic { base::X2APIC } else { 0 };
        if value & !(address | base::BSP | base::ENABLE | extended) != 0 {
            return Err(Rejected);
        }
        let bits = |value: u64| (value & base::ENABLE != 0, value & base::X2APIC != 0);
        match (bits(self.base), bits(value)) {
            (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false)) => {
                return Err(Rejected);
            }
            _ => {}
        }
        let before = self.mode();
        self.base = value;
        let after = self.mode();
        if after == Mode::Disabled && before != Mode::Disabled {
            self.reset();
        }
        if after == Mode::X2apic && before != Mode::X2apic {
            self.ldr = self.x2apic_logical();
            self.icr &= 0xffff_ffff;
        }
        if before == Mode::Disabled {
            self.id = self.index as u8;
        }
        self.publish();
        self.recheck();
        Ok(())
    }

    fn x2apic_logical(&self) -> u32 {
        (self.index >> 4) << 16 | 1 << (self.index & 15)
    }

    /// Copies what other threads match messages against.
    fn publish(&self) {
        let id = if self.mode() == Mode::X2apic { self.index } else { u32::from(self.id) };
        self.port.id.store(id, Ordering::SeqCst);
        self.port.logical.store(self.ldr, Ordering::SeqCst);
        self.port.flat.store(self.dfr >> 28 == 0xf, Ordering::SeqCst);
        self.port.mode.store(self.mode() as u8, Ordering::SeqCst);
        self.port.software_enabled.store(self.svr & 1 << 8 != 0, Ordering::SeqCst);
    }

    /// Task priority, as CR8 has it.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Sets the task priority class.
    pub fn set_cr8(&mut self, value: u64) {
        self.set_task_priority((value as u8 & 0xf) << 4);
    }

    fn set_task_priority(&mut self, value: u8) {
        self.tpr = value;
        self.recheck();
    }

    /// Processor priority (SDM 3A 10.8.3.1).
    pub fn processor_priority(&self) -> u8 {
        let serviced = highest(&self.isr).unwrap_or(0);
        if self.tpr >> 4 >= serviced >> 4 { self.tpr } else { serviced & 0xf0 }
    }

    /// Highest requested vector that the processor priority lets through.
    pub fn pending(&self) -> Option<u8> {
        let words: [u32; 8] = std::array::from_fn(|word| self.port.irr[word].load(Ordering::SeqCst));
        highest(&words).filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// Whether [`event::INTR`] belongs set; sets it if so.
    pub fn recheck(&self) {
        self.port.priority.store(self.processor_priority(), Ordering::Relaxed);
        if self.mode() != Mode::Disabled && self.pending().is_some() {
            self.port.events.fetch_or(event::INTR, Ordering::SeqCst);
        }
        if self.index == 0 && self.bus.pic_line() && self.hears_pic() {
            self.port.events.fetch_or(event::PIC, Ordering::SeqCst);
        }
    }

    /// The interrupt acknowledge cycle: moves the highest pending vector into service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        if self.mode() == Mode::Disabled {
            return None;
        }
        let vector = self.pending()?;
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        self.port.irr[word].fetch_and(!bit, Ordering::SeqCst);
        self.isr[word] |= bit;
        self.recheck();
        Some(vector)
    }

    /// End of interrupt. Returns the vector if the IOAPICs must hear of it.
    pub fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = highest(&self.isr)?;
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        self.isr[word] &= !bit;
        self.recheck();
        if self.svr & SUPPRESS_EOI_BROADCAST != 0 {
            return None;
        }
        let level = self.port.tmr[word].load(Ordering::SeqCst) & bit != 0;
        (level || self.bus.is_level_vector(vector)).then_some(vector)
    }

    /// Whether LINT0 brings the PIC's interrupts: ExtINT, or the APIC is off and LINT0 is INTR.
    pub fn hears_pic(&self) -> bool {
        if self.mode() == Mode::Disabled {
            return true;
        }
        let entry = self.lvt[lvt::LINT0];
        entry & lvt::MASKED == 0 && (entry >> 8 & 7) as u8 == delivery::EXT_INT
    }

    /// The PIC's line rose: what LINT0 makes of it when it is not ExtINT.
    pub fn pic_line_rose(&mut self) {
        let entry = self.lvt[lvt::LINT0];
        if self.mode() != Mode::Disabled && (entry >> 8 & 7) as u8 != delivery::EXT_INT {
            self.fire(lvt::LINT0);
        }
    }

    /// The NMI button: LINT1.
    pub fn raise_lint1(&mut self) {
        self.fire(lvt::LINT1);
    }

    fn fire(&self, entry: usize) {
        let value = self.lvt[entry];
        if value & lvt::MASKED == 0 {
            self.port.accept((value >> 8 & 7) as u8, value as u8, false);
        }
    }

    /// Errors that messages made; interrupts through the error entry.
    pub fn report_errors(&mut self) {
        if self.port.errors.load(Ordering::SeqCst) != 0 {
            self.fire(lvt::ERROR);
        }
    }

    fn raise_error(&self, bits: u32) {
        self.port.errors.fetch_or(bits, Ordering::SeqCst);
        self.fire(lvt::ERROR);
    }

    /// The vector of the last start-up IPI.
    pub fn start_vector(&self) -> u8 {
        self.port.start_vector.load(Ordering::SeqCst)
    }

    /// Fires the timer if it is due. Returns when it will be due next.
    pub fn advance(&mut self, now_ns: u64) -> Option<u64> {
        if self.timer.expire(now_ns) {
            self.fire_timer();
        }
        self.timer.deadline()
    }

    fn fire_timer(&mut self) {
        let value = self.lvt[lvt::TIMER];
        if value & lvt::MASKED == 0 {
            self.port.request(value as u8, false);
        }
    }
}

/// Highest vector set.
fn highest(words: &[u32; 8]) -> Option<u8> {
    let (number, word) = words.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
    Some((number as u32 * 32 + 31 - word.leading_zeros()) as u8)
}
