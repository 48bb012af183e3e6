//! Serial port: a 16550A UART.
//!
//! Bytes the guest sends go to a [`SerialBackend`] at once; the baud rate only sets how long received bytes may
//! wait below the trigger level. Input is pushed by the back end's own thread, which waits for room when the
//! FIFO is full, so nothing that a person types or pastes is lost.

mod bits;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::SerialState;

use crate::alarm::Alarm;
use ::device::{Device, IrqLine, Record, SaveError, Wire};
use device::Registers;
use guest_clock::{TimerHandler, TimerQueue};
use parking_lot::{Condvar, Mutex};
use state::{KIND, VERSION};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// First port and global system interrupt of COM1–COM4.
pub const COM_PORTS: [(u64, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// Ports of a UART.
pub const PORTS: u64 = 8;

/// Where the guest's bytes go.
pub trait SerialBackend: Send + Sync {
    /// Takes bytes. Called on vCPU threads: it drops or buffers what the other side does not read, and never waits
    /// for it.
    fn write(&self, bytes: &[u8]);
}

struct Inner {
    registers: Registers,
    paused: bool,
}

/// A serial port. Window 0: its eight ports.
pub struct Serial {
    name: String,
    inner: Mutex<Inner>,
    room: Condvar,
    irq: Wire,
    backend: Arc<dyn SerialBackend>,
    alarm: Alarm,
}

impl Serial {
    /// A UART after reset; `name` is its identity in the machine ("serial0").
    pub fn new(
        name: &str,
        irq: IrqLine,
        backend: Arc<dyn SerialBackend>,
        timers: Arc<TimerQueue>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| Serial {
            name: name.to_owned(),
            inner: Mutex::new(Inner { registers: Registers::new(), paused: false }),
            room: Condvar::new(),
            irq: irq.into(),
            backend,
            alarm: Alarm::new(timers, weak.clone()),
        })
    }

    /// Offers input from any thread. Answers how many bytes were taken: fewer when the FIFO is full, none while the
    /// machine is paused or the guest tests the port in loopback.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.inner.lock();
        if inner.paused {
            return 0;
        }
        let taken = inner.registers.receive(bytes, self.now());
        self.stage(&inner.registers);
        drop(inner);
        self.irq.deliver();
        taken
    }

    /// Waits until [`Serial::push_input`] would take a byte, at most `timeout` of host time. Answers whether it
    /// would.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let mut inner = self.inner.lock();
        let full = |inner: &mut Inner| inner.paused || inner.registers.room() == 0;
        !self.room.wait_while_for(&mut inner, full, timeout).timed_out()
    }

    fn now(&self) -> u64 {
        self.alarm.now()
    }

    /// Notes the line's level and the timer that follow from the registers; the lock is held.
    fn stage(&self, registers: &Registers) {
        self.alarm.set(registers.timeout_at());
        self.irq.stage(registers.interrupt());
    }
}

impl TimerHandler for Serial {
    fn expired(&self) {
        let mut inner = self.inner.lock();
        self.alarm.expired();
        inner.registers.check_timeout(self.now());
        self.stage(&inner.registers);
        drop(inner);
        self.irq.deliver();
    }
}

impl Device for Serial {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        let now = self.now();
        let mut inner = self.inner.lock();
        for (register, byte) in (offset..).zip(data) {
            *byte = inner.registers.read(register, now);
        }
        self.stage(&inner.registers);
        let room = inner.registers.room() > 0;
        drop(inner);
        self.irq.deliver();
        if room {
            self.room.notify_all();
        }
    }

    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        let now = self.now();
        let mut sent = [0; 8];
        let mut count = 0;
        let mut inner = self.inner.lock();
        for (register, &value) in (offset..).zip(data) {
            if register == bits::RBR_THR {
                // A byte in the holding register lowers the interrupt until it is sent, which is at once: an
                // edge-triggered input must see that.
                inner.registers.fill_transmitter();
                self.irq.stage(inner.registers.interrupt());
            }
            if let (Some(byte), Some(slot)) =
                (inner.registers.write(register, value, now), sent.get_mut(count))
            {
                *slot = byte;
                count += 1;
            }
        }
        self.stage(&inner.registers);
        let room = inner.registers.room() > 0;
        drop(inner);
        if let Some(bytes) = sent.get(..count).filter(|bytes| !bytes.is_empty()) {
            self.backend.write(bytes);
        }
        self.irq.deliver();
        if room {
            self.room.notify_all();
        }
    }

    fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.registers = Registers::new();
        self.stage(&inner.registers);
        drop(inner);
        self.irq.deliver();
        self.room.notify_all();
    }

    fn pause(&self) {
        self.inner.lock().paused = true;
    }

    fn resume(&self) {
        self.inner.lock().paused = false;
        self.room.notify_all();
    }

    fn save(&self) -> Result<Record, SaveError> {
        let state = self.inner.lock().registers.save();
        Record::new(&self.name, KIND, VERSION, &state)
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: SerialState = record.open(KIND, VERSION)?;
        let mut inner = self.inner.lock();
        inner.registers = Registers::restored(state);
        self.stage(&inner.registers);
        self.irq.preset(inner.registers.interrupt());
        Ok(())
    }
}
