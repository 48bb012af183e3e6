//! A function on a board of stubs, and a driver that programs its registers (virtio 3.1.1, 4.1.5).

use super::{DriverRing, PackedDriver, Piece, SplitDriver};
use crate::pci::bits::{COMMON, DEVICE, ISR, MSIX_TABLE, NOTIFY, common, feature, status};
use crate::{PciWiring, VirtioDevice, VirtioPci};
use device::pci::PciFunction;
use device::{Device, HostEvents, InterruptSink, IrqLine, Msi, MsiSink, Record};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use std::sync::Arc;

/// Guest RAM of a bench: two pieces with a hole between.
pub const RAM: [(u64, u64); 2] = [(0, 0x10_0000), (0x20_0000, 0x10_0000)];

/// All ends of the wires: remembers what arrived.
#[derive(Default)]
struct Witness {
    messages: Mutex<Vec<Msi>>,
    level: Mutex<bool>,
}

impl MsiSink for Witness {
    fn signal(&self, msi: Msi) {
        self.messages.lock().push(msi);
    }
}

impl InterruptSink for Witness {
    fn set_level(&self, _gsi: u32, asserted: bool) {
        *self.level.lock() = asserted;
    }
}

/// What the driver of a bench asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Packed rings.
    pub packed: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_index: bool,
    /// MSI-X, a vector for the configuration and one a queue; else INTx.
    pub msix: bool,
    /// Entries of each queue.
    pub size: u16,
    /// Features of the device type.
    pub features: u64,
}

/// A queue as the driver sees it.
pub struct DriverQueue {
    /// The ring.
    pub ring: Box<dyn DriverRing>,
    index: u16,
}

/// A function, its memory and its wires.
pub struct Bench {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The function.
    pub function: Arc<VirtioPci>,
    witness: Arc<Witness>,
}

/// A register's length follows from its value's type in the table of virtio 4.1.4.3.
impl Bench {
    /// A function after power-on. `threads`: with workers; else [`Bench::settle`] serves.
    ///
    /// # Panics
    /// When the host gives no memory or thread, as anything here.
    pub fn new(device: Box<dyn VirtioDevice>, threads: bool) -> Self {
        let memory = GuestMemory::new(&RAM).unwrap_or_else(|error| panic!("{error}"));
        Self::on(Arc::new(memory), device, threads)
    }

    /// The same on memory that exists.
    ///
    /// # Panics
    /// When the host gives no thread.
    pub fn on(memory: Arc<GuestMemory>, device: Box<dyn VirtioDevice>, threads: bool) -> Self {
        Self::wired(memory, device, threads, None)
    }

    /// The same with the host's paths for notifications and messages.
    ///
    /// # Panics
    /// When the host gives no thread.
    pub fn wired(
        memory: Arc<GuestMemory>,
        device: Box<dyn VirtioDevice>,
        threads: bool,
        events: Option<Arc<dyn HostEvents>>,
    ) -> Self {
        let witness = Arc::new(Witness::default());
        let wiring = PciWiring {
            memory: memory.clone(),
            msi: witness.clone(),
            line: IrqLine::new(witness.clone(), 11),
            events,
            packed: true,
        };
        let function = match threads {
            true => VirtioPci::new("device0", device, wiring).unwrap_or_else(|error| panic!("{error}")),
            false => VirtioPci::without_workers("device0", device, wiring),
        };
        Bench { memory, function, witness }
    }

    /// Reads a register of BAR 0.
    pub fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read(0, offset, data.get_mut(..len).unwrap_or_default());
        u64::from_le_bytes(data)
    }

    /// Writes a register of BAR 0.
    pub fn write(&self, offset: u64, value: u64, len: usize) {
        self.function.write(0, offset, value.to_le_bytes().get(..len).unwrap_or_default());
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.read(COMMON + common::STATUS, 1) as u8
    }

    /// Writes the device status.
    pub fn set_status(&self, value: u8) {
        self.write(COMMON + common::STATUS, value.into(), 1);
    }

    /// Reads the device-specific configuration.
    pub fn config(&self, offset: u64, len: usize) -> u64 {
        self.read(DEVICE + offset, len)
    }

    /// The features offered.
    pub fn features(&self) -> u64 {
        let half = |select| {
            self.write(COMMON + common::DEVICE_FEATURE_SELECT, select, 4);
            self.read(COMMON + common::DEVICE_FEATURE, 4)
        };
        half(0) | half(1) << 32
    }

    /// Up to FEATURES_OK with these features; answers whether the device accepts them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for select in [0, 1] {
            self.write(COMMON + common::DRIVER_FEATURE_SELECT, select, 4);
            self.write(COMMON + common::DRIVER_FEATURE, features >> (32 * select) & 0xffff_ffff, 4);
        }
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// Lets the function master the bus, and MSI-X be used or not.
    pub fn enable_pci(&self, msix: bool) {
        self.function.config_write(4, &0x0006_u16.to_le_bytes());
        let control = self.msix_control();
        self.function.config_write(control, &(u16::from(msix) << 15).to_le_bytes());
    }

    /// Where in configuration space MSI-X is controlled.
    ///
    /// # Panics
    /// If there is no such capability.
    pub fn msix_control(&self) -> u16 {
        let byte = |offset: u16| {
            let mut value = [0];
            self.function.config_read(offset, &mut value);
            u16::from(value[0])
        };
        let mut at = byte(0x34);
        while at != 0 {
            if byte(at) == 0x11 {
                return at + 2;
            }
            at = byte(at + 1);
        }
        panic!("no MSI-X capability");
    }

    /// Writes an MSI-X vector: its message has the vector's number as data.
    pub fn set_vector(&self, vector: u64, masked: bool) {
        let at = MSIX_TABLE + 16 * vector;
        self.write(at, 0xfee0_0000, 8);
        self.write(at + 8, vector, 4);
        self.write(at + 12, masked.into(), 4);
    }

    /// Brings the device to DRIVER_OK; answers the queues, the first at guest address `base`, 0x1000 bytes each.
    ///
    /// # Panics
    /// When the device refuses.
    pub fn start(&self, wish: Wish, base: u64) -> Vec<DriverQueue> {
        self.try_start(wish, base).expect("the device takes a driver")
    }

    /// As [`Bench::start`]; `None` if the device refuses, or somebody else resets it meanwhile.
    pub fn try_start(&self, wish: Wish, base: u64) -> Option<Vec<DriverQueue>> {
        self.enable_pci(wish.msix);
        let mut features = wish.features | feature::VERSION_1 | feature::INDIRECT | feature::RING_RESET;
        features |= if wish.packed { feature::RING_PACKED } else { 0 };
        features |= if wish.event_index { feature::EVENT_INDEX } else { 0 };
        if !self.negotiate(features) {
            return None;
        }
        let count = self.read(COMMON + common::NUM_QUEUES, 2) as u16;
        if wish.msix {
            self.set_vector(0, false);
            self.write(COMMON + common::CONFIG_VECTOR, 0, 2);
        }
        let queue = |index| self.try_start_queue(index, wish, base + 0x1000 * u64::from(index));
        let queues = (0..count).map(queue).collect::<Option<_>>()?;
        let driver_ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.set_status(driver_ok);
        Some(queues)
    }

    /// Enables one queue.
    ///
    /// # Panics
    /// When it is not enabled after that.
    pub fn start_queue(&self, index: u16, wish: Wish, base: u64) -> DriverQueue {
        self.try_start_queue(index, wish, base).expect("the queue is enabled")
    }

    fn try_start_queue(&self, index: u16, wish: Wish, base: u64) -> Option<DriverQueue> {
        let ring: Box<dyn DriverRing> = match wish.packed {
            true => Box::new(PackedDriver::new(&self.memory, base, wish.size, wish.event_index)),
            false => Box::new(SplitDriver::new(&self.memory, base, wish.size, wish.event_index)),
        };
        self.write(COMMON + common::QUEUE_SELECT, index.into(), 2);
        self.write(COMMON + common::QUEUE_SIZE, wish.size.into(), 2);
        if wish.msix {
            self.set_vector(u64::from(index) + 1, false);
            self.write(COMMON + common::QUEUE_VECTOR, u64::from(index) + 1, 2);
        }
        let places = ring.places();
        self.write(COMMON + common::QUEUE_DESCRIPTORS, places.descriptors, 8);
        self.write(COMMON + common::QUEUE_DRIVER, places.driver, 8);
        self.write(COMMON + common::QUEUE_DEVICE, places.device, 8);
        self.write(COMMON + common::QUEUE_ENABLE, 1, 2);
        let enabled = self.read(COMMON + common::QUEUE_ENABLE, 2) == 1;
        enabled.then_some(DriverQueue { ring, index })
    }

    /// Makes a request available and notifies if the device wants that.
    pub fn offer(&self, queue: &mut DriverQueue, pieces: &[Piece], table: Option<u64>) -> Option<u16> {
        let id = queue.ring.add(&self.memory, pieces, table);
        if queue.ring.must_notify(&self.memory) {
            self.write(NOTIFY + 4 * u64::from(queue.index), queue.index.into(), 2);
        }
        id
    }

    /// Serves until nothing asks for it, without threads.
    ///
    /// # Panics
    /// When that does not come to an end in a thousand batches.
    pub fn settle(&self) {
        for _ in 0..1000 {
            if !self.function.serve_now() {
                return;
            }
        }
        panic!("the device goes on serving");
    }

    /// Messages since this was last asked: their data, the vectors.
    pub fn messages(&self) -> Vec<u32> {
        std::mem::take(&mut *self.witness.messages.lock()).into_iter().map(|msi| msi.data).collect()
    }

    /// Level of the INTx wire.
    pub fn line(&self) -> bool {
        *self.witness.level.lock()
    }

    /// Reads, and thereby clears, the ISR status.
    pub fn isr(&self) -> u8 {
        self.read(ISR, 1) as u8
    }

    /// The state, with the workers paused.
    ///
    /// # Panics
    /// When it cannot be saved.
    pub fn save(&self) -> Record {
        self.function.pause();
        let record = self.function.save().unwrap_or_else(|error| panic!("{error}"));
        self.function.resume();
        record
    }

    /// Another function on the same memory, in the state of this one; `device` has the same content behind it.
    ///
    /// # Panics
    /// When the state is refused or saves differently.
    pub fn moved(&self, device: Box<dyn VirtioDevice>, threads: bool) -> Self {
        self.function.pause();
        let record = self.function.save().unwrap_or_else(|error| panic!("{error}"));
        let copy = Bench::on(self.memory.clone(), device, threads);
        copy.function.pause();
        copy.function.restore(&record).unwrap_or_else(|error| panic!("{error}"));
        let again = copy.function.save().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, record, "the restored state saves differently");
        *copy.witness.level.lock() = self.line();
        copy.witness.messages.lock().append(&mut self.witness.messages.lock());
        copy.function.resume();
        copy
    }
}
