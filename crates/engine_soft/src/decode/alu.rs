//! Handlers of integer arithmetic, logic, shifts and bit operations.

use super::{size_of_operand, sized};
use crate::insn::{Handler, Insn, LOCK};
use crate::interp::alu::{
    Adc, Add, And, Cmp, Dec, Inc, Neg, Not, Or, Sbb, Sub, Test, Xor, binary_lock_mi, binary_lock_mr,
    binary_mi, binary_mr, binary_ri, binary_rm, binary_rr, carry_chain, cmpxchg, unary_m, unary_r, xadd,
    xchg,
};
use crate::interp::bits::{
    andn, bextr, bit_count, bit_m, bit_op, bit_r, bit_scan, bswap, bzhi, cmpxchg8b, cmpxchg16b, crc32,
    deposit, lowest_bit, popcnt, rorx, shift_x,
};
use crate::interp::legacy::{aad, aam, arpl, ascii_adjust, decimal_adjust, salc};
use crate::interp::muldiv::{div, idiv, imul1, imul2, imul3, mul, mulx};
use crate::interp::shift::{
    Rcl, Rcr, Rol, Ror, Sar, Shl, Shr, shift_double, shift_m, shift_m_cl, shift_r, shift_r_cl,
};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Where the operands of a two-operand instruction are.
#[derive(Clone, Copy)]
enum Form {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
}

fn form(i: &Instruction) -> Form {
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => Form::RegReg,
        (OpKind::Register, OpKind::Memory) => Form::RegMem,
        (OpKind::Register, _) => Form::RegImm,
        (_, OpKind::Register) => Form::MemReg,
        _ => Form::MemImm,
    }
}

macro_rules! binary {
    ($i:expr, $insn:expr, $op:ty) => {{
        let size = size_of_operand($i, 0);
        let lock = $insn.flags & LOCK != 0;
        match form($i) {
            Form::RegReg => sized!(size, binary_rr, $op),
            Form::RegImm => sized!(size, binary_ri, $op),
            Form::RegMem => sized!(size, binary_rm, $op),
            Form::MemReg if lock => sized!(size, binary_lock_mr, $op),
            Form::MemReg => sized!(size, binary_mr, $op),
            Form::MemImm if lock => sized!(size, binary_lock_mi, $op),
            Form::MemImm => sized!(size, binary_mi, $op),
        }
    }};
}

macro_rules! unary {
    ($i:expr, $op:ty) => {{
        let size = size_of_operand($i, 0);
        if $i.op0_kind() == OpKind::Register {
            sized!(size, unary_r, $op)
        } else {
            sized!(size, unary_m, $op)
        }
    }};
}

macro_rules! shift {
    ($i:expr, $op:ty) => {{
        let size = size_of_operand($i, 0);
        let by_cl = $i.op1_kind() == OpKind::Register && $i.op1_register() == Register::CL;
        match ($i.op0_kind() == OpKind::Register, by_cl) {
            (true, false) => sized!(size, shift_r, $op),
            (true, true) => sized!(size, shift_r_cl, $op),
            (false, false) => sized!(size, shift_m, $op),
            (false, true) => sized!(size, shift_m_cl, $op),
        }
    }};
}

/// As `sized!`, with const parameters first and without the byte form.
macro_rules! with_const {
    ($size:expr, $handler:ident, $($constant:expr),+) => {
        match $size {
            2 => $handler::<$({ $constant },)+ u16> as Handler,
            4 => $handler::<$({ $constant },)+ u32>,
            _ => $handler::<$({ $constant },)+ u64>,
        }
    };
}

macro_rules! bit_test {
    ($i:expr, $op:expr) => {{
        let size = size_of_operand($i, 0);
        let immediate = $i.op1_kind() != OpKind::Register;
        match ($i.op0_kind() == OpKind::Register, immediate) {
            (true, false) => with_const!(size, bit_r, $op, false),
            (true, true) => with_const!(size, bit_r, $op, true),
            (false, false) => with_const!(size, bit_m, $op, false),
            (false, true) => with_const!(size, bit_m, $op, true),
        }
    }};
}

pub(super) fn select(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    arithmetic(i, insn).or_else(|| shifts(i)).or_else(|| bits(i)).or_else(|| legacy(i))
}

fn arithmetic(i: &Instruction, insn: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    let size = || size_of_operand(i, 0);
    Some(match i.mnemonic() {
        M::Add => binary!(i, insn, Add),
        M::Adc => binary!(i, insn, Adc),
        M::Sub => binary!(i, insn, Sub),
        M::Sbb => binary!(i, insn, Sbb),
        M::And => binary!(i, insn, And),
        M::Or => binary!(i, insn, Or),
        M::Xor => binary!(i, insn, Xor),
        M::Cmp => binary!(i, insn, Cmp),
        M::Test => binary!(i, insn, Test),
        M::Inc => unary!(i, Inc),
        M::Dec => unary!(i, Dec),
        M::Neg => unary!(i, Neg),
        M::Not => unary!(i, Not),
        M::Xadd => sized!(size(), xadd),
        M::Xchg => sized!(size(), xchg),
        M::Cmpxchg => sized!(size(), cmpxchg),
        M::Cmpxchg8b => cmpxchg8b,
        M::Cmpxchg16b => cmpxchg16b,
        M::Mul => sized!(size(), mul),
        M::Imul => match i.op_count() {
            1 => sized!(size(), imul1),
            2 => sized!(size(), imul2),
            _ => sized!(size(), imul3),
        },
        M::Div => sized!(size(), div),
        M::Idiv => sized!(size(), idiv),
        M::Mulx => sized!(size(), mulx),
        M::Adcx => with_const!(size(), carry_chain, false),
        M::Adox => with_const!(size(), carry_chain, true),
        _ => return None,
    })
}

fn shifts(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let size = || size_of_operand(i, 0);
    let by_cl = i.op_count() == 3 && i.op2_kind() == OpKind::Register;
    Some(match i.mnemonic() {
        M::Shl | M::Sal => shift!(i, Shl),
        M::Shr => shift!(i, Shr),
        M::Sar => shift!(i, Sar),
        M::Rol => shift!(i, Rol),
        M::Ror => shift!(i, Ror),
        M::Rcl => shift!(i, Rcl),
        M::Rcr => shift!(i, Rcr),
        M::Shld if by_cl => with_const!(size(), shift_double, false, true),
        M::Shld => with_const!(size(), shift_double, false, false),
        M::Shrd if by_cl => with_const!(size(), shift_double, true, true),
        M::Shrd => with_const!(size(), shift_double, true, false),
        M::Shlx => with_const!(size(), shift_x, 0),
        M::Shrx => with_const!(size(), shift_x, 1),
        M::Sarx => with_const!(size(), shift_x, 2),
        M::Rorx => sized!(size(), rorx),
        _ => return None,
    })
}

fn bits(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let size = || size_of_operand(i, 0);
    Some(match i.mnemonic() {
        M::Bt => bit_test!(i, bit_op::BT),
        M::Bts => bit_test!(i, bit_op::BTS),
        M::Btr => bit_test!(i, bit_op::BTR),
        M::Btc => bit_test!(i, bit_op::BTC),
        M::Bsf => with_const!(size(), bit_scan, false),
        M::Bsr => with_const!(size(), bit_scan, true),
        M::Tzcnt => with_const!(size(), bit_count, false),
        M::Lzcnt => with_const!(size(), bit_count, true),
        M::Popcnt => sized!(size(), popcnt),
        M::Andn => sized!(size(), andn),
        M::Blsi => with_const!(size(), lowest_bit, 0),
        M::Blsmsk => with_const!(size(), lowest_bit, 1),
        M::Blsr => with_const!(size(), lowest_bit, 2),
        M::Bextr => sized!(size(), bextr),
        M::Bzhi => sized!(size(), bzhi),
        M::Pdep => with_const!(size(), deposit, false),
        M::Pext => with_const!(size(), deposit, true),
        M::Bswap => sized!(size(), bswap),
        M::Crc32 => sized!(size_of_operand(i, 1), crc32),
        _ => return None,
    })
}

fn legacy(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match i.mnemonic() {
        M::Daa => decimal_adjust::<false>,
        M::Das => decimal_adjust::<true>,
        M::Aaa => ascii_adjust::<false>,
        M::Aas => ascii_adjust::<true>,
        M::Aam => aam,
        M::Aad => aad,
        M::Salc => salc,
        M::Arpl => arpl,
        _ => return None,
    })
}
