//! The PCI transport (virtio 4.1).
//!
//! Registers are behind one lock, held only to look and change. Requests are served by a worker thread a device,
//! which a doorbell wakes; it owns the enabled queues while it serves them. Reset takes the queues away from the
//! worker, so that nothing is in flight when the status reads 0 (virtio 2.4.1).

pub mod bits;
mod common;
pub mod msix;
mod state;
mod worker;

use crate::VirtioDevice;
use crate::queue::SplitQueue;
use bits::{BAR_SIZE, COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NO_VECTOR, NOTIFY, NOTIFY_MULTIPLIER};
use device::pci::{Bar, BarKind, ConfigSpace, PciFunction, PciIdentity};
use device::{Device, GuestViolations, IrqLine, MsiSink, Record, SaveError};
use guest_memory::GuestMemory;
use msix::MsixTable;
use parking_lot::{Condvar, Mutex};
use state::{QueueRegisters, Registers};
use std::sync::Arc;

const KIND: &str = "virtio-pci";
const VERSION: u32 = 1;

/// A virtio device on PCI.
pub struct VirtioPci {
    name: String,
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    msi: Arc<dyn MsiSink>,
    line: IrqLine,
    registers: Mutex<Registers>,
    queues: Vec<Mutex<Option<SplitQueue>>>,
    work: Mutex<worker::Work>,
    work_changed: Condvar,
    violations: GuestViolations,
    /// Offsets in configuration space of the MSI-X control word and of the configuration access capability.
    msix_control: usize,
    access_capability: usize,
}

fn capability(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// Vendor-specific capability.
const VENDOR_CAPABILITY: u8 = 0x09;
const MSIX_CAPABILITY: u8 = 0x11;

fn config_space(device: &dyn VirtioDevice, vectors: usize) -> (ConfigSpace, usize, usize) {
    let identity = PciIdentity {
        vendor: bits::VENDOR,
        device: bits::DEVICE_BASE + device.id(),
        subsystem_vendor: bits::VENDOR,
        subsystem: bits::DEVICE_BASE + device.id(),
        class: device.class(),
        revision: 1,
    };
    let mut space = ConfigSpace::new(identity, 1);
    space.add_bar(0, BarKind::Memory64, BAR_SIZE);
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    space.add_capability(VENDOR_CAPABILITY, &capability(1, COMMON, 0x40, &[]), &[]);
    space.add_capability(VENDOR_CAPABILITY, &capability(2, NOTIFY, 0x1000, &multiplier), &[]);
    space.add_capability(VENDOR_CAPABILITY, &capability(3, ISR, 4, &[]), &[]);
    space.add_capability(VENDOR_CAPABILITY, &capability(4, DEVICE, 0x1000, &[]), &[]);
    // Configuration access: BAR, offset, length and data are writable (virtio 4.1.4.9).
    let writable =
        [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let access = space.add_capability(VENDOR_CAPABILITY, &capability(5, 0, 0, &[0; 4]), &writable);
    let mut body = (vectors as u16 - 1).to_le_bytes().to_vec();
    body.extend((MSIX_TABLE as u32).to_le_bytes());
    body.extend((MSIX_PENDING as u32).to_le_bytes());
    let msix = space.add_capability(MSIX_CAPABILITY, &body, &[0, 0xc0]);
    (space, msix + 2, access)
}

impl VirtioPci {
    /// Builds the function and starts its worker.
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        msi: Arc<dyn MsiSink>,
        line: IrqLine,
    ) -> std::io::Result<Arc<Self>> {
        let sizes = device.queue_sizes().to_vec();
        let vectors = sizes.len() + 1;
        let (config, msix_control, access_capability) = config_space(device.as_ref(), vectors);
        let registers = power_on(config, vectors, &sizes);
        let transport = Arc::new(VirtioPci {
            name: name.to_owned(),
            device,
            memory,
            msi,
            line,
            registers: Mutex::new(registers),
            queues: sizes.iter().map(|_| Mutex::new(None)).collect(),
            work: Mutex::default(),
            work_changed: Condvar::new(),
            violations: GuestViolations::default(),
            msix_control,
            access_capability,
        });
        worker::spawn(&transport)?;
        Ok(transport)
    }

    fn msix_enabled(&self, registers: &Registers) -> bool {
        registers.config.u16(self.msix_control) & 1 << 15 != 0
    }
    fn msix_masked(&self, registers: &Registers) -> bool {
        registers.config.u16(self.msix_control) & 1 << 14 != 0
    }

    /// Raises an interrupt for a vector; `isr` says what happened, for a driver that uses INTx.
    fn interrupt(&self, registers: &mut Registers, vector: u16, isr: u8) {
        if self.msix_enabled(registers) {
            let masked = self.msix_masked(registers);
            if vector != NO_VECTOR
                && let Some(message) = registers.msix.signal(vector.into(), masked)
            {
                self.msi.signal(message);
            }
            return;
        }
        registers.isr |= isr;
        self.update_line(registers);
    }

    fn update_line(&self, registers: &Registers) {
        let asserted =
            registers.isr != 0 && !self.msix_enabled(registers) && !registers.config.intx_disabled();
        self.line.set_level(asserted);
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset & !0xfff {
            COMMON => self.common_read(offset, data),
            ISR if offset == ISR => {
                let mut registers = self.registers.lock();
                data[0] = std::mem::take(&mut registers.isr);
                self.update_line(&registers);
            }
            DEVICE => self.device.config_read((offset - DEVICE) as usize, data),
            MSIX_TABLE => self.registers.lock().msix.read(offset - MSIX_TABLE, data),
            MSIX_PENDING => self.registers.lock().msix.read_pending(offset - MSIX_PENDING, data),
            _ => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match offset & !0xfff {
            COMMON => self.common_write(offset, data),
            NOTIFY => self.notify(((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)) as usize),
            MSIX_TABLE => {
                let mut registers = self.registers.lock();
                let masked = self.msix_masked(&registers);
                if let Some(message) = registers.msix.write(offset - MSIX_TABLE, data, masked) {
                    self.msi.signal(message);
                }
            }
            _ => self.violations.report(&self.name, format_args!("write to {offset:#x} of BAR 0")),
        }
    }

    /// The range that the configuration access capability points at, if it is one of the BAR.
    fn access_window(&self, offset: u16, len: usize) -> Option<(u64, usize)> {
        let registers = self.registers.lock();
        let data = self.access_capability + 16;
        if usize::from(offset) != data {
            return None;
        }
        let target = u64::from(registers.config.u32(self.access_capability + 8));
        let length = registers.config.u32(self.access_capability + 12) as usize;
        let sound = matches!(length, 1 | 2 | 4) && length <= len && target < BAR_SIZE;
        sound.then_some((target, length))
    }
}

fn power_on(config: ConfigSpace, vectors: usize, sizes: &[u16]) -> Registers {
    let ring = |&size: &u16| crate::queue::SplitQueueState { size, ..Default::default() };
    let queue = |size| QueueRegisters { ring: ring(size), vector: NO_VECTOR, enabled: false };
    Registers {
        config,
        msix: MsixTable::new(vectors),
        device_feature_select: 0,
        driver_feature_select: 0,
        driver_features: 0,
        config_vector: NO_VECTOR,
        status: 0,
        generation: 0,
        queue_select: 0,
        isr: 0,
        queues: sizes.iter().map(queue).collect(),
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }
    fn read(&self, _window: usize, offset: u64, data: &mut [u8]) {
        self.read_bar(offset, data);
    }
    fn write(&self, _window: usize, offset: u64, data: &[u8]) {
        self.write_bar(offset, data);
    }
    fn reset(&self) {
        self.reset_device();
        let mut registers = self.registers.lock();
        let vectors = registers.msix.vectors();
        registers.msix = MsixTable::new(vectors);
        registers.config = config_space(self.device.as_ref(), vectors).0;
        self.line.set_level(false);
    }
    fn pause(&self) {
        self.pause_worker();
    }
    fn resume(&self) {
        self.resume_worker();
    }
    fn save(&self) -> Result<Record, SaveError> {
        let mut state = self.registers.lock().clone();
        for (registers, queue) in state.queues.iter_mut().zip(&self.queues) {
            if let Some(queue) = queue.lock().as_ref() {
                registers.ring = queue.state();
            }
        }
        Record::new(&self.name, KIND, VERSION, &state)
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let saved: Registers = record.open(KIND, VERSION)?;
        let mut registers = self.registers.lock();
        let sizes = self.device.queue_sizes();
        let sound = saved.queues.len() == sizes.len()
            && registers.msix.fits(&saved.msix)
            && saved
                .queues
                .iter()
                .zip(sizes)
                .all(|(q, max)| q.ring.size.is_power_of_two() && q.ring.size <= *max);
        if !sound {
            return Err(record.malformed("its queues or vectors are not this device's"));
        }
        let mut config = registers.config.clone();
        config.restore(&saved.config).map_err(|reason| record.malformed(reason))?;
        *registers = Registers { config, ..saved };
        for (queue, registers) in self.queues.iter().zip(&registers.queues) {
            *queue.lock() = registers.enabled.then(|| SplitQueue::new(registers.ring));
        }
        drop(registers);
        // What was available but not served when the state was saved is served after resume.
        (0..self.queues.len()).for_each(|index| self.notify(index));
        Ok(())
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if let Some((target, length)) = self.access_window(offset, data.len()) {
            data.fill(0);
            return self.read_bar(target, &mut data[..length]);
        }
        self.registers.lock().config.read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        {
            let mut registers = self.registers.lock();
            let was_masked = self.msix_masked(&registers) || !self.msix_enabled(&registers);
            registers.config.write(offset, data);
            if was_masked && self.msix_enabled(&registers) && !self.msix_masked(&registers) {
                for message in registers.msix.unmask_function() {
                    self.msi.signal(message);
                }
            }
            self.update_line(&registers);
        }
        if let Some((target, length)) = self.access_window(offset, data.len()) {
            self.write_bar(target, &data[..length]);
        }
    }
    fn decoded_bars(&self) -> Vec<Bar> {
        self.registers.lock().config.decoded_bars()
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.work.lock().stop = true;
        self.work_changed.notify_all();
    }
}
