//! The state driver: one thread owns the machine's life; everybody else queues requests.

mod debugger;

use crate::Outcome;
use crate::control::disk_commands::DiskJob;
use crate::control::protocol::{Command, EngineName, Event, Refusal, RefusalKind, Reply};
use crate::gdb::commands::{DebugCommand, DebugReply};
use crate::stats::{Stats, Status};
use debugger::Debugger;
use engine::DebugStop;
use machine::{EngineAdvice, HostFailure, MachineEvent};
use serde_json::json;
use std::sync::mpsc::{Receiver, Sender};

/// What somebody wants.
#[derive(Clone, Debug)]
pub enum Request {
    /// SIGTERM: the first presses the power button, the second ends the machine.
    Terminate,
    /// End the machine at once.
    Quit,
    /// Print the counters.
    Stats,
    /// SIGTSTP: stop guest and process until somebody continues the process.
    Suspend,
    /// SIGCONT: somebody continued the process.
    Continued,
    /// SIGWINCH: the terminal has another size.
    Resized,
    /// A client of the control socket asks.
    Control {
        /// For what.
        command: Command,
        /// Takes the answer.
        reply: Sender<Reply>,
    },
    /// A request of a disk failed on the host, and the disk's policy is to pause.
    DiskFailed {
        /// The disk's name.
        disk: String,
        /// What failed.
        failure: HostFailure,
    },
    /// The debugger asks.
    Debug {
        /// For what.
        command: DebugCommand,
        /// Takes the answer.
        reply: Sender<DebugReply>,
    },
    /// Something happened to a job.
    Job(DiskJob),
    /// The guest, or its processors, said something.
    Guest(MachineEvent),
}

/// What the driver drives.
pub trait Guest {
    /// Lets it run.
    fn resume(&mut self);
    /// Stops it.
    fn pause(&mut self);
    /// Back to power-on; it stands before and after.
    ///
    /// # Errors
    /// Why there is no machine any more.
    fn reset(&mut self) -> Result<(), String>;
    /// Changes the CPU engine as advised, if that still makes sense, and tells the new one; it stands before and
    /// after.
    ///
    /// # Errors
    /// Why there is no machine any more.
    fn change_engine(&mut self, advice: EngineAdvice) -> Result<Option<EngineName>, String>;
    /// Presses the power button.
    fn press_power_button(&mut self);
    /// The counters of the standing guest.
    fn stats(&mut self) -> Stats;
    /// Prints them.
    fn print_stats(&mut self);
    /// What does not change while it runs; the driver adds what it knows.
    fn status(&self, running: bool) -> Status;
    /// Moves the standing guest to an engine; `false` when it was there already.
    ///
    /// # Errors
    /// Why not; the guest is as before.
    fn switch_engine(&mut self, engine: EngineName) -> Result<bool, String>;
    /// Does something with a disk: a command that is of no other kind.
    fn disk_command(&mut self, command: Command) -> Reply;
    /// Does what a debugger asks of the standing guest, all but holding it and letting it go.
    fn debug(&mut self, command: DebugCommand) -> DebugReply;
    /// Why processors of the standing guest stopped for a debugger since this was asked last.
    fn take_debug_stops(&mut self) -> Vec<(u32, DebugStop)>;
    /// Stops the process until somebody continues it. The guest stands.
    fn stop_process(&mut self);
    /// The process was continued.
    fn continued(&mut self);
    /// The terminal has another size.
    fn resized(&mut self);
    /// Tells whoever wants to know.
    fn announce(&mut self, event: Event);
}

/// How a machine is driven.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriveOptions {
    /// A reset ends the machine.
    pub no_reboot: bool,
    /// The guest stands until a debugger lets it go.
    pub wait_for_debugger: bool,
}

/// Starts the guest and serves requests until the machine ends. The guest stands afterwards.
pub fn drive(guest: &mut dyn Guest, requests: &Receiver<Request>, options: DriveOptions) -> Outcome {
    let no_reboot = options.no_reboot;
    let debugger = Debugger::new(options.wait_for_debugger);
    let mut driver = Driver {
        guest,
        wanted: true,
        running: false,
        debugger,
        terminating: false,
        no_reboot,
        paused_by: None,
    };
    driver.settle();
    let outcome = loop {
        // Nobody left to ask for anything: nothing will ever end this machine but this.
        let Ok(request) = requests.recv() else { break Outcome::Ended };
        if let Some(outcome) = driver.serve(request) {
            break outcome;
        }
    };
    driver.set_wanted(false);
    driver.debugger.ended(outcome.exit_code());
    driver.guest.announce(Event::Ended { reason: outcome.to_string(), exit_status: outcome.exit_code() });
    outcome
}

struct Driver<'a> {
    guest: &'a mut dyn Guest,
    /// Whether people want the guest to run.
    wanted: bool,
    /// Whether it does: a debugger may hold it.
    running: bool,
    debugger: Debugger,
    terminating: bool,
    no_reboot: bool,
    /// The disk's failure that paused the machine.
    paused_by: Option<String>,
}

impl Driver<'_> {
    fn set_wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.settle();
    }

    /// Lets the guest run if everybody wants that.
    fn settle(&mut self) {
        if self.running && (!self.wanted || self.debugger.holds()) {
            self.running = false;
            self.guest.pause();
        }
        if !self.running {
            self.hear_stops();
            if self.wanted && !self.debugger.holds() {
                self.running = true;
                self.paused_by = None;
                self.guest.resume();
            }
        }
    }

    /// Stops the guest for a moment.
    fn while_standing<T>(&mut self, work: impl FnOnce(&mut dyn Guest) -> T) -> T {
        if std::mem::take(&mut self.running) {
            self.guest.pause();
        }
        let result = work(self.guest);
        self.settle();
        result
    }

    fn serve(&mut self, request: Request) -> Option<Outcome> {
        match request {
            Request::Terminate if self.terminating => return Some(Outcome::Ended),
            Request::Terminate => {
                self.terminating = true;
                self.press_power_button();
                self.set_wanted(true);
            }
            Request::Quit => return Some(Outcome::Ended),
            Request::Stats => self.while_standing(|guest| guest.print_stats()),
            Request::Suspend => self.while_standing(|guest| guest.stop_process()),
            Request::Continued => self.guest.continued(),
            Request::Resized => self.guest.resized(),
            Request::Control { command, reply } => {
                let (answer, outcome) = self.obey(command);
                // A client that has gone wants no answer.
                let _ = reply.send(answer);
                return outcome;
            }
            Request::DiskFailed { disk, failure } => self.disk_failed(disk, failure),
            Request::Debug { command, reply } => {
                // A debugger that has gone wants no answer.
                let _ = reply.send(self.debug(command));
            }
            Request::Job(job) => self.guest.announce(Event::Job(job)),
            Request::Guest(event) => return self.guest_event(event),
        }
        None
    }

    fn obey(&mut self, command: Command) -> (Reply, Option<Outcome>) {
        let done = || Ok(json!({}));
        let answer = match command {
            Command::Status {} => {
                let status = self.guest.status(self.running);
                to_reply(Status { paused_by: self.paused_by.clone(), ..status })
            }
            Command::Stats {} => to_reply(self.while_standing(|guest| guest.stats())),
            Command::Pause {} => {
                self.change_running(false);
                done()
            }
            Command::Resume {} => {
                self.change_running(true);
                done()
            }
            Command::PowerButton {} => {
                self.press_power_button();
                done()
            }
            Command::Reset {} => {
                let outcome = self.reset();
                let answer =
                    if outcome.is_some() { refuse("The machine cannot be reset".into()) } else { done() };
                return (answer, outcome);
            }
            Command::Stop {} => return (done(), Some(Outcome::Ended)),
            Command::SwitchEngine { engine } => self.switch_engine(engine),
            // Served where the client is.
            Command::Events {} => done(),
            command @ (Command::Disks {} | Command::Throttle { .. } | Command::Disk(_) | Command::Job(_)) => {
                self.guest.disk_command(command)
            }
        };
        (answer, None)
    }

    fn change_running(&mut self, running: bool) {
        if self.wanted != running {
            self.set_wanted(running);
            self.guest.announce(if running { Event::Resumed } else { Event::Paused });
        }
    }

    /// The disk holds the request back until the machine was paused and resumes.
    fn disk_failed(&mut self, disk: String, failure: HostFailure) {
        let HostFailure { write, error, no_space } = failure;
        tracing::warn!(disk, "the machine pauses: {error}");
        let what = if write { "write" } else { "read" };
        self.change_running(false);
        self.paused_by = Some(format!("{disk}: {what} failed: {error}"));
        self.guest.announce(Event::IoError { disk, write, no_space, error });
    }

    fn press_power_button(&mut self) {
        self.guest.press_power_button();
        self.guest.announce(Event::PowerButton);
    }

    fn switch_engine(&mut self, engine: EngineName) -> Reply {
        match self.while_standing(|guest| guest.switch_engine(engine)) {
            Ok(switched) => {
                if switched {
                    self.guest.announce(Event::EngineSwitched { engine });
                }
                Ok(json!({ "engine": engine }))
            }
            Err(detail) => refuse(detail),
        }
    }

    fn guest_event(&mut self, event: MachineEvent) -> Option<Outcome> {
        match event {
            MachineEvent::PowerOff => Some(Outcome::PowerOff),
            MachineEvent::Reset if self.no_reboot => Some(Outcome::Reset),
            MachineEvent::Reset => self.reset(),
            MachineEvent::DebugExit(value) => Some(Outcome::DebugExit(value)),
            MachineEvent::GuestPanic => Some(Outcome::GuestPanic),
            MachineEvent::Debug => {
                self.while_standing(|_| ());
                None
            }
            MachineEvent::Engine(advice) => self.change_engine(advice),
            MachineEvent::TripleFault { vcpu } => Some(Outcome::TripleFault { vcpu }),
            MachineEvent::Failed { vcpu, detail } => {
                Some(Outcome::Failed { detail: format!("vCPU {vcpu}: {detail}") })
            }
        }
    }

    fn change_engine(&mut self, advice: EngineAdvice) -> Option<Outcome> {
        match self.while_standing(|guest| guest.change_engine(advice)) {
            Ok(changed) => {
                if let Some(engine) = changed {
                    self.guest.announce(Event::EngineSwitched { engine });
                }
                None
            }
            Err(detail) => Some(Outcome::Failed { detail }),
        }
    }

    fn reset(&mut self) -> Option<Outcome> {
        match self.while_standing(|guest| guest.reset()) {
            Ok(()) => {
                self.guest.announce(Event::Reset);
                None
            }
            Err(detail) => Some(Outcome::Failed { detail }),
        }
    }
}

fn refuse(message: String) -> Reply {
    Err(Refusal::new(RefusalKind::Failed, message))
}

fn to_reply(result: impl serde::Serialize) -> Reply {
    serde_json::to_value(result).map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
}

#[cfg(test)]
mod tests;
