//! [`FpuState`]: the x87 registers in the format of FXSAVE64 (SDM 1 10.5.1 and 13.4.1).

/// Offset of ST0; each register takes 16 bytes.
pub const REGISTERS: usize = 32;
/// FSW: exception summary.
pub const FSW_ES: u16 = 1 << 7;
/// FSW: busy, a copy of ES since the 80287.
pub const FSW_BUSY: u16 = 1 << 15;
/// FSW and FCW: the six exceptions.
pub const EXCEPTIONS: u16 = 0x3f;

/// Bytes of the legacy region.
const LEGACY: usize = 512;
/// Bytes with the XSAVE header.
const SIZE: usize = LEGACY + 64;

/// The legacy region of an XSAVE area, and a header that says that the x87 is in it. Only its x87 part is live; MXCSR and the XMM registers are kept
/// elsewhere, and MXCSR in here always has the host's value, so that the image can be loaded.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct FpuState {
    bytes: [u8; SIZE],
}

/// Equal in what belongs to the x87: a stub leaves the host's vector registers in the rest of its image.
impl PartialEq for FpuState {
    fn eq(&self, other: &Self) -> bool {
        self.x87_bytes() == other.x87_bytes()
    }
}

impl Eq for FpuState {}

impl Default for FpuState {
    /// The state after FNINIT with empty registers.
    fn default() -> Self {
        let mut image = FpuState { bytes: [0; SIZE] };
        image.bytes[LEGACY] = 1;
        image.set_fcw(0x37f);
        image.bytes[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        image
    }
}

impl FpuState {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
    fn set_u16_at(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(bytes)
    }
    fn set_u64_at(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Control word.
    pub fn fcw(&self) -> u16 {
        self.u16_at(0)
    }
    /// Sets the control word. Call [`super::stubs::normalise`] if it comes from the guest.
    pub fn set_fcw(&mut self, value: u16) {
        self.set_u16_at(0, value);
    }
    /// Status word.
    pub fn fsw(&self) -> u16 {
        self.u16_at(2)
    }
    /// Sets the status word. Call [`super::stubs::normalise`] if it comes from the guest.
    pub fn set_fsw(&mut self, value: u16) {
        self.set_u16_at(2, value);
    }
    /// The physical number of ST0.
    pub fn top(&self) -> usize {
        usize::from(self.fsw() >> 11 & 7)
    }
    /// Sets the physical number of ST0 without moving registers.
    pub fn set_top(&mut self, top: usize) {
        self.set_fsw(self.fsw() & !(7 << 11) | ((top & 7) as u16) << 11);
    }
    /// Abridged tags: bit i is set when physical register i is not empty.
    pub fn abridged_tags(&self) -> u8 {
        self.bytes[4]
    }
    /// Sets the abridged tags.
    pub fn set_abridged_tags(&mut self, tags: u8) {
        self.bytes[4] = tags;
    }
    /// Last opcode, eleven bits.
    pub fn fop(&self) -> u16 {
        self.u16_at(6)
    }
    /// Sets the last opcode.
    pub fn set_fop(&mut self, value: u16) {
        self.set_u16_at(6, value & 0x7ff);
    }
    /// Last instruction pointer.
    pub fn fip(&self) -> u64 {
        self.u64_at(8)
    }
    /// Sets the last instruction pointer.
    pub fn set_fip(&mut self, value: u64) {
        self.set_u64_at(8, value);
    }
    /// Last data pointer.
    pub fn fdp(&self) -> u64 {
        self.u64_at(16)
    }
    /// Sets the last data pointer.
    pub fn set_fdp(&mut self, value: u64) {
        self.set_u64_at(16, value);
    }
    /// The ten bytes of ST(i).
    pub fn st(&self, index: usize) -> [u8; 10] {
        let at = REGISTERS + 16 * (index & 7);
        let mut value = [0; 10];
        value.copy_from_slice(&self.bytes[at..at + 10]);
        value
    }
    /// Sets ST(i), leaving its tag.
    pub fn set_st(&mut self, index: usize, value: &[u8; 10]) {
        let at = REGISTERS + 16 * (index & 7);
        self.bytes[at..at + 10].copy_from_slice(value);
    }
    /// Whether ST(i) is not empty.
    pub(super) fn is_valid(&self, index: usize) -> bool {
        self.abridged_tags() >> ((self.top() + index) & 7) & 1 != 0
    }
    /// Marks ST(i) as not empty.
    pub(super) fn set_valid(&mut self, index: usize) {
        self.set_abridged_tags(self.abridged_tags() | 1 << ((self.top() + index) & 7));
    }
    /// Pushes a value over an empty register.
    pub(super) fn push(&mut self, value: &[u8; 10]) {
        let top = (self.top() + 7) & 7;
        self.bytes[REGISTERS..REGISTERS + 128].rotate_right(16);
        self.set_top(top);
        self.set_abridged_tags(self.abridged_tags() | 1 << top);
        self.set_st(0, value);
    }
    /// Marks ST0 empty and moves on.
    pub(super) fn pop(&mut self) {
        let top = self.top();
        self.set_abridged_tags(self.abridged_tags() & !(1 << top));
        self.bytes[REGISTERS..REGISTERS + 128].rotate_left(16);
        self.set_top(top + 1);
    }
    /// The 160 bytes of x87 state, without MXCSR: bytes 0–23 and 32–159.
    pub fn x87_bytes(&self) -> ([u8; 24], [u8; 128]) {
        let (mut head, mut registers) = ([0; 24], [0; 128]);
        head.copy_from_slice(&self.bytes[..24]);
        registers.copy_from_slice(&self.bytes[32..160]);
        (head, registers)
    }
    /// Loads the x87 part of a legacy region, cleaned as FXRSTOR64 cleans it.
    pub fn load(&mut self, head: &[u8; 24], registers: &[u8; 128]) {
        self.bytes[..24].copy_from_slice(head);
        self.bytes[32..160].copy_from_slice(registers);
        super::stubs::normalise(self);
    }
    /// Where MMi is: valid while TOP is zero.
    pub fn mmx_pointer(&mut self, index: u8) -> *mut u8 {
        self.bytes[REGISTERS + 16 * usize::from(index & 7)..].as_mut_ptr()
    }
    /// For the stubs.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// Turns the registers so that TOP becomes `top` while each physical register keeps its content. The
    /// image orders them by stack position.
    pub fn rotate_to(&mut self, top: usize) {
        let shift = (top & 7).wrapping_sub(self.top()) & 7;
        self.bytes[REGISTERS..REGISTERS + 128].rotate_left(16 * shift);
        self.set_top(top);
    }

    /// What every MMX instruction but EMMS does first (SDM 1 9.5.1): TOP becomes 0, all registers valid.
    pub fn enter_mmx(&mut self) {
        if self.top() != 0 {
            self.rotate_to(0);
        }
        self.set_abridged_tags(0xff);
    }

    /// What writing MMi does to the rest of the register: exponent and sign become ones.
    pub fn finish_mmx_write(&mut self, index: u8) {
        let at = REGISTERS + 16 * usize::from(index & 7) + 8;
        self.bytes[at..at + 2].fill(0xff);
    }

    /// The two-bit tags (SDM 1 8.1.7), computed from the registers: valid 0, zero 1, special 2, empty 3.
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |tags, physical| {
            let tag = if self.abridged_tags() & 1 << physical == 0 {
                3
            } else {
                let value = self.st((physical + 8 - self.top()) & 7);
                let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
                let integer_bit = value[7] & 0x80 != 0;
                match exponent {
                    0 if value[..8] == [0; 8] => 1,
                    0 | 0x7fff => 2,
                    _ if integer_bit => 0,
                    _ => 2,
                }
            };
            tags | tag << (2 * physical)
        })
    }

    /// Sets the tags from two-bit tags: only empty or not is kept.
    pub fn set_full_tags(&mut self, tags: u16) {
        let abridged =
            (0..8).fold(0, |bits, physical| bits | u8::from(tags >> (2 * physical) & 3 != 3) << physical);
        self.set_abridged_tags(abridged);
    }

    /// Whether a waiting instruction must report an error first.
    pub fn error_pending(&self) -> bool {
        self.fsw() & FSW_ES != 0
    }

    /// Derives ES and B from the exceptions that are flagged and not masked.
    pub fn update_error_summary(&mut self) {
        let pending = self.fsw() & !self.fcw() & EXCEPTIONS != 0;
        let summary = if pending { FSW_ES | FSW_BUSY } else { 0 };
        self.set_fsw(self.fsw() & !(FSW_ES | FSW_BUSY) | summary);
    }

    /// FNINIT: control and status as after reset, tags empty, pointers zero, registers unchanged (in their
    /// physical places).
    pub fn init(&mut self) {
        self.rotate_to(0);
        self.set_fcw(0x37f);
        self.set_fsw(0);
        self.set_abridged_tags(0);
        self.set_fop(0);
        self.set_fip(0);
        self.set_fdp(0);
    }
}
