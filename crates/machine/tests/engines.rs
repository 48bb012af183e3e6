//! A machine that is saved on one engine and goes on in a fresh one on another, in the middle of a program in ring 3 with
//! x87 and AVX state, under a local APIC's timer.

mod rig;

use engine::Engine;
use engine::cpu_model::{CpuModel, FeatureSet};
use engine_kvm::KvmEngine;
use engine_soft::SoftEngine;
use machine::{Carrier, Machine, MachineEvent, MachineSettings, common_model};
use rig::{Console, end, image, kernel_in, move_on, settings};
use std::path::Path;
use std::sync::Arc;

/// Where the code is: behind the headers of its image.
const BASE: u32 = 0x10_0060;

/// Sets up a local descriptor table's worth of segments, a TSS, the timer's gate and the timer itself (periodic, vector
/// 40h), and goes to ring 3 with IOPL 3. The program there computes with YMM0 and x87, writes a byte to COM1 each time,
/// until there is input; then it waits for three more ticks and ends with 15h. The timer's handler saves, clears and
/// loads x87, SSE and AVX state.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0xfa, // cli
    0x0f, 0x01, 0x15, 0x20, 0x02, 0x10, 0x00, // lgdtd 0x100220
    0xea, 0x6f, 0x00, 0x10, 0x00, 0x08, 0x00, // jmp 0x8:0x10006f
    0xb8, 0x10, 0x00, 0x00, 0x00, // mov eax, 0x10
    0x8e, 0xd8, // mov ds, eax
    0x8e, 0xc0, // mov es, eax
    0x8e, 0xd0, // mov ss, eax
    0xbc, 0x00, 0x00, 0x09, 0x00, // mov esp, 0x90000
    0xb0, 0xff, // mov al, 0xff
    0xe6, 0x21, // out 0x21, al
    0xe6, 0xa1, // out 0xa1, al
    0x0f, 0x20, 0xe0, // mov eax, cr4
    0x0d, 0x00, 0x06, 0x04, 0x00, // or eax, 0x40600
    0x0f, 0x22, 0xe0, // mov cr4, eax
    0x31, 0xc9, // xor ecx, ecx
    0x31, 0xd2, // xor edx, edx
    0xb8, 0x07, 0x00, 0x00, 0x00, // mov eax, 0x7
    0x0f, 0x01, 0xd1, // xsetbv
    0xc7, 0x05, 0x04, 0x00, 0x07, 0x00, 0x00, 0x00, 0x08, 0x00, // mov 0x70004, 0x80000
    0xc7, 0x05, 0x08, 0x00, 0x07, 0x00, 0x10, 0x00, 0x00, 0x00, // mov 0x70008, 0x10
    0xc7, 0x05, 0x64, 0x00, 0x07, 0x00, 0x00, 0x00, 0x68, 0x00, // mov 0x70064, 0x680000
    0xb8, 0x28, 0x00, 0x00, 0x00, // mov eax, 0x28
    0x0f, 0x00, 0xd8, // ltr ax
    0x8d, 0x05, 0xad, 0x01, 0x10, 0x00, // lea eax, 0x1001ad
    0x0f, 0xb7, 0xc8, // movzx ecx, ax
    0x81, 0xc9, 0x00, 0x00, 0x08, 0x00, // or ecx, 0x80000
    0x89, 0x0d, 0x00, 0x12, 0x07, 0x00, // mov 0x71200, ecx
    0x25, 0x00, 0x00, 0xff, 0xff, // and eax, 0xffff0000
    0x0d, 0x00, 0x8e, 0x00, 0x00, // or eax, 0x8e00
    0xa3, 0x04, 0x12, 0x07, 0x00, // mov 0x71204, eax
    0x0f, 0x01, 0x1d, 0x26, 0x02, 0x10, 0x00, // lidtd 0x100226
    0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // mov [ebx+0xf0], 0x1ff
    0xc7, 0x83, 0xe0, 0x03, 0x00, 0x00, 0x0b, 0x00, 0x00, 0x00, // mov [ebx+0x3e0], 0xb
    0xc7, 0x83, 0x20, 0x03, 0x00, 0x00, 0x40, 0x00, 0x02, 0x00, // mov [ebx+0x320], 0x20040
    0xc7, 0x83, 0x80, 0x03, 0x00, 0x00, 0x80, 0x84, 0x1e, 0x00, // mov [ebx+0x380], 0x1e8480
    0xdb, 0xe3, // fninit
    0x6a, 0x23, // push 0x23
    0x68, 0x00, 0x00, 0x06, 0x00, // push 0x60000
    0x68, 0x02, 0x32, 0x00, 0x00, // push 0x3202
    0x6a, 0x1b, // push 0x1b
    0x68, 0x39, 0x01, 0x10, 0x00, // push user
    0xb8, 0x23, 0x00, 0x00, 0x00, // mov eax, 0x23
    0x8e, 0xd8, // mov ds, eax
    0x8e, 0xc0, // mov es, eax
    0xcf, // iret
    0xc5, 0xfe, 0x6f, 0x05, 0x2c, 0x02, 0x10, 0x00, // vmovdqu ymm0, 0x10022c
    0xc5, 0xfe, 0x6f, 0x0d, 0x4c, 0x02, 0x10, 0x00, // vmovdqu ymm1, 0x10024c
    0xc5, 0xe1, 0xef, 0xdb, // vpxor xmm3, xmm3, xmm3
    0xd9, 0xee, // fldz
    0xc4, 0xe2, 0x7d, 0x40, 0x05, 0x6c, 0x02, 0x10, 0x00, // vpmulld ymm0, ymm0, 0x10026c
    0xc5, 0xfd, 0xfe, 0xc1, // vpaddd ymm0, ymm0, ymm1
    0xc4, 0xe3, 0x7d, 0x39, 0xc2, 0x01, // vextracti128 xmm2, ymm0, 0x1
    0xc5, 0xe9, 0xef, 0xd0, // vpxor xmm2, xmm2, xmm0
    0xc5, 0xd9, 0x73, 0xda, 0x08, // vpsrldq xmm4, xmm2, 0x8
    0xc5, 0xe9, 0xef, 0xd4, // vpxor xmm2, xmm2, xmm4
    0xc5, 0xf9, 0x7e, 0xd0, // vmovd eax, xmm2
    0xd9, 0xe8, // fld1
    0xde, 0xc1, // faddp st(1), st
    0xdb, 0x15, 0x00, 0x20, 0x07, 0x00, // fist 0x72000
    0xc1, 0xe8, 0x10, // shr eax, 0x10
    0x03, 0x05, 0x00, 0x20, 0x07, 0x00, // add eax, 0x72000
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 0x1
    0x74, 0xbb, // je ef <again>
    0x8b, 0x1d, 0x04, 0x20, 0x07, 0x00, // mov ebx, 0x72004
    0x83, 0xc3, 0x03, // add ebx, 0x3
    0xf3, 0x90, // pause
    0x39, 0x1d, 0x04, 0x20, 0x07, 0x00, // cmp 0x72004, ebx
    0x72, 0xf6, // jb 13d <wait3>
    0xb0, 0x15, // mov al, 0x15
    0xe6, 0xf4, // out 0xf4, al
    0xeb, 0xfe, // jmp 14b <stay>
    0x50, // push eax
    0x52, // push edx
    0x53, // push ebx
    0xb8, 0x10, 0x00, 0x00, 0x00, // mov eax, 0x10
    0x8e, 0xd8, // mov ds, eax
    0xb8, 0x07, 0x00, 0x00, 0x00, // mov eax, 0x7
    0x31, 0xd2, // xor edx, edx
    0xbb, 0x00, 0x30, 0x07, 0x00, // mov ebx, 0x73000
    0x0f, 0xae, 0x23, // xsave [ebx]
    0xc5, 0xfc, 0x77, // vzeroall
    0xdb, 0xe3, // fninit
    0x0f, 0xae, 0x2b, // xrstor [ebx]
    0xff, 0x05, 0x04, 0x20, 0x07, 0x00, // inc 0x72004
    0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, // mov 0xfee000b0, 0x0
    0xb8, 0x23, 0x00, 0x00, 0x00, // mov eax, 0x23
    0x8e, 0xd8, // mov ds, eax
    0x5b, // pop ebx
    0x5a, // pop edx
    0x58, // pop eax
    0xcf, // iret
    0x8d, 0xb4, 0x26, 0x00, 0x00, 0x00, 0x00, // lea esi, [esi+eiz*1+0x0]
];

/// Factors of the program's generators.
const FACTOR: u32 = 0x41c6_4e6d;
/// What they start with.
const LANES: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// What they add.
fn steps() -> [u32; 8] {
    std::array::from_fn(|lane| 0x3039 + 2 * lane as u32)
}

fn guest() -> Vec<u8> {
    let gdt: [u64; 6] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8907_0000_0067,
    ];
    let mut bytes = CODE.to_vec();
    bytes.extend(gdt.iter().flat_map(|descriptor| descriptor.to_le_bytes()));
    // The operands of LGDT and LIDT.
    bytes.extend(47_u16.to_le_bytes());
    bytes.extend((BASE + CODE.len() as u32).to_le_bytes());
    bytes.extend(0x207_u16.to_le_bytes());
    bytes.extend(0x7_1000_u32.to_le_bytes());
    for words in [LANES, steps(), [FACTOR; 8]] {
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    image(&bytes)
}

/// What the program says, computed here.
fn expected(count: usize) -> Vec<u8> {
    let (mut lanes, steps) = (LANES, steps());
    (1..=count)
        .map(|sum| {
            for (lane, step) in lanes.iter_mut().zip(steps) {
                *lane = lane.wrapping_mul(FACTOR).wrapping_add(step);
            }
            let mixed = lanes[0] ^ lanes[4] ^ lanes[2] ^ lanes[6];
            (mixed >> 16).wrapping_add(sum as u32) as u8
        })
        .collect()
}

/// Lets the guest go on until it stands in ring 3 and has said so many bytes.
fn stop_in_ring_3(machine: &Machine, console: &Console, said: usize) {
    console.wait("bytes", |bytes| bytes.len() >= said);
    for more in 1.. {
        machine.pause();
        let states = machine.save_processors().unwrap();
        if states[0].segments.cs.selector & 3 == 3 {
            assert!(states[0].xsave.bytes[576..832].iter().any(|&byte| byte != 0), "no AVX state");
            return;
        }
        machine.resume();
        console.wait("bytes", |bytes| bytes.len() >= said + more);
    }
}

/// A machine's settings on one of the engines.
type Settings<'a> = dyn Fn(&Path, &Console) -> MachineSettings + 'a;

/// Moves the guest through the engines and compares all it said.
fn travel(engines: &[(&str, &Settings<'_>)]) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel_in(folder.path(), &guest());
    let console = Console::default();
    let (mut machine, mut events) = Machine::new(engines[0].1(&kernel, &console)).unwrap();
    machine.resume();
    for (name, settings) in &engines[1..] {
        stop_in_ring_3(&machine, &console, console.bytes().len() + 3000);
        (machine, events) = move_on(machine, settings(&kernel, &console));
        eprintln!("on {name} after {} bytes", console.bytes().len());
    }
    console.wait("bytes", |bytes| bytes.len() >= 20_000);
    assert_eq!(machine.serial().push_input(b"q"), 1);
    assert_eq!(end(&events), MachineEvent::DebugExit(0x15));
    let said = console.bytes();
    assert!(said == expected(said.len()), "what it said is what an uninterrupted run says");
}

fn on_software(kernel: &Path, console: &Console) -> MachineSettings {
    settings(kernel, 1, 16 << 20, console)
}

fn translated(kernel: &Path, console: &Console) -> MachineSettings {
    let engine = SoftEngine::new().with_translation(Some(Default::default()));
    MachineSettings { engine: Arc::new(engine), ..on_software(kernel, console) }
}

#[test]
fn ring_3_avx_and_the_timer_go_on_in_a_fresh_machine() {
    travel(&[
        ("the interpreter", &on_software),
        ("the translator", &translated),
        ("the interpreter", &on_software),
    ]);
}

#[test]
fn ring_3_avx_and_the_timer_go_on_on_another_engine() {
    let kvm: Arc<dyn Engine> = match KvmEngine::open() {
        Ok(engine) => Arc::new(engine),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let software: Arc<dyn Engine> = Arc::new(SoftEngine::new());
    let model = common_model(&CpuModel::named("max").unwrap(), &[software.as_ref(), kvm.as_ref()]).unwrap();
    eprintln!("this host's KVM: {:?}; both have {}", kvm.worth(), model.features().names(" "));
    let lacking = FeatureSet::of("xsave avx2").without(model.features());
    if !lacking.is_empty() {
        return eprintln!("skipped: KVM here does not offer {}", lacking.names(", "));
    }
    let on_software = |kernel: &Path, console: &Console| MachineSettings {
        model: model.clone(),
        ..on_software(kernel, console)
    };
    let on_kvm = |kernel: &Path, console: &Console| MachineSettings {
        engine: kvm.clone(),
        carrier: Some(Carrier { steps: Arc::new(SoftEngine::carrier()), machine: software.clone() }),
        ..on_software(kernel, console)
    };
    travel(&[("the interpreter", &on_software), ("KVM", &on_kvm), ("the interpreter", &on_software)]);
}
