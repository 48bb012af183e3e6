//! The fixed hardware registers as a function of guest time.

use super::bits::*;
use super::state::AcpiPmState;

const NS: u128 = 1_000_000_000;

/// What a write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// To enter the sleep state of this SLP_TYP.
    Enter(u8),
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    overflows_seen: u64,
}

fn ticks(now_ns: u64) -> u64 {
    (u128::from(now_ns) * u128::from(TIMER_HZ) / NS) as u64
}

impl Registers {
    /// After power-on at a guest time.
    pub fn new(now_ns: u64) -> Self {
        let overflows_seen = ticks(now_ns) >> TIMER_TOP_BIT;
        Registers { status: 0, enable: 0, control: CONTROL_SCI_ENABLE, overflows_seen }
    }

    /// Reads one byte.
    pub fn read(&self, offset: u64, now_ns: u64) -> u8 {
        let byte_of = |value: u32, from: u64| (value >> ((offset - from) * 8)) as u8;
        match offset {
            STATUS..ENABLE => byte_of(self.status.into(), STATUS),
            ENABLE..CONTROL => byte_of(self.enable.into(), ENABLE),
            CONTROL..0x06 => byte_of(self.control.into(), CONTROL),
            TIMER..0x0c => byte_of(ticks(now_ns) as u32, TIMER),
            // Of the general purpose events, none is pending, and none keeps its enable bit.
            _ => 0,
        }
    }

    /// Writes one byte.
    pub fn write(&mut self, offset: u64, value: u8) -> Option<Sleep> {
        let (low, high) = (u16::from(value), u16::from(value) << 8);
        match offset {
            STATUS => self.status &= !low,
            0x01 => self.status &= !high,
            ENABLE => self.enable = self.enable & 0xff00 | low & EVENTS,
            0x03 => self.enable = self.enable & 0x00ff | high & EVENTS,
            CONTROL => {
                let kept = low & CONTROL_BUS_MASTER_RELOAD;
                self.control = self.control & 0xff00 | kept | CONTROL_SCI_ENABLE;
            }
            0x05 => {
                self.control = self.control & 0x00ff | high & CONTROL_SLEEP_TYPE;
                let sleep_type = (self.control >> CONTROL_SLEEP_TYPE_SHIFT) as u8;
                return (high & CONTROL_SLEEP_ENABLE != 0).then_some(Sleep::Enter(sleep_type));
            }
            _ => {}
        }
        None
    }

    /// The power button is pressed and released (4.8.2.2.1).
    pub fn press_power_button(&mut self) {
        self.status |= EVENT_POWER_BUTTON;
    }

    /// Turns changes of the timer's top bit into its event.
    pub fn update(&mut self, now_ns: u64) {
        let overflows = ticks(now_ns) >> TIMER_TOP_BIT;
        if overflows != self.overflows_seen {
            self.overflows_seen = overflows;
            self.status |= EVENT_TIMER;
        }
    }

    /// When the timer's top bit changes next, if anybody wants to know.
    pub fn next_event(&self, now_ns: u64) -> Option<u64> {
        let wanted = self.enable & !self.status & EVENT_TIMER != 0;
        let tick = u128::from((ticks(now_ns) >> TIMER_TOP_BIT) + 1) << TIMER_TOP_BIT;
        wanted.then(|| u64::try_from((tick * NS).div_ceil(u128::from(TIMER_HZ))).unwrap_or(u64::MAX))
    }

    /// The level of the system control interrupt.
    pub fn interrupt(&self) -> bool {
        self.status & self.enable & EVENTS != 0
    }

    /// What is saved.
    pub fn save(&self) -> AcpiPmState {
        let Registers { status, enable, control, overflows_seen } = *self;
        AcpiPmState { status, enable, control, overflows_seen }
    }

    /// Saved registers.
    pub fn restored(state: &AcpiPmState) -> Self {
        let AcpiPmState { status, enable, control, overflows_seen } = *state;
        let kept = CONTROL_SLEEP_TYPE | CONTROL_BUS_MASTER_RELOAD;
        let control = control & kept | CONTROL_SCI_ENABLE;
        Registers { status, enable: enable & EVENTS, control, overflows_seen }
    }
}
