//! The state driver: one thread owns the machine's life; everybody else queues requests.

use crate::Outcome;
use crate::control::protocol::{Command, EngineName, Event, Refusal, RefusalKind, Reply};
use crate::stats::{Stats, Status};
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
    /// Stops the process until somebody continues it. The guest stands.
    fn stop_process(&mut self);
    /// The process was continued.
    fn continued(&mut self);
    /// The terminal has another size.
    fn resized(&mut self);
    /// Tells whoever wants to know.
    fn announce(&mut self, event: Event);
}

/// Starts the guest and serves requests until the machine ends. The guest stands afterwards.
pub fn drive(guest: &mut dyn Guest, requests: &Receiver<Request>, no_reboot: bool) -> Outcome {
    let mut driver = Driver { guest, running: false, terminating: false, no_reboot, paused_by: None };
    driver.set_running(true);
    let outcome = loop {
        // Nobody left to ask for anything: nothing will ever end this machine but this.
        let Ok(request) = requests.recv() else { break Outcome::Ended };
        if let Some(outcome) = driver.serve(request) {
            break outcome;
        }
    };
    driver.set_running(false);
    driver.guest.announce(Event::Ended { reason: outcome.to_string(), exit_status: outcome.exit_code() });
    outcome
}

struct Driver<'a> {
    guest: &'a mut dyn Guest,
    running: bool,
    terminating: bool,
    no_reboot: bool,
    /// The disk's failure that paused the machine.
    paused_by: Option<String>,
}

impl Driver<'_> {
    fn set_running(&mut self, running: bool) {
        if self.running == running {
            return;
        }
        self.running = running;
        if running {
            self.paused_by = None;
            self.guest.resume();
        } else {
            self.guest.pause();
        }
    }

    /// Stops the guest for a moment.
    fn while_standing<T>(&mut self, work: impl FnOnce(&mut dyn Guest) -> T) -> T {
        let was_running = self.running;
        self.set_running(false);
        let result = work(self.guest);
        self.set_running(was_running);
        result
    }

    fn serve(&mut self, request: Request) -> Option<Outcome> {
        match request {
            Request::Terminate if self.terminating => return Some(Outcome::Ended),
            Request::Terminate => {
                self.terminating = true;
                self.press_power_button();
                self.set_running(true);
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
            command @ (Command::Disks {} | Command::Throttle { .. }) => self.guest.disk_command(command),
        };
        (answer, None)
    }

    fn change_running(&mut self, running: bool) {
        if self.running != running {
            self.set_running(running);
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
mod tests {
    use super::*;
    use crate::stats::State;
    use std::sync::mpsc::channel;

    #[derive(Default)]
    struct Fake {
        log: Vec<&'static str>,
        events: Vec<Event>,
    }

    impl Guest for Fake {
        fn resume(&mut self) {
            self.log.push("resume");
        }
        fn pause(&mut self) {
            self.log.push("pause");
        }
        fn reset(&mut self) -> Result<(), String> {
            self.log.push("reset");
            Ok(())
        }
        fn change_engine(&mut self, _: EngineAdvice) -> Result<Option<EngineName>, String> {
            self.log.push("change");
            Ok(Some(EngineName::Software))
        }
        fn press_power_button(&mut self) {
            self.log.push("button");
        }
        fn stats(&mut self) -> Stats {
            self.log.push("stats");
            Stats::default()
        }
        fn print_stats(&mut self) {
            self.log.push("print");
        }
        fn status(&self, running: bool) -> Status {
            Status { state: if running { State::Running } else { State::Paused }, ..Status::default() }
        }
        fn switch_engine(&mut self, engine: EngineName) -> Result<bool, String> {
            self.log.push("switch");
            if engine == EngineName::Kvm { Err("no KVM".to_owned()) } else { Ok(true) }
        }
        fn disk_command(&mut self, _: Command) -> Reply {
            self.log.push("disk");
            Ok(json!({}))
        }
        fn stop_process(&mut self) {
            self.log.push("stop-process");
        }
        fn continued(&mut self) {
            self.log.push("continued");
        }
        fn resized(&mut self) {
            self.log.push("resized");
        }
        fn announce(&mut self, event: Event) {
            self.events.push(event);
        }
    }

    fn control(command: Command) -> Request {
        Request::Control { command, reply: channel().0 }
    }

    fn play(requests: &[Request], no_reboot: bool) -> (Outcome, Fake) {
        let (sender, receiver) = channel();
        requests.iter().for_each(|request| sender.send(request.clone()).unwrap());
        drop(sender);
        let mut guest = Fake::default();
        let outcome = drive(&mut guest, &receiver, no_reboot);
        assert!(matches!(guest.events.pop(), Some(Event::Ended { .. })));
        (outcome, guest)
    }

    #[test]
    fn the_second_termination_ends() {
        let (outcome, guest) = play(&[Request::Terminate, Request::Terminate], false);
        assert_eq!((outcome, guest.log), (Outcome::Ended, vec!["resume", "button", "pause"]));
    }

    #[test]
    fn a_paused_guest_hears_the_power_button() {
        let pause = control(Command::Pause {});
        let (_, guest) = play(&[pause.clone(), pause, Request::Terminate, Request::Quit], false);
        assert_eq!(guest.log, ["resume", "pause", "button", "resume", "pause"]);
        assert_eq!(guest.events, [Event::Paused, Event::PowerButton]);
    }

    #[test]
    fn a_reset_restarts_or_ends() {
        let reset = Request::Guest(MachineEvent::Reset);
        let off = Request::Guest(MachineEvent::PowerOff);
        let (outcome, guest) = play(&[reset.clone(), off], false);
        assert_eq!(
            (outcome, guest.log),
            (Outcome::PowerOff, vec!["resume", "pause", "reset", "resume", "pause"])
        );
        assert_eq!(play(&[reset], true).0, Outcome::Reset);
    }

    #[test]
    fn engines_change_on_a_standing_guest() {
        let advice = Request::Guest(MachineEvent::Engine(EngineAdvice::Leave));
        let (_, guest) = play(&[advice.clone(), control(Command::Pause {}), advice, Request::Quit], false);
        assert_eq!(guest.log, ["resume", "pause", "change", "resume", "pause", "change"]);
        assert_eq!(guest.events[0], Event::EngineSwitched { engine: EngineName::Software });
    }

    #[test]
    fn counters_are_read_from_a_standing_guest() {
        let requests = [Request::Stats, control(Command::Pause {}), control(Command::Stats {})];
        let (_, guest) = play(&requests, false);
        assert_eq!(guest.log, ["resume", "pause", "print", "resume", "pause", "stats"]);
    }

    #[test]
    fn a_suspended_process_takes_its_guest_along_and_leaves_a_paused_one_paused() {
        let suspend = [Request::Suspend, Request::Continued];
        assert_eq!(
            play(&suspend, false).1.log,
            ["resume", "pause", "stop-process", "resume", "continued", "pause"]
        );
        let paused = [control(Command::Pause {}), Request::Suspend, Request::Continued];
        assert_eq!(play(&paused, false).1.log, ["resume", "pause", "stop-process", "continued"]);
    }

    #[test]
    fn requests_are_answered_by_the_state_they_find() {
        let (sender, receiver) = channel();
        let commands = [
            Command::Status {},
            Command::Pause {},
            Command::Status {},
            Command::SwitchEngine { engine: EngineName::Kvm },
            Command::SwitchEngine { engine: EngineName::Software },
            Command::Stop {},
        ];
        let answers: Vec<_> = commands
            .map(|command| {
                let (reply, answer) = channel();
                sender.send(Request::Control { command, reply }).unwrap();
                answer
            })
            .into_iter()
            .collect();
        let mut guest = Fake::default();
        assert_eq!(drive(&mut guest, &receiver, false), Outcome::Ended);
        let answers: Vec<Reply> = answers.iter().map(|answer| answer.recv().unwrap()).collect();
        let state = |index: usize| answers[index].clone().unwrap()["state"].clone();
        assert_eq!((state(0), state(2)), (json!("running"), json!("paused")));
        assert_eq!(answers[3].clone().unwrap_err().kind, RefusalKind::Failed);
        assert_eq!(answers[4], Ok(json!({ "engine": "software" })));
        assert_eq!(answers[5], Ok(json!({})));
        assert_eq!(guest.log, ["resume", "pause", "switch", "switch"]);
        assert_eq!(guest.events[1], Event::EngineSwitched { engine: EngineName::Software });
    }
}
