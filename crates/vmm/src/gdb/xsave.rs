//! x87, SSE and AVX registers in an XSAVE area (SDM 1 10.5.1, 13.4).
//!
//! A component whose bit in XSTATE_BV is clear is in its initial state, whatever its bytes are.

use x86::XsaveArea;

const X87: u8 = 1 << 0;
const SSE: u8 = 1 << 1;
const AVX: u8 = 1 << 2;
/// FCW after FNINIT.
const INITIAL_CONTROL: u16 = 0x37f;
/// Bytes of the x87 part before the stack that FNINIT clears, FCW aside.
const X87_HEAD: std::ops::Range<usize> = 2..24;
const STACK: std::ops::Range<usize> = 32..160;
const XMM: usize = 160;
/// Tag of an empty x87 register.
const EMPTY: u128 = 3;

/// A register in the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// ST(n).
    Stack(usize),
    /// Two bytes at an offset: control, status, opcode, selectors.
    Word(usize),
    /// Four bytes at an offset: addresses.
    Address(usize),
    /// The tag word as FNSTENV stores it, two bits a register.
    Tags,
    /// XMMn.
    Xmm(usize),
    /// MXCSR.
    Mxcsr,
    /// The upper half of YMMn.
    YmmHigh(usize),
}

/// GDB's names of the x87's control registers, in its order.
pub const CONTROLS: [(&str, Field); 8] = [
    ("fctrl", Field::Word(0)),
    ("fstat", Field::Word(2)),
    ("ftag", Field::Tags),
    ("fiseg", Field::Word(12)),
    ("fioff", Field::Address(8)),
    ("foseg", Field::Word(20)),
    ("fooff", Field::Address(16)),
    ("fop", Field::Word(6)),
];

impl Field {
    /// Offset, length, and component.
    fn place(self) -> (usize, usize, u8) {
        match self {
            Field::Stack(number) => (STACK.start + 16 * (number & 7), 10, X87),
            Field::Word(at) => (at, 2, X87),
            Field::Address(at) => (at, 4, X87),
            Field::Tags => (4, 1, X87),
            Field::Xmm(number) => (XMM + 16 * (number & 15), 16, SSE),
            // Not part of a component that can be in its initial state alone.
            Field::Mxcsr => (24, 4, 0),
            Field::YmmHigh(number) => (XsaveArea::YMM_OFFSET + 16 * (number & 15), 16, AVX),
        }
    }

    /// Its value.
    pub fn get(self, area: &[u8]) -> u128 {
        let (at, len, component) = self.place();
        let there = area.get(XsaveArea::HEADER_OFFSET).is_some_and(|bits| bits & component == component);
        if !there {
            return match self {
                Field::Word(0) => INITIAL_CONTROL.into(),
                Field::Tags => 0xffff,
                _ => 0,
            };
        }
        match self {
            Field::Tags => tags(area),
            _ => number(area, at, len),
        }
    }

    /// Sets it, and makes its component differ from the initial state.
    pub fn set(self, area: &mut [u8], value: u128) {
        if area.len() < XsaveArea::MIN_LEN {
            return;
        }
        let (at, len, component) = self.place();
        wake(area, component);
        let value = match self {
            Field::Tags => (0..8).map(|r| u128::from(value >> (2 * r) & 3 != EMPTY) << r).sum(),
            _ => value,
        };
        area[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
}

fn number(area: &[u8], at: usize, len: usize) -> u128 {
    let mut value = [0; 16];
    if let Some(bytes) = area.get(at..at + len) {
        value[..len].copy_from_slice(bytes);
    }
    u128::from_le_bytes(value)
}

/// Gives a component in its initial state the bytes of that.
fn wake(area: &mut [u8], component: u8) {
    let bits = area[XsaveArea::HEADER_OFFSET];
    if bits & component == component {
        return;
    }
    area[XsaveArea::HEADER_OFFSET] = bits | component;
    match component {
        X87 => {
            area[..2].copy_from_slice(&INITIAL_CONTROL.to_le_bytes());
            area[X87_HEAD].fill(0);
            area[STACK].fill(0);
        }
        SSE => area[XMM..XMM + 256].fill(0),
        _ => area[XsaveArea::YMM_OFFSET..XsaveArea::YMM_OFFSET + 256].fill(0),
    }
}

/// Two bits a physical register: valid, zero, special, empty (SDM 1 8.1.7).
fn tags(area: &[u8]) -> u128 {
    let (status, used) = (number(area, 2, 2), number(area, 4, 1));
    let top = (status >> 11 & 7) as usize;
    let tag = |physical: usize| {
        if used >> physical & 1 == 0 {
            return EMPTY;
        }
        let value = Field::Stack(physical.wrapping_sub(top) & 7).get(area);
        let (significand, exponent) = (value as u64, value >> 64 & 0x7fff);
        match (exponent, significand) {
            (0, 0) => 1,
            (1..=0x7ffe, _) if significand >> 63 != 0 => 0,
            _ => 2,
        }
    };
    (0..8).map(|physical| tag(physical) << (2 * physical)).sum()
}
