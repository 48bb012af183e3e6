//! The legacy chips of a PC board.
//!
//! Each folder is one chip: `mod.rs` is its public type (locks, wires, timers), `device.rs` its registers without
//! any of these, `bits.rs` the register numbers with the section of the data sheet, `state.rs` what is saved.
//!
//! A chip computes under its lock what it wants to tell others and tells them after: wires through
//! [`device::Wire`], everything else as a returned action.
#![expect(missing_docs, dead_code, unused_variables, reason = "skeleton")]

macro_rules! stub_device {
    ($type:ty, $name:expr) => {
        impl device::Device for $type {
            fn name(&self) -> &str {
                $name
            }
            fn read(&self, window: usize, offset: u64, data: &mut [u8]) {
                data.fill(0xff);
            }
            fn write(&self, window: usize, offset: u64, data: &[u8]) {}
            fn reset(&self) {}
            fn pause(&self) {}
            fn resume(&self) {}
            fn save(&self) -> Result<device::Record, device::SaveError> {
                device::Record::new($name, "stub", 0, &0u32)
            }
            fn restore(&self, record: &device::Record) -> Result<(), device::SaveError> {
                Ok(())
            }
        }
    };
}

mod access;
pub mod acpi_pm;
mod alarm;
pub mod ioapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod routing;
pub mod serial;
pub mod rtc {
    use device::IrqLine;
    use guest_clock::TimerQueue;
    use std::sync::Arc;
    pub const PORTS: (u64, u64) = (0x70, 2);
    #[derive(Clone, Copy, Debug, Default)]
    pub struct MemorySize {
        pub below_4g: u64,
        pub above_4g: u64,
    }
    pub struct Rtc;
    impl Rtc {
        pub fn new(irq8: IrqLine, memory: MemorySize, timers: Arc<TimerQueue>) -> Arc<Self> {
            Arc::new(Rtc)
        }
        pub fn set_irq_connected(&self, connected: bool) {}
    }
    stub_device!(Rtc, "rtc");
}
pub mod debug_exit {
    use crate::serial::SerialBackend;
    use std::sync::Arc;
    pub const DEFAULT_PORT: u16 = 0xf4;
    pub const PORTS: u64 = 4;
    pub const CONSOLE_PORT: u16 = 0xe9;
    pub struct DebugExit;
    impl DebugExit {
        pub fn new(callback: Box<dyn Fn(u32) + Send + Sync>) -> Arc<Self> {
            Arc::new(DebugExit)
        }
    }
    stub_device!(DebugExit, "debug_exit");
    pub struct DebugConsole;
    impl DebugConsole {
        pub fn new(backend: Arc<dyn SerialBackend>) -> Arc<Self> {
            Arc::new(DebugConsole)
        }
    }
    stub_device!(DebugConsole, "debug_console");
}
pub mod i8042 {
    use crate::acpi_pm::PowerEvents;
    use std::sync::Arc;
    pub const WINDOWS: [(u64, u64); 3] = [(0x60, 1), (0x64, 1), (0x92, 1)];
    pub struct I8042;
    impl I8042 {
        pub fn new(power: Arc<dyn PowerEvents>) -> Arc<Self> {
            Arc::new(I8042)
        }
    }
    stub_device!(I8042, "i8042");
}
pub mod hpet {
    use device::InterruptSink;
    use guest_clock::TimerQueue;
    use std::sync::Arc;
    pub const ADDRESS: u64 = 0xfed0_0000;
    pub const SIZE: u64 = 0x400;
    pub struct Hpet;
    impl Hpet {
        pub fn new(
            interrupts: Arc<dyn InterruptSink>,
            legacy: Box<dyn Fn(bool) + Send + Sync>,
            timers: Arc<TimerQueue>,
        ) -> Arc<Self> {
            Arc::new(Hpet)
        }
    }
    stub_device!(Hpet, "hpet");
}
