//! Addresses of configuration accesses, and the assignment of BARs: what firmware does before a system starts.

use super::bits::*;
use super::{PciError, PciLayout};
use crate::routing::INTX_PIC_INPUTS;
use ::device::pci::PciFunction;
use std::ops::Range;

/// A configuration register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAddress {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
    pub offset: u16,
}

impl ConfigAddress {
    /// The register that CONFIG_ADDRESS and an offset into CONFIG_DATA name.
    pub fn from_ports(address: u32, data_offset: u64) -> Option<Self> {
        let [low, devfn, bus, _] = address.to_le_bytes();
        let offset = u16::from(low & 0xfc) | data_offset as u16 & 3;
        let (device, function) = (devfn >> 3, devfn & 7);
        (address & ADDRESS_ENABLE != 0).then_some(ConfigAddress { bus, device, function, offset })
    }

    /// The register at an offset of the ECAM window.
    pub fn from_ecam(offset: u64) -> Self {
        ConfigAddress {
            bus: (offset >> 20) as u8,
            device: (offset >> 15 & 31) as u8,
            function: (offset >> 12 & 7) as u8,
            offset: (offset & 0xfff) as u16,
        }
    }

    /// The device on bus 0 that this is for, all of which have one function.
    pub fn on_root_bus(self) -> Option<u8> {
        (self.bus == 0 && self.function == 0).then_some(self.device)
    }
}

/// The largest naturally aligned piece, at most a double word, at the start of an access.
pub fn piece_len(offset: u16, len: usize) -> usize {
    [4, 2, 1].into_iter().find(|&piece| len >= piece && usize::from(offset) % piece == 0).unwrap_or(1)
}

/// Hands out addresses of a range in order.
#[derive(Clone, Debug)]
struct Pool(Range<u64>);

impl Pool {
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.0.start.checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|&end| end <= self.0.end)?;
        self.0.start = end;
        Some(start)
    }
}

/// Assigns addresses to the BARs of functions, in order.
pub struct Assignment {
    io: Pool,
    memory: Pool,
    memory64: Pool,
}

impl Assignment {
    pub fn new(layout: &PciLayout) -> Self {
        let PciLayout { io, mmio32, mmio64, .. } = layout.clone();
        Assignment { io: Pool(io), memory: Pool(mmio32), memory64: Pool(mmio64) }
    }

    /// Sizes the BARs of a function, gives them addresses, and sets its interrupt line. Decoding is off meanwhile and
    /// stays off: the system's driver turns it on.
    pub fn assign(&mut self, device: u8, function: &dyn PciFunction) -> Result<(), PciError> {
        function.config_write(REGISTER_COMMAND, &[0, 0]);
        let mut register = REGISTER_BAR0;
        while register < REGISTER_BARS_END {
            let low = probe(function, register);
            let wide = low & BAR_IO == 0 && low & BAR_64 != 0;
            if low != 0 {
                let high = if wide { probe(function, register + 4) } else { u32::MAX };
                let bar = u8::try_from((register - REGISTER_BAR0) / 4).unwrap_or(u8::MAX);
                let (address, size) = self.place(low, high);
                let address = address.ok_or(PciError::NoSpace { device, bar, size })?;
                function.config_write(register, &(address as u32).to_le_bytes());
                if wide {
                    function.config_write(register + 4, &((address >> 32) as u32).to_le_bytes());
                }
            }
            register += if wide { 8 } else { 4 };
        }
        let mut pin = [0];
        function.config_read(REGISTER_INTERRUPT_PIN, &mut pin);
        if pin[0] != 0 {
            // A PC's firmware puts the PIC's input there (PCI 3.0, 6.2.4); who uses the IOAPIC goes by the tables.
            let wire = super::gsi_of(device, pin[0]).saturating_sub(super::intx::FIRST_GSI) as usize;
            let line = INTX_PIC_INPUTS.get(wire).copied().unwrap_or(NO_INTERRUPT_LINE);
            function.config_write(REGISTER_INTERRUPT_LINE, &[line]);
        }
        Ok(())
    }

    /// An address for a BAR that answered these masks, and its size.
    fn place(&mut self, low: u32, high: u32) -> (Option<u64>, u64) {
        if low & BAR_IO != 0 {
            let size = u64::from(!(low | 0xffff_0003) & 0xffff) + 1;
            return (self.io.take(size), size);
        }
        let mask = u64::from(high) << 32 | u64::from(low & !0xf);
        let size = (!mask).saturating_add(1);
        // Below 4 GiB every system reaches it.
        let below = self.memory.take(size);
        let wide = low & BAR_64 != 0;
        (below.or_else(|| self.memory64.take(size).filter(|_| wide)), size)
    }
}

/// Writes all ones to a BAR and answers what sticks.
fn probe(function: &dyn PciFunction, register: u16) -> u32 {
    let mut data = [0; 4];
    function.config_write(register, &[0xff; 4]);
    function.config_read(register, &mut data);
    u32::from_le_bytes(data)
}
