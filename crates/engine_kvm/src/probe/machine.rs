//! Throw-away machines for snippets.

use super::snippets::Snippet;
use crate::cpuid::{MARK, Source};
use crate::{KvmEngine, KvmVm};
use engine::cpu_model::CpuModel;
use engine::{Engine, EngineError, Kick, Vcpu, VcpuIo, VmExit, VmSettings};
use guest_clock::{HostEntropy, MachineClock};
use guest_memory::{GuestMemory, MemoryError};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use x86::{CpuState, Segment, SegmentAttributes, msr};

/// How long a snippet may take, and then how long its thread may take to notice the kick.
const LIMIT: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);

/// Memory map of the machine.
pub(super) const CODE: u64 = 0x8000;
/// Code in ring 3, and what its SYSCALL enters.
pub(super) const USER_CODE: u64 = 0x8800;
pub(super) const SYSCALL_ENTRY: u64 = 0x8900;
/// Where every exception goes that the snippet expects.
pub(super) const HANDLER: u64 = 0xa000;
/// RDI points here.
pub(super) const SCRATCH: u64 = 0x9000;
const TABLES: u64 = 0x1000;
const IDT: u64 = 0x5000;
const IDT_SIZE: usize = 0x1000;
const GDT: u64 = 0x6000;
const STACK: u64 = 0x7000;
const TSS: u64 = 0x7800;
const SIZE: u64 = 1 << 20;

/// Written when the snippet came to its end.
pub(super) const DONE_PORT: u16 = 0xf4;
/// Written to have the time taken.
pub(super) const TIME_PORT: u16 = 0xe0;

/// How a snippet ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It came to its end; the moments of its writes to [`TIME_PORT`].
    Finished { times: Vec<Instant> },
    /// Something else ended the run.
    Stopped(VmExit),
    /// The time limit did. `kicked` says whether KVM let go of the thread.
    TimedOut { kicked: bool },
    /// The machine could not even be made.
    Refused(String),
}

impl Outcome {
    pub(super) fn words(&self) -> String {
        match self {
            Outcome::Finished { .. } => "works".to_owned(),
            Outcome::Stopped(VmExit::EmulationFailure { detail } | VmExit::Failed { detail }) => {
                detail.clone()
            }
            Outcome::Stopped(VmExit::TripleFault) => "ends in a triple fault".to_owned(),
            Outcome::Stopped(exit) => format!("ends the run ({exit:?})"),
            Outcome::TimedOut { kicked: true } => format!("not done after {} s", LIMIT.as_secs()),
            Outcome::TimedOut { kicked: false } => {
                "hangs inside the kernel and cannot be interrupted".to_owned()
            }
            Outcome::Refused(reason) => reason.clone(),
        }
    }
}

enum Message {
    Started(Arc<dyn Kick>),
    Ended(Outcome),
}

/// Makes the machine, on the thread that runs it.
type Maker = dyn Fn() -> Result<ThrowAway, SetupError> + Send + Sync;

/// Runs snippets, on a thread of its own and on one machine as long as that is sound.
pub(super) struct Bench {
    maker: Arc<Maker>,
    worker: Option<Worker>,
}

/// The thread with the machine, which ends when nobody can ask it any more.
struct Worker {
    snippets: Sender<Snippet>,
    answers: Receiver<Message>,
}

impl Bench {
    /// On KVM, whose CPUID is marked.
    pub(super) fn new(engine: &Arc<KvmEngine>) -> Self {
        let engine = Arc::clone(engine);
        Bench { maker: Arc::new(move || ThrowAway::new(&engine)), worker: None }
    }

    /// On another engine.
    pub(super) fn on(engine: Arc<dyn Engine>) -> Self {
        Bench { maker: Arc::new(move || ThrowAway::on(engine.as_ref())), worker: None }
    }

    /// Runs a snippet. A thread that KVM never lets go of is left behind.
    pub(super) fn run(&mut self, snippet: Snippet) -> Outcome {
        let worker = match self.worker.take().map_or_else(|| Worker::start(&self.maker), Ok) {
            Ok(worker) => worker,
            Err(error) => return Outcome::Refused(format!("no thread: {error}")),
        };
        let outcome = worker.run(snippet);
        // What failed may have left anything behind in the machine.
        if matches!(outcome, Outcome::Finished { .. }) {
            self.worker = Some(worker);
        }
        outcome
    }
}

impl Worker {
    fn start(maker: &Arc<Maker>) -> std::io::Result<Self> {
        let (snippets, queue) = channel();
        let (sender, answers) = channel();
        let maker = Arc::clone(maker);
        let thread = std::thread::Builder::new().name("kvm-probe".to_owned());
        thread.spawn(move || serve(maker.as_ref(), &queue, &sender))?;
        Ok(Worker { snippets, answers })
    }

    fn run(&self, snippet: Snippet) -> Outcome {
        if self.snippets.send(snippet).is_err() {
            return Outcome::Refused("the thread ended".to_owned());
        }
        let deadline = Instant::now() + LIMIT;
        let mut kicker: Option<Arc<dyn Kick>> = None;
        loop {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Message::Started(handle)) => kicker = Some(handle),
                Ok(Message::Ended(outcome)) => return outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    return Outcome::Refused("the thread ended".to_owned());
                }
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        if let Some(kicker) = kicker {
            kicker.kick();
        }
        Outcome::TimedOut { kicked: self.answers.recv_timeout(GRACE).is_ok() }
    }
}

fn serve(maker: &Maker, snippets: &Receiver<Snippet>, answers: &Sender<Message>) {
    let mut machine = None;
    for snippet in snippets {
        let outcome = match run(maker, &mut machine, &snippet, answers) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Refused(error.to_string()),
        };
        if answers.send(Message::Ended(outcome)).is_err() {
            return;
        }
    }
}

/// A machine of one processor.
struct ThrowAway {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
    after_reset: CpuState,
}

impl ThrowAway {
    fn new(engine: &KvmEngine) -> Result<Self, SetupError> {
        let memory = Arc::new(GuestMemory::new(&[(0, SIZE)])?);
        let source = Source::Everything(engine.supported_cpuid().clone());
        let vm = KvmVm::create(engine.kvm(), memory.clone(), 1, source, None)?;
        let vcpu = vm.create_kvm_vcpu(0)?;
        let after_reset = vcpu.state()?;
        Ok(ThrowAway { memory, vcpu: Box::new(vcpu), after_reset })
    }

    fn on(engine: &dyn Engine) -> Result<Self, SetupError> {
        let memory = Arc::new(GuestMemory::new(&[(0, SIZE)])?);
        let mut model = CpuModel::named("max")?;
        model.brand = String::from_utf8_lossy(&MARK.to_le_bytes()).into_owned();
        let clock = Arc::new(MachineClock::new(0));
        clock.start();
        let vm = engine.create_vm(VmSettings {
            memory: memory.clone(),
            cpus: 1,
            model,
            tsc_khz: None,
            lenient_xrstor: false,
            clock,
            entropy: Arc::new(HostEntropy),
        })?;
        let vcpu = vm.create_vcpu(0)?;
        let after_reset = vcpu.state()?;
        Ok(ThrowAway { memory, vcpu, after_reset })
    }
}

#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

fn run(
    maker: &Maker,
    machine: &mut Option<ThrowAway>,
    snippet: &Snippet,
    started: &Sender<Message>,
) -> Result<Outcome, SetupError> {
    let ThrowAway { memory, vcpu, after_reset } = match machine {
        Some(machine) => machine,
        None => machine.insert(maker()?),
    };
    fill(memory, snippet)?;
    let mut state = after_reset.clone();
    if snippet.real_mode {
        enter_real_mode(&mut state);
    } else {
        enter_long_mode(&mut state, snippet.xcr0);
    }
    vcpu.set_state(&state)?;
    let ports = Ports { kicker: vcpu.kicker(), seen: Mutex::default() };
    // The receiver lives until the thread has answered or the limit has passed.
    let _ = started.send(Message::Started(vcpu.kicker()));
    let exit = vcpu.run(&ports);
    let seen = ports.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(if seen.done { Outcome::Finished { times: seen.times } } else { Outcome::Stopped(exit) })
}

fn fill(memory: &GuestMemory, snippet: &Snippet) -> Result<(), MemoryError> {
    let word = |address: u64, value: u64| memory.write(address, &value.to_le_bytes());
    // Present, writable, user: the first GiB mapped to itself by 2 MiB pages.
    word(TABLES, (TABLES + 0x1000) | 7)?;
    word(TABLES + 0x1000, (TABLES + 0x2000) | 7)?;
    for at in 0..512 {
        word(TABLES + 0x2000 + at * 8, at << 21 | 0x87)?;
    }
    // And the one below 4 GiB, uncached, for the local APIC.
    word(TABLES + 0x1000 + 3 * 8, (TABLES + 0x3000) | 3)?;
    for at in 0..512 {
        word(TABLES + 0x3000 + at * 8, ((3 << 30) + (at << 21)) | 0x9b)?;
    }
    // RSP0 for interrupts of ring 3.
    memory.write(TSS + 4, &STACK.to_le_bytes())?;
    // Null, kernel code and data, a gap, user data and code, as SYSRET wants them.
    let descriptors: [u64; 6] =
        [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    for (at, descriptor) in (0..).zip(descriptors) {
        word(GDT + at * 8, descriptor)?;
    }
    // Nothing of the snippet before.
    memory.write(IDT, &[0; IDT_SIZE])?;
    memory.write(SCRATCH, &[0; 0x1000])?;
    for &vector in snippet.expected {
        // A present interrupt gate, DPL 3, through selector 8.
        let gate = HANDLER & 0xffff | 8 << 16 | 0xee00 << 32 | HANDLER >> 16 << 48;
        word(IDT + u64::from(vector) * 16, gate)?;
    }
    memory.write(CODE, &snippet.code)?;
    memory.write(HANDLER, snippet.handler)?;
    memory.write(USER_CODE, snippet.user_code)?;
    memory.write(SYSCALL_ENTRY, snippet.system_call)
}

fn enter_real_mode(state: &mut CpuState) {
    state.segments.cs.selector = 0;
    state.segments.cs.base = 0;
    state.rip = CODE;
    state.gprs[4] = STACK;
}

fn enter_long_mode(state: &mut CpuState, xcr0: u64) {
    let flat = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: SegmentAttributes(attributes),
    };
    let data = flat(0x10, 0xc093);
    let segments = &mut state.segments;
    segments.cs = flat(8, 0xa09b);
    (segments.ds, segments.es, segments.ss) = (data, data, data);
    (segments.fs, segments.gs) = (data, data);
    segments.tr = Segment { base: TSS, limit: 0x67, ..flat(0x40, 0x8b) };
    (state.gdtr.base, state.gdtr.limit) = (GDT, 47);
    (state.idtr.base, state.idtr.limit) = (IDT, 0xfff);
    // PG, WP, NE, ET, MP, PE; OSXMMEXCPT, OSFXSR, PAE; LMA, LME, SCE.
    state.cr0 = 0x8001_0033;
    state.cr4 = 0x620;
    state.cr3 = TABLES;
    state.efer = 0x501;
    if xcr0 != 0 {
        state.cr4 |= 1 << 18;
        state.xcr0 = xcr0;
    }
    state.rip = CODE;
    state.gprs[4] = STACK;
    state.gprs[7] = SCRATCH;
    // SYSRET to selectors 0x28 and 0x20, SYSCALL to 8 and 0x10.
    state.set_msr(msr::STAR, 0x001b_0008 << 32);
    state.set_msr(msr::LSTAR, SYSCALL_ENTRY);
    // Interrupts off in system calls.
    state.set_msr(msr::FMASK, 1 << 9);
}

#[derive(Default)]
struct Seen {
    done: bool,
    times: Vec<Instant>,
}

struct Ports {
    kicker: Arc<dyn Kick>,
    seen: Mutex<Seen>,
}

impl VcpuIo for Ports {
    fn pio_write(&self, port: u16, _data: &[u8]) {
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            TIME_PORT => seen.times.push(now),
            DONE_PORT => {
                seen.done = true;
                self.kicker.kick();
            }
            _ => {}
        }
    }
}
