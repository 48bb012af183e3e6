//! A machine that is saved in the middle of its work and goes on in a fresh one, on the software CPU.

mod rig;

use block::RawFile;
use engine::cpu_model::CpuModel;
use engine_soft::SoftEngine;
use machine::{
    Disk, DiskLink, Machine, MachineError, MachineEvent, MachineSettings, RestoreError, SavedMachine,
};
use rig::{Console, end, image, kernel_in, move_on, settings};
use std::path::PathBuf;
use std::sync::Arc;

/// How many bytes the counting guest says.
const COUNT: u32 = 30_000;

/// Fills 64 KiB at 2 MiB with a generator's numbers, says `COUNT` bytes that are mixed from registers, x87 and that
/// memory, and ends.
fn counting_guest() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend_from_slice(&COUNT.to_le_bytes()); // mov ecx, COUNT
    code.extend_from_slice(&[0xbb, 1, 0, 0, 0]); // mov ebx, 1
    code.extend_from_slice(&[0xdb, 0xe3, 0xd9, 0xe8]); // fninit; fld1
    let start = code.len();
    code.extend_from_slice(&[0x69, 0xdb, 0x6d, 0x4e, 0xc6, 0x41]); // imul ebx, ebx, 41c64e6dh
    code.extend_from_slice(&[0x81, 0xc3, 0x39, 0x30, 0, 0]); // add ebx, 3039h
    code.extend_from_slice(&[0x0f, 0xb7, 0xf3]); // movzx esi, bx
    code.extend_from_slice(&[0xd9, 0xe8, 0xde, 0xc1]); // fld1; faddp
    code.extend_from_slice(&[0xdb, 0x15, 0, 0, 0x30, 0]); // fist dword [300000h]
    code.extend_from_slice(&[0xa1, 0, 0, 0x30, 0]); // mov eax, [300000h]
    code.extend_from_slice(&[0x00, 0x86, 0, 0, 0x20, 0]); // add [esi+200000h], al
    code.extend_from_slice(&[0x8a, 0x86, 0, 0, 0x20, 0]); // mov al, [esi+200000h]
    code.extend_from_slice(&[0x66, 0xba, 0xf8, 0x03, 0xee, 0x49]); // mov dx, 3f8h; out dx, al; dec ecx
    code.extend_from_slice(&[0x0f, 0x85]); // jnz start
    let back = start as i32 - (code.len() as i32 + 4);
    code.extend_from_slice(&back.to_le_bytes());
    code.extend_from_slice(&[0xb0, 0x15, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd]); // debug exit 15h
    image(&code)
}

/// The bytes of [`counting_guest`], computed here.
fn counted() -> Vec<u8> {
    let mut memory = vec![0_u8; 1 << 16];
    let (mut ebx, mut sum) = (1_u32, 1_u32);
    let mut say = || {
        ebx = ebx.wrapping_mul(0x41c6_4e6d).wrapping_add(0x3039);
        sum += 1;
        let cell = &mut memory[usize::from(ebx as u16)];
        *cell = cell.wrapping_add(sum as u8);
        *cell
    };
    (0..COUNT).map(|_| say()).collect()
}

#[test]
fn a_small_guest_goes_on_in_a_fresh_machine() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel_in(folder.path(), &counting_guest());
    let console = Console::default();
    let (mut machine, mut events) = Machine::new(settings(&kernel, 1, 16 << 20, &console)).unwrap();
    machine.resume();
    for said in [100, 5000, 20_000] {
        console.wait("bytes", |bytes| bytes.len() >= said);
        (machine, events) = move_on(machine, settings(&kernel, 1, 16 << 20, &console));
    }
    assert_eq!(end(&events), MachineEvent::DebugExit(0x15));
    assert!(console.bytes() == counted(), "what it said is what an uninterrupted run says");
    drop(machine);
}

#[test]
fn a_machine_that_differs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel_in(folder.path(), &counting_guest());
    let console = Console::default();
    let (machine, _events) = Machine::new(settings(&kernel, 1, 16 << 20, &console)).unwrap();
    let saved = machine.save().unwrap();
    let refused = |settings, saved: &SavedMachine| match Machine::restore(settings, saved) {
        Err(MachineError::Restore(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("accepted"),
    };
    let fitting = || settings(&kernel, 1, 16 << 20, &console);
    let two = settings(&kernel, 2, 16 << 20, &console);
    assert!(matches!(refused(two, &saved), RestoreError::Processors { saved: 1, wanted: 2 }));
    let model = MachineSettings { model: CpuModel::named("x86-64-v2").unwrap(), ..fitting() };
    assert!(matches!(refused(model, &saved), RestoreError::Model { .. }));
    let mut older = saved.clone();
    older.state.version = 0;
    assert!(matches!(refused(fitting(), &older), RestoreError::Version { found: 0 }));
    let mut outside = saved.clone();
    outside.memory.push(machine::MemoryRun { address: 16 << 20, bytes: vec![1; 4096] });
    assert!(matches!(refused(fitting(), &outside), RestoreError::Memory { address: 0x100_0000, .. }));
    let mut without = saved.clone();
    let gone = without.state.devices.pop().unwrap().name;
    assert!(
        matches!(refused(fitting(), &without), RestoreError::DeviceWithoutRecord { name } if name == gone)
    );
    let mut twice = saved.clone();
    twice.state.devices.push(saved.state.devices[0].clone());
    assert!(matches!(refused(fitting(), &twice), RestoreError::DeviceWithoutRecord { .. }));
    let mut foreign = saved.clone();
    foreign.state.devices.push(device::Record { name: "disk9".into(), ..saved.state.devices[0].clone() });
    assert!(
        matches!(refused(fitting(), &foreign), RestoreError::RecordWithoutDevice { name } if name == "disk9")
    );
    let mut torn = saved.clone();
    torn.state.devices[0].payload.truncate(3);
    assert!(matches!(refused(fitting(), &torn), RestoreError::Device(_)));
}

fn wait_for(console: &Console, text: &str) {
    console.wait(text, |said| said.windows(text.len()).any(|window| window == text.as_bytes()));
}

/// Kernel, initramfs and guest program, if the environment names them.
fn stock_guests() -> Option<PathBuf> {
    let Some(guests) = std::env::var_os("VIREO_GUESTS") else {
        eprintln!("skipped: no VIREO_GUESTS; `cargo xtask test` sets it");
        return None;
    };
    Some(guests.into())
}

/// The lines of the guest program's work.
fn work_lines(said: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(said).replace('\r', "");
    text.lines().filter(|line| line.starts_with("vireo-work")).map(str::to_owned).collect()
}

/// Debian's kernel with two processors, timers and a program whose output depends on every step before: moved while
/// it boots and twice while it works, between an engine that interprets and one that translates.
#[test]
fn a_stock_kernel_goes_on_in_a_fresh_machine() {
    const STEPS: &str = "40";
    let Some(guests) = stock_guests() else { return };
    let console = Console::default();
    let settings = |translate: bool| {
        let translation = translate.then(engine_soft::translate::TranslationSettings::default);
        let mut settings = settings(&guests.join("vmlinuz"), 2, 256 << 20, &console);
        settings.engine = Arc::new(SoftEngine::new().with_translation(translation));
        settings.boot.initrd = Some(guests.join("initramfs.cpio.gz"));
        settings.boot.append = format!("console=ttyS0 vireo.test=work,{STEPS}");
        settings
    };
    let (machine, _unheard) = Machine::new(settings(true)).unwrap();
    machine.resume();
    wait_for(&console, "smpboot: Total of 2 processors activated");
    let (mut machine, mut events) = move_on(machine, settings(true));
    for (text, translate) in [("vireo-work 5 ", false), ("vireo-work 8 ", true)] {
        wait_for(&console, text);
        (machine, events) = move_on(machine, settings(translate));
    }
    assert_eq!(end(&events), MachineEvent::PowerOff);
    drop(machine);
    // The same program on this host's processor.
    let here =
        std::process::Command::new(guests.join("guest-program")).args(["work", STEPS]).output().unwrap();
    let said = console.bytes();
    assert_eq!(work_lines(&said), work_lines(&here.stdout));
    let text = String::from_utf8_lossy(&said);
    for complaint in ["Call Trace", "soft lockup", "rcu_sched", "unstable", "APIC error", "nobody cared"] {
        assert!(!text.contains(complaint), "{complaint}: {text}");
    }
}

/// Debian's kernel reads a disk and writes to it, and is moved while it does: what it read is what lies there, and what it
/// wrote is read back right in the last machine.
#[test]
fn a_disk_goes_on_in_a_fresh_machine() {
    const SIZE: usize = 16 << 20;
    let Some(guests) = stock_guests() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let content: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    std::fs::write(&path, &content).unwrap();
    let console = Console::default();
    let settings = || {
        let mut settings = settings(&guests.join("vmlinuz"), 2, 256 << 20, &console);
        settings.engine = Arc::new(SoftEngine::new().with_translation(Some(Default::default())));
        settings.boot.initrd = Some(guests.join("initramfs.cpio.gz"));
        settings.boot.append = "console=ttyS0 vireo.test=block".to_owned();
        let backend = Arc::new(RawFile::open(&path, false).unwrap());
        let (serial, link) = ("moved".to_owned(), DiskLink::reporting());
        settings.board.disks = vec![Disk { backend, serial, queues: 2, packed: false, link }];
        settings
    };
    let (mut machine, mut events) = Machine::new(settings()).unwrap();
    machine.resume();
    for text in ["VIREO-INIT-OK", "VIREO-BLOCK-SIZE 32768 ro=0 serial=moved", "VIREO-BLOCK-READ"] {
        wait_for(&console, text);
        (machine, events) = rig::move_with(machine, settings);
    }
    assert_eq!(end(&events), MachineEvent::PowerOff);
    let said = String::from_utf8_lossy(&console.bytes()).replace('\r', "");
    assert!(said.contains("VIREO-BLOCK-OK"), "{said}");
    drop(machine);
    // The guest writes 4 MiB from 1 MiB on, and nothing else.
    let after = std::fs::read(&path).unwrap();
    let written = 1 << 20..5 << 20;
    assert!(after[written.clone()].starts_with(b"1\n2\n3\n"));
    assert!(after[..written.start] == content[..written.start]);
    assert!(after[written.end..] == content[written.end..]);
}
