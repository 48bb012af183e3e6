//! The debugger's `monitor` commands: what a machine has and a program has not.

use super::commands::{DebugCommand, DebugReply};
use super::target::DebugTarget;
use crate::control::protocol::{Command, EngineName, Reply};
use crate::stats::Stats;
use std::fmt::Write;

const HELP: &str = "\
monitor status               name, engine, processors
monitor stats                the counters of --stats
monitor engine [software|kvm]  which engine runs the processors, or another one
monitor translate ADDRESS [VCPU]  guest-physical address of a linear one
monitor physical ADDRESS [BYTES]  what is in guest-physical memory
monitor step-interrupts on|off  whether interrupts lead single steps away [off]
monitor power-button         press it
monitor reset                reset the machine; forget registers with `maint flush register-cache`
monitor stop                 end the machine
";
/// Bytes that `physical` shows at most.
const MOST_SHOWN: usize = 4096;

impl DebugTarget {
    /// Obeys; what is to be shown.
    pub(super) fn monitor(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["status"] => shown(self.control(Command::Status {})),
            ["stats"] => match self.control(Command::Stats {}) {
                Ok(value) => serde_json::from_value::<Stats>(value)
                    .map_or_else(|error| format!("{error}\n"), |stats| stats.to_string()),
                Err(refusal) => format!("{}\n", refusal.message),
            },
            ["engine"] => match self.control(Command::Status {}) {
                Ok(status) => format!("{}\n", status["engine"].as_str().unwrap_or("unknown")),
                Err(refusal) => format!("{}\n", refusal.message),
            },
            ["engine", "software"] => self.switch(EngineName::Software),
            ["engine", "kvm"] => self.switch(EngineName::Kvm),
            ["power-button"] => shown(self.control(Command::PowerButton {})),
            ["reset"] => shown(self.control(Command::Reset {})),
            ["stop"] => shown(self.control(Command::Stop {})),
            ["step-interrupts", word @ ("on" | "off")] => self.set_step_interrupts(*word == "on"),
            ["translate", address] => self.translate(address, "0"),
            ["translate", address, vcpu] => self.translate(address, vcpu),
            ["physical", address] => self.physical(address, "64"),
            ["physical", address, len] => self.physical(address, len),
            [] | ["help"] => HELP.to_owned(),
            _ => format!("There is no such command\n{HELP}"),
        }
    }

    fn switch(&self, engine: EngineName) -> String {
        shown(self.control(Command::SwitchEngine { engine }))
    }

    fn set_step_interrupts(&mut self, on: bool) -> String {
        self.step_interrupts = on;
        match self.set_points() {
            Ok(()) => "Done\n".to_owned(),
            Err(_) => "The engine refuses\n".to_owned(),
        }
    }

    fn translate(&self, address: &str, vcpu: &str) -> String {
        let (Some(address), Ok(vcpu)) = (number(address), vcpu.parse()) else {
            return "An address like 0xffffffff81000000 is needed, and perhaps a vCPU like 0\n".to_owned();
        };
        match self.ask(DebugCommand::Translate { vcpu, address }) {
            Ok(DebugReply::Address(Some(physical))) => format!("{physical:#x}\n"),
            Ok(DebugReply::Address(None)) => "Not mapped\n".to_owned(),
            Ok(DebugReply::Refused(reason)) => format!("{reason}\n"),
            Ok(_) => "No answer\n".to_owned(),
            Err(error) => format!("{error}\n"),
        }
    }

    fn physical(&self, address: &str, len: &str) -> String {
        let len = number(len).and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= MOST_SHOWN);
        let (Some(address), Some(len)) = (number(address), len) else {
            return format!("An address like 0x100000 is needed, and at most {MOST_SHOWN} bytes\n");
        };
        match self.ask(DebugCommand::ReadPhysical { address, len }) {
            Ok(DebugReply::Bytes(bytes)) => dump(address, &bytes),
            Ok(DebugReply::Refused(reason)) => format!("{reason}\n"),
            Ok(_) => "No answer\n".to_owned(),
            Err(error) => format!("{error}\n"),
        }
    }
}

fn shown(reply: Reply) -> String {
    match reply {
        Ok(value) => match value.as_object() {
            Some(fields) if !fields.is_empty() => {
                fields.iter().map(|(name, value)| format!("{name} {value}\n")).collect()
            }
            _ => "Done\n".to_owned(),
        },
        Err(refusal) => format!("{}\n", refusal.message),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn dump(address: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in (0..).zip(bytes.chunks(16)) {
        let _ = write!(text, "{:#018x}:", address.wrapping_add(16 * line));
        for byte in bytes {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}
