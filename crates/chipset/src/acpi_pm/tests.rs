use super::*;
use ::device::InterruptSink;
use guest_clock::ManualClock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[derive(Default)]
struct Board {
    sci: AtomicBool,
    offs: AtomicU32,
}
impl InterruptSink for Board {
    fn set_level(&self, gsi: u32, asserted: bool) {
        assert_eq!(gsi, SCI_GSI);
        self.sci.store(asserted, Ordering::SeqCst);
    }
}
impl PowerEvents for Board {
    fn power_off(&self) {
        self.offs.fetch_add(1, Ordering::SeqCst);
    }
    fn reset(&self) {}
}

pub(super) struct Rig {
    pub(super) pm: Arc<AcpiPm>,
    board: Arc<Board>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) timers: Arc<TimerQueue>,
}

pub(super) fn rig() -> Rig {
    let (board, clock) = (Arc::new(Board::default()), Arc::new(ManualClock::default()));
    let timers = TimerQueue::new(clock.clone());
    let pm = AcpiPm::new(IrqLine::new(board.clone(), SCI_GSI), board.clone(), Arc::clone(&timers));
    Rig { pm, board, clock, timers }
}

impl Rig {
    pub(super) fn write(&self, port: u16, value: u16) {
        self.pm.write(0, u64::from(port) - PORT_BASE, &value.to_le_bytes());
    }
    pub(super) fn read(&self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.pm.read(0, u64::from(port) - PORT_BASE, &mut data);
        u16::from_le_bytes(data)
    }
    pub(super) fn timer(&self) -> u32 {
        let mut data = [0; 4];
        self.pm.read(0, u64::from(PM_TIMER) - PORT_BASE, &mut data);
        u32::from_le_bytes(data)
    }
    pub(super) fn sci(&self) -> bool {
        self.board.sci.load(Ordering::SeqCst)
    }
}

#[test]
fn the_power_button_interrupts_until_its_status_is_cleared() {
    let rig = rig();
    rig.pm.press_power_button();
    assert!(!rig.sci());
    rig.write(PM1A_EVENT + 2, 0x0100);
    assert!(rig.sci());
    assert_eq!(rig.read(PM1A_EVENT), 0x0100);
    rig.write(PM1A_EVENT, 0xfeff);
    assert!(rig.sci());
    rig.write(PM1A_EVENT, 0x0100);
    assert!(!rig.sci());
    assert_eq!(rig.read(PM1A_EVENT), 0);
}

#[test]
fn only_s5_turns_off() {
    let rig = rig();
    assert_eq!(rig.read(PM1A_CONTROL) & 1, 1);
    rig.write(PM1A_CONTROL, u16::from(SLP_TYP_S5) << 10);
    rig.write(PM1A_CONTROL, 1 << 10 | 1 << 13);
    assert_eq!(rig.board.offs.load(Ordering::SeqCst), 0);
    rig.write(PM1A_CONTROL, u16::from(SLP_TYP_S5) << 10 | 1 << 13);
    assert_eq!(rig.board.offs.load(Ordering::SeqCst), 1);
    assert_eq!(rig.read(PM1A_CONTROL), 0x1401);
}

#[test]
fn the_timer_counts_3_579545_million_a_second_and_tells_its_overflow() {
    let rig = rig();
    rig.clock.advance(1_000_000_000);
    assert_eq!(rig.timer(), 3_579_545);
    rig.write(PM1A_EVENT + 2, 1);
    // 2^31 ticks are 599.932 s.
    rig.clock.advance(598_932_000_000);
    rig.timers.run_expired();
    assert!(!rig.sci());
    rig.clock.advance(2_000_000);
    rig.timers.run_expired();
    assert!(rig.sci());
    assert_eq!(rig.read(PM1A_EVENT), 1);
    assert!(rig.timer() >= 1 << 31);
    rig.write(PM1A_EVENT, 1);
    assert!(!rig.sci());
    rig.clock.advance(3_600_000_000_000_000);
    rig.timers.run_expired();
    assert!(rig.sci());
}

#[test]
fn general_purpose_events_are_there_and_empty() {
    let rig = rig();
    for offset in (0..u16::from(GPE0_LEN)).step_by(2) {
        rig.write(GPE0 + offset, 0xffff);
        assert_eq!(rig.read(GPE0 + offset), 0);
    }
}
