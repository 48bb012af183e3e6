//! Handlers that run a [stub](super::stub): checks, operands in, call, results out.

#![expect(unsafe_code, reason = "calls generated code")]

use super::checks;
use super::classify::{self, Traits};
use super::stub::{self, MAX_OPERANDS, Slot, Stub};
use super::trap::{Environment, MXCSR_FLAGS, MXCSR_MASKS};
use crate::cpu::{Cpu, Fault, Flow};
use crate::insn::{Handler, Insn};
use iced_x86::{Instruction, OpKind};
use parking_lot::Mutex;
use std::collections::HashMap;
use x86::{Cr4, Exception, Vector};

/// What the kind of operand in a slot is; its register number is in the [`Insn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    None,
    Vector,
    Mmx,
    General,
    Memory,
}

/// What instructions of the same opcode, immediate and form share. `Insn::imm` points to it.
#[derive(Debug)]
struct Descriptor {
    stub: Stub,
    kinds: [Kind; MAX_OPERANDS],
    traits: Traits,
    /// Size of the memory operand.
    size: u8,
    /// Slot of an MMX register that is written, or [`MAX_OPERANDS`].
    mmx_result: u8,
}

type Descriptors = HashMap<(u16, u8, bool), &'static Descriptor>;

/// Descriptors by (code, immediate, has memory); leaked, because decoded instructions point to them. Their
/// number is bounded by that of the stubs.
static DESCRIPTORS: Mutex<Option<Descriptors>> = Mutex::new(None);

/// Scratch memory of a memory operand.
#[repr(C, align(64))]
struct Scratch([u8; 64]);

/// The handler of an instruction that runs as a stub.
pub(super) fn select(instruction: &Instruction, insn: &mut Insn) -> Option<Handler> {
    if !classify::has_stub(instruction.code()) {
        return None;
    }
    let traits = classify::traits(instruction);
    let slots = classify::slots(instruction, traits)?;
    let descriptor = descriptor(instruction, &slots, traits)?;
    let fields = [&mut insn.dst, &mut insn.src, &mut insn.src2, &mut insn.extra];
    for (field, slot) in fields.into_iter().zip(slots) {
        *field = match slot {
            Slot::Vector(number) | Slot::Mmx(number) | Slot::General(number) => number,
            Slot::None | Slot::Memory => 0,
        };
    }
    insn.imm = (&raw const *descriptor).expose_provenance() as u64;
    let plain = !traits.intersects(Traits::MXCSR | Traits::FLAGS | Traits::MMX | Traits::STORES);
    let count = |kind| descriptor.kinds.iter().filter(|&&k| k == kind).count();
    Some(match (count(Kind::Memory), count(Kind::General)) {
        (0, 0) if plain => registers,
        (1, 0) if plain && descriptor.size == 16 => load::<16>,
        (1, 0) if plain && descriptor.size == 32 => load::<32>,
        _ => general,
    })
}

fn descriptor(
    instruction: &Instruction,
    slots: &[Slot; MAX_OPERANDS],
    traits: Traits,
) -> Option<&'static Descriptor> {
    let immediate = instruction.op_kinds().any(|kind| kind == OpKind::Immediate8);
    let immediate = if immediate { instruction.immediate8() } else { 0 };
    let key = (instruction.code() as u16, immediate, slots.contains(&Slot::Memory));
    let mut guard = DESCRIPTORS.lock();
    let descriptors = guard.get_or_insert_with(HashMap::new);
    if let Some(descriptor) = descriptors.get(&key) {
        return Some(descriptor);
    }
    let mmx_result = slots
        .iter()
        .enumerate()
        .position(|(at, slot)| matches!(slot, Slot::Mmx(_)) && classify::writes(instruction, at, traits));
    let descriptor = Box::leak(Box::new(Descriptor {
        stub: stub::stub(instruction, slots, traits)?,
        kinds: slots.map(|slot| match slot {
            Slot::None => Kind::None,
            Slot::Vector(_) => Kind::Vector,
            Slot::Mmx(_) => Kind::Mmx,
            Slot::General(_) => Kind::General,
            Slot::Memory => Kind::Memory,
        }),
        traits,
        size: instruction.memory_size().size().min(64) as u8,
        mmx_result: mmx_result.unwrap_or(MAX_OPERANDS) as u8,
    }));
    descriptors.insert(key, descriptor);
    Some(descriptor)
}

/// The descriptor that [`select`] left.
#[inline(always)]
fn descriptor_of(insn: &Insn) -> &'static Descriptor {
    // SAFETY: these handlers are only reached through an `Insn` that `select` filled, with a leaked descriptor.
    unsafe { &*std::ptr::with_exposed_provenance(insn.imm as usize) }
}

/// All operands are vector registers, and the result depends on nothing else.
fn registers(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let descriptor = descriptor_of(insn);
    checks::vector(cpu, descriptor.traits.contains(Traits::VEX))?;
    let registers = cpu.vector.ymm.as_mut_ptr();
    let at = |number: u8| {
        // SAFETY: sixteen registers.
        unsafe { registers.add(usize::from(number & 15)).cast::<u8>() }
    };
    let general = cpu.regs.as_mut_ptr();
    // SAFETY: the stub reads and writes whole vector registers, and the general registers that exist; it needs
    // no environment.
    unsafe {
        (descriptor.stub)(
            at(insn.dst),
            at(insn.src),
            at(insn.src2),
            at(insn.extra),
            std::ptr::null_mut(),
            general,
        );
    }
    Ok(())
}

/// As [`registers`], with one operand loaded from memory.
fn load<const N: usize>(cpu: &mut Cpu, insn: &Insn) -> Flow
where
    [u8; N]: crate::mmu::Plain,
{
    let descriptor = descriptor_of(insn);
    checks::vector(cpu, descriptor.traits.contains(Traits::VEX))?;
    if descriptor.traits.contains(Traits::ALIGNED) {
        checks::aligned(cpu, insn, N as u64)?;
    }
    let mut scratch = Scratch([0; 64]);
    scratch.0[..N].copy_from_slice(&cpu.load_operand::<[u8; N]>(insn)?);
    let registers = cpu.vector.ymm.as_mut_ptr();
    let memory = scratch.0.as_mut_ptr();
    let at = |slot: usize, number: u8| {
        if descriptor.kinds[slot] == Kind::Memory {
            memory
        } else {
            // SAFETY: sixteen registers.
            unsafe { registers.add(usize::from(number & 15)).cast::<u8>() }
        }
    };
    // SAFETY: as in `registers`; the memory operand is at most the 64 bytes of scratch.
    unsafe {
        (descriptor.stub)(
            at(0, insn.dst),
            at(1, insn.src),
            at(2, insn.src2),
            at(3, insn.extra),
            std::ptr::null_mut(),
            cpu.regs.as_mut_ptr(),
        );
    }
    Ok(())
}

/// Every other combination.
fn general(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let descriptor = descriptor_of(insn);
    let traits = descriptor.traits;
    if traits.contains(Traits::MMX) {
        checks::mmx(cpu)?;
        if descriptor.kinds.contains(&Kind::Vector) {
            checks::vector(cpu, false)?;
        }
    } else {
        checks::vector(cpu, traits.contains(Traits::VEX))?;
    }
    if traits.contains(Traits::ALIGNED) {
        checks::aligned(cpu, insn, u64::from(descriptor.size))?;
    }
    let mut scratch = Scratch([0; 64]);
    if traits.contains(Traits::LOADS) {
        read(cpu, insn, descriptor, &mut scratch)?;
    }
    if traits.contains(Traits::STORES | Traits::MMX) {
        let offset = cpu.address(insn);
        if let Err(fault) = cpu.probe(insn.segment, offset, u32::from(descriptor.size), true) {
            // Silicon has moved TOP by then, but not marked the registers valid.
            cpu.fpu.rotate_to(0);
            return Err(fault.into());
        }
    }
    if traits.contains(Traits::MMX) && descriptor.kinds.contains(&Kind::Mmx) {
        return mmx(cpu, insn, descriptor, &mut scratch);
    }
    let mut environment = Environment::new(cpu.vector.mxcsr);
    if traits.contains(Traits::MXCSR) && cpu.vector.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
        unmasked(cpu, insn, descriptor, &mut scratch, &mut environment)?;
    } else {
        call(cpu, insn, descriptor, &mut scratch, &mut environment);
    }
    finish(cpu, insn, descriptor, &scratch, &environment)
}

/// Puts results that are not in registers where they belong.
fn finish(
    cpu: &mut Cpu,
    insn: &Insn,
    descriptor: &Descriptor,
    scratch: &Scratch,
    environment: &Environment,
) -> Flow {
    if descriptor.traits.contains(Traits::MXCSR) {
        // Also when VCVTPS2PH cannot store its result: silicon converts first.
        cpu.vector.mxcsr = environment.mxcsr;
    }
    if descriptor.traits.contains(Traits::STORES) {
        write(cpu, insn, descriptor, scratch)?;
    }
    if descriptor.traits.contains(Traits::FLAGS) {
        cpu.flags.set_bits(environment.rflags);
    }
    Ok(())
}

/// Runs the stub on the processor's own registers.
fn call(
    cpu: &mut Cpu,
    insn: &Insn,
    descriptor: &Descriptor,
    scratch: &mut Scratch,
    environment: &mut Environment,
) {
    let numbers = [insn.dst, insn.src, insn.src2, insn.extra];
    let mut pointers = [std::ptr::null_mut(); MAX_OPERANDS];
    for (slot, pointer) in pointers.iter_mut().enumerate() {
        let number = numbers[slot];
        *pointer = match descriptor.kinds[slot] {
            Kind::None => std::ptr::null_mut(),
            Kind::Memory => scratch.0.as_mut_ptr(),
            Kind::Vector => cpu.vector.ymm[usize::from(number & 15)].as_mut_ptr(),
            Kind::General => (&raw mut cpu.regs[usize::from(number & 15)]).cast(),
            Kind::Mmx => cpu.fpu.mmx_pointer(number),
        };
    }
    let general = cpu.regs.as_mut_ptr();
    // SAFETY: each pointer is to what the stub loads and stores for this kind of operand: 32, 8, 8 or 64 bytes.
    unsafe {
        (descriptor.stub)(pointers[0], pointers[1], pointers[2], pointers[3], environment, general);
    }
}

/// An instruction with an MMX register: the x87 state becomes MMX state. Faults are behind us, except #XM
/// of the conversions, before which the state changes as well.
fn mmx(cpu: &mut Cpu, insn: &Insn, descriptor: &Descriptor, scratch: &mut Scratch) -> Flow {
    cpu.fpu.enter_mmx();
    let mut environment = Environment::new(cpu.vector.mxcsr);
    if descriptor.traits.contains(Traits::MXCSR) && cpu.vector.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
        unmasked(cpu, insn, descriptor, scratch, &mut environment)?;
    } else {
        call(cpu, insn, descriptor, scratch, &mut environment);
    }
    let numbers = [insn.dst, insn.src, insn.src2, insn.extra];
    if let Some(&number) = numbers.get(usize::from(descriptor.mmx_result)) {
        cpu.fpu.finish_mmx_write(number);
    }
    finish(cpu, insn, descriptor, scratch, &environment)
}

/// Runs a floating-point stub with exceptions unmasked; its results only stay if there was none.
#[cold]
fn unmasked(
    cpu: &mut Cpu,
    insn: &Insn,
    descriptor: &Descriptor,
    scratch: &mut Scratch,
    environment: &mut Environment,
) -> Result<(), Fault> {
    let slot = 0;
    let saved_vector = cpu.vector.ymm[usize::from(insn.dst & 15)];
    let saved_general = cpu.regs[usize::from(insn.dst & 15)];
    let saved_fpu = cpu.fpu.clone();
    call(cpu, insn, descriptor, scratch, environment);
    let Some(mxcsr) = environment.trapped() else {
        return Ok(());
    };
    match descriptor.kinds[slot] {
        Kind::Vector => cpu.vector.ymm[usize::from(insn.dst & 15)] = saved_vector,
        Kind::General => cpu.regs[usize::from(insn.dst & 15)] = saved_general,
        Kind::Mmx => cpu.fpu = saved_fpu,
        Kind::None | Kind::Memory => {}
    }
    cpu.vector.mxcsr |= mxcsr & MXCSR_FLAGS;
    let exception =
        if cpu.cr4.contains(Cr4::OSXMMEXCPT) { Exception::plain(Vector::Simd) } else { Exception::ud() };
    Err(cpu.raise(exception))
}

/// Loads the memory operand.
fn read(cpu: &mut Cpu, insn: &Insn, descriptor: &Descriptor, scratch: &mut Scratch) -> Result<(), Fault> {
    let bytes = &mut scratch.0;
    if descriptor.traits.contains(Traits::UNCHECKED) {
        return cpu.without_alignment(|cpu| read_plain(cpu, insn, descriptor.size, bytes));
    }
    read_plain(cpu, insn, descriptor.size, bytes)
}

fn read_plain(cpu: &mut Cpu, insn: &Insn, size: u8, bytes: &mut [u8; 64]) -> Result<(), Fault> {
    match size {
        1 => bytes[..1].copy_from_slice(&cpu.load_operand::<[u8; 1]>(insn)?),
        2 => bytes[..2].copy_from_slice(&cpu.load_operand::<[u8; 2]>(insn)?),
        4 => bytes[..4].copy_from_slice(&cpu.load_operand::<[u8; 4]>(insn)?),
        8 => bytes[..8].copy_from_slice(&cpu.load_operand::<[u8; 8]>(insn)?),
        16 => bytes[..16].copy_from_slice(&cpu.load_operand::<[u8; 16]>(insn)?),
        _ => bytes[..32].copy_from_slice(&cpu.load_operand::<[u8; 32]>(insn)?),
    }
    Ok(())
}

/// Stores the memory operand.
fn write(cpu: &mut Cpu, insn: &Insn, descriptor: &Descriptor, scratch: &Scratch) -> Result<(), Fault> {
    if descriptor.traits.contains(Traits::UNCHECKED) {
        return cpu.without_alignment(|cpu| write_plain(cpu, insn, descriptor.size, &scratch.0));
    }
    write_plain(cpu, insn, descriptor.size, &scratch.0)
}

fn write_plain(cpu: &mut Cpu, insn: &Insn, size: u8, bytes: &[u8; 64]) -> Result<(), Fault> {
    match size {
        1 => cpu.store_operand::<[u8; 1]>(insn, super::state::field(bytes, 0)),
        2 => cpu.store_operand::<[u8; 2]>(insn, super::state::field(bytes, 0)),
        4 => cpu.store_operand::<[u8; 4]>(insn, super::state::field(bytes, 0)),
        8 => cpu.store_operand::<[u8; 8]>(insn, super::state::field(bytes, 0)),
        16 => cpu.store_operand::<[u8; 16]>(insn, super::state::field(bytes, 0)),
        _ => cpu.store_operand::<[u8; 32]>(insn, super::state::field(bytes, 0)),
    }
}
