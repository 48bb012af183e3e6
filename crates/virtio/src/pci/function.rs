//! The function's parts and its windows.
//!
//! # Locks
//! `control`, then a queue's, then that of the doorbells' places, then `registers`, then a worker's; none is held while
//! an interrupt is delivered. A worker holds its queue's lock while it serves, so that whoever gets that lock knows
//! nothing is in flight.

use super::bits::*;
use super::events::FunctionEvents;
use super::registers::Registers;
use super::worker::Worker;
use crate::VirtioDevice;
use crate::device_type::Transport;
use crate::queue::Queue;
use device::{GuestViolations, MsiSink, Wire};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A queue that the driver enabled.
#[derive(Debug)]
pub(super) struct EnabledQueue {
    pub queue: Queue,
    pub features: u64,
    /// See [`super::registers::QueueRegisters`].
    pub session: u64,
}

/// Where a worker finds a queue.
#[derive(Debug, Default)]
pub(super) struct QueuePlace {
    pub enabled: Mutex<Option<EnabledQueue>>,
    /// Somebody waits for the queue: the worker gives it back after the request it is at.
    pub recalled: AtomicBool,
}

/// A virtio function, shared by its workers and the bus.
pub(super) struct Function {
    pub name: String,
    pub device: Box<dyn VirtioDevice>,
    pub memory: Arc<GuestMemory>,
    pub msi: Arc<dyn MsiSink>,
    pub line: Wire,
    /// The host's paths past the vCPUs, if it may have some.
    pub events: Option<FunctionEvents>,
    /// Whether VIRTIO_F_RING_PACKED is offered.
    pub packed: bool,
    pub control: Mutex<()>,
    pub registers: Mutex<Registers>,
    pub queues: Vec<QueuePlace>,
    pub workers: Vec<Worker>,
    pub violations: GuestViolations,
}

impl Function {
    /// Changes the registers, then delivers the interrupts that follow.
    pub fn with_registers<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut registers = self.registers.lock();
        let result = change(&mut registers);
        let messages = std::mem::take(&mut registers.outgoing);
        self.line.stage(registers.line());
        drop(registers);
        messages.into_iter().for_each(|message| self.send(message));
        self.line.deliver();
        result
    }

    pub fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset & 0xfff;
        match offset & !0xfff {
            COMMON => self.common_read(within, data),
            ISR if within == 0 => {
                let value = self.with_registers(|registers| std::mem::take(&mut registers.isr));
                data.iter_mut().take(1).for_each(|byte| *byte = value);
            }
            DEVICE => self.device.config_read(within as usize, data),
            MSIX_TABLE => self.registers.lock().msix.read(within, data),
            MSIX_PENDING => self.registers.lock().msix.read_pending(within, data),
            _ => {}
        }
    }

    pub fn write_bar(&self, offset: u64, data: &[u8]) {
        let within = offset & 0xfff;
        match offset & !0xfff {
            COMMON => self.common_write(within, data),
            NOTIFY => {
                self.note_doorbell_write();
                self.ring((within / u64::from(NOTIFY_MULTIPLIER)) as usize);
            }
            DEVICE => {
                let features = self.registers.lock().driver_features;
                self.device.config_write(within as usize, data, features);
            }
            MSIX_TABLE => self.with_registers(|registers| {
                let masked = registers.msix_masked() || !registers.msix_enabled();
                let messages = registers.msix.write(within, data, masked);
                registers.outgoing.extend(messages);
            }),
            _ => self.violations.report(&self.name, format_args!("write to {offset:#x} of BAR 0")),
        }
    }

    /// The range that the configuration access capability points at, if `offset` is its data register and the range
    /// one of the BAR (virtio 4.1.4.9).
    fn access_window(&self, offset: u16, len: usize) -> Option<(u64, usize)> {
        let registers = self.registers.lock();
        let access = registers.places.access;
        if usize::from(offset) != access + 16 {
            return None;
        }
        let bar = registers.config.u16(access + 4) & 0xff;
        let target = u64::from(registers.config.u32(access + 8));
        let length = registers.config.u32(access + 12);
        let sound = matches!(length, 1 | 2 | 4) && length as usize <= len;
        let inside = bar == 0 && target < BAR_SIZE && target.is_multiple_of(length.max(1).into());
        (sound && inside).then_some((target, length as usize))
    }

    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        match self.access_window(offset, data.len()) {
            Some((target, length)) => {
                data.fill(0);
                self.read_bar(target, data.get_mut(..length).unwrap_or_default());
            }
            None => self.registers.lock().config.read(offset, data),
        }
    }

    pub fn config_write(&self, offset: u16, data: &[u8]) {
        let became_master = self.with_registers(|registers| {
            let was = registers.config.bus_master();
            registers.config.write(offset, data);
            registers.send_pending();
            !was && registers.config.bus_master()
        });
        if became_master {
            self.ring_all();
        }
        if let Some((target, length)) = self.access_window(offset, data.len()) {
            self.write_bar(target, data.get(..length).unwrap_or_default());
        }
    }
}

impl Transport for Function {
    fn wake(&self, queue: usize) {
        self.ring(queue);
    }

    fn change_config(&self, change: &mut dyn FnMut()) {
        self.with_registers(|registers| {
            change();
            registers.generation = registers.generation.wrapping_add(1);
            if registers.status & status::DRIVER_OK != 0 {
                registers.interrupt_config();
            }
        });
    }
}
