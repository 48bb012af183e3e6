//! Handlers of x87 instructions.

use super::environment;
use super::fast;
use super::image::{EXCEPTIONS, FSW_BUSY, FSW_ES, FpuState};
use super::stubs::{self, Form};
use crate::cpu::{Cpu, Fault, Flow, Stop, gpr, seg};
use crate::insn::{Handler, Insn};
use iced_x86::{Code, EncodingKind, Instruction, OpKind};
use x86::{Cr0, Exception, Vector};

/// Invalid operation, overflow and underflow: unmasked, they keep an instruction from storing.
const NOT_STORED: u16 = 1 << 0 | 1 << 3 | 1 << 4;

/// The handler of an x87 instruction. `insn.imm` holds the opcode byte and ModRM (for memory operands only its reg
/// field), `insn.src2` ModRM as it was encoded.
pub fn select(instruction: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let code = instruction.code();
    if code == Code::Wait {
        return Some(fwait);
    }
    let (opcode, modrm) = opcode(instruction)?;
    insn.imm = u64::from(opcode) << 8 | u64::from(modrm);
    let form = Form::new(opcode, modrm);
    insn.extra = instruction.memory_size().size().min(255) as u8;
    Some(match (opcode, modrm) {
        (0xdb, 0xe0 | 0xe1 | 0xe4) => nop_control,
        (0xdb, 0xe2) => fnclex,
        (0xdb, 0xe3) => fninit,
        (0xdf, 0xe0) => fnstsw_ax,
        _ if form.is_memory() => memory_form(opcode, form.reg()),
        (0xda | 0xdb, 0xc0..=0xdf) => register_form::<true>,
        (0xdb | 0xdf, 0xe8..=0xf7) => register_form::<true>,
        _ => register_form::<false>,
    })
}

fn memory_form(opcode: u8, reg: u8) -> Handler {
    match (opcode, reg) {
        (0xd9, 4) => environment::fldenv,
        (0xd9, 5) => fldcw,
        (0xd9, 6) => environment::fnstenv,
        (0xd9, 7) => fnstcw,
        (0xdd, 4) => environment::frstor,
        (0xdd, 6) => environment::fnsave,
        (0xdd, 7) => fnstsw,
        (0xd9 | 0xdd, 2 | 3) | (0xdb | 0xdf, 1..=3) | (0xdd, 1) | (0xdb, 7) | (0xdf, 6 | 7) => store,
        _ => load,
    }
}

/// Opcode byte and ModRM (its mod field is 3 or 0, rm only counts for registers).
fn opcode(instruction: &Instruction) -> Option<(u8, u8)> {
    let info = instruction.code().op_code();
    if info.encoding() != EncodingKind::Legacy {
        return None;
    }
    let value = info.op_code();
    let (opcode, modrm) = if info.op_code_len() == 2 { (value >> 8, value & 0xff) } else { (value, 0) };
    let opcode = u8::try_from(opcode).ok().filter(|opcode| (0xd8..=0xdf).contains(opcode))?;
    if info.table() != iced_x86::OpCodeTableKind::Normal {
        return None;
    }
    if info.op_code_len() == 2 {
        let register = instruction
            .op_kinds()
            .enumerate()
            .filter(|(_, kind)| *kind == OpKind::Register)
            .map(|(at, _)| instruction.op_register(at as u32))
            .filter(|register| register.is_st());
        // Of two stack operands one is ST0, implied; the other is in the opcode.
        let number = register.map(|register| register.number() as u8).max().unwrap_or(0);
        return Some((opcode, (modrm as u8).wrapping_add(number)));
    }
    let group = u8::try_from(info.group_index()).ok()?;
    Some((opcode, group << 3))
}

/// #NM when the operating system emulates or switches lazily.
#[inline(always)]
pub(super) fn available(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.cr0.intersects(Cr0::EM.union(Cr0::TS)) {
        return Err(cpu.raise(Exception::plain(Vector::DeviceNotAvailable)));
    }
    Ok(())
}

/// What a waiting instruction does first: report a pending unmasked exception. With CR0.NE clear the
/// processor would drive FERR# and go on if the board answers with IGNNE#; no board here wires FERR# to
/// IRQ 13, and IGNNE# counts as asserted.
#[inline(always)]
pub fn check_pending(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.fpu.error_pending() && cpu.cr0.contains(Cr0::NE) {
        return Err(cpu.raise(Exception::plain(Vector::X87)).into());
    }
    Ok(())
}

/// The checks of a waiting instruction.
#[inline(always)]
pub(super) fn waiting(cpu: &mut Cpu) -> Result<(), Stop> {
    available(cpu)?;
    check_pending(cpu)
}

fn form_of(insn: &Insn) -> Form {
    Form::new((insn.imm >> 8) as u8, insn.imm as u8)
}

/// The offset or, in the modes that have no selectors to save, the linear address of this instruction.
fn instruction_pointer(cpu: &Cpu) -> u64 {
    if cpu.is_protected() {
        cpu.rip()
    } else {
        cpu.rip().wrapping_add(cpu.segments[usize::from(seg::CS)].base)
    }
}

/// Runs a stub, and keeps the guest's pointers instead of the host's.
fn run(cpu: &mut Cpu, insn: &Insn, scratch: &mut [u8; 16], data: Option<u64>) -> u64 {
    let form = form_of(insn);
    let (fop, fdp) = (cpu.fpu.fop(), cpu.fpu.fdp());
    let fip = instruction_pointer(cpu);
    let flags = cpu.flags.bits();
    let flags = if cpu.fpu.error_pending() {
        ignoring_errors(form, &mut cpu.fpu, scratch, flags)
    } else if let Some(flags) = fast::execute(form, &mut cpu.fpu, scratch, flags) {
        flags
    } else {
        stubs::execute(form, &mut cpu.fpu, scratch, flags)
    };
    cpu.fpu.set_fip(fip);
    if cpu.fpu.error_pending() {
        let modrm = if form.is_memory() { insn.src2 } else { form.modrm() };
        cpu.fpu.set_fop(u16::from(form.opcode()) << 8 | u16::from(modrm));
        cpu.fpu.set_fdp(data.unwrap_or(fdp));
    } else {
        cpu.fpu.set_fop(fop);
        cpu.fpu.set_fdp(fdp);
    }
    flags
}

/// Runs with IGNNE#: a pending exception does not stop the host either, so everything is masked meanwhile.
#[cold]
fn ignoring_errors(form: Form, image: &mut FpuState, scratch: &mut [u8; 16], flags: u64) -> u64 {
    let fcw = image.fcw();
    image.set_fcw(fcw | EXCEPTIONS);
    image.set_fsw(image.fsw() & !(FSW_ES | FSW_BUSY));
    let flags = stubs::execute(form, image, scratch, flags);
    image.set_fcw(fcw);
    image.update_error_summary();
    flags
}

/// Register operands. FCMOVcc reads the flags, FCOMI and friends write them.
fn register_form<const FLAGS: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    waiting(cpu)?;
    let flags = run(cpu, insn, &mut [0; 16], None);
    if FLAGS {
        cpu.flags.set_bits(flags);
    }
    Ok(())
}

/// Reads memory.
fn load(cpu: &mut Cpu, insn: &Insn) -> Flow {
    waiting(cpu)?;
    let mut scratch = [0; 16];
    match insn.extra {
        2 => scratch[..2].copy_from_slice(&cpu.load_operand::<[u8; 2]>(insn)?),
        4 => scratch[..4].copy_from_slice(&cpu.load_operand::<[u8; 4]>(insn)?),
        8 => scratch[..8].copy_from_slice(&cpu.load_operand::<[u8; 8]>(insn)?),
        _ => {
            // Eight bytes and then two, as silicon does.
            let address = cpu.address(insn);
            scratch[..8].copy_from_slice(&cpu.load::<[u8; 8]>(insn.segment, address)?);
            scratch[8..10].copy_from_slice(&cpu.load::<[u8; 2]>(insn.segment, cpu.part(insn, address, 8))?);
        }
    }
    let address = cpu.address(insn);
    run(cpu, insn, &mut scratch, Some(address));
    Ok(())
}

/// Writes memory. The state is put back if the memory cannot be written.
fn store(cpu: &mut Cpu, insn: &Insn) -> Flow {
    waiting(cpu)?;
    let before = cpu.fpu.clone();
    let pending = before.error_pending();
    let address = cpu.address(insn);
    let mut scratch = [0; 16];
    run(cpu, insn, &mut scratch, Some(address));
    let unmasked = cpu.fpu.fsw() & !cpu.fpu.fcw() & EXCEPTIONS;
    let result = if unmasked & NOT_STORED != 0 && !pending {
        // The exception comes first: silicon does not even look at the memory.
        Ok(())
    } else {
        match insn.extra {
            2 => cpu.store_operand(insn, first::<2>(&scratch)),
            4 => cpu.store_operand(insn, first::<4>(&scratch)),
            8 => cpu.store_operand(insn, first::<8>(&scratch)),
            _ => store_ten(cpu, insn, address, &scratch),
        }
    };
    if let Err(fault) = result {
        cpu.fpu = before;
        return Err(fault.into());
    }
    Ok(())
}

/// Eight bytes and then two, as silicon does: the first part stays if the second one faults.
fn store_ten(cpu: &mut Cpu, insn: &Insn, address: u64, scratch: &[u8; 16]) -> Result<(), Fault> {
    cpu.store(insn.segment, address, first::<8>(scratch))?;
    cpu.store(insn.segment, cpu.part(insn, address, 8), [scratch[8], scratch[9]])
}

fn first<const N: usize>(scratch: &[u8; 16]) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&scratch[..N]);
    value
}

fn fwait(cpu: &mut Cpu, _: &Insn) -> Flow {
    if cpu.cr0.contains(Cr0::MP | Cr0::TS) {
        return Err(cpu.raise(Exception::plain(Vector::DeviceNotAvailable)).into());
    }
    check_pending(cpu)
}

/// FNENI, FNDISI and FNSETPM of older coprocessors.
fn nop_control(cpu: &mut Cpu, _: &Insn) -> Flow {
    available(cpu)?;
    Ok(())
}

fn fninit(cpu: &mut Cpu, _: &Insn) -> Flow {
    available(cpu)?;
    cpu.fpu.init();
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Insn) -> Flow {
    /// Exceptions, stack fault, ES and B.
    const CLEARED: u16 = 0x80ff;
    available(cpu)?;
    cpu.fpu.set_fsw(cpu.fpu.fsw() & !CLEARED);
    Ok(())
}

fn fldcw(cpu: &mut Cpu, insn: &Insn) -> Flow {
    waiting(cpu)?;
    let value = cpu.load_operand::<u16>(insn)?;
    cpu.fpu.set_fcw(value);
    stubs::normalise(&mut cpu.fpu);
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, insn: &Insn) -> Flow {
    available(cpu)?;
    let value = cpu.fpu.fcw();
    cpu.store_operand::<u16>(insn, value)?;
    Ok(())
}

fn fnstsw(cpu: &mut Cpu, insn: &Insn) -> Flow {
    available(cpu)?;
    let value = cpu.fpu.fsw();
    cpu.store_operand::<u16>(insn, value)?;
    Ok(())
}

fn fnstsw_ax(cpu: &mut Cpu, _: &Insn) -> Flow {
    available(cpu)?;
    let value = cpu.fpu.fsw();
    cpu.set_reg::<u16>(gpr::RAX, value);
    Ok(())
}
