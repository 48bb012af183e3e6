//! What a BIOS leaves in its data area, for systems that look there before they believe anybody else.
//!
//! Xen's multiboot entry, for one, puts its first code below the end of base memory that stands here.

use crate::layout::LOW_RAM_USED;
use crate::{BoardLayout, LoadError};
use guest_memory::GuestMemory;

/// Port numbers of up to four serial ports.
const SERIAL_PORTS: u64 = 0x400;
const SERIAL_PORTS_MAX: usize = 4;
/// Segment of the extended BIOS data area.
const EXTENDED_AREA: u64 = 0x40e;
/// KiB of base memory, which ends where the extended area begins.
const BASE_MEMORY: u64 = 0x413;

/// Writes the BIOS data area, and the length in KiB at the start of the extended one.
pub fn write(memory: &GuestMemory, layout: &BoardLayout) -> Result<(), LoadError> {
    for (at, port) in (SERIAL_PORTS..).step_by(2).zip(layout.serial_ports.iter().take(SERIAL_PORTS_MAX)) {
        memory.write(at, &port.port.to_le_bytes())?;
    }
    memory.write(EXTENDED_AREA, &((LOW_RAM_USED >> 4) as u16).to_le_bytes())?;
    memory.write(BASE_MEMORY, &((LOW_RAM_USED >> 10) as u16).to_le_bytes())?;
    memory.write(LOW_RAM_USED, &[1])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places are those of every PC: 40:00, 40:0e and 40:13.
    #[test]
    fn base_memory_ends_where_the_extended_area_begins() {
        let memory = GuestMemory::new(&[(0, 2 << 20)]).unwrap();
        write(&memory, &BoardLayout::default()).unwrap();
        let word = |at: u64| {
            let mut bytes = [0; 2];
            memory.read(at, &mut bytes).unwrap();
            u16::from_le_bytes(bytes)
        };
        assert_eq!([word(0x400), word(0x402), word(0x40e), word(0x413)], [0x3f8, 0, 0x9fc0, 639]);
        assert_eq!(word(0x9_fc00), 1);
    }
}
