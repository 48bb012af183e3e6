//! The machine as `gdbstub` wants it: threads are vCPUs, everything stands while the debugger looks.

use super::commands::{Bell, DebugCommand, DebugReply, Stopped};
use super::registers::{self, Image, Number, X86};
use crate::control::protocol::{Command, Refusal, RefusalKind, Reply};
use crate::driver::Request;
use engine::{DebugStop, DebugStops, WatchKind, Watchpoint};
use gdbstub::common::{Pid, Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread as threads;
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints as points;
use gdbstub::target::ext::extended_mode::{
    Args, AttachKind, CurrentActivePid, CurrentActivePidOps, ExtendedMode, ExtendedModeOps, ShouldTerminate,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use machine::RunMode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use thiserror::Error;
use x86::{CpuState, MpState};

/// Why a session cannot go on.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The machine is no more.
    #[error("The machine ends")]
    Ended,
    /// The driver answers something else.
    #[error("The machine gives no fitting answer")]
    Answer,
    /// The machine refuses what nothing else can be done without.
    #[error("{0}")]
    Refused(String),
}

/// Breakpoints at an address that were asked for as software's and as hardware's: the machine makes no difference.
#[derive(Default)]
struct Points {
    software: Vec<u64>,
    hardware: Vec<u64>,
    watched: Vec<Watchpoint>,
}

/// The machine, seen from the debugger's thread.
pub struct DebugTarget {
    requests: Sender<Request>,
    /// Rings when the guest stops.
    pub bell: Arc<Bell>,
    processors: u32,
    points: Points,
    /// Interrupts lead single steps away.
    pub step_interrupts: bool,
    modes: Vec<Option<RunMode>>,
    others: RunMode,
    /// Somebody asked to end the session.
    detached: bool,
}

type Refusable<T> = TargetResult<T, DebugTarget>;

impl DebugTarget {
    /// Holds the guest.
    ///
    /// # Errors
    /// When the machine ends.
    pub fn attach(requests: Sender<Request>, bell: Arc<Bell>) -> Result<Self, SessionError> {
        let mut target = DebugTarget {
            requests,
            bell: bell.clone(),
            processors: 0,
            points: Points::default(),
            step_interrupts: false,
            modes: Vec::new(),
            others: RunMode::Run,
            detached: false,
        };
        match target.ask(DebugCommand::Attach(bell))? {
            DebugReply::Attached(processors) => target.processors = processors,
            DebugReply::Refused(reason) => return Err(SessionError::Refused(reason)),
            _ => return Err(SessionError::Answer),
        }
        Ok(target)
    }

    /// Asks the driver.
    pub fn ask(&self, command: DebugCommand) -> Result<DebugReply, SessionError> {
        let (reply, answer) = channel();
        self.requests.send(Request::Debug { command, reply }).map_err(|_| SessionError::Ended)?;
        answer.recv().map_err(|_| SessionError::Ended)
    }

    /// Asks the driver as a client of the control socket does.
    pub fn control(&self, command: Command) -> Reply {
        let ending = || Refusal::new(RefusalKind::Ending, "The machine ends");
        let (reply, answer) = channel();
        self.requests.send(Request::Control { command, reply }).map_err(|_| ending())?;
        answer.recv().unwrap_or_else(|_| Err(ending()))
    }

    /// Lets go.
    pub fn detach(&mut self) {
        if !std::mem::replace(&mut self.detached, true) {
            // A machine that is no more needs nothing.
            let _ = self.ask(DebugCommand::Detach);
        }
    }

    /// Holds the guest, and says why.
    pub fn interrupt(&self) -> Result<MultiThreadStopReason<u64>, SessionError> {
        self.ask(DebugCommand::Interrupt)?;
        let signal = MultiThreadStopReason::SignalWithThread { tid: Tid::MIN, signal: Signal::SIGINT };
        Ok(self.bell.hear().map_or(signal, |stopped| self.reason(stopped)))
    }

    /// A stop in the protocol's words.
    pub fn reason(&self, stopped: Stopped) -> MultiThreadStopReason<u64> {
        let (vcpu, stop) = match stopped {
            Stopped::Ended(status) => return MultiThreadStopReason::Exited(status),
            Stopped::At { vcpu, stop } => (vcpu, stop),
        };
        let tid = Tid::MIN.saturating_add(vcpu as usize);
        match stop {
            DebugStop::Step => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
            DebugStop::Breakpoint if self.is_hardware(vcpu) => MultiThreadStopReason::HwBreak(tid),
            DebugStop::Breakpoint => MultiThreadStopReason::SwBreak(tid),
            DebugStop::Watchpoint(watch) => {
                let kind = match watch.kind {
                    WatchKind::Write => points::WatchKind::Write,
                    WatchKind::Read => points::WatchKind::Read,
                    WatchKind::Access => points::WatchKind::ReadWrite,
                };
                MultiThreadStopReason::Watch { tid, kind, addr: watch.address }
            }
        }
    }

    fn is_hardware(&self, vcpu: u32) -> bool {
        let state = self.state(vcpu).ok();
        let linear = state.map(|state| state.rip.wrapping_add(code_base(&state)));
        linear.is_some_and(|linear| {
            self.points.hardware.contains(&linear) && !self.points.software.contains(&linear)
        })
    }

    /// A processor's state.
    pub fn state(&self, vcpu: u32) -> Refusable<CpuState> {
        match self.ask(DebugCommand::State(vcpu)).map_err(TargetError::Fatal)? {
            DebugReply::State(state) => Ok(*state),
            reply => Err(refused(reply)),
        }
    }

    fn change(&self, vcpu: u32, change: impl FnOnce(&mut CpuState)) -> Refusable<()> {
        let mut state = self.state(vcpu)?;
        change(&mut state);
        self.done(DebugCommand::SetState(vcpu, Box::new(state)))
    }

    fn done(&self, command: DebugCommand) -> Refusable<()> {
        match self.ask(command).map_err(TargetError::Fatal)? {
            DebugReply::Done => Ok(()),
            reply => Err(refused(reply)),
        }
    }

    /// Tells the machine of all breakpoints and watchpoints.
    pub fn set_points(&self) -> Refusable<()> {
        let mut breakpoints = [self.points.software.as_slice(), &self.points.hardware].concat();
        breakpoints.sort_unstable();
        breakpoints.dedup();
        let stops = DebugStops {
            breakpoints,
            watchpoints: self.points.watched.clone(),
            single_step: false,
            hold_interrupts: !self.step_interrupts,
        };
        self.done(DebugCommand::SetStops(stops))
    }

    fn change_points(&mut self, change: impl FnOnce(&mut Points) -> bool) -> Refusable<bool> {
        let before =
            (self.points.software.clone(), self.points.hardware.clone(), self.points.watched.clone());
        if !change(&mut self.points) {
            return Ok(false);
        }
        self.set_points().inspect_err(|_| {
            (self.points.software, self.points.hardware, self.points.watched) = before;
        })?;
        Ok(true)
    }

    fn set_mode(&mut self, tid: Tid, mode: RunMode) {
        let index = vcpu_of(tid) as usize;
        if index < self.processors as usize {
            self.modes.resize(self.processors as usize, None);
            self.modes[index] = Some(mode);
        }
    }
}

/// Base of the code segment as the mode applies it.
pub fn code_base(state: &CpuState) -> u64 {
    let long = state.efer & x86::Efer::LMA.bits() != 0 && state.segments.cs.attributes.long();
    if long { 0 } else { state.segments.cs.base }
}

/// The processor behind a thread.
fn vcpu_of(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

fn refused(reply: DebugReply) -> TargetError<SessionError> {
    match reply {
        DebugReply::Refused(reason) => {
            tracing::warn!(reason, "the debugger was refused");
            TargetError::NonFatal
        }
        _ => TargetError::Fatal(SessionError::Answer),
    }
}

impl Target for DebugTarget {
    type Arch = X86;
    type Error = SessionError;

    fn base_ops(&mut self) -> BaseOps<'_, X86, SessionError> {
        BaseOps::MultiThread(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<points::BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_extended_mode(&mut self) -> Option<ExtendedModeOps<'_, Self>> {
        Some(self)
    }
}

impl threads::MultiThreadBase for DebugTarget {
    fn read_registers(&mut self, regs: &mut Image, tid: Tid) -> Refusable<()> {
        *regs = Image::of(&mut self.state(vcpu_of(tid))?);
        Ok(())
    }

    fn write_registers(&mut self, regs: &Image, tid: Tid) -> Refusable<()> {
        self.change(vcpu_of(tid), |state| regs.apply(state))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], tid: Tid) -> Refusable<usize> {
        let command = DebugCommand::Read { vcpu: vcpu_of(tid), address, len: data.len() };
        match self.ask(command).map_err(TargetError::Fatal)? {
            DebugReply::Bytes(bytes) if bytes.is_empty() && !data.is_empty() => Err(TargetError::NonFatal),
            DebugReply::Bytes(bytes) => {
                let len = bytes.len().min(data.len());
                data[..len].copy_from_slice(&bytes[..len]);
                Ok(len)
            }
            reply => Err(refused(reply)),
        }
    }

    fn write_addrs(&mut self, address: u64, data: &[u8], tid: Tid) -> Refusable<()> {
        let command = DebugCommand::Write { vcpu: vcpu_of(tid), address, bytes: data.to_vec() };
        match self.ask(command).map_err(TargetError::Fatal)? {
            DebugReply::Written(count) if count == data.len() => Ok(()),
            DebugReply::Written(_) => Err(TargetError::NonFatal),
            reply => Err(refused(reply)),
        }
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), SessionError> {
        (0..self.processors).for_each(|vcpu| active(Tid::MIN.saturating_add(vcpu as usize)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<threads::MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for DebugTarget {
    fn read_register(&mut self, tid: Tid, number: Number, buffer: &mut [u8]) -> Refusable<usize> {
        registers::read(&mut self.state(vcpu_of(tid))?, number, buffer).ok_or(TargetError::NonFatal)
    }

    fn write_register(&mut self, tid: Tid, number: Number, value: &[u8]) -> Refusable<()> {
        let mut fits = true;
        self.change(vcpu_of(tid), |state| fits = registers::write(state, number, value))?;
        if fits { Ok(()) } else { Err(TargetError::NonFatal) }
    }
}

impl ThreadExtraInfo for DebugTarget {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, SessionError> {
        let doing = match self.state(vcpu_of(tid)) {
            Ok(state) if state.mp_state == MpState::Halted => "halted",
            Ok(state) if state.mp_state != MpState::Runnable => "not started",
            Ok(state) if state.segments.ss.attributes.dpl() == 3 => "in a program",
            Ok(_) => "in the kernel",
            Err(TargetError::Fatal(error)) => return Err(error),
            Err(_) => "unknown",
        };
        let text = format!("vCPU {}, {doing}", vcpu_of(tid));
        let len = text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl threads::MultiThreadResume for DebugTarget {
    fn resume(&mut self) -> Result<(), SessionError> {
        let modes = (0..self.processors as usize)
            .map(|index| self.modes.get(index).copied().flatten().unwrap_or(self.others))
            .collect();
        match self.ask(DebugCommand::Resume(modes))? {
            DebugReply::Refused(reason) => Err(SessionError::Refused(reason)),
            _ => Ok(()),
        }
    }

    fn clear_resume_actions(&mut self) -> Result<(), SessionError> {
        self.modes.clear();
        self.others = RunMode::Run;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), SessionError> {
        self.set_mode(tid, RunMode::Run);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<threads::MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<threads::MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl threads::MultiThreadSingleStep for DebugTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), SessionError> {
        self.set_mode(tid, RunMode::Step);
        Ok(())
    }
}

impl threads::MultiThreadSchedulerLocking for DebugTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), SessionError> {
        self.others = RunMode::Hold;
        Ok(())
    }
}

impl points::Breakpoints for DebugTarget {
    fn support_sw_breakpoint(&mut self) -> Option<points::SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<points::HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<points::HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

fn remove<T: PartialEq>(from: &mut Vec<T>, what: &T) -> bool {
    let before = from.len();
    from.retain(|other| other != what);
    from.len() != before
}

fn add<T: PartialEq>(to: &mut Vec<T>, what: T) -> bool {
    if !to.contains(&what) {
        to.push(what);
    }
    true
}

impl points::SwBreakpoint for DebugTarget {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> Refusable<bool> {
        self.change_points(|points| add(&mut points.software, address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> Refusable<bool> {
        self.change_points(|points| remove(&mut points.software, &address))
    }
}

impl points::HwBreakpoint for DebugTarget {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> Refusable<bool> {
        self.change_points(|points| add(&mut points.hardware, address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> Refusable<bool> {
        self.change_points(|points| remove(&mut points.hardware, &address))
    }
}

fn watchpoint(address: u64, len: u64, kind: points::WatchKind) -> Watchpoint {
    let kind = match kind {
        points::WatchKind::Write => WatchKind::Write,
        points::WatchKind::Read => WatchKind::Read,
        points::WatchKind::ReadWrite => WatchKind::Access,
    };
    Watchpoint { address, len: len.max(1), kind }
}

impl points::HwWatchpoint for DebugTarget {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: points::WatchKind) -> Refusable<bool> {
        self.change_points(|points| add(&mut points.watched, watchpoint(address, len, kind)))
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: points::WatchKind) -> Refusable<bool> {
        self.change_points(|points| remove(&mut points.watched, &watchpoint(address, len, kind)))
    }
}

impl MonitorCmd for DebugTarget {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), SessionError> {
        let answer = self.monitor(&String::from_utf8_lossy(command));
        out.write_raw(answer.as_bytes());
        Ok(())
    }
}

/// The debugger is at a machine that runs anyhow: leaving it ends neither machine nor guest.
impl ExtendedMode for DebugTarget {
    fn run(&mut self, _: Option<&[u8]>, _: Args<'_, '_>) -> Refusable<Pid> {
        Err(TargetError::NonFatal)
    }

    fn attach(&mut self, _: Pid) -> Refusable<()> {
        Ok(())
    }

    fn query_if_attached(&mut self, _: Pid) -> Refusable<AttachKind> {
        Ok(AttachKind::Attach)
    }

    fn kill(&mut self, _: Option<Pid>) -> Refusable<ShouldTerminate> {
        self.detach();
        Ok(ShouldTerminate::Yes)
    }

    fn restart(&mut self) -> Result<(), SessionError> {
        Ok(())
    }

    fn support_current_active_pid(&mut self) -> Option<CurrentActivePidOps<'_, Self>> {
        Some(self)
    }
}

impl CurrentActivePid for DebugTarget {
    fn current_active_pid(&mut self) -> Result<Pid, SessionError> {
        Ok(Pid::MIN)
    }
}
