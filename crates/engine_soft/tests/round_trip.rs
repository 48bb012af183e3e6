//! `CpuState` holds everything: a processor whose state moves into a fresh one after every instruction goes the same
//! way as one that is left alone.
//!
//! The program runs in 64-bit mode with x2APIC timer interrupts, NMIs, page faults, INT3, single steps, breakpoints on
//! data and code, shadows of STI and MOV SS, a repeated string instruction, x87, SSE, AVX and HLT.

mod bench;

use engine::{MsiMessage, Vcpu, VcpuIo, Vm, VmExit};
use guest_clock::ManualClock;
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::{CpuState, Cr0, Cr4, DescriptorTable, Efer, Segment, SegmentAttributes};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const DATA: u64 = 0x6000;
const STACK: u64 = 0x8000;
const CODE: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const TABLES: u64 = 0x1_0000;
/// Rounds of the program's loop.
const ROUNDS: u8 = 16;
/// Nanoseconds of guest time an instruction takes here.
const STEP_NS: u64 = 1000;
const NMI: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x400 };

/// Nothing but RAM.
struct Nothing;

impl VcpuIo for Nothing {}

/// mov ecx, register; mov eax, value; xor edx, edx; wrmsr
fn write_msr(register: u32, value: u32) -> Vec<u8> {
    [&[0xb9][..], &register.to_le_bytes(), &[0xb8], &value.to_le_bytes(), &[0x31, 0xd2, 0x0f, 0x30]].concat()
}

/// inc qword [DATA + offset]
fn count(offset: u8) -> Vec<u8> {
    vec![0x48, 0xff, 0x04, 0x25, offset, 0x60, 0, 0]
}

/// The program and the address of the instruction that a breakpoint is at.
fn program() -> (Vec<u8>, u64) {
    let mut code = [
        write_msr(0x80f, 0x1ff),      // local APIC on
        write_msr(0x832, 0x2_0040),   // periodic timer, vector 40h
        write_msr(0x83e, 0xb),        // undivided
        write_msr(0x838, 30_000),     // every 30 instructions
        vec![0x31, 0xdb, 0xdb, 0xe3], // xor ebx, ebx; fninit
        vec![0xb8, 0x28, 0x60, 0, 0], // mov eax, DATA + 28h
        vec![0x0f, 0x23, 0xc0],       // mov dr0, rax: accessed below
    ]
    .concat();
    let watched_code = code.len() + 2;
    code.extend([0xb8, 0, 0, 0, 0, 0x0f, 0x23, 0xc8]); // mov eax, code; mov dr1, rax
    code.extend([0xb8, 0x05, 0x04, 0x0b, 0x00, 0x0f, 0x23, 0xf8]); // mov eax, b0405h; mov dr7, rax
    let start = code.len();
    code.extend([0xfb, 0xff, 0xc3]); // sti; inc ebx
    code.extend([0x69, 0xc3, 0x6d, 0x4e, 0xc6, 0x41]); // imul eax, ebx, 41c64e6dh
    code.extend([0x9c, 0x58]); // pushfq; pop rax
    code.extend([0xd9, 0xeb, 0xdd, 0x1c, 0x25, 0x28, 0x60, 0, 0]); // fldpi; fstp qword [DATA + 28h]
    code.extend([0xd9, 0xe8]); // fld1: the register stack fills up and overflows
    code.extend([0xf2, 0x48, 0x0f, 0x2a, 0xc3]); // cvtsi2sd xmm0, rbx
    code.extend([0xf2, 0x0f, 0x59, 0xc8]); // mulsd xmm1, xmm0
    code.extend([0xc5, 0xec, 0x58, 0xd0]); // vaddps ymm2, ymm2, ymm0
    code.extend([0x66, 0x8c, 0xd0, 0x8e, 0xd0, 0x90]); // mov ax, ss; mov ss, ax; nop
    code.extend([0x66, 0x89, 0x04, 0x25, 0x2c, 0x60, 0, 0]); // mov [DATA + 2ch], ax: watched
    code.extend([0x8e, 0x14, 0x25, 0x2c, 0x60, 0, 0, 0x90]); // mov ss, [DATA + 2ch]; nop: the trap comes behind
    code.push(0xcc); // int3
    code.extend([0xbf, 0, 0, 0, 0x40, 0x8a, 0x47, 0]); // mov edi, 40000000h; mov al, [rdi+0]: a page fault
    code.extend([0xbe, 0, 0x80, 0, 0, 0xbf, 0, 0x62, 0, 0, 0xb9, 40, 0, 0, 0, 0xf3, 0xa4]); // rep movsb
    code.extend([0x9c, 0x48, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d]); // set TF
    let breakpoint = CODE + code.len() as u64;
    code.extend([0x90, 0x90]);
    code.extend([0x9c, 0x48, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d]); // clear TF
    code.extend([0x0f, 0x31, 0xfa]); // rdtsc; cli
    code.extend([0xf6, 0xc3, 7, 0x75, 2, 0xfb, 0xf4]); // every eighth round: sti; hlt
    code.extend([0x80, 0xfb, ROUNDS, 0x0f, 0x82]); // cmp bl, ROUNDS; jb start
    let back = start as i32 - (code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code.extend([0xfa, 0xf4]); // cli; hlt
    code[watched_code - 1..watched_code + 3].copy_from_slice(&(breakpoint as u32).to_le_bytes());
    (code, breakpoint)
}

fn handlers() -> Vec<(u64, Vec<u8>)> {
    let back = vec![0x48, 0xcf];
    // or qword [rsp+10h], 10000h: RF, for the breakpoint on code
    let resume = vec![0x48, 0x81, 0x4c, 0x24, 0x10, 0, 0, 1, 0];
    // add rsp, 8; add qword [rsp], 3: over the faulting instruction
    let skip = vec![0x48, 0x83, 0xc4, 8, 0x48, 0x83, 0x04, 0x24, 3];
    let end_of_interrupt = write_msr(0x80b, 0);
    let (save, restore) = (vec![0x50, 0x51, 0x52], vec![0x5a, 0x59, 0x58]);
    vec![
        (1, [count(0), resume, back.clone()].concat()),
        (2, [count(8), back.clone()].concat()),
        (3, [count(16), back.clone()].concat()),
        (14, [count(24), skip, back.clone()].concat()),
        (0x40, [save, count(32), end_of_interrupt, restore, back].concat()),
    ]
}

fn memory() -> Arc<GuestMemory> {
    let memory = Arc::new(GuestMemory::new(&[(0, 2 << 20)]).unwrap());
    let put = |address: u64, value: u64| memory.write(address, &value.to_le_bytes()).unwrap();
    put(TABLES, TABLES + 0x1003);
    put(TABLES + 0x1000, TABLES + 0x2003);
    put(TABLES + 0x2000, 0x83);
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    for (at, (vector, code)) in (0..).zip(handlers()) {
        let handler = HANDLERS + 0x40 * at;
        memory.write(handler, &code).unwrap();
        put(IDT + 16 * vector, handler & 0xffff | 8 << 16 | 0x8e00 << 32);
    }
    memory.write(CODE, &program().0).unwrap();
    memory
}

fn start(mut state: CpuState) -> CpuState {
    let segment =
        |selector, bits| Segment { selector, base: 0, limit: u32::MAX, attributes: SegmentAttributes(bits) };
    let data = segment(0x10, 0xc093);
    state.segments.cs = segment(8, 0xa09b);
    (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
    state.gdtr = DescriptorTable { base: GDT, limit: 0x17 };
    state.idtr = DescriptorTable { base: IDT, limit: 0xfff };
    state.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP | Cr0::NE | Cr0::ET | Cr0::MP).bits();
    state.cr3 = TABLES;
    state.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::DE).bits();
    state.efer = (Efer::LME | Efer::LMA).bits();
    state.xcr0 = 7;
    state.apic_base |= 0xc00;
    (state.rip, state.gprs[4], state.rflags) = (CODE, STACK, 2);
    state
}

/// A machine with one processor.
struct One {
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

fn one(memory: &Arc<GuestMemory>, clock: &Arc<ManualClock>) -> One {
    let vm = bench::machine(memory, 1, clock.clone());
    let vcpu = vm.create_vcpu(0).unwrap();
    One { vm, vcpu }
}

#[test]
fn nothing_is_lost_between_any_two_instructions() {
    let clock = Arc::new(ManualClock::default());
    let (left_memory, moved_memory) = (memory(), memory());
    let mut left = one(&left_memory, &clock);
    let state = start(left.vcpu.state().unwrap());
    left.vcpu.set_state(&state).unwrap();
    let mut moved = one(&moved_memory, &clock);
    moved.vcpu.set_state(&state).unwrap();
    let mut halts = 0;
    let mut shadows = 0;
    for step in 0..20_000 {
        clock.advance(STEP_NS);
        if step % 97 == 96 {
            left.vm.signal_msi(NMI);
            moved.vm.signal_msi(NMI);
        }
        let exit = left.vcpu.run_steps(&Nothing, 1);
        assert_eq!(moved.vcpu.run_steps(&Nothing, 1), exit, "step {step}");
        let (one_state, other) = (left.vcpu.state().unwrap(), moved.vcpu.state().unwrap());
        assert_eq!(one_state, other, "step {step}");
        let events = other.events;
        shadows += usize::from(events.sti_shadow || events.mov_ss_shadow);
        moved = one(&moved_memory, &clock);
        moved.vcpu.set_state(&other).unwrap();
        assert_eq!(moved.vcpu.state().unwrap(), other, "step {step}: loading changes nothing");
        if exit == VmExit::Halted {
            halts += 1;
            if other.rflags & 0x200 == 0 {
                break;
            }
        }
    }
    let mut counts = [0; 40];
    left_memory.read(DATA, &mut counts).unwrap();
    let counts: Vec<u64> =
        counts.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
    // What the program is made of did happen: #DB by data, code and steps; NMIs; INT3; #PF; the timer.
    let rounds = u64::from(ROUNDS);
    assert!(counts[0] >= 5 * rounds && counts[1] > 10 && counts[4] > rounds, "{counts:?}");
    assert_eq!((counts[2], counts[3]), (rounds, rounds), "{counts:?}");
    assert!(halts > 5 && shadows >= 2 * usize::from(ROUNDS), "{halts} halts, {shadows} shadows");
    let mut all = (vec![0; 2 << 20], vec![0; 2 << 20]);
    left_memory.read(0, &mut all.0).unwrap();
    moved_memory.read(0, &mut all.1).unwrap();
    assert!(all.0 == all.1, "memory is the same");
}

/// As an excursion from KVM: between two of them, the guest's stores are nobody's to note.
#[test]
#[expect(unsafe_code, reason = "stores as a guest under KVM does, past all trackers")]
fn code_that_another_engine_changed_is_decoded_anew() {
    let memory = memory();
    let mut carrier = one(&memory, &Arc::default());
    let state = start(carrier.vcpu.state().unwrap());
    for value in [0x1111_1111_u32, 0x2222_2222] {
        let code = [&[0xb8][..], &value.to_le_bytes(), &[0xeb, 0xfe]].concat(); // mov eax, value; jmp $
        // SAFETY: the region holds the code, and nothing runs.
        unsafe {
            let to = memory.regions()[0].host_address().add(CODE as usize);
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        carrier.vcpu.set_state(&state).unwrap();
        assert_eq!(carrier.vcpu.run_steps(&Nothing, 40), VmExit::StepsDone);
        assert_eq!(carrier.vcpu.state().unwrap().gprs[0], u64::from(value));
    }
}
