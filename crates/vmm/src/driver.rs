//! The state driver: one thread owns the machine's life; everybody else queues requests.

use crate::Outcome;
use machine::MachineEvent;
use std::sync::mpsc::Receiver;

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop the guest for a while.
    Pause,
    /// Let it go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// SIGTERM: the first presses the power button, the second ends the machine.
    Terminate,
    /// Press the reset button.
    Reset,
    /// End the machine at once.
    Quit,
    /// Print the counters.
    Stats,
    /// The guest, or its processors, said something.
    Guest(MachineEvent),
}

/// What the driver drives.
pub trait Guest {
    /// Lets it run.
    fn resume(&mut self);
    /// Stops it.
    fn pause(&mut self);
    /// Back to power-on; it stands then.
    fn reset(&mut self) -> Result<(), String>;
    /// Presses the power button.
    fn press_power_button(&mut self);
    /// Prints the counters of the standing guest.
    fn print_stats(&mut self);
}

/// Starts the guest and serves requests until the machine ends. The guest stands afterwards.
pub fn drive(guest: &mut dyn Guest, requests: &Receiver<Request>, no_reboot: bool) -> Outcome {
    let mut driver = Driver { guest, running: false, terminating: false, no_reboot };
    driver.set_running(true);
    let outcome = loop {
        // Nobody left to ask for anything: nothing will ever end this machine but this.
        let Ok(request) = requests.recv() else { break Outcome::Ended };
        if let Some(outcome) = driver.serve(request) {
            break outcome;
        }
    };
    driver.set_running(false);
    outcome
}

struct Driver<'a> {
    guest: &'a mut dyn Guest,
    running: bool,
    terminating: bool,
    no_reboot: bool,
}

impl Driver<'_> {
    fn set_running(&mut self, running: bool) {
        if self.running == running {
            return;
        }
        self.running = running;
        if running {
            self.guest.resume();
        } else {
            self.guest.pause();
        }
    }

    fn serve(&mut self, request: Request) -> Option<Outcome> {
        match request {
            Request::Pause => self.set_running(false),
            Request::Resume => self.set_running(true),
            Request::PowerButton => self.guest.press_power_button(),
            Request::Terminate if self.terminating => return Some(Outcome::Ended),
            Request::Terminate => {
                self.terminating = true;
                self.guest.press_power_button();
                self.set_running(true);
            }
            Request::Reset => return self.reset(),
            Request::Quit => return Some(Outcome::Ended),
            Request::Stats => {
                let was_running = self.running;
                self.set_running(false);
                self.guest.print_stats();
                self.set_running(was_running);
            }
            Request::Guest(event) => return self.guest_event(event),
        }
        None
    }

    fn guest_event(&mut self, event: MachineEvent) -> Option<Outcome> {
        match event {
            MachineEvent::PowerOff => Some(Outcome::PowerOff),
            MachineEvent::Reset if self.no_reboot => Some(Outcome::Reset),
            MachineEvent::Reset => self.reset(),
            MachineEvent::DebugExit(value) => Some(Outcome::DebugExit(value)),
            MachineEvent::TripleFault { vcpu } => Some(Outcome::TripleFault { vcpu }),
            MachineEvent::Failed { vcpu, detail } => {
                Some(Outcome::Failed { detail: format!("vCPU {vcpu}: {detail}") })
            }
        }
    }

    fn reset(&mut self) -> Option<Outcome> {
        let was_running = self.running;
        self.set_running(false);
        if let Err(detail) = self.guest.reset() {
            return Some(Outcome::Failed { detail });
        }
        self.set_running(was_running);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[derive(Default)]
    struct Fake {
        log: Vec<&'static str>,
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
        fn press_power_button(&mut self) {
            self.log.push("button");
        }
        fn print_stats(&mut self) {
            self.log.push("stats");
        }
    }

    fn play(requests: &[Request], no_reboot: bool) -> (Outcome, Vec<&'static str>) {
        let (sender, receiver) = channel();
        requests.iter().for_each(|request| sender.send(request.clone()).unwrap());
        drop(sender);
        let mut guest = Fake::default();
        let outcome = drive(&mut guest, &receiver, no_reboot);
        (outcome, guest.log)
    }

    #[test]
    fn the_second_termination_ends() {
        let (outcome, log) = play(&[Request::Terminate, Request::Terminate], false);
        assert_eq!((outcome, log), (Outcome::Ended, vec!["resume", "button", "pause"]));
    }

    #[test]
    fn a_paused_guest_hears_the_power_button() {
        let (_, log) = play(&[Request::Pause, Request::Pause, Request::Terminate, Request::Quit], false);
        assert_eq!(log, ["resume", "pause", "button", "resume", "pause"]);
    }

    #[test]
    fn a_reset_restarts_or_ends() {
        let reset = Request::Guest(MachineEvent::Reset);
        let off = Request::Guest(MachineEvent::PowerOff);
        let (outcome, log) = play(&[reset.clone(), off], false);
        assert_eq!((outcome, log), (Outcome::PowerOff, vec!["resume", "pause", "reset", "resume", "pause"]));
        assert_eq!(play(&[reset], true).0, Outcome::Reset);
    }

    #[test]
    fn counters_are_read_from_a_standing_guest() {
        let (_, log) = play(&[Request::Stats, Request::Pause, Request::Stats], false);
        assert_eq!(log, ["resume", "pause", "stats", "resume", "pause", "stats"]);
    }
}
