//! Interrupts: wires and messages.

use std::sync::Arc;

/// Where wires end: the machine's routing to PIC and IOAPIC.
pub trait InterruptSink: Send + Sync {
    /// The level of global system interrupt `gsi` changed or was repeated.
    fn set_level(&self, gsi: u32, asserted: bool);
}

/// A wire of one device to one global system interrupt.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn InterruptSink>,
    gsi: u32,
}

impl IrqLine {
    /// A wire to input `gsi` of a sink.
    pub fn new(sink: Arc<dyn InterruptSink>, gsi: u32) -> Self {
        IrqLine { sink, gsi }
    }
    /// Sets the level.
    pub fn set_level(&self, asserted: bool) {
        self.sink.set_level(self.gsi, asserted);
    }
    /// A pulse, for edge-triggered inputs.
    pub fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
    /// The input it is wired to.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

/// A message-signalled interrupt as a device sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// Where messages go: the engine's local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers a message.
    fn signal(&self, msi: Msi);
}
