use super::*;
use guest_clock::ManualClock;

#[derive(Default)]
struct Log(Mutex<Vec<(u32, bool)>>);
impl InterruptSink for Log {
    fn set_level(&self, gsi: u32, asserted: bool) {
        self.0.lock().push((gsi, asserted));
    }
}

pub(super) struct Rig {
    hpet: Arc<Hpet>,
    log: Arc<Log>,
    pub(super) legacy: Arc<Mutex<Vec<bool>>>,
    clock: Arc<ManualClock>,
    timers: Arc<TimerQueue>,
}

pub(super) fn rig() -> Rig {
    let (log, clock) = (Arc::new(Log::default()), Arc::new(ManualClock::default()));
    let legacy = Arc::new(Mutex::new(Vec::new()));
    let timers = TimerQueue::new(clock.clone());
    let told = Arc::clone(&legacy);
    let hpet = Hpet::new(log.clone(), Box::new(move |on| told.lock().push(on)), Arc::clone(&timers));
    Rig { hpet, log, legacy, clock, timers }
}

impl Rig {
    pub(super) fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.hpet.read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }
    pub(super) fn write(&self, offset: u64, value: u64) {
        self.hpet.write(0, offset, &value.to_le_bytes());
    }
    pub(super) fn write32(&self, offset: u64, value: u32) {
        self.hpet.write(0, offset, &value.to_le_bytes());
    }
    pub(super) fn advance_ticks(&self, ticks: u64) {
        self.clock.advance(ticks * 10);
        self.timers.run_expired();
    }
    pub(super) fn log(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.log.0.lock())
    }
}

const EDGE: [(u32, bool); 2] = [(20, true), (20, false)];

#[test]
fn capabilities_tell_100_mhz_three_timers_64_bits() {
    let rig = rig();
    assert_eq!(rig.read(0), 0x0098_9680_8086_a201);
    assert_eq!(rig.read(0x100), 0x00f0_0000_0000_0030);
    rig.write(0, 0);
    rig.write(0x100, u64::MAX);
    // Route 31 is not offered, FSB delivery does not exist.
    assert_eq!(rig.read(0x100), 0x00f0_0000_0000_013e);
    let mut data = [0; 4];
    rig.hpet.read(0, 4, &mut data);
    assert_eq!(u32::from_le_bytes(data), 10_000_000);
}

#[test]
fn the_counter_runs_while_enabled() {
    let rig = rig();
    rig.advance_ticks(5);
    assert_eq!(rig.read(0xf0), 0);
    rig.write(0xf0, 1000);
    rig.write(0x10, 1);
    rig.advance_ticks(50);
    assert_eq!(rig.read(0xf0), 1050);
    rig.write(0x10, 0);
    rig.advance_ticks(50);
    assert_eq!(rig.read(0xf0), 1050);
    rig.write32(0xf4, 1);
    assert_eq!(rig.read(0xf0), 1 << 32 | 1050);
}

#[test]
fn a_one_shot_fires_once_at_its_comparator() {
    let rig = rig();
    rig.write(0x100, 20 << 9 | 1 << 2);
    rig.write(0x108, 100);
    rig.write(0x10, 1);
    rig.advance_ticks(99);
    assert_eq!(rig.log(), []);
    rig.advance_ticks(1);
    assert_eq!(rig.log(), EDGE);
    rig.advance_ticks(1 << 33);
    assert_eq!(rig.log(), []);
    // With 32 bits it comes around.
    rig.write(0x100, 20 << 9 | 1 << 2 | 1 << 8);
    rig.write(0x108, (rig.read(0xf0) + 10) & 0xffff_ffff);
    rig.advance_ticks(10);
    assert_eq!(rig.log(), EDGE);
    rig.advance_ticks(1 << 32);
    assert_eq!(rig.log(), EDGE);
}

#[test]
fn a_periodic_timer_keeps_its_phase() {
    let rig = rig();
    // As Linux does: value with the set bit, then the period.
    rig.write32(0x100, 20 << 9 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8);
    rig.write32(0x108, 15_000);
    rig.write32(0x108, 10_000);
    rig.write(0x10, 1);
    rig.advance_ticks(15_000);
    assert_eq!(rig.log(), EDGE);
    assert_eq!(rig.read(0x108), 25_000);
    for _ in 0..10 {
        rig.advance_ticks(10_000);
        assert_eq!(rig.log(), EDGE);
    }
    // Late by many periods: one interrupt, and the old phase.
    rig.advance_ticks(55_000);
    assert_eq!(rig.log(), EDGE);
    assert_eq!(rig.read(0x108), 175_000);
}

#[test]
fn a_level_stays_until_its_status_is_cleared() {
    let rig = rig();
    rig.write(0x120, 21 << 9 | 1 << 2 | 1 << 1);
    rig.write(0x128, 10);
    rig.write(0x10, 1);
    rig.advance_ticks(20);
    assert_eq!((rig.log(), rig.read(0x20)), (vec![(21, true)], 2));
    rig.write(0x20, 1);
    assert_eq!(rig.log(), []);
    rig.write(0x20, 2);
    assert_eq!((rig.log(), rig.read(0x20)), (vec![(21, false)], 0));
}

#[test]
fn legacy_replacement_takes_interrupts_0_and_8() {
    let rig = rig();
    rig.write(0x100, 1 << 2);
    rig.write(0x120, 1 << 2);
    rig.write(0x108, 10);
    rig.write(0x128, 20);
    rig.write(0x10, 3);
    assert_eq!(*rig.legacy.lock(), [true]);
    rig.advance_ticks(10);
    assert_eq!(rig.log(), [(0, true), (0, false)]);
    rig.advance_ticks(10);
    assert_eq!(rig.log(), [(8, true), (8, false)]);
    rig.write(0x10, 0);
    assert_eq!(*rig.legacy.lock(), [true, false]);
}

#[test]
fn a_tiny_period_costs_one_wake_up_for_many_matches() {
    let rig = rig();
    rig.write(0x100, 20 << 9 | 1 << 2 | 1 << 3 | 1 << 6);
    rig.write(0x108, 1);
    rig.write(0x10, 1);
    rig.advance_ticks(1 << 40);
    assert_eq!(rig.log(), EDGE);
    rig.write(0x100, 20 << 9 | 1 << 2 | 1 << 3 | 1 << 6);
    rig.write(0x108, 0);
    rig.advance_ticks(1 << 40);
    assert!(rig.log().len() <= 4);
}
