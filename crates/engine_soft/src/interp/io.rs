//! IN, OUT, and random numbers.

use super::int::Int;
use crate::cpu::{Cpu, Fault, Flow, Stop, gpr};
use crate::insn::Insn;

impl Cpu {
    /// A port read of `T`'s width, after the permission check.
    pub(crate) fn port_in<T: Int>(&mut self, port: u16) -> Result<T, Fault> {
        let size = (T::BITS / 8) as usize;
        self.check_io(port, size as u8)?;
        self.pio_accesses += 1;
        let mut bytes = [0xff; 8];
        if let Some(io) = self.io() {
            io.pio_read(port, &mut bytes[..size]);
        }
        Ok(T::of(u64::from_le_bytes(bytes)))
    }

    /// A port write of `T`'s width, after the permission check.
    pub(crate) fn port_out<T: Int>(&mut self, port: u16, value: T) -> Result<(), Fault> {
        let size = (T::BITS / 8) as usize;
        self.check_io(port, size as u8)?;
        self.pio_accesses += 1;
        if let Some(io) = self.io() {
            io.pio_write(port, &value.zx().to_le_bytes()[..size]);
        }
        Ok(())
    }
}

#[inline(always)]
fn port<const DX: bool>(cpu: &Cpu, insn: &Insn) -> u16 {
    if DX { cpu.reg(gpr::RDX) } else { insn.imm as u16 & 0xff }
}

/// IN.
pub fn port_in<const DX: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let number = port::<DX>(cpu, insn);
    let value = cpu.port_in::<T>(number)?;
    value.write(cpu, gpr::RAX);
    Err(Stop::Done)
}

/// OUT.
pub fn port_out<const DX: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let number = port::<DX>(cpu, insn);
    let value = cpu.reg::<T>(gpr::RAX);
    cpu.port_out(number, value)?;
    Err(Stop::Done)
}

/// RDRAND, RDSEED: CF set, all others clear.
pub fn random<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let mut bytes = [0; 8];
    cpu.entropy().fill(&mut bytes);
    T::of(u64::from_le_bytes(bytes)).write(cpu, insn.dst);
    cpu.flags.set_bits(1);
    Ok(())
}
