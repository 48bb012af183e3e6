use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
struct Board {
    levels: Mutex<Vec<(u32, bool)>>,
    resets: AtomicU32,
}
impl InterruptSink for Board {
    fn set_level(&self, gsi: u32, asserted: bool) {
        self.levels.lock().push((gsi, asserted));
    }
}
impl PowerEvents for Board {
    fn power_off(&self) {}
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

/// Answers its number.
struct Function {
    number: u8,
    config: Mutex<ConfigSpace>,
    /// Addresses of its mapped BARs, each time it was told.
    told: Mutex<Vec<Vec<u64>>>,
}

impl Function {
    fn new(number: u8, bars: &[(usize, BarKind, u64)]) -> Arc<Self> {
        let identity =
            PciIdentity { vendor: 0x1af4, device: 0x1040 + u16::from(number), ..PciIdentity::default() };
        let mut config = ConfigSpace::new(identity, 1);
        bars.iter().for_each(|&(index, kind, size)| config.add_bar(index, kind, size));
        Arc::new(Function { number, config: Mutex::new(config), told: Mutex::default() })
    }
}

impl Device for Function {
    fn name(&self) -> &str {
        "function"
    }
    fn read(&self, window: usize, _offset: u64, data: &mut [u8]) {
        data.fill(self.number << 4 | window as u8);
    }
    fn write(&self, _window: usize, _offset: u64, _data: &[u8]) {}
    fn reset(&self) {}
    fn pause(&self) {}
    fn resume(&self) {}
    fn save(&self) -> Result<Record, SaveError> {
        Record::new("function", "function", 1, &0)
    }
    fn restore(&self, _record: &Record) -> Result<(), SaveError> {
        Ok(())
    }
}

impl PciFunction for Function {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        assert!(usize::from(offset).is_multiple_of(data.len()) && data.len() <= 4);
        self.config.lock().read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        assert!(usize::from(offset).is_multiple_of(data.len()) && data.len() <= 4);
        self.config.lock().write(offset, data);
    }
    fn decoded_bars(&self) -> Vec<Bar> {
        self.config.lock().decoded_bars()
    }
    fn bars_mapped(&self, bars: &[Bar]) {
        self.told.lock().push(bars.iter().map(|bar| bar.address).collect());
    }
}

struct Rig {
    root: Arc<RootComplex>,
    functions: [Arc<Function>; 2],
    board: Arc<Board>,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
}

fn rig() -> Rig {
    let (board, ports, memory) = (Arc::new(Board::default()), Arc::new(Bus::new()), Arc::new(Bus::new()));
    let layout = PciLayout::default();
    let root = RootComplex::new(
        Arc::clone(&ports),
        Arc::clone(&memory),
        board.clone(),
        board.clone(),
        layout.clone(),
    );
    ports.insert(CONFIG_PORTS.0, CONFIG_PORTS.1, root.clone(), 0).unwrap();
    memory.insert(layout.ecam_base, layout.ecam_size(), root.clone(), 1).unwrap();
    let bars = [(0, BarKind::Io, 0x20), (1, BarKind::Memory32, 0x1000), (4, BarKind::Memory64, 0x4000)];
    let functions = [3, 4].map(|number| Function::new(number, &bars));
    for function in &functions {
        root.add(function.number, function.clone()).unwrap();
    }
    root.assign_addresses().unwrap();
    Rig { root, functions, board, ports, memory }
}

impl Rig {
    fn read(&self, device: u8, register: u8) -> u32 {
        let mut data = [0; 4];
        self.ports.write(0xcf8, &address(device, register));
        self.ports.read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }
    fn write(&self, device: u8, register: u8, value: u32) {
        self.ports.write(0xcf8, &address(device, register));
        self.ports.write(0xcfc, &value.to_le_bytes());
    }
    fn memory(&self, address: u64) -> u8 {
        let mut data = [0];
        self.memory.read(address, &mut data);
        data[0]
    }
}

fn address(device: u8, register: u8) -> [u8; 4] {
    (0x8000_0000 | u32::from(device) << 11 | u32::from(register)).to_le_bytes()
}

#[test]
fn ports_and_ecam_show_the_same() {
    let rig = rig();
    assert_eq!(rig.read(0, 0), 0x0008_1b36);
    assert_eq!(rig.read(0, 8), 0x0600_0000);
    assert_eq!(rig.read(3, 0), 0x1043_1af4);
    assert_eq!(rig.read(5, 0), 0xffff_ffff);
    let base = PciLayout::default().ecam_base;
    for (offset, expected) in
        [(0, 0x0008_1b36_u32), (3 << 15, 0x1043_1af4), (3 << 15 | 1 << 12, !0), (1 << 20, !0)]
    {
        let mut data = [0; 4];
        rig.memory.read(base + offset, &mut data);
        assert_eq!(u32::from_le_bytes(data), expected);
    }
    let mut odd = [0; 8];
    rig.memory.read(base + (3 << 15) + 1, &mut odd);
    assert_eq!(odd[..3], [0x1a, 0x43, 0x10]);
    let mut half = [0; 2];
    rig.ports.write(0xcf8, &address(3, 0));
    rig.ports.read(0xcfe, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x1043);
    rig.ports.write(0xcf8, &[0; 4]);
    rig.ports.read(0xcfe, &mut half);
    assert_eq!(half, [0xff; 2]);
}

#[test]
fn addresses_are_assigned_aligned_and_apart_and_decode_when_enabled() {
    let rig = rig();
    let layout = PciLayout::default();
    let mut taken = Vec::new();
    for device in [3, 4] {
        assert_eq!(rig.read(device, 4) & 0xffff, 0, "nothing decodes yet");
        let (io, memory) = (u64::from(rig.read(device, 0x10)), u64::from(rig.read(device, 0x14)));
        let wide = u64::from(rig.read(device, 0x20)) | u64::from(rig.read(device, 0x24)) << 32;
        assert!(io & 1 == 1 && layout.io.contains(&(io & !3)) && io & 0x1c == 0);
        assert!(memory & 0xfff == 0 && layout.mmio32.contains(&memory));
        assert!(wide & 0x3fff == 4 && layout.mmio32.contains(&wide));
        taken.extend([memory, wide & !0xf]);
        // Pin A of slot 3 is wire D, of slot 4 wire A; the routing table says where the PIC has them.
        assert_eq!(rig.read(device, 0x3c) as u8, if device == 3 { 14 } else { 5 });
        assert_eq!(rig.memory(memory), 0xff);
        rig.write(device, 4, 3);
        assert_eq!(rig.memory(memory), device << 4 | 1);
        assert_eq!(rig.memory((wide & !0xf) + 0x3fff), device << 4 | 4);
        let mut data = [0];
        rig.ports.read(io & !3, &mut data);
        assert_eq!(data[0], device << 4);
    }
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), 4);
}

#[test]
fn a_moved_bar_answers_at_its_new_place_only() {
    let rig = rig();
    let old = u64::from(rig.read(3, 0x14));
    rig.write(3, 4, 2);
    rig.write(3, 0x14, 0xd800_0000);
    assert_eq!((rig.memory(old), rig.memory(0xd800_0000)), (0xff, 0x31));
    // A BAR over another one waits until that is gone.
    rig.write(4, 0x14, 0xd800_0000);
    rig.write(4, 4, 2);
    assert_eq!(rig.memory(0xd800_0000), 0x31);
    let told = || rig.functions.iter().map(|function| function.told.lock().last().cloned().unwrap());
    assert_eq!(told().map(|bars| bars.contains(&0xd800_0000)).collect::<Vec<_>>(), [true, false]);
    rig.write(3, 4, 0);
    assert_eq!(rig.memory(0xd800_0000), 0x41);
    assert_eq!(told().map(|bars| bars.contains(&0xd800_0000)).collect::<Vec<_>>(), [false, true]);
    // Whoever takes an address over hears of it after the other has let it go.
    let told = |index: usize| rig.functions[index].told.lock().clone();
    let [first, second] = [told(0), told(1)].map(|told| told.len());
    rig.write(3, 4, 2);
    rig.write(4, 4, 0);
    let (first, second) = (told(0).split_off(first), told(1).split_off(second));
    assert_eq!(first.len(), second.len());
    let both = first.iter().zip(&second).filter(|(a, b)| a.iter().any(|address| b.contains(address)));
    assert_eq!(both.count(), 0);
}

#[test]
fn devices_that_share_a_wire_hold_it_together() {
    let rig = rig();
    assert_eq!([gsi_of(0, 1), gsi_of(3, 1), gsi_of(4, 1), gsi_of(3, 2)], [16, 19, 16, 16]);
    let (first, second) = (rig.root.intx_line(4, 1), rig.root.intx_line(3, 2));
    first.set_level(true);
    second.set_level(true);
    first.set_level(false);
    second.set_level(false);
    assert_eq!(*rig.board.levels.lock(), [(16, true), (16, false)]);
}

#[test]
fn the_reset_port_lies_inside_of_the_address_port() {
    let rig = rig();
    rig.ports.write(0xcf8, &address(3, 0));
    rig.ports.write(0xcf9, &[0x02]);
    assert_eq!(rig.board.resets.load(Ordering::SeqCst), 0);
    rig.ports.write(0xcf9, &[0x06]);
    assert_eq!(rig.board.resets.load(Ordering::SeqCst), 1);
    let mut data = [0];
    rig.ports.read(0xcf9, &mut data);
    assert_eq!(data, [0x02]);
    let mut kept = [0; 4];
    rig.ports.read(0xcf8, &mut kept);
    assert_eq!(kept, address(3, 0));
}

#[test]
fn numbers_are_given_once_and_space_may_run_out() {
    let rig = rig();
    assert!(matches!(rig.root.add(3, Function::new(3, &[])), Err(PciError::Taken(3))));
    assert!(matches!(rig.root.add(0, Function::new(0, &[])), Err(PciError::NoSuchNumber(0))));
    assert!(matches!(rig.root.add(32, Function::new(0, &[])), Err(PciError::NoSuchNumber(32))));
    rig.root.add(6, Function::new(6, &[(0, BarKind::Memory64, 1 << 32)])).unwrap();
    rig.root.assign_addresses().unwrap();
    assert_eq!((rig.read(6, 0x10), rig.read(6, 0x14)), (4, 0x80));
    rig.root.add(7, Function::new(7, &[(0, BarKind::Memory32, 1 << 30)])).unwrap();
    assert!(matches!(rig.root.assign_addresses(), Err(PciError::NoSpace { device: 7, bar: 0, .. })));
}
