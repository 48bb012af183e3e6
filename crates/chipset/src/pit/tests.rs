use super::bits::HZ;
use super::*;
use ::device::InterruptSink;
use guest_clock::ManualClock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
struct Edges(AtomicU64, Mutex<bool>);
impl InterruptSink for Edges {
    fn set_level(&self, gsi: u32, asserted: bool) {
        assert_eq!(gsi, 0);
        let mut level = self.1.lock();
        self.0.fetch_add(u64::from(asserted && !*level), Ordering::SeqCst);
        *level = asserted;
    }
}

struct Rig {
    pit: Arc<Pit>,
    edges: Arc<Edges>,
    clock: Arc<ManualClock>,
    timers: Arc<TimerQueue>,
    ticks: AtomicU64,
}

fn rig() -> Rig {
    let (edges, clock) = (Arc::new(Edges::default()), Arc::new(ManualClock::default()));
    let timers = TimerQueue::new(clock.clone());
    let pit = Pit::new(IrqLine::new(edges.clone(), 0), Arc::clone(&timers));
    Rig { pit, edges, clock, timers, ticks: AtomicU64::new(0) }
}

impl Rig {
    fn write(&self, port: u64, value: u8) {
        let (window, offset) = if port == 0x61 { (1, 0) } else { (0, port - 0x40) };
        self.pit.write(window, offset, &[value]);
    }
    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        let (window, offset) = if port == 0x61 { (1, 0) } else { (0, port - 0x40) };
        self.pit.read(window, offset, &mut data);
        data[0]
    }
    fn count(&self, channel: u8) -> u16 {
        self.write(0x43, channel << 6);
        let port = 0x40 + u64::from(channel);
        u16::from_le_bytes([self.read(port), self.read(port)])
    }
    fn load(&self, channel: u8, mode: u8, count: u16) {
        self.write(0x43, channel << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            self.write(0x40 + u64::from(channel), byte);
        }
    }
    /// Moves the clock by whole ticks.
    fn advance(&self, ticks: u64) {
        let total = self.ticks.fetch_add(ticks, Ordering::SeqCst) + ticks;
        let ns = (u128::from(total) * 1_000_000_000).div_ceil(u128::from(HZ)) as u64;
        self.clock.advance(ns - guest_clock::Clock::now_ns(&*self.clock));
        self.timers.run_expired();
    }
    fn out(&self, channel: u8) -> bool {
        self.write(0x43, 0xe0 | 2 << channel);
        self.read(0x40 + u64::from(channel)) & 0x80 != 0
    }
    fn outs(&self, channel: u8, ticks: usize) -> Vec<u8> {
        let step = |_| {
            let out = u8::from(self.out(channel));
            self.advance(1);
            out
        };
        (0..ticks).map(step).collect()
    }
    fn edges(&self) -> u64 {
        self.edges.0.load(Ordering::SeqCst)
    }
}

/// Figures 15 to 20: the output after the write of the count, or the rise of the gate in the modes that wait for it,
/// which come before the first value.
#[test]
fn outputs_follow_the_data_sheets_wave_forms() {
    // Modes 1 and 5 wait for a trigger: counter 2's gate. The rest runs with it.
    let waves: [(u8, u16, &[u8]); 6] = [
        (0, 4, &[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]),
        (1, 3, &[1, 0, 0, 0, 1, 1, 1, 1, 1, 1]),
        (2, 3, &[1, 1, 1, 0, 1, 1, 0, 1, 1, 0]),
        (3, 4, &[1, 1, 1, 0, 0, 1, 1, 0, 0, 1]),
        (4, 3, &[1, 1, 1, 0, 1, 1, 1, 1, 1, 1]),
        (5, 3, &[1, 1, 1, 1, 0, 1, 1, 1, 1, 1]),
    ];
    for (mode, count, wave) in waves {
        let rig = rig();
        rig.load(2, mode, count);
        assert_eq!(rig.out(2), mode != 0);
        rig.advance(2);
        assert_eq!(rig.out(2), mode != 0, "mode {mode} waits for the gate");
        rig.write(0x61, 1);
        assert_eq!(rig.outs(2, wave.len()), wave, "mode {mode}");
    }
}

/// "Mode Definitions": with the gate up, OUT changes with tick N + 1 after the write in modes 0 and 4, with tick N in
/// mode 2; an odd count of mode 3 is high for the longer half.
#[test]
fn a_count_is_taken_over_by_the_tick_after_its_write() {
    let waves: [(u8, u16, &[u8]); 7] = [
        (0, 1, &[0, 0, 1, 1, 1, 1]),
        (0, 4, &[0, 0, 0, 0, 0, 1, 1]),
        (2, 3, &[1, 1, 1, 0, 1, 1, 0, 1, 1, 0]),
        (3, 4, &[1, 1, 1, 0, 0, 1, 1, 0, 0, 1]),
        (3, 5, &[1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0]),
        (4, 3, &[1, 1, 1, 1, 0, 1, 1, 1, 1, 1]),
        (4, 1, &[1, 1, 0, 1, 1, 1]),
    ];
    for (mode, count, wave) in waves {
        let rig = rig();
        rig.write(0x61, 1);
        rig.load(2, mode, count);
        assert_eq!(rig.outs(2, wave.len()), wave, "mode {mode}, count {count}");
    }
    // "Null Count": set from the write until the count is in the counting element.
    let rig = rig();
    let null = || {
        rig.write(0x43, 0xe2);
        rig.read(0x40) & 0x40 != 0
    };
    rig.load(0, 0, 5);
    assert!(null());
    rig.advance(1);
    assert!(!null());
}

#[test]
fn counts_go_down_as_their_mode_says() {
    let rig = rig();
    rig.load(0, 0, 10);
    rig.advance(4);
    assert_eq!(rig.count(0), 7);
    rig.advance(8);
    assert_eq!(rig.count(0), 0xffff);
    rig.load(0, 2, 10);
    rig.advance(10);
    assert_eq!(rig.count(0), 1);
    rig.advance(1);
    assert_eq!(rig.count(0), 10);
    rig.load(0, 3, 8);
    rig.advance(1);
    let counts: Vec<u16> = (0..6)
        .map(|_| {
            let count = rig.count(0);
            rig.advance(1);
            count
        })
        .collect();
    assert_eq!(counts, [8, 6, 4, 2, 8, 6]);
    rig.load(0, 2, 0);
    rig.advance(2);
    assert_eq!(rig.count(0), 0xffff);
}

#[test]
fn bcd_counts_in_decimal() {
    let rig = rig();
    rig.write(0x43, 0x31);
    rig.write(0x40, 0x00);
    rig.write(0x40, 0x10);
    rig.advance(2);
    assert_eq!(rig.count(0), 0x0999);
    rig.advance(1000);
    assert_eq!(rig.count(0), 0x9999);
    // A count of 0 is the largest: 10,000, where binary has 65,536.
    for (format, ticks) in [(1, 10_000), (0, 0x1_0000)] {
        rig.write(0x43, 0x30 | format);
        rig.write(0x40, 0);
        rig.write(0x40, 0);
        let before = rig.edges();
        rig.advance(ticks);
        assert_eq!(rig.edges(), before, "one tick early");
        rig.advance(1);
        assert_eq!(rig.edges(), before + 1);
    }
}

#[test]
fn latches_and_read_back_hold_until_read() {
    let rig = rig();
    rig.load(0, 2, 1000);
    rig.advance(1);
    // Status: out 1, access 3, mode 2.
    rig.write(0x43, 0xc2);
    rig.advance(100);
    rig.write(0x43, 0x00);
    assert_eq!(rig.read(0x40), 0xb4);
    assert_eq!([rig.read(0x40), rig.read(0x40)], 1000_u16.to_le_bytes());
    assert_eq!([rig.read(0x40), rig.read(0x40)], 900_u16.to_le_bytes());
    rig.write(0x43, 0x34);
    rig.write(0x43, 0xe2);
    assert_eq!(rig.read(0x40) & 0x40, 0x40, "no count is loaded");
}

#[test]
fn single_byte_access() {
    let rig = rig();
    rig.write(0x43, 0x10);
    rig.write(0x40, 0x21);
    rig.advance(2);
    assert_eq!([rig.read(0x40), rig.read(0x40)], [0x20, 0x20]);
    rig.write(0x43, 0x20);
    rig.write(0x40, 0x21);
    rig.advance(2);
    assert_eq!([rig.read(0x40), rig.read(0x40)], [0x20, 0x20]);
}

#[test]
fn counter_0_interrupts_once_a_period() {
    let rig = rig();
    rig.load(0, 2, 11932);
    rig.advance(1);
    let before = rig.edges();
    for _ in 0..100 {
        rig.advance(11932);
    }
    assert_eq!(rig.edges() - before, 100);
    rig.load(0, 0, 500);
    let before = rig.edges();
    rig.advance(500);
    assert_eq!(rig.edges(), before);
    rig.advance(1);
    assert_eq!(rig.edges(), before + 1);
    rig.advance(100_000);
    assert_eq!(rig.edges(), before + 1);
    rig.pit.set_irq_connected(false);
    rig.load(0, 2, 100);
    rig.advance(100_000);
    assert_eq!(rig.edges(), before + 1);
}

#[test]
fn a_new_period_begins_when_the_old_one_ends() {
    let rig = rig();
    rig.load(0, 2, 100);
    rig.advance(51);
    for byte in 300_u16.to_le_bytes() {
        rig.write(0x40, byte);
    }
    assert_eq!(rig.count(0), 50);
    rig.advance(60);
    assert_eq!(rig.count(0), 290);
}

#[test]
fn the_gate_stops_and_goes_on() {
    let rig = rig();
    rig.write(0x61, 1);
    rig.load(2, 0, 100);
    rig.advance(31);
    rig.write(0x61, 0);
    rig.advance(1000);
    assert_eq!(rig.count(2), 70);
    rig.write(0x61, 1);
    rig.advance(69);
    assert_eq!(rig.read(0x61) & 0x21, 0x01);
    rig.advance(1);
    assert_eq!(rig.read(0x61) & 0x21, 0x21);
}

#[test]
fn the_refresh_bit_toggles() {
    let rig = rig();
    let first = rig.read(0x61) & 0x10;
    rig.clock.advance(15_085);
    assert_ne!(rig.read(0x61) & 0x10, first);
}

#[test]
fn a_period_too_short_costs_one_wake_up_for_many_ticks() {
    let rig = rig();
    rig.load(0, 2, 1);
    rig.clock.advance(3_600_000_000_000);
    let before = rig.edges();
    rig.timers.run_expired();
    assert!(rig.edges() - before <= 2);
}
