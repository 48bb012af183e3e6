//! A processor in flat 32-bit protected mode with tables to be filled in. Every vector's handler halts at an address
//! of its own, so that where a program stopped tells what became of it.

use crate::cpu::Cpu;
use crate::interp::harness::{cpu_in, flat};
use crate::system::event;
use engine::{VcpuIo, VmExit};
use guest_memory::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use x86::{CpuState, Cr0, DescriptorTable, Segment, SegmentAttributes};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const CODE: u64 = 0x4000;
/// Vector `n` halts at `HANDLERS + 16 * n`.
pub const HANDLERS: u64 = 0x6000;
pub const STACK: u64 = 0x9000;
/// Stack of ring 0 by the task-state segment.
pub const STACK0: u64 = 0xa000;

pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const TASK_A: u16 = 0x28;
/// The first selector that tests fill in.
pub const FREE: u16 = 0x30;

/// A segment descriptor; `flags` is the upper half of byte 6 (G, D/B, L, AVL).
pub fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// A gate descriptor; `low` is byte 4 (parameters or IST).
pub fn gate(selector: u16, offset: u64, access: u64, low: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | low << 32 | access << 40 | (offset >> 16 & 0xffff) << 48
}

/// A gate descriptor of IA-32e mode in two halves.
pub fn gate64(selector: u16, offset: u64, access: u64, low: u64) -> [u64; 2] {
    [gate(selector, offset & 0xffff_ffff, access, low), offset >> 32]
}

/// Ports that answer with their number.
pub struct Ports;

impl VcpuIo for Ports {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn acknowledge_pic(&self) -> u8 {
        0
    }
}

/// Memory and the state to start from.
pub struct Rig {
    pub memory: Arc<GuestMemory>,
    pub state: CpuState,
}

impl Rig {
    /// Ring 0, interrupts off, a 32-bit TSS at [`TSS`].
    pub fn new() -> Self {
        let memory = Arc::new(GuestMemory::new(&[(0, 4 << 20)]).expect("the host has a little memory"));
        let mut state = CpuState::reset(true);
        let data = flat(DATA0, 0xc093);
        state.segments.cs = flat(CODE0, 0xc09b);
        (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
        (state.segments.fs, state.segments.gs) = (data, data);
        state.segments.tr =
            Segment { selector: TASK_A, base: TSS, limit: 0x67, attributes: SegmentAttributes(0x8b) };
        state.gdtr = DescriptorTable { base: GDT, limit: 0xff };
        state.idtr = DescriptorTable { base: IDT, limit: 0x7ff };
        state.cr0 = (Cr0::PE | Cr0::NE | Cr0::ET).bits();
        state.rip = CODE;
        state.gprs[4] = STACK;
        let rig = Rig { memory, state };
        rig.describe(CODE0, descriptor(0, 0xf_ffff, 0x9b, 0xc));
        rig.describe(DATA0, descriptor(0, 0xf_ffff, 0x93, 0xc));
        rig.describe(CODE3, descriptor(0, 0xf_ffff, 0xfb, 0xc));
        rig.describe(DATA3, descriptor(0, 0xf_ffff, 0xf3, 0xc));
        rig.describe(TASK_A, descriptor(TSS, 0x67, 0x8b, 0));
        for vector in 0..=0xff {
            rig.put64(IDT + 8 * vector, gate(CODE0, HANDLERS + 16 * vector, 0xee, 0));
            rig.put(HANDLERS + 16 * vector, &[0xf4]);
        }
        rig.put32(TSS + 4, STACK0 as u32);
        rig.put32(TSS + 8, DATA0.into());
        // The I/O permission bitmap is behind the limit.
        rig.put16(TSS + 0x66, 0x68);
        rig
    }

    /// Ring 3 with the given I/O privilege level.
    pub fn user(iopl: u64) -> Self {
        let mut rig = Rig::new();
        let data = flat(DATA3, 0xc0f3);
        rig.state.segments.cs = flat(CODE3, 0xc0fb);
        (rig.state.segments.ss, rig.state.segments.ds, rig.state.segments.es) = (data, data, data);
        rig.state.rflags = 2 | iopl << 12;
        rig
    }

    /// Virtual-8086 mode at [`CODE`] (0400:0000) with a stack at 0900:0100.
    pub fn v86(iopl: u64) -> Self {
        let mut rig = Rig::new();
        let segment = |selector: u16| Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            attributes: SegmentAttributes(0xf3),
        };
        let s = &mut rig.state.segments;
        (s.cs, s.ss, s.ds) = (segment(0x400), segment(0x900), segment(0xd00));
        (s.es, s.fs, s.gs) = (segment(0xe00), segment(0xf00), segment(0xf10));
        (rig.state.rip, rig.state.gprs[4]) = (0, 0x100);
        rig.state.rflags = 0x2_0002 | iopl << 12;
        rig
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).expect("is RAM");
    }
    pub fn put16(&self, address: u64, value: u16) {
        self.put(address, &value.to_le_bytes());
    }
    pub fn put32(&self, address: u64, value: u32) {
        self.put(address, &value.to_le_bytes());
    }
    pub fn put64(&self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }
    pub fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(address, &mut bytes).expect("is RAM");
        bytes
    }
    pub fn get32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.get(address))
    }
    /// Sets a descriptor of the GDT.
    pub fn describe(&self, selector: u16, descriptor: u64) {
        self.put64(GDT + u64::from(selector & !7), descriptor);
    }
    /// The access byte of a descriptor of the GDT.
    pub fn access(&self, selector: u16) -> u8 {
        self.get::<1>(GDT + u64::from(selector & !7) + 5)[0]
    }

    /// Runs `code` until it halts, or for some instructions.
    pub fn run(&self, code: &[u8]) -> Ran {
        self.run_with(code, 50, 0)
    }

    /// As [`Rig::run`], with events that wait from the start.
    pub fn run_with(&self, code: &[u8], steps: u64, events: u32) -> Ran {
        let linear = self.state.segments.cs.base + self.state.rip;
        self.put(linear, code);
        let mut cpu = Box::new(cpu_in(Arc::clone(&self.memory), &self.state));
        cpu.events.fetch_or(events, Ordering::SeqCst);
        let exit = cpu.run(&Ports, Some(steps));
        Ran { cpu, exit }
    }
}

/// A program's end.
pub struct Ran {
    pub cpu: Box<Cpu>,
    pub exit: VmExit,
}

/// How a program ended: with a vector and its error code, or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It went on to its own HLT, or ran out of steps.
    Ran,
    /// An exception or interrupt without error code.
    Vector(u8),
    /// An exception with one.
    Code(u8, u32),
    /// Shutdown.
    Triple,
}

impl Ran {
    /// Where the program stopped.
    pub fn end(&self) -> End {
        if self.exit == VmExit::TripleFault {
            return End::Triple;
        }
        let rip = self.cpu.rip();
        let halted = rip.wrapping_sub(HANDLERS + 1);
        if self.exit != VmExit::Halted || !halted.is_multiple_of(16) || halted / 16 > 0xff {
            return End::Ran;
        }
        let vector = (halted / 16) as u8;
        if matches!(vector, 8 | 10..=14 | 17) { End::Code(vector, self.word(0)) } else { End::Vector(vector) }
    }

    /// A 32-bit word of the stack.
    pub fn word(&self, at: u64) -> u32 {
        let sp = self.cpu.gpr(4).wrapping_add(4 * at) + self.cpu.segment_base[2];
        let mut bytes = [0; 4];
        self.cpu.memory.read(sp, &mut bytes).expect("the stack is RAM");
        u32::from_le_bytes(bytes)
    }

    /// Words of the stack.
    pub fn words<const N: usize>(&self) -> [u32; N] {
        std::array::from_fn(|at| self.word(at as u64))
    }

    /// The handler's frame: RIP, CS and flags, without an error code.
    pub fn frame(&self) -> [u32; 3] {
        let skip = u64::from(matches!(self.end(), End::Code(..)));
        std::array::from_fn(|at| self.word(at as u64 + skip))
    }

    /// Sends events and goes on.
    pub fn go_on(&mut self, events: u32, steps: u64) {
        self.cpu.events.fetch_or(events, Ordering::SeqCst);
        self.exit = self.cpu.run(&Ports, Some(steps));
    }
}

/// The event of a non-maskable interrupt.
pub const NMI: u32 = event::NMI;
