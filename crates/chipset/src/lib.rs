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
pub mod debug_exit;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod routing;
pub mod rtc;
pub mod serial;
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
