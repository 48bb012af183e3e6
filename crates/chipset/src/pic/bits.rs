//! Command words of the 8259A (data sheet, "Programming the 8259A") and the edge/level registers of PC boards.

/// Even port: ICW1, OCW2, OCW3, and reads of IRR, ISR and poll.
pub const COMMAND: u64 = 0;

// ICW1.
pub const ICW1_NEEDS_ICW4: u8 = 1 << 0;
pub const ICW1_SINGLE: u8 = 1 << 1;
pub const ICW1: u8 = 1 << 4;

// ICW4.
pub const ICW4_AUTO_EOI: u8 = 1 << 1;
pub const ICW4_FULLY_NESTED: u8 = 1 << 4;

// OCW2: bits 7–5 rotate, specific, EOI.
pub const OCW2_CLEAR_AUTO_ROTATE: u8 = 0b000;
pub const OCW2_EOI: u8 = 0b001;
pub const OCW2_SPECIFIC_EOI: u8 = 0b011;
pub const OCW2_SET_AUTO_ROTATE: u8 = 0b100;
pub const OCW2_ROTATE_EOI: u8 = 0b101;
pub const OCW2_SET_PRIORITY: u8 = 0b110;
pub const OCW2_ROTATE_SPECIFIC_EOI: u8 = 0b111;

// OCW3.
pub const OCW3: u8 = 1 << 3;
pub const OCW3_READ_ISR: u8 = 1 << 0;
pub const OCW3_READ: u8 = 1 << 1;
pub const OCW3_POLL: u8 = 1 << 2;
pub const OCW3_SPECIAL_MASK: u8 = 1 << 5;
pub const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;

/// The master's input of the slave.
pub const CASCADE: u8 = 2;
/// The input that a vanished interrupt is reported as.
pub const SPURIOUS: u8 = 7;
/// Inputs that can be level-triggered: not 0–2 of the master, not 0 (RTC) and 5 (FPU) of the slave.
pub const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];
