//! String instructions.
//!
//! With REP, registers are updated after each element or page-sized run, so a fault or an event in between
//! leaves a state from which the instruction goes on ([`Stop::Again`]). Runs inside a page of RAM are done on
//! host addresses; anything else goes element by element.
#![expect(unsafe_code, reason = "copies and fills runs of guest RAM by host address")]

use super::alu::{Binary, Cmp};
use super::int::Int;
use crate::cpu::{Cpu, Fault, Flow, Stop, gpr, seg};
use crate::insn::{Insn, REP, REPNE};
use crate::mmu::Access;
use x86::RFlags;

/// Elements between two looks at events.
const BATCH: u64 = 64;

/// Masked index register.
#[inline(always)]
fn index(cpu: &Cpu, insn: &Insn, register: u8) -> u64 {
    cpu.reg::<u64>(register) & insn.address_mask()
}

/// Writes a register at the address size.
#[inline(always)]
fn set_index(cpu: &mut Cpu, insn: &Insn, register: u8, value: u64) {
    cpu.write_gpr(register, insn.address_size(), value & insn.address_mask());
}

/// Moves an index register by `elements`.
#[inline(always)]
fn advance<T: Int>(cpu: &mut Cpu, insn: &Insn, register: u8, elements: u64) {
    let bytes = elements.wrapping_mul(u64::from(T::BITS / 8));
    let old = index(cpu, insn, register);
    let backwards = cpu.has_flag(RFlags::DF);
    let new = if backwards { old.wrapping_sub(bytes) } else { old.wrapping_add(bytes) };
    set_index(cpu, insn, register, new);
}

/// Runs `element` once, or RCX times under REP. `run` may do several elements at once and returns how many
/// it did. `goes_on` decides after each element (REPE, REPNE).
///
/// With 32-bit addresses, the upper halves of RCX and of `pointers` are gone from the start: even if RCX is zero,
/// and even if the first element faults. The SDM leaves that open; it is so on Intel's processors, where
/// `pointers` are those of the instructions that move fast strings.
#[inline(always)]
fn repeat(
    cpu: &mut Cpu,
    insn: &Insn,
    pointers: &[u8],
    mut run: impl FnMut(&mut Cpu, u64) -> Result<u64, Fault>,
    goes_on: impl Fn(&Cpu) -> bool,
) -> Flow {
    if insn.flags & (REP | REPNE) == 0 {
        run(cpu, 1)?;
        return Ok(());
    }
    cpu.repeating = false;
    // In the stepping loop, one element is one step.
    let single = cpu.block_end == 0;
    let mut left = index(cpu, insn, gpr::RCX);
    if insn.address_size() == 4 {
        set_index(cpu, insn, gpr::RCX, left);
        for &register in pointers {
            let pointer = index(cpu, insn, register);
            set_index(cpu, insn, register, pointer);
        }
    }
    let mut batch = BATCH;
    while left != 0 {
        let done = run(cpu, if single { 1 } else { left })?;
        left = left.wrapping_sub(done);
        set_index(cpu, insn, gpr::RCX, left);
        if !goes_on(cpu) {
            break;
        }
        batch = batch.saturating_sub(done.max(1));
        let look = cpu.block_end == 0 || batch == 0 && cpu.event_waiting();
        if left != 0 && look {
            cpu.repeating = true;
            return Err(Stop::Again);
        }
        if batch == 0 {
            batch = BATCH;
        }
    }
    Ok(())
}

/// Elements from `offset` (at `linear`) to the end of the page and of the address space.
#[inline(always)]
fn room<T: Int>(insn: &Insn, offset: u64, linear: u64) -> u64 {
    let in_page = 0x1000 - (linear & 0xfff);
    let in_space = (insn.address_mask() - offset).saturating_add(1);
    in_page.min(in_space) / u64::from(T::BITS / 8)
}

/// Linear address and host address for up to `count` elements at `offset`, with the number that fits.
fn run_at<T: Int>(
    cpu: &mut Cpu,
    insn: &Insn,
    segment: u8,
    offset: u64,
    count: u64,
    access: Access,
) -> Result<Option<(u64, *mut u8, u64)>, Fault> {
    let size = T::BITS / 8;
    let linear = cpu.linear(segment, offset, size, access)?;
    let count = count.min(room::<T>(insn, offset, linear));
    if count == 0 {
        return Ok(None);
    }
    // A run that leaves the segment is done element by element, up to the faulting one.
    if !cpu.long64 && cpu.linear(segment, offset, count as u32 * size, access).is_err() {
        return Ok(None);
    }
    Ok(cpu.page_run(segment, linear, access)?.map(|host| (linear, host, count)))
}

/// MOVS of up to `count` elements; returns how many were done.
fn move_run<T: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Result<u64, Fault> {
    let (from, to) = (index(cpu, insn, gpr::RSI), index(cpu, insn, gpr::RDI));
    let size = u64::from(T::BITS / 8);
    if count > 1
        && !cpu.has_flag(RFlags::DF)
        && let Some((_, source, count)) = run_at::<T>(cpu, insn, insn.segment, from, count, Access::Read)?
        && let Some((linear, target, count)) = run_at::<T>(cpu, insn, seg::ES, to, count, Access::Write)?
    {
        let bytes = (count * size) as usize;
        let ahead = (target as u64).wrapping_sub(source as u64);
        // SAFETY: both runs lie inside mapped pages of guest RAM. The second lookup may have replaced the
        // first one's TLB entry, which does not unmap anything.
        unsafe {
            if ahead == 0 || ahead >= bytes as u64 {
                std::ptr::copy(source, target, bytes);
            } else {
                // The target starts inside the source: elements copied first are copied again.
                let (source, target) = (source.cast::<T>(), target.cast::<T>());
                for at in 0..count as usize {
                    target.add(at).write_unaligned(source.add(at).read_unaligned());
                }
            }
        }
        cpu.stored_run(linear, bytes);
        advance::<T>(cpu, insn, gpr::RSI, count);
        advance::<T>(cpu, insn, gpr::RDI, count);
        return Ok(count);
    }
    let value = cpu.load::<T>(insn.segment, from)?;
    cpu.store::<T>(seg::ES, to, value)?;
    advance::<T>(cpu, insn, gpr::RSI, 1);
    advance::<T>(cpu, insn, gpr::RDI, 1);
    Ok(1)
}

/// MOVS.
pub fn movs<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    repeat(cpu, insn, &[gpr::RSI, gpr::RDI], |cpu, count| move_run::<T>(cpu, insn, count), |_| true)
}

fn fill_run<T: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Result<u64, Fault> {
    let to = index(cpu, insn, gpr::RDI);
    let value = cpu.reg::<T>(gpr::RAX);
    let size = u64::from(T::BITS / 8);
    if count > 1
        && !cpu.has_flag(RFlags::DF)
        && let Some((linear, target, count)) = run_at::<T>(cpu, insn, seg::ES, to, count, Access::Write)?
    {
        // SAFETY: the run lies inside a mapped page of guest RAM.
        unsafe {
            if T::BITS == 8 || value.zx() == 0 {
                target.write_bytes(value.zx() as u8, (count * size) as usize);
            } else {
                for at in 0..count as usize {
                    target.cast::<T>().add(at).write_unaligned(value);
                }
            }
        }
        cpu.stored_run(linear, (count * size) as usize);
        advance::<T>(cpu, insn, gpr::RDI, count);
        return Ok(count);
    }
    cpu.store::<T>(seg::ES, to, value)?;
    advance::<T>(cpu, insn, gpr::RDI, 1);
    Ok(1)
}

/// STOS.
pub fn stos<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    repeat(cpu, insn, &[gpr::RDI], |cpu, count| fill_run::<T>(cpu, insn, count), |_| true)
}

/// LODS.
pub fn lods<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let element = |cpu: &mut Cpu, _| {
        let value = cpu.load::<T>(insn.segment, index(cpu, insn, gpr::RSI))?;
        value.write(cpu, gpr::RAX);
        advance::<T>(cpu, insn, gpr::RSI, 1);
        Ok(1)
    };
    repeat(cpu, insn, &[], element, |_| true)
}

/// Whether REPE or REPNE goes on.
#[inline(always)]
fn compare_goes_on(cpu: &Cpu, insn: &Insn) -> bool {
    cpu.flags.zf() == (insn.flags & REPNE == 0)
}

/// REPE or REPNE of a comparison. A fault, and an event between iterations, find the flags that were before the
/// instruction (SDM 2B, REP).
#[inline(always)]
fn repeat_compare(
    cpu: &mut Cpu,
    insn: &Insn,
    element: impl FnMut(&mut Cpu, u64) -> Result<u64, Fault>,
) -> Flow {
    let before = cpu.flags;
    let result = repeat(cpu, insn, &[], element, |cpu| compare_goes_on(cpu, insn));
    if matches!(result, Err(Stop::Fault | Stop::Again)) {
        cpu.flags = before;
    }
    result
}

/// SCAS.
pub fn scas<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let element = |cpu: &mut Cpu, _| {
        let value = cpu.load::<T>(seg::ES, index(cpu, insn, gpr::RDI))?;
        let a = cpu.reg::<T>(gpr::RAX);
        Cmp::apply(&mut cpu.flags, a, value);
        advance::<T>(cpu, insn, gpr::RDI, 1);
        Ok(1)
    };
    repeat_compare(cpu, insn, element)
}

/// CMPS.
pub fn cmps<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let element = |cpu: &mut Cpu, _| {
        // Silicon reports the fault of ES:RDI when both operands would fault.
        let second = cpu.load::<T>(seg::ES, index(cpu, insn, gpr::RDI))?;
        let first = cpu.load::<T>(insn.segment, index(cpu, insn, gpr::RSI))?;
        Cmp::apply(&mut cpu.flags, first, second);
        advance::<T>(cpu, insn, gpr::RSI, 1);
        advance::<T>(cpu, insn, gpr::RDI, 1);
        Ok(1)
    };
    repeat_compare(cpu, insn, element)
}

/// INS. The port is checked even if nothing is moved.
pub fn ins<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let port = cpu.reg::<u16>(gpr::RDX);
    cpu.check_io(port, (T::BITS / 8) as u8)?;
    let element = |cpu: &mut Cpu, _| {
        let to = index(cpu, insn, gpr::RDI);
        cpu.probe(seg::ES, to, T::BITS / 8, true)?;
        let value = cpu.port_in::<T>(port)?;
        cpu.store::<T>(seg::ES, to, value)?;
        advance::<T>(cpu, insn, gpr::RDI, 1);
        Ok(1)
    };
    repeat(cpu, insn, &[], element, |_| true)
}

/// OUTS. The port is checked even if nothing is moved.
pub fn outs<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let port = cpu.reg::<u16>(gpr::RDX);
    cpu.check_io(port, (T::BITS / 8) as u8)?;
    let element = |cpu: &mut Cpu, _| {
        let value = cpu.load::<T>(insn.segment, index(cpu, insn, gpr::RSI))?;
        cpu.port_out(port, value)?;
        advance::<T>(cpu, insn, gpr::RSI, 1);
        Ok(1)
    };
    repeat(cpu, insn, &[], element, |_| true)
}
