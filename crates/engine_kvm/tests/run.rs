//! Code through the public trait.

mod support;

use engine::VmExit;
use support::{CODE, Call, DONE, machine};

/// `mov dx, DONE; out dx, al; hlt; jmp $-1`, valid in 16- and (with 66) 64-bit code.
const FINISH_16: [u8; 7] = [0xba, DONE as u8, 0, 0xee, 0xf4, 0xeb, 0xfd];
const FINISH_64: [u8; 8] = [0x66, 0xba, DONE as u8, 0, 0xee, 0xf4, 0xeb, 0xfd];

fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn real_mode_arithmetic_and_flags() {
    let Some(mut machine) = machine() else { return };
    // mov ax,0x7fff; add ax,1; pushf; pop cx; then finish
    let state = machine.real_mode(&code(&[&[0xb8, 0xff, 0x7f, 0x05, 1, 0, 0x9c, 0x59], &FINISH_16]));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    let after = machine.vcpu.state().unwrap();
    assert_eq!(after.gprs[0] & 0xffff, 0x8000);
    // OF, SF, AF, PF and the fixed bit.
    assert_eq!(after.gprs[1] & 0xffff, 0x896);
    assert_eq!(after.rip, CODE + 8 + 4, "the OUT is finished when a kick is told");
}

#[test]
fn long_mode_multiplies_wide() {
    let Some(mut machine) = machine() else { return };
    // mov rax,-1; mov rcx,rax; mul rcx
    let state = machine.long_mode(&code(&[
        &[0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0x48, 0x89, 0xc1, 0x48, 0xf7, 0xe1],
        // mov rbx, rdx
        &[0x48, 0x89, 0xd3],
        &FINISH_64,
    ]));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    let after = machine.vcpu.state().unwrap();
    assert_eq!((after.gprs[0], after.gprs[3]), (1, u64::MAX - 1));
}

#[test]
fn ports_of_each_width_and_strings() {
    let Some(mut machine) = machine() else { return };
    machine.memory.write(0x9000, b"abcdef").unwrap();
    let state = machine.real_mode(&code(&[
        // mov dx,0x123; mov eax,0xaabbccdd; out dx,al; out dx,ax; out dx,eax
        &[0xba, 0x23, 0x01, 0x66, 0xb8, 0xdd, 0xcc, 0xbb, 0xaa, 0xee, 0xef, 0x66, 0xef],
        // xor eax,eax; in al,dx; mov bx,ax; in eax,dx; mov edi,eax
        &[0x66, 0x31, 0xc0, 0xec, 0x89, 0xc3, 0x66, 0xed, 0x66, 0x89, 0xc7],
        // mov si,0x9000; mov cx,3; cld; rep outsw
        &[0xbe, 0x00, 0x90, 0xb9, 3, 0, 0xfc, 0xf3, 0x6f],
        &FINISH_16,
    ]));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    let out = |data: &[u8]| Call::Out(0x123, data.to_vec());
    let expected = [
        out(&[0xdd]),
        out(&[0xdd, 0xcc]),
        out(&[0xdd, 0xcc, 0xbb, 0xaa]),
        Call::In(0x123, 1),
        Call::In(0x123, 4),
        out(b"ab"),
        out(b"cd"),
        out(b"ef"),
    ];
    assert_eq!(machine.io.take(), expected);
    let after = machine.vcpu.state().unwrap();
    assert_eq!((after.gprs[3] & 0xffff, after.gprs[7] as u32), (0x11, 0x4433_2211));
}

#[test]
fn mmio_of_each_width() {
    let Some(mut machine) = machine() else { return };
    let state = machine.long_mode(&code(&[
        // mov ebx,0xd0000000; mov rax,0x1122334455667788
        &[0xbb, 0, 0, 0, 0xd0, 0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
        // mov [rbx],al; mov [rbx+2],ax; mov [rbx+4],eax; mov [rbx+8],rax
        &[0x88, 0x03, 0x66, 0x89, 0x43, 2, 0x89, 0x43, 4, 0x48, 0x89, 0x43, 8],
        // movzx ecx,byte [rbx]; movzx esi,word [rbx]; mov edi,[rbx]; mov r8,[rbx]
        &[0x0f, 0xb6, 0x0b, 0x0f, 0xb7, 0x33, 0x8b, 0x3b, 0x4c, 0x8b, 0x03],
        &FINISH_64,
    ]));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    let bytes = 0x1122_3344_5566_7788_u64.to_le_bytes();
    let base = 0xd000_0000;
    let expected = [
        Call::Store(base, bytes[..1].to_vec()),
        Call::Store(base + 2, bytes[..2].to_vec()),
        Call::Store(base + 4, bytes[..4].to_vec()),
        Call::Store(base + 8, bytes.to_vec()),
        Call::Load(base, 1),
        Call::Load(base, 2),
        Call::Load(base, 4),
        Call::Load(base, 8),
    ];
    assert_eq!(machine.io.take(), expected);
    let gprs = machine.vcpu.state().unwrap().gprs;
    assert_eq!([gprs[1], gprs[6], gprs[7], gprs[8]], [0x11, 0x2211, 0x4433_2211, 0x8877_6655_4433_2211]);
}

#[test]
fn a_kick_before_the_run_is_not_lost_and_counts_once() {
    let Some(mut machine) = machine() else { return };
    // jmp $
    let state = machine.real_mode(&[0xeb, 0xfe]);
    machine.vcpu.kicker().kick();
    assert_eq!(machine.run(&state), VmExit::Kicked);
    let kicker = machine.vcpu.kicker();
    let late = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        kicker.kick();
    });
    let started = std::time::Instant::now();
    assert_eq!(machine.resume(), VmExit::Kicked);
    assert!(started.elapsed() >= std::time::Duration::from_millis(25), "the first kick was told twice");
    late.join().unwrap();
}

#[test]
fn a_triple_fault_ends_the_run() {
    let Some(mut machine) = machine() else { return };
    // ud2, with no gate present
    let state = machine.long_mode(&[0x0f, 0x0b]);
    assert_eq!(machine.run(&state), VmExit::TripleFault);
}

#[test]
fn a_failure_leaves_the_state_before_the_instruction() {
    let Some(mut machine) = machine() else { return };
    // mov ecx,5; mov rbx,7; mov edi,0x9000; cmpxchg16b [rdi]
    let before = [0xb9, 5, 0, 0, 0, 0x48, 0xc7, 0xc3, 7, 0, 0, 0, 0xbf, 0, 0x90, 0, 0];
    let state = machine.long_mode(&code(&[&before, &[0x48, 0x0f, 0xc7, 0x0f], &FINISH_64]));
    let exit = machine.run(&state);
    match exit {
        VmExit::Kicked => {
            let mut memory = [0; 16];
            machine.memory.read(0x9000, &mut memory).unwrap();
            assert_eq!((memory[0], memory[8]), (7, 5), "this KVM executes cmpxchg16b");
        }
        VmExit::EmulationFailure { detail } => {
            eprintln!("this KVM fails on cmpxchg16b: {detail}");
            assert!(detail.contains("48 0f c7 0f"), "{detail}");
            for after in [machine.vcpu.state().unwrap(), machine.vcpu.excursion_state().unwrap()] {
                assert_eq!(after.rip, CODE + before.len() as u64);
                assert_eq!((after.gprs[1], after.gprs[3], after.gprs[7]), (5, 7, 0x9000));
                assert_eq!(after.events, Default::default());
            }
            // Carried over the instruction, the processor goes on.
            let mut carried = machine.vcpu.excursion_state().unwrap();
            carried.rip += 4;
            machine.vcpu.set_excursion_state(&carried).unwrap();
            assert_eq!(machine.resume(), VmExit::Kicked);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn steps_are_counted_or_refused() {
    let Some(mut machine) = machine() else { return };
    // inc eax, five times; jmp $
    let state = machine.long_mode(&[0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xeb, 0xfe]);
    machine.vcpu.set_state(&state).unwrap();
    match machine.vcpu.run_steps(&machine.io, 3) {
        VmExit::StepsDone => {
            let after = machine.vcpu.state().unwrap();
            assert_eq!((after.rip, after.gprs[0]), (CODE + 6, state.gprs[0] + 3));
        }
        other => {
            eprintln!("this KVM does not step: {other:?}");
            assert!(matches!(other, VmExit::EmulationFailure { .. }));
        }
    }
}
