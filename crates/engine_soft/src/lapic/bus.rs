//! [`ApicBus`]: how interrupt messages find local APICs, from any thread.
//!
//! What other threads may touch of a local APIC is in [`LapicPort`], in atomics: a message is delivered without
//! a lock, except to wake a processor that sleeps. The processor's thread learns of it by a bit in its event
//! word, which is set after the request bits.

use crate::system::event;
use engine::MsiMessage;
use parking_lot::{Condvar, Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

/// Delivery modes (SDM 3A 10.6.1).
pub mod delivery {
    #![expect(missing_docs, reason = "the manual's names")]
    pub const FIXED: u8 = 0;
    pub const LOWEST_PRIORITY: u8 = 1;
    pub const SMI: u8 = 2;
    pub const NMI: u8 = 4;
    pub const INIT: u8 = 5;
    pub const START_UP: u8 = 6;
    pub const EXT_INT: u8 = 7;
}

/// Error status bits (SDM 3A 10.5.3).
pub mod error {
    /// An illegal vector was to be sent.
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// An illegal vector arrived.
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// A reserved register of the xAPIC page was accessed.
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// How a local APIC takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Off by IA32_APIC_BASE.
    Disabled = 0,
    /// Memory-mapped registers, eight-bit IDs.
    Xapic = 1,
    /// Registers in MSRs, 32-bit IDs.
    X2apic = 2,
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An APIC ID; all ones (32 bits) for everybody.
    Physical(u32),
    /// A message destination address (SDM 3A 10.6.2.2).
    Logical(u32),
    /// Everybody but one, or simply everybody.
    AllExcept(Option<u32>),
}

/// An interrupt message.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// To whom.
    pub destination: Destination,
    /// One of [`delivery`].
    pub mode: u8,
    /// Vector.
    pub vector: u8,
    /// Level-triggered.
    pub level: bool,
}

/// The part of a local APIC that other threads reach.
pub struct LapicPort {
    /// The processor's event word.
    pub events: Arc<AtomicU32>,
    pub(super) irr: [AtomicU32; 8],
    pub(super) tmr: [AtomicU32; 8],
    pub(super) id: AtomicU32,
    pub(super) logical: AtomicU32,
    pub(super) flat: AtomicBool,
    pub(super) mode: AtomicU8,
    pub(super) software_enabled: AtomicBool,
    /// Processor priority, for lowest-priority delivery.
    pub(super) priority: AtomicU8,
    pub(super) errors: AtomicU32,
    pub(super) start_vector: AtomicU8,
    sleeping: AtomicBool,
    lock: Mutex<()>,
    wakeup: Condvar,
}

impl LapicPort {
    /// The port of the processor with this event word.
    pub fn new(id: u32, events: Arc<AtomicU32>) -> Self {
        LapicPort {
            events,
            irr: Default::default(),
            tmr: Default::default(),
            id: AtomicU32::new(id),
            logical: AtomicU32::new(0),
            flat: AtomicBool::new(true),
            mode: AtomicU8::new(Mode::Xapic as u8),
            software_enabled: AtomicBool::new(false),
            priority: AtomicU8::new(0),
            errors: AtomicU32::new(0),
            start_vector: AtomicU8::new(0),
            sleeping: AtomicBool::new(false),
            lock: Mutex::new(()),
            wakeup: Condvar::new(),
        }
    }

    /// Sets event bits and wakes the processor.
    pub fn signal(&self, bits: u32) {
        self.events.fetch_or(bits, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            // Taking the lock makes sure that the sleeper is either not yet at its check or already waits.
            drop(self.lock.lock());
            self.wakeup.notify_all();
        }
    }

    /// Blocks the processor's thread until an event of `mask`, or a time-out.
    pub fn sleep(&self, mask: u32, timeout: Option<Duration>) {
        self.sleeping.store(true, Ordering::SeqCst);
        let mut guard = self.lock.lock();
        if self.events.load(Ordering::SeqCst) & mask == 0 {
            match timeout {
                Some(timeout) => drop(self.wakeup.wait_for(&mut guard, timeout)),
                None => self.wakeup.wait(&mut guard),
            }
        }
        drop(guard);
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// The vector of a start-up IPI that a loaded state has waiting.
    pub fn set_start_vector(&self, vector: u8) {
        self.start_vector.store(vector, Ordering::SeqCst);
    }

    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Disabled,
            1 => Mode::Xapic,
            _ => Mode::X2apic,
        }
    }

    /// Whether a message is for this APIC.
    pub(super) fn matches(&self, destination: Destination) -> bool {
        let id = self.id.load(Ordering::Relaxed);
        let mode = self.mode();
        if mode == Mode::Disabled {
            return false;
        }
        match destination {
            Destination::AllExcept(other) => other != Some(id),
            Destination::Physical(u32::MAX) => true,
            Destination::Physical(wanted) => wanted == id,
            Destination::Logical(wanted) => self.matches_logical(mode, wanted),
        }
    }

    fn matches_logical(&self, mode: Mode, wanted: u32) -> bool {
        let logical = self.logical.load(Ordering::Relaxed);
        if mode == Mode::X2apic {
            return wanted == u32::MAX || wanted >> 16 == logical >> 16 && wanted & logical & 0xffff != 0;
        }
        if wanted == 0xff || wanted == u32::MAX {
            return true;
        }
        let logical = logical >> 24;
        if self.flat.load(Ordering::Relaxed) {
            wanted & logical != 0
        } else {
            (wanted >> 4 == logical >> 4 || wanted >> 4 == 0xf) && wanted & logical & 0xf != 0
        }
    }

    /// Takes a message that is for this APIC.
    pub(super) fn accept(&self, mode: u8, vector: u8, level: bool) {
        match mode {
            delivery::FIXED | delivery::LOWEST_PRIORITY => self.request(vector, level),
            delivery::NMI => self.signal(event::NMI),
            delivery::INIT => {
                // Start-up IPIs from before are void; those that come before the processor's thread has looked
                // at the INIT count.
                self.events.fetch_and(!event::SIPI, Ordering::SeqCst);
                self.signal(event::INIT);
            }
            delivery::START_UP => {
                self.start_vector.store(vector, Ordering::SeqCst);
                self.signal(event::SIPI);
            }
            delivery::EXT_INT => self.signal(event::EXT_INT),
            _ => {}
        }
    }

    pub(super) fn request(&self, vector: u8, level: bool) {
        if !self.software_enabled.load(Ordering::Relaxed) {
            return;
        }
        if vector < 16 {
            self.errors.fetch_or(error::RECEIVE_ILLEGAL_VECTOR, Ordering::SeqCst);
            return self.signal(event::APIC_ERROR);
        }
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        if level {
            self.tmr[word].fetch_or(bit, Ordering::SeqCst);
        } else {
            self.tmr[word].fetch_and(!bit, Ordering::SeqCst);
        }
        self.irr[word].fetch_or(bit, Ordering::SeqCst);
        self.signal(event::INTR);
    }
}

/// Everything that connects the local APICs of a machine.
pub struct ApicBus {
    ports: Vec<Arc<LapicPort>>,
    pic_line: AtomicBool,
    level_vectors: RwLock<[bool; 256]>,
}

impl ApicBus {
    /// A bus of processors with APIC IDs in order.
    pub fn new(cpus: u32) -> Self {
        let port = |id| Arc::new(LapicPort::new(id, Arc::new(AtomicU32::new(0))));
        ApicBus {
            ports: (0..cpus).map(port).collect(),
            pic_line: AtomicBool::new(false),
            level_vectors: RwLock::new([false; 256]),
        }
    }

    /// Processor `index`'s port, if there is such a processor.
    pub fn port(&self, index: u32) -> Option<&Arc<LapicPort>> {
        self.ports.get(index as usize)
    }

    /// Delivers an MSI (SDM 3A 10.11).
    pub fn deliver_msi(&self, message: MsiMessage) {
        let MsiMessage { address, data } = message;
        if address & 0xfff0_0000 != 0xfee0_0000 {
            return;
        }
        let id = (address >> 12 & 0xff) as u32 | (address >> 32) as u32 & 0xffff_ff00;
        // The destination mode counts only with the redirection hint on silicon; chipsets and hypervisors
        // look at it alone, and so do guests.
        let logical = address & 1 << 2 != 0;
        let id = if id == 0xff && !logical { u32::MAX } else { id };
        self.deliver(Message {
            destination: if logical { Destination::Logical(id) } else { Destination::Physical(id) },
            mode: (data >> 8 & 7) as u8,
            vector: data as u8,
            level: data & 1 << 15 != 0,
        });
    }

    /// Delivers a message.
    pub fn deliver(&self, message: Message) {
        let Message { destination, mode, vector, level } = message;
        let targets = self.ports.iter().filter(|port| port.matches(destination));
        if mode != delivery::LOWEST_PRIORITY {
            return targets.for_each(|port| port.accept(mode, vector, level));
        }
        let enabled = targets.filter(|port| port.software_enabled.load(Ordering::Relaxed));
        if let Some(port) = enabled.min_by_key(|port| port.priority.load(Ordering::Relaxed)) {
            port.accept(mode, vector, level);
        }
    }

    /// The level of the PIC's INTR line, wired to LINT0 of processor 0.
    pub fn set_pic_line(&self, asserted: bool) {
        let before = self.pic_line.swap(asserted, Ordering::SeqCst);
        if asserted
            && !before
            && let Some(port) = self.ports.first()
        {
            port.signal(event::PIC);
        }
    }

    /// The level of the PIC's INTR line.
    pub fn pic_line(&self) -> bool {
        self.pic_line.load(Ordering::SeqCst)
    }

    /// Vectors whose EOIs shall be reported in any case.
    pub fn set_level_vectors(&self, vectors: &[bool; 256]) {
        *self.level_vectors.write() = *vectors;
    }

    pub(super) fn is_level_vector(&self, vector: u8) -> bool {
        self.level_vectors.read()[usize::from(vector)]
    }
}
