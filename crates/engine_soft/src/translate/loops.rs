//! Loops of one block: a block whose last instruction goes back to its first.
//!
//! The block is translated as any other, and then a second time for its further iterations. What the first iteration
//! has found out holds for them, and what costs much is done once for many of them:
//! * **Checks.** An access whose address changes by a constant in each iteration, or not at all, has a check before the
//!   iterations instead of one in each. It covers the range that the iteration at hand reaches, and tells how many
//!   iterations later that range leaves its page. The least of these numbers, and [`LONGEST_RUN`], is how many
//!   iterations run before all checks are made again.
//! * **Events** are looked at when checks are made. What is left of that in each iteration is a comparison of a register
//!   that changes by a constant, with what it will hold then.
//! * **Registers.** Guest registers that are kept in memory change places with others that the body uses less.
//! * **Flags** that nobody reads in the next iteration are not saved; side ways make them again.
//!
//! If a check fails, the first translation runs the iteration, and its end tries again.
//!
//! ```text
//! first translation    ...; jcc entry; on to what is behind the loop
//! entry:               exchange registers
//! again:               look at events; make checks; set the limit
//! top:                 second translation ...; jncc out
//!                      cmp counter, gs:[limit]; jne top; jmp again
//! out:                 exchange registers back; on to what is behind the loop
//! ```
//!
//! # Isolation
//! How much a register changes in an iteration is known from what the body's instructions add to it, along the only way
//! through the body ([`super::share`], and [`find_counter`]). The body has no instruction that could change
//! translations. A check compares the range of the first iteration with a page as any other does, and allows as many
//! more as its start, moving by that change, stays where the range does not leave the page. The counter meets its limit
//! after exactly as many, because it changes by the same constant each time.

use super::asm::{Alu, Label, S1, S2, cc};
use super::block::Builder;
use super::dead::Remake;
use super::flags::FlagHome;
use super::operand::{self, Place};
use super::share::RangeCheck;
use super::shared::{BUDGET, LIMIT, home};
use super::thunks::Exit;
use super::transfer::{self, Callee, Target};
use super::unit::Next;
use crate::mmu::OFFSET;
use iced_x86::{Encoder, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

/// Most iterations between two looks at events.
const LONGEST_RUN: usize = 1024;
/// As [`LONGEST_RUN`], if the body has accesses that are checked one by one, and each may wait for memory.
const LONGEST_CHECKED_RUN: usize = 128;
/// Most instructions between two looks at events: a microsecond, or a hundred if they are the slowest.
const LONGEST_STRETCH: usize = 4096;

/// What exchanging two registers before and behind the loop costs, as their uses are counted.
const LEAST_GAIN: u32 = 2;
/// Branches out of the body in the middle of it that a loop may have: with more, it seldom runs long enough.
const MOST_BRANCHES: usize = 2;
/// Number of a register that no encoding uses by itself.
const ANYONE: u8 = 15;

/// The end of a block that goes back to its start.
#[derive(Clone, Copy)]
pub(super) struct Closing {
    /// Where it leads.
    entry: Label,
    /// Where flags are then.
    flags: FlagHome,
}

/// Guest registers that have changed places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Swap {
    /// The one that is in a host register otherwise, and that register.
    hosted: u8,
    host: u8,
    /// The one that is in memory otherwise.
    homed: u8,
}

impl Swap {
    fn other(self, number: u8) -> u8 {
        match number {
            _ if number == self.hosted => self.homed,
            _ if number == self.homed => self.hosted,
            _ => number,
        }
    }
}

/// A register that changes by a constant in each iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counter {
    register: u8,
    step: i32,
    /// 64 bits change; otherwise 32, and the others are zero.
    wide: bool,
}

/// What the parts of the second translation need of each other.
struct Ways {
    again: Label,
    top: Label,
    /// Events wait.
    event: Label,
    /// A check has failed.
    failed: Label,
    /// How flags are made again at the end of the body, if they are not saved.
    lost: Option<Remake>,
    counter: Option<Counter>,
}

impl Builder<'_> {
    /// Whether an instruction of the block that begins at `start` ends a loop.
    pub fn closes(&self, start: u16, i: &Instruction) -> bool {
        let jumps = i.is_jcc_short_or_near() || i.is_jmp_short_or_near();
        let context = &self.context;
        jumps && context.kind.is_long() && !context.verified && i.near_branch64() == u64::from(start)
    }

    /// Notes whether the block is a loop to be translated twice.
    pub fn find_loop(&mut self, start: u16) {
        let Some((last, body)) = self.instructions.split_last() else { return };
        let system = self.context.system;
        let few = body.iter().filter(|i| i.is_jcc_short_or_near()).count() <= MOST_BRANCHES;
        if few && self.closes(start, last) && body.iter().all(|i| super::share::is_followed(system, i)) {
            let entry = self.asm.label();
            self.closing = Some(Closing { entry, flags: FlagHome::Saved });
        }
    }

    /// Where the current instruction, a direct jump, goes in the second translation, if it is the end of the loop.
    pub fn loop_entry(&mut self) -> Option<Label> {
        let is_last = self.index + 1 == self.instructions.len();
        let closing = self.closing.as_mut().filter(|_| is_last)?;
        closing.flags = self.flags;
        Some(closing.entry)
    }

    /// Emits the second translation, if the block is a loop; `first` is the entry of the first one with flags saved.
    pub fn emit_loop(&mut self, start: u16, first: Label) {
        let Some(closing) = self.closing.take() else { return };
        self.in_loop = true;
        self.swaps = self.choose_swaps();
        let counter = self.find_counter();
        self.plan_loop(counter.is_some());
        let made = self.made.take();
        (self.index, self.slow_remake) = (0, None);
        let lost = self.remake_for_loop(made);
        let [again, top, event, failed] = std::array::from_fn(|_| self.asm.label());
        let ways = Ways { again, top, event, failed, lost, counter };
        self.asm.bind(closing.entry);
        if lost.is_none() && closing.flags == FlagHome::Live {
            self.emit_save();
        }
        self.swap();
        self.start_run(&ways);
        (self.flags, self.remake) = (FlagHome::Saved, lost);
        self.asm.bind(top);
        self.count_block();
        self.translate_to(self.instructions.len() - 1);
        self.close(&ways);
        self.emit_loop_exits(&ways, start, first);
    }

    /// Looks at events, makes the checks, and sets the limit.
    fn start_run(&mut self, ways: &Ways) {
        self.asm.bind(ways.again);
        self.look_at_events(ways.event);
        let checked = (0..self.instructions.len()).any(|at| self.may_call(at));
        let longest = if checked { LONGEST_CHECKED_RUN } else { LONGEST_RUN };
        let longest = longest.min(LONGEST_STRETCH / self.instructions.len()) as i32;
        let mut bounded = false;
        for check in self.shares.loop_checks() {
            self.linear(&check.start);
            self.check_range(&check, None, ways.failed);
            if check.stride != 0 {
                debug_assert!(ways.counter.is_some(), "what an address moves by is a counter's step");
                self.allowed_by(&check);
                self.keep_least(longest, bounded);
                bounded = true;
            }
            self.keep_range(&check, ways.failed);
        }
        if let Some(counter) = ways.counter {
            let a = &mut self.asm;
            if bounded {
                a.load_gs(S1, BUDGET);
            } else {
                a.mov_imm32(S1, longest as u32);
            }
            self.set_limit(counter, i32::from(bounded));
        }
    }

    /// How many iterations after the next one the range at the offset in [`S1`] stays in the page, into [`S1`].
    fn allowed_by(&mut self, check: &RangeCheck) {
        let a = &mut self.asm;
        if check.stride > 0 {
            a.neg(S1);
            a.add_imm(S1, OFFSET as i32 + 1 - check.span);
        }
        let distance = check.stride.unsigned_abs();
        if distance.is_power_of_two() {
            a.shift(5, S1, distance.trailing_zeros() as u8, true);
        } else {
            // Rounded down, so that it may be one less, never more.
            a.imul_imm(S1, (0x1_0000 / distance) as i32);
            a.shift(5, S1, 16, true);
        }
    }

    /// Keeps the number in [`S1`], if it is less than what others allow.
    fn keep_least(&mut self, longest: i32, bounded: bool) {
        let a = &mut self.asm;
        let least = a.label();
        if bounded {
            a.alu_gs(Alu::Cmp, S1, BUDGET);
            a.jcc(cc::AE, least);
            a.store_gs(BUDGET, S1);
            a.bind(least);
        } else {
            a.cmp_imm(S1, longest - 1);
            a.jcc(cc::B, least);
            a.mov_imm32(S1, longest as u32 - 1);
            a.bind(least);
            a.store_gs(BUDGET, S1);
        }
    }

    /// Sets what the counter holds after as many iterations as [`S1`] says, and some more.
    fn set_limit(&mut self, Counter { register, step, wide }: Counter, more: i32) {
        let a = &mut self.asm;
        if more != 0 {
            a.lea(S1, S1, more);
        }
        match step {
            1 => {}
            -1 => a.neg(S1),
            _ => a.imul_imm(S1, step),
        }
        match operand::place(operand::wide(register)) {
            Place::Host(host) => a.alu_rr(Alu::Add, S1, host),
            Place::Home => a.alu_gs(Alu::Add, S1, home(register)),
        }
        if !wide {
            a.mov32(S1, S1);
        }
        a.store_gs(LIMIT, S1);
    }

    /// The end of the body.
    fn close(&mut self, ways: &Ways) {
        let i = self.instructions[self.index];
        self.begin(&i);
        self.tell_x87();
        let unseen = std::mem::take(&mut self.shares.unseen);
        let out = transfer::condition(&i).map(|condition| {
            self.need_flags();
            let out = self.asm.label();
            self.asm.jcc(condition ^ 1, out);
            (out, self.flags)
        });
        if ways.lost.is_none() {
            self.save_flags();
        }
        self.clobbered();
        self.remake = ways.lost;
        if unseen != 0 {
            self.see_stores_of_body(unseen, &i);
        }
        match ways.counter {
            Some(counter) => {
                self.compare_with_limit(counter);
                self.asm.jcc(cc::NE, ways.top);
                self.asm.jmp(ways.again);
            }
            None => {
                self.look_at_events(ways.event);
                self.asm.jmp(ways.top);
            }
        }
        if let Some((out, flags)) = out {
            self.asm.bind(out);
            (self.flags, self.remake) = (flags, None);
            (self.site, self.call) = (None, None);
            self.shares.unseen = unseen;
            self.see_all_stores();
            self.swap();
            // From here on registers are where they always are.
            let (cold, swaps) = (std::mem::take(&mut self.cold), std::mem::take(&mut self.swaps));
            self.go_to(Target::next(self.next));
            self.emit_cold();
            (self.cold, self.swaps) = (cold, swaps);
        }
    }

    /// Looks at the trackers of an iteration's stores before the next one. The last instruction has jumped.
    fn see_stores_of_body(&mut self, unseen: u8, last: &Instruction) {
        self.shares.unseen = unseen;
        self.call = Target::of(last).map(Callee::At);
        let site = self.site();
        if let Some(site) = self.context.sites.get_mut(site) {
            site.next = Next::Spare;
        }
        self.see_all_stores();
    }

    fn compare_with_limit(&mut self, Counter { register, wide, .. }: Counter) {
        let a = &mut self.asm;
        let host = match operand::place(operand::wide(register)) {
            Place::Host(host) => host,
            Place::Home => {
                a.load_gs(S1, home(register));
                S1
            }
        };
        if wide { a.alu_gs(Alu::Cmp, host, LIMIT) } else { a.alu_gs32(Alu::Cmp, host, LIMIT) }
    }

    /// The ways out of the second translation but the one behind the loop.
    fn emit_loop_exits(&mut self, ways: &Ways, start: u16, first: Label) {
        self.asm.bind(ways.event);
        self.canonical(ways.lost.as_ref());
        self.asm.mov_imm32(S2, u32::from(start));
        self.asm.jmp_to(self.context.thunks.leave(Exit::InPage));
        self.asm.bind(ways.failed);
        self.canonical(ways.lost.as_ref());
        self.asm.jmp(first);
        self.emit_cold();
        self.swaps.clear();
    }

    /// Saves flags that are not, and puts registers back.
    fn canonical(&mut self, lost: Option<&Remake>) {
        if let Some(lost) = lost {
            self.emit_remake(lost);
        }
        self.swap_aside();
    }

    /// Exchanges the registers of the swaps; keeps flags, uses [`S1`].
    pub fn swap(&mut self) {
        let a = &mut self.asm;
        for &Swap { host, homed, .. } in &self.swaps {
            a.load_gs(S1, home(homed));
            a.store_gs(home(homed), host);
            a.mov(host, S1);
        }
    }

    /// As [`Builder::swap`], slower; keeps the scratch registers, too.
    pub fn swap_aside(&mut self) {
        for &Swap { host, homed, .. } in &self.swaps {
            self.asm.xchg_gs(host, home(homed));
        }
    }

    /// Calls a thunk with the guest's registers where they always are.
    pub fn call_out(&mut self, thunk: u64) {
        self.swap_aside();
        self.asm.call_to(thunk);
        self.swap_aside();
    }

    /// Chooses guest registers that change places, and renames them in the instructions.
    fn choose_swaps(&mut self) -> Vec<Swap> {
        let (uses, fixed) = self.uses();
        let (mut homed, mut hosted): (Vec<u8>, Vec<u8>) =
            (0..16).partition(|&n| operand::place(operand::wide(n)) == Place::Home);
        homed.retain(|&n| uses[usize::from(n)] > 0);
        hosted.retain(|&n| !fixed[usize::from(n)]);
        homed.sort_by_key(|&n| std::cmp::Reverse(uses[usize::from(n)]));
        hosted.sort_by_key(|&n| uses[usize::from(n)]);
        let pairs = homed.into_iter().zip(hosted);
        let gain =
            |&(homed, hosted): &(u8, u8)| uses[usize::from(homed)] > uses[usize::from(hosted)] + LEAST_GAIN;
        let swaps: Vec<Swap> = pairs
            .take_while(gain)
            .filter_map(|(homed, hosted)| match operand::place(operand::wide(hosted)) {
                Place::Host(host) => Some(Swap { hosted, host, homed }),
                Place::Home => None,
            })
            .collect();
        if swaps.is_empty() {
            return swaps;
        }
        let renamed: Vec<Instruction> = self.instructions.iter().map(|i| renamed(i, &swaps)).collect();
        let mut encoder = Encoder::new(64);
        // Branches are not copied, and need not be near.
        let mut copied = renamed.iter().filter(|i| i.op_count() > 0 && i.op0_kind() != OpKind::NearBranch64);
        if copied.any(|i| encoder.encode(i, 0).is_err()) {
            return Vec::new();
        }
        self.instructions = renamed;
        swaps
    }

    /// What each guest register would cost the body in memory, and which registers must stay what they are.
    fn uses(&mut self) -> ([u32; 16], [bool; 16]) {
        let (mut uses, mut fixed) = ([0; 16], [false; 16]);
        fixed[4] = true;
        for i in &self.instructions {
            let mut anonymous = *i;
            let access = self.info.info(i);
            let written: [bool; 5] = std::array::from_fn(|at| operand::writes(access.op_access(at as u32)));
            let mut name =
                |register: Register, cost: u32| uses[usize::from(operand::number(register))] += cost;
            for at in 0..i.op_count() {
                let register = i.op_register(at);
                if i.op_kind(at) == OpKind::Register && register.is_gpr() {
                    name(register, if written.get(at as usize) == Some(&true) { 3 } else { 1 });
                    if !operand::is_high_byte(register) && !is_fixed(i.code().op_code().op_kind(at)) {
                        anonymous.set_op_register(at, operand::sized(register, ANYONE));
                    }
                }
            }
            if i.memory_base().is_gpr() {
                name(i.memory_base(), 2);
                anonymous.set_memory_base(operand::sized(i.memory_base(), ANYONE));
            }
            if i.memory_index().is_gpr() {
                name(i.memory_index(), 2);
                anonymous.set_memory_index(operand::sized(i.memory_index(), ANYONE));
            }
            // What is used still is used by the encoding.
            for used in self.info.info(&anonymous).used_registers() {
                if used.register().is_gpr() {
                    fixed[usize::from(operand::number(used.register()))] = true;
                }
            }
        }
        (uses, fixed)
    }

    /// A register that changes by the same constant in each iteration, rather one in a host register.
    fn find_counter(&mut self) -> Option<Counter> {
        // What was added, and to how much of the register, if it was.
        let mut changes = [Some((0_i32, None)); 16];
        for i in &self.instructions {
            let added = step_of(i);
            for used in self.info.info(i).used_registers() {
                if !used.register().is_gpr() || !operand::writes(used.access()) {
                    continue;
                }
                let change = &mut changes[usize::from(operand::number(used.register()))];
                *change = change.zip(added).and_then(|((sum, before), (step, wide))| {
                    let sum = sum.checked_add(step).filter(|_| before.is_none_or(|before| before == wide))?;
                    Some((sum, Some(wide)))
                });
            }
        }
        let counter = |(register, change): (u8, Option<(i32, Option<bool>)>)| {
            let (step, wide) = change.filter(|(step, _)| *step != 0)?;
            Some(Counter { register, step, wide: wide? })
        };
        let counters = (0..16).zip(changes).filter_map(counter);
        counters.min_by_key(|counter| operand::place(operand::wide(counter.register)) == Place::Home)
    }
}

/// What an instruction adds to the register that is its first operand, and whether to 64 bits of it.
fn step_of(i: &Instruction) -> Option<(i32, bool)> {
    if i.op_count() == 0 || i.op0_kind() != OpKind::Register || i.op0_register().size() < 4 {
        return None;
    }
    let step = if i.mnemonic() == Mnemonic::Lea {
        let moves = i.memory_base() == i.op0_register() && i.memory_index() == Register::None;
        moves.then_some(i.memory_displacement64() as i64)
    } else {
        super::values::constant_added(i)
    };
    Some((i32::try_from(step?).ok()?, i.op0_register().size() == 8))
}

/// Whether an encoding leaves no choice of an operand's register.
fn is_fixed(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::al | K::cl | K::ax | K::dx | K::eax | K::rax)
}

/// An instruction with the registers of swaps exchanged.
fn renamed(i: &Instruction, swaps: &[Swap]) -> Instruction {
    let other = |register: Register| {
        let number = operand::number(register);
        let new = swaps.iter().map(|swap| swap.other(number)).find(|&new| new != number);
        new.map_or(register, |new| operand::sized(register, new))
    };
    let mut renamed = *i;
    for at in 0..i.op_count() {
        let register = i.op_register(at);
        if i.op_kind(at) == OpKind::Register && register.is_gpr() {
            renamed.set_op_register(at, other(register));
        }
    }
    if i.memory_base().is_gpr() {
        renamed.set_memory_base(other(i.memory_base()));
    }
    if i.memory_index().is_gpr() {
        renamed.set_memory_index(other(i.memory_index()));
    }
    renamed
}
