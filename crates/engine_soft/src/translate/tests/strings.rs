//! Repeated string instructions against a model that does one byte after the other.

use super::{NoDevices, Random};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE, DATA, UNMAPPED};
use engine::VmExit;
use iced_x86::code_asm::CodeAssembler;

const DF: u64 = 1 << 10;
const ZF: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: u64 = 0x8d5;

/// Opcode of the byte form; the other ones' is one more.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Movs = 0xa4,
    Cmps = 0xa6,
    Stos = 0xaa,
    Scas = 0xae,
}

#[derive(Clone, Debug, PartialEq)]
struct End {
    rcx: u64,
    rsi: u64,
    rdi: u64,
    /// The six arithmetic flags.
    flags: u64,
    /// Linear address of a page fault.
    fault: Option<u64>,
}

#[derive(Debug)]
struct Case {
    kind: Kind,
    size: u64,
    /// REPNE.
    until: bool,
    backwards: bool,
    rax: u64,
    start: End,
}

/// Flags of `left - right` of some bytes (SDM 1, 3.4.3.1).
fn compared(left: u64, right: u64, size: u64) -> u64 {
    let top = 8 * size - 1;
    let difference = left.wrapping_sub(right) & u64::MAX >> (63 - top);
    let even = (difference as u8).count_ones().is_multiple_of(2);
    let overflow = (left ^ right) & (left ^ difference);
    u64::from(left < right)
        | u64::from(even) << 2
        | u64::from(left & 15 < right & 15) << 4
        | u64::from(difference == 0) << 6
        | (difference >> top & 1) << 7
        | (overflow >> top & 1) << 11
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let kinds = [Kind::Movs, Kind::Movs, Kind::Stos, Kind::Cmps, Kind::Scas];
        let kind = kinds[random.below(5) as usize];
        let area = UNMAPPED - DATA;
        let rdi = DATA + random.below(area);
        let near = [0, 1, 2, 3, 5, 8, 13, 64, 4096][random.below(9) as usize];
        let rsi = match random.below(4) {
            0 => rdi.wrapping_add(near),
            1 => rdi.wrapping_sub(near),
            2 => UNMAPPED - random.below(64),
            _ => DATA + random.below(area),
        };
        let most = if random.chance(30) { 12_000 } else { 300 };
        let rcx = random.below(most);
        let flags = random.next() & ARITHMETIC;
        Case {
            kind,
            size: 1 << random.below(4),
            until: random.chance(30),
            backwards: random.chance(40),
            rax: if random.chance(50) { 0 } else { random.next() },
            start: End { rcx, rsi, rdi, flags, fault: None },
        }
    }

    fn code(&self) -> Vec<u8> {
        let mut code = vec![if self.until { 0xf2 } else { 0xf3 }];
        match self.size {
            2 => code.insert(0, 0x66),
            8 => code.push(0x48),
            _ => {}
        }
        code.push(self.kind as u8 + u8::from(self.size > 1));
        code.push(0xf4);
        code
    }

    /// What the manual says, on the bytes from [`DATA`] to [`UNMAPPED`].
    fn model(&self, data: &mut [u8]) -> End {
        let mut at = self.start.clone();
        let step = if self.backwards { self.size.wrapping_neg() } else { self.size };
        let fault =
            |address: u64| (address.wrapping_add(self.size) > UNMAPPED).then(|| address.max(UNMAPPED));
        let reads = matches!(self.kind, Kind::Movs | Kind::Cmps);
        while at.rcx > 0 {
            // Silicon tells of the second operand of CMPS first.
            let source = if reads { fault(at.rsi) } else { None };
            let target = fault(at.rdi);
            let order = if self.kind == Kind::Cmps { [target, source] } else { [source, target] };
            if let Some(address) = order.into_iter().flatten().next() {
                if matches!(self.kind, Kind::Cmps | Kind::Scas) {
                    at.flags = self.start.flags;
                }
                at.fault = Some(address);
                break;
            }
            let place = |address: u64| (address - DATA) as usize..(address - DATA + self.size) as usize;
            let rax = self.rax.to_le_bytes()[..self.size as usize].to_vec();
            let source = if reads { data[place(at.rsi)].to_vec() } else { rax };
            match self.kind {
                Kind::Movs | Kind::Stos => data[place(at.rdi)].copy_from_slice(&source),
                Kind::Cmps | Kind::Scas => {
                    let number =
                        |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
                    at.flags = compared(number(&source), number(&data[place(at.rdi)]), self.size);
                }
            }
            at.rdi = at.rdi.wrapping_add(step);
            at.rsi = if reads { at.rsi.wrapping_add(step) } else { at.rsi };
            at.rcx -= 1;
            if !matches!(self.kind, Kind::Movs | Kind::Stos) && (at.flags & ZF != 0) == self.until {
                break;
            }
        }
        at
    }

    fn run(&self, cpu: &mut Cpu) -> End {
        let mut state = harness::long_state();
        state.gprs[0] = self.rax;
        (state.gprs[1], state.gprs[6], state.gprs[7]) = (self.start.rcx, self.start.rsi, self.start.rdi);
        state.rflags = 2 | if self.backwards { DF } else { 0 } | self.start.flags;
        cpu.restore(&state).expect("the state is legal");
        let exit = cpu.run(&NoDevices, None);
        let end = cpu.save();
        End {
            rcx: end.gprs[1],
            rsi: end.gprs[6],
            rdi: end.gprs[7],
            flags: end.rflags & ARITHMETIC,
            fault: (exit != VmExit::Halted).then_some(end.cr2),
        }
    }
}

#[test]
fn repeated_instructions_do_one_byte_after_the_other() {
    let start = harness::long_state();
    let mut cpus = [harness::cpu_in(harness::memory(), &start), harness::cpu_in(harness::memory(), &start)];
    cpus[1].enable_translation(Default::default()).expect("the host has memory");
    let mut random = Random(0x9e37_79b9);
    let (mut faults, mut long) = (0, 0);
    for number in 0..6000 {
        let case = Case::random(&mut random);
        let mut data = vec![0; (UNMAPPED - DATA) as usize];
        // Mostly the same, so that comparisons get somewhere.
        let different = [20, 200, 5000, 20_000][random.below(4) as usize];
        data.iter_mut().for_each(|byte| *byte = u8::from(random.below(different) == 0));
        if random.chance(50) {
            data.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 >> 3) as u8);
        }
        let before = data.clone();
        // Below the data, pages are mapped, too: cases that reach there are left out.
        let low = case.start.rdi.min(case.start.rsi);
        if case.backwards && low - (case.start.rcx * case.size).min(low) < DATA + 8 {
            continue;
        }
        if case.start.rsi < DATA {
            continue;
        }
        let wanted = case.model(&mut data);
        let compares = matches!(case.kind, Kind::Cmps | Kind::Scas);
        long += u64::from(compares && case.start.rcx - wanted.rcx > 1000);
        faults += u64::from(wanted.fault.is_some());
        for (tier, cpu) in ["interpreted", "translated"].into_iter().zip(&mut cpus) {
            cpu.memory.write(CODE, &case.code()).expect("is RAM");
            cpu.memory.write(DATA, &before).expect("is RAM");
            if let Some(translator) = &mut cpu.translator {
                // The page of the last program shall not rest.
                translator.pages.clear();
            }
            assert_eq!(case.run(cpu), wanted, "{tier}, case {number}: {case:x?}");
            let mut after = vec![0; data.len()];
            cpu.memory.read(DATA, &mut after).expect("is RAM");
            let place = after.iter().zip(&data).position(|(got, wanted)| got != wanted);
            assert_eq!(place, None, "{tier}, case {number}: {case:x?}");
        }
    }
    assert!(faults > 100, "{faults} faults");
    assert!(long > 100, "{long} comparisons got far");
}

/// A program copies one of two functions over the code behind the copying instruction, and to another page, and
/// calls both.
fn overwriting(a: &mut CodeAssembler) -> Result<Vec<u8>, iced_x86::IcedError> {
    use iced_x86::code_asm::*;
    let (mut again, mut behind) = (a.create_label(), a.create_label());
    a.xor(ebx, ebx)?;
    a.mov(ebp, 6)?;
    a.set_label(&mut again)?;
    a.mov(esi, ebp)?;
    a.and(esi, 1)?;
    a.shl(esi, 3)?;
    a.add(esi, DATA as u32)?;
    a.mov(edi, CODE as u32 + 0x1000)?;
    a.mov(ecx, 6)?;
    a.rep().movsb()?;
    a.mov(r8, CODE + 0x1000)?;
    a.call(r8)?;
    a.add(ebx, eax)?;
    a.sub(esi, 6)?;
    a.lea(rdi, qword_ptr(behind))?;
    a.mov(ecx, 5)?;
    a.rep().movsb()?;
    a.set_label(&mut behind)?;
    a.mov(eax, 99)?;
    a.lea(ebx, dword_ptr(rbx + rax * 8))?;
    // The page of the function is filled with returns.
    a.mov(eax, 0xc3)?;
    a.mov(edi, CODE as u32 + 0x1000)?;
    a.mov(ecx, 4096)?;
    a.rep().stosb()?;
    a.call(r8)?;
    a.add(ebx, eax)?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()?;
    a.assemble(CODE)
}

#[test]
fn code_that_a_repeated_instruction_overwrites_is_not_run_any_more() {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let code = overwriting(&mut a).expect("the program assembles");
    for translate in [false, true] {
        let mut cpu = harness::cpu();
        if translate {
            cpu.enable_translation(Default::default()).expect("the host has memory");
        }
        cpu.memory.write(CODE, &code).expect("is RAM");
        // mov eax, 1; ret and mov eax, 1000; ret
        cpu.memory.write(DATA, &[0xb8, 1, 0, 0, 0, 0xc3, 0, 0, 0xb8, 0xe8, 3, 0, 0, 0xc3]).expect("is RAM");
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
        // Three rounds with each function: itself, eight times in line, and 0xc3.
        assert_eq!(cpu.save().gprs[3], 3 * (1 + 8 + 0xc3) + 3 * (1000 + 8000 + 0xc3));
    }
}
