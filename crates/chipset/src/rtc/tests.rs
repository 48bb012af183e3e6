use super::*;
use ::device::InterruptSink;
use guest_clock::ManualClock;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
struct Edges(AtomicU32);
impl InterruptSink for Edges {
    fn set_level(&self, gsi: u32, asserted: bool) {
        assert_eq!(gsi, 8);
        self.0.fetch_add(u32::from(asserted), Ordering::SeqCst);
    }
}

struct Rig {
    rtc: Arc<Rtc>,
    edges: Arc<Edges>,
    clock: Arc<ManualClock>,
    timers: Arc<TimerQueue>,
}

const SECOND: u64 = 1_000_000_000;
/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_DAY: u64 = 1_709_251_198;

fn rig() -> Rig {
    let (edges, clock) = (Arc::new(Edges::default()), Arc::new(ManualClock::default()));
    clock.advance(LEAP_DAY * SECOND);
    let timers = TimerQueue::new(clock.clone());
    let memory = MemorySize { below_4g: 3 << 30, above_4g: 5 << 30 };
    let rtc = Rtc::new(IrqLine::new(edges.clone(), 8), memory, Arc::clone(&timers));
    Rig { rtc, edges, clock, timers }
}

impl Rig {
    fn read(&self, index: u8) -> u8 {
        let mut data = [0];
        self.rtc.write(0, 0, &[index]);
        self.rtc.read(0, 1, &mut data);
        data[0]
    }
    fn write(&self, index: u8, value: u8) {
        self.rtc.write(0, 0, &[index]);
        self.rtc.write(0, 1, &[value]);
    }
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }
    fn advance(&self, ns: u64) {
        self.clock.advance(ns);
        self.timers.run_expired();
    }
    fn edges(&self) -> u32 {
        self.edges.0.load(Ordering::SeqCst)
    }
}

#[test]
fn the_time_shows_in_all_formats() {
    let rig = rig();
    assert_eq!(rig.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    rig.write(0x0b, 0x06);
    assert_eq!(rig.time(), [20, 24, 2, 29, 5, 23, 59, 58]);
    rig.write(0x0b, 0x00);
    assert_eq!(rig.read(4), 0x91);
    rig.advance(2 * SECOND);
    assert_eq!(rig.time(), [0x20, 0x24, 0x03, 0x01, 6, 0x12, 0x00, 0x00]);
    rig.advance(12 * 3600 * SECOND);
    assert_eq!(rig.read(4), 0x92);
}

#[test]
fn the_guest_sets_the_time() {
    let rig = rig();
    rig.write(0x0b, 0x82);
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
        rig.write(index, value);
    }
    rig.advance(10 * SECOND);
    assert_eq!(rig.time()[7], 0x59);
    rig.write(0x0b, 0x02);
    rig.advance(SECOND);
    assert_eq!(rig.time(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn the_update_bit_warns_before_the_time_changes() {
    let rig = rig();
    assert_eq!(rig.read(0x0a), 0x26);
    rig.advance(SECOND - 244_000);
    assert_eq!(rig.read(0x0a), 0xa6);
    rig.advance(244_000);
    assert_eq!(rig.read(0x0a), 0x26);
    assert_eq!(rig.read(0x0d), 0x80);
}

#[test]
fn update_interrupts_come_each_second_when_acknowledged() {
    let rig = rig();
    rig.write(0x0a, 0x20);
    // No alarm: midnight would be one.
    rig.write(5, 0x77);
    rig.read(0x0c);
    rig.write(0x0b, 0x12);
    rig.advance(SECOND);
    assert_eq!((rig.edges(), rig.read(0x0c)), (1, 0x90));
    rig.advance(SECOND);
    rig.advance(SECOND);
    assert_eq!((rig.edges(), rig.read(0x0c), rig.read(0x0c)), (2, 0x90, 0));
    rig.write(0x0b, 0x02);
    rig.advance(SECOND);
    assert_eq!(rig.edges(), 2);
}

#[test]
fn the_alarm_comes_at_its_time() {
    let rig = rig();
    for (index, value) in [(5, 0x00), (3, 0x01), (1, 0x30)] {
        rig.write(index, value);
    }
    rig.read(0x0c);
    rig.write(0x0b, 0x22);
    rig.advance(91 * SECOND);
    assert_eq!(rig.edges(), 0);
    rig.advance(SECOND);
    assert_eq!(rig.edges(), 1);
    assert_eq!(rig.read(0x0c) & 0xa0, 0xa0);
    // Any hour, any minute.
    rig.write(5, 0xc0);
    rig.write(3, 0xff);
    rig.advance(60 * SECOND);
    assert_eq!(rig.edges(), 2);
    // A time that does not exist.
    rig.write(5, 0x77);
    rig.read(0x0c);
    rig.advance(86_400 * SECOND);
    assert_eq!(rig.edges(), 2);
}

#[test]
fn periodic_interrupts_have_the_rates_of_table_5() {
    let rates = [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)];
    for (rate, hz) in rates {
        let rig = rig();
        rig.write(0x0a, 0x20 | rate);
        rig.write(0x0b, 0x42);
        for _ in 0..hz {
            rig.advance(SECOND.div_ceil(hz));
            rig.read(0x0c);
        }
        assert_eq!(u64::from(rig.edges()), hz, "rate {rate}");
    }
    let rig = rig();
    rig.write(0x0a, 0x20);
    rig.write(0x0b, 0x42);
    rig.advance(SECOND);
    assert_eq!(rig.edges(), 0);
}

#[test]
fn memory_sizes_and_free_bytes() {
    let rig = rig();
    let word = |index| u16::from_le_bytes([rig.read(index), rig.read(index + 1)]);
    assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 0xfc00, 0xfc00));
    assert_eq!(u64::from(word(0x34)) << 16, (3 << 30) - (16 << 20));
    let above_4g = u64::from(word(0x5b)) | u64::from(rig.read(0x5d)) << 16;
    assert_eq!(above_4g << 16, 5 << 30);
    rig.write(0x7f, 0xa5);
    assert_eq!(rig.read(0x7f), 0xa5);
    // The NMI mask is no part of the index.
    assert_eq!(rig.read(0xff), 0xa5);
    rig.rtc.reset();
    assert_eq!(rig.read(0x7f), 0xa5);
}

/// "Divider Control" (DV2-DV0): only 010 counts a 32,768 Hz crystal; 11x is the reset. The first update comes half a
/// second after the reset's end.
#[test]
fn the_time_stands_while_the_divider_does_not_count() {
    for divider in [0x00, 0x10, 0x30, 0x40, 0x50, 0x60, 0x70] {
        let rig = rig();
        rig.advance(SECOND / 4);
        rig.write(0x0a, divider | 6);
        let stands = rig.time();
        rig.read(0x0c);
        rig.advance(100 * SECOND + SECOND / 3);
        assert_eq!(rig.time(), stands, "{divider:#x}");
        assert_eq!(rig.read(0x0a) & 0x80, 0, "no update is in progress");
        assert_eq!(rig.read(0x0c), 0, "no update ended, no period either");
        // The time can be set meanwhile, and goes on from there.
        rig.write(0, 0x30);
        rig.write(0x0a, 0x26);
        assert_eq!(rig.read(0), 0x30);
        rig.advance(SECOND / 2 - 1);
        assert_eq!(rig.read(0), 0x30, "{divider:#x}");
        assert_eq!(rig.read(0x0a) & 0x80, 0x80, "the update comes");
        rig.advance(1);
        assert_eq!(rig.read(0), 0x31, "{divider:#x}");
        rig.advance(SECOND);
        assert_eq!(rig.read(0), 0x32, "{divider:#x}");
    }
}

/// The bits do not depend on each other: time stands until both let it go, and B.SET keeps the divider's phase.
#[test]
fn the_set_bit_and_the_divider_hold_the_time_together() {
    let rig = rig();
    rig.write(0x0a, 0x76);
    rig.write(0x0b, 0x82);
    rig.write(0, 0x10);
    rig.write(0x0a, 0x26);
    rig.advance(5 * SECOND);
    assert_eq!(rig.read(0), 0x10);
    rig.write(0x0b, 0x02);
    rig.advance(SECOND / 2);
    assert_eq!(rig.read(0), 0x11);
    rig.write(0x0b, 0x82);
    rig.write(0x0a, 0x76);
    rig.write(0x0b, 0x02);
    rig.advance(5 * SECOND);
    assert_eq!(rig.read(0), 0x11);
}

/// "Update-Ended Interrupt": also when the update's end is not on the host's second.
#[test]
fn update_interrupts_follow_the_dividers_phase() {
    let rig = rig();
    rig.advance(SECOND / 4);
    rig.write(0x0a, 0x76);
    rig.write(0x0a, 0x26);
    rig.write(0x0b, 0x12);
    rig.advance(SECOND / 2 - 1);
    assert_eq!(rig.edges(), 0);
    rig.advance(1);
    // The flags of what does not interrupt rise too: periods, and the alarm at midnight.
    assert_eq!((rig.edges(), rig.read(0x0c) & 0x90), (1, 0x90));
    rig.advance(SECOND);
    assert_eq!((rig.edges(), rig.read(0x0c) & 0x90), (2, 0x90));
}
