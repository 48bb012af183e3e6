//! The gate between interrupt sources and whichever engine runs the processors now.

use device::{Msi, MsiSink};
use engine::{MsiMessage, Vm};
use parking_lot::RwLock;
use std::sync::Arc;

/// Passes interrupts on to the current engine. What arrives while there is no engine (between two of them, with
/// all processors standing) is remembered and passed to the next.
#[derive(Default)]
pub(crate) struct InterruptGate {
    state: RwLock<GateState>,
}

struct GateState {
    vm: Option<Arc<dyn Vm>>,
    pic_line: bool,
    level_vectors: Box<[bool; 256]>,
    waiting: Vec<MsiMessage>,
}

impl Default for GateState {
    fn default() -> Self {
        GateState { vm: None, pic_line: false, level_vectors: Box::new([false; 256]), waiting: Vec::new() }
    }
}

/// Messages remembered at most between two engines; devices are paused then, so few come.
const WAITING_MAX: usize = 4096;

impl InterruptGate {
    /// Connects an engine, or none.
    pub fn connect(&self, vm: Option<Arc<dyn Vm>>) {
        let mut state = self.state.write();
        state.vm = vm;
        let Some(vm) = state.vm.clone() else { return };
        vm.set_level_vectors(&state.level_vectors);
        vm.set_pic_line(state.pic_line);
        for message in std::mem::take(&mut state.waiting) {
            vm.signal_msi(message);
        }
    }

    /// Forgets what arrived while no engine was connected: a restore brings the devices' messages itself.
    pub fn forget_waiting(&self) {
        self.state.write().waiting.clear();
    }

    /// The level of the PIC's INTR line.
    pub fn set_pic_line(&self, asserted: bool) {
        let mut state = self.state.write();
        state.pic_line = asserted;
        if let Some(vm) = &state.vm {
            vm.set_pic_line(asserted);
        }
    }

    /// Vectors that the IOAPIC routes level-triggered.
    pub fn set_level_vectors(&self, vectors: &[bool; 256]) {
        let mut state = self.state.write();
        *state.level_vectors = *vectors;
        if let Some(vm) = &state.vm {
            vm.set_level_vectors(vectors);
        }
    }
}

impl MsiSink for InterruptGate {
    fn signal(&self, msi: Msi) {
        let message = MsiMessage { address: msi.address, data: msi.data };
        if let Some(vm) = &self.state.read().vm {
            return vm.signal_msi(message);
        }
        let mut state = self.state.write();
        if state.waiting.len() < WAITING_MAX {
            state.waiting.push(message);
        }
    }
}
