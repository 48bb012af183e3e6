use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const MASTER: usize = 0;
pub(super) const SLAVE: usize = 1;
pub(super) const ELCR: usize = 2;

pub(super) struct Rig {
    pub(super) pic: Arc<Pic>,
    intr: Arc<AtomicBool>,
}

/// Controllers as a PC programs them: vectors 0x20 and 0x28.
pub(super) fn rig_with(icw4: u8) -> Rig {
    let intr = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&intr);
    let pic = Pic::new(Box::new(move |level| seen.store(level, Ordering::SeqCst)));
    let rig = Rig { pic, intr };
    for (chip, base, cascade) in [(MASTER, 0x20, 0x04), (SLAVE, 0x28, 0x02)] {
        rig.write(chip, 0, 0x11);
        rig.write(chip, 1, base);
        rig.write(chip, 1, cascade);
        rig.write(chip, 1, icw4);
    }
    rig
}

pub(super) fn rig() -> Rig {
    rig_with(0x01)
}

impl Rig {
    pub(super) fn write(&self, window: usize, offset: u64, value: u8) {
        self.pic.write(window, offset, &[value]);
    }
    pub(super) fn read(&self, window: usize, offset: u64) -> u8 {
        let mut data = [0];
        self.pic.read(window, offset, &mut data);
        data[0]
    }
    pub(super) fn pulse(&self, line: u8) {
        self.pic.set_irq(line, true);
        self.pic.set_irq(line, false);
    }
    pub(super) fn intr(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }
    fn isr(&self, window: usize) -> u8 {
        self.write(window, 0, 0x0b);
        self.read(window, 0)
    }
}

#[test]
fn all_inputs_have_their_vector() {
    for line in (0..16).filter(|&line| line != 2) {
        let rig = rig();
        rig.pulse(line);
        assert!(rig.intr());
        assert_eq!(rig.pic.acknowledge(), 0x20 + line);
        assert!(!rig.intr());
        let (master, slave) = if line < 8 { (1 << line, 0) } else { (1 << 2, 1 << (line - 8)) };
        assert_eq!((rig.isr(MASTER), rig.isr(SLAVE)), (master, slave));
    }
}

#[test]
fn priority_is_fixed_and_eoi_lets_the_next_through() {
    let rig = rig();
    for line in [7, 4, 12, 1] {
        rig.pulse(line);
    }
    let mut order = Vec::new();
    while rig.intr() {
        let vector = rig.pic.acknowledge();
        order.push(vector);
        assert!(!rig.intr(), "lower priorities wait while {vector:#x} is in service");
        if vector >= 0x28 {
            rig.write(SLAVE, 0, 0x20);
        }
        rig.write(MASTER, 0, 0x20);
    }
    assert_eq!(order, [0x21, 0x2c, 0x24, 0x27]);
}

#[test]
fn masks_hold_requests_back() {
    let rig = rig();
    rig.write(MASTER, 1, 0xff);
    rig.pulse(3);
    assert!(!rig.intr());
    assert_eq!(rig.read(MASTER, 0), 1 << 3);
    rig.write(MASTER, 1, 0xf7);
    assert_eq!(rig.read(MASTER, 1), 0xf7);
    assert!(rig.intr());
}

#[test]
fn vanished_interrupts_are_spurious() {
    let rig = rig();
    assert_eq!(rig.pic.acknowledge(), 0x27);
    assert_eq!(rig.isr(MASTER), 0);
    // The slave's request is masked between the master's two INTA cycles only in theory; the level-triggered input
    // that drops is the practical case.
    rig.write(ELCR, 1, 0x02);
    rig.pic.set_irq(9, true);
    assert!(rig.intr());
    rig.pic.set_irq(9, false);
    assert!(!rig.intr());
    assert_eq!(rig.pic.acknowledge(), 0x27);
}

#[test]
fn level_triggered_inputs_request_again() {
    let rig = rig();
    rig.write(ELCR, 0, 0xff);
    rig.write(ELCR, 1, 0xff);
    assert_eq!((rig.read(ELCR, 0), rig.read(ELCR, 1)), (0xf8, 0xde));
    rig.pic.set_irq(11, true);
    for _ in 0..3 {
        assert_eq!(rig.pic.acknowledge(), 0x2b);
        assert!(!rig.intr());
        rig.write(SLAVE, 0, 0x20);
        rig.write(MASTER, 0, 0x20);
        assert!(rig.intr());
    }
    rig.pic.set_irq(11, false);
    assert!(!rig.intr());
}

#[test]
fn automatic_eoi_leaves_nothing_in_service_and_may_rotate() {
    let rig = rig_with(0x03);
    rig.write(MASTER, 0, 0x80);
    rig.pulse(0);
    assert_eq!(rig.pic.acknowledge(), 0x20);
    assert_eq!(rig.isr(MASTER), 0);
    rig.pulse(0);
    rig.pulse(5);
    // Input 0 is now the least urgent.
    assert_eq!((rig.pic.acknowledge(), rig.pic.acknowledge()), (0x25, 0x20));
}

#[test]
fn rotation_and_set_priority_move_the_bottom() {
    let rig = rig();
    rig.write(MASTER, 0, 0xc0 | 4);
    rig.pulse(1);
    rig.pulse(5);
    assert_eq!(rig.pic.acknowledge(), 0x25);
    rig.write(MASTER, 0, 0xa0);
    // Now 5 is the bottom: 6, 7, 0, 1 …
    rig.pulse(5);
    assert_eq!(rig.pic.acknowledge(), 0x21);
    rig.write(MASTER, 0, 0x60 | 1);
    assert_eq!(rig.pic.acknowledge(), 0x25);
    rig.write(MASTER, 0, 0xe0 | 5);
    assert_eq!(rig.isr(MASTER), 0);
}

#[test]
fn special_mask_mode_lets_lower_priorities_in() {
    let rig = rig();
    rig.pulse(1);
    rig.pic.acknowledge();
    rig.pulse(6);
    assert!(!rig.intr());
    rig.write(MASTER, 1, 1 << 1);
    rig.write(MASTER, 0, 0x68);
    assert!(rig.intr());
    assert_eq!(rig.pic.acknowledge(), 0x26);
    // A non-specific EOI spares the masked one.
    rig.write(MASTER, 0, 0x20);
    assert_eq!(rig.isr(MASTER), 1 << 1);
    rig.write(MASTER, 0, 0x48);
    rig.pulse(6);
    assert!(!rig.intr());
}

#[test]
fn the_poll_command_acknowledges() {
    let rig = rig();
    rig.pulse(3);
    rig.write(MASTER, 0, 0x0c);
    assert_eq!(rig.read(MASTER, 0), 0x83);
    assert_eq!(rig.isr(MASTER), 1 << 3);
    rig.write(MASTER, 0, 0x0c);
    assert_eq!(rig.read(MASTER, 0), 0);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, nested) in [(0x01, false), (0x11, true)] {
        let rig = rig_with(icw4);
        rig.pulse(14);
        rig.pic.acknowledge();
        rig.pulse(8);
        assert_eq!(rig.intr(), nested);
    }
}

#[test]
fn initialization_forgets_edges_and_masks() {
    let rig = rig();
    rig.pulse(3);
    rig.write(MASTER, 1, 0xff);
    rig.write(MASTER, 0, 0x11);
    assert!(!rig.intr());
    for word in [0x40, 0x04, 0x01] {
        rig.write(MASTER, 1, word);
    }
    assert_eq!((rig.read(MASTER, 0), rig.read(MASTER, 1)), (0, 0));
    rig.pulse(3);
    assert_eq!(rig.pic.acknowledge(), 0x43);
}
