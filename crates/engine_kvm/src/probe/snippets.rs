//! The code that is tried, as bytes with the assembly beside.
//!
//! Snippets run in 64-bit mode in ring 0 with RDI pointing to scratch memory and end by a write to a port. Exceptions
//! that a snippet expects go to its handler; any other is a triple fault.
#![expect(unsafe_code, reason = "times a loop of the same instructions natively")]

use super::machine::{DONE_PORT, SYSCALL_ENTRY, TIME_PORT, USER_CODE};
use std::time::Instant;

/// `mov edx, DONE_PORT; out dx, al; jmp $`
pub(super) const FINISH: [u8; 8] = [0xba, DONE_PORT as u8, 0, 0, 0, 0xee, 0xeb, 0xfe];
/// `mov dx, DONE_PORT; out dx, al; jmp $` in 16-bit code.
const FINISH_16: [u8; 6] = [0xba, DONE_PORT as u8, 0, 0xee, 0xeb, 0xfe];
/// `iretq`
const RETURN: &[u8] = &[0x48, 0xcf];
/// `add qword [rsp], 2; iretq`: after a faulting instruction of two bytes.
const SKIP_TWO: &[u8] = &[0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf];
/// `add qword [rsp+8], 3; add rsp, 8; iretq`: after one of three bytes that pushed an error code.
const SKIP_THREE: &[u8] = &[0x48, 0x83, 0x44, 0x24, 8, 3, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf];

/// Times a loop goes round; two instructions each.
const ROUNDS: u32 = 200;
/// Instructions between two of the time stamps after a loop.
pub(super) const LOOP_INSTRUCTIONS: u64 = 2 * ROUNDS as u64;
/// Loops, with a time stamp after each.
pub(super) const LOOPS: usize = 5;
/// Time stamps in a row before the loops.
pub(super) const PORT_EXITS: usize = 9;
/// Rounds of the same loop outside of a guest.
const NATIVE_ROUNDS: u32 = 20_000;

/// One thing to try.
pub(super) struct Snippet {
    pub(super) name: &'static str,
    pub(super) code: Vec<u8>,
    /// Vectors with a gate to `handler`.
    pub(super) expected: &'static [u8],
    pub(super) handler: &'static [u8],
    pub(super) user_code: &'static [u8],
    /// What SYSCALL enters.
    pub(super) system_call: &'static [u8],
    pub(super) real_mode: bool,
    /// XCR0, and CR4.OSXSAVE if it is not zero.
    pub(super) xcr0: u64,
}

impl Snippet {
    fn new(name: &'static str, code: &[u8]) -> Self {
        Snippet {
            name,
            code: [code, &FINISH].concat(),
            expected: &[],
            handler: &[],
            user_code: &[],
            system_call: &FINISH,
            real_mode: false,
            xcr0: 0,
        }
    }

    fn expecting(self, expected: &'static [u8], handler: &'static [u8]) -> Self {
        Snippet { expected, handler, ..self }
    }

    fn with_xsave(self, xcr0: u64) -> Self {
        Snippet { xcr0, ..self }
    }
}

/// Writes the time port in a row, then once more after each loop.
pub(super) fn timing() -> Snippet {
    // mov edx, TIME_PORT
    let mut code = vec![0xba, TIME_PORT as u8, 0, 0, 0];
    code.extend([0xee; PORT_EXITS]);
    for _ in 0..LOOPS {
        // mov ecx, ROUNDS; dec ecx; jnz $-2; out dx, al
        code.push(0xb9);
        code.extend(ROUNDS.to_le_bytes());
        code.extend([0xff, 0xc9, 0x75, 0xfc, 0xee]);
    }
    Snippet::new("loop", &code)
}

/// Nanoseconds an instruction of the loop takes outside of a guest: the best of several, against noise.
pub(super) fn native_loop_ns() -> f64 {
    let rounds = NATIVE_ROUNDS;
    let once = || {
        let started = Instant::now();
        // SAFETY: the loop changes only the register and the flags that are declared.
        unsafe {
            std::arch::asm!("2:", "dec {0:e}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack));
        }
        started.elapsed().as_nanos() as f64 / (2.0 * f64::from(rounds))
    };
    (0..5).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// What kernels do in ring 0.
pub(super) fn all() -> Vec<Snippet> {
    let mut all = vec![Snippet {
        real_mode: true,
        // mov ax, 0x1234; push ax; pop bx, then the end
        code: [&[0xb8, 0x34, 0x12, 0x50, 0x5b][..], &FINISH_16].concat(),
        ..Snippet::new("real mode", &[])
    }];
    all.extend(plain().map(|(name, code)| Snippet::new(name, code)));
    all.extend(events());
    all.extend(vector_state());
    all.extend(programs());
    all.push(interrupted_calls());
    all
}

fn plain() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let list: [(&str, &[u8]); 16] = [
        ("rdtsc", &[0x0f, 0x31]),
        // xor eax, eax; cpuid
        ("cpuid", &[0x31, 0xc0, 0x0f, 0xa2]),
        // mov ecx, EFER; rdmsr; wrmsr
        ("rdmsr and wrmsr of EFER", &[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30]),
        ("swapgs", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8]),
        // mov rax, cr3; mov cr3, rax
        ("load of CR3", &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]),
        // mov rax, cr4; mov cr4, rax
        ("load of CR4", &[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0]),
        ("invlpg", &[0x0f, 0x01, 0x3f]),
        ("wbinvd", &[0x0f, 0x09]),
        // sidt [rdi]; lidt [rdi]; sgdt [rdi]; lgdt [rdi]
        ("lidt and lgdt", &[0x0f, 0x01, 0x0f, 0x0f, 0x01, 0x1f, 0x0f, 0x01, 0x07, 0x0f, 0x01, 0x17]),
        // push 8; lea rax, [rip+3]; push rax; retfq
        ("far return", &[0x6a, 8, 0x48, 0x8d, 0x05, 3, 0, 0, 0, 0x50, 0x48, 0xcb]),
        // lock xadd [rdi], rax; lock cmpxchg [rdi], rcx; xchg [rdi], rdx
        (
            "locked instructions",
            &[0xf0, 0x48, 0x0f, 0xc1, 0x07, 0xf0, 0x48, 0x0f, 0xb1, 0x0f, 0x48, 0x87, 0x17],
        ),
        ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0f]),
        // mov ecx, 64; xor eax, eax; rep stosq
        ("rep stosq", &[0xb9, 64, 0, 0, 0, 0x31, 0xc0, 0xf3, 0x48, 0xab]),
        // movups xmm0, [rdi]; addps xmm0, xmm0; movups [rdi], xmm0
        ("SSE", &[0x0f, 0x10, 0x07, 0x0f, 0x58, 0xc0, 0x0f, 0x11, 0x07]),
        ("fxsave and fxrstor", &[0x0f, 0xae, 0x07, 0x0f, 0xae, 0x0f]),
        // pushfq; popfq; cli; clts
        ("flag instructions", &[0x9c, 0x9d, 0xfa, 0x0f, 0x06]),
    ];
    list.into_iter()
}

/// `mov ecx, USER_CODE; mov r11d, 2; sysretq`.
fn to_user() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend((USER_CODE as u32).to_le_bytes());
    code.extend([0x41, 0xbb, 2, 0, 0, 0, 0x48, 0x0f, 0x07]);
    code
}

// Names of checks of what programs see; they begin with `report::PROGRAM`.
pub(super) const PROGRAM_CPUID: &str = "ring 3: CPUID is the machine's";
pub(super) const PROGRAM_TSC: &str = "ring 3: the time-stamp counter is the machine's";
pub(super) const PROGRAM_XCR0: &str = "ring 3: XCR0 is the machine's";
pub(super) const PROGRAM_CALLS: &str = "ring 3: interrupts leave system calls alone";

/// A program that makes system calls while the local APIC's timer interrupts it every now and then. Fails if an
/// interrupt finds the processor in ring 3 at the kernel's entry, where no program ever is: going back there would
/// be the program's end.
pub(super) fn interrupted_calls() -> Snippet {
    let mut code = vec![
        0xbb, 0, 0, 0xe0, 0xfe, // mov ebx, fee00000h
        0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, // mov dword [rbx+f0h], 1ffh: enable it
        0xc7, 0x83, 0xe0, 3, 0, 0, 0x0b, 0, 0, 0, // mov dword [rbx+3e0h], 11: divide by one
        0xc7, 0x83, 0x20, 3, 0, 0, TIMER, 0, 2, 0, // mov dword [rbx+320h], periodic and the vector
        0xc7, 0x83, 0x80, 3, 0, 0, 0x50, 0xc3, 0, 0, // mov dword [rbx+380h], 50 000
        0x41, 0xbf, 0xd0, 7, 0, 0,    // mov r15d, 2000
        0xb9, // mov ecx, USER_CODE
    ];
    code.extend((USER_CODE as u32).to_le_bytes());
    code.extend([0x41, 0xbb, 2, 2, 0, 0, 0x48, 0x0f, 0x07]); // mov r11d, 202h; sysretq
    // mov ecx, 200; dec ecx; jnz $-2; syscall; jmp to the start
    const PROGRAM: &[u8] = &[0xb9, 200, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x0f, 0x05, 0xeb, 0xf3];
    // dec r15; jz to the end; sysretq
    const CALL: &[u8] = &[
        0x49, 0xff, 0xcf, 0x74, 3, 0x48, 0x0f, 0x07, FINISH[0], FINISH[1], FINISH[2], FINISH[3], FINISH[4],
        FINISH[5], FINISH[6], FINISH[7],
    ];
    const INTERRUPT: &[u8] = &[
        0x48,
        0x81,
        0x3c,
        0x24,
        SYSCALL_ENTRY as u8,
        (SYSCALL_ENTRY >> 8) as u8,
        0,
        0, // cmp qword [rsp], entry
        0x75,
        9, // jne on
        0xf6,
        0x44,
        0x24,
        8,
        3, // test byte [rsp+8], 3
        0x74,
        2, // jz on
        0x0f,
        0x0b, // ud2
        0xc7,
        0x83,
        0xb0,
        0,
        0,
        0,
        0,
        0,
        0,
        0, // on: mov dword [rbx+b0h], 0: end of interrupt
        0x48,
        0xcf, // iretq
    ];
    Snippet { user_code: PROGRAM, system_call: CALL, ..Snippet::new(PROGRAM_CALLS, &code) }
        .expecting(&[TIMER], INTERRUPT)
}

/// Vector of the local APIC's timer.
const TIMER: u8 = 0x40;

/// What programs see. Each comes to its end if that is the machine's.
pub(super) fn programs() -> [Snippet; 3] {
    // mov eax, MARKED_LEAF (0x80000002); cpuid; cmp eax, MARK; jne to the ud2; syscall; ud2
    const CPUID: &[u8] =
        &[0xb8, 2, 0, 0, 0x80, 0x0f, 0xa2, 0x3d, b'V', b'i', b'r', b'e', 0x75, 2, 0x0f, 0x05, 0x0f, 0x0b];
    // rdtsc; shl rdx, 32; or rax, rdx; sub rax, r9; shr rax, 36; jnz to the ud2; syscall; ud2
    const TSC: &[u8] = &[
        0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x4c, 0x29, 0xc8, 0x48, 0xc1, 0xe8, 0x24, 0x75,
        2, 0x0f, 0x05, 0x0f, 0x0b,
    ];
    // xor ecx, ecx; xgetbv; cmp eax, 3; jne to the ud2; syscall; ud2
    const XCR0: &[u8] = &[0x31, 0xc9, 0x0f, 0x01, 0xd0, 0x83, 0xf8, 3, 0x75, 2, 0x0f, 0x05, 0x0f, 0x0b];
    let to_user = to_user();
    // The kernel's own reading first, into R9: rdtsc; shl rdx, 32; or rax, rdx; mov r9, rax
    let read = [0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x49, 0x89, 0xc1];
    let read_first = [&read[..], &to_user].concat();
    [
        Snippet { user_code: CPUID, ..Snippet::new(PROGRAM_CPUID, &to_user) },
        Snippet { user_code: TSC, ..Snippet::new(PROGRAM_TSC, &read_first) },
        Snippet { user_code: XCR0, ..Snippet::new(PROGRAM_XCR0, &to_user) }.with_xsave(3),
    ]
}

fn events() -> Vec<Snippet> {
    let to_user = to_user();
    // mov rbx, 16 GiB; mov rax, [rbx]
    let outside = [0x48, 0xbb, 0, 0, 0, 0, 4, 0, 0, 0, 0x48, 0x8b, 0x03];
    // push 0x23; push rsp's value; pushfq; push 0x2b; push USER_CODE; iretq
    let mut by_iret = vec![0x6a, 0x23, 0x68, 0, 0x70, 0, 0, 0x9c, 0x6a, 0x2b, 0x68];
    by_iret.extend((USER_CODE as u32).to_le_bytes());
    by_iret.extend([0x48, 0xcf]);
    vec![
        Snippet::new("int3", &[0xcc]).expecting(&[3], RETURN),
        Snippet::new("int 0x80", &[0xcd, 0x80]).expecting(&[0x80], RETURN),
        Snippet::new("invalid opcode exception", &[0x0f, 0x0b]).expecting(&[6], SKIP_TWO),
        // xor ecx, ecx; div ecx
        Snippet::new("divide error", &[0x31, 0xc9, 0xf7, 0xf1]).expecting(&[0], SKIP_TWO),
        Snippet::new("page fault", &outside).expecting(&[14], SKIP_THREE),
        Snippet { user_code: &[0x0f, 0x05], ..Snippet::new("sysret and syscall", &to_user) },
        Snippet { user_code: &[0x0f, 0x05], ..Snippet::new("iret to ring 3", &by_iret) },
    ]
}

fn vector_state() -> Vec<Snippet> {
    // mov eax, 3; xor edx, edx; xsave [rdi]; xrstor [rdi]
    let save = [0xb8, 3, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x27, 0x0f, 0xae, 0x2f];
    // xor ecx, ecx; xgetbv; xsetbv
    let xcr = [0x31, 0xc9, 0x0f, 0x01, 0xd0, 0x0f, 0x01, 0xd1];
    vec![
        Snippet::new("xsave and xrstor", &save).with_xsave(3),
        Snippet::new("xgetbv and xsetbv", &xcr).with_xsave(3),
    ]
}
