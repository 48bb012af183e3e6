//! The UART's registers: no locks, threads or wires.

use super::bits::*;
use super::state::SerialState;
use std::collections::VecDeque;

/// What the terminal at the other end shows: ready, and carrier.
const PEER_LINES: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

/// The registers. Transmission takes no time: the holding register is always empty again.
#[derive(Debug)]
pub struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    transmitter_pending: bool,
    timed_out: bool,
    timeout_at: Option<u64>,
    /// The guest took "request to send" back: the peer waits.
    held: bool,
    received: VecDeque<u8>,
}

impl Registers {
    /// After master reset (data sheet, table I), at 9600 baud.
    pub fn new() -> Self {
        Registers {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: PEER_LINES,
            scratch: 0,
            divisor: 12,
            overrun: false,
            transmitter_pending: false,
            timed_out: false,
            timeout_at: None,
            held: false,
            received: VecDeque::with_capacity(FIFO_DEPTH),
        }
    }

    /// Reads a register at guest time `now`.
    pub fn read(&mut self, offset: u64, now: u64) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        let latch = self.lcr & LCR_DLAB != 0;
        match offset {
            RBR_THR if latch => divisor_low,
            RBR_THR => self.take_received(now),
            IER if latch => divisor_high,
            IER => self.ier,
            IIR_FCR => {
                let cause = self.cause();
                if cause == IIR_TRANSMITTER_EMPTY {
                    self.transmitter_pending = false;
                }
                cause | if self.fifo_enabled() { IIR_FIFO_ENABLED } else { 0 }
            }
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            MSR => {
                let status = self.msr;
                self.msr &= !MSR_CHANGES;
                status
            }
            SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes a register; answers the byte that goes out on the wire.
    pub fn write(&mut self, offset: u64, value: u8, now: u64) -> Option<u8> {
        let latch = self.lcr & LCR_DLAB != 0;
        match offset {
            RBR_THR if latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            RBR_THR => return self.transmit(value, now),
            IER if latch => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            IER => {
                let enabled = value & !self.ier;
                self.ier = value & IER_MASK;
                // Enabling the interrupt while the holding register is empty raises it.
                self.transmitter_pending |= enabled & IER_TRANSMITTER_EMPTY != 0;
            }
            IIR_FCR => self.set_fifo_control(value),
            LCR => self.lcr = value,
            MCR => {
                self.update_flow(value);
                self.mcr = value & MCR_MASK;
                self.update_modem_status();
            }
            // LSR and MSR are not meant to be written (8.4).
            SCR => self.scratch = value,
            _ => {}
        }
        None
    }

    /// The first half of a write to the holding register: it is not empty any more.
    pub fn fill_transmitter(&mut self) {
        self.transmitter_pending &= self.lcr & LCR_DLAB != 0;
    }

    /// Takes bytes from the line; answers how many. Nothing while the line is cut off by loopback or the guest holds
    /// the peer back.
    pub fn receive(&mut self, bytes: &[u8], now: u64) -> usize {
        let taken = bytes.len().min(self.room());
        self.received.extend(bytes.iter().take(taken));
        if taken > 0 {
            self.restart_timeout(now);
        }
        taken
    }

    /// How many bytes the receiver would take.
    pub fn room(&self) -> usize {
        let closed = self.mcr & MCR_LOOPBACK != 0 || self.held;
        if closed { 0 } else { self.capacity().saturating_sub(self.received.len()) }
    }

    /// The time of the next timeout, to be told to [`Registers::check_timeout`].
    pub fn timeout_at(&self) -> Option<u64> {
        self.timeout_at
    }

    /// Raises the character timeout if it is due.
    pub fn check_timeout(&mut self, now: u64) {
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.timeout_at = None;
            self.timed_out = true;
        }
    }

    /// The level of the interrupt line. In loopback the OUT2 pin is inactive, which closes the gate.
    pub fn interrupt(&self) -> bool {
        self.cause() != IIR_NONE && self.mcr & (MCR_OUT2 | MCR_LOOPBACK) == MCR_OUT2
    }

    /// What is saved.
    pub fn save(&self) -> SerialState {
        let Registers {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scratch,
            divisor,
            overrun,
            transmitter_pending,
            timed_out,
            timeout_at,
            held,
            ref received,
        } = *self;
        let received = received.iter().copied().collect();
        SerialState {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scratch,
            divisor,
            overrun,
            transmitter_pending,
            timed_out,
            timeout_at,
            held,
            received,
        }
    }

    /// Registers with a saved state; reserved bits and surplus bytes are dropped.
    pub fn restored(state: SerialState) -> Self {
        let SerialState {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scratch,
            divisor,
            overrun,
            transmitter_pending,
            timed_out,
            timeout_at,
            held,
            received,
        } = state;
        Registers {
            ier: ier & IER_MASK,
            fcr,
            lcr,
            mcr: mcr & MCR_MASK,
            msr,
            scratch,
            divisor,
            overrun,
            transmitter_pending,
            timed_out,
            timeout_at,
            held,
            received: received.into_iter().take(FIFO_DEPTH).collect(),
        }
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled() { FIFO_DEPTH } else { 1 }
    }

    fn trigger(&self) -> usize {
        let index = usize::from(self.fcr >> 6);
        if self.fifo_enabled() { FCR_TRIGGERS.get(index).copied().unwrap_or(1) } else { 1 }
    }

    /// The most urgent enabled interrupt (table IV).
    fn cause(&self) -> u8 {
        let enabled = |bit: u8| self.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.received.len() >= self.trigger() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && self.timed_out {
            IIR_TIMEOUT
        } else if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_pending {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.msr & MSR_CHANGES != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn line_status(&self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { LSR_DATA_READY };
        let overrun = if self.overrun { LSR_OVERRUN } else { 0 };
        ready | overrun | LSR_TRANSMITTER_EMPTY
    }

    fn take_received(&mut self, now: u64) -> u8 {
        let byte = self.received.pop_front().unwrap_or(0);
        self.restart_timeout(now);
        byte
    }

    /// The data bits of a character: 5 to 8 (8.1, bits 0 and 1). They hold in loopback; the other end takes and gives
    /// whole bytes, because small guests write without ever setting the length, which is 5 after reset.
    fn character_mask(&self) -> u8 {
        0xff >> (3 - (self.lcr & LCR_WORD_LENGTH))
    }

    fn transmit(&mut self, value: u8, now: u64) -> Option<u8> {
        self.transmitter_pending = true;
        if self.mcr & MCR_LOOPBACK == 0 {
            return Some(value);
        }
        let value = value & self.character_mask();
        if self.received.len() >= self.capacity() {
            self.overrun = true;
            // Without FIFO the new byte replaces the old one; with it, the new one is lost (8.4, bit 1).
            if !self.fifo_enabled() {
                self.received.clear();
            }
        }
        if self.received.len() < self.capacity() {
            self.received.push_back(value);
        }
        self.restart_timeout(now);
        None
    }

    /// Four character times without traffic while bytes wait (FIFO interrupt mode, 8.10).
    fn restart_timeout(&mut self, now: u64) {
        self.timed_out = false;
        let waits = self.fifo_enabled() && !self.received.is_empty();
        self.timeout_at = waits.then(|| now.saturating_add(4 * self.character_ns()));
    }

    /// Start, 5–8 data, parity and 1–2 stop bits at the programmed rate.
    fn character_ns(&self) -> u64 {
        let bit = |mask: u8| u64::from(self.lcr & mask != 0);
        let bits =
            1 + 5 + u64::from(self.lcr & LCR_WORD_LENGTH) + bit(LCR_PARITY) + 1 + bit(LCR_TWO_STOP_BITS);
        bits * u64::from(self.divisor.max(1)) * 1_000_000_000 / BAUD_BASE
    }

    fn set_fifo_control(&mut self, value: u8) {
        let toggled = (self.fcr ^ value) & FCR_ENABLE != 0;
        // The other bits count only together with the enable bit.
        let clear = value & FCR_ENABLE != 0 && value & FCR_CLEAR_RECEIVER != 0;
        if toggled || clear {
            self.received.clear();
            self.timed_out = false;
            self.timeout_at = None;
        }
        self.fcr = if value & FCR_ENABLE != 0 { value & (FCR_ENABLE | 0xc0) } else { 0 };
    }

    /// The peer minds RTS as long as the guest's terminal is there (DTR). It waits only for who has raised RTS before: a
    /// program that knows of no flow control leaves it low. In loopback the pins do not move.
    fn update_flow(&mut self, mcr: u8) {
        let taken_back = self.mcr & !mcr & MCR_RTS != 0 && self.mcr & MCR_LOOPBACK == 0;
        if mcr & MCR_LOOPBACK != 0 {
            return;
        }
        if mcr & MCR_RTS != 0 || mcr & MCR_DTR == 0 {
            self.held = false;
        } else if taken_back {
            self.held = true;
        }
    }

    fn update_modem_status(&mut self) {
        let lines = if self.mcr & MCR_LOOPBACK == 0 {
            PEER_LINES
        } else {
            let pairs = [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
            pairs.iter().filter(|(from, _)| self.mcr & from != 0).fold(0, |lines, (_, to)| lines | to)
        };
        let changed = (self.msr ^ lines) & 0xf0;
        // Ring shows only its end.
        let ring = if changed & !lines & MSR_RI != 0 { MSR_RING_ENDED } else { 0 };
        let changes = (changed & !MSR_RI) >> 4 | ring;
        self.msr = lines | self.msr & MSR_CHANGES | changes;
    }
}
