//! A guest under a debugger.
//!
//! The debugger holds the guest or lets it run; people may pause it as well, and it runs when nobody minds. A stop that
//! the debugger has not been told of keeps the guest from running: it is told first.

use super::Driver;
use crate::gdb::commands::{Bell, DebugCommand, DebugReply, Stopped};
use engine::{DebugStop, DebugStops};
use machine::RunMode;
use std::sync::Arc;

/// What the driver knows of the debugger.
pub(super) struct Debugger {
    bell: Option<Arc<Bell>>,
    holds: bool,
    /// Stops that happened together with one that was told.
    waiting: Vec<(u32, DebugStop)>,
}

impl Debugger {
    /// Nobody is there; perhaps the guest waits for somebody.
    pub fn new(waits: bool) -> Self {
        Debugger { bell: None, holds: waits, waiting: Vec::new() }
    }

    /// Whether the guest has to stand.
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// The machine is no more.
    pub fn ended(&self, exit_status: u8) {
        if let Some(bell) = &self.bell {
            bell.ring(Stopped::Ended(exit_status));
        }
    }

    /// Tells of one of the stops; of the others, those before an instruction will happen again.
    fn tell(&mut self, stops: Vec<(u32, DebugStop)>) {
        let Some(bell) = &self.bell else { return };
        self.waiting.extend(stops);
        let told = if self.holds || self.waiting.is_empty() { None } else { Some(self.waiting.remove(0)) };
        self.waiting.retain(|(_, stop)| matches!(stop, DebugStop::Watchpoint(_)));
        let Some((vcpu, stop)) = told else { return };
        self.holds = true;
        bell.ring(Stopped::At { vcpu, stop });
    }
}

impl Driver<'_> {
    /// Asks the standing guest why its processors stopped.
    pub(super) fn hear_stops(&mut self) {
        let stops = self.guest.take_debug_stops();
        self.debugger.tell(stops);
    }

    pub(super) fn debug(&mut self, command: DebugCommand) -> DebugReply {
        match command {
            DebugCommand::Attach(bell) => {
                self.debugger = Debugger { bell: Some(bell.clone()), holds: true, waiting: Vec::new() };
                self.while_standing(|guest| guest.debug(DebugCommand::Attach(bell)))
            }
            DebugCommand::Detach => {
                let reply = self.while_standing(|guest| {
                    guest.debug(DebugCommand::SetStops(DebugStops::default()));
                    guest.debug(DebugCommand::Resume(Vec::new()))
                });
                self.debugger = Debugger::new(false);
                self.settle();
                reply
            }
            DebugCommand::Interrupt => {
                self.debugger.holds = true;
                self.settle();
                DebugReply::Done
            }
            DebugCommand::Resume(modes) => self.resume_for_debugger(modes),
            other => self.while_standing(|guest| guest.debug(other)),
        }
    }

    fn resume_for_debugger(&mut self, modes: Vec<RunMode>) -> DebugReply {
        let reply = self.while_standing(|guest| guest.debug(DebugCommand::Resume(modes)));
        if !matches!(reply, DebugReply::Refused(_)) {
            self.debugger.holds = false;
            self.settle();
        }
        reply
    }
}
