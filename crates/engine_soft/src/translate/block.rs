//! [`Builder`]: translates one block.
//!
//! A block is straight-line code inside one page: conditional branches leave it sideways, and it ends at
//! any other transfer, at the end of the page, or at its longest. Rare ways (slow accesses, ways out)
//! are collected and emitted behind the block.

use super::asm::{Alu, Asm, Label, Reference, Refers, S1, S2, cc};
use super::cold::Cold;
use super::dead::Remake;
use super::flags::{FlagHome, FlagUse, flag_use, keeps_carry, undefined_flags};
use super::kind::CodeKind;
use super::loops::{Closing, Swap};
use super::memory::Policy;
use super::share::{PLAIN, Plan, Share};
use super::shared::{LAST_CODE_PAGE, RIP_PAGE};
use super::thunks::{Exit, Thunks};
use super::transfer::{Callee, Target};
use super::unit::{Entries, Link, Next, PAGE, Site};
use crate::code::LONGEST_INSN;
use crate::debug::PageOffsets;
use crate::decode;
use crate::system::SystemState;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess};
use std::ops::Range;

/// Instructions in a block, at most.
pub(super) const LONGEST_BLOCK: usize = 48;

/// The instruction is the interpreter's.
#[derive(Debug)]
pub(super) struct Unknown;

/// Whether the block goes on behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Next,
    End,
}

/// How to undo a transfer whose target is not canonical: the interpreter faults on it.
#[derive(Clone, Copy)]
pub(super) struct Undo {
    pub site: usize,
    /// What to add to RSP.
    pub stack: i32,
}

/// What a builder takes from the translator.
pub(super) struct Context<'a> {
    pub thunks: Thunks,
    pub sites: &'a mut Vec<Site>,
    pub links: &'a mut Vec<Link>,
    pub shares: &'a mut Vec<Share>,
    /// Blocks are compared with the interpreter.
    pub verified: bool,
    /// What runs is counted.
    pub counted: bool,
    pub system: &'a SystemState,
    pub kind: CodeKind,
    pub unit: u32,
    /// Bytes of the page, as far as a block can reach, and some before it; elsewhere zeros.
    pub page: &'a [u8; PAGE],
    pub generation: (u64, u32),
    /// Whether checks look at [`super::hints`].
    pub hints: bool,
    /// Where code memory starts.
    pub memory_start: u64,
    /// Addresses that no block has, or goes beyond.
    pub cuts: Option<&'a PageOffsets>,
    /// The block is to be kept for other runs.
    pub portable: bool,
}

/// A block under construction.
pub(super) struct Builder<'a> {
    pub asm: Asm,
    pub context: Context<'a>,
    pub policy: Policy,
    pub flags: FlagHome,
    pub cold: Vec<Cold>,
    pub info: InstructionInfoFactory,
    /// The block, and the current instruction in it.
    pub instructions: Vec<Instruction>,
    pub index: usize,
    /// Which of them replaced the flags, if RFLAGS has what it left there.
    pub made: Option<usize>,
    /// How flags are made again on side ways; then nobody else needs them.
    pub remake: Option<Remake>,
    pub slow_remake: Option<Remake>,
    pub all_copied: bool,
    /// Accesses that share checks.
    pub shares: Plan,
    /// Level that the guest's vector registers were found at.
    pub vector: u8,
    /// Whether the guest's x87 registers were found to be the host's.
    pub x87_loaded: bool,
    /// Address in the page of the last x87 instruction, as long as it was not told.
    pub x87_last: Option<u16>,
    /// Address of the current instruction in the page, and of the next.
    pub offset: u16,
    pub next: i64,
    /// The slow path of the current instruction, once one is wanted, and its site.
    pub slow: Option<Label>,
    pub site: Option<usize>,
    /// Target of the direct call that is being translated.
    pub call: Option<Callee>,
    /// An instruction could not be encoded with host registers: there will be no block.
    pub failed: bool,
    /// The end of a block that goes back to its start.
    pub closing: Option<Closing>,
    /// Guest registers that have changed places.
    pub swaps: Vec<Swap>,
    /// Bytes of the page on which the translation depends.
    depends: Option<Range<u16>>,
    /// The second translation of a loop is emitted.
    pub in_loop: bool,
}

/// A translated block.
pub(super) struct Built {
    pub code: Vec<u8>,
    pub entries: Entries,
    pub insns: u32,
    /// No instruction is always the interpreter's.
    pub all_copied: bool,
    /// Flags that the manual leaves undefined somewhere in the block.
    pub undefined: u64,
    /// Bytes of the page on which the translation depends.
    pub depends: Range<u16>,
    /// What the code refers to, if the context asked for it.
    pub references: Option<Vec<Reference>>,
}

impl<'a> Builder<'a> {
    /// A builder of code for `base` in a used buffer.
    pub fn new(base: u64, buffer: Vec<u8>, context: Context<'a>) -> Self {
        let mut asm = Asm::in_buffer(base, buffer);
        asm.references = context.portable.then(Vec::new);
        Builder {
            asm,
            context,
            policy: Policy::Table,
            flags: FlagHome::Saved,
            cold: Vec::new(),
            info: InstructionInfoFactory::new(),
            instructions: Vec::new(),
            index: 0,
            made: None,
            remake: None,
            slow_remake: None,
            all_copied: true,
            shares: Plan::default(),
            vector: 0,
            x87_loaded: false,
            x87_last: None,
            offset: 0,
            next: 0,
            slow: None,
            site: None,
            call: None,
            failed: false,
            closing: None,
            swaps: Vec::new(),
            depends: None,
            in_loop: false,
        }
    }

    /// Translates the block at `start` in the page. `None` if an instruction cannot be encoded with host registers: the
    /// interpreter runs it. With [`PLAIN`], no accesses share checks.
    pub fn build(mut self, start: u16) -> Option<Built> {
        let (sites, links, shares) =
            (self.context.sites.len(), self.context.links.len(), self.context.shares.len());
        let (plain, start) = (start & PLAIN != 0, start & !PLAIN);
        self.instructions = self.decode(start);
        if self.instructions.is_empty() {
            return Some(self.build_way_out(start));
        }
        for end in [self.instructions.first().copied(), self.instructions.last().copied()] {
            end.iter().for_each(|i| self.depend_on(i));
        }
        self.plan(plain);
        if !plain {
            self.find_loop(start);
        }
        let wish = self.wish();
        let first = self.instructions.first()?;
        debug_assert_eq!(first.ip() as u16, start, "a block starts with its first instruction");
        let insns = u32::try_from(self.instructions.len()).ok().filter(|&count| count > 0)?;
        // A block can be left at any branch, so what was undefined anywhere counts.
        let undefined = self.instructions.iter().fold(0, |sum, i| sum | undefined_flags(i));
        let outer = self.outer_entry(start);
        let (saved, live);
        if wish != FlagHome::Saved {
            saved = self.asm.mark();
            if wish == FlagHome::Live {
                match self.instructions.iter().find(|i| flag_use(i) != FlagUse::None) {
                    Some(i) if keeps_carry(i) => self.emit_restore_carry(),
                    _ => self.emit_restore(),
                }
            }
            live = self.asm.mark();
            self.flags = FlagHome::Live;
        } else {
            saved = self.asm.mark();
            live = self.asm.label();
            self.flags = FlagHome::Saved;
        }
        self.count_block();
        let end = self.translate_to(self.instructions.len());
        if end == After::Next {
            self.see_stores();
            self.tell_x87();
            self.go_to(Target::next(self.next));
        }
        if wish == FlagHome::Saved {
            self.asm.bind(live);
            self.emit_save();
            self.asm.jmp(saved);
        }
        self.emit_cold();
        self.emit_loop(start, saved);
        if self.failed {
            self.context.sites.truncate(sites);
            self.context.links.truncate(links);
            self.context.shares.truncate(shares);
            return None;
        }
        self.asm.finish();
        let entries = Entries {
            outer: self.address_of(outer),
            saved: self.address_of(saved),
            live: self.address_of(live),
            prefers_live: wish != FlagHome::Saved,
        };
        let (depends, references) = (self.depends.unwrap_or_default(), self.asm.references.take());
        let all_copied = self.all_copied;
        Some(Built { code: self.asm.bytes, entries, insns, all_copied, undefined, depends, references })
    }

    /// A block of no instructions, where the first one crosses the page's end or is cut: it leads to the interpreter, and
    /// is not for other runs.
    fn build_way_out(mut self, start: u16) -> Built {
        let outer = self.outer_entry(start);
        let saved = self.asm.mark();
        self.leave_at(start, Exit::Interpret);
        let live = self.asm.mark();
        self.emit_save();
        self.asm.jmp(saved);
        self.emit_cold();
        self.asm.finish();
        let [outer, saved, live] = [outer, saved, live].map(|label| self.address_of(label));
        Built {
            code: self.asm.bytes,
            entries: Entries { outer, saved, live, prefers_live: false },
            insns: 0,
            all_copied: false,
            undefined: 0,
            depends: 0..0,
            references: None,
        }
    }

    /// Translates the instructions from the current one up to the one with a number, which is the current one then. Tells
    /// what comes behind the last.
    pub fn translate_to(&mut self, end: usize) -> After {
        let mut after = After::Next;
        while self.index < end {
            self.see_stores();
            match self.stack_run() {
                0 | 1 => {
                    let i = self.instructions[self.index];
                    after = self.instruction(&i);
                    if i.flow_control() == FlowControl::ConditionalBranch {
                        self.count_stretch(self.index + 1);
                    }
                }
                count => self.translate_stack_run(count),
            }
            self.index += 1;
        }
        after
    }

    /// The translation depends on the bytes of an instruction of the page.
    pub fn depend_on(&mut self, i: &Instruction) {
        let start = i.ip() as u16;
        // What is no instruction could be one with other bytes behind it.
        let len = if i.is_invalid() { LONGEST_INSN } else { i.len() };
        let end = (usize::from(start) + len).min(PAGE) as u16;
        let before = self.depends.take().unwrap_or(start..end);
        self.depends = Some(before.start.min(start)..before.end.max(end));
    }

    fn address_of(&self, label: Label) -> u32 {
        (self.asm.address_of(label) - self.context.memory_start) as u32
    }

    fn decode(&self, start: u16) -> Vec<Instruction> {
        let bytes = &self.context.page[usize::from(start)..];
        let kind = self.context.kind;
        let mut decoder =
            Decoder::with_ip(kind.code_size().into(), bytes, u64::from(start), DecoderOptions::NONE);
        let mut instructions = Vec::with_capacity(16);
        while decoder.can_decode() && instructions.len() < LONGEST_BLOCK {
            if self.context.cuts.is_some_and(|cuts| cuts.has(decoder.ip())) {
                break;
            }
            let mut instruction = decoder.decode();
            let cut = decoder.last_error() == iced_x86::DecoderError::NoMoreBytes;
            if cut
                && !(instruction.is_invalid()
                    && bytes.len() - (instruction.ip() - u64::from(start)) as usize >= 15)
            {
                break;
            }
            let mut ends = instruction.is_invalid();
            ends |= !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
            super::kind::normalise(kind, &mut instruction);
            ends |= self.closes(start, &instruction);
            instructions.push(instruction);
            if ends {
                break;
            }
        }
        instructions
    }

    /// Where the first thing that matters to the flags wants them; `Both` if it replaces them unseen.
    fn wish(&mut self) -> FlagHome {
        for at in 0..self.instructions.len() {
            let i = self.instructions[at];
            let plain = i.flow_control() == FlowControl::Next;
            let vector = super::vector::is_known_form(&i);
            if plain && (vector || !super::copy::is_known(self.context.system, &i)) {
                return FlagHome::Saved;
            }
            let memory = (0..i.op_count()).any(|at| i.op_kind(at) == iced_x86::OpKind::Memory);
            if memory && i.mnemonic() != iced_x86::Mnemonic::Lea || i.is_stack_instruction() {
                return FlagHome::Saved;
            }
            match flag_use(&i) {
                FlagUse::None if plain => {}
                FlagUse::None => return FlagHome::Saved,
                FlagUse::Replaces => return FlagHome::Both,
                FlagUse::Changes if self.flags_are_dead_behind(at) => return FlagHome::Both,
                FlagUse::Changes if self.count_is_only_seen_aside(at) => return FlagHome::Saved,
                FlagUse::Reads | FlagUse::Changes => return FlagHome::Live,
            }
        }
        FlagHome::Saved
    }

    /// Where jumps from other pages arrive: events and the generation are looked at.
    fn outer_entry(&mut self, start: u16) -> Label {
        let outer = self.asm.mark();
        let leave = self.asm.label();
        if !self.context.kind.is_flat() {
            let beyond = self.asm.label();
            self.asm.load_gs(S1, RIP_PAGE);
            self.asm.alu_gs(Alu::Cmp, S1, LAST_CODE_PAGE);
            self.asm.jcc(cc::G, beyond);
            self.cold.push(Cold::Leave { from: beyond, start, exit: Exit::Interpret });
        }
        self.look_at_events(leave);
        self.look_at_generation(leave);
        self.cold.push(Cold::Leave { from: leave, start, exit: Exit::InPage });
        outer
    }

    /// Goes to `leave` if the page has changed; uses [`S1`] and RFLAGS.
    pub fn look_at_generation(&mut self, leave: Label) {
        let (cell, generation) = self.context.generation;
        let a = &mut self.asm;
        a.mov_imm64(S1, cell);
        a.refer(8, Refers::Cell);
        a.cmp_dword(S1, generation);
        a.refer(4, Refers::Generation);
        a.jcc(cc::NE, leave);
    }

    /// Makes an instruction the current one.
    pub fn begin(&mut self, i: &Instruction) {
        self.offset = i.ip() as u16;
        self.next = i.next_ip() as i64;
        (self.slow, self.site, self.call, self.slow_remake) = (None, None, None, None);
    }

    /// Translates one instruction.
    fn instruction(&mut self, i: &Instruction) -> After {
        self.begin(i);
        if i.flow_control() != FlowControl::Next {
            self.tell_x87();
        }
        let (before, x87) = (self.asm.bytes.len(), self.x87_last);
        let result = self
            .transfer(i)
            .or_else(|_| self.stack(i))
            .or_else(|_| self.x87(i))
            .or_else(|_| self.string(i))
            .or_else(|_| self.system(i))
            .or_else(|_| self.copy(i));
        let after = match result {
            Ok(after) => after,
            Err(Unknown) => {
                debug_assert_eq!(before, self.asm.bytes.len(), "nothing was emitted");
                self.interpret()
            }
        };
        if let (Some(from), Some(site)) = (self.slow, self.site) {
            let back = self.asm.mark();
            let (flags, remake) = (self.flags, self.slow_remake);
            self.cold.push(Cold::Slow { from, site, more: Vec::new(), back, flags, x87, remake });
        }
        after
    }

    /// Calls the interpreter for the current instruction, and goes on behind it.
    fn interpret(&mut self) -> After {
        self.all_copied = false;
        debug_assert_eq!(
            self.remake,
            None,
            "{:?} was thought to be copied",
            self.instructions[self.index].code()
        );
        self.tell_x87();
        self.save_flags();
        let site = self.site();
        self.asm.mov_number(S2, site as u32, Refers::Site);
        self.call_out(self.context.thunks.call_site);
        self.clobbered();
        After::Next
    }

    /// The site of the current instruction.
    pub fn site(&mut self) -> usize {
        if let Some(site) = self.site {
            return site;
        }
        let rest = self.rest_of_stretch();
        let sites = &mut self.context.sites;
        let (unit, offset) = (self.context.unit, self.offset);
        let next = Next::Behind((self.next - i64::from(offset)) as u8);
        let inside = self.index + 1 < self.instructions.len();
        sites.push(Site { unit, offset, next, inside, rest, count: 0 });
        self.site = Some(sites.len() - 1);
        sites.len() - 1
    }

    /// Where the current instruction's checks go when they fail: nothing has happened yet.
    pub fn slow_path(&mut self) -> Label {
        self.site();
        self.slow_remake = self.remake;
        *self.slow.get_or_insert_with(|| self.asm.label())
    }

    /// After a store through a checked operand: the tracker is looked at.
    pub fn stored(&mut self, operand: &super::memory::HostOperand) {
        if let Some(slot) = operand.group {
            self.shares.unseen |= 1 << slot;
        }
        let Some(mut tracker) = operand.tracker else { return };
        if operand.stashed {
            tracker = S1;
            self.save_unless_read(self.index + 1);
            self.asm.load_gs(S1, super::shared::ARGUMENT);
        } else {
            if tracker != S1 && self.flags == FlagHome::Live {
                self.asm.mov(S1, tracker);
                tracker = S1;
            }
            self.save_unless_read(self.index + 1);
        }
        self.look_at(tracker);
    }

    /// Accesses of an instruction's operands.
    pub fn accesses(&mut self, i: &Instruction) -> [OpAccess; 5] {
        let info = self.info.info(i);
        std::array::from_fn(|at| info.op_access(at as u32))
    }
}

/// Whether the model has an instruction, by every feature it needs.
pub(super) fn is_offered(system: &SystemState, i: &Instruction) -> bool {
    decode::is_offered_strictly(system, i)
}
