//! Branches, calls and returns.
//!
//! A direct jump inside the page is a *link*: it leads out of translated code the first time, and is then
//! changed to lead to its target. Jumps that leave the page, and indirect ones, look into the jump cache.
//! Events are looked at on the way back inside a page, and at the outer entry of each block, so no loop can
//! go on without.

use super::asm::{Alu, Label, Refers, S1, S2, cc};
use super::block::{After, Builder, Undo, Unknown};
use super::cold::Cold;
use super::dead::Remake;
use super::flags::FlagHome;
use super::jumps;
use super::memory::{GuestAddress, Want};
use super::operand::{self, Place};
use super::shared::{CODE_LIMIT, EVENT_MASK, EVENTS, RIP, RIP_PAGE, SPARE, home, segment_base};
use super::thunks::Exit;
use super::unit::{Link, Next, PAGE};
use crate::cpu::{gpr, seg};
use iced_x86::{Code, ConditionCode, Instruction, OpKind, Register};

/// Number of RSP.
const RSP: u8 = gpr::RSP / 8;

/// Encoding of a condition.
pub(super) fn condition(i: &Instruction) -> Option<u8> {
    match i.condition_code() {
        ConditionCode::None => None,
        code => Some(code as u8 - 1),
    }
}

/// Operand size of a near branch, call or return, in bytes; `None` for anything else.
pub(super) fn operand_size(i: &Instruction) -> Option<u8> {
    match i.code() {
        Code::Retnq | Code::Retnq_imm16 | Code::Jmp_rm64 | Code::Call_rm64 => Some(8),
        Code::Retnd | Code::Retnd_imm16 | Code::Jmp_rm32 | Code::Call_rm32 => Some(4),
        Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16 => Some(2),
        _ if i.is_jcc_short_or_near() || i.is_jmp_short_or_near() || i.is_call_near() => {
            Target::of(i).map(|target| target.size)
        }
        _ => None,
    }
}

/// Where a branch leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Relative to the page.
    pub at: i64,
    /// Bytes that count of the address.
    pub size: u8,
    /// The branch's site, if it faults on a target behind the limit of CS.
    pub site: Option<usize>,
}

/// Where a call leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Callee {
    At(Target),
    /// In a register, as an operand of a number of bytes.
    In(Register, u8),
}

impl Target {
    /// Target of a near branch.
    pub fn of(i: &Instruction) -> Option<Self> {
        let (at, size) = match i.op0_kind() {
            OpKind::NearBranch16 => (i64::from(i.near_branch16() as i16), 2),
            OpKind::NearBranch32 => (i64::from(i.near_branch32() as i32), 4),
            OpKind::NearBranch64 => (i.near_branch64() as i64, 8),
            _ => return None,
        };
        Some(Target { at, size, site: None })
    }

    /// The next instruction, wherever that is.
    pub fn next(at: i64) -> Self {
        Target { at, size: 8, site: None }
    }
}

/// An address in the page, if it is.
pub(super) fn in_page(target: i64) -> Option<u16> {
    u16::try_from(target).ok().filter(|&target| usize::from(target) < PAGE)
}

impl Builder<'_> {
    /// Translates a transfer, or says that it is none, or not known, before emitting anything.
    pub fn transfer(&mut self, i: &Instruction) -> Result<After, Unknown> {
        let Some(size) = operand_size(i) else { return Err(Unknown) };
        match i.code() {
            _ if i.is_jcc_short_or_near() => return self.branch(i),
            _ if i.is_jmp_short_or_near() => match self.loop_entry() {
                Some(entry) => {
                    self.asm.jmp(entry);
                }
                None => {
                    let target = self.target(i)?;
                    self.go_to(target);
                }
            },
            _ if i.is_call_near() => self.call(i)?,
            Code::Retnq | Code::Retnd | Code::Retnw => self.ret(size, 0),
            Code::Retnq_imm16 | Code::Retnd_imm16 | Code::Retnw_imm16 => self.ret(size, i.immediate16()),
            Code::Jmp_rm64 | Code::Jmp_rm32 | Code::Jmp_rm16 => {
                self.indirect_target(i, size)?;
                let undo = Undo { site: self.site(), stack: 0 };
                self.jump_cache(Some(undo));
            }
            Code::Call_rm64 | Code::Call_rm32 | Code::Call_rm16 => self.call_indirect(i, size)?,
            _ => return Err(Unknown),
        }
        Ok(After::End)
    }

    /// Where the current instruction, a near branch, leads.
    fn target(&mut self, i: &Instruction) -> Result<Target, Unknown> {
        let target = Target::of(i).ok_or(Unknown)?;
        let site = (!self.context.kind.is_flat()).then(|| self.site());
        Ok(Target { site, ..target })
    }

    fn branch(&mut self, i: &Instruction) -> Result<After, Unknown> {
        let condition = condition(i).ok_or(Unknown)?;
        let to = self.target(i)?;
        self.need_flags();
        let flags = self.flags;
        if let Some(entry) = self.loop_entry() {
            self.asm.jcc(condition, entry);
            return Ok(After::Next);
        }
        let from = self.asm.label();
        let at = self.asm.jcc(condition, from);
        let cold = match in_page(to.at) {
            Some(target) if target > self.offset => Cold::Link { from, at, target, flags },
            Some(target) => Cold::Back { from, to, flags, remake: self.remake_for_jump(target) },
            None => Cold::Far { from, to, flags },
        };
        self.cold.push(cold);
        Ok(After::Next)
    }

    /// Goes to an address relative to the page.
    pub fn go_to(&mut self, to: Target) {
        match in_page(to.at) {
            Some(target) if target > self.offset => {
                let from = self.asm.label();
                let at = self.asm.jmp(from);
                self.cold.push(Cold::Link { from, at, target, flags: self.flags });
            }
            Some(target) => {
                let remake = self.remake_for_jump(target);
                self.jump_back(to, remake);
            }
            None => self.jump_out(to),
        }
    }

    /// Jumps back in the page, after a look at events. With `remake`, flags do not matter there, and are only made
    /// again where the jump is left.
    pub fn jump_back(&mut self, to: Target, remake: Option<Remake>) {
        let target = to.at as u16;
        if remake.is_none() {
            self.save_flags();
        }
        let before = (!self.context.kind.is_flat()).then(|| {
            // The page may begin before the segment does: then this leads to the end of the segment, or behind it.
            let before = self.asm.label();
            self.asm.cmp_gs_imm(RIP_PAGE, -i32::from(target));
            self.asm.jcc(cc::L, before);
            before
        });
        let event = self.asm.label();
        self.look_at_events(event);
        self.clobbered();
        let from = self.asm.label();
        let at = self.asm.jmp(from);
        self.asm.bind(event);
        let link = self.link(at, target, self.flags);
        if let Some(remake) = &remake {
            self.emit_remake(remake);
        }
        self.asm.mov_number(S2, link, Refers::Link);
        self.asm.jmp_to(self.context.thunks.leave(Exit::EventAtLink));
        self.asm.bind(from);
        if let Some(remake) = &remake {
            self.emit_remake(remake);
        }
        self.asm.mov_number(S2, link, Refers::Link);
        self.asm.jmp_to(self.context.thunks.leave(Exit::Link));
        if let Some(before) = before {
            self.asm.bind(before);
            self.jump_out(to);
        }
    }

    /// Goes to `event` if events wait; uses [`S1`] and RFLAGS.
    pub fn look_at_events(&mut self, event: Label) {
        let a = &mut self.asm;
        a.load_gs(S1, EVENTS);
        a.load32(S1, S1, 0);
        a.test_gs32(EVENT_MASK, S1);
        a.jcc(cc::NE, event);
    }

    fn link(&mut self, at: u64, target: u16, flags: FlagHome) -> u32 {
        let links = &mut self.context.links;
        let at = (at - self.context.memory_start) as u32;
        links.push(Link { unit: self.context.unit, target, at, flags });
        links.len() as u32 - 1
    }

    /// The first way of a link.
    pub fn leave_by_link(&mut self, at: u64, target: u16, flags: FlagHome) {
        if flags == FlagHome::Live {
            self.emit_save();
        }
        let link = self.link(at, target, flags);
        self.asm.mov_number(S2, link, Refers::Link);
        self.asm.jmp_to(self.context.thunks.leave(Exit::Link));
    }

    /// Jumps to an address outside the page.
    pub fn jump_out(&mut self, to: Target) {
        self.save_flags();
        self.put_target(to);
        self.jump_cache(to.site.map(|site| Undo { site, stack: 0 }));
    }

    /// Puts the address that a branch leads to into [`S1`]; keeps flags.
    pub fn put_target(&mut self, to: Target) {
        self.in_page_address(to.at);
        match to.size {
            2 => self.asm.zero_extend16(S1, S1),
            4 => self.asm.mov32(S1, S1),
            _ => {}
        }
    }

    /// Puts an address relative to the page into [`S1`].
    pub fn in_page_address(&mut self, target: i64) {
        self.asm.load_gs(S1, RIP_PAGE);
        // Blocks are inside a page and displacements have 32 bits, so this fits but for a few targets next to
        // 2 GiB, for which the sum is made in two steps.
        let half = (target / 2) as i32;
        let rest = target - i64::from(half);
        match i32::try_from(target) {
            Ok(target) => self.asm.lea(S1, S1, target),
            Err(_) => {
                self.asm.lea(S1, S1, half);
                self.asm.lea(S1, S1, rest as i32);
            }
        }
    }

    /// Jumps to the address in [`S1`], an offset in CS.
    fn jump_cache(&mut self, undo: Option<Undo>) {
        self.save_target_flags();
        let (from, reload, bad) = (self.asm.label(), self.asm.label(), self.asm.label());
        let (flat, bmi2) = (self.context.kind.is_flat(), self.context.thunks.bmi2);
        let a = &mut self.asm;
        if !flat {
            if undo.is_some() {
                a.alu_gs32(Alu::Cmp, S1, CODE_LIMIT);
                a.jcc(cc::A, bad);
            }
            a.alu_gs(Alu::Add, S1, segment_base(seg::CS));
        }
        jumps::emit_search(a, bmi2, from, reload);
        if !flat {
            a.alu_gs(Alu::Sub, S1, segment_base(seg::CS));
        }
        a.store_gs(RIP_PAGE, S1);
        self.count_jump();
        self.asm.jmp_mem(S2, jumps::HOST);
        self.cold.push(Cold::Miss { from, reload, bad, undo });
    }

    /// Saves live flags while [`S1`] holds a target.
    fn save_target_flags(&mut self) {
        self.save_flags();
        self.clobbered();
    }

    /// The address in [`S1`] is not in the jump cache.
    pub fn emit_miss(&mut self, from: Label, reload: Label, bad: Label, undo: Option<Undo>) {
        let kind = self.context.kind;
        let a = &mut self.asm;
        a.bind(reload);
        a.alu_rm(Alu::Mov, S1, S2, jumps::LINEAR);
        a.bind(from);
        if !kind.is_flat() {
            a.alu_gs(Alu::Sub, S1, segment_base(seg::CS));
        }
        if undo.is_some() && kind.is_long() {
            jumps::check_canonical(a, bad);
        }
        a.store_gs(RIP, S1);
        a.jmp_to(self.context.thunks.leave(Exit::Lookup));
        a.bind(bad);
        // Flat 32-bit code has no targets at fault.
        if let Some(Undo { site, stack }) = undo.filter(|_| kind.is_long() || !kind.is_flat()) {
            if stack != 0 {
                self.move_stack(stack);
            }
            let a = &mut self.asm;
            a.mov_number(S2, site as u32, Refers::Site);
            a.call_to(self.context.thunks.call_site);
            // The interpreter has jumped or faulted, and does not come back.
            a.raw(&[0x0f, 0x0b]);
        }
    }

    fn ret(&mut self, size: u8, more: u16) {
        let bytes = i32::from(size) + i32::from(more);
        let at = GuestAddress::on_stack(self.context.kind, RSP, 0);
        let operand = self.check(&at, u32::from(size), Want::LOAD);
        self.asm.operand_sized(0x8b, S1, operand.address(), size);
        self.move_stack(bytes);
        if more == 0 && self.predicts_returns(size) {
            self.save_flags();
            return self.predicted_return();
        }
        let undo = Undo { site: self.site(), stack: -bytes };
        self.jump_cache(Some(undo));
    }

    /// Pushes the address of the next instruction.
    fn push_return(&mut self, size: u8) {
        let at = GuestAddress::on_stack(self.context.kind, RSP, -i32::from(size));
        let mut operand = self.check(&at, u32::from(size), Want::STORE);
        let scratch = self.free_scratch(&mut operand);
        self.asm.load_gs(scratch, RIP_PAGE);
        self.asm.lea(scratch, scratch, self.next as i32);
        self.asm.operand_sized(0x89, scratch, operand.address(), size);
        self.move_stack(-i32::from(size));
        let site = self.site();
        if let Some(site) = self.context.sites.get_mut(site) {
            site.next = Next::Spare;
        }
        match operand.group {
            Some(slot) => self.see_store(usize::from(slot)),
            None => self.stored(&operand),
        }
    }

    fn call(&mut self, i: &Instruction) -> Result<(), Unknown> {
        let to = self.target(i)?;
        if to.site.is_some() {
            // A target behind the limit faults before anything is pushed.
            self.save_flags();
            self.put_target(to);
            let slow = self.slow_path();
            self.asm.alu_gs32(Alu::Cmp, S1, CODE_LIMIT);
            self.asm.jcc(cc::A, slow);
            self.clobbered();
        }
        self.call = Some(Callee::At(to));
        self.push_return(to.size);
        let to = Target { site: None, ..to };
        match self.landing_place(to.size) {
            Some(next) => self.predicted_call(to, next),
            None => self.go_to(to),
        }
        Ok(())
    }

    fn call_indirect(&mut self, i: &Instruction, size: u8) -> Result<(), Unknown> {
        // A register still holds the target behind the push, but for the one that is pushed with.
        let kept = i.op0_kind() == OpKind::Register && operand::number(i.op0_register()) != RSP;
        if kept {
            self.call = Some(Callee::In(i.op0_register(), size));
        } else {
            self.indirect_target(i, size)?;
            self.asm.store_gs(SPARE, S1);
        }
        self.push_return(size);
        if let Some(next) = self.landing_place(size) {
            self.save_flags();
            let (body, _) = self.call_landing(next, false);
            self.asm.bind(body);
        }
        match self.call {
            Some(callee) => self.put_callee(callee),
            None => self.asm.load_gs(S1, SPARE),
        }
        let undo = Undo { site: self.site(), stack: i32::from(size) };
        self.jump_cache(Some(undo));
        Ok(())
    }

    /// Puts the target of an indirect transfer into [`S1`]; flags are saved.
    fn indirect_target(&mut self, i: &Instruction, size: u8) -> Result<(), Unknown> {
        if i.op0_kind() == OpKind::Memory {
            let address = GuestAddress::of(self.context.kind, i)?;
            let operand = self.check(&address, u32::from(size), Want::LOAD);
            self.asm.operand_sized(0x8b, S1, operand.address(), size);
            return Ok(());
        }
        self.save_flags();
        self.put_callee(Callee::In(i.op0_register(), size));
        Ok(())
    }

    /// Puts where a call leads into [`S1`]; keeps flags.
    pub fn put_callee(&mut self, callee: Callee) {
        let (register, size) = match callee {
            Callee::At(target) => return self.put_target(target),
            Callee::In(register, size) => (register, size),
        };
        match (operand::place(register), size) {
            (Place::Host(host), 2) => self.asm.zero_extend16(S1, host),
            (Place::Host(host), 4) => self.asm.mov32(S1, host),
            (Place::Host(host), _) => self.asm.mov(S1, host),
            (Place::Home, _) => self.asm.load_gs(S1, home(operand::number(register))),
        }
    }
}
