//! Instructions as random bytes.

use super::{Drawn, Group, select};
use crate::case::Mode;
use crate::random::Random;
use iced_x86::{Decoder, DecoderOptions};

/// Opcodes, with the map before them, that the state group is made of.
const STATE: &[&[u8]] = &[
    &[0x0f, 0xae],
    &[0x0f, 0xae],
    &[0x0f, 0xae],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x0f, 0xc7],
    &[0xd9],
    &[0xdd],
    &[0xdb, 0xe2],
    &[0xdb, 0xe3],
    &[0x9b],
    &[0x0f, 0x77],
];

/// The system group's.
const SYSTEM: &[&[u8]] = &[
    &[0x8c],
    &[0x8e],
    &[0x8e],
    &[0x8e],
    &[0x06],
    &[0x07],
    &[0x0e],
    &[0x16],
    &[0x17],
    &[0x1e],
    &[0x1f],
    &[0x0f, 0xa0],
    &[0x0f, 0xa1],
    &[0x0f, 0xa8],
    &[0x0f, 0xa9],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xb5],
    &[0xc4],
    &[0xc5],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x63],
    &[0x62],
    &[0x9a],
    &[0xea],
    &[0xff],
    &[0xca],
    &[0xcb],
    &[0xcf],
    &[0xcc],
    &[0xcd],
    &[0xce],
    &[0xf1],
    &[0x9c],
    &[0x9d],
    &[0xc8],
    &[0xc9],
    &[0xe4],
    &[0xe5],
    &[0xe6],
    &[0xe7],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0x6c],
    &[0x6d],
    &[0x6e],
    &[0x6f],
    &[0xfa],
    &[0xfb],
    &[0xf4],
    &[0x0f, 0x0b],
    &[0x0f, 0xb9],
    &[0x0f, 0xff],
    &[0x0f, 0x06],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0xae],
    &[0x0f, 0x07],
    &[0x0f, 0x35],
    &[0x0f, 0x38, 0x82],
];

/// Bytes of a draw: more than the longest instruction, so that too long ones can be seen.
const LEN: usize = 24;

struct Bytes {
    bytes: [u8; LEN],
    len: usize,
}

impl Bytes {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    fn fill(mut self, random: &mut Random) -> [u8; LEN] {
        while self.len < LEN {
            self.push(random.bits() as u8);
        }
        self.bytes
    }
}

/// Draws until an instruction of the group comes.
pub(super) fn instruction(random: &mut Random, group: Group, mode: Mode, ip: u64) -> Drawn {
    loop {
        let bytes = draw_bytes(random, group, mode);
        let mut decoder = Decoder::with_ip(mode.bits(), &bytes, ip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let wanted = select::is_wanted(random, &instruction, group, prefixes(&bytes));
        if !wanted || select::asks_hypervisor(&bytes) {
            continue;
        }
        let offsets = decoder.get_constant_offsets(&instruction);
        let displacement =
            offsets.has_displacement().then(|| (offsets.displacement_offset(), offsets.displacement_size()));
        // What is invalid has no length; its opcode decides, so any bytes may follow.
        let len = if instruction.is_invalid() { 16 } else { instruction.len() };
        return Drawn { instruction, bytes: bytes[..len].to_vec(), displacement };
    }
}

/// How many prefixes bytes begin with; REX, which is INC or DEC elsewhere, counts always.
fn prefixes(bytes: &[u8]) -> usize {
    let is_prefix = |byte: &u8| {
        matches!(
            byte,
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x40..=0x4f
        )
    };
    bytes.iter().take_while(|byte| is_prefix(byte)).count()
}

fn draw_bytes(random: &mut Random, group: Group, mode: Mode) -> [u8; LEN] {
    let mut bytes = Bytes { bytes: [0; LEN], len: 0 };
    let long = mode == Mode::Long;
    let prefixes = [(0x66, 4), (0xf3, 8), (0xf2, 8), (0xf0, 24), (0x67, 24), (0x65, 30), (0x64, 30)];
    for (prefix, rarity) in prefixes {
        let rarity = if group == Group::State && prefix >= 0xf0 { rarity / 2 } else { rarity };
        if random.one_in(rarity) {
            bytes.push(prefix);
        }
    }
    if !long && random.one_in(12) {
        bytes.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e]));
    }
    if group == Group::Invalid && random.one_in(4) {
        let prefix = random.pick(&[0x66, 0xf2, 0xf3, 0x2e, 0x36, 0x64]);
        for _ in 0..random.below(16) {
            bytes.push(prefix);
        }
    }
    let vex = match group {
        Group::Integer => random.one_in(12),
        Group::X87 | Group::State | Group::System => false,
        _ => random.one_in(2),
    };
    if vex {
        draw_vex(random, &mut bytes, long);
        return bytes.fill(random);
    }
    if long && random.one_in(2) {
        bytes.push(0x40 | random.below(16) as u8);
    }
    let listed = match group {
        Group::State => Some(STATE),
        Group::System => Some(SYSTEM),
        Group::Compat if random.one_in(4) => Some(if random.one_in(4) { STATE } else { SYSTEM }),
        Group::X87 if random.below(8) < 6 => {
            bytes.push(0xd8 | random.below(8) as u8);
            return bytes.fill(random);
        }
        Group::Compat if random.one_in(8) => {
            bytes.push(0xd8 | random.below(8) as u8);
            return bytes.fill(random);
        }
        _ => None,
    };
    if let Some(opcodes) = listed {
        random.pick(opcodes).iter().for_each(|&byte| bytes.push(byte));
        return bytes.fill(random);
    }
    match (group, random.below(8)) {
        (Group::Integer | Group::Compat, 0..=4) | (_, 0..=1) => {}
        (_, 2..=5) => bytes.push(0x0f),
        (_, other) => {
            bytes.push(0x0f);
            bytes.push(if other == 6 { 0x38 } else { 0x3a });
        }
    }
    bytes.fill(random)
}

fn draw_vex(random: &mut Random, bytes: &mut Bytes, long: bool) {
    let map = 1 + random.below(3) as u8;
    // Outside 64-bit mode the bits that look like a register ModRM tell VEX from LDS and LES.
    let extension = if long { random.bits() as u8 & 0xe0 } else { 0xc0 | random.bits() as u8 & 0x20 };
    if map == 1 && random.one_in(2) {
        bytes.push(0xc5);
        let second = random.bits() as u8;
        bytes.push(if long { second } else { second | 0xc0 });
        return;
    }
    bytes.push(0xc4);
    bytes.push(extension | map);
    bytes.push(random.bits() as u8);
}
