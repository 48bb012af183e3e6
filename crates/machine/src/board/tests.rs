use super::*;
use crate::layout;
use guest_clock::{HostEntropy, ManualClock};

struct Nobody;
impl PowerEvents for Nobody {
    fn power_off(&self) {}
    fn reset(&self) {}
}
impl SerialBackend for Nobody {
    fn write(&self, _bytes: &[u8]) {}
}

/// A board with a console, and its memory.
fn board() -> (Board, Arc<GuestMemory>) {
    let memory = Arc::new(GuestMemory::new(&memory_map::ram(16 << 20)).unwrap());
    let around = Surroundings {
        memory: memory.clone(),
        gate: Arc::new(InterruptGate::default()),
        timers: TimerQueue::new(Arc::new(ManualClock::default())),
        entropy: Arc::new(HostEntropy),
    };
    let settings = BoardSettings {
        serial: Arc::new(Nobody),
        console: Some(Arc::new(Nobody)),
        disks: Vec::new(),
        debug_exit: None,
    };
    let events =
        BoardEvents { power: Arc::new(Nobody), debug_exit: Box::new(|_| {}), panic: Box::new(|| {}) };
    (Board::new(around, settings, events).unwrap(), memory)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// An ACPI table in guest memory, by its signature, found as a guest finds it.
fn table(memory: &GuestMemory, rsdp: u64, signature: &[u8]) -> Vec<u8> {
    let read = |address: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        memory.read(address, &mut bytes).unwrap();
        bytes
    };
    let whole = |address: u64| read(address, number(&read(address + 4, 4)));
    let xsdt = whole(number(&read(rsdp + 24, 8)));
    let tables = xsdt[36..].chunks(8).map(|pointer| whole(number(pointer)));
    tables.into_iter().find(|table| table.starts_with(signature)).unwrap()
}

impl Board {
    fn ecam(&self, address: u64, len: usize) -> u64 {
        let mut data = vec![0; len];
        self.io.memory.read(address, &mut data);
        number(&data)
    }

    /// By ports 0xcf8 and 0xcfc.
    fn by_ports(&self, function: u64, register: u64) -> u64 {
        let address = 1 << 31 | function << 8 | register & 0xfc;
        self.io.ports.write(0xcf8, &(address as u32).to_le_bytes());
        let mut data = [0; 4];
        self.io.ports.read(0xcfc, &mut data);
        number(&data)
    }
}

/// PCI Firmware 3.3, 4.1.2: where MCFG says that a segment's configuration space is, and for these buses, each function
/// has its 4 KiB; its first 256 bytes are those of the configuration ports (PCI Local Bus 3.0, 3.2.2.3.2).
#[test]
fn ecam_is_where_mcfg_says_and_agrees_with_the_ports() {
    let (board, memory) = board();
    let (rsdp, _) = loader::acpi::write(&memory, &layout::of_board(1), 0xe_0000).unwrap();
    let mcfg = table(&memory, rsdp, b"MCFG");
    assert_eq!(mcfg.len(), 36 + 8 + 16, "one segment");
    let base = number(&mcfg[44..52]);
    let (segment, first, last) = (number(&mcfg[52..54]), u64::from(mcfg[54]), u64::from(mcfg[55]));
    assert_eq!((segment, first), (0, 0));
    let mut found = Vec::new();
    for function in first << 8..(last + 1) << 8 {
        let at = base + (function << 12);
        for register in (0..256).step_by(4) {
            let expected = board.by_ports(function, register);
            assert_eq!(board.ecam(at + register, 4), expected, "{function:#x}, register {register:#x}");
            let (low, high) = (expected & 0xffff, expected >> 16);
            assert_eq!([board.ecam(at + register, 2), board.ecam(at + register + 2, 2)], [low, high]);
            for byte in 0..4 {
                assert_eq!(board.ecam(at + register + byte, 1), expected >> (8 * byte) & 0xff);
            }
        }
        // PCI Express Base 5.0, 7.2.2: behind them, functions without extended capabilities read as zero.
        let there = board.by_ports(function, 0) != 0xffff_ffff;
        let extended = if there { 0 } else { 0xffff_ffff };
        assert!((0x100..0x1000).step_by(4).all(|register| board.ecam(at + register, 4) == extended));
        found.extend(there.then_some(function));
    }
    // Host bridge, entropy, console.
    assert_eq!(found, [0, 1 << 3, 2 << 3]);
    let end = base + ((last + 1) << 20);
    for outside in [base - 4, end, end + (1 << 15)] {
        assert_eq!(board.ecam(outside, 4), 0xffff_ffff, "nothing at {outside:#x}");
    }
    // Buses that MCFG does not name are not there for the ports either.
    assert!((last + 1..256).all(|bus| board.by_ports(bus << 8, 0) == 0xffff_ffff));
}

/// What one way writes the other reads.
#[test]
fn both_ways_write_the_same_registers() {
    let (board, _memory) = board();
    let function = 1_u64 << 3;
    let at = memory_map::ECAM_BASE + (function << 12);
    for (register, value) in [(0x3c_u64, 0x5a_u8), (0x3c, 0xa5), (0x04, 0x02), (0x04, 0x00)] {
        board.io.memory.write(at + register, &[value]);
        assert_eq!(board.by_ports(function, register) & 0xff, u64::from(value));
        let other = value ^ 0x04;
        board.io.ports.write(0xcf8, &((1 << 31 | function << 8 | register) as u32).to_le_bytes());
        board.io.ports.write(0xcfc, &[other]);
        assert_eq!(board.ecam(at + register, 1), u64::from(other));
    }
}
