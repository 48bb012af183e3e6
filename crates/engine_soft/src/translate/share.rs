//! Memory accesses of a block that share one check.
//!
//! Before a block is translated, [`Plan::of`] finds accesses whose addresses differ by constants: the same base and
//! index, unchanged in between but for constants that were added (`add`, `lea`, `push`, ...). Those that lie close
//! together make a group. The check at its first access covers the whole range at once and leaves the page's addend,
//! and the pointer to its tracker byte, in [`Shared`](super::shared::Shared); the other accesses only add the
//! addend, keep the flags, and cannot fail.
//!
//! # When a check fails
//! [`Cpu::fill_share`] brings the page into the TLB and has the check tried again. If that does not help - the range
//! lies in two pages, the page may only be read, somebody watches it - the way is changed for good: it leads to a
//! second translation of the block from this instruction on, without groups ([`PLAIN`]).
//!
//! # Stores
//! Their page was not watched when it was checked, so no store can change the code of its own processor before the
//! block ends. Another processor may begin to watch the page at any time; so the tracker byte is looked at once
//! after a number of stores, before anything that could leave the block (see [`guest_memory::tracker`] for why any
//! time after the store is soon enough).
//!
//! # Isolation
//! An access is at `key + place`, where the key is the sum of what base and index were when they were last changed in
//! another way than by a constant. All of a group lie in `low..high` of one key, and the check compares that whole
//! range against one page, as [`super::memory`] says. What a guest register holds is only followed through the few
//! instructions of [`Values::follow`]; every other one that writes it makes a new key. Whatever may change
//! translations is interpreted, and ends all groups.

use super::asm::{Alu, Refers, S1, S2, cc};
use super::block::{Builder, Cold, LONGEST_BLOCK};
use super::kind::CodeKind;
use super::memory::{GuestAddress, HostOperand, Want, Width};
use super::operand;
use super::shared::{SHARE_ADDEND, SHARE_TRACKER, SHARES};
use crate::cpu::gpr;
use crate::mmu::{OFFSET, TlbEntry};
use crate::system::SystemState;
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};
use std::mem::offset_of;

/// In an address in a page: the block is to have no groups.
pub(super) const PLAIN: u16 = 1 << 15;

/// Longest range of a group, in bytes: the longer, the more often it lies in two pages.
const LONGEST_RANGE: i64 = 512;

/// Number of RSP.
const RSP: u8 = gpr::RSP / 8;
/// Number of RBP.
const RBP: u8 = gpr::RBP / 8;

/// The check of a group, for [`Cpu::fill_share`](crate::cpu::Cpu::fill_share).
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Share {
    #[serde(skip)]
    pub unit: u32,
    /// Address of the instruction in the page.
    pub offset: u16,
    /// Displacement of the jump to the fall-back, from the start of code memory.
    pub at: u32,
    /// Bytes of the range.
    pub span: u16,
    pub store: bool,
    /// Alignment of the range's start.
    pub alignment: u16,
    /// The first access: where in the range, how long, and whether it writes.
    pub first: u16,
    pub first_size: u16,
    pub first_stores: bool,
}

/// What a register holds: what something held at its last unknown change, and a constant.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value {
    origin: u32,
    plus: i64,
}

/// No register.
const NOTHING: Value = Value { origin: u32::MAX, plus: 0 };
/// The linear address of the page.
const PAGE_START: Value = Value { origin: u32::MAX - 1, plus: 0 };

/// What the addresses of a group have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    base: u32,
    index: u32,
    scale: u8,
    segment: Option<u8>,
}

struct Group {
    key: Key,
    low: i64,
    high: i64,
    store: bool,
    /// The key is this, modulo that.
    alignment: Option<(i64, i64)>,
    members: usize,
    /// Index of the first.
    first: usize,
    /// A conditional branch has followed the first access.
    branched: bool,
    open: bool,
    /// Where the check leaves what it found.
    slot: usize,
    /// The check has been emitted.
    checked: bool,
}

impl Group {
    /// Adds an access, if it can be one of the group.
    fn join(&mut self, key: Key, access: &Access) -> bool {
        let (low, high) = (self.low.min(access.place), self.high.max(access.place + i64::from(access.size)));
        if !self.open
            || self.key != key
            || high - low > LONGEST_RANGE
            || access.store && !self.store && self.branched
        {
            return false;
        }
        let alignment = match (self.alignment, access.alignment()) {
            (Some((old, rest)), Some((new, other))) => {
                let less = old.min(new);
                if rest.rem_euclid(less) != other.rem_euclid(less) {
                    return false;
                }
                Some(if new > old { (new, other) } else { (old, rest) })
            }
            (old, new) => old.or(new),
        };
        (self.low, self.high, self.alignment) = (low, high, alignment);
        self.store |= access.store;
        self.members += 1;
        true
    }
}

/// An access to memory.
#[derive(Clone, Copy)]
struct Access {
    at: GuestAddress,
    size: u32,
    store: bool,
    aligned: bool,
    /// Address less the key.
    place: i64,
}

impl Access {
    fn stack(at: GuestAddress, size: u32, store: bool) -> Self {
        Access { at, size, store, aligned: false, place: 0 }
    }

    /// What the key must be, modulo what.
    fn alignment(&self) -> Option<(i64, i64)> {
        let size = i64::from(self.size);
        (self.aligned && size > 1).then(|| (size, (-self.place).rem_euclid(size)))
    }
}

struct Member {
    /// Of its instruction, or the first of a run.
    index: usize,
    group: usize,
    access: Access,
}

/// The groups of a block.
#[derive(Default)]
pub(super) struct Plan {
    groups: Vec<Group>,
    members: Vec<Member>,
    /// The slot whose addend is in [`S2`] as long as code ends here.
    held: Option<(usize, usize)>,
    /// Slots of the groups that have stores after which the tracker was not looked at.
    pub unseen: u8,
}

/// What registers hold, while a block is looked through.
struct Values {
    kind: CodeKind,
    of: [Value; 16],
    next: u32,
}

impl Values {
    fn new(kind: CodeKind) -> Self {
        Values { kind, of: std::array::from_fn(|origin| Value { origin: origin as u32, plus: 0 }), next: 16 }
    }

    fn set(&mut self, number: u8, value: Value) {
        self.of[usize::from(number & 15)] = value;
    }

    fn get(&self, number: u8) -> Value {
        self.of[usize::from(number & 15)]
    }

    fn forget(&mut self, number: u8) {
        self.next += 1;
        self.set(number, Value { origin: self.next, plus: 0 });
    }

    fn add(&mut self, number: u8, plus: i64) {
        let old = self.get(number);
        self.set(number, Value { plus: old.plus.wrapping_add(plus), ..old });
    }

    /// Key and place of an address.
    fn key(&self, at: &GuestAddress) -> Option<(Key, i64)> {
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
    fn follow(&mut self, i: &Instruction, info: &mut InstructionInfoFactory) {
        use Mnemonic as M;
        let to = (i.op_count() > 0 && i.op0_kind() == OpKind::Register && self.is_full(i.op0_register()))
            .then(|| operand::number(i.op0_register()));
        let from = (i.op_count() == 2 && i.op1_kind() == OpKind::Register && self.is_full(i.op1_register()))
            .then(|| self.get(operand::number(i.op1_register())));
        let constant = |op: u32| match i.op_kind(op) {
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(i.immediate(op) as i64),
            OpKind::Immediate8to32 | OpKind::Immediate32 => Some(i64::from(i.immediate(op) as i32)),
            _ => None,
        };
        let changed = |old: Value, plus: i64| Value { plus: old.plus.wrapping_add(plus), ..old };
        let known = to.and_then(|to| {
            let old = self.get(to);
            match i.mnemonic() {
                M::Mov => from,
                M::Add => constant(1).map(|plus| changed(old, plus)),
                M::Sub => constant(1).map(|less| changed(old, less.wrapping_neg())),
                M::Inc => Some(changed(old, 1)),
                M::Dec => Some(changed(old, -1)),
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

/// Whether an instruction may do more than change registers and the memory of its operand.
fn is_barrier(system: &SystemState, i: &Instruction) -> bool {
    let copied = super::copy::is_known(system, i)
        || super::vector::is_known(system, i)
        || super::x87::is_known(system, i)
        || super::mmx::is_known(system, i)
        || super::string::is_known(i)
        || matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Pause);
    !copied
}

impl Plan {
    /// The groups of a block.
    pub fn of(
        system: &SystemState,
        kind: CodeKind,
        instructions: &[Instruction],
        info: &mut InstructionInfoFactory,
    ) -> Plan {
        let (mut plan, mut values, mut index) = (Plan::default(), Values::new(kind), 0);
        while let Some(i) = instructions.get(index) {
            let run = super::stack::run_length(kind, &instructions[index..]).max(1);
            if run > 1 {
                plan.stack_run(index, &instructions[index..index + run], &mut values);
            } else if !plan.stack(index, i, &mut values) {
                if i.is_jcc_short_or_near() {
                    plan.groups.iter_mut().for_each(|group| group.branched = true);
                } else if is_barrier(system, i) {
                    plan.groups.iter_mut().for_each(|group| group.open = false);
                } else if let Some(access) = operand_access(system, kind, i, info) {
                    plan.add(index, access, &values);
                }
                values.follow(i, info);
            }
            index += run;
        }
        plan.choose();
        plan
    }

    fn stack_run(&mut self, index: usize, run: &[Instruction], values: &mut Values) {
        let size = super::stack::slot_size(run[0].code()).unwrap_or(8);
        let bytes = i32::from(size) * run.len() as i32;
        let pushes = matches!(run[0].code(), Code::Push_r64 | Code::Push_r32);
        let disp = if pushes { -bytes } else { 0 };
        let at = GuestAddress::on_stack(values.kind, RSP, disp);
        self.add(index, Access::stack(at, bytes as u32, pushes), values);
        if !pushes {
            run.iter().for_each(|i| values.forget(operand::number(i.op0_register())));
        }
        values.add(RSP, if pushes { -i64::from(bytes) } else { i64::from(bytes) });
    }

    /// An instruction that uses the stack; `false` if it is none that is known.
    fn stack(&mut self, index: usize, i: &Instruction, values: &mut Values) -> bool {
        let (kind, size) = (values.kind, if values.kind.is_long() { 8 } else { 4 });
        let bytes = i64::from(size);
        let below = Access::stack(GuestAddress::on_stack(kind, RSP, -size), size as u32, true);
        let top = Access::stack(GuestAddress::on_stack(kind, RSP, 0), size as u32, false);
        match i.code() {
            Code::Push_r64
            | Code::Pushq_imm8
            | Code::Pushq_imm32
            | Code::Call_rel32_64
            | Code::Call_rm64
            | Code::Push_r32
            | Code::Pushd_imm8
            | Code::Pushd_imm32
            | Code::Call_rel32_32
            | Code::Call_rm32 => {
                self.add(index, below, values);
                values.add(RSP, -bytes);
            }
            Code::Pop_r64 | Code::Pop_r32 => {
                self.add(index, top, values);
                values.add(RSP, bytes);
                values.forget(operand::number(i.op0_register()));
            }
            Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16 => self.add(index, top, values),
            Code::Leaveq | Code::Leaved => {
                let frame = GuestAddress::on_stack(kind, RBP, 0);
                self.add(index, Access::stack(frame, size as u32, false), values);
                values.set(RSP, values.get(RBP));
                values.add(RSP, bytes);
                values.forget(RBP);
            }
            _ => return false,
        }
        true
    }

    fn add(&mut self, index: usize, access: Access, values: &Values) {
        let Some((key, place)) = values.key(&access.at) else { return };
        let access = Access { place, ..access };
        let found = self.groups.iter_mut().rposition(|group| group.join(key, &access));
        let group = found.unwrap_or_else(|| {
            self.groups.push(Group {
                key,
                low: place,
                high: place + i64::from(access.size),
                store: access.store,
                alignment: access.alignment(),
                members: 1,
                first: index,
                branched: false,
                open: true,
                slot: 0,
                checked: false,
            });
            self.groups.len() - 1
        });
        self.members.push(Member { index, group, access });
    }

    /// Forgets groups of one, and those for which there are no slots.
    fn choose(&mut self) {
        let mut slot = 0;
        for group in &mut self.groups {
            if let Some((size, rest)) = group.alignment {
                group.low -= (group.low + rest).rem_euclid(size);
            }
            group.slot = if group.members > 1 { slot } else { SHARES };
            slot += usize::from(group.members > 1);
        }
        let groups = &self.groups;
        self.members.retain(|member| groups[member.group].slot < SHARES);
    }

    fn member(&self, index: usize) -> Option<&Member> {
        self.members.iter().find(|member| member.index == index)
    }

    /// Whether the access of an instruction cannot fail, or will not be able to when its turn comes; `now` is the
    /// current instruction.
    pub fn is_covered(&self, index: usize, now: usize) -> bool {
        self.member(index).is_some_and(|member| {
            let group = &self.groups[member.group];
            group.checked || group.first >= now && group.first < index
        })
    }
}

/// The memory operand of an instruction that is copied, if it can be one of a group.
fn operand_access(
    system: &SystemState,
    kind: CodeKind,
    i: &Instruction,
    info: &mut InstructionInfoFactory,
) -> Option<Access> {
    let at = (0..i.op_count()).find(|&at| i.op_kind(at) == OpKind::Memory)?;
    let special = super::copy::is_locked(i)
        || super::vector::is_control(i)
        || matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Fldcw)
        || matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
    let size = i.memory_size().size() as u32;
    if special || !(1..=64).contains(&size) {
        return None;
    }
    let info = info.info(i);
    let access = |at: u32| info.op_access(at);
    if operand::homed(i, access).is_none_or(|homed| homed.len() > 1) {
        return None;
    }
    // CVTPD2PI is an MMX instruction with 16 bytes of memory.
    let vector = super::vector::is_known(system, i) || super::mmx::is_known(system, i);
    let aligned = vector && super::vector::wants_alignment(i);
    let store = operand::writes(access(at));
    Some(Access { at: GuestAddress::of(kind, i).ok()?, size, store, aligned, place: 0 })
}

impl Builder<'_> {
    /// Finds the groups of the block, unless it is to have none.
    pub fn plan(&mut self, plain: bool) {
        // The second translation would end elsewhere.
        let cut = self.context.verified && self.instructions.len() == LONGEST_BLOCK;
        let kind = self.context.kind;
        if !plain && !cut && kind.is_flat() {
            self.shares = Plan::of(self.context.system, kind, &self.instructions, &mut self.info);
        }
    }

    /// The operand of an access of the current instruction, if it is one of a group; flags may be in RFLAGS still.
    pub fn shared(&mut self, at: &GuestAddress, size: u32, want: Want) -> Option<HostOperand> {
        let member = self.shares.member(self.index)?;
        let access = member.access;
        if access.at != *at || access.size != size || access.store != want.store {
            return None;
        }
        let number = member.group;
        let fresh = !self.shares.groups[number].checked;
        if fresh && !self.check_group(number, &access) {
            return None;
        }
        let slot = self.shares.groups[number].slot;
        let held = fresh || self.shares.held == Some((slot, self.asm.bytes.len()));
        let (base, disp) = self.repeated_base(at);
        if !held || at.uses_second_scratch() {
            self.asm.load_gs(S2, SHARE_ADDEND + 16 * slot);
        }
        self.shares.held = Some((slot, self.asm.bytes.len()));
        let group = want.store.then_some(slot as u8);
        Some(HostOperand { base, index: Some(S2), disp, tracker: None, stashed: false, group })
    }

    /// Emits the check of a group at an access of the current instruction; the addend is in [`S2`] then.
    fn check_group(&mut self, number: usize, access: &Access) -> bool {
        let Group { low, high, store, alignment, slot, .. } = self.shares.groups[number];
        let (span, alignment) = ((high - low) as i32, alignment.map_or(1, |(size, _)| size as u32));
        let Some(disp) = i64::from(access.at.disp).checked_add(low - access.place) else { return false };
        let Ok(disp) = i32::try_from(disp) else { return false };
        let start = GuestAddress { disp, ..access.at };
        self.save_flags_for_check();
        let (retry, from) = (self.asm.mark(), self.asm.label());
        self.linear(&start);
        self.find_entry();
        let page = if store { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) } as i32;
        let a = &mut self.asm;
        a.alu_rm(Alu::Xor, S1, S2, page);
        a.cmp_imm(S1, OFFSET as i32 + 1 - span);
        a.jcc(cc::A, from);
        if alignment > 1 {
            a.test_imm32(S1, alignment - 1);
            a.jcc(cc::NE, from);
        }
        if store {
            a.alu_rm(Alu::Mov, S1, S2, offset_of!(TlbEntry, flags) as i32);
            a.store_gs(SHARE_TRACKER + 16 * slot, S1);
            a.cmp_byte_zero(S1);
            a.jcc(cc::NE, from);
        }
        a.alu_rm(Alu::Mov, S2, S2, offset_of!(TlbEntry, addend) as i32);
        a.store_gs(SHARE_ADDEND + 16 * slot, S2);
        self.clobbered();
        self.shares.groups[number].checked = true;
        let share = Share {
            unit: self.context.unit,
            offset: self.offset,
            at: 0,
            span: span as u16,
            store,
            alignment: alignment as u16,
            first: (access.place - low) as u16,
            first_size: access.size as u16,
            first_stores: access.store,
        };
        let (remake, x87) = (self.remake, self.x87_last);
        self.cold.push(Cold::Share { from, retry, start, share, x87, remake });
        true
    }

    /// The way of a check that failed; flags are saved.
    pub fn emit_share(&mut self, retry: super::asm::Label, start: &GuestAddress, mut share: Share) {
        let next = self.asm.label();
        let at = self.asm.jmp(next);
        self.asm.bind(next);
        share.at = (at - self.context.memory_start) as u32;
        self.context.shares.push(share);
        let number = self.context.shares.len() as u32 - 1;
        self.linear(start);
        self.asm.mov_number(S2, number, Refers::Share);
        self.asm.call_to(self.context.thunks.call_share);
        self.asm.jmp(retry);
    }

    /// After code for an instruction was added behind `from` that does not use [`S2`]: the addend is still there.
    pub fn keep_addend(&mut self, from: usize) {
        if let Some((_, at)) = &mut self.shares.held
            && *at == from
        {
            *at = self.asm.bytes.len();
        }
    }
}
