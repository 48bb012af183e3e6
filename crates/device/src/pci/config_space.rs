//! Type-0 configuration space with write masks (PCI Local Bus 3.0, 6.1; PCI Express Base 5.0, 7.5).

use serde::{Deserialize, Serialize};

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Who a function is.
#[derive(Clone, Copy, Debug, Default)]
pub struct PciIdentity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Class code: base class, sub-class and interface in the low 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    /// Ports.
    Io,
    /// 32-bit memory.
    Memory32,
    /// 64-bit memory; takes the next BAR too.
    Memory64,
}

/// A BAR that decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// BAR number, 0–5.
    pub index: usize,
    /// What it decodes.
    pub kind: BarKind,
    /// First address.
    pub address: u64,
    /// Size, a power of two.
    pub size: u64,
}

/// The first 256 bytes of a function's configuration space; the extended part reads zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    bars: Vec<(usize, BarKind, u64)>,
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities. `interrupt_pin` is 0 (none) or 1–4 (INTA–INTD).
    pub fn new(identity: PciIdentity, interrupt_pin: u8) -> Self {
        let mut space = ConfigSpace {
            bytes: vec![0; 256],
            writable: vec![0; 256],
            bars: Vec::new(),
            next_capability: 0x40,
            last_link: CAPABILITIES,
        };
        space.set_u16(0x00, identity.vendor);
        space.set_u16(0x02, identity.device);
        space.bytes[0x08] = identity.revision;
        space.bytes[0x09..0x0c].copy_from_slice(&identity.class.to_le_bytes()[..3]);
        space.set_u16(0x2c, identity.subsystem_vendor);
        space.set_u16(0x2e, identity.subsystem);
        space.bytes[0x3d] = interrupt_pin;
        space.writable[0x3c] = 0xff;
        space.writable[0x0c] = 0xff;
        // I/O, memory, bus master, SERR, INTx disable.
        space.writable[COMMAND] = 0x07;
        space.writable[COMMAND + 1] = 0x05;
        space
    }

    /// Adds a BAR of a power-of-two size. Called while the device is built.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) {
        let at = BAR0 + index * 4;
        let flags = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 4,
        };
        self.bytes[at] = flags;
        let mask = !(size - 1);
        self.writable[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
        if kind == BarKind::Memory64 {
            self.writable[at + 4..at + 8].copy_from_slice(&((mask >> 32) as u32).to_le_bytes());
        }
        self.bars.push((index, kind, size));
    }

    /// Adds a capability: `body` without the two header bytes, `writable` the mask for it. Returns the offset of
    /// its header. Called while the device is built.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.bytes[self.last_link] = at as u8;
        self.bytes[at] = id;
        self.bytes[at + 2..at + 2 + body.len()].copy_from_slice(body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        let status = self.u16(STATUS) | STATUS_CAPABILITIES;
        self.set_u16(STATUS, status);
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Reads; bytes past the end are zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(offset) + i).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (i, value) in data.iter().enumerate() {
            let at = usize::from(offset) + i;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// A 16-bit register, for the owner.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }
    /// A 32-bit register, for the owner.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }
    /// Sets a 16-bit register regardless of masks, for the owner.
    pub fn set_u16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    /// The interrupt line register, as firmware would set it.
    pub fn set_interrupt_line(&mut self, line: u8) {
        self.bytes[0x3c] = line;
    }
    /// Whether the function may access memory (bus master).
    pub fn bus_master(&self) -> bool {
        self.u16(COMMAND) & 1 << 2 != 0
    }
    /// Whether INTx is disabled.
    pub fn intx_disabled(&self) -> bool {
        self.u16(COMMAND) & 1 << 10 != 0
    }

    /// The BARs that decode now. A BAR that the guest sizes (all ones) or leaves at zero decodes nothing useful
    /// and is left out.
    pub fn decoded_bars(&self) -> Vec<Bar> {
        let command = self.u16(COMMAND);
        let decode = |&(index, kind, size): &(usize, BarKind, u64)| {
            let enabled = match kind {
                BarKind::Io => command & COMMAND_IO != 0,
                BarKind::Memory32 | BarKind::Memory64 => command & COMMAND_MEMORY != 0,
            };
            let low = u64::from(self.u32(BAR0 + index * 4));
            let address = match kind {
                BarKind::Io => low & 0xfffc,
                BarKind::Memory32 => low & !0xf,
                BarKind::Memory64 => low & !0xf | u64::from(self.u32(BAR0 + index * 4 + 4)) << 32,
            };
            let useful = address != 0 && address.checked_add(size).is_some_and(|end| end < 1 << 52);
            (enabled && useful).then_some(Bar { index, kind, address, size })
        };
        self.bars.iter().filter_map(decode).collect()
    }

    /// Takes over saved bytes; the layout (masks, BARs, capabilities) must be the same.
    pub fn restore(&mut self, saved: &ConfigSpace) -> Result<(), String> {
        let same_layout = saved.writable == self.writable
            && saved.bars == self.bars
            && saved.bytes.len() == self.bytes.len()
            && saved.next_capability == self.next_capability;
        if !same_layout {
            return Err("the configuration space has another layout".to_owned());
        }
        self.bytes.clone_from(&saved.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_answers_its_size_and_decodes_when_enabled() {
        let mut space = ConfigSpace::new(PciIdentity { vendor: 0x1af4, ..PciIdentity::default() }, 1);
        space.add_bar(4, BarKind::Memory64, 0x4000);
        space.write(0x20, &u32::MAX.to_le_bytes());
        assert_eq!(space.u32(0x20), 0xffff_c004);
        space.write(0x20, &0xe000_0000_u32.to_le_bytes());
        space.write(0x24, &1_u32.to_le_bytes());
        assert_eq!(space.decoded_bars(), []);
        space.write(0x04, &2_u16.to_le_bytes());
        let bar = Bar { index: 4, kind: BarKind::Memory64, address: 0x1_e000_0000, size: 0x4000 };
        assert_eq!(space.decoded_bars(), [bar]);
    }
}
