//! Branches, calls and returns.
//!
//! A direct jump inside the page is a *link*: it leads out of translated code the first time, and is then
//! changed to lead to its target. Jumps that leave the page, and indirect ones, look into the jump cache.
//! Events are looked at on the way back inside a page, and at the outer entry of each block, so no loop can
//! go on without.

use super::asm::{Alu, Label, Refers, S1, S2, cc};
use super::block::{After, Builder, Cold, Undo, Unknown};
use super::dead::Remake;
use super::flags::FlagHome;
use super::jumps::{ENTRY_SHIFT, HOST, JUMP_CACHE_SIZE, KEY, LINEAR, PAGE as ENTRY_PAGE, ROTATION};
use super::memory::{GuestAddress, Want};
use super::operand::{self, Place};
use super::shared::{EVENT_MASK, EVENTS, FETCH_KEY, JUMPS, RIP, RIP_PAGE, SPARE, home};
use super::thunks::Exit;
use super::unit::{Link, Next, PAGE};
use crate::cpu::gpr;
use iced_x86::{Code, ConditionCode, Instruction, OpKind};

/// Number of RSP.
const RSP: u8 = gpr::RSP / 8;

/// Encoding of a condition.
fn condition(i: &Instruction) -> Option<u8> {
    match i.condition_code() {
        ConditionCode::None => None,
        code => Some(code as u8 - 1),
    }
}

/// An address in the page, if it is.
fn in_page(target: i64) -> Option<u16> {
    u16::try_from(target).ok().filter(|&target| usize::from(target) < PAGE)
}

impl Builder<'_> {
    /// Translates a transfer, or says that it is none, or not known, before emitting anything.
    pub fn transfer(&mut self, i: &Instruction) -> Result<After, Unknown> {
        match i.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => {
                self.go_to(i.near_branch64() as i64);
                Ok(After::End)
            }
            Code::Call_rel32_64 => self.call(i.near_branch64() as i64),
            Code::Retnq => self.ret(8),
            Code::Retnq_imm16 => self.ret(8 + i32::from(i.immediate16())),
            Code::Jmp_rm64 => {
                self.indirect_target(i)?;
                let undo = Undo { site: self.site(), stack: 0 };
                self.jump_cache(Some(undo));
                Ok(After::End)
            }
            Code::Call_rm64 => self.call_indirect(i),
            _ if i.is_jcc_short_or_near() && i.op0_kind() == OpKind::NearBranch64 => self.branch(i),
            _ => Err(Unknown),
        }
    }

    fn branch(&mut self, i: &Instruction) -> Result<After, Unknown> {
        let condition = condition(i).ok_or(Unknown)?;
        let target = i.near_branch64() as i64;
        self.need_flags();
        let flags = self.flags;
        let from = self.asm.label();
        let at = self.asm.jcc(condition, from);
        let cold = match in_page(target) {
            Some(target) if target > self.offset => Cold::Link { from, at, target, flags },
            Some(target) => Cold::Back { from, target, flags, remake: self.remake_for_jump(target) },
            None => Cold::Far { from, target, flags },
        };
        self.cold.push(cold);
        Ok(After::Next)
    }

    /// Goes to an address relative to the page.
    pub fn go_to(&mut self, target: i64) {
        match in_page(target) {
            Some(target) if target > self.offset => {
                let from = self.asm.label();
                let at = self.asm.jmp(from);
                self.cold.push(Cold::Link { from, at, target, flags: self.flags });
            }
            Some(target) => {
                let remake = self.remake_for_jump(target);
                self.jump_back(target, remake);
            }
            None => self.jump_out(target),
        }
    }

    /// Jumps back in the page, after a look at events. With `remake`, flags do not matter there, and are only made
    /// again where the jump is left.
    pub fn jump_back(&mut self, target: u16, remake: Option<Remake>) {
        if remake.is_none() {
            self.save_flags();
        }
        let event = self.asm.label();
        let a = &mut self.asm;
        a.load_gs(S1, EVENTS);
        a.load32(S1, S1, 0);
        a.test_gs32(EVENT_MASK, S1);
        a.jcc(cc::NE, event);
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
    pub fn jump_out(&mut self, target: i64) {
        self.save_flags();
        self.in_page_address(target);
        self.jump_cache(None);
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

    /// Jumps to the linear address in [`S1`].
    fn jump_cache(&mut self, undo: Option<Undo>) {
        self.save_target_flags();
        let (from, reload) = (self.asm.label(), self.asm.label());
        let a = &mut self.asm;
        if self.context.thunks.bmi2 {
            a.rorx32(S2, S1, ROTATION);
        } else {
            a.mov32(S2, S1);
            a.shift(1, S2, ROTATION, false);
        }
        a.alu_rr32(Alu::Xor, S2, S1);
        a.shift(4, S2, ENTRY_SHIFT, false);
        a.and_imm32(S2, ((JUMP_CACHE_SIZE - 1) << ENTRY_SHIFT) as i32);
        a.alu_gs(Alu::Add, S2, JUMPS);
        a.alu_rm(Alu::Cmp, S1, S2, LINEAR);
        a.jcc(cc::NE, from);
        a.load_gs(S1, FETCH_KEY);
        a.alu_rm(Alu::Cmp, S1, S2, KEY);
        a.jcc(cc::NE, reload);
        a.alu_rm(Alu::Mov, S1, S2, ENTRY_PAGE);
        a.store_gs(RIP_PAGE, S1);
        a.jmp_mem(S2, HOST);
        self.cold.push(Cold::Miss { from, reload, undo });
    }

    /// Saves live flags while [`S1`] holds a target.
    fn save_target_flags(&mut self) {
        self.save_flags();
        self.clobbered();
    }

    /// The address in [`S1`] is not in the jump cache.
    pub fn emit_miss(&mut self, from: Label, reload: Label, undo: Option<Undo>) {
        let a = &mut self.asm;
        a.bind(reload);
        a.alu_rm(Alu::Mov, S1, S2, LINEAR);
        a.bind(from);
        let bad = a.label();
        if undo.is_some() {
            a.mov(S2, S1);
            a.shift(4, S2, 16, true);
            a.shift(7, S2, 16, true);
            a.alu_rr(Alu::Cmp, S2, S1);
            a.jcc(cc::NE, bad);
        }
        a.store_gs(RIP, S1);
        a.jmp_to(self.context.thunks.leave(Exit::Lookup));
        a.bind(bad);
        if let Some(Undo { site, stack }) = undo {
            if stack != 0 {
                a.lea(super::asm::GUEST_RSP, super::asm::GUEST_RSP, stack);
            }
            a.mov_number(S2, site as u32, Refers::Site);
            a.call_to(self.context.thunks.call_site);
            // The interpreter has jumped or faulted, and does not come back.
            a.raw(&[0x0f, 0x0b]);
        }
    }

    fn ret(&mut self, bytes: i32) -> Result<After, Unknown> {
        let operand = self.check(&GuestAddress::based(RSP, 0), 8, Want::LOAD);
        self.asm.operand(0x8b, S1, operand.base, operand.index, operand.disp);
        self.asm.lea(super::asm::GUEST_RSP, super::asm::GUEST_RSP, bytes);
        let undo = Undo { site: self.site(), stack: -bytes };
        self.jump_cache(Some(undo));
        Ok(After::End)
    }

    /// Pushes the address of the next instruction.
    fn push_return(&mut self) {
        let mut operand = self.check(&GuestAddress::based(RSP, -8), 8, Want::STORE);
        let scratch = self.free_scratch(&mut operand);
        self.asm.load_gs(scratch, RIP_PAGE);
        self.asm.lea(scratch, scratch, self.next as i32);
        self.asm.operand(0x89, scratch, operand.base, operand.index, operand.disp);
        self.asm.lea(super::asm::GUEST_RSP, super::asm::GUEST_RSP, -8);
        let site = self.site();
        if let Some(site) = self.context.sites.get_mut(site) {
            site.next = Next::Spare;
        }
        match operand.group {
            Some(slot) => self.see_store(usize::from(slot)),
            None => self.stored(&operand),
        }
    }

    fn call(&mut self, target: i64) -> Result<After, Unknown> {
        self.call = Some(target);
        self.push_return();
        self.go_to(target);
        Ok(After::End)
    }

    fn call_indirect(&mut self, i: &Instruction) -> Result<After, Unknown> {
        self.indirect_target(i)?;
        self.asm.store_gs(SPARE, S1);
        self.push_return();
        self.asm.load_gs(S1, SPARE);
        let undo = Undo { site: self.site(), stack: 8 };
        self.jump_cache(Some(undo));
        Ok(After::End)
    }

    /// Puts the target of an indirect transfer into [`S1`]; flags are saved.
    fn indirect_target(&mut self, i: &Instruction) -> Result<(), Unknown> {
        if i.op0_kind() == OpKind::Memory {
            let address = GuestAddress::of(i)?;
            let operand = self.check(&address, 8, Want::LOAD);
            self.asm.operand(0x8b, S1, operand.base, operand.index, operand.disp);
            return Ok(());
        }
        self.save_flags();
        let register = i.op0_register();
        match operand::place(register) {
            Place::Host(host) => self.asm.mov(S1, host),
            Place::Home => self.asm.load_gs(S1, home(operand::number(register))),
        }
        Ok(())
    }
}
