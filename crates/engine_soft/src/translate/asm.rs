//! The few instructions that translations are framed with, as bytes.
//!
//! Guest instructions are encoded by `iced-x86`; this is for the fixed sequences around them. Registers are
//! hardware numbers. Nothing here is guest input.

mod fields;

/// First scratch register: R11.
pub(super) const S1: u8 = 11;
/// Second scratch register: R13.
pub(super) const S2: u8 = 13;
/// Where the guest's RSP lives: R15.
pub(super) const GUEST_RSP: u8 = 15;
/// The host's RSP.
pub(super) const HOST_RSP: u8 = 4;
/// RAX.
pub(super) const RAX: u8 = 0;
/// RCX.
pub(super) const RCX: u8 = 1;

/// Two-operand arithmetic by opcode of its `r, r/m` form.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Alu {
    Add = 0x03,
    Or = 0x0b,
    And = 0x23,
    Sub = 0x2b,
    Xor = 0x33,
    Cmp = 0x3b,
    Mov = 0x8b,
}

/// Conditions by encoding.
pub(super) mod cc {
    pub const AE: u8 = 3;
    pub const B: u8 = 2;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const S: u8 = 8;
    pub const A: u8 = 7;
    pub const L: u8 = 12;
    pub const G: u8 = 15;
}

/// A place in the code, known or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A number in code that is not the guest's, and may be another one next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refers {
    /// 32 bits, relative: fixed code.
    Thunk(u64),
    /// 32 bits: a site.
    Site,
    /// 32 bits: a link.
    Link,
    /// 32 bits: a check of several accesses.
    Share,
    /// 64 bits: where the page's generation is counted.
    Cell,
    /// 32 bits: the generation.
    Generation,
}

/// Where such a number is, in bytes from the start of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub at: usize,
    pub refers: Refers,
}

/// Code under construction.
pub(super) struct Asm {
    /// Where the first byte will run.
    base: u64,
    pub bytes: Vec<u8>,
    labels: Vec<Option<usize>>,
    fixups: Vec<(usize, Label)>,
    /// What code refers to besides itself, if somebody wants to know.
    pub references: Option<Vec<Reference>>,
}

impl Asm {
    pub fn new(base: u64) -> Self {
        Self::in_buffer(base, Vec::new())
    }

    /// As [`Asm::new`], in a used buffer.
    pub fn in_buffer(base: u64, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Asm { base, bytes, labels: Vec::with_capacity(64), fixups: Vec::with_capacity(64), references: None }
    }

    /// Where the next byte will run.
    pub fn here(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.bytes.len());
    }

    /// A label bound here.
    pub fn mark(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// Address of a bound label.
    pub fn address_of(&self, label: Label) -> u64 {
        self.base + self.labels[label.0].unwrap_or(0) as u64
    }

    /// Resolves all labels.
    pub fn finish(&mut self) {
        for &(at, label) in &self.fixups {
            let target = self.labels[label.0].unwrap_or(at + 4);
            let displacement = (target as i64 - (at as i64 + 4)) as u32;
            self.bytes[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
        }
        self.fixups.clear();
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0x40 {
            self.bytes.push(rex);
        }
    }

    /// ModRM, SIB and a displacement for `[base + disp]`.
    fn modrm_base(&mut self, reg: u8, base: u8, disp: i32) {
        let (reg, low) = ((reg & 7) << 3, base & 7);
        let short = i8::try_from(disp).ok();
        let mode = match short {
            Some(0) if low != 5 => 0x00,
            Some(_) => 0x40,
            None => 0x80,
        };
        self.bytes.push(mode | reg | low);
        if low == 4 {
            self.bytes.push(0x24);
        }
        match (mode, short) {
            (0x40, Some(short)) => self.bytes.push(short as u8),
            (0x80, _) => self.imm32(disp as u32),
            _ => {}
        }
    }

    /// `op reg, rm` between registers.
    pub fn alu_rr(&mut self, op: Alu, reg: u8, rm: u8) {
        self.rex(true, reg, 0, rm);
        self.raw(&[op as u8, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// `op reg, rm` between 32-bit registers.
    pub fn alu_rr32(&mut self, op: Alu, reg: u8, rm: u8) {
        self.rex(false, reg, 0, rm);
        self.raw(&[op as u8, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    pub fn mov(&mut self, to: u8, from: u8) {
        if to != from {
            self.alu_rr(Alu::Mov, to, from);
        }
    }

    pub fn mov32(&mut self, to: u8, from: u8) {
        self.alu_rr32(Alu::Mov, to, from);
    }

    /// `op reg, [base + disp]`.
    pub fn alu_rm(&mut self, op: Alu, reg: u8, base: u8, disp: i32) {
        self.rex(true, reg, 0, base);
        self.bytes.push(op as u8);
        self.modrm_base(reg, base, disp);
    }

    pub fn load32(&mut self, reg: u8, base: u8, disp: i32) {
        self.rex(false, reg, 0, base);
        self.bytes.push(Alu::Mov as u8);
        self.modrm_base(reg, base, disp);
    }

    /// `cmp left, right` of 1, 2, 4 or 8 bytes; of one byte, between low bytes of RAX to RBX and R8 to R15.
    pub fn compare_sized(&mut self, left: u8, right: u8, size: u8) {
        if size == 2 {
            self.bytes.push(0x66);
        }
        self.rex(size == 8, left, 0, right);
        self.raw(&[if size == 1 { 0x3a } else { 0x3b }, 0xc0 | (left & 7) << 3 | right & 7]);
    }

    /// `mov to, from` of a byte: the low byte of RAX to RBX, or of R8 to R15.
    pub fn mov8(&mut self, to: u8, from: u8) {
        self.rex(false, to, 0, from);
        self.raw(&[0x8a, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// `movzx to, from` of 32 and 16 bits.
    pub fn zero_extend16(&mut self, to: u8, from: u8) {
        self.rex(false, to, 0, from);
        self.raw(&[0x0f, 0xb7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// `mov to, from` of 16 bits, which keeps the rest.
    pub fn mov16(&mut self, to: u8, from: u8) {
        self.bytes.push(0x66);
        self.mov32(to, from);
    }

    /// `lea reg, [base + disp]` of 32 bits, or of 16, which keeps the rest.
    pub fn lea_narrow(&mut self, reg: u8, base: u8, disp: i32, bytes: u8) {
        if bytes == 2 {
            self.bytes.push(0x66);
        }
        self.rex(false, reg, 0, base);
        self.bytes.push(0x8d);
        self.modrm_base(reg, base, disp);
    }

    /// `test eax, value`: no more than a place for a number where RFLAGS does not matter.
    pub fn test_eax(&mut self, value: u32) {
        self.bytes.push(0xa9);
        self.imm32(value);
    }

    /// `push reg` on the host's stack.
    pub fn push(&mut self, reg: u8) {
        if reg >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0x50 | reg & 7);
    }

    /// `pop reg` from the host's stack.
    pub fn pop(&mut self, reg: u8) {
        if reg >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0x58 | reg & 7);
    }

    /// `lea reg, [base + disp]`.
    pub fn lea(&mut self, reg: u8, base: u8, disp: i32) {
        self.rex(true, reg, 0, base);
        self.bytes.push(0x8d);
        self.modrm_base(reg, base, disp);
    }

    /// `lea reg, [base + index * 2^scale + disp]` at 64 or 32 bits; either register may be absent.
    pub fn lea_full(&mut self, reg: u8, address: Address, wide: bool) {
        let Address { base, index, scale, disp } = address;
        let (Some(index), base) = (index, base) else {
            let Some(base) = base else {
                // [disp32] without base and index.
                self.rex(wide, reg, 0, 0);
                self.raw(&[0x8d, (reg & 7) << 3 | 4, 0x25]);
                return self.imm32(disp as u32);
            };
            self.rex(wide, reg, 0, base);
            self.bytes.push(0x8d);
            return self.modrm_base(reg, base, disp);
        };
        self.rex(wide, reg, index, base.unwrap_or(5));
        let sib = scale << 6 | (index & 7) << 3;
        match base {
            Some(base) => {
                self.raw(&[0x8d, 0x80 | (reg & 7) << 3 | 4, sib | base & 7]);
            }
            None => self.raw(&[0x8d, (reg & 7) << 3 | 4, sib | 5]),
        }
        self.imm32(disp as u32);
    }

    /// `op reg, imm32` with the opcode extension of group 1.
    fn group1(&mut self, extension: u8, reg: u8, value: i32, wide: bool) {
        self.rex(wide, 0, 0, reg);
        if let Ok(short) = i8::try_from(value) {
            self.raw(&[0x83, 0xc0 | extension << 3 | reg & 7, short as u8]);
        } else {
            self.raw(&[0x81, 0xc0 | extension << 3 | reg & 7]);
            self.imm32(value as u32);
        }
    }

    pub fn add_imm(&mut self, reg: u8, value: i32) {
        self.group1(0, reg, value, true);
    }

    pub fn cmp_imm(&mut self, reg: u8, value: i32) {
        self.group1(7, reg, value, true);
    }

    pub fn cmp_imm32(&mut self, reg: u8, value: i32) {
        self.group1(7, reg, value, false);
    }

    pub fn or_imm32(&mut self, reg: u8, value: i32) {
        self.group1(1, reg, value, false);
    }

    pub fn and_imm32(&mut self, reg: u8, value: i32) {
        self.group1(4, reg, value, false);
    }

    /// Shift of a register by an immediate: 4 is SHL, 5 SHR, 7 SAR.
    pub fn shift(&mut self, extension: u8, reg: u8, count: u8, wide: bool) {
        self.rex(wide, 0, 0, reg);
        self.raw(&[0xc1, 0xc0 | extension << 3 | reg & 7, count]);
    }

    /// `rorx to, from, count` of 32 bits: keeps flags. Both registers are R8 to R15.
    pub fn rorx32(&mut self, to: u8, from: u8, count: u8) {
        self.raw(&[0xc4, 0x43, 0x7b, 0xf0, 0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    /// `test reg, imm32` of 32 bits.
    pub fn test_imm32(&mut self, reg: u8, value: u32) {
        self.rex(false, 0, 0, reg);
        self.raw(&[0xf7, 0xc0 | reg & 7]);
        self.imm32(value);
    }

    /// `not reg32`.
    pub fn not32(&mut self, reg: u8) {
        self.rex(false, 0, 0, reg);
        self.raw(&[0xf7, 0xd0 | reg & 7]);
    }

    /// `cmp byte [base], 0`.
    pub fn cmp_byte_zero(&mut self, base: u8) {
        self.rex(false, 0, 0, base);
        self.bytes.push(0x80);
        self.modrm_base(7, base, 0);
        self.bytes.push(0);
    }

    /// `movzx reg32, byte [base]`.
    pub fn load_byte(&mut self, reg: u8, base: u8) {
        self.rex(false, reg, 0, base);
        self.raw(&[0x0f, 0xb6]);
        self.modrm_base(reg, base, 0);
    }

    /// Exchanges the low two bytes of RAX, RCX, RDX or RBX.
    pub fn swap_bytes(&mut self, register: u8) {
        self.raw(&[0x86, 0xc4 | (register & 3) << 3 | register & 3]);
    }

    pub fn xchg(&mut self, a: u8, b: u8) {
        self.rex(true, a, 0, b);
        self.raw(&[0x87, 0xc0 | (a & 7) << 3 | b & 7]);
    }

    /// `neg reg`.
    pub fn neg(&mut self, reg: u8) {
        self.rex(true, 0, 0, reg);
        self.raw(&[0xf7, 0xd8 | reg & 7]);
    }

    /// `imul reg, reg, value`.
    pub fn imul_imm(&mut self, reg: u8, value: i32) {
        self.rex(true, reg, 0, reg);
        self.raw(&[0x69, 0xc0 | (reg & 7) << 3 | reg & 7]);
        self.imm32(value as u32);
    }

    pub fn mov_imm32(&mut self, reg: u8, value: u32) {
        self.rex(false, 0, 0, reg);
        self.bytes.push(0xb8 | reg & 7);
        self.imm32(value);
    }

    /// As [`Asm::mov_imm32`], of a number that is noted.
    pub fn mov_number(&mut self, reg: u8, number: u32, refers: Refers) {
        self.mov_imm32(reg, number);
        self.refer(4, refers);
    }

    /// The last bytes are a number that refers to something.
    pub fn refer(&mut self, bytes: usize, refers: Refers) {
        let at = self.bytes.len() - bytes;
        if let Some(references) = &mut self.references {
            references.push(Reference { at, refers });
        }
    }

    pub fn mov_imm64(&mut self, reg: u8, value: u64) {
        self.rex(true, 0, 0, reg);
        self.bytes.push(0xb8 | reg & 7);
        self.raw(&value.to_le_bytes());
    }

    /// `cmp dword [base], imm32`.
    pub fn cmp_dword(&mut self, base: u8, value: u32) {
        self.rex(false, 0, 0, base);
        self.bytes.push(0x81);
        self.modrm_base(7, base, 0);
        self.imm32(value);
    }

    /// `jmp [base + disp]`.
    pub fn jmp_mem(&mut self, base: u8, disp: i32) {
        self.rex(false, 0, 0, base);
        self.bytes.push(0xff);
        self.modrm_base(4, base, disp);
    }

    /// `jmp reg`.
    pub fn jmp_reg(&mut self, reg: u8) {
        self.rex(false, 0, 0, reg);
        self.raw(&[0xff, 0xe0 | reg & 7]);
    }

    fn fixup(&mut self, label: Label) -> u64 {
        let at = self.bytes.len();
        self.fixups.push((at, label));
        self.imm32(0);
        self.base + at as u64
    }

    /// `op reg, [base + index + disp]` at 64 bits; `0x89` stores, `0x8b` loads, `0x8f` (with register 0) pops.
    pub fn operand(&mut self, opcode: u8, reg: u8, base: u8, index: Option<u8>, disp: i32) {
        self.any_operand(opcode, reg, Address { base: Some(base), index, scale: 0, disp }, true);
    }

    /// As [`Asm::operand`], at 1, 2, 4 or 8 bytes; short loads are zero-extended. Stores of a byte have
    /// their own opcode, and R8 to R15 or a low byte of RAX to RBX in `reg`.
    pub fn operand_sized(&mut self, opcode: u8, reg: u8, at: Address, bytes: u8) {
        match (bytes, opcode) {
            (1, 0x8b) => self.load_narrow(reg, at, 0xb6),
            (2, 0x8b) => self.load_narrow(reg, at, 0xb7),
            (1, _) => self.any_operand(opcode, reg, at, false),
            (2, _) => {
                self.bytes.push(0x66);
                self.any_operand(opcode, reg, at, false);
            }
            (4, _) => self.any_operand(opcode, reg, at, false),
            _ => self.any_operand(opcode, reg, at, true),
        }
    }

    /// `movzx reg32, word [at]`, or a byte.
    fn load_narrow(&mut self, reg: u8, at: Address, opcode: u8) {
        self.lea_full(reg, at, true);
        self.rex(false, reg, 0, reg);
        self.raw(&[0x0f, opcode]);
        self.modrm_base(reg, reg, 0);
    }

    /// As [`Asm::operand`], at 32 bits.
    pub fn operand32(&mut self, opcode: u8, reg: u8, base: u8, index: Option<u8>, disp: i32) {
        self.any_operand(opcode, reg, Address { base: Some(base), index, scale: 0, disp }, false);
    }

    fn any_operand(&mut self, opcode: u8, reg: u8, address: Address, wide: bool) {
        let Address { base, index, disp, .. } = address;
        let base = base.unwrap_or(S1);
        let Some(index) = index else {
            self.rex(wide, reg, 0, base);
            self.bytes.push(opcode);
            return self.modrm_base(reg, base, disp);
        };
        self.rex(wide, reg, index, base);
        let sib = (index & 7) << 3 | base & 7;
        let reg = (reg & 7) << 3;
        match i8::try_from(disp) {
            Ok(short) => self.raw(&[opcode, 0x40 | reg | 4, sib, short as u8]),
            Err(_) => {
                self.raw(&[opcode, 0x80 | reg | 4, sib]);
                self.imm32(disp as u32);
            }
        }
    }

    /// Conditional jump; returns the address of its displacement.
    pub fn jcc(&mut self, condition: u8, label: Label) -> u64 {
        self.raw(&[0x0f, 0x80 | condition]);
        self.fixup(label)
    }

    /// Jump; returns the address of its displacement.
    pub fn jmp(&mut self, label: Label) -> u64 {
        self.bytes.push(0xe9);
        self.fixup(label)
    }

    /// Call; returns the address of its displacement.
    pub fn call(&mut self, label: Label) -> u64 {
        self.bytes.push(0xe8);
        self.fixup(label)
    }

    /// `ret`.
    pub fn ret(&mut self) {
        self.bytes.push(0xc3);
    }

    /// `jrcxz` over the `skipped` bytes that follow.
    pub fn jrcxz(&mut self, skipped: u8) {
        self.raw(&[0xe3, skipped]);
    }

    fn relative(&mut self, opcode: u8, target: u64) {
        self.bytes.push(opcode);
        let next = self.here() + 4;
        self.imm32(target.wrapping_sub(next) as u32);
        self.refer(4, Refers::Thunk(target));
    }

    /// Jump to an address in the same code memory.
    pub fn jmp_to(&mut self, target: u64) {
        self.relative(0xe9, target);
    }

    /// Call of an address in the same code memory.
    pub fn call_to(&mut self, target: u64) {
        self.relative(0xe8, target);
    }
}

/// An address expression over host registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Address {
    pub base: Option<u8>,
    pub index: Option<u8>,
    /// log2 of the scale.
    pub scale: u8,
    pub disp: i32,
}
