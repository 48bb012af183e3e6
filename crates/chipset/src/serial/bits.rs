//! Registers of the PC16550D (data sheet, section 8, table II).

/// Receiver buffer (read), transmitter holding (write), divisor low byte (DLAB).
pub const RBR_THR: u64 = 0;
/// Interrupt enable; divisor high byte (DLAB).
pub const IER: u64 = 1;
/// Interrupt identification (read), FIFO control (write).
pub const IIR_FCR: u64 = 2;
/// Line control.
pub const LCR: u64 = 3;
/// Modem control.
pub const MCR: u64 = 4;
/// Line status.
pub const LSR: u64 = 5;
/// Modem status.
pub const MSR: u64 = 6;
/// Scratch.
pub const SCR: u64 = 7;

// Interrupt enable (8.7).
pub const IER_RECEIVED: u8 = 1 << 0;
pub const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
pub const IER_LINE_STATUS: u8 = 1 << 2;
pub const IER_MODEM_STATUS: u8 = 1 << 3;
pub const IER_MASK: u8 = 0x0f;

// Interrupt identification (8.6, table IV).
pub const IIR_NONE: u8 = 0x01;
pub const IIR_MODEM_STATUS: u8 = 0x00;
pub const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
pub const IIR_RECEIVED: u8 = 0x04;
pub const IIR_LINE_STATUS: u8 = 0x06;
pub const IIR_TIMEOUT: u8 = 0x0c;
pub const IIR_FIFO_ENABLED: u8 = 0xc0;

// FIFO control (8.5).
pub const FCR_ENABLE: u8 = 1 << 0;
pub const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
/// Receiver trigger levels by bits 7–6.
pub const FCR_TRIGGERS: [usize; 4] = [1, 4, 8, 14];

// Line control (8.1).
/// 5 data bits and so many more.
pub const LCR_WORD_LENGTH: u8 = 3;
pub const LCR_TWO_STOP_BITS: u8 = 1 << 2;
pub const LCR_PARITY: u8 = 1 << 3;
pub const LCR_DLAB: u8 = 1 << 7;

// Modem control (8.8).
pub const MCR_DTR: u8 = 1 << 0;
pub const MCR_RTS: u8 = 1 << 1;
pub const MCR_OUT1: u8 = 1 << 2;
/// On PC boards also the gate of the interrupt line.
pub const MCR_OUT2: u8 = 1 << 3;
pub const MCR_LOOPBACK: u8 = 1 << 4;
pub const MCR_MASK: u8 = 0x1f;

// Line status (8.4).
pub const LSR_DATA_READY: u8 = 1 << 0;
pub const LSR_OVERRUN: u8 = 1 << 1;
pub const LSR_TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

// Modem status (8.9): the lines, and below them what changed.
pub const MSR_CTS: u8 = 1 << 4;
pub const MSR_DSR: u8 = 1 << 5;
pub const MSR_RI: u8 = 1 << 6;
pub const MSR_DCD: u8 = 1 << 7;
pub const MSR_RING_ENDED: u8 = 1 << 2;
pub const MSR_CHANGES: u8 = 0x0f;

/// Depth of the receiver FIFO.
pub const FIFO_DEPTH: usize = 16;
/// The clock divided by 16: one divisor unit.
pub const BAUD_BASE: u64 = 115_200;
