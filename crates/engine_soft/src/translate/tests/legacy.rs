//! Random programs in the legacy modes: flat and other segments, of 32 and of 16 bits, in each mode that has them.

use super::generate::{codes, instruction, vector_codes, x87_codes};
use super::{Random, differential_in};
use crate::interp::harness::{self, DATA, STACK, UNMAPPED, flat};
use guest_memory::GuestMemory;
use iced_x86::{Code, MemoryOperand, Register};
use x86::{CpuState, Cr0, Segment, SegmentAttributes};

/// Registers that hold addresses and are rarely written; EDI counts rounds.
const POINTERS: [u32; 3] = [3, 5, 6];

/// What a program runs in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// Compatibility mode, flat.
    Compatibility,
    /// Protected mode with PAE paging, flat.
    Protected,
    /// Compatibility mode, 32 bits, with bases and limits.
    Segmented,
    /// As `Segmented`, without paging; the stack has 16 bits.
    SmallStack,
    /// 16-bit protected mode.
    Protected16,
    /// Real mode.
    Real,
    /// Virtual-8086 mode.
    Virtual,
}

impl Mode {
    fn bits(self) -> u32 {
        if matches!(self, Mode::Protected16 | Mode::Real | Mode::Virtual) { 16 } else { 32 }
    }

    fn is_flat(self) -> bool {
        matches!(self, Mode::Compatibility | Mode::Protected)
    }
}

pub(super) fn general(random: &mut Random, size: u32) -> Register {
    let number = match random.below(12) {
        0 if random.chance(30) => 4,
        1 if random.chance(60) => POINTERS[random.below(3) as usize],
        _ => random.below(3) as u32,
    };
    match size {
        1 => Register::AL + [0, 1, 2, 4, 5, 6, 3][random.below(7) as usize],
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

pub(super) fn memory(random: &mut Random, bits: u32) -> MemoryOperand {
    let disp = match random.below(12) {
        0 => 0xff8 + random.below(16) as i64,
        1 => -(random.below(0x40) as i64),
        2 if bits == 32 => (UNMAPPED - DATA) as i64 - random.below(24) as i64,
        3 | 4 => random.below(0x200) as i64,
        5 if random.chance(10) => i64::from(random.next() as i32),
        _ => 32 * random.below(16) as i64,
    };
    let segments = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
    let segment = if random.chance(12) { segments[random.below(6) as usize] } else { Register::None };
    let short = (bits == 16) != random.chance(6);
    if short {
        let forms = [
            (Register::BX, Register::SI),
            (Register::BX, Register::DI),
            (Register::BP, Register::SI),
            (Register::BP, Register::DI),
            (Register::SI, Register::None),
            (Register::DI, Register::None),
            (Register::BP, Register::None),
            (Register::BX, Register::None),
            (Register::None, Register::None),
        ];
        let (base, index) = forms[random.below(9) as usize];
        let bytes = if disp == 0 && base != Register::None { 0 } else { 2 };
        return MemoryOperand::new(base, index, 1, disp & 0xffff, bytes, false, segment);
    }
    let mut base = Register::EAX + POINTERS[random.below(3) as usize];
    if random.chance(8) {
        base = Register::EAX + random.below(8) as u32;
    }
    let index = [Register::None, Register::ECX, Register::EDI, Register::EDX][random.below(4) as usize];
    let index = if random.chance(80) { Register::None } else { index };
    let scale = if index == Register::None { 1 } else { 1 << random.below(4) };
    let base = if index != Register::None && random.chance(10) { Register::None } else { base };
    let bytes = if disp == 0 && base != Register::None { 0 } else { 4 };
    MemoryOperand::new(base, index, scale, disp, bytes, false, segment)
}

/// An immediate, displacement or counter of the operand size.
fn word(bits: u32, value: u32) -> Vec<u8> {
    value.to_le_bytes()[..bits as usize / 8].to_vec()
}

/// A piece with what 64-bit mode encodes differently or does not have.
fn special(random: &mut Random, bits: u32) -> Vec<u8> {
    let address =
        word(bits, if random.chance(5) { random.next() as u32 } else { random.below(0x200) as u32 });
    let register = [0, 1, 2, 4][random.below(4) as usize];
    let with_address = |opcode: u8| [&[opcode], &address[..]].concat();
    // The other operand size, at times.
    let mut bytes = if random.chance(15) { vec![0x66] } else { Vec::new() };
    bytes.extend(match random.below(20) {
        0 => vec![0x40 | register],
        1 => vec![0x48 | register],
        2 => with_address(0xa0 | random.below(4) as u8),
        3 => vec![0x80 + 2 * random.below(2) as u8, 0xc0 | (random.below(8) as u8) << 3, random.next() as u8],
        4 => vec![0x6a, random.next() as u8],
        // push [bx or (16 bits) bp + di], [ebx]
        5 => vec![0xff, 0x33],
        // push and pop of segments, pusha, popa
        6 => vec![[0x06, 0x0e, 0x16, 0x1e][random.below(4) as usize]],
        7 => vec![0x1e, 0x07],
        8 => vec![0x60],
        9 => return vec![0x60, 0x61],
        // mov ds, from es and the like
        10 => vec![0x8c, 0xd8 | register & 3, 0x8e, 0xc0 | register & 3],
        // AAA and others, XLAT, LES
        11 => vec![[0x27, 0x2f, 0x37, 0x3f, 0xd6][random.below(5) as usize], 0x39, 0xc8],
        // push ebp; mov ebp, esp; ..; leave
        12 => vec![0x55, 0x89, 0xe5, 0x50, 0xc9],
        // call over a return, to which it leads: call +2; jmp +1; ret
        13 => return [&[0xe8][..], &word(bits, 2), &[0xeb, 1, 0xc3]].concat(),
        // as 13, through EAX
        14 => {
            let mut code = [&[0xe8][..], &word(bits, 0), &[0x58]].concat();
            // add eax, 5; call eax; jmp +1; ret: the last is 3 + 2 + 2 + .. behind the POP
            code.extend_from_slice(&[0x83, 0xc0, 8, 0xff, 0xd0, 0xeb, 1, 0xc3]);
            return code;
        }
        // loop, jecxz to the next instruction
        15 => vec![0xe0 | random.below(4) as u8, 0],
        // lea dx, [bx + 8]
        16 => vec![0x8d, 0x53, 8],
        // a jump that may lead out of the segment, not taken as a rule: ja far
        17 if random.chance(20) => {
            return [&[0x0f, 0x87][..], &word(bits, random.next() as i16 as u32)].concat();
        }
        // lodsb; nop or dec esi
        18 => [[0xac, 0x90], [0xac, 0x4e]][random.below(2) as usize].to_vec(),
        _ => vec![0x50 | register, 0x58 | register & 3],
    });
    bytes
}

fn program(random: &mut Random, codes: &[Code], bits: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = 4 + random.below(20);
    while left > 0 {
        if random.chance(10) {
            let Some(next) = instruction(random, codes, bits) else { continue };
            bytes.extend_from_slice(&[0x70 | random.below(16) as u8, next.len() as u8]);
            bytes.extend_from_slice(&next);
        } else if random.chance(30) {
            bytes.extend(special(random, bits));
        } else if random.chance(6) {
            let (opcode, count) = ([0x50, 0x58][random.below(2) as usize], 2 + random.below(6));
            bytes.extend((0..count).map(|_| opcode | [0, 1, 2, 3, 5, 6][random.below(6) as usize]));
        } else if let Some(next) = instruction(random, codes, bits) {
            bytes.extend(next);
        } else {
            continue;
        }
        left -= 1;
    }
    bytes.push(0xf4);
    bytes
}

/// `mov edi, n … dec edi; jne back`.
fn looped(random: &mut Random, body: &[u8], bits: u32) -> Vec<u8> {
    let body = &body[..body.len() - 1];
    let mut bytes = [&[0xbf][..], &word(bits, 2 + random.below(5) as u32)].concat();
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&[0x4f, 0x0f, 0x85]);
    let back = -(body.len() as i32 + 3 + bits as i32 / 8);
    bytes.extend(word(bits, back as u32));
    bytes.push(0xf4);
    bytes
}

fn segment(base: u64, limit: u32, attributes: u16) -> Segment {
    // In real and virtual-8086 mode the selector is the base.
    let selector = (base >> 4) as u16;
    Segment { selector, base, limit, attributes: SegmentAttributes(attributes) }
}

fn state(random: &mut Random, linear: u64, mode: Mode) -> CpuState {
    let mut state = harness::long_state();
    let big = mode.bits() == 32;
    for number in 0..8 {
        state.gprs[number] = random.value() & 0xffff_ffff;
    }
    for number in 8..16 {
        state.gprs[number] = random.next();
    }
    let base = if mode.is_flat() { 0 } else { DATA + 16 * random.below(4) };
    for pointer in POINTERS {
        state.gprs[pointer as usize] = DATA + 0x100 + 32 * random.below(16) - base;
    }
    if matches!(mode, Mode::Compatibility | Mode::Segmented) && random.chance(10) {
        // Left from 64-bit mode.
        state.gprs[random.below(8) as usize] |= random.next() << 32;
    }
    state.gprs[7] = 32 * random.below(8);
    state.rflags = 2 | random.next() & 0x8d5;
    if mode == Mode::Protected {
        (state.efer, state.cr3) = (0, PAE_TABLE);
    } else if !matches!(mode, Mode::Compatibility | Mode::Segmented) {
        (state.efer, state.cr3) = (0, 0);
        state.cr0 &= !Cr0::PG.bits();
    }
    if mode == Mode::Real {
        state.cr0 &= !Cr0::PE.bits();
    }
    if mode.is_flat() {
        let data = flat(0x10, 0xc093);
        state.segments.cs = flat(8, 0xc09b);
        (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
        state.segments.fs = segment(random.below(0x100), u32::MAX, 0xc093);
        state.segments.gs = segment(DATA, 0x2ff, 0x4093);
        (state.gprs[4], state.rip) = (STACK - 8 * random.below(4), linear);
        return state;
    }
    // Virtual-8086 mode has its own attributes and limits.
    let (code, data, limit) = match mode {
        Mode::Virtual => (0xf3, 0xf3, 0xffff),
        _ if big => (0x409b, 0x4093, 0xffff + random.below(0x1000) as u32),
        _ => (0x9b, 0x93, 0xffff),
    };
    let stack = if mode == Mode::SmallStack { 0x93 } else { data };
    let s = &mut state.segments;
    let code_base = linear - 16 * random.below(0x180);
    let code_limit = if big || mode == Mode::Protected16 { 0x2400 } else { 0xffff };
    s.cs = segment(code_base, code_limit, code);
    s.ds = segment(base, limit, data);
    s.es = segment(base, if mode == Mode::Virtual { 0xffff } else { 0x1ff }, data);
    s.ss = segment(STACK - 0x1000, limit, stack);
    // Read-only, and expanding down.
    let odd = |attributes: u16| if mode == Mode::Virtual { 0xf3 } else { attributes };
    s.fs = segment(base, 0xffff, odd(data & !3 | 1));
    s.gs = segment(base, if mode == Mode::Virtual { 0xffff } else { 0x17f }, odd(data | 4));
    if mode == Mode::Virtual {
        state.rflags |= 1 << 17;
    }
    (state.gprs[4], state.rip) = (0x1000 - 8 * random.below(4), linear - code_base);
    if random.chance(3) {
        // Wraps, or faults.
        state.gprs[4] = random.below(4);
    }
    state
}

/// Faults of real mode lead to 0:0, or, that of vector 0, to 0:F4h: both shall be HLT. And tables for PAE paging.
pub(super) fn prepare(memory: &GuestMemory) {
    for handler in [0, 0xf4] {
        memory.write(handler, &[0xf4]).expect("is RAM");
    }
    let directory = harness::TABLES + 0x2001;
    memory.write(PAE_TABLE, &directory.to_le_bytes()).expect("is RAM");
}

/// The same directory, for PAE paging: behind the entries of the 64-bit root that are in use.
const PAE_TABLE: u64 = harness::TABLES + 0x800;

fn legacy(cases: u64, seed: u64, mode: Mode, codes: &[Code]) {
    let bits = mode.bits();
    let (faults, _) = differential_in(
        cases,
        seed,
        Default::default(),
        |random| program(random, codes, bits),
        |random, body| looped(random, body, bits),
        |random, linear| state(random, linear, mode),
    );
    // HLT is none in virtual-8086 mode.
    assert!(
        mode == Mode::Virtual || faults < cases * 19 / 20,
        "{mode:?}: {faults} of {cases} end with a fault"
    );
}

#[test]
fn flat_32_bit_programs_end_as_in_the_interpreter() {
    for (seed, mode) in [(1, Mode::Compatibility), (2, Mode::Protected)] {
        legacy(2000, 0x1357_9bdf_0246_8ace ^ seed, mode, &codes(32));
    }
}

#[test]
fn programs_in_segments_end_as_in_the_interpreter() {
    for (seed, mode) in [(1, Mode::Segmented), (2, Mode::SmallStack)] {
        legacy(2000, 0x2357_9bdf_0246_8ace ^ seed, mode, &codes(32));
    }
}

#[test]
fn programs_of_16_bits_end_as_in_the_interpreter() {
    for (seed, mode) in [(1, Mode::Protected16), (2, Mode::Real), (3, Mode::Virtual)] {
        legacy(2000, 0x3357_9bdf_0246_8ace ^ seed, mode, &codes(16));
    }
}

#[test]
fn vector_and_x87_programs_end_as_in_the_interpreter() {
    for (seed, mode) in [(1, Mode::Compatibility), (2, Mode::Segmented), (3, Mode::Real)] {
        let mut all = vector_codes(mode.bits());
        all.extend(x87_codes(mode.bits()).repeat(3));
        legacy(1000, 0x4357_9bdf_0246_8ace ^ seed, mode, &all);
    }
}

/// One access through EBX, or one push: each is at, or just behind, an end of memory, a segment or the address space.
fn wild(random: &mut Random, bits: u32) -> Vec<u8> {
    let forms: [&[u8]; 12] = [
        // mov ecx, [ebx]; mov [ebx], cl; movups [ebx], xmm1; push [ebx]; mov ch, [ebx]; lock add [ebx], ecx
        &[0x8b, 0x0b],
        &[0x88, 0x0b],
        &[0x0f, 0x11, 0x0b],
        &[0xff, 0x33],
        &[0x8a, 0x2b],
        &[0xf0, 0x01, 0x0b],
        // cmp ecx, [ebx]; mov ecx, [ebx + 18h]; mov edx, [ebx]; push ebx; pop ebx; sub ebx, -40h; add ecx, [ebx - 40h]
        &[0x3b, 0x0b],
        &[0x8b, 0x4b, 0x18, 0x8b, 0x13],
        &[0x53, 0x5b],
        &[0x83, 0xeb, 0xc0, 0x03, 0x4b, 0xc0],
        // add ch, [ebx]; mov [ebx - 18h], ecx; mov [ebx], edx
        &[0x02, 0x2b],
        &[0x89, 0x4b, 0xe8, 0x89, 0x13],
    ];
    let form = forms[random.below(12) as usize];
    // 32-bit operands and addresses in 16-bit code.
    let form = match form[0] {
        0x8b | 0x88 | 0x89 if bits == 16 && random.chance(50) => {
            [&[0x66, 0x67], &form[..2], &[0xf4]].concat()
        }
        _ => form.to_vec(),
    };
    let segments = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    let segment = random.chance(50).then(|| segments[random.below(6) as usize]);
    [segment.as_slice(), &form, &[0xf4]].concat()
}

#[test]
fn wild_addresses_fault_as_in_the_interpreter() {
    let modes = [
        Mode::Compatibility,
        Mode::Protected,
        Mode::Segmented,
        Mode::SmallStack,
        Mode::Protected16,
        Mode::Real,
    ];
    for (seed, mode) in (1..).zip(modes) {
        let ends = [0x10000, UNMAPPED, UNMAPPED - DATA, 0x200, 0x180, 0x2400, 1 << 32, 0x8000_0000, 0];
        let wild_state = |random: &mut Random, linear| {
            let mut state = state(random, linear, mode);
            let end: u64 = ends[random.below(9) as usize];
            state.gprs[3] = end.wrapping_add(random.below(40)).wrapping_sub(24) & 0xffff_ffff;
            if random.chance(20) {
                state.gprs[3] |= random.next() << 32;
            }
            if random.chance(30) {
                state.gprs[4] = state.gprs[3];
            }
            state
        };
        let program = |random: &mut Random| wild(random, mode.bits());
        differential_in(
            1500,
            0x5357_9bdf_0246_8ace ^ seed,
            Default::default(),
            program,
            |_, body| body.to_vec(),
            wild_state,
        );
    }
}

#[test]
fn an_instruction_may_change_the_next_one() {
    for mode in [Mode::Compatibility, Mode::Segmented, Mode::Real] {
        let bits = mode.bits();
        let operand = |value: u32| word(bits, value);
        // mov byte cs-alias [ebx + n], cl, where n is the immediate of the next instruction: mov eax, 0; add edx, eax
        let program = |_: &mut Random| {
            [
                &[0x36, 0x88, 0x4b, 1, 0xb8][..],
                &operand(0),
                &[0x01, 0xc2, 0x49, 0x75],
                &[-(10 + bits as i8 / 8) as u8],
                &[0xf4],
            ]
            .concat()
        };
        let start = |random: &mut Random, linear| {
            let mut state = state(random, linear, mode);
            if !mode.is_flat() {
                let mut alias = state.segments.cs;
                alias.attributes.0 = alias.attributes.0 & !8 | 2;
                (state.segments.ss, state.gprs[4]) = (alias, 0x2000);
            }
            (state.gprs[1], state.gprs[2], state.gprs[3]) = (20, 0, state.rip + 4);
            state
        };
        differential_in(
            20,
            0x6357_9bdf_0246_8ace,
            Default::default(),
            program,
            |_, body| body.to_vec(),
            start,
        );
    }
}
