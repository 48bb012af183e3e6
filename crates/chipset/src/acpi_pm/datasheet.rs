//! Tables of ACPI 6.5, 4.8.3: what the fixed hardware registers keep, and when the power management timer tells of
//! itself.

use super::tests::{Rig, rig};
use super::{GPE0, PM_TIMER, PM1A_CONTROL, PM1A_EVENT};

const STATUS: u16 = PM1A_EVENT;
const ENABLE: u16 = PM1A_EVENT + 2;

/// Register, written, read back, section.
const REGISTERS: &[(u16, u16, u16, &str)] = &[
    (STATUS, 0xffff, 0x0000, "4.8.3.1.1: writing ones sets nothing"),
    (ENABLE, 0xffff, 0x0721, "4.8.3.1.2: TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN"),
    (ENABLE, 0x0001, 0x0001, "4.8.3.1.2: TMR_EN"),
    (ENABLE, 0x0000, 0x0000, "4.8.3.1.2: all can be cleared"),
    (PM1A_CONTROL, 0x0000, 0x0001, "4.8.3.2.1: SCI_EN is the platform's"),
    (PM1A_CONTROL, 0x0002, 0x0003, "4.8.3.2.1: BM_RLD"),
    (PM1A_CONTROL, 0x0004, 0x0001, "4.8.3.2.1: GBL_RLS is write-only"),
    (PM1A_CONTROL, 0x1c00, 0x1c01, "4.8.3.2.1: SLP_TYPx"),
    (PM1A_CONTROL, 0x2000, 0x0001, "4.8.3.2.1: SLP_EN is write-only"),
    (PM1A_CONTROL, 0xc3f8, 0x0001, "4.8.3.2.1: reserved bits"),
    (PM_TIMER, 0xffff, 0x0000, "4.8.3.3: read-only"),
    (PM_TIMER + 2, 0xffff, 0x0000, "4.8.3.3: read-only"),
    (PM_TIMER + 4, 0xffff, 0x0000, "nothing is there"),
    (GPE0, 0xffff, 0x0000, "4.8.4.1: no event is wired"),
];

#[test]
fn registers_keep_the_bits_that_acpi_names() {
    let rig = rig();
    for &(port, written, expected, what) in REGISTERS {
        rig.write(port, written);
        assert_eq!(rig.read(port), expected, "{what}: {port:#x} <- {written:#06x}");
    }
}

impl Rig {
    fn ticks(&self, ticks: u64) {
        // Up to a nanosecond behind the tick, so that it has come.
        let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(3_579_545);
        self.clock.advance(u64::try_from(ns).unwrap());
        self.timers.run_expired();
    }
}

/// 4.8.3.3: with 32 bits, TMR_STS is set whenever bit 31 changes, up or down.
#[test]
fn the_timer_tells_of_both_changes_of_its_top_bit() {
    let rig = rig();
    rig.write(ENABLE, 1);
    let half = 1_u64 << 31;
    for (ticks, status, value) in [
        (half - 2, 0, half - 2),
        (2, 1, half),
        (half - 4, 0, (1 << 32) - 4),
        (4, 1, 0),
        (1 << 30, 0, 1 << 30),
        (1 << 30, 1, half),
    ] {
        rig.ticks(ticks);
        assert_eq!(rig.read(STATUS), status, "after {ticks:#x} ticks to {value:#x}");
        assert_eq!(rig.sci(), status != 0);
        let off = rig.timer().wrapping_sub(value as u32);
        assert!(off <= 1, "{:#x} instead of {value:#x}", rig.timer());
        rig.write(STATUS, 1);
        assert!(!rig.sci());
    }
}

/// 4.8.3.1.1: status is set whether enabled or not, and enabling what is set interrupts.
#[test]
fn status_is_set_without_being_enabled() {
    let rig = rig();
    rig.ticks(1 << 31);
    assert_eq!((rig.read(STATUS), rig.sci()), (1, false));
    rig.write(ENABLE, 1);
    assert!(rig.sci());
    rig.write(ENABLE, 0);
    assert!(!rig.sci());
    rig.pm.press_power_button();
    assert_eq!((rig.read(STATUS), rig.sci()), (0x101, false));
    rig.write(ENABLE, 0x100);
    assert!(rig.sci());
    // One event's status leaves the other's interrupt.
    rig.write(ENABLE, 0x101);
    rig.write(STATUS, 0x100);
    assert_eq!((rig.read(STATUS), rig.sci()), (1, true));
    rig.write(STATUS, 0x001);
    assert_eq!((rig.read(STATUS), rig.sci()), (0, false));
}

/// 4.8.3.3: without TMR_VAL_EXT the lower 24 bits are a timer of their own: a system that reads only those sees them
/// come around.
#[test]
fn the_lower_24_bits_come_around() {
    let rig = rig();
    rig.ticks((1 << 24) + 5);
    assert!((5..=6).contains(&(rig.timer() & 0xff_ffff)));
    assert!((0x100_0005..=0x100_0006).contains(&rig.timer()));
}
