//! String instructions.
//!
//! With REP, registers are updated after each element or page-sized run, so a fault or an event in between
//! leaves a state from which the instruction goes on ([`Stop::Again`]). Runs inside a page of RAM are done on
//! host addresses; anything else goes element by element.
//!
//! A comparison of runs ends where the flags of its last element say so, which is read once more for them: if another
//! processor changed it in between, the instruction goes on.
#![expect(unsafe_code, reason = "copies, fills and compares runs of guest RAM by host address")]

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
    let single = cpu.block_end == 0 && cpu.steps_elements();
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

/// Elements from `offset` (at `linear`) on, in the direction of DF, that lie in the page and in the address space.
#[inline(always)]
fn room<T: Int>(insn: &Insn, offset: u64, linear: u64, backwards: bool) -> u64 {
    let size = u64::from(T::BITS / 8);
    let behind = (0x1000 - (linear & 0xfff)).min((insn.address_mask() - offset).saturating_add(1)) / size;
    match backwards {
        false => behind,
        true if behind == 0 => 0,
        true => (linear & 0xfff).min(offset) / size + 1,
    }
}

/// Elements one behind the other in a page of RAM.
#[derive(Clone, Copy)]
struct Run {
    /// Linear address and host address of the lowest.
    linear: u64,
    host: *mut u8,
    count: u64,
    backwards: bool,
}

impl Run {
    /// Number, from the lowest address on, of the element that is come to after `before` others.
    fn number(self, before: u64) -> usize {
        (if self.backwards { self.count - 1 - before } else { before }) as usize
    }

    /// The run without elements at its end, which is its low end if it goes backwards.
    fn of<T: Int>(self, count: u64) -> Run {
        let skipped = if self.backwards { (self.count - count) * u64::from(T::BITS / 8) } else { 0 };
        let host = self.host.wrapping_add(skipped as usize);
        Run { linear: self.linear.wrapping_add(skipped), host, count, ..self }
    }
}

/// Up to `count` elements from `offset` on, as far as they can be reached by host addresses. `None` asks for the access
/// of one element.
fn run_at<T: Int>(
    cpu: &mut Cpu,
    insn: &Insn,
    segment: u8,
    offset: u64,
    count: u64,
    access: Access,
) -> Result<Option<Run>, Fault> {
    let size = T::BITS / 8;
    let backwards = cpu.has_flag(RFlags::DF);
    let first = cpu.linear(segment, offset, size, access)?;
    let count = count.min(room::<T>(insn, offset, first, backwards));
    if count == 0 {
        return Ok(None);
    }
    let down = if backwards { (count - 1) * u64::from(size) } else { 0 };
    // A run that leaves the segment is done element by element, up to the faulting one.
    if !cpu.long64 && cpu.linear(segment, offset - down, count as u32 * size, access).is_err() {
        return Ok(None);
    }
    Ok(cpu.page_run(segment, first, access)?.map(|host| Run {
        linear: first.wrapping_sub(down),
        host: host.wrapping_sub(down as usize),
        count,
        backwards,
    }))
}

/// Copies as MOVS does, one element after the other.
///
/// # Safety
/// Both runs have as many elements, in memory that is mapped.
unsafe fn copy<T: Int>(source: Run, target: Run) {
    let size = T::BITS as usize / 8;
    let bytes = source.count as usize * size;
    let (from, to) = (source.host, target.host);
    // How far the target is ahead of the source, in the direction of the copy.
    let ahead = if source.backwards {
        (from as usize).wrapping_sub(to as usize)
    } else {
        (to as usize).wrapping_sub(from as usize)
    };
    // SAFETY: every range lies in one of the runs.
    unsafe {
        if ahead == 0 || ahead >= bytes {
            std::ptr::copy(from, to, bytes);
        } else if ahead >= size && !source.backwards {
            // The target starts inside the source: what was copied first is copied again and again.
            let mut done = 0;
            while done < bytes {
                let piece = (ahead + done).min(bytes - done);
                std::ptr::copy_nonoverlapping(from, to.add(done), piece);
                done += piece;
            }
        } else {
            let (from, to) = (from.cast::<T>(), to.cast::<T>());
            for at in 0..source.count as usize {
                let at = if source.backwards { source.count as usize - 1 - at } else { at };
                to.add(at).write_unaligned(from.add(at).read_unaligned());
            }
        }
    }
}

/// MOVS of up to `count` elements; returns how many were done.
fn move_run<T: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Result<u64, Fault> {
    let (from, to) = (index(cpu, insn, gpr::RSI), index(cpu, insn, gpr::RDI));
    if count > 1
        && let Some(source) = run_at::<T>(cpu, insn, insn.segment, from, count, Access::Read)?
        && let Some(target) = run_at::<T>(cpu, insn, seg::ES, to, source.count, Access::Write)?
    {
        let count = target.count;
        // SAFETY: both runs lie inside mapped pages of guest RAM. The second lookup may have replaced the
        // first one's TLB entry, which does not unmap anything.
        unsafe { copy::<T>(source.of::<T>(count), target) };
        cpu.stored_run(target.linear, (count * u64::from(T::BITS / 8)) as usize);
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
    if count > 1
        && let Some(Run { linear, host, count, .. }) =
            run_at::<T>(cpu, insn, seg::ES, to, count, Access::Write)?
    {
        let bytes = (count * u64::from(T::BITS / 8)) as usize;
        // SAFETY: the run lies inside a mapped page of guest RAM.
        unsafe {
            if T::BITS == 8 || value.zx() == 0 {
                host.write_bytes(value.zx() as u8, bytes);
            } else {
                for at in 0..count as usize {
                    host.cast::<T>().add(at).write_unaligned(value);
                }
            }
        }
        cpu.stored_run(linear, bytes);
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

/// Elements of a run of `count` up to the first whose two values are equal, if `until` says so, or not equal, with that
/// one; all if there is none. `values` reads those of an element, by its number from the lowest address on.
#[inline(always)]
fn compared<T: Int>(count: u64, backwards: bool, until: bool, values: impl Fn(usize) -> (T, T)) -> u64 {
    /// Elements looked at without a branch, so that the compiler can make vector instructions of it.
    const PIECE: usize = 32;
    let ends = |at: usize| {
        let (first, second) = values(at);
        (first == second) == until
    };
    let count = count as usize;
    let mut done = 0;
    while count - done >= PIECE {
        let lowest = if backwards { count - done - PIECE } else { done };
        if (lowest..lowest + PIECE).fold(false, |any, at| any | ends(at)) {
            break;
        }
        done += PIECE;
    }
    // Another processor may have changed the element meanwhile: then there is no end among these either.
    while done < count {
        let at = if backwards { count - done - 1 } else { done };
        done += 1;
        if ends(at) {
            break;
        }
    }
    done as u64
}

/// SCAS of up to `count` elements; returns how many were done.
fn scan_run<T: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Result<u64, Fault> {
    let at = index(cpu, insn, gpr::RDI);
    let a = cpu.reg::<T>(gpr::RAX);
    if count > 1
        && let Some(run) = run_at::<T>(cpu, insn, seg::ES, at, count, Access::Read)?
    {
        // SAFETY: the run lies inside a mapped page of guest RAM.
        let values = |at: usize| (a, unsafe { run.host.cast::<T>().add(at).read_unaligned() });
        let until = insn.flags & REPNE != 0;
        let done = compared(run.count, run.backwards, until, values);
        let (_, value) = values(run.number(done - 1));
        Cmp::apply(&mut cpu.flags, a, value);
        advance::<T>(cpu, insn, gpr::RDI, done);
        return Ok(done);
    }
    let value = cpu.load::<T>(seg::ES, at)?;
    Cmp::apply(&mut cpu.flags, a, value);
    advance::<T>(cpu, insn, gpr::RDI, 1);
    Ok(1)
}

/// SCAS.
pub fn scas<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    repeat_compare(cpu, insn, |cpu, count| scan_run::<T>(cpu, insn, count))
}

/// CMPS of up to `count` elements; returns how many were done.
fn compare_run<T: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Result<u64, Fault> {
    let (from, to) = (index(cpu, insn, gpr::RSI), index(cpu, insn, gpr::RDI));
    // Silicon reports the fault of ES:RDI when both operands would fault.
    if count > 1
        && let Some(target) = run_at::<T>(cpu, insn, seg::ES, to, count, Access::Read)?
        && let Some(source) = run_at::<T>(cpu, insn, insn.segment, from, target.count, Access::Read)?
    {
        let target = target.of::<T>(source.count);
        // SAFETY: both runs lie inside mapped pages of guest RAM, whatever the second look-up did to the TLB entry of
        // the first.
        let values = |at: usize| unsafe {
            let (first, second) = (source.host.cast::<T>().add(at), target.host.cast::<T>().add(at));
            (first.read_unaligned(), second.read_unaligned())
        };
        let until = insn.flags & REPNE != 0;
        let done = compared(source.count, source.backwards, until, values);
        let (first, second) = values(source.number(done - 1));
        Cmp::apply(&mut cpu.flags, first, second);
        advance::<T>(cpu, insn, gpr::RSI, done);
        advance::<T>(cpu, insn, gpr::RDI, done);
        return Ok(done);
    }
    let second = cpu.load::<T>(seg::ES, to)?;
    let first = cpu.load::<T>(insn.segment, from)?;
    Cmp::apply(&mut cpu.flags, first, second);
    advance::<T>(cpu, insn, gpr::RSI, 1);
    advance::<T>(cpu, insn, gpr::RDI, 1);
    Ok(1)
}

/// CMPS.
pub fn cmps<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    repeat_compare(cpu, insn, |cpu, count| compare_run::<T>(cpu, insn, count))
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
