//! The driver with a guest that only notes what is done to it.

use super::*;
use crate::gdb::commands::{Bell, Stopped};
use crate::stats::State;
use engine::{WatchKind, Watchpoint};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::channel;

#[derive(Default)]
struct Fake {
    log: Vec<&'static str>,
    events: Vec<Event>,
    stops: Arc<Mutex<Vec<(u32, DebugStop)>>>,
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
    fn debug(&mut self, command: DebugCommand) -> DebugReply {
        self.log.push(match command {
            DebugCommand::Resume(_) => "modes",
            DebugCommand::SetStops(_) => "stops",
            _ => "debug",
        });
        DebugReply::Done
    }
    fn take_debug_stops(&mut self) -> Vec<(u32, DebugStop)> {
        std::mem::take(&mut self.stops.lock())
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
    let outcome = drive(&mut guest, &receiver, DriveOptions { no_reboot, ..DriveOptions::default() });
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

fn debug(command: DebugCommand) -> Request {
    Request::Debug { command, reply: channel().0 }
}

#[test]
fn a_guest_runs_when_debugger_and_people_want_it() {
    let bell = Arc::new(Bell::new().unwrap());
    let requests = [
        debug(DebugCommand::Attach(bell.clone())),
        control(Command::Resume {}),
        control(Command::Pause {}),
        debug(DebugCommand::Resume(Vec::new())),
        control(Command::Resume {}),
        debug(DebugCommand::Interrupt),
        debug(DebugCommand::Detach),
    ];
    let (_, guest) = play(&requests, false);
    let attached = ["resume", "pause", "debug", "modes", "resume", "pause"];
    let detached = ["stops", "modes", "resume", "pause"];
    assert_eq!(guest.log, [&attached[..], &detached].concat());
    assert_eq!(bell.hear(), None);
}

#[test]
fn a_stop_is_told_before_the_guest_runs_again() {
    let watch = Watchpoint { address: 4, len: 1, kind: WatchKind::Write };
    let bell = Arc::new(Bell::new().unwrap());
    let mut guest = Fake::default();
    let stops = guest.stops.clone();
    let debugger = Debugger::new(true);
    let mut driver = Driver {
        guest: &mut guest,
        wanted: true,
        running: false,
        debugger,
        terminating: false,
        no_reboot: false,
        paused_by: None,
    };
    driver.settle();
    assert!(!driver.running, "it waits for a debugger");
    driver.debug(DebugCommand::Attach(bell.clone()));
    driver.debug(DebugCommand::Resume(Vec::new()));
    assert!(driver.running);

    // Three processors stop at once: the first is told, the breakpoint will be met again, the access will not.
    *stops.lock() =
        vec![(1, DebugStop::Breakpoint), (0, DebugStop::Breakpoint), (2, DebugStop::Watchpoint(watch))];
    assert_eq!(driver.serve(Request::Guest(MachineEvent::Debug)), None);
    assert!(!driver.running);
    assert_eq!(bell.hear(), Some(Stopped::At { vcpu: 1, stop: DebugStop::Breakpoint }));
    driver.debug(DebugCommand::Resume(Vec::new()));
    assert!(!driver.running);
    assert_eq!(bell.hear(), Some(Stopped::At { vcpu: 2, stop: DebugStop::Watchpoint(watch) }));
    driver.debug(DebugCommand::Resume(Vec::new()));
    assert!(driver.running);

    // Somebody else's moment of standing does not lose a stop, either.
    *stops.lock() = vec![(0, DebugStop::Step)];
    driver.serve(Request::Stats);
    assert!(!driver.running);
    assert_eq!(bell.hear(), Some(Stopped::At { vcpu: 0, stop: DebugStop::Step }));
    driver.debugger.ended(12);
    assert_eq!(bell.hear(), Some(Stopped::Ended(12)));
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
    assert_eq!(drive(&mut guest, &receiver, DriveOptions::default()), Outcome::Ended);
    let answers: Vec<Reply> = answers.iter().map(|answer| answer.recv().unwrap()).collect();
    let state = |index: usize| answers[index].clone().unwrap()["state"].clone();
    assert_eq!((state(0), state(2)), (json!("running"), json!("paused")));
    assert_eq!(answers[3].clone().unwrap_err().kind, RefusalKind::Failed);
    assert_eq!(answers[4], Ok(json!({ "engine": "software" })));
    assert_eq!(answers[5], Ok(json!({})));
    assert_eq!(guest.log, ["resume", "pause", "switch", "switch"]);
    assert_eq!(guest.events[1], Event::EngineSwitched { engine: EngineName::Software });
}
