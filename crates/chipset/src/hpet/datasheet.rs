//! Tables of the IA-PC HPET specification, revision 1.0a: which bits stick (2.3), and what timers do (2.3.8, 2.3.9).

use super::tests::{Rig, rig};
use Step::*;

const GENERAL: u64 = 0x10;
const STATUS: u64 = 0x20;
const COUNTER: u64 = 0xf0;
/// Timer 0's.
const CONFIGURATION: u64 = 0x100;
const COMPARATOR: u64 = 0x108;

const INTERRUPT: u64 = 1 << 2;
const LEVEL: u64 = 1 << 1;
const PERIODIC: u64 = 1 << 3;
const SET_VALUE: u64 = 1 << 6;
const BITS_32: u64 = 1 << 8;
const ROUTE_20: u64 = 20 << 9;
/// Of a timer's configuration: routes 20–23, 64 bits, periodic.
const CAPABLE: u64 = 0x00f0_0000_0000_0030;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u64),
    /// A double word.
    Write32(u64, u32),
    Reads(u64, u64),
    /// So many ticks pass.
    Ticks(u64),
    /// So many rising edges came at an interrupt.
    Edges(u32, usize),
    /// An interrupt's level.
    Is(u32, bool),
    /// Timers 0 and 1 have taken the PIT's and the RTC's interrupts.
    Legacy(bool),
}

#[rustfmt::skip]
const STEPS: &[(&str, &[Step])] = &[
    (
        "2.3.4: capabilities are read-only: 64 bits, legacy route, 3 timers, vendor, revision, 10 ns in fs",
        &[Write(0, u64::MAX), Reads(0, 0x0098_9680_8086_a201)],
    ),
    (
        "2.3.5: ENABLE_CNF and LEG_RT_CNF stick, the rest is reserved",
        &[Write(GENERAL, u64::MAX), Reads(GENERAL, 3), Write(GENERAL, 0), Reads(GENERAL, 0)],
    ),
    (
        "2.3.6: status bits are cleared by writing 1, and by nothing else",
        &[
            Write(STATUS, u64::MAX), Reads(STATUS, 0), Write(CONFIGURATION, LEVEL | INTERRUPT | ROUTE_20),
            Write(COMPARATOR, 5), Write(GENERAL, 1), Ticks(5), Reads(STATUS, 1), Write(STATUS, 0), Write(STATUS, !1),
            Reads(STATUS, 1), Write(STATUS, 1), Reads(STATUS, 0),
        ],
    ),
    (
        "2.3.7: the counter can be written while halted, by halves too, and counts from there",
        &[
            Write(COUNTER, 0x1234), Reads(COUNTER, 0x1234), Write32(COUNTER + 4, 7), Reads(COUNTER, 0x7_0000_1234),
            Ticks(9), Reads(COUNTER, 0x7_0000_1234), Write(GENERAL, 1), Ticks(9), Reads(COUNTER, 0x7_0000_123d),
            Write(GENERAL, 0), Ticks(9), Reads(COUNTER, 0x7_0000_123d),
        ],
    ),
    (
        "2.3.8: of a timer's configuration the capabilities are read-only, reserved bits and FSB delivery are zero",
        &[
            Reads(CONFIGURATION, CAPABLE), Write(CONFIGURATION, !0x3e00), Reads(CONFIGURATION, CAPABLE | 0x10e),
            Write(CONFIGURATION, 0), Reads(CONFIGURATION, CAPABLE),
        ],
    ),
    (
        "2.3.8: Tn_INT_ROUTE_CNF reads back as written only where the route is offered",
        &[
            Write(CONFIGURATION, 22 << 9), Reads(CONFIGURATION, CAPABLE | 22 << 9), Write(CONFIGURATION, 5 << 9),
            Reads(CONFIGURATION, CAPABLE | 22 << 9), Write(CONFIGURATION, 23 << 9),
            Reads(CONFIGURATION, CAPABLE | 23 << 9),
        ],
    ),
    (
        "2.3.8: Tn_VAL_SET_CNF reads as zero",
        &[Write(CONFIGURATION, PERIODIC | SET_VALUE), Reads(CONFIGURATION, CAPABLE | PERIODIC)],
    ),
    (
        "2.3.8: with Tn_INT_ENB_CNF = 0 status is told, and nobody interrupted",
        &[
            Write(CONFIGURATION, LEVEL | ROUTE_20), Write(COMPARATOR, 5), Write(GENERAL, 1), Ticks(9),
            Reads(STATUS, 1), Is(20, false), Write(CONFIGURATION, LEVEL | INTERRUPT | ROUTE_20), Is(20, true),
        ],
    ),
    (
        "2.3.6, 2.3.8: an edge-triggered timer leaves no status",
        &[
            Write(CONFIGURATION, INTERRUPT | ROUTE_20), Write(COMPARATOR, 5), Write(GENERAL, 1), Ticks(5),
            Edges(20, 1), Is(20, false), Reads(STATUS, 0),
        ],
    ),
    (
        "2.3.6: a level stays until its status is cleared, however often it matches",
        &[
            Write(CONFIGURATION, LEVEL | INTERRUPT | PERIODIC | SET_VALUE | ROUTE_20), Write(COMPARATOR, 100_000),
            Write(GENERAL, 1), Ticks(100_000), Is(20, true), Ticks(100_000), Edges(20, 1), Write(STATUS, 1),
            Is(20, false), Ticks(100_000), Is(20, true),
        ],
    ),
    (
        "2.3.5: halting takes interrupts back and keeps their status",
        &[
            Write(CONFIGURATION, LEVEL | INTERRUPT | ROUTE_20), Write(COMPARATOR, 5), Write(GENERAL, 1), Ticks(5),
            Is(20, true), Write(GENERAL, 0), Is(20, false), Reads(STATUS, 1), Write(GENERAL, 1), Is(20, true),
        ],
    ),
    (
        "2.3.8: Tn_32MODE_CNF: the comparator has 32 bits and matches each time they come around",
        &[
            Write(CONFIGURATION, INTERRUPT | BITS_32 | ROUTE_20), Write(COMPARATOR, 0x9_0000_0064),
            Reads(COMPARATOR, 0x64), Write(GENERAL, 1), Ticks(0x64), Edges(20, 1), Ticks(0xffff_ffff), Edges(20, 0),
            Ticks(1), Edges(20, 1),
        ],
    ),
    (
        "2.3.9.2.1: a 64-bit one-shot matches once",
        &[
            Write(CONFIGURATION, INTERRUPT | ROUTE_20), Write(COMPARATOR, 0x64), Write(GENERAL, 1), Ticks(0x64),
            Edges(20, 1), Reads(COMPARATOR, 0x64), Ticks(1 << 33), Edges(20, 0),
        ],
    ),
    (
        "2.3.9.2.1: written again, a one-shot matches again",
        &[
            Write(CONFIGURATION, INTERRUPT | ROUTE_20), Write(COMPARATOR, 0x64), Write(GENERAL, 1), Ticks(0x64),
            Edges(20, 1), Write(COMPARATOR, 0x96), Ticks(0x31), Edges(20, 0), Ticks(1), Edges(20, 1),
        ],
    ),
    (
        "2.3.9.2.2: a periodic comparator moves on by its period at each match",
        &[
            Write(CONFIGURATION, INTERRUPT | PERIODIC | SET_VALUE | ROUTE_20), Write(COMPARATOR, 10_000),
            Write(GENERAL, 1), Ticks(10_000), Edges(20, 1), Reads(COMPARATOR, 20_000), Ticks(10_000), Edges(20, 1),
            Reads(COMPARATOR, 30_000),
        ],
    ),
    (
        "2.3.9.2.2: with Tn_VAL_SET_CNF the accumulator is set, then the period alone",
        &[
            Write(CONFIGURATION, INTERRUPT | PERIODIC | SET_VALUE | ROUTE_20), Write(COMPARATOR, 30_000),
            Write(COMPARATOR, 10_000), Reads(COMPARATOR, 30_000), Write(GENERAL, 1), Ticks(29_999), Edges(20, 0),
            Ticks(1), Edges(20, 1), Reads(COMPARATOR, 40_000), Ticks(10_000), Edges(20, 1),
        ],
    ),
    (
        "2.3.9.2.2: without it only the period changes, after the match under way",
        &[
            Write(CONFIGURATION, INTERRUPT | PERIODIC | SET_VALUE | ROUTE_20), Write(COMPARATOR, 20_000),
            Write(GENERAL, 1), Ticks(5_000), Write(COMPARATOR, 30_000), Reads(COMPARATOR, 20_000), Ticks(15_000),
            Edges(20, 1), Reads(COMPARATOR, 50_000),
        ],
    ),
    (
        "2.3.9.2.2: by two double words the value is set whole",
        &[
            Write(CONFIGURATION, INTERRUPT | PERIODIC | SET_VALUE | ROUTE_20), Write32(COMPARATOR, 0x64),
            Write32(COMPARATOR + 4, 2), Reads(COMPARATOR, 0x2_0000_0064), Write32(COMPARATOR, 0x20_0000),
            Reads(COMPARATOR, 0x2_0000_0064),
        ],
    ),
    (
        "2.3.9.2.2: a 32-bit periodic timer goes on across the end of its 32 bits",
        &[
            Write(COUNTER, 0xffff_f000), Write(CONFIGURATION, INTERRUPT | PERIODIC | SET_VALUE | BITS_32 | ROUTE_20),
            Write32(COMPARATOR, 0xffff_ff00), Write32(COMPARATOR, 0x2_0000), Write(GENERAL, 1), Ticks(0xf00),
            Edges(20, 1), Reads(COMPARATOR, 0x1_ff00), Ticks(0x1_ffff), Edges(20, 0), Ticks(1), Edges(20, 1),
        ],
    ),
    (
        "2.3.5, table 3: legacy replacement sends timer 0 to interrupt 0 and timer 1 to 8, whatever their routes",
        &[
            Write(CONFIGURATION, INTERRUPT | ROUTE_20), Write(COMPARATOR, 5),
            Write(CONFIGURATION + 0x20, INTERRUPT | 21 << 9), Write(COMPARATOR + 0x20, 6),
            Write(CONFIGURATION + 0x40, INTERRUPT | 22 << 9), Write(COMPARATOR + 0x40, 7), Write(GENERAL, 3),
            Legacy(true), Ticks(7), Edges(0, 1), Edges(8, 1), Edges(22, 1), Edges(20, 0), Edges(21, 0),
            Write(GENERAL, 1), Legacy(false),
        ],
    ),
    (
        "2.3: registers that are not there are zero",
        &[
            Write(0x160, u64::MAX), Reads(0x160, 0), Write(0x08, u64::MAX), Reads(0x08, 0), Write(0x110, u64::MAX),
            Reads(0x110, 0), Reads(0x3f8, 0),
        ],
    ),
];

impl Rig {
    fn follow(&self, what: &str, steps: &[Step]) {
        let mut heard: Vec<(u32, bool)> = Vec::new();
        for (at, &step) in steps.iter().enumerate() {
            let place = format!("{what}, step {at} {step:x?}");
            match step {
                Write(register, value) => self.write(register, value),
                Write32(register, value) => self.write32(register, value),
                Reads(register, value) => assert_eq!(self.read(register), value, "{place}"),
                Ticks(ticks) => self.advance_ticks(ticks),
                Edges(gsi, count) => {
                    heard.extend(self.log());
                    let rising = heard.iter().filter(|&&line| line == (gsi, true)).count();
                    heard.retain(|&(line, _)| line != gsi);
                    assert_eq!(rising, count, "{place}");
                }
                Is(gsi, level) => {
                    heard.extend(self.log());
                    let last = heard.iter().rfind(|(line, _)| *line == gsi);
                    assert_eq!(last.is_some_and(|&(_, level)| level), level, "{place}");
                }
                Legacy(on) => assert_eq!(self.legacy.lock().last().copied(), Some(on), "{place}"),
            }
        }
    }
}

#[test]
fn timers_do_as_the_specification_says() {
    for (what, steps) in STEPS {
        rig().follow(what, steps);
    }
}
