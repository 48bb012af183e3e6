//! One board of stubs for each chip.

use super::{Build, Rig, Witness};
use crate::acpi_pm::{AcpiPm, PORT_COUNT, PowerEvents, SCI_GSI};
use crate::debug_exit::{DebugConsole, DebugExit};
use crate::hpet::{self, Hpet};
use crate::i8042::I8042;
use crate::ioapic::{self, IoApic};
use crate::pci::{PciLayout, RootComplex};
use crate::pic::Pic;
use crate::pit::Pit;
use crate::pvpanic::PvPanic;
use crate::rtc::{MemorySize, Rtc};
use crate::serial::{self, Serial, SerialBackend};
use device::pci::{Bar, BarKind, ConfigSpace, PciFunction, PciIdentity};
use device::{Bus, Device, InterruptSink, IrqLine, Msi, MsiSink, Record, SaveError};
use guest_clock::{ManualClock, TimerQueue};
use parking_lot::Mutex;
use std::sync::Arc;

/// Every chip, by name.
pub const CHIPS: [(&str, Build); 12] = [
    ("acpi_pm", acpi_pm),
    ("debug_console", debug_console),
    ("debug_exit", debug_exit),
    ("hpet", hpet),
    ("i8042", i8042),
    ("ioapic", ioapic),
    ("pci", pci),
    ("pic", pic),
    ("pit", pit),
    ("pvpanic", pvpanic),
    ("rtc", rtc),
    ("serial", serial),
];

impl InterruptSink for Witness {
    fn set_level(&self, gsi: u32, asserted: bool) {
        self.note("level", u64::from(gsi) << 1 | u64::from(asserted));
    }
}
impl MsiSink for Witness {
    fn signal(&self, msi: Msi) {
        self.note("message", msi.address << 32 | u64::from(msi.data));
    }
}
impl PowerEvents for Witness {
    fn power_off(&self) {
        self.note("power off", 0);
    }
    fn reset(&self) {
        self.note("reset", 0);
    }
}
impl SerialBackend for Witness {
    fn write(&self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.note("byte", byte.into()));
    }
}

fn line(witness: &Arc<Witness>, gsi: u32) -> IrqLine {
    IrqLine::new(Arc::clone(witness) as Arc<dyn InterruptSink>, gsi)
}

fn time() -> (Arc<ManualClock>, Arc<TimerQueue>) {
    let clock = Arc::new(ManualClock::default());
    (Arc::clone(&clock), TimerQueue::new(clock))
}

/// A rig whose chip needs timers.
fn timed<D: Device + 'static>(
    build: impl FnOnce(Arc<TimerQueue>, &Arc<Witness>) -> Arc<D>,
    windows: &[u64],
    event: impl Fn(&D, u8, u8) + Send + Sync + 'static,
) -> Rig {
    let (clock, timers) = time();
    let witness = Arc::new(Witness::default());
    let chip = build(Arc::clone(&timers), &witness);
    let devices: Vec<Arc<dyn Device>> = vec![chip.clone()];
    let event = Box::new(move |what, how| event(&chip, what, how));
    Rig { devices, windows: windows.to_vec(), clock, timers, event, witness }
}

/// A serial port.
pub fn serial() -> Rig {
    let build = |timers, seen: &Arc<Witness>| Serial::new("serial0", line(seen, 4), seen.clone(), timers);
    timed(build, &[serial::PORTS], |chip, what, how| {
        chip.push_input(&[what, how]);
    })
}

/// The interrupt controllers.
pub fn pic() -> Rig {
    timed(
        |_, seen| {
            let seen = Arc::clone(seen);
            Pic::new(Box::new(move |level| seen.note("intr", level.into())))
        },
        &[2, 2, 2],
        |chip, what, how| {
            if what & 0x80 != 0 {
                chip.acknowledge();
            } else {
                chip.set_irq(what, how & 1 != 0);
            }
        },
    )
}

/// The I/O APIC.
pub fn ioapic() -> Rig {
    timed(
        |_, seen| {
            let told = Arc::clone(seen);
            let vectors = move |level: &[bool; 256]| {
                (0..)
                    .zip(level)
                    .filter(|(_, level)| **level)
                    .for_each(|(vector, _)| told.note("vector", vector));
            };
            IoApic::new(seen.clone(), Box::new(vectors))
        },
        &[ioapic::SIZE.min(0x48)],
        |chip, what, how| {
            if what & 0x80 != 0 {
                chip.end_of_interrupt(how);
            } else {
                chip.set_irq(what % 32, how & 1 != 0);
            }
        },
    )
}

/// The interval timer.
pub fn pit() -> Rig {
    timed(
        |timers, seen| Pit::new(line(seen, 0), timers),
        &[4, 1],
        |chip, what, _| chip.set_irq_connected(what & 1 != 0),
    )
}

/// ACPI power management.
pub fn acpi_pm() -> Rig {
    let build = |timers, seen: &Arc<Witness>| AcpiPm::new(line(seen, SCI_GSI), seen.clone(), timers);
    timed(build, &[PORT_COUNT], |chip, _, _| chip.press_power_button())
}

/// The real-time clock.
pub fn rtc() -> Rig {
    let memory = MemorySize { below_4g: 1 << 30, above_4g: 0 };
    let build = |timers, seen: &Arc<Witness>| Rtc::new(line(seen, 8), memory, timers);
    timed(build, &[2], |chip, what, _| chip.set_irq_connected(what & 1 != 0))
}

/// The keyboard controller.
pub fn i8042() -> Rig {
    timed(|_, seen| I8042::new(seen.clone()), &[1, 1, 1], |_, _, _| {})
}

/// The exit port.
pub fn debug_exit() -> Rig {
    let build = |_, seen: &Arc<Witness>| {
        let seen = Arc::clone(seen);
        DebugExit::new(Box::new(move |value| seen.note("exit", value.into())))
    };
    timed(build, &[4], |_, _, _| {})
}

/// The panic port.
pub fn pvpanic() -> Rig {
    let build = |_, seen: &Arc<Witness>| {
        let seen = Arc::clone(seen);
        PvPanic::new(Box::new(move || seen.note("panic", 0)))
    };
    timed(build, &[1], |_, _, _| {})
}

/// The console port.
pub fn debug_console() -> Rig {
    timed(|_, seen| DebugConsole::new(seen.clone()), &[1], |_, _, _| {})
}

/// The event timers.
pub fn hpet() -> Rig {
    let build = |timers, seen: &Arc<Witness>| {
        let told = Arc::clone(seen);
        Hpet::new(seen.clone(), Box::new(move |on| told.note("legacy", on.into())), timers)
    };
    timed(build, &[hpet::SIZE.min(0x168)], |_, _, _| {})
}

/// The root complex with three functions.
pub fn pci() -> Rig {
    let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let (layout, witness) = (PciLayout::default(), Arc::new(Witness::default()));
    let root =
        RootComplex::new(Arc::clone(&ports), Arc::clone(&memory), witness.clone(), witness.clone(), layout);
    let mut devices: Vec<Arc<dyn Device>> = vec![root.clone()];
    for number in 1..4 {
        let function = Arc::new(PlainFunction::new(number));
        devices.push(function.clone());
        // The numbers are free, and the layout has room.
        let added = root.add(number, function);
        debug_assert!(added.is_ok());
    }
    let assigned = root.assign_addresses();
    debug_assert!(assigned.is_ok());
    let event = Box::new(move |what: u8, how: u8| {
        root.intx_line(what & 31, what >> 5).set_level(how & 1 != 0);
        // What the BARs decode, if anything.
        let mut data = [0];
        memory.read(0xd000_0000 + (u64::from(what) << 12), &mut data);
        ports.read(0xc000 + u64::from(how), &mut data);
    });
    let (clock, timers) = time();
    // Of ECAM, the first device numbers.
    Rig { devices, windows: vec![8, 5 << 15], clock, timers, event, witness }
}

/// A PCI function with all kinds of BARs and nothing behind them.
struct PlainFunction {
    name: String,
    config: Mutex<ConfigSpace>,
}

impl PlainFunction {
    fn new(number: u8) -> Self {
        let mut config = ConfigSpace::new(PciIdentity { vendor: 0x1af4, ..PciIdentity::default() }, 1);
        config.add_bar(0, BarKind::Io, 0x40);
        config.add_bar(1, BarKind::Memory32, 0x1000);
        config.add_bar(4, BarKind::Memory64, 0x4000);
        PlainFunction { name: format!("function{number}"), config: Mutex::new(config) }
    }
}

impl Device for PlainFunction {
    fn name(&self) -> &str {
        &self.name
    }
    fn read(&self, _window: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _window: usize, _offset: u64, _data: &[u8]) {}
    fn reset(&self) {}
    fn pause(&self) {}
    fn resume(&self) {}
    fn save(&self) -> Result<Record, SaveError> {
        Record::new(&self.name, "plain", 1, &*self.config.lock())
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let saved: ConfigSpace = record.open("plain", 1)?;
        self.config.lock().restore(&saved).map_err(|reason| record.malformed(reason))
    }
}

impl PciFunction for PlainFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config.lock().write(offset, data);
    }
    fn decoded_bars(&self) -> Vec<Bar> {
        self.config.lock().decoded_bars()
    }
    fn bars_mapped(&self, _bars: &[Bar]) {}
}
