//! Bit tests, scans, counts, BMI, byte swaps, CRC32, and locked operations.
#![expect(unsafe_code, reason = "performs locked operations on guest RAM by host atomics")]

use super::alu::source;
use super::int::Int;
use crate::cpu::{Cpu, Fault, Flow, gpr};
use crate::flags::LazyFlags;
use crate::insn::{Insn, LOCK};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Serializes locked operations that no host atomic can do: unaligned ones, and those on devices.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// Compare-exchange at the width of `T`.
fn compare_exchange<T: Int>(cell: *mut T, old: T, new: T) -> Result<T, T> {
    let order = (Ordering::SeqCst, Ordering::SeqCst);
    // SAFETY: `atomic_cell` gave an aligned address of guest RAM; guest RAM is shared memory that lives as
    // long as the processor, and all its users expect concurrent changes.
    let result = unsafe {
        match T::BITS {
            8 => AtomicU8::from_ptr(cell.cast())
                .compare_exchange(old.zx() as u8, new.zx() as u8, order.0, order.1)
                .map(u64::from)
                .map_err(u64::from),
            16 => AtomicU16::from_ptr(cell.cast())
                .compare_exchange(old.zx() as u16, new.zx() as u16, order.0, order.1)
                .map(u64::from)
                .map_err(u64::from),
            32 => AtomicU32::from_ptr(cell.cast())
                .compare_exchange(old.zx() as u32, new.zx() as u32, order.0, order.1)
                .map(u64::from)
                .map_err(u64::from),
            _ => AtomicU64::from_ptr(cell.cast()).compare_exchange(old.zx(), new.zx(), order.0, order.1),
        }
    };
    result.map(T::of).map_err(T::of)
}

/// Atomically replaces the memory operand by `change` of it, whose flags are those of the successful try.
/// Returns the old value.
#[inline(always)]
pub fn locked<T: Int>(
    cpu: &mut Cpu,
    insn: &Insn,
    change: impl Fn(&mut LazyFlags, T) -> T,
) -> Result<T, Fault> {
    let offset = cpu.address(insn);
    locked_at(cpu, insn.segment, offset, change)
}

/// [`locked`] at an offset.
#[inline(always)]
pub fn locked_at<T: Int>(
    cpu: &mut Cpu,
    segment: u8,
    offset: u64,
    change: impl Fn(&mut LazyFlags, T) -> T,
) -> Result<T, Fault> {
    let (linear, cell) = cpu.atomic_cell::<T>(segment, offset)?;
    let Some(cell) = cell else {
        let _guard = SPLIT_LOCK.lock();
        let mut seen = T::of(0);
        cpu.modify::<T>(segment, offset, |cpu, old| {
            seen = old;
            change(&mut cpu.flags, old)
        })?;
        return Ok(seen);
    };
    // SAFETY: as in `compare_exchange`.
    let mut old = unsafe { cell.read_volatile() };
    loop {
        let mut flags = cpu.flags;
        let new = change(&mut flags, old);
        match compare_exchange(cell, old, new) {
            Ok(_) => {
                cpu.flags = flags;
                cpu.stored_at(linear, size_of::<T>());
                return Ok(old);
            }
            Err(now) => old = now,
        }
    }
}

/// CMPXCHG8B.
pub fn cmpxchg8b(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let half = |cpu: &Cpu, high, low| u64::from(cpu.reg::<u32>(high)) << 32 | u64::from(cpu.reg::<u32>(low));
    let expected = half(cpu, gpr::RDX, gpr::RAX);
    let new = half(cpu, gpr::RCX, gpr::RBX);
    let choose = |old: u64| if old == expected { new } else { old };
    let mut seen = 0;
    if insn.flags & LOCK != 0 {
        seen = locked::<u64>(cpu, insn, |_, old| choose(old))?;
    } else {
        let offset = cpu.address(insn);
        cpu.modify::<u64>(insn.segment, offset, |_, old| {
            seen = old;
            choose(old)
        })?;
    }
    cpu.flags.set_zf(seen == expected);
    if seen != expected {
        cpu.set_reg32(gpr::RAX, seen as u32);
        cpu.set_reg32(gpr::RDX, (seen >> 32) as u32);
    }
    Ok(())
}

fn host_cmpxchg16b(cell: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: `cell` is 16-byte aligned guest RAM. RBX is reserved by the compiler, so it is exchanged.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {new_low}",
            "lock cmpxchg16b [{cell}]",
            "mov rbx, {new_low}",
            cell = in(reg) cell,
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// CMPXCHG16B: `#GP(0)` unless aligned.
pub fn cmpxchg16b(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let offset = cpu.address(insn);
    let expected = u128::from(cpu.reg::<u64>(gpr::RDX)) << 64 | u128::from(cpu.reg::<u64>(gpr::RAX));
    let new = u128::from(cpu.reg::<u64>(gpr::RCX)) << 64 | u128::from(cpu.reg::<u64>(gpr::RBX));
    let linear = cpu.linear_of(insn.segment, offset, 16, true)?;
    if linear % 16 != 0 {
        return Err(cpu.gp(0).into());
    }
    let (linear, cell) = cpu.atomic_cell::<u128>(insn.segment, offset)?;
    let seen = if let Some(cell) = cell {
        let seen = host_cmpxchg16b(cell, expected, new);
        cpu.stored_at(linear, 16);
        seen
    } else {
        let mut seen = 0;
        cpu.modify::<u128>(insn.segment, offset, |_, old| {
            seen = old;
            if old == expected { new } else { old }
        })?;
        seen
    };
    cpu.flags.set_zf(seen == expected);
    if seen != expected {
        cpu.set_reg(gpr::RAX, seen as u64);
        cpu.set_reg(gpr::RDX, (seen >> 64) as u64);
    }
    Ok(())
}

/// What BT and its siblings do with the bit.
pub mod bit_op {
    #![expect(missing_docs, reason = "instruction names")]
    pub const BT: u8 = 0;
    pub const BTS: u8 = 1;
    pub const BTR: u8 = 2;
    pub const BTC: u8 = 3;
}

#[inline(always)]
fn change_bit<const OP: u8>(value: u64, bit: u64) -> u64 {
    match OP {
        bit_op::BTS => value | 1 << bit,
        bit_op::BTR => value & !(1 << bit),
        bit_op::BTC => value ^ 1 << bit,
        _ => value,
    }
}

/// BT, BTS, BTR, BTC on a register.
pub fn bit_r<const OP: u8, const IMM: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let index = if IMM { insn.imm } else { cpu.reg::<T>(insn.src).zx() };
    let bit = index & u64::from(T::BITS - 1);
    let value = cpu.reg::<T>(insn.dst).zx();
    cpu.flags.set_cf(value >> bit & 1 != 0);
    if OP != bit_op::BT {
        T::of(change_bit::<OP>(value, bit)).write(cpu, insn.dst);
    }
    Ok(())
}

/// BT, BTS, BTR, BTC on memory; a register index reaches beyond the operand.
pub fn bit_m<const OP: u8, const IMM: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let index = if IMM { insn.imm & u64::from(T::BITS - 1) } else { cpu.reg::<T>(insn.dst).sx() };
    let step = (index as i64 >> T::BITS.trailing_zeros()) * i64::from(T::BITS / 8);
    let offset = cpu.address(insn).wrapping_add(step as u64) & insn.address_mask();
    let bit = index & u64::from(T::BITS - 1);
    let old = if OP == bit_op::BT {
        cpu.load::<T>(insn.segment, offset)?
    } else if insn.flags & LOCK != 0 {
        locked_at::<T>(cpu, insn.segment, offset, |_, old| T::of(change_bit::<OP>(old.zx(), bit)))?
    } else {
        let mut seen = T::of(0);
        cpu.modify::<T>(insn.segment, offset, |_, old| {
            seen = old;
            T::of(change_bit::<OP>(old.zx(), bit))
        })?;
        seen
    };
    cpu.flags.set_cf(old.zx() >> bit & 1 != 0);
    Ok(())
}

/// BSF (BSR if `REVERSE`): a zero source leaves the destination.
pub fn bit_scan<const REVERSE: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = source::<T>(cpu, insn)?.zx();
    let bit = if REVERSE { value.checked_ilog2().unwrap_or(0) } else { value.trailing_zeros() & 63 };
    if value != 0 {
        T::of(u64::from(bit)).write(cpu, insn.dst);
    }
    // Only ZF is defined; processors clear the others, and take PF from the result.
    let even = u64::from(value == 0 || bit.count_ones() % 2 == 0);
    cpu.flags.set_bits(u64::from(value == 0) << 6 | even << 2);
    Ok(())
}

/// TZCNT, LZCNT.
pub fn bit_count<const LEADING: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = source::<T>(cpu, insn)?.zx();
    let count =
        if LEADING { value.leading_zeros() - (64 - T::BITS) } else { value.trailing_zeros().min(T::BITS) };
    // CF and ZF are defined; processors clear the others.
    cpu.flags.set_bits(u64::from(count == 0) << 6 | u64::from(value == 0));
    T::of(u64::from(count)).write(cpu, insn.dst);
    Ok(())
}

/// POPCNT.
pub fn popcnt<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = source::<T>(cpu, insn)?.zx();
    let zero = u64::from(value == 0) << 6;
    cpu.flags.set_bits(zero);
    T::of(u64::from(value.count_ones())).write(cpu, insn.dst);
    Ok(())
}

/// ANDN: dst = !src & operand.
pub fn andn<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let b = if insn.has_memory() { cpu.load_operand::<T>(insn)? } else { cpu.reg(insn.src2) };
    let value = T::of(!cpu.reg::<T>(insn.src).zx() & b.zx());
    cpu.flags.set_logic(value.sx());
    clear_parity(cpu);
    value.write(cpu, insn.dst);
    Ok(())
}

/// AF and PF are undefined after BMI's instructions; processors clear them.
#[inline(always)]
fn clear_parity(cpu: &mut Cpu) {
    /// PF in RFLAGS.
    const PF: u64 = 1 << 2;
    let bits = cpu.flags.bits() & !PF;
    cpu.flags.set_bits(bits);
}

/// BLSI (0), BLSMSK (1), BLSR (2).
pub fn lowest_bit<const KIND: u8, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let a = source::<T>(cpu, insn)?.zx();
    let value = T::of(match KIND {
        0 => a & a.wrapping_neg(),
        1 => a ^ a.wrapping_sub(1),
        _ => a & a.wrapping_sub(1),
    });
    let carry = (a == 0) != (KIND == 0);
    cpu.flags.set_result_cf_of(value.sx(), carry, false);
    clear_parity(cpu);
    value.write(cpu, insn.dst);
    Ok(())
}

/// The operand before the last register: memory or `src`; and that last register.
fn controlled<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Result<(u64, u64), Fault> {
    Ok(if insn.has_memory() {
        let value = cpu.load_operand::<T>(insn)?.zx();
        (value, cpu.reg::<T>(insn.src).zx())
    } else {
        (cpu.reg::<T>(insn.src).zx(), cpu.reg::<T>(insn.src2).zx())
    })
}

/// BEXTR.
pub fn bextr<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (value, control) = controlled::<T>(cpu, insn)?;
    let (start, len) = (control as u8 as u32, (control >> 8) as u8 as u32);
    let shifted = value.checked_shr(start).unwrap_or(0);
    let result = if len < 64 { shifted & ((1 << len) - 1) } else { shifted };
    cpu.flags.set_bits(u64::from(result == 0) << 6);
    T::of(result).write(cpu, insn.dst);
    Ok(())
}

/// BZHI.
pub fn bzhi<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (value, index) = controlled::<T>(cpu, insn)?;
    let index = index as u8 as u32;
    let result = if index < T::BITS { value & ((1 << index) - 1) } else { value };
    let result = T::of(result);
    cpu.flags.set_result_cf_of(result.sx(), index >= T::BITS, false);
    clear_parity(cpu);
    result.write(cpu, insn.dst);
    Ok(())
}

/// SHLX (0), SHRX (1), SARX (2): shifts without flags.
pub fn shift_x<const KIND: u8, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let (value, count) = controlled::<T>(cpu, insn)?;
    let count = count & u64::from(T::BITS - 1);
    let result = match KIND {
        0 => value << count,
        1 => value >> count,
        _ => (T::of(value).sx() as i64 >> count) as u64,
    };
    T::of(result).write(cpu, insn.dst);
    Ok(())
}

/// RORX.
pub fn rorx<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = source::<T>(cpu, insn)?.zx();
    let count = insn.imm as u32 & (T::BITS - 1);
    let result =
        if T::BITS == 64 { value.rotate_right(count) } else { u64::from((value as u32).rotate_right(count)) };
    T::of(result).write(cpu, insn.dst);
    Ok(())
}

/// PDEP (PEXT if `EXTRACT`): the mask is the last operand.
pub fn deposit<const EXTRACT: bool, T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.reg::<T>(insn.src).zx();
    let mask = if insn.has_memory() { cpu.load_operand::<T>(insn)? } else { cpu.reg(insn.src2) };
    let (mut left, mut result, mut number) = (mask.zx(), 0, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if EXTRACT {
            result |= u64::from(value & bit != 0) << number;
        } else if value >> number & 1 != 0 {
            result |= bit;
        }
        number += 1;
        left ^= bit;
    }
    T::of(result).write(cpu, insn.dst);
    Ok(())
}

/// BSWAP; of 16 bits it clears them, as processors do.
pub fn bswap<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.reg::<T>(insn.dst).zx();
    let swapped = match T::BITS {
        64 => value.swap_bytes(),
        32 => u64::from((value as u32).swap_bytes()),
        _ => 0,
    };
    T::of(swapped).write(cpu, insn.dst);
    Ok(())
}

fn swapped<T: Int>(value: T) -> T {
    T::of(value.zx().swap_bytes() >> (64 - T::BITS))
}

/// MOVBE, load.
pub fn movbe_load<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = cpu.load_operand::<T>(insn)?;
    swapped(value).write(cpu, insn.dst);
    Ok(())
}

/// MOVBE, store.
pub fn movbe_store<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = swapped(cpu.reg::<T>(insn.dst));
    Ok(cpu.store_operand(insn, value)?)
}

/// CRC32 (polynomial 0x11EDC6F41, reflected).
pub fn crc32<T: Int>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = source::<T>(cpu, insn)?.zx();
    let mut crc = cpu.reg::<u32>(insn.dst);
    for byte in 0..T::BITS / 8 {
        crc ^= u32::from((value >> (8 * byte)) as u8);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    cpu.set_reg32(insn.dst, crc);
    Ok(())
}
