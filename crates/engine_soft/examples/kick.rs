//! How long interrupts and kicks take to reach a processor that loops in chained translated code, and what a processor
//! that halts costs.
//!
//! `cargo run --release -p engine_soft --example kick`

use engine::cpu_model::CpuModel;
use engine::{Engine, MsiMessage, Vcpu, VcpuIo, Vm, VmExit, VmSettings};
use engine_soft::SoftEngine;
use engine_soft::translate::TranslationSettings;
use guest_clock::{HostEntropy, MachineClock};
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use x86::{CpuState, Cr0, Cr4, DescriptorTable, Efer, Segment, SegmentAttributes};

const CODE: u64 = 0x1000;
const IDT: u64 = 0x6000;
const GDT: u64 = 0x7000;
const TABLES: u64 = 0x8000;
const VECTOR: u8 = 0x40;
const SAMPLES: usize = 2000;
/// Longest that an interrupt or a kick may take.
const BOUND_US: f64 = 100.0;

/// Notes when the guest's handler runs.
struct Stamp {
    begun: Instant,
    at_ns: AtomicU64,
    started: AtomicBool,
}

impl Stamp {
    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Nanoseconds from calling `send` until the mark.
    fn until_marked(&self, send: impl FnOnce()) -> u64 {
        self.at_ns.store(0, Ordering::SeqCst);
        let sent = self.now_ns();
        send();
        loop {
            match self.at_ns.load(Ordering::SeqCst) {
                0 => std::hint::spin_loop(),
                at => return at.saturating_sub(sent),
            }
        }
    }
}

impl VcpuIo for Stamp {
    fn pio_write(&self, port: u16, _data: &[u8]) {
        match port {
            0x80 => self.at_ns.store(self.now_ns(), Ordering::SeqCst),
            _ => self.started.store(true, Ordering::SeqCst),
        }
    }
}

/// Turns the local APIC and interrupts on, then loops over four blocks, or halts. Answers the handler's address, too.
fn guest(halts: bool) -> Result<(Vec<u8>, u64), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let [mut top, mut odd, mut on, mut handler] = [0; 4].map(|_| a.create_label());
    a.mov(ebp, 0xfee0_0000_u32)?;
    a.mov(dword_ptr(rbp + 0xf0), 0x1ff)?;
    a.out(0x81, al)?;
    a.sti()?;
    a.set_label(&mut top)?;
    if halts {
        a.hlt()?;
    }
    a.add(rax, 3)?;
    a.test(al, 4)?;
    a.jne(odd)?;
    a.xor(rbx, rax)?;
    a.jmp(on)?;
    a.set_label(&mut odd)?;
    a.add(rbx, 5)?;
    a.set_label(&mut on)?;
    a.inc(rcx)?;
    a.jmp(top)?;
    a.set_label(&mut handler)?;
    a.out(0x80, al)?;
    a.mov(dword_ptr(rbp + 0xb0), 0)?;
    a.iretq()?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let assembled = a.assemble_options(CODE, options)?;
    let handler = assembled.label_ip(&handler)?;
    Ok((assembled.inner.code_buffer, handler))
}

fn state() -> CpuState {
    let mut state = CpuState::reset(true);
    let flat = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: SegmentAttributes(attributes),
    };
    state.segments.cs = flat(8, 0xa09b);
    let data = flat(0x10, 0xc093);
    (state.segments.ss, state.segments.ds, state.segments.es) = (data, data, data);
    state.gdtr = DescriptorTable { base: GDT, limit: 23 };
    state.idtr = DescriptorTable { base: IDT, limit: 0xfff };
    state.cr0 = (Cr0::PE | Cr0::PG).bits();
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE.bits();
    state.efer = (Efer::LME | Efer::LMA).bits();
    state.rip = CODE;
    state.gprs[4] = 0x5f00;
    state
}

/// A processor that is about to run the guest.
fn processor(halts: bool) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let memory = Arc::new(GuestMemory::new(&[(0, 2 << 20)]).expect("the host has 2 MiB"));
    let put = |address: u64, value: u64| memory.write(address, &value.to_le_bytes()).expect("is RAM");
    let (code, handler) = guest(halts).expect("the program assembles");
    memory.write(CODE, &code).expect("is RAM");
    put(TABLES, TABLES + 0x1003);
    // The first and the last GiB below 4 GiB.
    put(TABLES + 0x1000, 0x83);
    put(TABLES + 0x1018, 0xc000_0083);
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    put(IDT + 16 * u64::from(VECTOR), handler & 0xffff | 8 << 16 | 0x8e00 << 32);
    let settings = VmSettings {
        memory,
        cpus: 1,
        model: CpuModel::named("max").expect("there is this model"),
        tsc_khz: None,
        lenient_xrstor: false,
        clock: {
            let clock = MachineClock::new(0);
            clock.start();
            Arc::new(clock)
        },
        entropy: Arc::new(HostEntropy),
    };
    let engine = SoftEngine::new().with_translation(Some(TranslationSettings::default()));
    let vm = engine.create_vm(settings).expect("the software engine needs nothing");
    let mut vcpu = vm.create_vcpu(0).expect("there is room for code");
    vcpu.set_state(&state()).expect("the state is legal");
    (vm, vcpu)
}

fn report(what: &str, mut samples: Vec<u64>) {
    samples.sort_unstable();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let beyond = samples.iter().filter(|&&ns| ns as f64 > BOUND_US * 1000.0).count();
    println!(
        "{what}: median {:.1} µs, 90 % {:.1}, 99 % {:.1}, longest {:.1}; bound {BOUND_US:.0} µs, beyond it {beyond} of {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        samples.len()
    );
}

/// Nanoseconds that this thread has been on a processor.
fn thread_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Runs the processor on a thread of its own until told to stop; answers what that thread used.
fn on_a_thread<R>(vcpu: &mut dyn Vcpu, stamp: &Stamp, work: impl FnOnce() -> R) -> (R, Duration, Duration) {
    let stop = AtomicBool::new(false);
    let kicker = vcpu.kicker();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (begun, used) = (Instant::now(), thread_ns());
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(vcpu.run(stamp), VmExit::Kicked);
                stamp.at_ns.store(stamp.now_ns(), Ordering::SeqCst);
            }
            (Duration::from_nanos(thread_ns() - used), begun.elapsed())
        });
        while !stamp.started.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        let result = work();
        stop.store(true, Ordering::SeqCst);
        kicker.kick();
        let (used, lasted) = thread.join().expect("the processor goes on");
        (result, used, lasted)
    })
}

/// Pauses of different lengths, so that samples fall anywhere in the loop.
fn pause(number: usize) {
    std::thread::sleep(Duration::from_micros(100 + number as u64 * 37 % 400));
}

fn main() {
    let stamp = || Stamp { begun: Instant::now(), at_ns: AtomicU64::new(0), started: AtomicBool::new(false) };
    let message = MsiMessage { address: 0xfee0_0000, data: VECTOR.into() };
    for (halts, what) in [(false, "loops in chained code"), (true, "halts")] {
        let (vm, mut vcpu) = processor(halts);
        let kicker = vcpu.kicker();
        let stamp = stamp();
        let ((interrupts, kicks), ..) = on_a_thread(vcpu.as_mut(), &stamp, || {
            let sample = |send: &dyn Fn()| {
                (0..SAMPLES)
                    .map(|number| {
                        pause(number);
                        stamp.until_marked(send)
                    })
                    .collect::<Vec<_>>()
            };
            (sample(&|| vm.signal_msi(message)), sample(&|| kicker.kick()))
        });
        report(&format!("interrupt to the handler of a processor that {what}"), interrupts);
        report(&format!("kick to the end of the run of a processor that {what}"), kicks);
    }
    let (_vm, mut vcpu) = processor(true);
    let (_, used, lasted) =
        on_a_thread(vcpu.as_mut(), &stamp(), || std::thread::sleep(Duration::from_secs(3)));
    println!(
        "a processor that halts used {:.3} ms of {:.1} s ({:.4} % of a host processor); bound: none to speak of",
        used.as_secs_f64() * 1e3,
        lasted.as_secs_f64(),
        100.0 * used.as_secs_f64() / lasted.as_secs_f64()
    );
}
