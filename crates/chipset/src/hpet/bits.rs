//! Registers of the high precision event timers (IA-PC HPET specification 1.0a, 2.3).

/// Capabilities and ID (2.3.4).
pub const CAPABILITIES: u64 = 0x000;
/// General configuration (2.3.5).
pub const CONFIGURATION: u64 = 0x010;
/// Interrupt status (2.3.6).
pub const STATUS: u64 = 0x020;
/// Main counter (2.3.7).
pub const COUNTER: u64 = 0x0f0;
/// First timer; each takes 32 bytes (2.3.8).
pub const TIMERS: u64 = 0x100;
pub const TIMER_STRIDE: u64 = 0x20;
/// In a timer: configuration and capabilities, comparator.
pub const TIMER_CONFIGURATION: u64 = 0x00;
pub const TIMER_COMPARATOR: u64 = 0x08;

/// Comparators.
pub const COUNT: usize = 3;
/// Length of a tick: 100 MHz.
pub const TICK_NS: u64 = 10;
const TICK_FS: u64 = TICK_NS * 1_000_000;
/// Revision 1, 64 bits, legacy replacement, Intel's vendor number.
pub const CAPABILITIES_VALUE: u64 =
    TICK_FS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (COUNT as u64 - 1) << 8 | 1;

pub const CONFIGURATION_ENABLE: u64 = 1 << 0;
pub const CONFIGURATION_LEGACY: u64 = 1 << 1;

pub const TIMER_LEVEL: u64 = 1 << 1;
pub const TIMER_INTERRUPT: u64 = 1 << 2;
pub const TIMER_PERIODIC: u64 = 1 << 3;
/// The next write to the comparator sets the accumulator of a periodic timer, too.
pub const TIMER_SET_VALUE: u64 = 1 << 6;
pub const TIMER_32_BIT: u64 = 1 << 8;
pub const TIMER_ROUTE_SHIFT: u32 = 9;
pub const TIMER_ROUTE: u64 = 0x1f << TIMER_ROUTE_SHIFT;
pub const TIMER_WRITABLE: u64 =
    TIMER_LEVEL | TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT | TIMER_ROUTE;
/// Inputs of the I/O APIC that no other device drives: 20–23.
pub const ROUTES: u64 = 0x00f0_0000;
/// Periodic, 64 bits, the routes; no FSB delivery.
pub const TIMER_CAPABILITIES: u64 = ROUTES << 32 | 1 << 5 | 1 << 4;

/// Interrupts of timers 0 and 1 under legacy replacement (2.3.5, table 3).
pub const LEGACY_GSIS: [u32; 2] = [0, 8];
/// A periodic timer of a shorter period wakes the timer thread this often; periods in between fall together.
pub const MIN_PERIOD_NS: u64 = 50_000;
