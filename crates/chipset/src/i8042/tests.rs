use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
struct Resets(AtomicU32);
impl PowerEvents for Resets {
    fn power_off(&self) {}
    fn reset(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub(super) struct Rig {
    i8042: Arc<I8042>,
    resets: Arc<Resets>,
}

pub(super) fn rig() -> Rig {
    let resets = Arc::new(Resets::default());
    Rig { i8042: I8042::new(resets.clone()), resets }
}

impl Rig {
    pub(super) fn read(&self, window: usize) -> u8 {
        let mut data = [0];
        self.i8042.read(window, 0, &mut data);
        data[0]
    }
    pub(super) fn write(&self, window: usize, value: u8) {
        self.i8042.write(window, 0, &[value]);
    }
    pub(super) fn resets(&self) -> u32 {
        self.resets.0.load(Ordering::SeqCst)
    }
}

#[test]
fn the_self_test_passes_and_nothing_is_plugged_in() {
    let rig = rig();
    assert_eq!(rig.read(1) & 1, 0);
    for (command, answer) in [(0xaa, 0x55), (0xab, 0x01), (0xa9, 0x01), (0x20, 0x34)] {
        rig.write(1, command);
        assert_eq!(rig.read(1) & 0x0b, 0x09);
        assert_eq!(rig.read(0), answer);
        assert_eq!(rig.read(1) & 1, 0);
    }
    // Identify, to keyboard and mouse: silence.
    rig.write(0, 0xf2);
    rig.write(1, 0xd4);
    rig.write(0, 0xf2);
    assert_eq!(rig.read(1) & 1, 0);
}

#[test]
fn the_command_byte_and_the_loop_backs() {
    let rig = rig();
    rig.write(1, 0x60);
    rig.write(0, 0x47);
    rig.write(1, 0x20);
    assert_eq!(rig.read(0), 0x47);
    rig.write(1, 0xa7);
    rig.write(1, 0xad);
    rig.write(1, 0x20);
    assert_eq!(rig.read(0), 0x77);
    rig.write(1, 0xd3);
    rig.write(0, 0x5a);
    assert_eq!((rig.read(1) & 1, rig.read(0)), (1, 0x5a));
}

#[test]
fn three_ways_to_reset() {
    let rig = rig();
    rig.write(1, 0xff);
    rig.write(2, 0x02);
    assert_eq!(rig.resets(), 0);
    rig.write(1, 0xfe);
    assert_eq!(rig.resets(), 1);
    rig.write(1, 0xd1);
    rig.write(0, 0x02);
    assert_eq!(rig.resets(), 2);
    rig.write(2, 0x03);
    assert_eq!(rig.resets(), 3);
}

#[test]
fn both_ways_to_a20_show_the_same_gate() {
    let rig = rig();
    assert_eq!(rig.read(2), 2);
    rig.write(1, 0xd1);
    rig.write(0, 0x01);
    assert_eq!(rig.read(2), 0);
    rig.write(2, 2);
    rig.write(1, 0xd0);
    assert_eq!(rig.read(0) & 3, 3);
}
