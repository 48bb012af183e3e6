//! Speed of the software processor in 64-bit mode: million guest instructions per second on two loops, and bytes per second
//! of repeated string instructions.
//!
//! `cargo run --release -p engine_soft --example mips`

use engine::{VcpuIo, VmExit};
use engine_soft::Cpu;
use engine_soft::system::SystemState;
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Instant;
use x86::{CpuState, Cr0, Cr4, Efer, Segment, SegmentAttributes};

struct NoDevices;

impl VcpuIo for NoDevices {}

/// Additions, shifts and a branch, all in registers.
fn register_loop() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut top = a.create_label();
    a.mov(ecx, u32::MAX / 2)?;
    a.set_label(&mut top)?;
    a.add(rax, rcx)?;
    a.lea(rdx, ptr(rax + rcx * 4 + 8))?;
    a.xor(rbx, rdx)?;
    a.shl(rdx, 3)?;
    a.imul_2(rsi, rdx)?;
    a.and(rsi, rax)?;
    a.dec(rcx)?;
    a.jne(top)?;
    a.hlt()?;
    a.assemble(CODE)
}

/// Calls, loads, stores, pushes and unpredictable branches over 64 KiB.
fn mixed_loop() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut top, mut odd, mut on, mut function) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, u32::MAX / 2)?;
    a.set_label(&mut top)?;
    a.imul_3(eax, eax, 1_103_515_245)?;
    a.add(eax, 12345)?;
    a.mov(edx, eax)?;
    a.and(edx, 0xfff8)?;
    a.mov(rsi, qword_ptr(rdx + DATA))?;
    a.add(qword_ptr(rdx + DATA), rax)?;
    a.test(eax, 0x10000)?;
    a.jne(odd)?;
    a.movzx(edi, byte_ptr(rdx + DATA + 1))?;
    a.add(rbx, rdi)?;
    a.jmp(on)?;
    a.set_label(&mut odd)?;
    a.cmp(rsi, rbx)?;
    a.cmovb(rbx, rsi)?;
    a.set_label(&mut on)?;
    a.call(function)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.mov(qword_ptr(rbp - 8), rbx)?;
    a.pop(rbp)?;
    a.ret()?;
    a.assemble(CODE)
}

/// Bytes that a repeated string instruction goes over at once.
const STRING: u32 = 16 << 10;

/// A repeated string instruction on bytes, of which comparisons find what lets them go on; RBX counts rounds down.
fn string_loop(name: &str) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut top = a.create_label();
    a.mov(ebx, u32::MAX / 2)?;
    a.mov(eax, 1)?;
    a.set_label(&mut top)?;
    a.mov(edi, DATA)?;
    a.mov(esi, DATA + (STRING * 2) as i32)?;
    a.mov(ecx, STRING)?;
    match name {
        "movsb" => a.rep().movsb()?,
        "stosb" => a.rep().stosb()?,
        "scasb" => a.repne().scasb()?,
        _ => a.repe().cmpsb()?,
    }
    a.dec(ebx)?;
    a.jne(top)?;
    a.hlt()?;
    a.assemble(CODE)
}

const CODE: u64 = 0x1000;
const DATA: i32 = 0x10_0000;
const TABLES: u64 = 0x3000;

fn processor(code: &[u8]) -> Box<Cpu> {
    let memory = Arc::new(GuestMemory::new(&[(0, 4 << 20)]).expect("the host has 4 MiB"));
    let put = |address: u64, value: u64| memory.write(address, &value.to_le_bytes()).expect("is RAM");
    put(TABLES, TABLES + 0x1003);
    put(TABLES + 0x1000, TABLES + 0x2003);
    put(TABLES + 0x2000, 0x83);
    put(TABLES + 0x2008, 0x20_0083);
    memory.write(CODE, code).expect("is RAM");
    let mut state = CpuState::reset(true);
    let flat = |attributes| Segment {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        attributes: SegmentAttributes(attributes),
    };
    state.segments.cs = flat(0xa09b);
    let data = flat(0xc093);
    (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
    state.cr0 = (Cr0::PE | Cr0::PG).bits();
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE.bits();
    state.efer = (Efer::LME | Efer::LMA).bits();
    state.rip = CODE;
    state.gprs[4] = 0x9000;
    let mut cpu = Cpu::new(memory, SystemState::default(), Arc::default(), 46);
    cpu.restore(&state).expect("the state is legal");
    cpu
}

fn processor_with(code: &[u8], translate: bool) -> Box<Cpu> {
    let mut cpu = processor(code);
    if translate {
        cpu.enable_translation(Default::default()).expect("the host has memory");
    }
    cpu
}

/// Ends a run.
struct Alarm(Arc<std::sync::atomic::AtomicU32>);

impl Alarm {
    fn after(self, time: std::time::Duration) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            std::thread::sleep(time);
            self.0.fetch_or(engine_soft::system::event::KICK, std::sync::atomic::Ordering::SeqCst);
        })
    }
}

/// Rounds per second of a program that counts them down in a register.
fn rounds_per_second(code: &[u8], translate: bool, counter: usize) -> f64 {
    let mut cpu = processor_with(code, translate);
    let start = Instant::now();
    let alarm = Alarm(Arc::clone(&cpu.events)).after(std::time::Duration::from_secs(2));
    let exit = cpu.run(&NoDevices, None);
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(exit, VmExit::Kicked);
    alarm.join().expect("the alarm does not panic");
    f64::from(u32::MAX / 2 - cpu.gpr(counter) as u32) / seconds
}

fn main() {
    // With the guest instructions of one round, on average.
    let loops = [("register loop", register_loop(), 8.0), ("mixed loop", mixed_loop(), 18.0)];
    for (name, code, per_round) in loops {
        let code = code.expect("the program assembles");
        let [slow, fast] =
            [false, true].map(|translate| rounds_per_second(&code, translate, 1) * per_round / 1e6);
        println!("{name}: interpreter {slow:.0} MIPS, translator {fast:.0} MIPS");
    }
    for name in ["movsb", "stosb", "scasb", "cmpsb"] {
        let code = string_loop(name).expect("the program assembles");
        let bytes = rounds_per_second(&code, false, 3) * f64::from(STRING) / 1e6;
        println!("rep {name}: {bytes:.0} MB/s");
    }
}
