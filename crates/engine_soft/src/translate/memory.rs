//! Memory operands: from a guest address to a host address, or to the interpreter.
//!
//! # Isolation
//! Translated code reaches guest memory only through [`Builder::check`]. Under [`Policy::Table`] it computes
//! the linear address in a scratch register, which no guest instruction can touch, and compares its exclusive
//! or with the page of a TLB entry against `4096 - size` **unsigned and at full width**. If that holds, all
//! bytes of the access lie in the entry's page, and the entry's addend leads to guest RAM that this accessor
//! may use so. The access that follows uses the same registers, unchanged in between, with exactly that
//! size. Otherwise, and for every address that wraps, is not canonical, or crosses a page, the instruction is
//! given to the interpreter before it has changed anything. A segment's base and limit (outside 64-bit mode) only
//! make the linear address: what comes then does not trust it.
//!
//! Accesses through the stack pointer look at a copy of one entry first, [`StackPage`](crate::mmu::StackPage). Besides
//! the page, they compare the offset with a limit that is zero while there is no entry: the copy is made by
//! `Thunks::find_on_stack` after a comparison as above, and is void whenever the TLB's array may have lost entries.
//!
//! ```text
//! lea  s1, [guest address]
//! rorx s2d, s1d, 12 - log2(entry)      slot of the page, in bytes
//! and  s2d, gs:[mask]                  (slots - 1) * entry
//! add  s2, gs:[array]
//! xor  s1, [s2 + read or write]        offset in the page, or more
//! cmp  s1, 4096 - size
//! ja   slow
//! mov  s2, [s2 + addend]
//! op   [guest base + s2 + disp]
//! ```

use super::asm::{Address, Alu, Asm, Label, S1, S2, cc};
use super::block::{Builder, Unknown};
use super::cold::Cold;
use super::kind::CodeKind;
use super::operand::{Place, number, place};
use super::shared::{
    ARGUMENT, RIP_PAGE, STACK_ENTRY, STACK_LIMIT, TLB, TLB_MASK, home, segment_base, segment_end,
};
use crate::cpu::{gpr, seg};
use crate::mmu::{ENTRY_SHIFT, LONGEST_ON_STACK, OFFSET, TlbEntry};
use iced_x86::{Instruction, Register};
use std::mem::offset_of;

/// How guest addresses become host addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Through the software TLB.
    Table,
    /// Host address is guest address plus a fixed offset. Only for memory that is mapped so, and by code
    /// that may reach all of it.
    #[expect(dead_code, reason = "no memory is mapped so yet")]
    Offset(i32),
    /// Host address is guest address.
    #[expect(dead_code, reason = "as for Offset")]
    Identity,
}

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// To write, perhaps after a read.
    pub store: bool,
    /// An unaligned access is the interpreter's: it would fault, or not be atomic.
    pub aligned: bool,
}

impl Want {
    pub const LOAD: Want = Want { store: false, aligned: false };
    pub const STORE: Want = Want { store: true, aligned: false };
}

/// A guest address: where it comes from, before any check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestAddress {
    /// Guest register numbers.
    pub base: Option<u8>,
    pub index: Option<u8>,
    /// log2 of what the index is multiplied with.
    pub scale: u8,
    pub disp: i32,
    /// The displacement counts from the page of the running code.
    pub in_page: bool,
    /// The segment, if it has a base.
    pub segment: Option<u8>,
    /// It has a limit, too.
    pub limited: bool,
    /// Address size.
    pub width: Width,
}

/// An address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Word,
    Double,
    Quad,
}

impl GuestAddress {
    /// `[register + disp]` in 64-bit mode.
    pub fn based(register: u8, disp: i32) -> Self {
        GuestAddress {
            base: Some(register),
            index: None,
            scale: 0,
            disp,
            in_page: false,
            segment: None,
            limited: false,
            width: Width::Quad,
        }
    }

    /// `SS:[register + disp]` with the address size of the stack.
    pub fn on_stack(kind: CodeKind, register: u8, disp: i32) -> Self {
        let width = match kind.stack_size() {
            2 => Width::Word,
            4 => Width::Double,
            _ => Width::Quad,
        };
        let segment = (!kind.is_flat()).then_some(seg::SS);
        GuestAddress { segment, limited: segment.is_some(), width, ..Self::based(register, disp) }
    }

    /// `segment:[register]` with a given address size.
    pub fn at_pointer(kind: CodeKind, register: u8, segment: u8, width: Width) -> Self {
        let (limited, based) = Self::needs(kind, segment);
        GuestAddress { segment: based.then_some(segment), limited, width, ..Self::based(register, 0) }
    }

    /// Whether a segment has a limit, and whether it has a base.
    fn needs(kind: CodeKind, segment: u8) -> (bool, bool) {
        let limited = !kind.is_long() && (!kind.is_flat() || !matches!(segment, seg::DS | seg::ES | seg::SS));
        (limited, limited || segment == seg::FS || segment == seg::GS)
    }

    /// The memory operand of an instruction whose page starts at address zero to the decoder.
    pub fn of(kind: CodeKind, i: &Instruction) -> Result<Self, Unknown> {
        let (base, index) = (i.memory_base(), i.memory_index());
        let in_page = i.is_ip_rel_memory_operand();
        let width = match super::kind::address_size(i).ok_or(Unknown)? {
            2 => Width::Word,
            4 => Width::Double,
            _ => Width::Quad,
        };
        let disp = i32::try_from(i.memory_displacement64() as i64).or_else(|_| {
            u32::try_from(i.memory_displacement64()).map(|disp| disp as i32).map_err(|_| Unknown)
        });
        let absolute = base == Register::None && index == Register::None;
        if base == Register::EIP
            || kind.is_long() && absolute && width != Width::Quad && i.memory_displacement64() >> 31 == 1
        {
            return Err(Unknown);
        }
        let disp = disp?;
        if width == Width::Quad && disp as i64 as u64 != i.memory_displacement64() {
            return Err(Unknown);
        }
        let segment = i.memory_segment().number() as u8;
        let (limited, based) = Self::needs(kind, segment);
        Ok(GuestAddress {
            base: (base != Register::None && !in_page).then(|| number(base)),
            index: (index != Register::None).then(|| number(index)),
            scale: i.memory_index_scale().trailing_zeros() as u8,
            disp,
            in_page,
            segment: based.then_some(segment),
            limited,
            width,
        })
    }

    fn is_quad(&self) -> bool {
        self.width == Width::Quad
    }

    /// Whether [`Builder::linear`] uses the second scratch register.
    pub fn uses_second_scratch(&self) -> bool {
        let homed = |index: u8| place(super::operand::wide(index)) == Place::Home;
        self.segment.is_some() || self.index.is_some_and(homed)
    }

    /// Whether a range of `size` bytes here is looked for in the stack's page first.
    pub fn is_on_stack(&self, size: u32) -> bool {
        self.base == Some(gpr::RSP / 8) && self.plain_base().is_some() && u64::from(size) <= LONGEST_ON_STACK
    }

    /// The host register of a plain `[base + disp]`.
    pub fn plain_base(&self) -> Option<u8> {
        let base = self.base.filter(|_| self.is_quad() && self.index.is_none() && self.segment.is_none())?;
        match place(super::operand::wide(base)) {
            Place::Host(host) => Some(host),
            Place::Home => None,
        }
    }
}

/// Where [`TlbEntry`] has the page for stores, or loads.
pub(super) fn tag_of(store: bool) -> usize {
    if store { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) }
}

/// Points [`S2`] to the TLB entry of the linear address in [`S1`].
pub(super) fn find_entry(a: &mut Asm, bmi2: bool) {
    const SHIFT: u8 = 12 - ENTRY_SHIFT as u8;
    if bmi2 {
        a.rorx32(S2, S1, SHIFT);
    } else {
        a.mov32(S2, S1);
        a.shift(5, S2, SHIFT, false);
    }
    a.alu_gs32(Alu::And, S2, TLB_MASK);
    a.alu_gs(Alu::Add, S2, TLB);
}

/// The check of a range that is likely on the stack.
#[derive(Clone, Copy)]
pub(super) struct StackCheck {
    pub at: GuestAddress,
    /// Bytes, at most [`LONGEST_ON_STACK`].
    pub size: u32,
    pub store: bool,
    /// What the address has to be a multiple of.
    pub alignment: u32,
    /// Where it goes if the access is not possible.
    pub slow: Label,
}

impl StackCheck {
    /// Goes the slow way unless the offset in [`S1`] is aligned.
    fn check_alignment(&self, a: &mut Asm) {
        if self.alignment > 1 {
            a.test_imm32(S1, self.alignment - 1);
            a.jcc(cc::NE, self.slow);
        }
    }
}

/// A checked operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostOperand {
    pub base: u8,
    pub index: Option<u8>,
    pub disp: i32,
    /// Register that points to the page's tracker byte, for stores.
    pub tracker: Option<u8>,
    /// Whether it waits in `Shared::argument` instead.
    pub stashed: bool,
    /// For stores that share a check: the slot of the pointer to the tracker byte.
    pub group: Option<u8>,
}

impl HostOperand {
    /// `[base + disp]` of the guest: the addend is in [`S2`], and for stores the pointer to the tracker byte in [`S1`].
    fn based(base: u8, disp: i32, store: bool) -> Self {
        let tracker = store.then_some(S1);
        HostOperand { base, index: Some(S2), disp, tracker, stashed: false, group: None }
    }

    /// A scratch register that the operand does not need.
    pub fn free(&self) -> Option<u8> {
        [S1, S2].into_iter().find(|&s| s != self.base && Some(s) != self.index && Some(s) != self.tracker)
    }

    /// As the operand of an instruction of ours.
    pub fn address(&self) -> Address {
        Address { base: Some(self.base), index: self.index, scale: 0, disp: self.disp }
    }

    /// Puts the operand into an instruction.
    pub fn apply(&self, i: &mut Instruction) {
        i.set_segment_prefix(Register::None);
        i.set_memory_base(super::operand::wide(self.base));
        i.set_memory_index(self.index.map_or(Register::None, super::operand::wide));
        i.set_memory_index_scale(1);
        i.set_memory_displacement64(self.disp as i64 as u64);
        i.set_memory_displ_size(if self.disp == 0 { 0 } else { 8 });
    }
}

impl Builder<'_> {
    /// Puts the linear address of a guest address into [`S1`], or the offset, if its segment has a limit; keeps flags, may
    /// use [`S2`].
    pub fn linear(&mut self, at: &GuestAddress) {
        let a = &mut self.asm;
        if at.in_page {
            a.load_gs(S1, RIP_PAGE);
            a.lea(S1, S1, at.disp);
        } else {
            let mut host = |guest: Option<u8>, scratch: u8| {
                guest.map(|guest| match place(super::operand::wide(guest)) {
                    Place::Host(host) => host,
                    Place::Home => {
                        a.load_gs(scratch, home(guest));
                        scratch
                    }
                })
            };
            let base = host(at.base, S1);
            let index = host(at.index, S2);
            match base.filter(|_| index.is_none() && at.disp == 0 && at.is_quad()) {
                Some(base) => a.mov(S1, base),
                None => a.lea_full(S1, Address { base, index, scale: at.scale, disp: at.disp }, at.is_quad()),
            }
            if at.width == Width::Word {
                a.zero_extend16(S1, S1);
            }
        }
        if let Some(segment) = at.segment.filter(|_| !at.limited) {
            a.load_gs(S2, segment_base(segment));
            a.lea_full(S1, Address { base: Some(S1), index: Some(S2), scale: 0, disp: 0 }, true);
        }
    }

    /// Puts what is needed of the address of an operand into a register, after the check: what was there before is
    /// gone. Gives the register and the displacement. Keeps flags; may use [`S1`], and [`S2`] as
    /// [`GuestAddress::uses_second_scratch`] says.
    pub fn repeated_base(&mut self, at: &GuestAddress) -> (u8, i32) {
        match at.plain_base() {
            Some(base) => (base, at.disp),
            None if at.in_page && at.segment.is_none() => {
                self.asm.load_gs(S1, RIP_PAGE);
                (S1, at.disp)
            }
            None => {
                self.linear(at);
                (S1, 0)
            }
        }
    }

    /// Effective address of LEA into `to`.
    pub fn effective(&mut self, at: &GuestAddress, to: u8, wide: bool) {
        let host = |guest: Option<u8>| match guest.map(|guest| place(super::operand::wide(guest))) {
            None => Some(None),
            Some(Place::Host(host)) => Some(Some(host)),
            Some(Place::Home) => None,
        };
        if let (Some(base), Some(index), false) =
            (host(at.base), host(at.index), at.in_page || at.width == Width::Word)
        {
            let from = self.asm.bytes.len();
            let address = Address { base, index, scale: at.scale, disp: at.disp };
            self.asm.lea_full(to, address, at.is_quad() && wide);
            self.keep_addend(from);
            return;
        }
        let plain = GuestAddress { segment: None, limited: false, ..*at };
        self.linear(&plain);
        if wide { self.asm.mov(to, S1) } else { self.asm.mov32(to, S1) }
    }

    /// Makes the access of `size` bytes at a guest address possible, or leaves the instruction to the
    /// interpreter. Flags are saved afterwards and not in RFLAGS, unless the access shares the check of another.
    pub fn check(&mut self, at: &GuestAddress, size: u32, want: Want) -> HostOperand {
        match self.policy {
            Policy::Table => match self.shared(at, size, want) {
                Some(operand) => operand,
                None => self.check_table(at, size, want),
            },
            Policy::Offset(offset) => {
                self.linear(at);
                HostOperand {
                    base: S1,
                    index: None,
                    disp: offset,
                    tracker: None,
                    stashed: false,
                    group: None,
                }
            }
            Policy::Identity => {
                self.linear(at);
                HostOperand { base: S1, index: None, disp: 0, tracker: None, stashed: false, group: None }
            }
        }
    }

    fn check_table(&mut self, at: &GuestAddress, size: u32, want: Want) -> HostOperand {
        self.save_flags_for_check();
        let store = want.store;
        if let Some(base) = at.plain_base().filter(|_| at.is_on_stack(size)) {
            let alignment = if want.aligned { size } else { 1 };
            let slow = self.slow_path();
            self.check_on_stack(StackCheck { at: *at, size, store, alignment, slow });
            self.clobbered();
            return HostOperand::based(base, at.disp, store);
        }
        self.linear(at);
        let slow = self.slow_path();
        if let Some(segment) = at.segment.filter(|_| at.limited) {
            self.apply_segment(segment, size, store, slow);
        }
        let page = tag_of(store) as i32;
        let (addend, tracker) = (offset_of!(TlbEntry, addend) as i32, offset_of!(TlbEntry, flags) as i32);
        let hint = self.hint_for(at);
        self.find_in_page(hint, store, size as i32, slow);
        let a = &mut self.asm;
        if want.aligned && size > 1 {
            a.test_imm32(S1, size - 1);
            a.jcc(cc::NE, slow);
        }
        self.clobbered();
        let a = &mut self.asm;
        if let Some(base) = at.plain_base() {
            if store {
                a.alu_rm(Alu::Mov, S1, S2, tracker);
            }
            a.alu_rm(Alu::Mov, S2, S2, addend);
            return HostOperand::based(base, at.disp, store);
        }
        if !store && !at.uses_second_scratch() {
            // Another instruction, but nothing has to wait for the comparison.
            a.alu_rm(Alu::Mov, S2, S2, addend);
            let (base, disp) = self.repeated_base(at);
            return HostOperand { base, index: Some(S2), disp, tracker: None, stashed: false, group: None };
        }
        a.alu_rm(Alu::Xor, S1, S2, page);
        a.alu_rm(Alu::Add, S1, S2, addend);
        if store {
            a.alu_rm(Alu::Mov, S2, S2, tracker);
        }
        HostOperand {
            base: S1,
            index: None,
            disp: 0,
            tracker: store.then_some(S2),
            stashed: false,
            group: None,
        }
    }

    /// Compares the offset in [`S1`] with the limit of a segment, and adds its base.
    fn apply_segment(&mut self, segment: u8, size: u32, store: bool, slow: Label) {
        let a = &mut self.asm;
        a.lea(S2, S1, size as i32);
        a.alu_gs(Alu::Cmp, S2, segment_end(segment, store));
        a.jcc(cc::A, slow);
        a.load_gs(S2, segment_base(segment));
        a.lea_full(S1, Address { base: Some(S1), index: Some(S2), scale: 0, disp: 0 }, false);
    }

    /// Makes sure that `size` bytes at a guest address are in one page that may be used so, as [`Builder::check_table`]
    /// does, but looks at the stack's page first. Leaves the addend in [`S2`], and for stores the pointer to the tracker
    /// byte in [`S1`]. Flags are saved already.
    pub fn check_on_stack(&mut self, wanted: StackCheck) {
        let tag = STACK_ENTRY + tag_of(wanted.store);
        let from = self.asm.label();
        self.linear(&wanted.at);
        let a = &mut self.asm;
        a.alu_gs(Alu::Xor, S1, tag);
        a.alu_gs(Alu::Cmp, S1, STACK_LIMIT);
        a.jcc(cc::AE, from);
        wanted.check_alignment(a);
        if wanted.store {
            a.load_gs(S1, STACK_ENTRY + offset_of!(TlbEntry, flags));
        }
        a.load_gs(S2, STACK_ENTRY + offset_of!(TlbEntry, addend));
        let back = a.mark();
        self.cold.push(Cold::Stack { from, back, wanted });
    }

    /// The stack's page was another one, or the range is at its end.
    pub fn emit_stack(&mut self, from: Label, back: Label, wanted: &StackCheck) {
        self.asm.bind(from);
        self.linear(&wanted.at);
        self.asm.call_to(self.context.thunks.find_on_stack[usize::from(wanted.store)]);
        let a = &mut self.asm;
        a.cmp_imm(S1, OFFSET as i32 + 1 - wanted.size as i32);
        a.jcc(cc::A, wanted.slow);
        wanted.check_alignment(a);
        if wanted.store {
            a.alu_rm(Alu::Mov, S1, S2, offset_of!(TlbEntry, flags) as i32);
        }
        a.alu_rm(Alu::Mov, S2, S2, offset_of!(TlbEntry, addend) as i32);
        a.jmp(back);
    }

    /// Frees the register of the tracker pointer, or any, of a checked operand.
    pub fn free_scratch(&mut self, operand: &mut HostOperand) -> u8 {
        if let Some(free) = operand.free() {
            return free;
        }
        if let Some(tracker) = operand.tracker.filter(|_| !operand.stashed) {
            self.asm.store_gs(ARGUMENT, tracker);
            operand.stashed = true;
            return tracker;
        }
        // Fold the address into one register.
        let address =
            Address { base: Some(operand.base), index: operand.index, scale: 0, disp: operand.disp };
        self.asm.lea_full(S1, address, true);
        (operand.base, operand.index, operand.disp) = (S1, None, 0);
        S2
    }
}
