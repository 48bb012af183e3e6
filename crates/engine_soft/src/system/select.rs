//! Handlers of this module's instructions, by mnemonic.

use super::{control, far, far_return, fast_calls, machine, monitor, segments, tables};
use crate::cpu::seg;
use crate::insn::{Handler, Insn};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

/// The handler of a system instruction; `None` for others.
pub fn select(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    moves(i)
        .or_else(|| transfers(i))
        .or_else(|| table_instruction(i))
        .or_else(|| rest(i))
        .or_else(|| with_segment(i, insn))
        .or_else(|| with_line(i, insn))
}

fn moves(i: &Instruction) -> Option<Handler> {
    let is = |operand: u32, test: fn(iced_x86::Register) -> bool| {
        operand < i.op_count() && i.op_kind(operand) == OpKind::Register && test(i.op_register(operand))
    };
    Some(match i.mnemonic() {
        M::Mov if is(0, |r| r.is_cr()) => control::mov_to_cr,
        M::Mov if is(1, |r| r.is_cr()) => control::mov_from_cr,
        M::Mov if is(0, |r| r.is_dr()) => control::mov_to_dr,
        M::Mov if is(1, |r| r.is_dr()) => control::mov_from_dr,
        M::Mov if is(0, |r| r.is_segment_register()) => segments::mov_to,
        M::Mov if is(1, |r| r.is_segment_register()) => segments::mov_from,
        M::Push if is(0, |r| r.is_segment_register()) => segments::push,
        M::Pop if is(0, |r| r.is_segment_register()) => segments::pop,
        _ => return None,
    })
}

fn transfers(i: &Instruction) -> Option<Handler> {
    let direct = matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    Some(match i.mnemonic() {
        M::Jmp if direct => far::jmp::<false>,
        M::Jmp => far::jmp::<true>,
        M::Call if direct => far::call::<false>,
        M::Call => far::call::<true>,
        M::Retf => far_return::ret_far,
        M::Iret | M::Iretd | M::Iretq => far_return::iret,
        M::Int => machine::int,
        M::Int3 => machine::int3,
        M::Int1 => machine::int1,
        M::Into => machine::into,
        M::Syscall => fast_calls::syscall,
        M::Sysret | M::Sysretq => fast_calls::sysret,
        M::Sysenter => fast_calls::sysenter,
        M::Sysexit | M::Sysexitq => fast_calls::sysexit,
        _ => return None,
    })
}

fn table_instruction(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Lgdt => tables::load_table::<true>,
        M::Lidt => tables::load_table::<false>,
        M::Sgdt => tables::store_table::<true>,
        M::Sidt => tables::store_table::<false>,
        M::Lldt => tables::lldt,
        M::Ltr => tables::ltr,
        M::Sldt => tables::store_selector::<{ seg::LDTR }>,
        M::Str => tables::store_selector::<{ seg::TR }>,
        M::Smsw => tables::smsw,
        M::Lmsw => control::lmsw,
        M::Clts => control::clts,
        M::Lar => tables::lar,
        M::Lsl => tables::lsl,
        M::Verr => tables::verify::<false>,
        M::Verw => tables::verify::<true>,
        M::Arpl => tables::arpl,
        _ => return None,
    })
}

fn rest(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Hlt => machine::hlt,
        M::Mwait => monitor::mwait,
        M::Cli => machine::cli,
        M::Sti => machine::sti,
        M::Clac => machine::access_flag::<false>,
        M::Stac => machine::access_flag::<true>,
        M::Cpuid => machine::cpuid,
        M::Rdtsc => machine::rdtsc,
        M::Rdtscp => machine::rdtscp,
        M::Rdpid => machine::rdpid,
        M::Rdpmc => machine::rdpmc,
        M::Rdmsr => machine::rdmsr,
        M::Wrmsr => machine::wrmsr,
        M::Swapgs => machine::swapgs,
        M::Invlpg => machine::invlpg,
        M::Invpcid => machine::invpcid,
        M::Invd | M::Wbinvd | M::Wbnoinvd => machine::cache,
        M::Xsetbv => control::xsetbv,
        M::Xgetbv => control::xgetbv,
        M::Serialize => machine::serialize,
        _ => return None,
    })
}

fn with_line(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    insn.set_address_size(match i.code() {
        Code::Monitorw => 2,
        Code::Monitord => 4,
        Code::Monitorq => 8,
        _ => return None,
    });
    let number = i.segment_prefix().number() as u8;
    let overridden = i.segment_prefix() != Register::None && (insn.code_size() != 64 || number >= seg::FS);
    insn.segment = if overridden { number } else { seg::DS };
    Some(monitor::monitor)
}

fn with_segment(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let (segment, handler): (u8, Handler) = match i.mnemonic() {
        M::Les => (seg::ES, segments::load_far_pointer),
        M::Lss => (seg::SS, segments::load_far_pointer),
        M::Lds => (seg::DS, segments::load_far_pointer),
        M::Lfs => (seg::FS, segments::load_far_pointer),
        M::Lgs => (seg::GS, segments::load_far_pointer),
        M::Rdfsbase => (seg::FS, machine::read_base),
        M::Rdgsbase => (seg::GS, machine::read_base),
        M::Wrfsbase => (seg::FS, machine::write_base),
        M::Wrgsbase => (seg::GS, machine::write_base),
        _ => return None,
    };
    insn.extra = segment;
    Some(handler)
}
