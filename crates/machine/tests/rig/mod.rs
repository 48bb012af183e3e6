//! Machines under test, their guests' consoles, and how they move.

use chipset::serial::SerialBackend;
use engine::cpu_model::CpuModel;
use engine_soft::SoftEngine;
use machine::{BoardSettings, BootSource, Machine, MachineEvent, MachineSettings, SavedMachine};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What a guest has said, over all machines it lived in.
#[derive(Clone, Default)]
pub struct Console(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl SerialBackend for Console {
    fn write(&self, bytes: &[u8]) {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
    }
}

impl Console {
    /// Waits until the guest has said so many bytes, or a text.
    pub fn wait(&self, what: &str, done: impl Fn(&[u8]) -> bool) {
        let end = Instant::now() + Duration::from_secs(300);
        let mut said = self.0.0.lock().unwrap();
        while !done(&said) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} from the guest: {}", String::from_utf8_lossy(&said));
            said = self.0.1.wait_timeout(said, left).unwrap().0;
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().clone()
    }
}

pub fn settings(kernel: &Path, cpus: u32, memory: u64, console: &Console) -> MachineSettings {
    MachineSettings {
        engine: Arc::new(SoftEngine::new()),
        carrier: None,
        tsc_khz: None,
        cpus,
        model: CpuModel::named("max").unwrap(),
        memory,
        boot: BootSource { kernel: kernel.to_owned(), ..BootSource::default() },
        board: BoardSettings {
            serial: Arc::new(console.clone()),
            console: None,
            disks: Vec::new(),
            debug_exit: Some(0xf4),
        },
    }
}

pub fn end(events: &Receiver<MachineEvent>) -> MachineEvent {
    events.recv_timeout(Duration::from_secs(300)).unwrap()
}

/// Pauses, saves, lets the old machine go, and continues in a new one. The state also goes through a codec.
pub fn move_on(machine: Machine, settings: MachineSettings) -> (Machine, Receiver<MachineEvent>) {
    move_with(machine, move || settings)
}

/// As [`move_on`], with settings that are made when the old machine has let go of its disks.
pub fn move_with(
    machine: Machine,
    settings: impl FnOnce() -> MachineSettings,
) -> (Machine, Receiver<MachineEvent>) {
    machine.pause();
    let saved = machine.save().unwrap();
    drop(machine);
    let mut encoded = Vec::new();
    ciborium::into_writer(&saved.state, &mut encoded).unwrap();
    let state = ciborium::from_reader(encoded.as_slice()).unwrap();
    assert_eq!(saved.state, state);
    let saved = SavedMachine { state, memory: saved.memory };
    let (restored, events) = Machine::restore(settings(), &saved).unwrap();
    let again = restored.save().unwrap().state;
    for (before, after) in saved.state.devices.iter().zip(&again.devices) {
        assert!(before == after, "{} is not what it was", before.name);
    }
    assert!(again == saved.state, "processors and time are what they were");
    restored.resume();
    (restored, events)
}

/// A multiboot ELF image at 1 MiB that runs `code` in flat 32-bit mode.
pub fn image(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    let size = 52 + 32 + 12 + code.len() as u32;
    let halves = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    [
        &[0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &halves(&[2, 3]),
        &words(&[1, BASE + 96, 52, 0, 0]),
        &halves(&[52, 32, 1, 0, 0, 0]),
        &words(&[1, 0, BASE, BASE, size, size, 7, 0x1000]),
        &words(&[0x1bad_b002, 0, 0x1bad_b002_u32.wrapping_neg()]),
        code,
    ]
    .concat()
}

/// Puts an image into a folder.
pub fn kernel_in(folder: &Path, image: &[u8]) -> PathBuf {
    let path = folder.join("kernel.elf");
    std::fs::write(&path, image).unwrap();
    path
}
