//! The thread that serves a device's queues.

use super::VirtioPci;
use super::bits::status;
use crate::queue::QueueError;
use std::sync::{Arc, Weak};

/// What the worker is asked to do.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Queues whose doorbell rang, one bit each.
    doorbells: u64,
    paused: bool,
    busy: bool,
    pub stop: bool,
}

pub(super) fn spawn(transport: &Arc<VirtioPci>) -> std::io::Result<()> {
    let weak = Arc::downgrade(transport);
    std::thread::Builder::new().name(transport.name.clone()).spawn(move || serve(&weak)).map(drop)
}

/// Ends when the device is dropped: it looks for that at each wake-up, and at least every second.
fn serve(weak: &Weak<VirtioPci>) {
    const LOOK_AROUND: std::time::Duration = std::time::Duration::from_secs(1);
    while let Some(transport) = weak.upgrade() {
        let doorbells = {
            let mut work = transport.work.lock();
            if work.doorbells == 0 || work.paused {
                transport.work_changed.wait_for(&mut work, LOOK_AROUND);
            }
            if work.stop {
                return;
            }
            if work.paused || work.doorbells == 0 {
                continue;
            }
            work.busy = true;
            std::mem::take(&mut work.doorbells)
        };
        for index in (0..transport.queues.len()).filter(|index| doorbells & (1 << index) != 0) {
            transport.serve_queue(index);
        }
        transport.work.lock().busy = false;
        transport.work_changed.notify_all();
    }
}

impl VirtioPci {
    /// A doorbell, from a vCPU.
    pub(super) fn notify(&self, index: usize) {
        if index >= self.queues.len() {
            return self.violations.report(&self.name, format_args!("doorbell of queue {index}"));
        }
        self.work.lock().doorbells |= 1 << index;
        self.work_changed.notify_all();
    }

    pub(super) fn pause_worker(&self) {
        let mut work = self.work.lock();
        work.paused = true;
        while work.busy {
            self.work_changed.wait(&mut work);
        }
    }

    pub(super) fn resume_worker(&self) {
        self.work.lock().paused = false;
        self.work_changed.notify_all();
    }

    fn serve_queue(&self, index: usize) {
        let (features, running) = {
            let registers = self.registers.lock();
            let running = registers.status & (status::DRIVER_OK | status::FEATURES_OK | status::NEEDS_RESET)
                == status::DRIVER_OK | status::FEATURES_OK;
            (registers.driver_features, running && registers.config.bus_master())
        };
        let mut place = self.queues[index].lock();
        let Some(queue) = place.as_mut().filter(|_| running) else { return };
        let served = self.device.serve(index, queue, &self.memory, features);
        let result = served.and_then(|used| Ok(used && queue.wants_interrupt(&self.memory)?));
        drop(place);
        let mut registers = self.registers.lock();
        match result {
            Ok(false) => {}
            Ok(true) => {
                let vector = registers.queues[index].vector;
                self.interrupt(&mut registers, vector, 1);
            }
            Err(error) => self.break_device(&mut registers, index, &error),
        }
    }

    /// The driver broke a ring: nothing is served any more until it resets the device (virtio 2.1.2).
    fn break_device(&self, registers: &mut super::Registers, index: usize, error: &QueueError) {
        self.violations.report(&self.name, format_args!("queue {index}: {error}"));
        registers.status |= status::NEEDS_RESET;
        let vector = registers.config_vector;
        self.interrupt(registers, vector, 2);
    }
}
