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
//! instructions of [`Values::follow`](super::values::Values::follow); every other one that writes it makes a new key. Whatever may change
//! translations is interpreted, and ends all groups.

use super::asm::{Alu, Label, Refers, S1, S2, cc};
use super::block::{Builder, LONGEST_BLOCK};
use super::cold::Cold;
use super::hints::Hint;
use super::kind::CodeKind;
use super::memory::{GuestAddress, HostOperand, StackCheck, Want, Width};
use super::operand;
use super::shared::{SHARE_ADDEND, SHARE_TRACKER, SHARES};
use super::values::{Key, PAGE_START, Values};
use crate::cpu::gpr;
use crate::mmu::TlbEntry;
use crate::system::SystemState;
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use serde::{Deserialize, Serialize};
use std::mem::offset_of;

/// In an address in a page: the block is to have no groups.
pub(super) const PLAIN: u16 = 1 << 15;

/// Longest range of a group, in bytes: the longer, the more often it lies in two pages.
const LONGEST_RANGE: i64 = 512;

/// Longest change of an address in each iteration of a loop for that a check before it pays.
const LONGEST_STRIDE: u64 = 256;

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
    /// The check has been emitted, or comes before the iterations of a loop.
    checked: bool,
    /// By how much the addresses change in each iteration of a loop, if the check comes before.
    stride: Option<i64>,
}

impl Group {
    /// Adds an access, if it can be one of the group.
    fn join(&mut self, key: Key, access: &Access) -> bool {
        let (low, high) = (self.low.min(access.place), self.high.max(access.place + i64::from(access.size)));
        if !self.open
            || self.key != key
            || high - low > LONGEST_RANGE
            || access.store && !self.store && self.branched
            || self.stride.is_some_and(|stride| !access.stays_aligned(stride))
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

impl Group {
    /// Its check, from an address on that is its start.
    fn check(&self, start: GuestAddress) -> RangeCheck {
        let Group { low, high, store, alignment, slot, .. } = *self;
        let alignment = alignment.map_or(1, |(size, _)| size as u32);
        RangeCheck { start, span: (high - low) as i32, store, alignment, slot, stride: 0 }
    }
}

/// A check of a range of addresses against one page.
#[derive(Clone, Copy)]
pub(super) struct RangeCheck {
    pub start: GuestAddress,
    /// Bytes.
    pub span: i32,
    pub store: bool,
    /// Of the start.
    pub alignment: u32,
    /// Where it leaves what it found.
    pub slot: usize,
    /// By how much the addresses change in each iteration of a loop.
    pub stride: i64,
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

    /// Whether a check before the iterations of a loop pays if its address changes by `stride` in each.
    fn may_move(&self, stride: i64) -> bool {
        let near = stride.unsigned_abs() <= LONGEST_STRIDE && i32::try_from(2 * self.place).is_ok();
        near && self.stays_aligned(stride)
    }

    /// Whether it is as aligned as before after its address has changed by `stride`.
    fn stays_aligned(&self, stride: i64) -> bool {
        !self.aligned || stride % i64::from(self.size) == 0
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

/// Whether registers can be followed through an instruction: it changes no more than registers and the memory of its
/// operand, or leaves the block.
pub(super) fn is_followed(system: &SystemState, i: &Instruction) -> bool {
    let stack = matches!(
        i.code(),
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Pop_r64 | Code::Leaveq
    );
    stack || i.is_jcc_short_or_near() || !is_barrier(system, i)
}

impl Plan {
    /// The groups of a block.
    pub fn of(
        system: &SystemState,
        kind: CodeKind,
        instructions: &[Instruction],
        info: &mut InstructionInfoFactory,
    ) -> Plan {
        let mut plan = Plan::default();
        plan.follow(system, instructions, info, &mut Values::new(kind));
        plan.choose();
        plan
    }

    /// As [`Plan::of`], for the body of a loop. Addresses may only change if something `counts` the iterations.
    fn of_loop(
        system: &SystemState,
        kind: CodeKind,
        body: &[Instruction],
        info: &mut InstructionInfoFactory,
        counts: bool,
    ) -> Plan {
        let (mut plan, mut values) = (Plan::default(), Values::new(kind));
        Plan::default().follow(system, body, info, &mut values);
        let strides = values.changes().map(|change| change.filter(|&change| counts || change == 0));
        values = Values::new(kind);
        values.strides = Some(strides);
        plan.follow(system, body, info, &mut values);
        plan.choose();
        plan
    }

    /// Looks through instructions.
    fn follow(
        &mut self,
        system: &SystemState,
        instructions: &[Instruction],
        info: &mut InstructionInfoFactory,
        values: &mut Values,
    ) {
        let (plan, kind, mut index) = (self, values.kind, 0);
        while let Some(i) = instructions.get(index) {
            let run = super::stack::run_length(kind, &instructions[index..]).max(1);
            if run > 1 {
                plan.stack_run(index, &instructions[index..index + run], values);
            } else if !plan.stack(index, i, values) {
                if i.is_jcc_short_or_near() {
                    plan.groups.iter_mut().for_each(|group| group.branched = true);
                } else if is_barrier(system, i) {
                    plan.groups.iter_mut().for_each(|group| group.open = false);
                } else if let Some(access) = operand_access(system, kind, i, info) {
                    plan.add(index, access, values);
                }
                values.follow(i, info);
            }
            index += run;
        }
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
                stride: values.stride(&key).filter(|&stride| access.may_move(stride)),
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
            let wanted = group.members > 1 || group.stride.is_some();
            group.slot = if wanted { slot } else { SHARES };
            group.checked = group.stride.is_some() && slot < SHARES;
            slot += usize::from(wanted);
        }
        let groups = &self.groups;
        self.members.retain(|member| groups[member.group].slot < SHARES);
    }

    /// The checks before the iterations of a loop.
    pub fn loop_checks(&self) -> Vec<RangeCheck> {
        let register = |origin: u32| u8::try_from(origin).ok().filter(|&number| number < 16);
        let groups = self.groups.iter().filter(|group| group.checked);
        groups
            .filter_map(|group| {
                let start = GuestAddress {
                    base: register(group.key.base),
                    index: register(group.key.index),
                    scale: group.key.scale,
                    disp: group.low as i32,
                    in_page: group.key.base == PAGE_START.origin,
                    segment: group.key.segment,
                    limited: false,
                    width: Width::Quad,
                };
                Some(RangeCheck { stride: group.stride?, ..group.check(start) })
            })
            .collect()
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

    /// Finds the groups of a loop's body, of which something may count the iterations.
    pub fn plan_loop(&mut self, counts: bool) {
        let (system, kind) = (self.context.system, self.context.kind);
        self.shares = Plan::of_loop(system, kind, &self.instructions, &mut self.info, counts);
    }

    /// Emits the comparison of a range from the address in [`S1`] on, which leaves its offset in the page there, and the
    /// TLB's entry in [`S2`].
    pub fn check_range(&mut self, check: &RangeCheck, hint: Option<Hint>, from: Label) {
        self.find_in_page(hint, check.store, check.span, from);
        let a = &mut self.asm;
        if check.alignment > 1 {
            a.test_imm32(S1, check.alignment - 1);
            a.jcc(cc::NE, from);
        }
    }

    /// Keeps what accesses of the range need from the TLB's entry in [`S2`], and leaves the addend there.
    pub fn keep_range(&mut self, check: &RangeCheck, from: Label) {
        let a = &mut self.asm;
        if check.store {
            a.alu_rm(Alu::Mov, S1, S2, offset_of!(TlbEntry, flags) as i32);
        }
        a.alu_rm(Alu::Mov, S2, S2, offset_of!(TlbEntry, addend) as i32);
        self.keep_found(check, from);
    }

    /// Keeps the addend in [`S2`], which stays there, and for stores the pointer to the tracker byte in [`S1`].
    fn keep_found(&mut self, check: &RangeCheck, from: Label) {
        let (a, slot) = (&mut self.asm, 16 * check.slot);
        if check.store {
            a.store_gs(SHARE_TRACKER + slot, S1);
            a.cmp_byte_zero(S1);
            a.jcc(cc::NE, from);
        }
        a.store_gs(SHARE_ADDEND + slot, S2);
    }

    /// Emits the check of a group at an access of the current instruction; the addend is in [`S2`] then.
    fn check_group(&mut self, number: usize, access: &Access) -> bool {
        let group = &self.shares.groups[number];
        let low = group.low;
        let Some(disp) = i64::from(access.at.disp).checked_add(low - access.place) else { return false };
        let Ok(disp) = i32::try_from(disp) else { return false };
        let start = GuestAddress { disp, ..access.at };
        let check = group.check(start);
        self.save_flags_for_check();
        let (retry, from) = (self.asm.mark(), self.asm.label());
        let size = check.span as u32;
        if start.is_on_stack(size) {
            let (store, alignment) = (check.store, check.alignment);
            self.check_on_stack(StackCheck { at: start, size, store, alignment, slow: from });
            self.keep_found(&check, from);
        } else {
            self.linear(&start);
            let hint = self.hint_for(&start);
            self.check_range(&check, hint, from);
            self.keep_range(&check, from);
        }
        self.clobbered();
        self.shares.groups[number].checked = true;
        let share = Share {
            unit: self.context.unit,
            offset: self.offset,
            at: 0,
            span: check.span as u16,
            store: check.store,
            alignment: check.alignment as u16,
            first: (access.place - low) as u16,
            first_size: access.size as u16,
            first_stores: access.store,
        };
        let (remake, x87) = (self.remake, self.x87_last);
        self.cold.push(Cold::Share { from, retry, start, share, x87, remake });
        true
    }

    /// The way of a check that failed; flags are saved.
    pub fn emit_share(&mut self, retry: Label, start: &GuestAddress, mut share: Share) {
        let next = self.asm.label();
        // The other translation has registers where they always are.
        let exchanged = !self.swaps.is_empty();
        if exchanged {
            self.linear(start);
            self.swap_aside();
        }
        let at = self.asm.jmp(next);
        self.asm.bind(next);
        share.at = (at - self.context.memory_start) as u32;
        self.context.shares.push(share);
        let number = self.context.shares.len() as u32 - 1;
        if !exchanged {
            self.linear(start);
        }
        self.asm.mov_number(S2, number, Refers::Share);
        self.asm.call_to(self.context.thunks.call_share);
        self.swap_aside();
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
