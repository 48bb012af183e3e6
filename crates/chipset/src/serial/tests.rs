use super::bits::*;
use super::*;
use ::device::InterruptSink;
use guest_clock::ManualClock;

#[derive(Default)]
struct Output(Mutex<Vec<u8>>);
impl SerialBackend for Output {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().extend_from_slice(bytes);
    }
}

#[derive(Default)]
struct Levels(Mutex<Vec<bool>>);
impl InterruptSink for Levels {
    fn set_level(&self, gsi: u32, asserted: bool) {
        assert_eq!(gsi, 4);
        self.0.lock().push(asserted);
    }
}

struct Rig {
    serial: Arc<Serial>,
    output: Arc<Output>,
    levels: Arc<Levels>,
    clock: Arc<ManualClock>,
    timers: Arc<TimerQueue>,
}

fn rig() -> Rig {
    let (output, levels, clock) =
        (Arc::new(Output::default()), Arc::new(Levels::default()), Arc::new(ManualClock::default()));
    let timers = TimerQueue::new(clock.clone());
    let serial = Serial::new("serial0", IrqLine::new(levels.clone(), 4), output.clone(), Arc::clone(&timers));
    Rig { serial, output, levels, clock, timers }
}

impl Rig {
    fn read(&self, register: u64) -> u8 {
        let mut data = [0];
        self.serial.read(0, register, &mut data);
        data[0]
    }
    fn write(&self, register: u64, value: u8) {
        self.serial.write(0, register, &[value]);
    }
    fn level(&self) -> bool {
        self.levels.0.lock().last().copied().unwrap_or(false)
    }
}

#[test]
fn registers_after_reset_are_those_of_table_1() {
    let rig = rig();
    assert_eq!(rig.read(IER), 0);
    assert_eq!(rig.read(IIR_FCR), 1);
    assert_eq!(rig.read(LCR), 0);
    assert_eq!(rig.read(MCR), 0);
    assert_eq!(rig.read(LSR), 0x60);
    assert_eq!(rig.read(MSR) & 0x0f, 0);
}

#[test]
fn the_divisor_hides_behind_dlab() {
    let rig = rig();
    rig.write(LCR, 0x83);
    rig.write(0, 0x34);
    rig.write(1, 0x12);
    assert_eq!((rig.read(0), rig.read(1)), (0x34, 0x12));
    rig.write(LCR, 0x03);
    assert_eq!((rig.read(0), rig.read(1)), (0, 0));
    assert!(rig.output.0.lock().is_empty());
    rig.write(0, b'x');
    assert_eq!(*rig.output.0.lock(), b"x");
}

#[test]
fn the_probe_for_a_16550a_succeeds() {
    let rig = rig();
    rig.write(IIR_FCR, 0x01);
    assert_eq!(rig.read(IIR_FCR), 0xc1);
    rig.write(IIR_FCR, 0x00);
    assert_eq!(rig.read(IIR_FCR), 0x01);
    rig.write(SCR, 0xa5);
    assert_eq!(rig.read(SCR), 0xa5);
    rig.write(IER, 0xff);
    assert_eq!(rig.read(IER), 0x0f);
}

#[test]
fn loopback_wires_modem_control_to_modem_status() {
    let rig = rig();
    rig.write(LCR, 3);
    // Data sheet 8.8: RTS-CTS, DTR-DSR, OUT1-RI, OUT2-DCD.
    for (control, status) in [(0x02, 0x10), (0x01, 0x20), (0x04, 0x40), (0x08, 0x80)] {
        rig.write(MCR, 0x10 | control);
        assert_eq!(rig.read(MSR) & 0xf0, status);
    }
    rig.write(MCR, 0x1f);
    rig.write(0, 0x55);
    assert!(rig.output.0.lock().is_empty());
    assert_eq!(rig.read(LSR), 0x61);
    assert_eq!(rig.read(0), 0x55);
    assert_eq!(rig.read(LSR), 0x60);
    rig.write(MCR, 0x14);
    rig.read(MSR);
    rig.write(MCR, 0x10);
    assert_eq!(rig.read(MSR), MSR_RING_ENDED);
}

#[test]
fn the_transmitter_interrupt_comes_with_enabling_and_after_each_byte() {
    let rig = rig();
    rig.write(MCR, MCR_OUT2);
    rig.write(IER, 0x02);
    assert!(rig.level());
    assert_eq!(rig.read(IIR_FCR), 0x02);
    assert!(!rig.level());
    assert_eq!(rig.read(IIR_FCR), 0x01);
    rig.write(0, b'a');
    rig.write(0, b'b');
    // Each byte gives an edge.
    assert_eq!(*rig.levels.0.lock(), [true, false, true, false, true]);
}

#[test]
fn received_bytes_interrupt_at_the_trigger_or_after_four_characters() {
    let rig = rig();
    rig.write(MCR, MCR_OUT2);
    rig.write(LCR, 0x03);
    rig.write(IIR_FCR, 0x41);
    rig.write(IER, 0x01);
    assert_eq!(rig.serial.push_input(b"abc"), 3);
    assert!(!rig.level());
    // 9600 baud, 10 bits: 4 characters are 4.1666 ms.
    rig.clock.advance(4_166_000);
    rig.timers.run_expired();
    assert!(!rig.level());
    rig.clock.advance(1_000);
    rig.timers.run_expired();
    assert!(rig.level());
    assert_eq!(rig.read(IIR_FCR), 0xcc);
    assert_eq!(rig.read(0), b'a');
    assert!(!rig.level());
    assert_eq!(rig.serial.push_input(b"de"), 2);
    assert_eq!(rig.read(IIR_FCR), 0xc4);
    assert!(rig.level());
}

#[test]
fn a_full_fifo_pushes_back_and_loses_nothing() {
    let rig = rig();
    rig.write(IIR_FCR, 0x01);
    let text: Vec<u8> = (0..100).collect();
    let (reader, writer) = (Arc::clone(&rig.serial), text.clone());
    let pusher = std::thread::spawn(move || {
        let mut rest = writer.as_slice();
        while !rest.is_empty() {
            reader.wait_for_room(Duration::from_millis(50));
            rest = &rest[reader.push_input(rest)..];
        }
    });
    let mut seen = Vec::new();
    while seen.len() < text.len() {
        if rig.read(LSR) & LSR_DATA_READY != 0 {
            seen.push(rig.read(0));
        }
    }
    pusher.join().unwrap();
    assert_eq!(seen, text);
    assert_eq!(rig.read(LSR) & LSR_OVERRUN, 0);
}

#[test]
fn a_loopback_overrun_is_told_once() {
    let rig = rig();
    rig.write(MCR, MCR_LOOPBACK);
    rig.write(0, 1);
    rig.write(0, 2);
    assert_eq!(rig.read(LSR), 0x63);
    assert_eq!(rig.read(LSR), 0x61);
    assert_eq!(rig.read(0), 2);
    assert_eq!(rig.serial.push_input(b"x"), 0);
}

#[test]
fn a_paused_port_takes_no_input() {
    let rig = rig();
    rig.serial.pause();
    assert_eq!(rig.serial.push_input(b"x"), 0);
    assert!(!rig.serial.wait_for_room(Duration::from_millis(1)));
    rig.serial.resume();
    assert_eq!(rig.serial.push_input(b"x"), 1);
}

/// 8.1, bits 0 and 1: 5 to 8 data bits come back in loopback; the wire carries bytes.
#[test]
fn characters_have_the_programmed_length() {
    for (lcr, wanted) in [(0, 0x15), (1, 0x35), (2, 0x75), (3, 0xf5)] {
        let rig = rig();
        rig.write(3, lcr);
        rig.serial.push_input(&[0xf5]);
        assert_eq!(rig.read(0), 0xf5);
        rig.write(4, 0x10);
        rig.write(0, 0xf5);
        assert_eq!(rig.read(0), wanted, "looped back");
        rig.write(4, 0);
        rig.write(0, 0xf5);
        assert_eq!(*rig.output.0.lock(), [0xf5]);
    }
}

/// 8.7: the peer waits while RTS is taken back and the terminal (DTR) is there.
#[test]
fn request_to_send_holds_the_peer_back() {
    const DTR: u8 = 1;
    const RTS: u8 = 2;
    const LOOP: u8 = 0x10;
    let cases: [(&[u8], bool); 8] = [
        (&[], true),
        (&[DTR], true),
        (&[DTR | RTS], true),
        (&[DTR | RTS, DTR], false),
        (&[DTR | RTS, DTR, DTR | 8], false),
        (&[DTR | RTS, DTR, DTR | RTS], true),
        (&[DTR | RTS, 0], true),
        (&[DTR | RTS, LOOP, DTR | RTS], true),
    ];
    for (writes, takes) in cases {
        let rig = rig();
        writes.iter().for_each(|&value| rig.write(4, value));
        assert_eq!(rig.serial.push_input(b"x"), usize::from(takes), "{writes:x?}");
        assert!(!rig.serial.wait_for_room(std::time::Duration::ZERO), "full or held back");
        rig.read(0);
        assert_eq!(rig.serial.wait_for_room(std::time::Duration::ZERO), takes, "{writes:x?}");
    }
}
