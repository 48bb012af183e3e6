//! What the debugger's thread asks of the driver, and what it hears from it.

use engine::{DebugStop, DebugStops};
use machine::{Machine, MachineError, RunMode};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use x86::CpuState;

/// What the debugger wants. All but the first two are for a guest that it holds.
#[derive(Clone, Debug)]
pub enum DebugCommand {
    /// Hold the guest from now on, and ring when it stops by itself.
    Attach(Arc<Bell>),
    /// Let go: without breakpoints, the guest runs.
    Detach,
    /// Hold the guest, for the debugger's user.
    Interrupt,
    /// Let processors run, by index.
    Resume(Vec<RunMode>),
    /// Replace breakpoints and watchpoints.
    SetStops(DebugStops),
    /// A processor's state.
    State(u32),
    /// Change it.
    SetState(u32, Box<CpuState>),
    /// Read memory as a processor sees it.
    Read {
        /// Which processor.
        vcpu: u32,
        /// Linear address.
        address: u64,
        /// Bytes.
        len: usize,
    },
    /// Write memory as a processor sees it.
    Write {
        /// Which processor.
        vcpu: u32,
        /// Linear address.
        address: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Guest-physical address of a linear one.
    Translate {
        /// Which processor.
        vcpu: u32,
        /// Linear address.
        address: u64,
    },
    /// Read guest-physical memory.
    ReadPhysical {
        /// Where.
        address: u64,
        /// Bytes.
        len: usize,
    },
}

/// The answer.
#[derive(Clone, Debug)]
pub enum DebugReply {
    /// Done.
    Done,
    /// Attached to a machine with so many processors.
    Attached(u32),
    /// A processor's state.
    State(Box<CpuState>),
    /// As many bytes as could be read.
    Bytes(Vec<u8>),
    /// So many bytes were written.
    Written(usize),
    /// An address, if there is one.
    Address(Option<u64>),
    /// It cannot be done.
    Refused(String),
}

/// Why the guest stands, or is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// A processor stopped.
    At {
        /// Which.
        vcpu: u32,
        /// Why.
        stop: DebugStop,
    },
    /// The machine ended with this exit status.
    Ended(u8),
}

/// How the driver tells the debugger's thread that the guest stopped; the thread waits for it and for the debugger at
/// once.
#[derive(Debug)]
pub struct Bell {
    told: Mutex<Option<Stopped>>,
    event: OwnedFd,
}

impl Bell {
    /// A bell that did not ring.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { told: Mutex::new(None), event })
    }

    /// Tells of a stop; an end replaces what nobody has heard.
    pub fn ring(&self, stopped: Stopped) {
        *self.told.lock() = Some(stopped);
        // The counter is full at 2⁶⁴ − 2; then it rings, too.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// What was told since it was heard last.
    pub fn hear(&self) -> Option<Stopped> {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        self.told.lock().take()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Does what is asked of the standing machine; holding it and letting it go is the driver's.
pub(crate) fn obey(machine: &mut Machine, command: DebugCommand) -> Result<DebugReply, MachineError> {
    Ok(match command {
        DebugCommand::Attach(_) => DebugReply::Attached(machine.processors()),
        DebugCommand::Detach | DebugCommand::Interrupt => DebugReply::Done,
        DebugCommand::Resume(modes) => {
            machine.set_run_modes(modes)?;
            DebugReply::Done
        }
        DebugCommand::SetStops(stops) => {
            machine.set_debug_stops(stops)?;
            DebugReply::Done
        }
        DebugCommand::State(vcpu) => DebugReply::State(Box::new(machine.processor(vcpu)?)),
        DebugCommand::SetState(vcpu, state) => {
            machine.set_processor(vcpu, &state)?;
            DebugReply::Done
        }
        DebugCommand::Read { vcpu, address, len } => {
            let mut bytes = vec![0; len];
            let state = machine.processor(vcpu)?;
            let read = machine.read_linear(&state, address, &mut bytes);
            bytes.truncate(read);
            DebugReply::Bytes(bytes)
        }
        DebugCommand::Write { vcpu, address, bytes } => {
            let state = machine.processor(vcpu)?;
            DebugReply::Written(machine.write_linear(&state, address, &bytes))
        }
        DebugCommand::Translate { vcpu, address } => {
            let state = machine.processor(vcpu)?;
            DebugReply::Address(machine.physical(&state, address))
        }
        DebugCommand::ReadPhysical { address, len } => {
            let mut bytes = vec![0; len];
            match machine.memory().read(address, &mut bytes) {
                Ok(()) => DebugReply::Bytes(bytes),
                Err(error) => DebugReply::Refused(error.to_string()),
            }
        }
    })
}
