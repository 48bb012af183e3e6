//! Fixed hardware registers (ACPI 6.5, 4.8.3), offsets from the first port.

/// PM1 status (4.8.3.1.1).
pub const STATUS: u64 = 0x00;
/// PM1 enable (4.8.3.1.2).
pub const ENABLE: u64 = 0x02;
/// PM1 control (4.8.3.2.1).
pub const CONTROL: u64 = 0x04;
/// Power management timer (4.8.3.3).
pub const TIMER: u64 = 0x08;
/// General purpose events: status and enable, none of them wired (4.8.4.1).
pub const GPE0: u64 = 0x10;
/// All of it.
pub const LEN: u64 = 0x20;

pub const EVENT_TIMER: u16 = 1 << 0;
pub const EVENT_GLOBAL: u16 = 1 << 5;
pub const EVENT_POWER_BUTTON: u16 = 1 << 8;
pub const EVENT_SLEEP_BUTTON: u16 = 1 << 9;
pub const EVENT_RTC: u16 = 1 << 10;
/// Events that can be enabled.
pub const EVENTS: u16 = EVENT_TIMER | EVENT_GLOBAL | EVENT_POWER_BUTTON | EVENT_SLEEP_BUTTON | EVENT_RTC;

/// ACPI mode; always on, as there is no SMI command to turn it off.
pub const CONTROL_SCI_ENABLE: u16 = 1 << 0;
pub const CONTROL_BUS_MASTER_RELOAD: u16 = 1 << 1;
pub const CONTROL_SLEEP_TYPE_SHIFT: u32 = 10;
pub const CONTROL_SLEEP_TYPE: u16 = 7 << CONTROL_SLEEP_TYPE_SHIFT;
/// Write-only.
pub const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;

/// The timer's clock in hertz.
pub const TIMER_HZ: u64 = 3_579_545;
/// The bit of the 32-bit timer whose change is an event.
pub const TIMER_TOP_BIT: u32 = 31;
