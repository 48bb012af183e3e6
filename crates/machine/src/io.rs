//! From an instruction to a device.

use chipset::ioapic::IoApic;
use chipset::pic::Pic;
use device::Bus;
use engine::VcpuIo;
use std::sync::Arc;

/// The board as its processors reach it.
pub(crate) struct BoardIo {
    pub ports: Arc<Bus>,
    pub memory: Arc<Bus>,
    pub pic: Arc<Pic>,
    pub ioapic: Arc<IoApic>,
}

impl VcpuIo for BoardIo {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }
    fn eoi(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }
    fn acknowledge_pic(&self) -> u8 {
        self.pic.acknowledge()
    }
}
