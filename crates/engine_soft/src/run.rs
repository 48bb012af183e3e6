//! The loop that runs instructions.
//!
//! `run_blocks` is the fast loop: block after block, looking at the shared event word once per block. It goes
//! back to `run_until_exit` whenever an instruction ends with anything but "next" or "jump", which looks at
//! everything that may have changed. While something must be checked around each instruction (single step,
//! breakpoints, an interrupt shadow, the end of a step-limited run), `step` runs one instruction at a time.
#![expect(unsafe_code, reason = "walks a block's instructions by pointer")]

use crate::code::Block;
use crate::cpu::{Cpu, Stop, seg, shadow};
use crate::insn::Insn;
use engine::{VcpuIo, VmExit};
use std::ptr::NonNull;
use std::time::Instant;
use x86::{Exception, MpState, RFlags, Vector};

/// Instructions between two looks at the clock.
const TICK: u64 = 2048;
/// More than the instructions of a block.
const STEP_MARGIN: u64 = 128;

/// DR6.BS: single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;

impl Cpu {
    /// Runs until something changes the machine's life, at most `steps` instructions.
    pub fn run(&mut self, io: &dyn VcpuIo, steps: Option<u64>) -> VmExit {
        // SAFETY: only the lifetime changes; the reference is dropped before this function returns.
        let io: NonNull<dyn VcpuIo> =
            unsafe { std::mem::transmute::<&dyn VcpuIo, &'static dyn VcpuIo>(io) }.into();
        self.io = Some(io);
        self.step_end = steps.map_or(u64::MAX, |steps| self.instructions.saturating_add(steps));
        self.next_tick = self.instructions;
        let started = Instant::now();
        let exit = self.run_until_exit();
        self.times.run += started.elapsed();
        self.flush_trace();
        self.io = None;
        self.step_end = u64::MAX;
        exit
    }

    pub(crate) fn io_reference(&self) -> Option<&dyn VcpuIo> {
        // SAFETY: set only while `run` borrows the callbacks.
        self.io.map(|io| unsafe { &*io.as_ptr() })
    }

    fn run_until_exit(&mut self) -> VmExit {
        loop {
            if self.instructions >= self.step_end {
                return VmExit::StepsDone;
            }
            let result = self.run_some();
            if result == Err(Stop::Exit) {
                let missing = || VmExit::Failed { detail: "An exit without a reason".into() };
                return self.exit.take().unwrap_or_else(missing);
            }
        }
    }

    fn run_some(&mut self) -> Result<(), Stop> {
        if self.exit.is_none() && self.stops_for_debugger() {
            return Err(Stop::Exit);
        }
        if self.instructions >= self.next_tick {
            self.next_tick = self.instructions + TICK;
            self.tick();
        }
        if self.pending_exception.is_some() || self.pending_interrupt.is_some() {
            return self.deliver_loaded();
        }
        if self.shadow == 0 && (self.event_waiting() || self.mp_state != MpState::Runnable) {
            let waited = self.mp_state != MpState::Runnable;
            self.service_events()?;
            if self.mp_state != MpState::Runnable {
                return Ok(());
            }
            if waited && self.is_single_stepped() {
                self.stepped();
                return Ok(());
            }
        }
        if self.exit.is_some() {
            // Set in the middle of an instruction that then completed.
            return Err(Stop::Exit);
        }
        if self.needs_steps() {
            let traced = self.trace_before();
            let stepped = self.step();
            self.trace_after(traced);
            stepped?;
            self.stepped();
            Ok(())
        } else if self.can_translate() && self.step_end == u64::MAX {
            match self.run_translated() {
                Err(Stop::Exit) => Err(Stop::Exit),
                _ => Ok(()),
            }
        } else {
            self.run_blocks()
        }
    }

    /// Delivers what a loaded state has under way: it was chosen before any event that waits now.
    fn deliver_loaded(&mut self) -> Result<(), Stop> {
        if let Some(exception) = self.pending_exception.take() {
            self.pending_interrupt = None;
            self.exception = exception;
            return self.deliver_stashed();
        }
        match self.pending_interrupt.take() {
            Some(interrupt) => self.deliver_external(interrupt.vector),
            None => Ok(()),
        }
    }

    fn needs_steps(&self) -> bool {
        self.shadow != 0
            || self.has_flag(RFlags::TF)
            || self.dr7 & 0xff != 0
            || self.has_flag(RFlags::RF)
            || self.is_single_stepped()
            || self.is_traced()
            || self.step_end - self.instructions <= STEP_MARGIN
    }

    /// Whether each element of a repeated instruction is a step of its own, in the stepping loop: RF alone, which
    /// interrupts in the middle of one leave set, asks for no such thing.
    pub(crate) fn steps_elements(&self) -> bool {
        self.has_flag(RFlags::TF)
            || self.dr7 & 0xff != 0
            || self.is_single_stepped()
            || self.step_end != u64::MAX
    }

    /// Whether `run_some` would do anything but go on with blocks, events left aside.
    pub(crate) fn must_look_around(&self) -> bool {
        self.needs_steps()
            || self.exit.is_some()
            || self.pending_exception.is_some()
            || self.pending_interrupt.is_some()
            || self.mp_state != MpState::Runnable
    }

    /// Runs blocks until an event waits, a tick is due, or an instruction asks to look around.
    fn run_blocks(&mut self) -> Result<(), Stop> {
        let horizon = self.next_tick.min(self.step_end.saturating_sub(STEP_MARGIN));
        while !self.event_waiting() && self.instructions < horizon {
            let block = match self.find_block() {
                Ok(block) => block,
                Err(_) => return self.deliver_stashed(),
            };
            // SAFETY: valid until the next lookup.
            let range = unsafe { Block::insns(block) }.as_ptr_range();
            self.block_end = range.end as usize;
            if !self.long64 {
                self.check_code_limit(block)?;
            }
            let stop = self.run_block(range.start);
            match stop {
                Ok(()) | Err(Stop::Jump) => {}
                Err(stop) => return self.settle(stop),
            }
        }
        Ok(())
    }

    /// Runs a block's instructions up to `block_end`.
    #[inline(always)]
    pub(crate) fn run_block(&mut self, start: *const Insn) -> Result<(), Stop> {
        let mut at = start;
        let mut rip = self.rip();
        loop {
            // SAFETY: `at` is below the end of the running block: blocks are not empty, and `block_end` is
            // its end, an earlier instruction's, or zero.
            let insn = unsafe { &*at };
            let result = (insn.handler)(self, insn);
            match result {
                Ok(()) => {
                    rip = rip.wrapping_add(u64::from(insn.len));
                    self.set_rip(rip);
                    // SAFETY: at most one past the end.
                    at = unsafe { at.add(1) };
                    if at as usize >= self.block_end {
                        break;
                    }
                }
                Err(stop) => {
                    // SAFETY: both point into the same block.
                    self.instructions += unsafe { at.offset_from(start) } as u64 + 1;
                    if stop == Stop::Jump {
                        return Ok(());
                    }
                    if stop == Stop::Done {
                        self.set_rip(rip.wrapping_add(u64::from(insn.len)));
                    } else if stop != Stop::Exit {
                        self.instructions -= 1;
                    }
                    return Err(stop);
                }
            }
        }
        // SAFETY: both point into the same block, or one past it.
        self.instructions += unsafe { at.offset_from(start) } as u64;
        Ok(())
    }

    pub(crate) fn settle(&mut self, stop: Stop) -> Result<(), Stop> {
        match stop {
            Stop::Fault => {
                self.forget_hit();
                self.deliver_stashed()
            }
            Stop::Exit => Err(Stop::Exit),
            Stop::Jump | Stop::Done | Stop::Again => Ok(()),
        }
    }

    pub(crate) fn deliver_stashed(&mut self) -> Result<(), Stop> {
        if self.exit.is_some() {
            // Not a fault of the guest's: the instruction has to be executed elsewhere.
            return Err(Stop::Exit);
        }
        let exception = self.exception;
        match self.deliver_exception(exception) {
            Err(Stop::Exit) => Err(Stop::Exit),
            _ => Ok(()),
        }
    }

    /// Shortens the block to what lies inside the code segment's limit.
    pub(crate) fn check_code_limit(&mut self, block: *const Block) -> Result<(), Stop> {
        // SAFETY: the running block, from the last lookup.
        let (bytes, insns) = unsafe { ((*block).bytes(), Block::insns(block)) };
        let limit = u64::from(self.segments[usize::from(seg::CS)].limit);
        let rip = self.rip();
        if rip.wrapping_add(bytes - 1) <= limit {
            return Ok(());
        }
        let mut end = rip;
        let mut count = 0;
        for insn in insns {
            end = end.wrapping_add(u64::from(insn.len));
            if end.wrapping_sub(1) > limit {
                break;
            }
            count += 1;
        }
        if count == 0 {
            self.exception = Exception::gp(0);
            self.deliver_stashed()?;
            // RIP is at the handler now: look it up.
            return Err(Stop::Again);
        }
        self.block_end = insns.as_ptr() as usize + count * size_of::<Insn>();
        Ok(())
    }

    /// Runs one instruction with everything that may surround it.
    fn step(&mut self) -> Result<(), Stop> {
        let linear = self.rip().wrapping_add(self.segment_base[usize::from(seg::CS)]);
        if self.meets_breakpoint(if self.long64 { linear } else { linear & 0xffff_ffff }) {
            return Err(Stop::Exit);
        }
        let before = std::mem::take(&mut self.shadow);
        if before != 0 {
            self.update_event_mask();
        }
        let resume = self.has_flag(RFlags::RF);
        if self.dr7 & 0xff != 0 && !resume && before & shadow::MOV_SS == 0 && self.at_breakpoint() {
            return self.deliver_stashed();
        }
        let Ok(block) = self.find_block() else { return self.deliver_stashed() };
        self.block_end = 0;
        if !self.long64 {
            self.check_code_limit(block)?;
            self.block_end = 0;
        }
        let single = self.has_flag(RFlags::TF);
        self.delivered = false;
        if before & shadow::MOV_SS == 0 {
            self.mmu.breakpoints_hit = 0;
        }
        // SAFETY: valid until the next lookup.
        let start = unsafe { Block::insns(block) }.as_ptr();
        let result = self.run_block(start);
        self.shadow_or_trap(result, single, resume)
    }

    fn shadow_or_trap(&mut self, result: Result<(), Stop>, single: bool, resume: bool) -> Result<(), Stop> {
        let stop = result.err();
        if stop == Some(Stop::Fault) {
            self.forget_hit();
            return self.deliver_stashed();
        }
        if stop == Some(Stop::Exit) {
            return Err(Stop::Exit);
        }
        if resume && stop != Some(Stop::Again) && !self.kept_resume_flag {
            self.system_flags &= !RFlags::RF.bits();
        }
        self.kept_resume_flag = false;
        // What MOV SS and POP SS hit is told of with the next instruction's trap (SDM 3A 6.8.3).
        let held = self.shadow & shadow::MOV_SS != 0;
        let hits = if held { 0 } else { std::mem::take(&mut self.mmu.breakpoints_hit) };
        // A software interrupt clears TF before the trap would come (SDM 3B 18.3.1.4).
        let trap = if single && !self.delivered { DR6_SINGLE_STEP } else { 0 } | hits;
        if trap != 0 && !held {
            self.exception = Exception { vector: Vector::Debug, error_code: 0, payload: trap };
            self.leave_halt();
            return self.deliver_stashed();
        }
        Ok(())
    }

    /// Whether an instruction breakpoint is at RIP; stashes the fault.
    fn at_breakpoint(&mut self) -> bool {
        let linear = self.rip().wrapping_add(self.segment_base[usize::from(seg::CS)]);
        let linear = if self.long64 { linear } else { linear & 0xffff_ffff };
        let mut hits = 0;
        for number in 0..4 {
            let enabled = self.dr7 >> (2 * number) & 3 != 0;
            let execute = self.dr7 >> (16 + 4 * number) & 3 == 0;
            if enabled && execute && self.dr[number as usize] == linear {
                hits |= 1 << number;
            }
        }
        if hits != 0 {
            self.exception = Exception { vector: Vector::Debug, error_code: 0, payload: hits };
        }
        hits != 0
    }
}
