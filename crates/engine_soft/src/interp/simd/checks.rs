//! What every vector instruction checks first (SDM 2A 2.4, tables 2-18 to 2-27; 3A 2.5, 13.1).

use crate::cpu::{Cpu, Fault, Stop};
use crate::insn::Insn;
use x86::{Cr0, Cr4, Exception, Vector};

/// XCR0: SSE and AVX state enabled.
const XCR0_AVX: u64 = 6;

/// #UD when the operating system has not enabled the instruction set, #NM when it switches lazily.
#[inline(always)]
pub(super) fn vector(cpu: &mut Cpu, vex: bool) -> Result<(), Fault> {
    let enabled = if vex {
        cpu.cr4.contains(Cr4::OSXSAVE) && cpu.xcr0 & XCR0_AVX == XCR0_AVX && cpu.is_protected()
    } else {
        cpu.cr4.contains(Cr4::OSFXSR) && !cpu.cr0.contains(Cr0::EM)
    };
    if enabled && !cpu.cr0.contains(Cr0::TS) {
        return Ok(());
    }
    Err(refused(cpu, enabled))
}

#[cold]
fn refused(cpu: &mut Cpu, enabled: bool) -> Fault {
    if enabled { cpu.raise(Exception::plain(Vector::DeviceNotAvailable)) } else { cpu.ud() }
}

/// The checks of an MMX instruction, with that for a pending x87 error.
pub(super) fn mmx(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr0.contains(Cr0::EM) {
        return Err(cpu.ud().into());
    }
    if cpu.cr0.contains(Cr0::TS) {
        return Err(refused(cpu, true).into());
    }
    crate::interp::x87::check_pending(cpu)
}

/// #GP(0) unless the memory operand is aligned to `size`, a power of two.
#[inline(always)]
pub(super) fn aligned(cpu: &mut Cpu, insn: &Insn, size: u64) -> Result<(), Fault> {
    let linear = cpu.segment_base[usize::from(insn.segment & 7)].wrapping_add(cpu.address(insn));
    if linear & size.wrapping_sub(1) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}
