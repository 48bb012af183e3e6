//! Stops for a debugger, interpreted and translated. What is expected at a stop is what a step-limited run of the
//! same program without a debugger has there.

use crate::cpu::Cpu;
use crate::interp::harness::{CODE, DATA, cpu_in, long_state, memory};
use crate::translate::TranslationSettings;
use engine::{DebugStop, DebugStops, VcpuIo, VmExit, WatchKind, Watchpoint};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

struct NoDevices;

impl VcpuIo for NoDevices {}

fn program(write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

/// The program on an interpreting and a translating processor.
fn both(code: &[u8]) -> [Cpu; 2] {
    [false, true].map(|translates| {
        let memory = memory();
        memory.write(CODE, code).unwrap();
        let mut cpu = cpu_in(memory, &long_state());
        if translates {
            cpu.enable_translation(TranslationSettings::default()).unwrap();
        }
        cpu
    })
}

fn breakpoints(addresses: &[u64]) -> DebugStops {
    DebugStops { breakpoints: addresses.to_vec(), ..DebugStops::default() }
}

fn watching(address: u64, len: u64, kind: WatchKind) -> (DebugStops, VmExit) {
    let watch = Watchpoint { address, len, kind };
    let stops = DebugStops { watchpoints: vec![watch], ..DebugStops::default() };
    (stops, VmExit::Debug(DebugStop::Watchpoint(watch)))
}

fn step(cpu: &mut Cpu) {
    cpu.set_debug_stops(&DebugStops { single_step: true, ..DebugStops::default() });
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Debug(DebugStop::Step));
}

/// Counts in RAX.
fn counting() -> Vec<u8> {
    program(|a| {
        let mut top = a.create_label();
        a.mov(rdi, DATA as i64)?;
        a.set_label(&mut top)?;
        a.add(rax, 1)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.push(rax)?;
        a.pop(rbx)?;
        a.jmp(top)
    })
}

#[test]
fn a_breakpoint_in_a_hot_loop_is_met_each_time_round() {
    let push_rax = counting().iter().position(|&byte| byte == 0x50).unwrap();
    let push = CODE + push_rax as u64;
    for mut cpu in both(&counting()) {
        let original = {
            let mut bytes = [0; 32];
            cpu.memory.read(CODE, &mut bytes).unwrap();
            bytes
        };
        // The loop is hot, and translated as a whole, before anybody wants to stop.
        assert_eq!(cpu.run(&NoDevices, Some(5000)), VmExit::StepsDone);
        let before = cpu.gpr(0);
        for round in 1..=3 {
            cpu.set_debug_stops(&breakpoints(&[push, CODE + 0x1000 + 9]));
            assert_eq!(cpu.run(&NoDevices, None), VmExit::Debug(DebugStop::Breakpoint));
            assert_eq!((cpu.rip(), cpu.gpr(0)), (push, before + round));
            // It stays where it is.
            assert_eq!(cpu.run(&NoDevices, None), VmExit::Debug(DebugStop::Breakpoint));
            assert_eq!((cpu.rip(), cpu.gpr(0)), (push, before + round));
            step(&mut cpu);
            assert_eq!(cpu.rip(), push + 1);
        }
        let mut bytes = [0; 32];
        cpu.memory.read(CODE, &mut bytes).unwrap();
        assert_eq!(bytes, original);
        cpu.set_debug_stops(&DebugStops::default());
        assert_eq!(cpu.run(&NoDevices, Some(5000)), VmExit::StepsDone);
    }
}

#[test]
fn single_steps_are_the_instructions_of_a_limited_run() {
    let code = program(|a| {
        a.sti()?;
        a.mov(rax, 7_i64)?;
        a.push(rax)?;
        a.popfq()?;
        a.xor(eax, eax)
    });
    for mut cpu in both(&code) {
        let [mut free, _] = both(&code);
        for _ in 0..8 {
            step(&mut cpu);
            assert_eq!(free.run(&NoDevices, Some(1)), VmExit::StepsDone);
            assert_eq!((cpu.rip(), cpu.regs[..16].to_vec()), (free.rip(), free.regs[..16].to_vec()));
            assert_eq!(cpu.rflags(), free.rflags());
        }
    }
}

#[test]
fn stores_of_every_kind_stop_behind_the_instruction() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let stores: [Write; 6] = [
        |a| a.mov(byte_ptr(rdi + 5), al),
        |a| a.add(dword_ptr(rdi + 3), eax),
        |a| a.lock().xadd(qword_ptr(rdi), rax),
        |a| a.lock().inc(dword_ptr(rdi + 4)),
        |a| a.movups(xmmword_ptr(rdi - 8), xmm0),
        |a| a.stosq(),
    ];
    for store in stores {
        let code = program(|a| {
            a.mov(rdi, DATA as i64)?;
            a.mov(rax, 0x0101_0101_0101_0101_i64)?;
            a.mov(rcx, 100_i64)?;
            a.mov(byte_ptr(rdi + 4), al)?;
            a.mov(byte_ptr(rdi + 6), al)?;
            store(a)?;
            a.nop()
        });
        let (stops, wanted) = watching(DATA + 5, 1, WatchKind::Write);
        for mut cpu in both(&code) {
            cpu.set_debug_stops(&stops);
            assert_eq!(cpu.run(&NoDevices, None), wanted);
            let [mut free, _] = both(&code);
            assert_eq!(free.run(&NoDevices, Some(6)), VmExit::StepsDone);
            assert_eq!((cpu.rip(), cpu.regs[..16].to_vec()), (free.rip(), free.regs[..16].to_vec()));
            let mut data = [[0; 16]; 2];
            cpu.memory.read(DATA, &mut data[0]).unwrap();
            free.memory.read(DATA, &mut data[1]).unwrap();
            assert_eq!(data[0], data[1]);
        }
    }
}

#[test]
fn a_repeated_store_stops_between_iterations() {
    let code = program(|a| {
        a.mov(rdi, DATA as i64)?;
        a.mov(rcx, 100_i64)?;
        a.rep().stosb()
    });
    for mut cpu in both(&code) {
        let (mut stops, wanted) = watching(DATA + 5, 1, WatchKind::Write);
        cpu.set_debug_stops(&stops);
        assert_eq!(cpu.run(&NoDevices, None), wanted);
        assert_eq!((cpu.rip(), cpu.gpr(1), cpu.gpr(7)), (CODE + 20, 94, DATA + 6));
        // A trap comes after each iteration (SDM 3B 17.3.1.4).
        stops.single_step = true;
        cpu.set_debug_stops(&stops);
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Debug(DebugStop::Step));
        assert_eq!((cpu.rip(), cpu.gpr(1), cpu.gpr(7)), (CODE + 20, 93, DATA + 7));
    }
}

#[test]
fn watchpoints_tell_loads_from_stores() {
    let code = program(|a| {
        a.mov(rdi, DATA as i64)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rbx, qword_ptr(rdi))?;
        a.call(CODE + 0x100)
    });
    // Behind the MOV with a 64-bit immediate and the store.
    let load = CODE + 10 + 3;
    for (kind, stops_at) in [
        (WatchKind::Write, vec![load]),
        (WatchKind::Read, vec![load + 3]),
        (WatchKind::Access, vec![load, load + 3]),
    ] {
        for mut cpu in both(&code) {
            let (stops, wanted) = watching(DATA, 8, kind);
            cpu.set_debug_stops(&stops);
            for &rip in &stops_at {
                assert_eq!((cpu.run(&NoDevices, None), cpu.rip()), (wanted.clone(), rip));
            }
            // The return address of a call.
            let (stops, wanted) = watching(cpu.gpr(4) - 8, 4, kind);
            cpu.set_debug_stops(&stops);
            if kind != WatchKind::Read {
                assert_eq!((cpu.run(&NoDevices, None), cpu.rip()), (wanted, CODE + 0x100));
            }
        }
    }
}

#[test]
fn other_data_of_a_watched_page_stop_nothing() {
    for mut cpu in both(&counting()) {
        let (mut stops, _) = watching(DATA + 8, 8, WatchKind::Access);
        stops.breakpoints = vec![CODE + 0x800];
        cpu.set_debug_stops(&stops);
        assert_eq!(cpu.run(&NoDevices, Some(5000)), VmExit::StepsDone);
    }
}
