//! The common configuration structure (virtio 4.1.4.3) and what its registers do.

use super::VirtioPci;
use super::bits::{COMMON, NO_VECTOR, feature, status};
use super::state::{QueueRegisters, Registers};
use crate::queue::{SplitQueue, SplitQueueState};

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

/// Replaces four or eight bytes of a 64-bit address register.
fn set_address(address: &mut u64, offset: u64, value: u64, len: usize) {
    *address = match (offset & 4, len) {
        (0, 8) => value,
        (0, _) => *address & !0xffff_ffff | value & 0xffff_ffff,
        _ => *address & 0xffff_ffff | value << 32,
    };
}

impl VirtioPci {
    fn offered_features(&self) -> u64 {
        self.device.features() | feature::INDIRECT | feature::EVENT_INDEX | feature::VERSION_1
    }

    pub(super) fn common_read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers.lock();
        let queue = registers.queues.get(usize::from(registers.queue_select)).copied();
        let of_queue = |read: fn(&QueueRegisters) -> u64| queue.as_ref().map_or(0, read);
        let address = |address: u64| address >> ((offset & 4) * 8);
        let value = match offset - COMMON {
            DEVICE_FEATURE_SELECT => registers.device_feature_select.into(),
            DEVICE_FEATURE => half(self.offered_features(), registers.device_feature_select),
            DRIVER_FEATURE_SELECT => registers.driver_feature_select.into(),
            DRIVER_FEATURE => half(registers.driver_features, registers.driver_feature_select),
            CONFIG_VECTOR => registers.config_vector.into(),
            NUM_QUEUES => registers.queues.len() as u64,
            STATUS => registers.status.into(),
            GENERATION => registers.generation.into(),
            QUEUE_SELECT => registers.queue_select.into(),
            QUEUE_SIZE => of_queue(|queue| queue.ring.size.into()),
            QUEUE_VECTOR => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            QUEUE_ENABLE => of_queue(|queue| queue.enabled.into()),
            QUEUE_NOTIFY_OFFSET => registers.queue_select.into(),
            at if at & !4 == QUEUE_DESCRIPTORS => address(of_queue(|queue| queue.ring.descriptors)),
            at if at & !4 == QUEUE_DRIVER => address(of_queue(|queue| queue.ring.available)),
            at if at & !4 == QUEUE_DEVICE => address(of_queue(|queue| queue.ring.used)),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        data.copy_from_slice(&bytes[..data.len().min(8)]);
    }

    pub(super) fn common_write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u64::from_le_bytes(bytes);
        let offset = offset - COMMON;
        if offset == STATUS {
            return self.write_status(value as u8);
        }
        let mut registers = self.registers.lock();
        let vectors = registers.msix.vectors() as u64;
        let vector = if value < vectors { value as u16 } else { NO_VECTOR };
        match offset {
            DEVICE_FEATURE_SELECT => registers.device_feature_select = value as u32,
            DRIVER_FEATURE_SELECT => registers.driver_feature_select = value as u32,
            DRIVER_FEATURE if registers.status & status::FEATURES_OK == 0 => {
                let shift = match registers.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let kept = registers.driver_features & !(0xffff_ffff << shift);
                registers.driver_features = kept | (value & 0xffff_ffff) << shift;
            }
            CONFIG_VECTOR => registers.config_vector = vector,
            QUEUE_SELECT => registers.queue_select = value as u16,
            _ => self.write_queue(&mut registers, offset, value, len, vector),
        }
    }

    fn write_queue(&self, registers: &mut Registers, offset: u64, value: u64, len: usize, vector: u16) {
        let index = usize::from(registers.queue_select);
        let event_index = registers.driver_features & feature::EVENT_INDEX != 0;
        let Some(queue) = registers.queues.get_mut(index) else { return };
        if offset == QUEUE_VECTOR {
            queue.vector = vector;
            return;
        }
        if queue.enabled {
            return self
                .violations
                .report(&self.name, format_args!("write to an enabled queue's register {offset:#x}"));
        }
        match offset {
            QUEUE_SIZE => {
                let size = value as u16;
                let max = self.device.queue_sizes()[index];
                if size.is_power_of_two() && size <= max {
                    queue.ring.size = size;
                }
            }
            QUEUE_ENABLE if value == 1 => {
                queue.enabled = true;
                queue.ring = SplitQueueState {
                    event_index,
                    next_available: 0,
                    next_used: 0,
                    notified: 0,
                    ..queue.ring
                };
                *self.queues[index].lock() = Some(SplitQueue::new(queue.ring));
            }
            at if at & !4 == QUEUE_DESCRIPTORS => set_address(&mut queue.ring.descriptors, at, value, len),
            at if at & !4 == QUEUE_DRIVER => set_address(&mut queue.ring.available, at, value, len),
            at if at & !4 == QUEUE_DEVICE => set_address(&mut queue.ring.used, at, value, len),
            _ => {}
        }
    }

    fn write_status(&self, value: u8) {
        if value == 0 {
            return self.reset_device();
        }
        let mut registers = self.registers.lock();
        let mut value = value & !status::NEEDS_RESET | registers.status;
        let unoffered = registers.driver_features & !self.offered_features() != 0;
        let legacy = registers.driver_features & feature::VERSION_1 == 0;
        if registers.status & status::FEATURES_OK == 0 && (unoffered || legacy) {
            value &= !status::FEATURES_OK;
        }
        registers.status = value;
        let serve = value & status::DRIVER_OK != 0;
        drop(registers);
        if serve {
            (0..self.queues.len()).for_each(|index| self.notify(index));
        }
    }

    /// Takes the queues from the worker, then clears the registers (virtio 2.4).
    pub(super) fn reset_device(&self) {
        self.queues.iter().for_each(|queue| *queue.lock() = None);
        let mut registers = self.registers.lock();
        let (config, msix) = (registers.config.clone(), registers.msix.clone());
        *registers = super::power_on(config, msix.vectors(), self.device.queue_sizes());
        registers.msix = msix;
        self.update_line(&registers);
    }
}
