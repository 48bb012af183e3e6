//! A trace beside the states that steps of the processor show.

use super::*;
use crate::interp::harness::{self, CODE, DATA};
use engine::{VcpuIo, VmExit};
use iced_x86::code_asm::*;

struct NoDevices;

impl VcpuIo for NoDevices {}

/// A loop with a vector, loads, stores and the stack.
fn program() -> Vec<u8> {
    let mut code = CodeAssembler::new(64).unwrap();
    let mut again = code.create_label();
    code.mov(ecx, 20).unwrap();
    code.mov(rdi, DATA).unwrap();
    code.set_label(&mut again).unwrap();
    code.imul_3(eax, eax, 0x1001).unwrap();
    code.add(eax, 7).unwrap();
    code.mov(qword_ptr(rdi), rax).unwrap();
    code.movd(xmm3, eax).unwrap();
    code.paddd(xmm4, xmm3).unwrap();
    code.push(rax).unwrap();
    code.pop(rdx).unwrap();
    code.dec(ecx).unwrap();
    code.jne(again).unwrap();
    code.hlt().unwrap();
    code.assemble(CODE).unwrap()
}

/// The trace's lines.
fn traced(code: &[u8], start: TraceStart, count: u64) -> (Vec<String>, Cpu) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let trace = Trace::create(&path, start, count).unwrap();
    let mut cpu = cpu(code);
    cpu.set_trace(trace.clone(), 3);
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    trace.flush();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(Trace::create(&path, start, count).is_err(), "a file that is there is not overwritten");
    (text.lines().map(str::to_owned).collect(), cpu)
}

fn cpu(code: &[u8]) -> Cpu {
    let memory = harness::memory();
    memory.write(CODE, code).unwrap();
    let mut state = harness::long_state();
    state.rip = CODE;
    harness::cpu_in(memory, &state)
}

#[test]
fn each_line_says_what_a_step_changed() {
    let code = program();
    let (lines, end) = traced(&code, TraceStart::Count(0), u64::MAX);
    let mut stepped = cpu(&code);
    for line in &lines {
        let before = stepped.seen();
        let (rip, words) = (stepped.rip(), line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((words[0], words[1]), ("3", format!("{rip:016x}").as_str()));
        let at = (rip - CODE) as usize;
        let instruction = Decoder::with_ip(64, &code[at..], rip, 0).decode();
        let bytes: String =
            code[at..at + instruction.len()].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(words[2], bytes);
        let exit = stepped.run(&NoDevices, Some(1));
        let after = stepped.seen();
        let mut wanted: Vec<String> = (0..NAMES.len())
            .filter(|&index| before.numbers[index] != after.numbers[index])
            .map(|index| format!("{}={:x}", NAMES[index], after.numbers[index]))
            .collect();
        wanted.extend((0..16).filter(|&index| before.ymm[index] != after.ymm[index]).map(|index| {
            let bytes: String = after.ymm[index].iter().rev().map(|byte| format!("{byte:02x}")).collect();
            format!("ymm{index}={bytes}")
        }));
        let told: Vec<String> =
            words.iter().filter(|word| word.contains('=')).map(|word| (*word).to_owned()).collect();
        assert_eq!(told, wanted, "{line}");
        if exit == VmExit::Halted {
            break;
        }
    }
    assert_eq!(lines.len(), 2 + 20 * 9 + 1);
    assert_eq!(stepped.save(), end.save());
}

#[test]
fn a_trace_begins_and_ends_where_it_is_told_to() {
    let code = program();
    let (all, _) = traced(&code, TraceStart::Count(0), u64::MAX);
    let (some, _) = traced(&code, TraceStart::Count(17), 5);
    assert_eq!(some, all[17..22]);
    let tenth = u64::from_str_radix(all[9].split(' ').nth(1).unwrap(), 16).unwrap();
    let (from, _) = traced(&code, TraceStart::Address(tenth), 4);
    let first = all.iter().position(|line| line.contains(&format!("{tenth:016x}"))).unwrap();
    assert_eq!(from, all[first..first + 4]);
}
