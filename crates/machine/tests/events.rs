//! Notifications by ioeventfd and interrupts by irqfd, of a real guest on KVM: block and console I/O, moves between
//! engines in the middle of it, and a guest that moves its devices and rewrites its vectors all the time.
//!
//! The guest is an interpreter of scripts that the tests write into its memory: each command is a store, a load, or a
//! wait for the device or for an interrupt. A notification or an interrupt that is lost is a guest that waits for ever.

#[expect(dead_code, reason = "this guest is not saved, and says nothing on its serial port")]
mod rig;

use block::RawFile;
use chipset::serial::SerialBackend;
use engine::cpu_model::CpuModel;
use engine::{Engine, EngineKind};
use engine_kvm::KvmEngine;
use engine_soft::SoftEngine;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::{Disk, DiskLink, Machine, MachineEvent, MachineSettings, common_model};
use rig::{Console, image, kernel_in, settings};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Places in guest memory.
const GDT: u64 = 0x7000;
const IDT: u64 = 0x8000;
/// One counter of interrupts for each vector.
const COUNTERS: u32 = 0x9000;
const STACK: u32 = 0x9_0000;
const CODE: u32 = 0x10_0060;
const SCRIPT: u64 = 0x40_0000;
const VECTORS: std::ops::Range<u8> = 0x40..0x48;

/// Entropy is the first device, then come the disk and the console.
const DISK: u32 = 2;
const CONSOLE: u32 = 3;
const DISK_BAR: u32 = 0xd800_0000;
const CONSOLE_BAR: u32 = 0xd900_0000;
/// The MSI-X capability of a virtio function; its control register is the upper half.
const MSIX: u32 = 0x98;

/// Where a queue's parts lie, from the start of its device's memory.
const DRIVER: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const DISK_RINGS: u32 = 0x20_0000;
const CONSOLE_RINGS: u32 = 0x21_0000;
const QUEUE_SIZE: u32 = 8;
const HEADER: u32 = 0x22_0000;
const STATUS: u32 = 0x22_0100;
const DATA: u32 = 0x22_1000;
const WORDS: u32 = 0x22_2000;

/// Commands: number, address, value.
#[derive(Clone, Copy, Debug)]
enum Command {
    End(u8),
    Store8(u32, u32),
    Store16(u32, u32),
    Store32(u32, u32),
    Config(u32, u32, u32),
    /// Until the 16-bit number there is the value.
    Await(u32, u32),
    /// Until there were so many interrupts of a vector.
    AwaitInterrupts(u8, u32),
    /// Ends the guest with 66h if the number there is another.
    Check(u32, u32),
}

impl Command {
    fn encode(self) -> [u32; 4] {
        match self {
            Command::End(value) => [0, 0, value.into(), 0],
            Command::Store8(address, value) => [1, address, value, 0],
            Command::Store16(address, value) => [2, address, value, 0],
            Command::Store32(address, value) => [3, address, value, 0],
            Command::Config(device, register, value) => [4, 0x8000_0000 | device << 11 | register, value, 0],
            Command::Await(address, value) => [5, address, value, 0],
            Command::AwaitInterrupts(vector, count) => [6, counter(vector), count, 0],
            Command::Check(address, value) => [7, address, value, 0],
        }
    }
}

fn counter(vector: u8) -> u32 {
    COUNTERS + 4 * u32::from(vector)
}

/// What one command does with its address in EBX and its value in ECX.
fn emit_command(
    code: &mut CodeAssembler,
    number: u32,
    next: CodeLabel,
    failed: CodeLabel,
) -> Result<(), IcedError> {
    let mut again = code.create_label();
    match number {
        1 => code.mov(byte_ptr(ebx), cl)?,
        2 => code.mov(word_ptr(ebx), cx)?,
        3 => code.mov(dword_ptr(ebx), ecx)?,
        4 => {
            code.mov(eax, ebx)?;
            code.mov(edx, 0xcf8)?;
            code.out(dx, eax)?;
            code.mov(eax, ecx)?;
            code.mov(edx, 0xcfc)?;
            code.out(dx, eax)?;
        }
        5 => {
            code.set_label(&mut again)?;
            code.pause()?;
            code.cmp(word_ptr(ebx), cx)?;
            code.jne(again)?;
        }
        6 => {
            // Between STI and HLT no interrupt comes (SDM 2B, STI).
            let mut enough = code.create_label();
            code.set_label(&mut again)?;
            code.cli()?;
            code.cmp(dword_ptr(ebx), ecx)?;
            code.jge(enough)?;
            code.sti()?;
            code.hlt()?;
            code.jmp(again)?;
            code.set_label(&mut enough)?;
            code.sti()?;
        }
        _ => {
            code.cmp(dword_ptr(ebx), ecx)?;
            code.jne(failed)?;
        }
    }
    code.jmp(next)
}

/// The interpreter's body; answers where its interrupt handlers are.
fn emit(code: &mut CodeAssembler) -> Result<Vec<CodeLabel>, IcedError> {
    let [mut next, mut failed, mut finish, mut stay] = [0; 4].map(|_| code.create_label());
    code.mov(esp, STACK)?;
    code.mov(al, 0xff)?;
    code.out(0x21, al)?;
    code.out(0xa1, al)?;
    code.mov(edi, 0xfee0_0000_u32)?;
    code.mov(dword_ptr(edi + 0xf0), 0x1ff)?;
    code.sti()?;
    code.mov(esi, SCRIPT as u32)?;
    code.set_label(&mut next)?;
    code.mov(eax, dword_ptr(esi))?;
    code.mov(ebx, dword_ptr(esi + 4))?;
    code.mov(ecx, dword_ptr(esi + 8))?;
    code.add(esi, 16)?;
    code.test(eax, eax)?;
    code.je(finish)?;
    for number in 1..=7 {
        let mut skip = code.create_label();
        code.cmp(eax, number)?;
        code.jne(skip)?;
        emit_command(code, number, next, failed)?;
        code.set_label(&mut skip)?;
        code.nop()?;
    }
    code.set_label(&mut failed)?;
    code.mov(ecx, 0x66)?;
    code.set_label(&mut finish)?;
    code.mov(eax, ecx)?;
    code.out(0xf4, al)?;
    code.set_label(&mut stay)?;
    code.hlt()?;
    code.jmp(stay)?;
    let mut handlers = Vec::new();
    for vector in VECTORS {
        let mut handler = code.create_label();
        code.set_label(&mut handler)?;
        code.push(ebx)?;
        code.mov(ebx, counter(vector))?;
        code.inc(dword_ptr(ebx))?;
        code.pop(ebx)?;
        code.mov(dword_ptr(edi + 0xb0), 0)?;
        // Not IRET, which poor KVMs lack: push dword [esp+8]; popfd; retf 4
        code.db(&[0xff, 0x74, 0x24, 8, 0x9d, 0xca, 4, 0])?;
        handlers.push(handler);
    }
    Ok(handlers)
}

/// The interpreter, and where its interrupt handlers are.
fn interpreter() -> (Vec<u8>, Vec<u32>) {
    let mut code = CodeAssembler::new(32).unwrap();
    let handlers = emit(&mut code).unwrap();
    // Segments come first: lgdt [GDT-8]; lidt [IDT-8]; jmp 8:next; next: mov eax,10h; mov ds,eax; mov es,eax; mov ss,eax
    let mut bytes = vec![0x0f, 0x01, 0x15];
    bytes.extend((GDT as u32 - 8).to_le_bytes());
    bytes.extend([0x0f, 0x01, 0x1d]);
    bytes.extend((IDT as u32 - 8).to_le_bytes());
    bytes.push(0xea);
    bytes.extend((CODE + 21).to_le_bytes());
    bytes.extend([8, 0, 0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]);
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let assembled = code.assemble_options(u64::from(CODE) + bytes.len() as u64, options).unwrap();
    let addresses = handlers.iter().map(|handler| assembled.label_ip(handler).unwrap() as u32).collect();
    bytes.extend(assembled.inner.code_buffer);
    (bytes, addresses)
}

/// Puts tables and a script into a machine's memory.
fn load(machine: &Machine, handlers: &[u32], script: &[Command]) {
    let put = |address: u64, bytes: &[u8]| machine.memory().write(address, bytes).unwrap();
    let pointer = |limit: u16, base: u64| [&limit.to_le_bytes()[..], &(base as u32).to_le_bytes()].concat();
    put(GDT - 8, &pointer(23, GDT));
    put(IDT - 8, &pointer(0x7ff, IDT));
    let segments: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    put(GDT, &segments.map(u64::to_le_bytes).concat());
    for (vector, &handler) in VECTORS.zip(handlers) {
        let gate = u64::from(handler & 0xffff) | 8 << 16 | 0x8e00 << 32 | u64::from(handler >> 16) << 48;
        put(IDT + 8 * u64::from(vector), &gate.to_le_bytes());
    }
    let words: Vec<u8> =
        script.iter().flat_map(|command| command.encode()).flat_map(u32::to_le_bytes).collect();
    put(SCRIPT, &words);
}

/// Brings a device up (virtio 3.1.1) with one queue, message `vector` for it, its rings at `rings`.
fn start_device(device: u32, bar: u32, queue: u32, vector: u8, rings: u32) -> Vec<Command> {
    use Command::*;
    let table = bar + 0x4000;
    vec![
        Config(device, 0x10, bar),
        Config(device, 0x14, 0),
        Config(device, 4, 6),
        Config(device, MSIX, 0x8000_0000),
        Store8(bar + 0x14, 0),
        Store8(bar + 0x14, 3),
        Store32(bar + 8, 1),
        Store32(bar + 0xc, 1),
        Store8(bar + 0x14, 11),
        Store32(table, 0xfee0_0000),
        Store32(table + 4, 0),
        Store32(table + 8, vector.into()),
        Store32(table + 12, 0),
        Store16(bar + 0x16, queue),
        Store16(bar + 0x18, QUEUE_SIZE),
        Store16(bar + 0x1a, 0),
        Store32(bar + 0x20, rings),
        Store32(bar + 0x28, rings + DRIVER),
        Store32(bar + 0x30, rings + DEVICE),
        Store16(bar + 0x1c, 1),
        Store8(bar + 0x14, 15),
    ]
}

fn descriptor(at: u32, address: u32, len: u32, flags: u16, next: u16) -> Vec<Command> {
    use Command::*;
    let words = [address, 0, len, u32::from(next) << 16 | u32::from(flags)];
    (0..).zip(words).map(|(word, value)| Store32(at + 4 * word, value)).collect()
}

/// What each sector begins with.
fn word_of(sector: u32) -> u32 {
    sector.wrapping_mul(0x9e37_79b1)
}

const SECTORS: u32 = 256;

/// A read of a sector, the `number`th request (from 1): every one must be notified, served and interrupted for.
fn read_sector(number: u32, bar: u32, vector: u8) -> Vec<Command> {
    use Command::*;
    let sector = number * 7 % SECTORS;
    vec![
        Store32(HEADER + 8, sector),
        Store16(DISK_RINGS + DRIVER + 2, number & 0xffff),
        Store16(bar + 0x3000, 0),
        Await(DISK_RINGS + DEVICE + 2, number & 0xffff),
        AwaitInterrupts(vector, number),
        Check(DATA, word_of(sector)),
    ]
}

fn start_disk() -> Vec<Command> {
    let mut script = start_device(DISK, DISK_BAR, 0, 0x40, DISK_RINGS);
    // Header, data, status; every entry of the available ring is descriptor 0 (virtio 2.7, 5.2.6).
    script.extend(descriptor(DISK_RINGS, HEADER, 16, 1, 1));
    script.extend(descriptor(DISK_RINGS + 16, DATA, 512, 3, 2));
    script.extend(descriptor(DISK_RINGS + 32, STATUS, 1, 2, 0));
    script
}

/// Collects what the guest says on its virtio console.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl SerialBackend for Heard {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

struct World {
    _folder: tempfile::TempDir,
    machine: Machine,
    events: std::sync::mpsc::Receiver<MachineEvent>,
    heard: Heard,
    kvm: Arc<dyn Engine>,
    software: Arc<dyn Engine>,
}

fn machine_on(
    kernel: &Path,
    engine: Arc<dyn Engine>,
    model: CpuModel,
    disk: &Path,
    heard: &Heard,
) -> MachineSettings {
    let mut settings = settings(kernel, 1, 16 << 20, &Console::default());
    settings.engine = engine;
    settings.model = model;
    settings.board.console = Some(Arc::new(heard.clone()));
    settings.board.disks.push(Disk {
        backend: Arc::new(RawFile::open(disk, false).unwrap()),
        serial: String::new(),
        queues: 1,
        packed: false,
        link: DiskLink::reporting(),
    });
    settings
}

/// A machine on KVM that is about to run a script; says what is lacking if there is none.
fn world(script: &[Command]) -> Option<World> {
    let kvm: Arc<dyn Engine> = match KvmEngine::open() {
        Ok(engine) => Arc::new(engine),
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let software: Arc<dyn Engine> = Arc::new(SoftEngine::new());
    let model = common_model(&CpuModel::named("max").unwrap(), &[kvm.as_ref(), software.as_ref()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (code, handlers) = interpreter();
    let kernel = kernel_in(folder.path(), &image(&code));
    let disk = folder.path().join("disk.raw");
    let sector = |number| [word_of(number).to_le_bytes().to_vec(), vec![0; 508]].concat();
    std::fs::write(&disk, (0..SECTORS).flat_map(sector).collect::<Vec<u8>>()).unwrap();
    let heard = Heard::default();
    let (machine, events) = Machine::new(machine_on(&kernel, kvm.clone(), model, &disk, &heard)).unwrap();
    load(&machine, &handlers, script);
    Some(World { _folder: folder, machine, events, heard, kvm, software })
}

impl World {
    /// The machine's end, which is what the guest says it is; where it stands if there is none.
    fn end(&self) -> MachineEvent {
        self.events.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|_| {
            self.machine.pause();
            let state = &self.machine.save_processors().unwrap()[0];
            let mut counters = [0; 32];
            self.machine.memory().read(COUNTERS.into(), &mut counters).unwrap();
            panic!(
                "the guest stands at {:#x} with {:x?}, interrupts {counters:?}, {:?}",
                state.rip,
                state.gprs,
                self.machine.counts().counts
            )
        })
    }

    fn count(&self, name: &str) -> u64 {
        self.machine.counts().counts.get(name).copied().unwrap_or(0)
    }

    /// Whether this KVM carries events; says so if not.
    fn carries_events(&self) -> bool {
        let carries = self.count("doorbells_by_event") > 0 && self.count("interrupts_by_event") > 0;
        if !carries {
            eprintln!("not tried: this host's KVM has no ioeventfd or no irqfd");
        }
        carries
    }
}

#[test]
fn block_and_console_io_notify_and_interrupt_by_events() {
    use Command::*;
    const READS: u32 = 300;
    let mut script = start_disk();
    (1..=READS).for_each(|number| script.extend(read_sector(number, DISK_BAR, 0x40)));
    script.extend(start_device(CONSOLE, CONSOLE_BAR, 1, 0x41, CONSOLE_RINGS));
    script.extend(descriptor(CONSOLE_RINGS, WORDS, 4, 0, 0));
    for (number, letter) in (1..).zip(b'a'..=b'z') {
        script.extend([
            Store32(WORDS, u32::from(letter) * 0x0101_0101),
            Store16(CONSOLE_RINGS + DRIVER + 2, number),
            Store16(CONSOLE_BAR + 0x3004, 1),
            AwaitInterrupts(0x41, number),
        ]);
    }
    // A masked vector is pending, and comes with its new number when it is unmasked.
    let (table, last) = (DISK_BAR + 0x4000, READS + 1);
    let masked_read = [
        Store32(table + 12, 1),
        Store16(DISK_RINGS + DRIVER + 2, last),
        Store16(DISK_BAR + 0x3000, 0),
        Await(DISK_RINGS + DEVICE + 2, last),
        // The guest sees it in the pending bits (PCI 3.0, 6.8.2.9).
        Await(DISK_BAR + 0x5000, 1),
    ];
    script.extend(masked_read);
    script.extend([
        Check(counter(0x40), READS),
        Store32(table + 8, 0x42),
        Store32(table + 12, 0),
        AwaitInterrupts(0x42, 1),
        Check(counter(0x40), READS),
        End(0x15),
    ]);
    let Some(mut world) = world(&script) else { return };
    world.machine.resume();
    assert_eq!(world.end(), MachineEvent::DebugExit(0x15));
    let said: Vec<u8> = (b'a'..=b'z').flat_map(|letter| [letter; 4]).collect();
    assert_eq!(*world.heard.0.lock().unwrap(), said);
    world.machine.pause();
    if world.carries_events() {
        assert_eq!(world.count("doorbells_by_event"), u64::from(READS) + 26 + 1, "all of them");
        // The first of each message goes without a route.
        assert_eq!(world.count("interrupts_by_event"), u64::from(READS) - 1 + 25);
    }
    assert_eq!(world.machine.engine(), EngineKind::Kvm);
    world.machine.reset().unwrap();
}

#[test]
fn nothing_is_lost_when_the_engine_changes_during_io() {
    const READS: u32 = 4000;
    let mut script = start_disk();
    (1..=READS).for_each(|number| script.extend(read_sector(number, DISK_BAR, 0x40)));
    // Neither more nor fewer.
    script.extend([Command::Check(counter(0x40), READS), Command::End(0x15)]);
    let Some(mut world) = world(&script) else { return };
    world.machine.resume();
    let mut ended = None;
    for round in 0..40_u64 {
        match world.events.recv_timeout(Duration::from_micros(3000 + round * 997 % 7000)) {
            Ok(event) => {
                ended = Some(event);
                break;
            }
            Err(_) => world.machine.pause(),
        }
        let next = if round % 2 == 0 { &world.software } else { &world.kvm };
        world.machine.switch_engine(next.clone(), None).unwrap();
        world.machine.resume();
    }
    let switches = world.machine.engine_switches();
    assert_eq!(ended.unwrap_or_else(|| world.end()), MachineEvent::DebugExit(0x15));
    world.machine.pause();
    eprintln!(
        "{switches} switches; doorbells {} by event, {} by exit",
        world.count("doorbells_by_event"),
        world.count("doorbells_by_exit")
    );
    assert!(switches > 0, "it ended before the first switch");
    let doorbells = world.count("doorbells_by_event") + world.count("doorbells_by_exit");
    assert_eq!(doorbells, u64::from(READS));
}

#[test]
fn a_guest_that_moves_bars_and_rewrites_vectors_harms_only_itself() {
    use Command::*;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |bound: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 33) as u32 % bound
    };
    let mut script = start_disk();
    script.extend(start_device(CONSOLE, CONSOLE_BAR, 1, 0x41, CONSOLE_RINGS));
    let bars = [DISK_BAR, CONSOLE_BAR, 0xda00_0000, 0xfee0_0000, 0xfec0_0000, 0x10_0000, 0xffff_8000];
    for _ in 0..3000 {
        let device = [DISK, CONSOLE][next(2) as usize];
        let bar = bars[next(7) as usize];
        script.push(match next(8) {
            0 => Config(device, 0x10, bar),
            1 => Config(device, 0x14, next(2)),
            2 => Config(device, 4, next(8)),
            3 => Config(device, MSIX, next(4) << 30),
            4 | 5 => Store32(bar.min(0xdfff_0000) + 0x4000 + 4 * next(8), 0xfee0_0000 | next(0x100_0000)),
            6 => Store16(bars[next(3) as usize] + 0x3000 + 4 * next(3), next(3)),
            _ => Store8(bars[next(3) as usize] + 0x14, 0),
        });
        if let Some(Store32(address, _)) = script.last()
            && *address < 0xd000_0000
        {
            // Not over its own program.
            script.pop();
        }
    }
    // After all that a driver that keeps the rules finds a device that does.
    script.extend([Config(DISK, 4, 0), Config(CONSOLE, 4, 0), Config(DISK, MSIX, 0)]);
    script.extend([
        Store32(DISK_RINGS + DRIVER, 0),
        Store32(DISK_RINGS + DEVICE, 0),
        Store32(counter(0x43), 0),
    ]);
    let mut again = start_disk();
    again.iter_mut().for_each(|command| {
        if let Store32(address, value) = command
            && *address == DISK_BAR + 0x4008
        {
            *value = 0x43;
        }
    });
    script.extend(again);
    (1..=50).for_each(|number| script.extend(read_sector(number, DISK_BAR, 0x43)));
    script.push(End(0x15));
    let Some(world) = world(&script) else { return };
    world.machine.resume();
    assert_eq!(world.end(), MachineEvent::DebugExit(0x15));
    world.machine.pause();
    assert!(!world.carries_events() || world.count("doorbells_by_event") >= 50);
}
