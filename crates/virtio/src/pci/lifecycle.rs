//! What starts, stops, saves and restores a device.
//!
//! One of these at a time: each holds [`Function`]'s `control` lock, which no worker ever takes. A queue's lock may be
//! waited for with `control` held, because a worker gives a recalled queue back after the request it is at. The
//! registers' lock is never held while a queue's lock is waited for.

use super::bits::{feature, status};
use super::capabilities::config_space;
use super::function::{EnabledQueue, Function};
use super::msix::MsixTable;
use super::state::{KIND, VERSION, VirtioPciState};
use crate::queue::Queue;
use device::{Record, SaveError};
use std::sync::atomic::Ordering;

impl Function {
    pub(super) fn offered_features(&self) -> u64 {
        const OWN: u64 = feature::INDIRECT | feature::EVENT_INDEX | feature::VERSION_1 | feature::RING_RESET;
        let packed = if self.packed { feature::RING_PACKED } else { 0 };
        self.device.features() | OWN | packed
    }

    /// Writes the device status (virtio 2.1, 3.1.1): bits are only added, but by 0, which resets.
    pub(super) fn write_status(&self, value: u8) {
        let _one_at_a_time = self.control.lock();
        if value == 0 {
            return self.reset_device();
        }
        let started = self.with_registers(|registers| {
            let old = registers.status;
            let mut new = old | value & !status::NEEDS_RESET;
            let unoffered = registers.driver_features & !self.offered_features() != 0;
            let legacy = registers.driver_features & feature::VERSION_1 == 0;
            if old & status::FEATURES_OK == 0 && (unoffered || legacy) {
                new &= !status::FEATURES_OK;
            }
            registers.status = new;
            new & !old & status::DRIVER_OK != 0
        });
        if started {
            self.ring_all();
        }
    }

    /// Puts a queue to work (virtio 4.1.4.3.2).
    pub(super) fn enable_queue(&self) -> Result<(), &'static str> {
        let _one_at_a_time = self.control.lock();
        let mut registers = self.registers.lock();
        let index = usize::from(registers.queue_select);
        let features = registers.driver_features;
        let session = registers.new_session();
        if registers.status & status::FEATURES_OK == 0 {
            return Err("a queue was enabled before FEATURES_OK");
        }
        let sizes = self.device.queue_sizes();
        let (Some(queue), Some(&max)) = (registers.queues.get_mut(index), sizes.get(index)) else {
            return Err("a queue was enabled that does not exist");
        };
        let mut ring = queue.ring;
        ring.packed = features & feature::RING_PACKED != 0;
        ring.indirect = features & feature::INDIRECT != 0;
        ring.event_index = features & feature::EVENT_INDEX != 0;
        let ring = ring.started();
        // The size may date from before the layout was negotiated.
        if queue.enabled || !ring.is_sound(max) {
            return Err("a queue was enabled twice or with a size that is not possible");
        }
        queue.enabled = true;
        queue.ring = ring;
        queue.session = session;
        drop(registers);
        self.place_queue(index, Some(EnabledQueue { queue: Queue::new(ring), features, session }));
        self.follow_doorbells();
        self.ring(index);
        Ok(())
    }

    /// Takes one queue out of work (virtio 2.6.1).
    pub(super) fn reset_queue(&self) -> Result<(), &'static str> {
        let _one_at_a_time = self.control.lock();
        let mut registers = self.registers.lock();
        let index = usize::from(registers.queue_select);
        let Some(&max) = self.device.queue_sizes().get(index) else {
            return Err("a queue was reset that does not exist");
        };
        if registers.driver_features & feature::RING_RESET == 0 {
            return Err("a queue was reset without VIRTIO_F_RING_RESET");
        }
        let session = registers.new_session();
        registers.queues.get_mut(index).into_iter().for_each(|queue| queue.session = session);
        drop(registers);
        self.place_queue(index, None);
        let mut registers = self.registers.lock();
        let idle = registers.idle_queue(max);
        registers.queues.get_mut(index).into_iter().for_each(|queue| *queue = idle);
        drop(registers);
        self.follow_doorbells();
        Ok(())
    }

    /// Takes the queue from the worker that may be at it, and puts another or none in its place.
    fn place_queue(&self, index: usize, queue: Option<EnabledQueue>) {
        let Some(place) = self.queues.get(index) else { return };
        place.recalled.store(true, Ordering::SeqCst);
        *place.enabled.lock() = queue;
        place.recalled.store(false, Ordering::SeqCst);
    }

    /// Takes all queues from the workers, then clears the registers: the status reads 0 only when nothing is in
    /// flight (virtio 2.4.1). `control` is held.
    fn reset_device(&self) {
        self.registers.lock().end_sessions();
        (0..self.queues.len()).for_each(|index| self.place_queue(index, None));
        self.device.reset();
        self.with_registers(|registers| registers.clear(self.device.queue_sizes()));
        self.follow_doorbells();
        self.release_routes();
    }

    /// Power-on: PCI's part too.
    pub(super) fn power_on(&self) {
        let _one_at_a_time = self.control.lock();
        self.reset_device();
        self.with_registers(|registers| {
            registers.msix = MsixTable::new(registers.msix.vectors());
            registers.config = config_space(self.device.as_ref(), registers.msix.vectors()).0;
        });
    }

    pub(super) fn save(&self) -> Result<Record, SaveError> {
        let _one_at_a_time = self.control.lock();
        let ring = |place: &super::function::QueuePlace| {
            place.enabled.lock().as_ref().map(|enabled| enabled.queue.state())
        };
        let rings: Vec<_> = self.queues.iter().map(ring).collect();
        let device = self.device.save(&self.name)?;
        let state = self.registers.lock().save(&rings, device);
        Record::new(&self.name, KIND, VERSION, &state)
    }

    pub(super) fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let saved: VirtioPciState = record.open(KIND, VERSION)?;
        let _one_at_a_time = self.control.lock();
        let vectors = self.registers.lock().msix.vectors();
        if !saved.is_sound(self.device.queue_sizes(), vectors, self.offered_features()) {
            return Err(record.malformed("its queues, vectors or features are not this device's"));
        }
        self.device.restore(&saved.device)?;
        let mut registers = self.registers.lock();
        registers.restore(saved).map_err(|reason| record.malformed(reason))?;
        self.line.preset(registers.line());
        let features = registers.driver_features;
        let queues = registers.queues.clone();
        drop(registers);
        for (index, queue) in queues.iter().enumerate() {
            let session = queue.session;
            let enabled =
                queue.enabled.then(|| EnabledQueue { queue: Queue::new(queue.ring), features, session });
            self.place_queue(index, enabled);
        }
        self.follow_doorbells();
        // What was available but not served when the state was saved is served after resume.
        self.ring_all();
        Ok(())
    }
}
