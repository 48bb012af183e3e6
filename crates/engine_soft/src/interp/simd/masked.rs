//! Moves of which a mask selects the elements: MASKMOVQ, MASKMOVDQU, VMASKMOVPx, VPMASKMOVx and the gathers.
//! An element that is masked out is not accessed and cannot fault.

use super::checks;
use crate::cpu::{Cpu, Fault, Flow, Stop, gpr};
use crate::insn::{Handler, Insn};
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::RFlags;

/// Gather parameters in `Insn::imm`.
mod gather {
    /// Elements are eight bytes.
    pub const WIDE_ELEMENT: u64 = 1 << 0;
    /// Indexes are eight bytes.
    pub const WIDE_INDEX: u64 = 1 << 1;
    /// VEX.256.
    pub const LONG: u64 = 1 << 2;
}

/// Bytes that a byte-masked store takes at a time.
const HALF: usize = 8;

/// The handler of a masked move.
pub(super) fn select(instruction: &Instruction, insn: &mut Insn) -> Option<Handler> {
    use Mnemonic as M;
    let first_is_memory = instruction.op_count() > 0 && instruction.op_kind(0) == OpKind::Memory;
    Some(match instruction.mnemonic() {
        M::Maskmovq => mask_bytes::<Mmx>(instruction, insn),
        M::Maskmovdqu => mask_bytes::<Legacy>(instruction, insn),
        M::Vmaskmovdqu => mask_bytes::<Vex>(instruction, insn),
        M::Vmaskmovps | M::Vpmaskmovd => elements::<4>(instruction, insn, first_is_memory),
        M::Vmaskmovpd | M::Vpmaskmovq => elements::<8>(instruction, insn, first_is_memory),
        M::Vgatherdps | M::Vpgatherdd => gathers(instruction, insn, 0)?,
        M::Vgatherdpd | M::Vpgatherdq => gathers(instruction, insn, gather::WIDE_ELEMENT)?,
        M::Vgatherqps | M::Vpgatherqd => gathers(instruction, insn, gather::WIDE_INDEX)?,
        M::Vgatherqpd | M::Vpgatherqq => {
            gathers(instruction, insn, gather::WIDE_ELEMENT | gather::WIDE_INDEX)?
        }
        _ => return None,
    })
}

/// Which of the three byte-masked stores.
trait ByteMove {
    const HANDLER: Handler;
}
struct Mmx;
struct Legacy;
struct Vex;
impl ByteMove for Mmx {
    const HANDLER: Handler = maskmovq;
}
impl ByteMove for Legacy {
    const HANDLER: Handler = maskmovdqu::<false>;
}
impl ByteMove for Vex {
    const HANDLER: Handler = maskmovdqu::<true>;
}

fn mask_bytes<M: ByteMove>(instruction: &Instruction, insn: &mut Insn) -> Handler {
    insn.dst = instruction.op_register(1).number() as u8;
    insn.src = instruction.op_register(2).number() as u8;
    insn.segment = instruction.memory_segment().number() as u8;
    insn.set_address_size(match instruction.op_kind(0) {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    });
    M::HANDLER
}

/// Stores the bytes of `data` whose mask byte has its top bit set, at DS:rDI. Silicon takes eight bytes at a time, the
/// upper ones first, and faults whatever the mask selects (the SDM leaves this open).
fn store_bytes(cpu: &mut Cpu, insn: &Insn, data: &[u8], mask: &[u8]) -> Result<(), Fault> {
    let base = cpu.reg::<u64>(gpr::RDI);
    // Each half wraps at the address size by itself.
    let half = |at: usize| base.wrapping_add(at as u64) & insn.address_mask();
    for at in (0..data.len()).step_by(HALF).rev() {
        cpu.probe(insn.segment, half(at), HALF as u32, true)?;
    }
    for (at, (&byte, _)) in data.iter().zip(mask).enumerate().filter(|(_, (_, m))| **m & 0x80 != 0) {
        let offset = half(at - at % HALF).wrapping_add((at % HALF) as u64);
        cpu.store::<u8>(insn.segment, offset, byte)?;
    }
    Ok(())
}

fn maskmovq(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::mmx(cpu)?;
    // Silicon enters MMX state before it looks at the memory.
    cpu.fpu.enter_mmx();
    let (data, mask) = (cpu.fpu.st(usize::from(insn.dst)), cpu.fpu.st(usize::from(insn.src)));
    store_bytes(cpu, insn, &data[..8], &mask[..8])?;
    Ok(())
}

fn maskmovdqu<const VEX: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, VEX)?;
    let data = cpu.vector.ymm[usize::from(insn.dst & 15)];
    let mask = cpu.vector.ymm[usize::from(insn.src & 15)];
    store_bytes(cpu, insn, &data[..16], &mask[..16])?;
    Ok(())
}

/// Fills in `dst` (data), `src` (mask) and `extra` (bytes of the vector).
fn elements<const SIZE: usize>(instruction: &Instruction, insn: &mut Insn, store: bool) -> Handler {
    let (data, mask) = if store { (2, 1) } else { (0, 1) };
    insn.dst = instruction.op_register(data).number() as u8;
    insn.src = instruction.op_register(mask).number() as u8;
    insn.extra = if instruction.op_register(data).is_ymm() { 32 } else { 16 };
    if store { store_elements::<SIZE> } else { load_elements::<SIZE> }
}

/// Offset of an element. The operand is one piece: it does not wrap at the address size, only, outside of 64-bit mode,
/// at 4 GiB.
fn element(cpu: &Cpu, base: u64, at: usize) -> u64 {
    let offset = base.wrapping_add(at as u64);
    if cpu.long64 { offset } else { offset & 0xffff_ffff }
}

/// Offsets, from the start of the vector, of elements whose mask is set.
fn selected<const SIZE: usize>(mask: &[u8; 32], length: u8) -> impl Iterator<Item = usize> + use<'_, SIZE> {
    (0..usize::from(length.min(32))).step_by(SIZE).filter(|at| mask[at + SIZE - 1] & 0x80 != 0)
}

/// First and last selected byte, from the start of the vector. A span that is not canonical, or not within its segment's
/// limits, at both ends faults as a whole, before any of its pages.
fn span<const SIZE: usize>(
    cpu: &mut Cpu,
    insn: &Insn,
    base: u64,
    mask: &[u8; 32],
    write: bool,
) -> Result<Option<[usize; 2]>, Fault> {
    let mut elements = selected::<SIZE>(mask, insn.extra);
    let Some(first) = elements.next() else { return Ok(None) };
    let ends = [first, elements.last().unwrap_or(first) + SIZE - 1];
    for at in ends {
        cpu.linear_of(insn.segment, element(cpu, base, at), 1, write)?;
    }
    Ok(Some(ends))
}

fn load_elements<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, true)?;
    let mask = cpu.vector.ymm[usize::from(insn.src & 15)];
    let base = cpu.address(insn);
    span::<SIZE>(cpu, insn, base, &mask, false)?;
    let mut value = [0; 32];
    for at in selected::<SIZE>(&mask, insn.extra) {
        let offset = element(cpu, base, at);
        let element = cpu.without_alignment(|cpu| cpu.load::<[u8; SIZE]>(insn.segment, offset))?;
        value[at..at + SIZE].copy_from_slice(&element);
    }
    cpu.vector.ymm[usize::from(insn.dst & 15)] = value;
    Ok(())
}

fn store_elements<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, true)?;
    let mask = cpu.vector.ymm[usize::from(insn.src & 15)];
    let data = cpu.vector.ymm[usize::from(insn.dst & 15)];
    let base = cpu.address(insn);
    probe_selected::<SIZE>(cpu, insn, base, &mask)?;
    for at in selected::<SIZE>(&mask, insn.extra) {
        let mut element = [0; SIZE];
        element.copy_from_slice(&data[at..at + SIZE]);
        let offset = self::element(cpu, base, at);
        cpu.without_alignment(|cpu| cpu.store(insn.segment, offset, element))?;
    }
    Ok(())
}

/// Faults as silicon's masked store does: it takes the bytes from the first selected element to the last one, and
/// names the last of them when only the second page faults.
fn probe_selected<const SIZE: usize>(
    cpu: &mut Cpu,
    insn: &Insn,
    base: u64,
    mask: &[u8; 32],
) -> Result<(), Fault> {
    for at in span::<SIZE>(cpu, insn, base, mask, true)?.into_iter().flatten() {
        cpu.probe(insn.segment, element(cpu, base, at), 1, true)?;
    }
    Ok(())
}

/// Fills in `dst`, `src` (mask), `extra` (index vector) and the parameters. The memory operand keeps only
/// its base and displacement. Equal registers are #UD (SDM 2C, VGATHER), which the decoder has found.
fn gathers(instruction: &Instruction, insn: &mut Insn, parameters: u64) -> Option<Handler> {
    if instruction.op_count() != 3 || instruction.op_kind(0) != OpKind::Register {
        return None;
    }
    insn.dst = instruction.op_register(0).number() as u8;
    insn.src = instruction.op_register(2).number() as u8;
    insn.extra = instruction.memory_index().number() as u8;
    insn.index = gpr::ZERO;
    insn.set_scale(instruction.memory_index_scale().trailing_zeros() as u8);
    let long = instruction.op_register(0).is_ymm() || instruction.memory_index().is_ymm();
    insn.imm = parameters | if long { gather::LONG } else { 0 };
    Some(if parameters & gather::WIDE_ELEMENT != 0 { gather::<8> } else { gather::<4> })
}

/// One element after the other; a fault leaves those before it in place with their masks cleared, so that
/// the instruction goes on where it stopped. A trap comes before that fault if there is one, as between the iterations
/// of REP (SDM 2C, VGATHER): the single step's, after at least one element. Before the first access silicon
/// spreads each mask's sign over its element, in the whole register as VEX.L has it.
fn gather<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, true)?;
    let base = cpu.address(insn);
    let index_size = if insn.imm & gather::WIDE_INDEX != 0 { 8 } else { 4 };
    let length = if insn.imm & gather::LONG != 0 { 32 } else { 16 };
    let count = length / index_size.max(SIZE);
    let (dst, mask) = (usize::from(insn.dst & 15), usize::from(insn.src & 15));
    let indexes = cpu.vector.ymm[usize::from(insn.extra & 15)];
    for element in cpu.vector.ymm[mask][..length].chunks_exact_mut(SIZE) {
        let sign = (element[SIZE - 1] as i8 >> 7) as u8;
        element.fill(sign);
    }
    cpu.vector.ymm[mask][length..].fill(0);
    let mut loaded = false;
    for element in 0..count {
        let at = element * SIZE;
        if cpu.vector.ymm[mask][at + SIZE - 1] & 0x80 != 0 {
            let from = element * index_size;
            let index = if index_size == 8 {
                u64::from_le_bytes(super::state::field(&indexes, from))
            } else {
                i32::from_le_bytes(super::state::field(&indexes, from)) as i64 as u64
            };
            let offset = base.wrapping_add(index << insn.scale()) & insn.address_mask();
            let value = match cpu.without_alignment(|cpu| cpu.load::<[u8; SIZE]>(insn.segment, offset)) {
                Ok(value) => value,
                Err(_) if loaded && cpu.has_flag(RFlags::TF) => return Err(Stop::Again),
                Err(fault) => return Err(fault.into()),
            };
            loaded = true;
            cpu.vector.ymm[dst][at..at + SIZE].copy_from_slice(&value);
            cpu.vector.ymm[dst][length..].fill(0);
        }
        cpu.vector.ymm[mask][at..at + SIZE].fill(0);
    }
    cpu.vector.ymm[dst][count * SIZE..].fill(0);
    cpu.vector.ymm[mask].fill(0);
    Ok(())
}
