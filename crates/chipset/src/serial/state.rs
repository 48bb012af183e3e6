//! Saved state of a UART.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "uart16550";
/// Version of [`SerialState`].
pub const VERSION: u32 = 2;

/// What a UART remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Interrupt enable.
    pub ier: u8,
    /// FIFO control: enable and trigger level.
    pub fcr: u8,
    /// Line control.
    pub lcr: u8,
    /// Modem control.
    pub mcr: u8,
    /// Modem status with the change bits.
    pub msr: u8,
    /// Scratch.
    pub scratch: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// A byte was lost.
    pub overrun: bool,
    /// The transmitter-empty interrupt was not answered yet.
    pub transmitter_pending: bool,
    /// Received bytes wait too long below the trigger level.
    pub timed_out: bool,
    /// Guest time at which waiting bytes time out.
    pub timeout_at: Option<u64>,
    /// The guest took "request to send" back: the peer waits.
    pub held: bool,
    /// Received bytes, oldest first.
    pub received: Vec<u8>,
}
