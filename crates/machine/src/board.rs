//! The board: chipset, PCI devices, and the wires between them.

use crate::interrupts::InterruptGate;
use crate::io::BoardIo;
use crate::memory_map;
use crate::saved::RestoreError;
use block::BlockBackend;
use chipset::acpi_pm::{AcpiPm, PowerEvents};
use chipset::debug_exit::DebugExit;
use chipset::hpet::Hpet;
use chipset::i8042::I8042;
use chipset::ioapic::IoApic;
use chipset::pci::{PciLayout, RootComplex};
use chipset::pic::Pic;
use chipset::pit::Pit;
use chipset::pvpanic::{self, PvPanic};
use chipset::routing::{INTX_PIC_INPUTS, InterruptRouter};
use chipset::rtc::{MemorySize, Rtc};
use chipset::serial::{Serial, SerialBackend};
use device::pci::PciFunction;
use device::{Bus, BusError, Device, InterruptSink, IrqLine, MsiSink, Record, SaveError};
use guest_clock::{Entropy, TimerQueue};
use guest_memory::GuestMemory;
use std::sync::Arc;
use thiserror::Error;
use virtio::blk::DiskLink;
use virtio::console::{Console, ConsoleDevice};
use virtio::{PciWiring, VirtioDevice, VirtioPci};

/// A disk of the machine.
pub struct Disk {
    /// Its content.
    pub backend: Arc<dyn BlockBackend>,
    /// Serial number the guest sees, at most 20 bytes.
    pub serial: String,
    /// Request queues, each with a thread of its own; 1 to [`virtio::blk::bits::QUEUES_MAX`].
    pub queues: u16,
    /// Whether the guest may use packed rings.
    pub packed: bool,
    /// What becomes of errors, and how the guest learns of a new size.
    pub link: Arc<DiskLink>,
}

/// What is on the board besides the chipset.
pub struct BoardSettings {
    /// The first serial port, 0x3f8.
    pub serial: Arc<dyn SerialBackend>,
    /// The other end of the virtio console, if there is one.
    pub console: Option<Arc<dyn SerialBackend>>,
    /// virtio disks, in order.
    pub disks: Vec<Disk>,
    /// Port of the debug-exit device, if any.
    pub debug_exit: Option<u16>,
}

/// Why a board cannot be built.
#[derive(Debug, Error)]
pub enum BoardError {
    /// Two devices want one address.
    #[error("The board's address map is contradictory")]
    Address(#[from] BusError),
    /// The PCI bus is full or its windows are.
    #[error("A PCI device finds no place")]
    Pci(#[from] chipset::pci::PciError),
    /// A virtio device cannot start.
    #[error("Device {name} cannot start")]
    Device {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What the board tells the machine.
pub(crate) struct BoardEvents {
    pub power: Arc<dyn PowerEvents>,
    pub debug_exit: Box<dyn Fn(u32) + Send + Sync>,
    pub panic: Box<dyn Fn() + Send + Sync>,
}

/// The surroundings that devices are built into.
pub(crate) struct Surroundings {
    pub memory: Arc<GuestMemory>,
    pub gate: Arc<InterruptGate>,
    pub timers: Arc<TimerQueue>,
    pub entropy: Arc<dyn Entropy>,
}

/// A built board.
pub(crate) struct Board {
    pub io: Arc<BoardIo>,
    pub serial: Arc<Serial>,
    pub console: Option<Arc<Console>>,
    pub power_management: Arc<AcpiPm>,
    root: Arc<RootComplex>,
    /// All devices; the root complex is the last, because it maps what the others decode.
    devices: Vec<Arc<dyn Device>>,
}

struct Builder {
    around: Surroundings,
    ports: Arc<Bus>,
    memory_bus: Arc<Bus>,
    router: Arc<dyn InterruptSink>,
    devices: Vec<Arc<dyn Device>>,
}

impl Builder {
    fn line(&self, gsi: u32) -> IrqLine {
        IrqLine::new(self.router.clone(), gsi)
    }

    fn ports<D: Device + 'static>(
        &mut self,
        device: &Arc<D>,
        windows: &[(u64, u64)],
    ) -> Result<(), BusError> {
        for (index, &(start, len)) in windows.iter().enumerate() {
            self.ports.insert(start, len, device.clone(), index)?;
        }
        self.devices.push(device.clone());
        Ok(())
    }

    fn memory<D: Device + 'static>(&mut self, device: &Arc<D>, start: u64, len: u64) -> Result<(), BusError> {
        self.memory_bus.insert(start, len, device.clone(), 0)?;
        self.devices.push(device.clone());
        Ok(())
    }

    /// PIT, RTC and HPET, which takes over the other two's interrupts in legacy mode.
    fn add_timers(&mut self) -> Result<(), BusError> {
        let timers = self.around.timers.clone();
        let pit = Pit::new(self.line(0), timers.clone());
        let regions = self.around.memory.regions();
        let size = |high: bool| {
            let of_half =
                regions.iter().filter(|region| (region.start() >= memory_map::HIGH_RAM_START) == high);
            of_half.map(|region| region.size()).sum()
        };
        let rtc = Rtc::new(
            self.line(8),
            MemorySize { below_4g: size(false), above_4g: size(true) },
            timers.clone(),
        );
        let legacy = {
            let (pit, rtc) = (pit.clone(), rtc.clone());
            Box::new(move |on: bool| {
                pit.set_irq_connected(!on);
                rtc.set_irq_connected(!on);
            })
        };
        let hpet = Hpet::new(self.router.clone(), legacy, timers);
        self.ports(&pit, &chipset::pit::WINDOWS)?;
        self.ports(&rtc, &[chipset::rtc::PORTS])?;
        self.memory(&hpet, chipset::hpet::ADDRESS, chipset::hpet::SIZE)
    }

    fn add_pci(&mut self, power: &Arc<dyn PowerEvents>) -> Result<Arc<RootComplex>, BusError> {
        let layout = PciLayout {
            ecam_base: memory_map::ECAM_BASE,
            ecam_buses: memory_map::ECAM_BUSES,
            io: memory_map::PCI_PORTS,
            mmio32: memory_map::MMIO32,
            mmio64: memory_map::MMIO64,
        };
        let (base, size) = (layout.ecam_base, layout.ecam_size());
        let root = RootComplex::new(
            self.ports.clone(),
            self.memory_bus.clone(),
            self.router.clone(),
            power.clone(),
            layout,
        );
        let (start, len) = chipset::pci::CONFIG_PORTS;
        self.ports.insert(start, len, root.clone(), 0)?;
        self.memory_bus.insert(base, size, root.clone(), 1)?;
        Ok(root)
    }
}

impl Board {
    pub fn new(
        around: Surroundings,
        settings: BoardSettings,
        events: BoardEvents,
    ) -> Result<Self, BoardError> {
        let gate = around.gate.clone();
        let pic = Pic::new({
            let gate = gate.clone();
            Box::new(move |level| gate.set_pic_line(level))
        });
        let sink: Arc<dyn MsiSink> = gate.clone();
        let ioapic = IoApic::new(sink, Box::new(move |vectors| gate.set_level_vectors(vectors)));
        let router: Arc<dyn InterruptSink> = InterruptRouter::new(pic.clone(), ioapic.clone());
        let (ports, memory_bus) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let mut builder = Builder {
            around,
            ports: ports.clone(),
            memory_bus: memory_bus.clone(),
            router,
            devices: Vec::new(),
        };
        builder.ports(&pic, &chipset::pic::WINDOWS)?;
        builder.memory(&ioapic, chipset::ioapic::ADDRESS, chipset::ioapic::SIZE)?;
        builder.add_timers()?;

        let (port, gsi) = chipset::serial::COM_PORTS[0];
        let timers = builder.around.timers.clone();
        let serial = Serial::new("serial0", builder.line(gsi), settings.serial, timers.clone());
        builder.ports(&serial, &[(port, chipset::serial::PORTS)])?;
        let power_management =
            AcpiPm::new(builder.line(chipset::acpi_pm::SCI_GSI), events.power.clone(), timers);
        builder.ports(&power_management, &[(chipset::acpi_pm::PORT_BASE, chipset::acpi_pm::PORT_COUNT)])?;
        builder.ports(&I8042::new(events.power.clone()), &chipset::i8042::WINDOWS)?;
        builder.ports(&PvPanic::new(events.panic), &[(pvpanic::PORT.into(), pvpanic::PORTS)])?;
        if let Some(port) = settings.debug_exit {
            builder.ports(&DebugExit::new(events.debug_exit), &[(port.into(), 4)])?;
        }

        let root = builder.add_pci(&events.power)?;
        let console = add_virtio(&mut builder, &root, settings.disks, settings.console)?;
        builder.devices.push(root.clone());
        let io = Arc::new(BoardIo { ports, memory: memory_bus, pic, ioapic });
        let board = Board { io, serial, console, power_management, root, devices: builder.devices };
        board.set_up_as_firmware()?;
        Ok(board)
    }

    /// What a system expects firmware to have done: addresses of BARs, interrupt lines, the PIC's trigger modes.
    fn set_up_as_firmware(&self) -> Result<(), BoardError> {
        self.io.pic.set_level_triggered(&INTX_PIC_INPUTS);
        Ok(self.root.assign_addresses()?)
    }

    /// Power-on state of all devices.
    pub fn reset(&self) -> Result<(), BoardError> {
        self.devices.iter().for_each(|device| device.reset());
        self.set_up_as_firmware()
    }

    /// Stops background work of all devices.
    pub fn pause(&self) {
        self.devices.iter().for_each(|device| device.pause());
    }

    /// Continues it.
    pub fn resume(&self) {
        self.devices.iter().for_each(|device| device.resume());
    }

    /// The state of all devices.
    pub fn save(&self) -> Result<Vec<Record>, SaveError> {
        self.devices.iter().map(|device| device.save()).collect()
    }

    /// Gives every device its record. Nothing changes if a record has no device or a device no record.
    pub fn restore(&self, records: &[Record]) -> Result<(), RestoreError> {
        let mut pairs = Vec::new();
        for device in &self.devices {
            let mut of_device = records.iter().filter(|record| record.name == device.name());
            let (Some(record), None) = (of_device.next(), of_device.next()) else {
                return Err(RestoreError::DeviceWithoutRecord { name: device.name().to_owned() });
            };
            pairs.push((device, record));
        }
        let known = |record: &&Record| !self.devices.iter().any(|device| device.name() == record.name);
        if let Some(record) = records.iter().find(known) {
            return Err(RestoreError::RecordWithoutDevice { name: record.name.clone() });
        }
        for (device, record) in pairs {
            device.restore(record)?;
        }
        Ok(())
    }
}

impl Drop for Board {
    /// Lets go of the devices: of disks others may be waiting for, and of the guest's memory.
    fn drop(&mut self) {
        self.io.ports.clear();
        self.io.memory.clear();
    }
}

/// Entropy first, then the disks, in the order of the configuration, then the console: none moves when one of the
/// later is added.
fn add_virtio(
    builder: &mut Builder,
    root: &Arc<RootComplex>,
    disks: Vec<Disk>,
    console: Option<Arc<dyn SerialBackend>>,
) -> Result<Option<Arc<Console>>, BoardError> {
    let mut slot = 1;
    let mut add = |builder: &mut Builder, name: String, device: Box<dyn VirtioDevice>, packed: bool| {
        let wiring = PciWiring {
            memory: builder.around.memory.clone(),
            msi: builder.around.gate.clone(),
            line: root.intx_line(slot, 1),
            events: Some(builder.around.gate.clone()),
            packed,
        };
        let function =
            VirtioPci::new(&name, device, wiring).map_err(|source| BoardError::Device { name, source })?;
        let as_function: Arc<dyn PciFunction> = function.clone();
        root.add(slot, as_function)?;
        builder.devices.push(function);
        slot += 1;
        Ok::<(), BoardError>(())
    };
    let entropy = virtio::entropy::Entropy::new(builder.around.entropy.clone());
    add(builder, "entropy0".to_owned(), Box::new(entropy), false)?;
    for (index, disk) in disks.into_iter().enumerate() {
        let device = virtio::blk::Block::linked(disk.backend, &disk.serial, disk.queues, disk.link);
        add(builder, format!("disk{index}"), Box::new(device), disk.packed)?;
    }
    let Some(backend) = console else { return Ok(None) };
    let console = Console::new(Box::new(move |bytes| backend.write(bytes)));
    add(builder, "console0".to_owned(), Box::new(ConsoleDevice(console.clone())), false)?;
    Ok(Some(console))
}

#[cfg(test)]
mod tests;
