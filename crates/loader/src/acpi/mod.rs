//! ACPI tables (ACPI 6.5), built for the board.
//!
//! ```text
//!   RSDP ──> XSDT ──> FADT ──> DSDT, FACS
//!                ├──> MADT   processors, IOAPIC, interrupt overrides
//!                ├──> MCFG   ECAM
//!                └──> HPET
//! ```

mod aml;
mod dsdt;
mod host_bridge;
mod tables;
#[cfg(test)]
mod tests;

use crate::layout::TABLES_END;
use crate::{BoardLayout, LoadError};
use guest_memory::GuestMemory;

/// The alignment FACS needs; more than enough for the others.
const ALIGN: u64 = 64;

/// Places tables one after the other.
struct Placer<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Placer<'_> {
    fn place(&mut self, table: &[u8]) -> Result<u64, LoadError> {
        let address = self.next.next_multiple_of(ALIGN);
        let len = table.len() as u64;
        if len > TABLES_END - address.min(TABLES_END) {
            return Err(LoadError::TablesTooLarge { len });
        }
        self.memory.write(address, table)?;
        self.next = address + len;
        Ok(address)
    }
}

/// Writes all tables from `start` on and returns the address of the RSDP and the tables' end.
pub fn write(memory: &GuestMemory, layout: &BoardLayout, start: u64) -> Result<(u64, u64), LoadError> {
    let mut placer = Placer { memory, next: start };
    // The RSDP comes first, so that its place is on 16 bytes for those who search (5.2.5.1).
    let rsdp = placer.place(&[0; tables::RSDP_LEN])?;
    let dsdt = placer.place(&dsdt::build(layout))?;
    let facs = placer.place(&tables::facs())?;
    let mut listed = vec![
        placer.place(&tables::fadt(layout, facs, dsdt))?,
        placer.place(&tables::madt(layout))?,
        placer.place(&tables::mcfg(layout))?,
    ];
    if let Some(hpet) = &layout.hpet {
        listed.push(placer.place(&tables::hpet(hpet))?);
    }
    let xsdt = placer.place(&tables::xsdt(&listed))?;
    memory.write(rsdp, &tables::rsdp(xsdt))?;
    Ok((rsdp, placer.next))
}
