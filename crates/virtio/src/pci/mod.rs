//! The PCI transport (virtio 4.1).
//!
//! Registers are behind one lock, held only to look and change. Requests are served by worker threads, which
//! doorbells wake; a worker holds its queue while it serves it. Reset takes the queues away from the workers first,
//! so that nothing is in flight when the status reads 0 (virtio 2.4.1), and what a worker finished before interrupts
//! nobody after. Interrupts are delivered without any lock held.

pub mod bits;
mod capabilities;
mod common;
mod events;
#[cfg(test)]
mod events_tests;
mod function;
mod lifecycle;
mod msix;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use msix::MsixEntry;
pub use state::{QueueState, VirtioPciState};

use crate::VirtioDevice;
use crate::device_type::Transport;
use capabilities::config_space;
use device::pci::{Bar, PciFunction};
use device::{Device, GuestViolations, HostEvents, IrqLine, MsiSink, Record, SaveError};
use events::FunctionEvents;
use function::{Function, QueuePlace};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use registers::Registers;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use worker::Worker;

/// Queues of a device at most.
pub const MAX_QUEUES: usize = 64;

/// What a function is connected to.
pub struct PciWiring {
    /// Memory that its device reads and writes.
    pub memory: Arc<GuestMemory>,
    /// Where its messages go.
    pub msi: Arc<dyn MsiSink>,
    /// Its INTx wire.
    pub line: IrqLine,
    /// The host's paths for notifications and messages, if it may have some.
    pub events: Option<Arc<dyn HostEvents>>,
    /// Whether VIRTIO_F_RING_PACKED is offered.
    pub packed: bool,
}

/// A virtio device on PCI. Dropped, it ends its workers.
pub struct VirtioPci {
    function: Arc<Function>,
    workers: Vec<JoinHandle<()>>,
}

impl VirtioPci {
    /// Builds the function and starts its workers.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(name: &str, device: Box<dyn VirtioDevice>, wiring: PciWiring) -> std::io::Result<Arc<Self>> {
        let function = build(name, device, wiring);
        // Those that did start must not wait for ever for a function that is not there.
        let workers = worker::spawn(&function).inspect_err(|_| function.stop())?;
        Ok(Arc::new(VirtioPci { function, workers }))
    }

    /// Builds the function without workers: queues are served by [`VirtioPci::serve_now`]. For tests and fuzzing,
    /// where nothing may depend on the order of threads.
    pub fn without_workers(name: &str, device: Box<dyn VirtioDevice>, wiring: PciWiring) -> Arc<Self> {
        Arc::new(VirtioPci { function: build(name, device, wiring), workers: Vec::new() })
    }

    /// Serves a batch of each queue that asks for it on the calling thread; answers whether one did.
    pub fn serve_now(&self) -> bool {
        self.function.serve_now()
    }
}

fn build(name: &str, device: Box<dyn VirtioDevice>, wiring: PciWiring) -> Arc<Function> {
    let PciWiring { memory, msi, line, events, packed } = wiring;
    let sizes = device.queue_sizes().to_vec();
    debug_assert!(sizes.len() <= MAX_QUEUES);
    let (config, places) = config_space(device.as_ref(), sizes.len() + 1);
    let workers = device.workers().clamp(1, sizes.len().max(1));
    let function = Arc::new(Function {
        name: name.to_owned(),
        device,
        memory,
        msi,
        line: line.into(),
        events: events.map(|host| FunctionEvents::new(host, sizes.len(), sizes.len() + 1)),
        packed,
        control: Mutex::new(()),
        registers: Mutex::new(Registers::new(config, places, &sizes)),
        queues: sizes.iter().map(|_| QueuePlace::default()).collect(),
        workers: (0..workers).map(|_| Worker::default()).collect(),
        violations: GuestViolations::default(),
    });
    let weak: Weak<Function> = Arc::downgrade(&function);
    let transport: Weak<dyn Transport> = weak;
    function.device.attach(transport);
    function
}

impl Device for VirtioPci {
    fn name(&self) -> &str {
        &self.function.name
    }
    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        self.function.read_bar(offset, data);
    }
    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        self.function.write_bar(offset, data);
    }
    fn reset(&self) {
        self.function.power_on();
    }
    fn pause(&self) {
        self.function.pause();
    }
    fn resume(&self) {
        self.function.resume();
    }
    fn save(&self) -> Result<Record, SaveError> {
        self.function.save()
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        self.function.restore(record)
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.function.config_write(offset, data);
    }
    fn decoded_bars(&self) -> Vec<Bar> {
        self.function.registers.lock().config.decoded_bars()
    }
    fn bars_mapped(&self, bars: &[Bar]) {
        self.function.bar_mapped(bars.iter().find(|bar| bar.index == 0).map(|bar| bar.address));
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.function.stop();
        self.function.release_events();
        for worker in self.workers.drain(..) {
            // A worker's panics are caught where they happen.
            let _ = worker.join();
        }
    }
}
