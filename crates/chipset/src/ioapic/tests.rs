use super::*;

#[derive(Default)]
struct Messages(Mutex<Vec<Msi>>);
impl MsiSink for Messages {
    fn signal(&self, msi: Msi) {
        self.0.lock().push(msi);
    }
}

pub(super) struct Rig {
    pub(super) ioapic: Arc<IoApic>,
    messages: Arc<Messages>,
    vectors: Arc<Mutex<Vec<usize>>>,
}

pub(super) fn rig() -> Rig {
    let (messages, vectors) = (Arc::new(Messages::default()), Arc::new(Mutex::new(Vec::new())));
    let told = Arc::clone(&vectors);
    let tell = move |level: &[bool; 256]| *told.lock() = (0..256).filter(|&v| level[v]).collect();
    Rig { ioapic: IoApic::new(messages.clone(), Box::new(tell)), messages, vectors }
}

impl Rig {
    pub(super) fn write(&self, register: u8, value: u32) {
        self.ioapic.write(0, 0x00, &[register]);
        self.ioapic.write(0, 0x10, &value.to_le_bytes());
    }
    pub(super) fn read(&self, register: u8) -> u32 {
        self.ioapic.write(0, 0x00, &[register]);
        let mut data = [0; 4];
        self.ioapic.read(0, 0x10, &mut data);
        u32::from_le_bytes(data)
    }
    fn entry(&self, pin: u8, value: u64) {
        self.write(0x11 + pin * 2, (value >> 32) as u32);
        self.write(0x10 + pin * 2, value as u32);
    }
    pub(super) fn take(&self) -> Vec<Msi> {
        std::mem::take(&mut self.messages.0.lock())
    }
}

#[test]
fn identification_and_reset_values() {
    let rig = rig();
    assert_eq!(rig.read(1), 0x0017_0020);
    rig.write(0, 0xffff_ffff);
    assert_eq!((rig.read(0), rig.read(2)), (0x0f00_0000, 0x0f00_0000));
    for pin in 0..24 {
        assert_eq!((rig.read(0x10 + pin * 2), rig.read(0x11 + pin * 2)), (0x1_0000, 0));
    }
    assert_eq!(rig.read(0x40), 0);
    rig.write(0x10, 0xffff_ffff);
    // Delivery status and remote IRR are read-only.
    assert_eq!(rig.read(0x10), 0x0001_afff);
}

#[test]
fn an_edge_makes_one_message_unless_masked() {
    let rig = rig();
    rig.ioapic.set_irq(4, true);
    rig.ioapic.set_irq(4, false);
    rig.entry(4, 0x0300_0000_0000_0934);
    assert_eq!(rig.take(), []);
    rig.ioapic.set_irq(4, true);
    rig.ioapic.set_irq(4, true);
    // Destination 3, logical, lowest priority, vector 0x34.
    assert_eq!(rig.take(), [Msi { address: 0xfee0_3004, data: 0x134 }]);
}

#[test]
fn a_level_repeats_only_after_its_end() {
    let rig = rig();
    rig.entry(16, 0x8040 | 1 << 13);
    assert_eq!(*rig.vectors.lock(), [0x40]);
    rig.ioapic.set_irq(16, true);
    rig.ioapic.set_irq(16, false);
    rig.ioapic.set_irq(16, true);
    assert_eq!(rig.take(), [Msi { address: 0xfee0_0000, data: 0xc040 }]);
    assert_eq!(rig.read(0x30) & 1 << 14, 1 << 14);
    rig.ioapic.end_of_interrupt(0x41);
    assert_eq!(rig.take(), []);
    rig.ioapic.end_of_interrupt(0x40);
    assert_eq!(rig.take().len(), 1);
    rig.ioapic.set_irq(16, false);
    rig.ioapic.write(0, 0x40, &0x40_u32.to_le_bytes());
    assert_eq!(rig.take(), []);
    assert_eq!(rig.read(0x30) & 1 << 14, 0);
}

#[test]
fn a_high_level_interrupts_when_unmasked() {
    let rig = rig();
    rig.entry(20, 0x1_8050);
    rig.ioapic.set_irq(20, true);
    assert_eq!(rig.take(), []);
    rig.entry(20, 0x8050);
    assert_eq!(rig.take().len(), 1);
    // To edge and back clears remote IRR.
    rig.entry(20, 0x1_0050);
    rig.entry(20, 0x1_8050);
    assert_eq!(rig.read(0x38) & 1 << 14, 0);
}

#[test]
fn a_record_with_other_entries_is_refused() {
    let rig = rig();
    let state = IoApicState { select: 0, id: 0, pins: 0, entries: vec![0; 3] };
    let record = Record::new("ioapic", KIND, VERSION, &state).unwrap();
    assert!(rig.ioapic.restore(&record).is_err());
}
