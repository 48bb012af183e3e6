//! Makes operands reach the data pages, and puts there what instructions need to find.

use super::Drawn;
use crate::case::{Case, Mode, Patch};
use crate::layout::{self, USER_CS, USER_DS, USER32_CS, local};
use crate::random::Random;
use crate::{CODE_ADDRESS, CODE_SIZE, DATA_ADDRESS, DATA_SIZE};
use iced_x86::{
    Code, Instruction, InstructionInfoFactory, MemorySize, Mnemonic as M, OpAccess, OpKind, Register,
};

/// Which registers of a case have been given values for a purpose.
pub(super) struct Aim {
    taken: u16,
    /// Registers that instructions so far write.
    written: u16,
}

const RSP: usize = 4;
const DATA_END: u64 = DATA_ADDRESS + DATA_SIZE as u64;

impl Aim {
    pub(super) fn new() -> Self {
        Aim { taken: 0, written: 0 }
    }

    fn take(&mut self, register: usize) -> bool {
        let free = self.taken >> register & 1 == 0;
        self.taken |= 1 << register;
        free
    }

    /// Prepares a case for one more instruction; false if that one cannot be part of it. `far_target` is where far
    /// transfers shall lead.
    pub(super) fn point(
        &mut self,
        random: &mut Random,
        case: &mut Case,
        drawn: &mut Drawn,
        far_target: u64,
    ) -> bool {
        let instruction = drawn.instruction;
        if !self.masks(random, case, &instruction) {
            return false;
        }
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if repeats && instruction.is_string_instruction() && self.take(1) {
            let most = random.pick(&[48, 48, 48, 48, 600, 1]);
            case.gprs[1] = random.below(most) | Self::unused_half(random, case, &instruction);
        }
        self.implicit(random, case, &instruction);
        if repeats && compares_strings(&instruction) && random.one_in(2) {
            self.alike(random, case, &instruction);
        }
        if matches!(instruction.mnemonic(), M::Div | M::Idiv) && random.one_in(2) && self.take(2) {
            case.gprs[2] = random.pick(&[0, 0, 1, u64::MAX]);
        }
        self.selector_operand(random, case, &instruction);
        if reads_processor_number(case, &instruction) {
            return false;
        }
        if let Some(target) = self.explicit(random, case, drawn) {
            content(random, case, &instruction, target, far_target);
        }
        let stack = case.gprs[RSP].wrapping_add(layout::base(case.selectors[1]));
        if reads_stack_frame(&instruction) {
            content(random, case, &instruction, stack, far_target);
        }
        for used in InstructionInfoFactory::new().info(&instruction).used_registers() {
            let register = used.register().full_register();
            let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            if !reads && register.is_gpr64() {
                self.written |= 1 << register.number();
            }
        }
        if case.mode != Mode::Long && !layout::is_big(case.selectors[1]) {
            case.gprs[RSP] &= 0xffff;
        }
        true
    }

    /// The same byte wherever a comparison of strings is to look, and mostly what it looks for, so that it gets far.
    fn alike(&mut self, random: &mut Random, case: &mut Case, instruction: &Instruction) {
        const AROUND: u64 = 700;
        let byte = random.bits() as u8;
        for (register, segment) in implicit_pointers(instruction) {
            let base = if case.mode == Mode::Long { 0 } else { layout::base(case.selectors[segment]) };
            let linear = case.gprs[register].wrapping_add(base) & 0xffff_ffff;
            let first = linear.saturating_sub(AROUND).max(DATA_ADDRESS);
            put(case, first, &[byte; 2 * AROUND as usize]);
        }
        if self.take(0) && !random.one_in(4) {
            case.gprs[0] = u64::from_le_bytes([byte; 8]);
        }
    }

    /// Pointers that are not in the encoding.
    fn implicit(&mut self, random: &mut Random, case: &mut Case, instruction: &Instruction) {
        for (register, segment) in implicit_pointers(instruction) {
            if self.take(register) {
                let base = if case.mode == Mode::Long { 0 } else { layout::base(case.selectors[segment]) };
                let within = match random.below(8) {
                    0 => DATA_SIZE as u64 - random.below(64),
                    1 => random.below(64),
                    _ => 0x40 + (random.below(DATA_SIZE as u64 - 0x100) & !7),
                };
                let within = if random.one_in(6) { within ^ random.below(8) } else { within };
                case.gprs[register] = (DATA_ADDRESS + within).wrapping_sub(base);
                case.gprs[register] |= Self::unused_half(random, case, instruction);
                if case.mode != Mode::Long {
                    let small = register == RSP && !layout::is_big(case.selectors[1]);
                    case.gprs[register] &= if small { 0xffff } else { 0xffff_ffff };
                }
            }
        }
    }

    /// Sometimes an upper half for the registers of a string instruction that only uses their lower ones.
    fn unused_half(random: &mut Random, case: &Case, instruction: &Instruction) -> u64 {
        let narrow = [OpKind::MemorySegESI, OpKind::MemorySegEDI, OpKind::MemoryESEDI];
        let used = (0..instruction.op_count()).any(|i| narrow.contains(&instruction.op_kind(i)));
        if used && case.mode == Mode::Long && random.one_in(3) { random.bits() << 32 } else { 0 }
    }

    /// EDX:EAX of the XSAVE family: components that both sides have, and rarely ones that neither has. False if it
    /// cannot be set.
    fn masks(&mut self, random: &mut Random, case: &mut Case, instruction: &Instruction) -> bool {
        use M::{
            Xrstor, Xrstor64, Xrstors, Xrstors64, Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt, Xsaveopt64,
        };
        let family =
            [Xrstor, Xrstor64, Xrstors, Xrstors64, Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt, Xsaveopt64];
        /// RAX and RDX.
        const PAIR: u16 = 1 << 0 | 1 << 2;
        if !family.contains(&instruction.mnemonic()) {
            return true;
        }
        if (self.taken | self.written) & PAIR != 0 {
            return false;
        }
        self.taken |= PAIR;
        let absent = if random.one_in(4) { random.bits() & !0x3fff } else { 0 };
        case.gprs[0] = random.below(8) | absent & 0xffff_ffff;
        case.gprs[2] = absent >> 32 & 0x3fff_ffff;
        true
    }

    /// Register operands that hold a selector.
    fn selector_operand(&mut self, random: &mut Random, case: &mut Case, instruction: &Instruction) {
        let wanted = match instruction.mnemonic() {
            M::Mov if instruction.op0_register().is_segment_register() => 1,
            M::Lar | M::Lsl => 1,
            M::Verr | M::Verw => 0,
            _ => return,
        };
        if instruction.op_kind(wanted) == OpKind::Register {
            let register = instruction.op_register(wanted).full_register();
            if register.is_gpr64() && self.take(register.number()) {
                case.gprs[register.number()] = u64::from(draw_selector(random));
            }
        }
    }

    /// Points the memory operand at the data pages by choosing its base register, or its displacement. Returns its
    /// linear address if that was possible.
    fn explicit(&mut self, random: &mut Random, case: &mut Case, drawn: &mut Drawn) -> Option<u64> {
        let instruction = drawn.instruction;
        let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
        if !memory {
            return None;
        }
        let segment_base = segment_base(case, instruction.memory_segment());
        let target = draw_target(random, &instruction);
        let address_bits = address_bits(&instruction, case.mode);
        let mask = if address_bits == 64 { u64::MAX } else { (1 << address_bits) - 1 };
        if matches!(instruction.memory_base(), Register::None | Register::RIP | Register::EIP) {
            return displace(drawn, target.wrapping_sub(segment_base), case.mode).then_some(target);
        }
        let base = instruction.memory_base().full_register();
        if !base.is_gpr64() || !self.take(base.number()) {
            return None;
        }
        let index = instruction.memory_index();
        let mut scaled = 0;
        if index != Register::None && !index.is_vector_register() {
            let number = index.full_register().number();
            if number != base.number() {
                if self.take(number) {
                    case.gprs[number] = random.below(64);
                }
                scaled = case.gprs[number].wrapping_mul(u64::from(instruction.memory_index_scale()));
            }
        }
        let offset = target.wrapping_sub(segment_base).wrapping_sub(instruction.memory_displacement64());
        let value = if index.full_register() == base {
            offset / (1 + u64::from(instruction.memory_index_scale()))
        } else {
            offset.wrapping_sub(scaled)
        };
        let value = value & mask;
        let upper = if address_bits < 64 && case.mode == Mode::Long { random.bits() << 32 } else { 0 };
        case.gprs[base.number()] = if random.one_in(4) { value | upper } else { value };
        Some(target)
    }
}

fn compares_strings(instruction: &Instruction) -> bool {
    use M::{Cmpsb, Cmpsd, Cmpsq, Cmpsw, Scasb, Scasd, Scasq, Scasw};
    let names = [Cmpsb, Cmpsw, Cmpsd, Cmpsq, Scasb, Scasw, Scasd, Scasq];
    instruction.is_string_instruction() && names.contains(&instruction.mnemonic())
}

/// Whether LSL meets the descriptor whose limit is the number of the host's processor that happens to run the case.
fn reads_processor_number(case: &Case, instruction: &Instruction) -> bool {
    if instruction.mnemonic() != M::Lsl || instruction.op_kind(1) != OpKind::Register {
        return false;
    }
    let register = instruction.op1_register().full_register();
    register.is_gpr64() && case.gprs[register.number()] & 0xfffc == 0x78
}

/// Writes a displacement that leads to `offset`.
fn displace(drawn: &mut Drawn, offset: u64, mode: Mode) -> bool {
    let Some((at, size)) = drawn.displacement else { return false };
    let relative = drawn.instruction.is_ip_rel_memory_operand();
    let value = if relative { offset.wrapping_sub(drawn.instruction.next_ip()) } else { offset };
    if size < 2 || size == 2 && mode != Mode::Segmented16 || at + size > drawn.bytes.len() {
        return false;
    }
    drawn.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    size >= 4 || value <= 0xffff
}

fn address_bits(instruction: &Instruction, mode: Mode) -> u32 {
    let register = match instruction.memory_base() {
        Register::None => instruction.memory_index(),
        base => base,
    };
    match register.size() {
        2 => 16,
        4 => 32,
        8 => 64,
        _ => mode.bits(),
    }
}

fn segment_base(case: &Case, segment: Register) -> u64 {
    let long = case.mode == Mode::Long;
    match segment {
        Register::FS if long => case.fs_base,
        Register::GS if long => case.gs_base,
        _ if long => 0,
        Register::ES => layout::base(case.selectors[0]),
        Register::SS => layout::base(case.selectors[1]),
        Register::DS => layout::base(case.selectors[2]),
        Register::FS => layout::base(case.selectors[3]),
        Register::GS => layout::base(case.selectors[4]),
        _ => layout::code_base(case.mode),
    }
}

fn draw_target(random: &mut Random, instruction: &Instruction) -> u64 {
    let last = DATA_SIZE as u64;
    match random.below(16) {
        0 => DATA_END - random.below(40),
        1 => DATA_ADDRESS + 0x1000 - random.below(40),
        2 => match random.below(8) {
            0 => random.bits(),
            1 => DATA_ADDRESS.wrapping_sub(random.below(40)),
            2 => CODE_ADDRESS + random.below(CODE_SIZE as u64),
            3 => 0x7fff_ffff_ffff_u64.wrapping_sub(random.below(64)),
            4 => 0xffff_8000_0000_0000_u64.wrapping_sub(random.below(64)),
            5 => 0u64.wrapping_sub(random.below(64)),
            _ => random.bits() >> random.below(64),
        },
        3..=5 => DATA_ADDRESS + random.below(last - 64),
        // The areas of FXSAVE and XSAVE need room.
        6..=7 if instruction.memory_size().size() < 100 => DATA_ADDRESS + (random.below(last - 128) & !7),
        _ => DATA_ADDRESS + (random.below(last - 1024) & !63),
    }
}

/// Registers with the segment they are used with, by position in [`crate::case::Selectors`].
fn implicit_pointers(instruction: &Instruction) -> Vec<(usize, usize)> {
    const ES: usize = 0;
    const SS: usize = 1;
    const DS: usize = 2;
    let mut registers = Vec::new();
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => registers.push((6, DS)),
            OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI => registers.push((7, DS)),
            OpKind::MemoryESRDI | OpKind::MemoryESEDI | OpKind::MemoryESDI => registers.push((7, ES)),
            _ => {}
        }
    }
    if instruction.is_stack_instruction() {
        registers.push((RSP, SS));
    }
    if matches!(instruction.mnemonic(), M::Enter | M::Leave) {
        registers.push((5, SS));
    }
    if instruction.mnemonic() == M::Xlatb {
        registers.push((3, DS));
    }
    registers
}

fn reads_stack_frame(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Retf | M::Iret | M::Iretd | M::Iretq | M::Pop | M::Popf | M::Popfd | M::Popfq
    )
}

fn draw_selector(random: &mut Random) -> u16 {
    match random.below(10) {
        0 => (random.bits() as u16) & 0x7,
        1 => random.bits() as u16 | 4,
        2 => random.pick(&[KERNEL_DATA, layout::KERNEL_CS, layout::KERNEL_TR, 0x50, 0x60, 0x8b]),
        _ => random.pick(&layout::DATA_SELECTORS),
    }
}

const KERNEL_DATA: u16 = 0x18;

/// A code selector for a far transfer, and the base of its segment.
fn draw_code_selector(random: &mut Random, mode: Mode) -> (u16, u64) {
    let usual = layout::code_selector(mode);
    let selector = match random.below(8) {
        0..=2 => usual,
        3 => draw_selector(random),
        _ => random.pick(&[
            USER_CS,
            USER32_CS,
            local(0),
            local(1),
            local(8),
            local(9),
            USER_DS,
            layout::KERNEL_CS,
            local(0) & !3,
        ]),
    };
    (selector, layout::base(selector))
}

fn put(case: &mut Case, linear: u64, bytes: &[u8]) {
    let at = linear.wrapping_sub(DATA_ADDRESS);
    if at < DATA_SIZE as u64 {
        case.patches.push(Patch { at: at as usize, bytes: bytes.to_vec() });
    }
}

/// Puts what an instruction needs to find at its operand.
fn content(random: &mut Random, case: &mut Case, instruction: &Instruction, target: u64, far_target: u64) {
    match instruction.mnemonic() {
        M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => put_xsave_area(random, case, target),
        M::Fxrstor | M::Fxrstor64 => put_mxcsr(random, case, target.wrapping_add(24)),
        M::Ldmxcsr | M::Vldmxcsr => put_mxcsr(random, case, target),
        M::Fldenv | M::Frstor | M::Fldcw if random.one_in(2) => {
            let control = 0x40 | (random.bits() as u16 & 0xf3f);
            put(case, target, &control.to_le_bytes());
        }
        M::Popf | M::Popfd | M::Popfq => {
            let flags = random.bits() & if random.one_in(3) { u64::MAX } else { !0x4_4100 };
            put(case, target, &flags.to_le_bytes());
        }
        M::Pop | M::Mov | M::Lar | M::Lsl | M::Verr | M::Verw
            if instruction.mnemonic() != M::Pop && instruction.memory_size() == MemorySize::UInt16
                || instruction.op0_register().is_segment_register() =>
        {
            let selector = draw_selector(random).to_le_bytes();
            put(case, target, &selector);
        }
        M::Cmpxchg8b | M::Cmpxchg16b if random.one_in(2) => {
            let wide = instruction.mnemonic() == M::Cmpxchg16b;
            let half = if wide { 8 } else { 4 };
            let (low, high) = (case.gprs[0].to_le_bytes(), case.gprs[2].to_le_bytes());
            put(case, target, &[&low[..half], &high[..half]].concat());
        }
        M::Cmpxchg if random.one_in(2) => put(case, target, &case.gprs[0].to_le_bytes()),
        M::Fbld if random.one_in(2) => {
            let digits: Vec<u8> = (0..9).map(|_| (random.below(10) | random.below(10) << 4) as u8).collect();
            put(case, target, &digits);
        }
        _ => far_pointer(random, case, instruction, target, far_target),
    }
}

/// Pointers of far transfers and LDS and its kin, and the frames of RETF and IRET.
fn far_pointer(
    random: &mut Random,
    case: &mut Case,
    instruction: &Instruction,
    target: u64,
    far_target: u64,
) {
    let (selector, base) = draw_code_selector(random, case.mode);
    let offset = far_target.wrapping_sub(base);
    let size = match instruction.code() {
        Code::Jmp_m1616 | Code::Call_m1616 | Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Jmp_m1632 | Code::Call_m1632 | Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
        Code::Jmp_m1664 | Code::Call_m1664 | Code::Retfq | Code::Retfq_imm16 | Code::Iretq => 8,
        _ => {
            let size = match instruction.memory_size() {
                MemorySize::SegPtr16 => 2,
                MemorySize::SegPtr32 => 4,
                MemorySize::SegPtr64 => 8,
                _ => return,
            };
            let selector = draw_selector(random).to_le_bytes();
            put(case, target.wrapping_add(size), &selector);
            return;
        }
    };
    let word = |value: u64| value.to_le_bytes()[..size].to_vec();
    let mut frame = [word(offset), word(u64::from(selector))].concat();
    if matches!(instruction.mnemonic(), M::Iret | M::Iretd | M::Iretq) {
        let flags = 0x202 | random.bits() & 0x8d5 | if random.one_in(8) { 0x100 } else { 0 };
        frame.extend(word(flags));
        // IRETQ, and a return to an outer level, take a stack too.
        let stack = DATA_ADDRESS + 0x400 + random.below(64) * 8;
        let selector = if random.one_in(3) { draw_selector(random) } else { USER_DS };
        frame.extend(word(stack.wrapping_sub(layout::base(selector))));
        frame.extend(word(u64::from(selector)));
    }
    put(case, target, &frame);
}

fn put_mxcsr(random: &mut Random, case: &mut Case, at: u64) {
    let value = match random.below(8) {
        0 => random.bits() as u32,
        1..=3 => random.bits() as u32 & 0xffff,
        _ => 0x1f80 | random.bits() as u32 & 0xe03f,
    };
    put(case, at, &value.to_le_bytes());
}

/// The header of an XSAVE area, standard or compacted, legal mostly, and MXCSR.
fn put_xsave_area(random: &mut Random, case: &mut Case, target: u64) {
    put_mxcsr(random, case, target.wrapping_add(24));
    let mut header = [0; 64];
    // Bits that the host has beyond the guest (AVX-512's) are not drawn; some that neither has are.
    let absent = if random.one_in(12) { 1 << random.pick(&[3_u32, 4, 8, 10, 12, 20, 62, 63]) } else { 0 };
    let state = random.below(8) | absent;
    header[..8].copy_from_slice(&state.to_le_bytes());
    if random.one_in(2) {
        let extra = if random.one_in(12) { 1 << random.pick(&[3_u32, 4, 8, 12, 62]) } else { 0 };
        let components = if random.one_in(8) { random.below(8) } else { state & 7 | random.below(8) };
        header[8..16].copy_from_slice(&(1 << 63 | components | extra).to_le_bytes());
    }
    if random.one_in(20) {
        // Not where XCOMP_BV has the components of AVX-512, AMX and others between.
        header[11 + random.below(53) as usize] = random.bits() as u8;
    }
    put(case, target.wrapping_add(512), &header);
}
