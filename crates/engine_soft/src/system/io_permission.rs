//! I/O permission (SDM 1 19.5) and breakpoints on ports (SDM 3B 17.2.4).

use crate::cpu::{Cpu, Fault, seg};
use x86::{Cr0, Cr4};

/// Offset of the bitmap's offset in a 32-bit or 64-bit TSS.
const BITMAP_OFFSET: u64 = 102;

impl Cpu {
    /// Faults unless the current code may access `size` ports from `port`: IOPL, else the TSS's bitmap. Notes
    /// breakpoints on the ports.
    pub fn check_io(&mut self, port: u16, size: u8) -> Result<(), Fault> {
        self.check_io_permission(port, size)?;
        if self.dr7 & 0xff != 0 && self.cr4.contains(Cr4::DE) {
            self.watch_ports(port, size);
        }
        Ok(())
    }

    fn watch_ports(&mut self, port: u16, size: u8) {
        let (first, last) = (u64::from(port), u64::from(port) + u64::from(size) - 1);
        for number in 0..4 {
            let enabled = self.dr7 >> (2 * number) & 3 != 0;
            let on_ports = self.dr7 >> (16 + 4 * number) & 3 == 2;
            let length = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * number) & 3) as usize];
            let start = self.dr[number as usize] & !(length - 1);
            if enabled && on_ports && first < start.wrapping_add(length) && start <= last {
                self.mmu.breakpoints_hit |= 1 << number;
            }
        }
    }

    fn check_io_permission(&mut self, port: u16, size: u8) -> Result<(), Fault> {
        if !self.cr0.contains(Cr0::PE) || self.cpl <= self.iopl() && !self.is_v86() {
            return Ok(());
        }
        let tss = self.segments[usize::from(seg::TR)];
        let kind = tss.attributes.kind();
        let limit = u64::from(tss.limit);
        if !tss.attributes.present() || kind & 0xd != 9 || limit < BITMAP_OFFSET + 1 {
            return Err(self.gp(0));
        }
        let bitmap = u64::from(self.system_load::<u16>(tss.base.wrapping_add(BITMAP_OFFSET))?);
        let offset = bitmap + u64::from(port >> 3);
        if offset + 1 > limit {
            return Err(self.gp(0));
        }
        let bits = self.system_load::<u16>(tss.base.wrapping_add(offset))?;
        let mask = (1_u16 << size) - 1;
        if bits >> (port & 7) & mask != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }
}
