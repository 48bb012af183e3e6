//! A machine with 16 MiB of RAM, a recording port and MMIO space, and ways to start code in it.
#![expect(dead_code, reason = "each test binary uses its part")]

use engine::cpu_model::CpuModel;
use engine::{Engine, Kick, Vcpu, VcpuIo, Vm, VmExit, VmSettings};
use engine_kvm::KvmEngine;
use guest_clock::{HostEntropy, ManualClock};
use guest_memory::GuestMemory;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use x86::{CpuState, Segment, SegmentAttributes};

/// Where code goes.
pub const CODE: u64 = 0x8000;
/// Writing to this port ends a run.
pub const DONE: u16 = 0xf4;
/// The local APIC page and 2 MiB around it are mapped in long mode, too.
const TABLES: u64 = 0x1000;

pub struct Machine {
    pub memory: Arc<GuestMemory>,
    pub vm: Arc<dyn Vm>,
    pub vcpu: Box<dyn Vcpu>,
    pub io: Recorder,
}

/// A callback as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Load(u64, usize),
    Store(u64, Vec<u8>),
    Eoi(u8),
    AcknowledgePic,
}

/// Records callbacks; reads answer the bytes 0x11, 0x22, 0x33...
#[derive(Default)]
pub struct Recorder {
    pub calls: Mutex<Vec<Call>>,
    pub done: Mutex<Option<Arc<dyn Kick>>>,
    pub pic_line: Mutex<Option<Arc<dyn Vm>>>,
}

impl Recorder {
    fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn pattern(data: &mut [u8]) {
    (1..).zip(data).for_each(|(at, byte)| *byte = at * 0x11);
}

impl VcpuIo for Recorder {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.record(Call::In(port, data.len()));
        pattern(data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        if port == DONE {
            self.done.lock().unwrap().as_ref().unwrap().kick();
        } else {
            self.record(Call::Out(port, data.to_vec()));
        }
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.record(Call::Load(address, data.len()));
        pattern(data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.record(Call::Store(address, data.to_vec()));
    }
    fn eoi(&self, vector: u8) {
        self.record(Call::Eoi(vector));
    }
    fn acknowledge_pic(&self) -> u8 {
        self.record(Call::AcknowledgePic);
        if let Some(vm) = self.pic_line.lock().unwrap().as_ref() {
            vm.set_pic_line(false);
        }
        0x21
    }
}

/// A machine, or `None` with a word on standard error.
pub fn machine() -> Option<Machine> {
    let engine = match KvmEngine::open() {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let memory = Arc::new(GuestMemory::new(&[(0, 16 << 20)]).unwrap());
    let settings = VmSettings {
        memory: Arc::clone(&memory),
        cpus: 1,
        model: model(),
        tsc_khz: None,
        lenient_xrstor: false,
        clock: Arc::new(ManualClock::default()),
        entropy: Arc::new(HostEntropy),
    };
    let vm = engine.create_vm(settings).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let io = Recorder::default();
    *io.done.lock().unwrap() = Some(vcpu.kicker());
    Some(Machine { memory, vm, vcpu, io })
}

fn model() -> CpuModel {
    CpuModel::named("host").unwrap()
}

fn segment(selector: u16, attributes: u16, limit: u32) -> Segment {
    Segment { selector, base: 0, limit, attributes: SegmentAttributes(attributes) }
}

impl Machine {
    /// Loads code and points a state in real mode at it.
    pub fn real_mode(&mut self, code: &[u8]) -> CpuState {
        self.memory.write(CODE, code).unwrap();
        let mut state = self.vcpu.state().unwrap();
        state.segments.cs.base = 0;
        state.segments.cs.selector = 0;
        state.rip = CODE;
        state.gprs[4] = 0x7000;
        state.rflags = 2;
        state
    }

    /// Loads code and points a state in 64-bit mode at it: the first GiB and the one below 4 GiB mapped to
    /// themselves, an IDT at 0x5000 of which nothing is present, a stack at 0x7000.
    pub fn long_mode(&mut self, code: &[u8]) -> CpuState {
        self.memory.write(CODE, code).unwrap();
        let entry = |address: u64, value: u64| self.memory.write(address, &value.to_le_bytes()).unwrap();
        entry(TABLES, (TABLES + 0x1000) | 3);
        entry(TABLES + 0x1000, (TABLES + 0x2000) | 3);
        entry(TABLES + 0x1000 + 3 * 8, (TABLES + 0x3000) | 3);
        for at in 0..512 {
            entry(TABLES + 0x2000 + at * 8, at << 21 | 0x83);
            entry(TABLES + 0x3000 + at * 8, ((3 << 30) + (at << 21)) | 0x9b);
        }
        let gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff_u64];
        (0..).zip(gdt).for_each(|(at, descriptor)| entry(0x6000 + at * 8, descriptor));
        let mut state = self.vcpu.state().unwrap();
        let data = segment(0x10, 0xc093, u32::MAX);
        state.segments.cs = segment(8, 0xa09b, u32::MAX);
        for register in ["ds", "es", "ss", "fs", "gs"] {
            let segments = &mut state.segments;
            *match register {
                "ds" => &mut segments.ds,
                "es" => &mut segments.es,
                "ss" => &mut segments.ss,
                "fs" => &mut segments.fs,
                _ => &mut segments.gs,
            } = data;
        }
        state.gdtr.base = 0x6000;
        state.gdtr.limit = 23;
        state.idtr.base = 0x5000;
        state.idtr.limit = 0xfff;
        state.cr0 = 0x8001_0033;
        state.cr3 = TABLES;
        state.cr4 = 0x620;
        state.efer = 0x500;
        state.rip = CODE;
        state.gprs[4] = 0x7000;
        state.rflags = 2;
        state
    }

    /// Points an interrupt gate of the long-mode IDT at an address.
    pub fn gate(&self, vector: u8, handler: u64) {
        let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        let at = 0x5000 + u64::from(vector) * 16;
        self.memory.write(at, &low.to_le_bytes()).unwrap();
        self.memory.write(at + 8, &(handler >> 32).to_le_bytes()).unwrap();
    }

    /// Runs from a state until the code writes to [`DONE`]; at most ten seconds.
    pub fn run(&mut self, state: &CpuState) -> VmExit {
        self.vcpu.set_state(state).unwrap();
        self.resume()
    }

    /// Runs on, at most ten seconds.
    pub fn resume(&mut self) -> VmExit {
        let (finished, wait) = std::sync::mpsc::channel::<()>();
        let kicker = self.vcpu.kicker();
        let guard = std::thread::spawn(move || {
            let late = wait
                .recv_timeout(Duration::from_secs(10))
                .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout);
            if late {
                kicker.kick();
            }
            late
        });
        let exit = self.vcpu.run(&self.io);
        drop(finished);
        assert!(!guard.join().unwrap(), "the guest did not finish");
        exit
    }
}
