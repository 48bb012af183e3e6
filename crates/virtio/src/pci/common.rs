//! The common configuration structure's registers (virtio 4.1.4.3) that only hold values. Those that start and stop
//! things are in `lifecycle.rs`.

use super::bits::common::*;
use super::bits::{NO_VECTOR, feature, status};
use super::function::Function;
use super::registers::{QueueRegisters, Registers};
use crate::queue::RingState;

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

impl Registers {
    /// Reads a register at its first byte; elsewhere there is nothing.
    fn common_read(&self, offset: u64, offered: u64) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |read: fn(&QueueRegisters) -> u64| queue.map_or(0, read);
        let address = |address: u64| address >> ((offset & 4) * 8);
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select.into(),
            DEVICE_FEATURE => half(offered, self.device_feature_select),
            DRIVER_FEATURE_SELECT => self.driver_feature_select.into(),
            DRIVER_FEATURE => half(self.driver_features, self.driver_feature_select),
            CONFIG_VECTOR => self.config_vector.into(),
            NUM_QUEUES => self.queues.len() as u64,
            STATUS => self.status.into(),
            GENERATION => self.generation.into(),
            QUEUE_SELECT => self.queue_select.into(),
            QUEUE_SIZE => of_queue(|queue| queue.ring.size.into()),
            QUEUE_VECTOR => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            QUEUE_ENABLE => of_queue(|queue| queue.enabled.into()),
            QUEUE_NOTIFY_OFFSET | QUEUE_NOTIFY_DATA => self.queue_select.into(),
            // A queue's reset is over when the write of the register is.
            QUEUE_RESET => 0,
            at if at & !4 == QUEUE_DESCRIPTORS => address(of_queue(|queue| queue.ring.descriptors)),
            at if at & !4 == QUEUE_DRIVER => address(of_queue(|queue| queue.ring.available)),
            at if at & !4 == QUEUE_DEVICE => address(of_queue(|queue| queue.ring.used)),
            _ => 0,
        }
    }

    fn common_write(
        &mut self,
        offset: u64,
        value: u64,
        len: usize,
        sizes: &[u16],
    ) -> Result<(), &'static str> {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value as u32,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value as u32,
            DRIVER_FEATURE => return self.write_features(value),
            CONFIG_VECTOR => self.config_vector = self.msix.checked(value),
            QUEUE_SELECT => self.queue_select = value as u16,
            _ => return self.write_queue(offset, value, len, sizes),
        }
        Ok(())
    }

    fn write_features(&mut self, value: u64) -> Result<(), &'static str> {
        if self.status & status::FEATURES_OK != 0 {
            return Err("features written after FEATURES_OK");
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ if value == 0 => return Ok(()),
            _ => return Err("features past the 64th"),
        };
        let kept = self.driver_features & !(0xffff_ffff << shift);
        self.driver_features = kept | (value & 0xffff_ffff) << shift;
        Ok(())
    }

    fn write_queue(
        &mut self,
        offset: u64,
        value: u64,
        len: usize,
        sizes: &[u16],
    ) -> Result<(), &'static str> {
        let index = usize::from(self.queue_select);
        let vector = self.msix.checked(value);
        let packed = self.driver_features & feature::RING_PACKED != 0;
        let (Some(queue), Some(&max)) = (self.queues.get_mut(index), sizes.get(index)) else {
            return Err("write to a queue that does not exist");
        };
        if offset == QUEUE_VECTOR {
            queue.vector = vector;
            return Ok(());
        }
        if queue.enabled {
            return Err("write to an enabled queue");
        }
        match offset {
            QUEUE_SIZE => {
                let ring = RingState { size: value as u16, packed, ..queue.ring };
                if !ring.started().is_sound(max) {
                    return Err("queue size that is not possible");
                }
                queue.ring.size = ring.size;
            }
            at if at & !4 == QUEUE_DESCRIPTORS => set_address(&mut queue.ring.descriptors, at, value, len),
            at if at & !4 == QUEUE_DRIVER => set_address(&mut queue.ring.available, at, value, len),
            at if at & !4 == QUEUE_DEVICE => set_address(&mut queue.ring.used, at, value, len),
            _ => return Err("write to a register that is not writable"),
        }
        Ok(())
    }
}

impl Function {
    pub(super) fn common_read(&self, offset: u64, data: &mut [u8]) {
        let value = self.registers.lock().common_read(offset, self.offered_features());
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    pub(super) fn common_write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(bytes);
        let result = match offset {
            STATUS => {
                self.write_status(value as u8);
                Ok(())
            }
            QUEUE_ENABLE if value == 1 => self.enable_queue(),
            QUEUE_RESET if value == 1 => self.reset_queue(),
            // Only ones may be written, which start something (virtio 4.1.4.3.2).
            QUEUE_ENABLE | QUEUE_RESET => Err("0 written to a register that takes 1"),
            _ => self.registers.lock().common_write(offset, value, data.len(), self.device.queue_sizes()),
        };
        if let Err(what) = result {
            self.violations.report(&self.name, format_args!("{what}: {value:#x} to {offset:#x}"));
        }
    }
}
