//! What a machine is when it stands: processors, devices, guest time and memory, without the host's share of it.
//!
//! [`Machine::save`](crate::Machine::save) takes it from a paused machine, [`Machine::restore`](crate::Machine::restore)
//! builds a machine from it. Disks are not part of it: whoever restores gives the machine disks with the content of
//! that moment. [`SavedState`] is small and goes through any serde codec; memory is beside it, as the runs of
//! pages that are not zero, so that it can be written and read in whatever way suits its size.

use device::{Record, SaveError};
use engine::VmSettings;
use guest_memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x86::{CpuState, PAGE_SIZE};

/// Everything but memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState {
    /// Layout of this struct: [`SavedState::VERSION`].
    pub version: u32,
    /// CPU model.
    pub model: String,
    /// Guest time in nanoseconds.
    pub now_ns: u64,
    /// The processors, by number.
    pub processors: Vec<CpuState>,
    /// The devices.
    pub devices: Vec<Record>,
}

impl SavedState {
    /// The layout that is written, and the only one that is read.
    pub const VERSION: u32 = 1;
}

/// Memory that is not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRun {
    /// Guest-physical address, a multiple of the page size.
    pub address: u64,
    /// Content, whole pages, at most [`MemoryRun::LONGEST`] bytes.
    pub bytes: Vec<u8>,
}

/// A saved machine.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedMachine {
    /// Processors, devices and time.
    pub state: SavedState,
    /// Memory: what no run covers is zero.
    pub memory: Vec<MemoryRun>,
}

/// Why a saved machine does not fit the machine that shall go on with it.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Written by a version with another layout.
    #[error("The saved state has layout {found}; this version reads layout {}", SavedState::VERSION)]
    Version {
        /// As saved.
        found: u32,
    },
    /// Another number of processors.
    #[error("The saved machine has {saved} processors, this one has {wanted}; they must be equal")]
    Processors {
        /// As saved.
        saved: usize,
        /// By the settings.
        wanted: u32,
    },
    /// Another CPU model.
    #[error("The saved machine has CPU model {saved}, this one has {wanted}; they must be equal")]
    Model {
        /// As saved.
        saved: String,
        /// By the settings.
        wanted: String,
    },
    /// Memory where this machine has none.
    #[error("The saved machine has memory at {address:#x}, where this one has none; give it the same size")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// What the memory says.
        source: MemoryError,
    },
    /// A state of a device that is not there.
    #[error("The saved machine has a device {name}, which this one lacks")]
    RecordWithoutDevice {
        /// The device's name.
        name: String,
    },
    /// A device whose state is not there, or there twice.
    #[error("The saved state must have the device {name} once")]
    DeviceWithoutRecord {
        /// The device's name.
        name: String,
    },
    /// The host does not tell which memory is in use.
    #[error("The host does not tell which guest memory is in use")]
    Host(#[from] std::io::Error),
    /// A device refuses its state.
    #[error("A device refuses its state")]
    Device(#[from] SaveError),
}

impl MemoryRun {
    /// The longest run, in bytes.
    pub const LONGEST: usize = 1 << 20;

    /// The runs of a memory.
    pub(crate) fn of(memory: &GuestMemory) -> Result<Vec<MemoryRun>, RestoreError> {
        let mut runs: Vec<MemoryRun> = Vec::new();
        let mut page = vec![0; PAGE_SIZE as usize];
        for region in memory.regions() {
            for address in region.populated()?.into_iter().flat_map(|range| range.step_by(PAGE_SIZE as usize))
            {
                memory.read(address, &mut page).map_err(|source| RestoreError::Memory { address, source })?;
                if page.iter().all(|byte| *byte == 0) {
                    continue;
                }
                match runs.last_mut() {
                    Some(last) if last.continues_at(address) => last.bytes.extend_from_slice(&page),
                    _ => runs.push(MemoryRun { address, bytes: page.clone() }),
                }
            }
        }
        Ok(runs)
    }

    fn continues_at(&self, address: u64) -> bool {
        self.address + self.bytes.len() as u64 == address && self.bytes.len() < Self::LONGEST
    }
}

impl SavedMachine {
    /// Whether a machine with these settings can be this one.
    pub(crate) fn check(&self, settings: &VmSettings) -> Result<(), RestoreError> {
        let SavedState { version, model, now_ns: _, processors, devices: _ } = &self.state;
        if *version != SavedState::VERSION {
            return Err(RestoreError::Version { found: *version });
        }
        if processors.len() != settings.cpus as usize {
            return Err(RestoreError::Processors { saved: processors.len(), wanted: settings.cpus });
        }
        if *model != settings.model.name {
            let wanted = settings.model.name.clone();
            return Err(RestoreError::Model { saved: model.clone(), wanted });
        }
        Ok(())
    }

    /// Fills a fresh memory, whose pages are zero.
    pub(crate) fn load_memory(&self, memory: &GuestMemory) -> Result<(), RestoreError> {
        for MemoryRun { address, bytes } in &self.memory {
            memory
                .write(*address, bytes)
                .map_err(|source| RestoreError::Memory { address: *address, source })?;
        }
        Ok(())
    }
}
