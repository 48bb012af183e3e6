//! Handlers of data movement, stack, flags, port I/O and hints.

use super::control::condition_number;
use super::{size_of_operand, sized};
use crate::insn::{Handler, Insn};
use crate::interp::bits::{movbe_load, movbe_store};
use crate::interp::data::{
    carry_flag, cmov, direction_flag, enter, extend_m, extend_r, fence, lahf, lea, leave, mov_a_to_absolute,
    mov_absolute_to_a, mov_mi, mov_mr, mov_ri, mov_rm, mov_rr, nop, pause, pop_m, pop_r, pop64_r, popa, popf,
    push_i, push_m, push_r, push64_r, pusha, pushf, sahf, setcc, sign_extend_a, sign_fill_d, touch, xlat,
};
use crate::interp::io::{port_in, port_out, random};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

pub(super) fn select(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    moves(i, insn).or_else(|| conditional(i)).or_else(|| stack(i, insn)).or_else(|| flags_and_io(i))
}

fn is_general(i: &Instruction, operand: u32) -> bool {
    let is_register = operand < i.op_count() && i.op_kind(operand) == OpKind::Register;
    !is_register || i.op_register(operand).is_gpr()
}

/// Whether the memory operand is a bare 64-bit address (opcodes A0 to A3), which the decoder leaves in `imm`.
pub(super) fn is_absolute(i: &Instruction) -> bool {
    use Code as C;
    let load =
        matches!(i.code(), C::Mov_AL_moffs8 | C::Mov_AX_moffs16 | C::Mov_EAX_moffs32 | C::Mov_RAX_moffs64);
    let store =
        matches!(i.code(), C::Mov_moffs8_AL | C::Mov_moffs16_AX | C::Mov_moffs32_EAX | C::Mov_moffs64_RAX);
    (load || store) && i.memory_displ_size() == 8
}

fn moves(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    use Mnemonic as M;
    let size = || size_of_operand(i, 0);
    Some(match i.mnemonic() {
        M::Mov if is_general(i, 0) && is_general(i, 1) => match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register) => sized!(size(), mov_rr),
            (OpKind::Register, OpKind::Memory) if is_absolute(i) => sized!(size(), mov_absolute_to_a),
            (OpKind::Memory, OpKind::Register) if is_absolute(i) => sized!(size(), mov_a_to_absolute),
            (OpKind::Register, OpKind::Memory) => sized!(size(), mov_rm),
            (OpKind::Register, _) => sized!(size(), mov_ri),
            (_, OpKind::Register) => sized!(size(), mov_mr),
            _ => sized!(size(), mov_mi),
        },
        M::Movzx => extension::<false>(i),
        M::Movsx | M::Movsxd => extension::<true>(i),
        M::Lea => sized!(size(), lea),
        M::Movbe if i.op0_kind() == OpKind::Register => sized!(size(), movbe_load),
        M::Movbe => sized!(size(), movbe_store),
        M::Movnti | M::Movdiri => sized!(size(), mov_mr),
        M::Cbw => sign_extend_a::<u8, u16>,
        M::Cwde => sign_extend_a::<u16, u32>,
        M::Cdqe => sign_extend_a::<u32, u64>,
        M::Cwd => sign_fill_d::<u16>,
        M::Cdq => sign_fill_d::<u32>,
        M::Cqo => sign_fill_d::<u64>,
        M::Xlatb => {
            insn.set_address_size(i.memory_base().size() as u8);
            xlat
        }
        _ => return None,
    })
}

/// `handler::<SIGNED, F, T>` for the width of the destination.
macro_rules! extended {
    ($to:expr, $handler:ident, $from:ty) => {
        match $to {
            2 => $handler::<SIGNED, $from, u16> as Handler,
            4 => $handler::<SIGNED, $from, u32>,
            _ => $handler::<SIGNED, $from, u64>,
        }
    };
}

fn extension<const SIGNED: bool>(i: &Instruction) -> Handler {
    let (to, from) = (size_of_operand(i, 0), size_of_operand(i, 1));
    match (i.op1_kind() == OpKind::Register, from) {
        (true, 1) => extended!(to, extend_r, u8),
        (true, 2) => extended!(to, extend_r, u16),
        (true, _) => extended!(to, extend_r, u32),
        (false, 1) => extended!(to, extend_m, u8),
        (false, 2) => extended!(to, extend_m, u16),
        (false, _) => extended!(to, extend_m, u32),
    }
}

/// A handler for each of the sixteen conditions.
macro_rules! conditions {
    ($number:expr, $handler:ident $(, $width:ty)*) => {
        match $number {
            0 => $handler::<0 $(, $width)*> as Handler,
            1 => $handler::<1 $(, $width)*>,
            2 => $handler::<2 $(, $width)*>,
            3 => $handler::<3 $(, $width)*>,
            4 => $handler::<4 $(, $width)*>,
            5 => $handler::<5 $(, $width)*>,
            6 => $handler::<6 $(, $width)*>,
            7 => $handler::<7 $(, $width)*>,
            8 => $handler::<8 $(, $width)*>,
            9 => $handler::<9 $(, $width)*>,
            10 => $handler::<10 $(, $width)*>,
            11 => $handler::<11 $(, $width)*>,
            12 => $handler::<12 $(, $width)*>,
            13 => $handler::<13 $(, $width)*>,
            14 => $handler::<14 $(, $width)*>,
            _ => $handler::<15 $(, $width)*>,
        }
    };
}

fn conditional(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let number = condition_number(i.condition_code());
    Some(match i.mnemonic() {
        M::Seto
        | M::Setno
        | M::Setb
        | M::Setae
        | M::Sete
        | M::Setne
        | M::Setbe
        | M::Seta
        | M::Sets
        | M::Setns
        | M::Setp
        | M::Setnp
        | M::Setl
        | M::Setge
        | M::Setle
        | M::Setg => conditions!(number, setcc),
        M::Cmovo
        | M::Cmovno
        | M::Cmovb
        | M::Cmovae
        | M::Cmove
        | M::Cmovne
        | M::Cmovbe
        | M::Cmova
        | M::Cmovs
        | M::Cmovns
        | M::Cmovp
        | M::Cmovnp
        | M::Cmovl
        | M::Cmovge
        | M::Cmovle
        | M::Cmovg => match size_of_operand(i, 0) {
            2 => conditions!(number, cmov, u16),
            4 => conditions!(number, cmov, u32),
            _ => conditions!(number, cmov, u64),
        },
        _ => return None,
    })
}

fn stack(i: &Instruction, insn: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    let simple = insn.code_size() == 64 && insn.operand_size != 2;
    if !is_general(i, 0) {
        return None;
    }
    Some(match i.mnemonic() {
        M::Push => match i.op0_kind() {
            OpKind::Register if simple => push64_r,
            OpKind::Register => push_r,
            OpKind::Memory => push_m,
            _ => push_i,
        },
        M::Pop => match i.op0_kind() {
            OpKind::Register if simple => pop64_r,
            OpKind::Register => pop_r,
            _ => pop_m,
        },
        M::Pusha | M::Pushad => pusha,
        M::Popa | M::Popad => popa,
        M::Enter => enter,
        M::Leave => leave,
        M::Pushf | M::Pushfd | M::Pushfq => pushf,
        M::Popf | M::Popfd | M::Popfq => popf,
        _ => return None,
    })
}

fn flags_and_io(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let by_dx = |operand| i.op_kind(operand) == OpKind::Register;
    let width = |operand| i.op_register(operand).size();
    Some(match i.mnemonic() {
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Clc => carry_flag::<0>,
        M::Stc => carry_flag::<1>,
        M::Cmc => carry_flag::<2>,
        M::Cld => direction_flag::<false>,
        M::Std => direction_flag::<true>,
        M::In if by_dx(1) => port_handler::<true, true>(width(0)),
        M::In => port_handler::<false, true>(width(0)),
        M::Out if by_dx(0) => port_handler::<true, false>(width(1)),
        M::Out => port_handler::<false, false>(width(1)),
        M::Rdrand | M::Rdseed => sized!(size_of_operand(i, 0), random),
        M::Pause => pause,
        M::Mfence | M::Lfence | M::Sfence => fence,
        M::Clflush | M::Clflushopt | M::Clwb => touch,
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Rdsspd
        | M::Rdsspq
        | M::Cldemote
        | M::Reservednop
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchit0
        | M::Prefetchit1 => nop,
        _ => return None,
    })
}

fn port_handler<const DX: bool, const READ: bool>(size: usize) -> Handler {
    match (READ, size) {
        (true, 1) => port_in::<DX, u8>,
        (true, 2) => port_in::<DX, u16>,
        (true, _) => port_in::<DX, u32>,
        (false, 1) => port_out::<DX, u8>,
        (false, 2) => port_out::<DX, u16>,
        (false, _) => port_out::<DX, u32>,
    }
}
