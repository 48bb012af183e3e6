//! Instructions on fields of the processor, which GS leads to.

use super::{Alu, Asm};

impl Asm {
    fn gs_modrm(&mut self, reg: u8, offset: usize) {
        self.raw(&[(reg & 7) << 3 | 4, 0x25]);
        self.imm32(offset as u32);
    }

    /// `op reg, gs:[offset]`.
    pub fn alu_gs(&mut self, op: Alu, reg: u8, offset: usize) {
        self.bytes.push(0x65);
        self.rex(true, reg, 0, 0);
        self.bytes.push(op as u8);
        self.gs_modrm(reg, offset);
    }

    pub fn load_gs(&mut self, reg: u8, offset: usize) {
        self.alu_gs(Alu::Mov, reg, offset);
    }

    /// `op reg, gs:[offset]` of 32 bits.
    pub fn alu_gs32(&mut self, op: Alu, reg: u8, offset: usize) {
        self.bytes.push(0x65);
        self.rex(false, reg, 0, 0);
        self.bytes.push(op as u8);
        self.gs_modrm(reg, offset);
    }

    pub fn store_gs(&mut self, offset: usize, reg: u8) {
        self.bytes.push(0x65);
        self.rex(true, reg, 0, 0);
        self.bytes.push(0x89);
        self.gs_modrm(reg, offset);
    }

    pub fn store_gs32(&mut self, offset: usize, reg: u8) {
        self.bytes.push(0x65);
        self.rex(false, reg, 0, 0);
        self.bytes.push(0x89);
        self.gs_modrm(reg, offset);
    }

    /// `cmp gs:[offset], value` of 64 bits.
    pub fn cmp_gs_imm(&mut self, offset: usize, value: i32) {
        self.raw(&[0x65, 0x48, 0x81]);
        self.gs_modrm(7, offset);
        self.imm32(value as u32);
    }

    /// `test byte gs:[offset], value`.
    pub fn test_gs8(&mut self, offset: usize, value: u8) {
        self.raw(&[0x65, 0xf6]);
        self.gs_modrm(0, offset);
        self.bytes.push(value);
    }

    /// `test gs:[offset], reg` of 32 bits.
    pub fn test_gs32(&mut self, offset: usize, reg: u8) {
        self.bytes.push(0x65);
        self.rex(false, reg, 0, 0);
        self.bytes.push(0x85);
        self.gs_modrm(reg, offset);
    }

    /// `cmp byte gs:[offset], value`.
    pub fn cmp_gs8(&mut self, offset: usize, value: u8) {
        self.raw(&[0x65, 0x80]);
        self.gs_modrm(7, offset);
        self.bytes.push(value);
    }

    /// `op dword gs:[offset], value`.
    pub fn alu_gs32_imm(&mut self, op: Alu, offset: usize, value: u32) {
        self.raw(&[0x65, 0x81]);
        self.gs_modrm(op as u8 >> 3, offset);
        self.imm32(value);
    }

    /// `sub dword gs:[offset], value`.
    pub fn sub_gs32(&mut self, offset: usize, value: u8) {
        self.raw(&[0x65, 0x83]);
        self.gs_modrm(5, offset);
        self.bytes.push(value);
    }

    /// `bt dword gs:[offset], bit`.
    pub fn bt_gs32(&mut self, offset: usize, bit: u8) {
        self.raw(&[0x65, 0x0f, 0xba]);
        self.gs_modrm(4, offset);
        self.bytes.push(bit);
    }

    /// `push gs:[offset]` on the host's stack.
    pub fn push_gs(&mut self, offset: usize) {
        self.raw(&[0x65, 0xff]);
        self.gs_modrm(6, offset);
    }

    /// `xchg reg, gs:[offset]`: keeps flags, needs no other register, and takes as long as a locked instruction.
    pub fn xchg_gs(&mut self, reg: u8, offset: usize) {
        self.bytes.push(0x65);
        self.rex(true, reg, 0, 0);
        self.bytes.push(0x87);
        self.gs_modrm(reg, offset);
    }
}
