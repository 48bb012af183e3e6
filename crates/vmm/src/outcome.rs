//! How a machine ends, and the exit status that says so.
//!
//! Odd numbers belong to the guest's debug-exit device; everything else is even.

use std::fmt;
use std::path::PathBuf;
use thiserror::Error;

/// Exit statuses other than `(value << 1) | 1` of debug-exit.
pub mod exit_code {
    /// The guest powered itself off.
    pub const POWER_OFF: u8 = 0;
    /// Options, machine file, or a file they name, are not usable.
    pub const USAGE: u8 = 2;
    /// The host failed: memory, threads, terminals, sockets.
    pub const HOST: u8 = 4;
    /// The CPU engine is not usable or failed.
    pub const ENGINE: u8 = 6;
    /// The guest crashed: a triple fault.
    pub const GUEST_CRASH: u8 = 8;
    /// A person ended the machine: Ctrl-], the second SIGTERM, another signal.
    pub const ENDED: u8 = 10;
    /// The guest asked for a reset and was not to have one.
    pub const RESET: u8 = 12;
    /// The guest's kernel panicked and said so on the pvpanic port.
    pub const GUEST_PANIC: u8 = 14;
}

/// Why a machine is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest wrote to the debug-exit port.
    DebugExit(u32),
    /// The guest's kernel panicked.
    GuestPanic,
    /// A processor shut down.
    TripleFault {
        /// Which.
        vcpu: u32,
    },
    /// The guest asked for a reset, with `--no-reboot`.
    Reset,
    /// A person ended it.
    Ended,
    /// A processor cannot go on.
    Failed {
        /// Why.
        detail: String,
    },
}

impl Outcome {
    /// The exit status. Debug-exit values lose what does not fit into eight bits, as everywhere.
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::PowerOff => exit_code::POWER_OFF,
            Outcome::DebugExit(value) => (value << 1 | 1) as u8,
            Outcome::GuestPanic => exit_code::GUEST_PANIC,
            Outcome::TripleFault { .. } => exit_code::GUEST_CRASH,
            Outcome::Reset => exit_code::RESET,
            Outcome::Ended => exit_code::ENDED,
            Outcome::Failed { .. } => exit_code::ENGINE,
        }
    }
}

/// For people, and for the event of a machine's end.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("the guest powered itself off"),
            Outcome::DebugExit(value) => write!(f, "the guest wrote {value:#x} to its debug-exit port"),
            Outcome::GuestPanic => f.write_str("the guest's kernel panicked"),
            Outcome::TripleFault { vcpu } => write!(f, "the guest crashed: triple fault of vCPU {vcpu}"),
            Outcome::Reset => f.write_str("the guest asked for a reset"),
            Outcome::Ended => f.write_str("somebody ended the machine"),
            Outcome::Failed { detail } => f.write_str(detail),
        }
    }
}

/// Why a machine does not come to life, or cannot stay alive.
#[derive(Debug, Error)]
pub enum VmmError {
    /// The configuration is wrong.
    #[error("The machine cannot be built as asked")]
    Config(#[from] vm_config::ConfigError),
    /// A disk is not usable.
    #[error("The machine cannot have its disks")]
    Disk(#[from] block::BlockError),
    /// A disk on an NBD server or an iSCSI target is not usable.
    #[error("The machine cannot have its disks")]
    Elsewhere(#[from] crate::disks::ElsewhereError),
    /// A disk's web server is not usable.
    #[error("The machine cannot have its disks")]
    Web(#[from] http_disk::HttpError),
    /// No engine, or not this CPU model.
    #[error("The machine cannot have its processors")]
    Engine(#[from] engine::EngineError),
    /// The machine cannot be built.
    #[error("The machine cannot be built")]
    Machine(#[from] machine::MachineError),
    /// One file is asked for twice.
    #[error("{} cannot be {role}: it is {other} already", .path.display())]
    TwoRoles {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        role: String,
        /// What it is.
        other: String,
    },
    /// The socket's path is taken.
    #[error("Socket path {} is taken, {found}; remove that or choose another path", .path.display())]
    SocketTaken {
        /// Which path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A TCP port cannot be listened at.
    #[error("Nobody can listen at {place}")]
    Listen {
        /// Where.
        place: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A socket cannot listen.
    #[error("Socket {} cannot be made", .path.display())]
    Socket {
        /// Which path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A console cannot be opened.
    #[error("Serial port {what} cannot be opened")]
    Console {
        /// As configured.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A host call failed.
    #[error("The host refuses {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl VmmError {
    /// The exit status.
    pub fn exit_code(&self) -> u8 {
        use machine::MachineError;
        match self {
            VmmError::Config(_)
            | VmmError::Disk(_)
            | VmmError::Elsewhere(_)
            | VmmError::Web(_)
            | VmmError::TwoRoles { .. }
            | VmmError::Listen { .. }
            | VmmError::SocketTaken { .. }
            | VmmError::Socket { .. }
            | VmmError::Console { .. }
            | VmmError::Engine(engine::EngineError::UnknownModel { .. })
            | VmmError::Machine(MachineError::Load(_)) => exit_code::USAGE,
            VmmError::Engine(_) | VmmError::Machine(MachineError::Engine(_)) => exit_code::ENGINE,
            VmmError::Machine(_) | VmmError::Host { .. } => exit_code::HOST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debug_exit_has_odd_statuses() {
        assert_eq!(Outcome::DebugExit(0).exit_code(), 1);
        assert_eq!(Outcome::DebugExit(0x10).exit_code(), 33);
        let others = [
            Outcome::PowerOff,
            Outcome::TripleFault { vcpu: 0 },
            Outcome::Reset,
            Outcome::Ended,
            Outcome::GuestPanic,
        ];
        let codes: Vec<_> = others.iter().map(Outcome::exit_code).collect();
        assert_eq!(codes, [0, 8, 12, 10, 14]);
    }
}
