//! What registers hold, as far as a block's instructions tell: something they held before, and a constant.

use super::kind::CodeKind;
use super::memory::{GuestAddress, Width};
use super::operand;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

/// What a register holds: what something held at its last unknown change, and a constant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    pub origin: u32,
    pub plus: i64,
}

/// No register.
pub(super) const NOTHING: Value = Value { origin: u32::MAX, plus: 0 };
/// The linear address of the page.
pub(super) const PAGE_START: Value = Value { origin: u32::MAX - 1, plus: 0 };

/// What the addresses of a group have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub base: u32,
    pub index: u32,
    pub scale: u8,
    pub segment: Option<u8>,
}

/// What registers hold, while a block is looked through.
pub(super) struct Values {
    pub kind: CodeKind,
    of: [Value; 16],
    next: u32,
    /// In a loop's body: what is added to each register in an iteration, if that is known.
    pub strides: Option<[Option<i64>; 16]>,
}

impl Values {
    pub fn new(kind: CodeKind) -> Self {
        let of = std::array::from_fn(|origin| Value { origin: origin as u32, plus: 0 });
        Values { kind, of, next: 16, strides: None }
    }

    /// What was added to each register since the start, if nothing else was done to it.
    pub fn changes(&self) -> [Option<i64>; 16] {
        std::array::from_fn(|at| Some(self.of[at]).filter(|v| v.origin == at as u32).map(|v| v.plus))
    }

    /// By how much an address with a key changes in each iteration of a loop, if that is known.
    pub fn stride(&self, key: &Key) -> Option<i64> {
        let strides = self.strides?;
        let of = |origin: u32| match origin {
            _ if origin == NOTHING.origin || origin == PAGE_START.origin => Some(0),
            _ => strides.get(origin as usize).copied().flatten(),
        };
        of(key.base)?.checked_add(of(key.index)?.checked_mul(1 << key.scale)?)
    }

    pub fn set(&mut self, number: u8, value: Value) {
        self.of[usize::from(number & 15)] = value;
    }

    pub fn get(&self, number: u8) -> Value {
        self.of[usize::from(number & 15)]
    }

    pub fn forget(&mut self, number: u8) {
        self.next += 1;
        self.set(number, Value { origin: self.next, plus: 0 });
    }

    pub fn add(&mut self, number: u8, plus: i64) {
        let old = self.get(number);
        self.set(number, Value { plus: old.plus.wrapping_add(plus), ..old });
    }

    /// Key and place of an address.
    pub fn key(&self, at: &GuestAddress) -> Option<(Key, i64)> {
        let base = if at.in_page { PAGE_START } else { at.base.map_or(NOTHING, |base| self.get(base)) };
        let index = at.index.map_or(NOTHING, |index| self.get(index));
        let place = base.plus.wrapping_add(index.plus << at.scale).wrapping_add(i64::from(at.disp));
        let key = Key { base: base.origin, index: index.origin, scale: at.scale, segment: at.segment };
        // Far from anything that could overflow.
        (at.width == self.width() && !at.limited && place.unsigned_abs() >> 40 == 0).then_some((key, place))
    }

    /// The address size that values are followed at: sums have as many bits as the code's registers.
    fn width(&self) -> Width {
        if self.kind.is_long() { Width::Quad } else { Width::Double }
    }

    fn is_full(&self, register: Register) -> bool {
        if self.kind.is_long() { register.is_gpr64() } else { register.is_gpr32() }
    }

    /// What an instruction writes that has no memory operand, or one that is no stack's.
    pub fn follow(&mut self, i: &Instruction, info: &mut InstructionInfoFactory) {
        use Mnemonic as M;
        let to = (i.op_count() > 0 && i.op0_kind() == OpKind::Register && self.is_full(i.op0_register()))
            .then(|| operand::number(i.op0_register()));
        let from = (i.op_count() == 2 && i.op1_kind() == OpKind::Register && self.is_full(i.op1_register()))
            .then(|| self.get(operand::number(i.op1_register())));
        let changed = |old: Value, plus: i64| Value { plus: old.plus.wrapping_add(plus), ..old };
        let known = to.and_then(|to| {
            let old = self.get(to);
            match i.mnemonic() {
                M::Mov => from,
                M::Add | M::Sub | M::Inc | M::Dec => constant_added(i).map(|plus| changed(old, plus)),
                M::Lea => {
                    let at = GuestAddress::of(self.kind, i).ok();
                    at.filter(|at| at.width == self.width() && at.index.is_none()).and_then(|at| {
                        let base =
                            if at.in_page { Some(PAGE_START) } else { at.base.map(|base| self.get(base)) };
                        base.map(|base| changed(base, i64::from(at.disp)))
                    })
                }
                _ => None,
            }
            .map(|value| (to, value))
        });
        for used in info.info(i).used_registers() {
            if used.register().is_gpr() && operand::writes(used.access()) {
                self.forget(operand::number(used.register()));
            }
        }
        if let Some((to, value)) = known {
            self.set(to, value);
        }
    }
}

/// What ADD, SUB, INC or DEC adds to its first operand, of 32 or 64 bits, if that is a constant.
pub(super) fn constant_added(i: &Instruction) -> Option<i64> {
    let constant = || match i.op_kind(1) {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(i.immediate(1) as i64),
        OpKind::Immediate8to32 | OpKind::Immediate32 => Some(i64::from(i.immediate(1) as i32)),
        _ => None,
    };
    match i.mnemonic() {
        Mnemonic::Inc => Some(1),
        Mnemonic::Dec => Some(-1),
        Mnemonic::Add => constant(),
        Mnemonic::Sub => constant().map(i64::wrapping_neg),
        _ => None,
    }
}
