//! Headers of the wire (RFC 7143, 11).

/// Bytes of a basic header segment.
pub(crate) const HEADER: usize = 48;
/// The tag that means none.
pub(crate) const NO_TAG: u32 = u32::MAX;
/// First byte: the command needs no place in the order of commands.
pub(crate) const IMMEDIATE: u8 = 0x40;
/// Second byte: the last one of a sequence.
pub(crate) const FINAL: u8 = 0x80;

/// Kinds of headers.
pub(crate) mod opcode {
    pub const NOP_OUT: u8 = 0x00;
    pub const COMMAND: u8 = 0x01;
    pub const LOGIN: u8 = 0x03;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const NOP_IN: u8 = 0x20;
    pub const RESPONSE: u8 = 0x21;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const READY_TO_TRANSFER: u8 = 0x31;
    pub const ASYNCHRONOUS: u8 = 0x32;
    pub const REJECT: u8 = 0x3F;
}

/// Where fields are that many kinds have.
pub(crate) mod field {
    /// Logical unit, 8 bytes.
    pub const LUN: usize = 8;
    /// Initiator task tag.
    pub const TASK: usize = 16;
    /// Expected data length of a command; else target transfer tag.
    pub const TRANSFER: usize = 20;
    /// `CmdSN` or `StatSN`.
    pub const NUMBER: usize = 24;
    /// `ExpStatSN` or `ExpCmdSN`.
    pub const EXPECTED: usize = 28;
    /// `MaxCmdSN`; the command of a command.
    pub const WINDOW: usize = 32;
    /// `DataSN`, `R2TSN`; the status of a login.
    pub const SEQUENCE: usize = 36;
    /// Buffer offset.
    pub const OFFSET: usize = 40;
    /// Residual count, or desired data length.
    pub const COUNT: usize = 44;
}

/// A basic header segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header(pub [u8; HEADER]);

impl Header {
    /// One with a kind and flags.
    pub fn new(first: u8, flags: u8) -> Self {
        let mut bytes = [0; HEADER];
        bytes[0] = first;
        bytes[1] = flags;
        Header(bytes)
    }

    /// Sets bytes.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        self
    }

    /// Sets a number.
    pub fn set(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_be_bytes())
    }

    /// Sets the length of the data, of which 24 bits are kept.
    pub fn length(self, len: usize) -> Self {
        let [_, bytes @ ..] = (len as u32).to_be_bytes();
        self.put(5, &bytes)
    }

    /// A byte.
    pub fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }

    /// A number.
    pub fn get(&self, at: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|index| self.byte(at + index)))
    }

    /// Its kind.
    pub fn opcode(&self) -> u8 {
        self.byte(0) & 0x3F
    }

    /// Its flags.
    pub fn flags(&self) -> u8 {
        self.byte(1)
    }

    /// Bytes of the data, without what pads them.
    pub fn data_len(&self) -> usize {
        (self.get(4) & 0xFF_FFFF) as usize
    }

    /// Bytes of additional header segments.
    pub fn more_headers(&self) -> usize {
        usize::from(self.byte(4)) * 4
    }
}

/// Whether `a` comes before `b` in the order of serial numbers (RFC 7143, 4.2.2.1).
pub(crate) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The field for a logical unit: the peripheral form below 256, as most targets expect it, else the flat one.
pub(crate) fn lun_field(lun: u16) -> [u8; 8] {
    let form = if lun < 256 { 0 } else { 1 << 14 };
    let [high, low] = (lun | form).to_be_bytes();
    [high, low, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_were_set() {
        let header =
            Header::new(opcode::COMMAND | IMMEDIATE, FINAL).set(field::TASK, 0x0102_0304).length(0x12_3456);
        assert_eq!(
            (header.opcode(), header.get(field::TASK), header.data_len()),
            (1, 0x0102_0304, 0x12_3456)
        );
        assert_eq!(&header.0[4..8], &[0, 0x12, 0x34, 0x56]);
        assert_eq!(lun_field(3)[..2], [0, 3]);
        assert_eq!(lun_field(300)[..2], [0x41, 0x2C]);
    }

    #[test]
    fn serial_numbers_wrap() {
        assert!(before(1, 2) && !before(2, 2) && before(u32::MAX, 0) && !before(0, u32::MAX));
    }
}
