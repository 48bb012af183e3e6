//! PCI root complex: host bridge, configuration ports and ECAM, and the functions on bus 0.
//!
//! Functions are devices of their own (saved, reset and paused by the machine); the root complex finds them by
//! number, maps the BARs they decode into the machine's buses after each configuration write that may change them,
//! and wires their INTx pins. As there need not be firmware, it also assigns addresses like one.

mod bits;
mod device;
mod intx;
mod state;
#[cfg(test)]
mod tests;

pub use intx::gsi_of;
pub use state::RootComplexState;

use crate::access;
use crate::acpi_pm::PowerEvents;
use ::device::pci::{Bar, BarKind, ConfigSpace, PciFunction, PciIdentity};
use ::device::{Bus, Device, GuestViolations, InterruptSink, IrqLine, Record, SaveError};
use bits::*;
use device::{Assignment, ConfigAddress, piece_len};
use intx::{IntxPin, IntxWires};
use parking_lot::{Mutex, RwLock};
use state::{KIND, VERSION};
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// First port and number of ports of window 0.
pub const CONFIG_PORTS: (u64, u64) = (0xcf8, 8);
/// Window of the configuration ports.
const PORTS_WINDOW: usize = 0;

/// A generic PCI Express host bridge.
const BRIDGE: PciIdentity = PciIdentity {
    vendor: 0x1b36,
    device: 0x0008,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    class: 0x06_00_00,
    revision: 0,
};

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciLayout {
    /// Address of ECAM, 1 MiB a bus (MCFG).
    pub ecam_base: u64,
    /// Buses of ECAM, at most 256.
    pub ecam_buses: u16,
    /// Ports for BARs.
    pub io: Range<u64>,
    /// Memory below 4 GiB for BARs.
    pub mmio32: Range<u64>,
    /// Memory above 4 GiB for 64-bit BARs that find no place below.
    pub mmio64: Range<u64>,
}

impl Default for PciLayout {
    fn default() -> Self {
        PciLayout {
            ecam_base: 0xe000_0000,
            ecam_buses: 256,
            io: 0xc000..0x1_0000,
            mmio32: 0xd000_0000..0xe000_0000,
            mmio64: 0x80_0000_0000..0xc0_0000_0000,
        }
    }
}

impl PciLayout {
    /// Size of ECAM in bytes.
    pub fn ecam_size(&self) -> u64 {
        u64::from(self.ecam_buses) << 20
    }
}

/// Why a board's PCI cannot be built.
#[derive(Debug, Error)]
pub enum PciError {
    /// The number is not 1–31.
    #[error("Device number {0} is not one of 1-31")]
    NoSuchNumber(u8),
    /// Something has this number.
    #[error("Device number {0} is taken")]
    Taken(u8),
    /// The layout has no room for a BAR.
    #[error("BAR {bar} of device {device} needs {size:#x} bytes, for which there is no room")]
    NoSpace {
        /// Device number.
        device: u8,
        /// BAR number.
        bar: u8,
        /// Its size in bytes.
        size: u64,
    },
}

struct Host {
    address: u32,
    reset_control: u8,
    bridge: ConfigSpace,
}

impl Host {
    fn new() -> Self {
        Host { address: 0, reset_control: 0, bridge: ConfigSpace::new(BRIDGE, 0) }
    }
}

/// The root complex. Window 0: [`CONFIG_PORTS`]; window 1: ECAM.
pub struct RootComplex {
    layout: PciLayout,
    port_bus: Arc<Bus>,
    memory_bus: Arc<Bus>,
    power: Arc<dyn PowerEvents>,
    intx: Arc<IntxWires>,
    host: Mutex<Host>,
    functions: RwLock<Vec<(u8, Arc<dyn PciFunction>)>>,
    /// The BARs in the buses. Locked while functions are asked for their BARs, so that the buses follow the latest
    /// answer; functions never call the root complex.
    mapped: Mutex<Vec<(u8, Bar)>>,
    violations: GuestViolations,
}

impl RootComplex {
    /// A root complex without functions. BARs are mapped into the two buses; `interrupts` is where INTx ends;
    /// `power` hears of resets through port 0xcf9.
    pub fn new(
        port_bus: Arc<Bus>,
        memory_bus: Arc<Bus>,
        interrupts: Arc<dyn InterruptSink>,
        power: Arc<dyn PowerEvents>,
        layout: PciLayout,
    ) -> Arc<Self> {
        Arc::new(RootComplex {
            layout,
            port_bus,
            memory_bus,
            power,
            intx: Arc::new(IntxWires::new(&interrupts)),
            host: Mutex::new(Host::new()),
            functions: RwLock::default(),
            mapped: Mutex::default(),
            violations: GuestViolations::default(),
        })
    }

    /// The wire of pin 1–4 (INTA–INTD) of a device, to be given to its function.
    pub fn intx_line(&self, device: u8, pin: u8) -> IrqLine {
        let wires = Arc::clone(&self.intx);
        IrqLine::new(Arc::new(IntxPin { wires, device, pin }), gsi_of(device, pin))
    }

    /// Puts a function at device number 1–31.
    pub fn add(&self, device: u8, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let mut functions = self.functions.write();
        if !(1..DEVICES).contains(&device) {
            return Err(PciError::NoSuchNumber(device));
        }
        if functions.iter().any(|&(taken, _)| taken == device) {
            return Err(PciError::Taken(device));
        }
        functions.push((device, function));
        Ok(())
    }

    /// Gives all BARs addresses and sets interrupt lines, as firmware would, after power-on and each reset. Decoding
    /// stays off.
    pub fn assign_addresses(&self) -> Result<(), PciError> {
        let functions = self.functions.read().clone();
        let mut assignment = Assignment::new(&self.layout);
        functions.iter().try_for_each(|(device, function)| assignment.assign(*device, &**function))?;
        self.remap();
        Ok(())
    }

    fn function(&self, device: u8) -> Option<Arc<dyn PciFunction>> {
        let functions = self.functions.read();
        functions.iter().find(|(number, _)| *number == device).map(|(_, function)| Arc::clone(function))
    }

    fn config_read(&self, at: ConfigAddress, data: &mut [u8]) {
        match at.on_root_bus() {
            Some(0) => self.host.lock().bridge.read(at.offset, data),
            Some(device) => match self.function(device) {
                Some(function) => function.config_read(at.offset, data),
                None => data.fill(0xff),
            },
            None => data.fill(0xff),
        }
    }

    fn config_write(&self, at: ConfigAddress, data: &[u8]) {
        match at.on_root_bus() {
            Some(0) => self.host.lock().bridge.write(at.offset, data),
            Some(device) => {
                if let Some(function) = self.function(device) {
                    function.config_write(at.offset, data);
                    if (REGISTER_COMMAND..REGISTER_BARS_END).contains(&at.offset) {
                        self.remap();
                    }
                }
            }
            None => {}
        }
    }

    /// Makes the buses hold what the functions decode. A BAR that overlaps something else is left out until that
    /// is gone.
    fn remap(&self) {
        let functions = self.functions.read().clone();
        let mut mapped = self.mapped.lock();
        let wanted: Vec<(u8, Bar, Arc<dyn PciFunction>)> = functions
            .into_iter()
            .flat_map(|(device, function)| {
                let bars = function.decoded_bars().into_iter();
                bars.map(move |bar| (device, bar, Arc::clone(&function)))
            })
            .collect();
        mapped.retain(|(device, bar)| {
            let stays = wanted.iter().any(|(number, want, _)| (number, want) == (device, bar));
            if !stays {
                self.bus_of(bar).remove(bar.address);
            }
            stays
        });
        // Everybody lets go of old addresses before anybody takes one over.
        self.tell_functions(&mapped);
        for (device, bar, function) in wanted {
            if mapped.contains(&(device, bar)) {
                continue;
            }
            match self.bus_of(&bar).insert(bar.address, bar.size, function, bar.index) {
                Ok(()) => mapped.push((device, bar)),
                Err(error) => self.violations.report(self.name(), format_args!("{error}")),
            }
        }
        self.tell_functions(&mapped);
    }

    fn tell_functions(&self, mapped: &[(u8, Bar)]) {
        for (device, function) in &*self.functions.read() {
            let own = mapped.iter().filter(|(number, _)| number == device);
            function.bars_mapped(&own.map(|(_, bar)| *bar).collect::<Vec<_>>());
        }
    }

    fn bus_of(&self, bar: &Bar) -> &Bus {
        match bar.kind {
            BarKind::Io => &self.port_bus,
            BarKind::Memory32 | BarKind::Memory64 => &self.memory_bus,
        }
    }

    /// The register of an access at an offset of a window; the second value is how many bytes may follow.
    fn target(&self, window: usize, offset: u64) -> Option<ConfigAddress> {
        match window {
            PORTS_WINDOW => ConfigAddress::from_ports(self.host.lock().address, offset),
            _ => Some(ConfigAddress::from_ecam(offset)),
        }
    }

    fn read_port(&self, offset: u64, data: &mut [u8]) {
        let host = self.host.lock();
        match (offset, data.len()) {
            (CONFIG_ADDRESS, 4) => access::store(data, host.address.into()),
            (RESET_CONTROL, 1) => access::store(data, host.reset_control.into()),
            _ => data.fill(0xff),
        }
    }

    fn write_port(&self, offset: u64, data: &[u8]) {
        let mut host = self.host.lock();
        match (offset, data) {
            (CONFIG_ADDRESS, [_, _, _, _]) => host.address = access::load(data) as u32 & ADDRESS_MASK,
            (RESET_CONTROL, &[value]) => {
                host.reset_control = value & RESET_KEPT;
                drop(host);
                if value & RESET_CPU != 0 {
                    self.power.reset();
                }
            }
            _ => {}
        }
    }
}

impl Device for RootComplex {
    fn name(&self) -> &str {
        "pci"
    }

    fn read(&self, window: usize, mut offset: u64, mut data: &mut [u8]) {
        if window == PORTS_WINDOW && offset < CONFIG_DATA {
            return self.read_port(offset, data);
        }
        while !data.is_empty() {
            let target = self.target(window, offset);
            let len = target.map_or(1, |at| piece_len(at.offset, data.len()));
            let (piece, rest) = data.split_at_mut(len);
            match target {
                Some(at) => self.config_read(at, piece),
                None => piece.fill(0xff),
            }
            (data, offset) = (rest, offset.wrapping_add(len as u64));
        }
    }

    fn write(&self, window: usize, mut offset: u64, mut data: &[u8]) {
        if window == PORTS_WINDOW && offset < CONFIG_DATA {
            return self.write_port(offset, data);
        }
        while !data.is_empty() {
            let target = self.target(window, offset);
            let len = target.map_or(1, |at| piece_len(at.offset, data.len()));
            let (piece, rest) = data.split_at(len);
            if let Some(at) = target {
                self.config_write(at, piece);
            }
            (data, offset) = (rest, offset.wrapping_add(len as u64));
        }
    }

    fn reset(&self) {
        *self.host.lock() = Host::new();
        self.remap();
    }

    fn pause(&self) {}

    fn resume(&self) {
        self.remap();
    }

    fn save(&self) -> Result<Record, SaveError> {
        let host = self.host.lock();
        let Host { address, reset_control, ref bridge } = *host;
        let (bridge, intx) = (bridge.clone(), self.intx.save());
        Record::new(self.name(), KIND, VERSION, &RootComplexState { address, reset_control, bridge, intx })
    }

    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let RootComplexState { address, reset_control, bridge, intx } = record.open(KIND, VERSION)?;
        let mut fresh = Host::new();
        fresh.bridge.restore(&bridge).map_err(|reason| record.malformed(reason))?;
        if !self.intx.restore(&intx) {
            return Err(record.malformed(format!("it has INTx pins of {} devices", intx.len())));
        }
        fresh.address = address & ADDRESS_MASK;
        fresh.reset_control = reset_control & RESET_KEPT;
        *self.host.lock() = fresh;
        self.remap();
        Ok(())
    }
}
