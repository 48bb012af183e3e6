//! Running an engine freely: without counting steps, as guests do, for an engine that translates only then.
//!
//! The exception handlers write to a port, which kicks the processor. Code that does not end is kicked by a watchdog.
//!
//! A 64-bit case is entered through code of the guest's own, that has touched the data pages: what the engine
//! knows of their addresses must already be known for its fast ways of access to be taken. Every second case goes without
//! it, for the slow ones.

use crate::case::Case;
use crate::{DATA_ADDRESS, DATA_SIZE, layout};
use anyhow::{Result, bail};
use engine::{Kick, Vcpu, VcpuIo, VmExit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Port that exception handlers write.
pub(crate) const END_PORT: u16 = 0xf4;
/// User page of the code that touches the data: an address that cases do not come to by chance.
pub(crate) const TOUCH_ADDRESS: u64 = 0x3b5a_7000;
/// Wall time after which code does not end.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(250);

/// User code that reads and writes each data page without changing it, then leaves by SYSCALL.
pub(crate) fn touch() -> Vec<u8> {
    let mut code = Vec::new();
    for page in (DATA_ADDRESS..DATA_ADDRESS + DATA_SIZE as u64).step_by(0x1000) {
        // mov rbx, page; lock or byte ptr [rbx], 0; mov al, [rbx]
        code.extend([0x48, 0xbb]);
        code.extend(page.to_le_bytes());
        code.extend([0xf0, 0x80, 0x0b, 0, 0x8a, 0x03]);
    }
    code.extend([0x0f, 0x05]);
    code
}

/// Kernel code that loads all registers from a block at `block`, and its IRETQ frame behind them.
pub(crate) fn enter(block: u64) -> Vec<u8> {
    // mov rax, block; mov rsp, rax
    let mut code = vec![0x48, 0xb8];
    code.extend(block.to_le_bytes());
    code.extend([0x48, 0x89, 0xc4]);
    for register in (0..16_u8).rev().filter(|&register| register != 4) {
        // mov register, [rsp + 8 * register]
        let (high, low) = (register >> 3, register & 7);
        code.extend([0x48 | high << 2, 0x8b, 0x44 | low << 3, 0x24, register * 8]);
    }
    // add rsp, 128; iretq
    code.extend([0x48, 0x81, 0xc4, 128, 0, 0, 0, 0x48, 0xcf]);
    code
}

/// What [`enter`] loads.
pub(crate) fn block(case: &Case) -> Vec<u8> {
    let cs = u64::from(layout::code_selector(case.mode));
    let frame = [case.rip(), cs, case.rflags, case.gprs[4], u64::from(case.selectors[1])];
    case.gprs.iter().chain(&frame).flat_map(|value| value.to_le_bytes()).collect()
}

/// Kicks the processor when a handler is reached.
struct EndPort(Arc<dyn Kick>);

impl VcpuIo for EndPort {
    fn pio_write(&self, port: u16, _data: &[u8]) {
        if port == END_PORT {
            self.0.kick();
        }
    }
}

/// The ends of runs.
pub(crate) struct Free {
    port: EndPort,
    epoch: Instant,
    /// Milliseconds from `epoch` to the start of the running case; zero between cases.
    since: Arc<AtomicU64>,
}

impl Free {
    /// Starts the watchdog of a processor; it ends with this value.
    pub(crate) fn new(vcpu: &dyn Vcpu) -> Self {
        let (epoch, since) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let (kicker, watched) = (vcpu.kicker(), Arc::downgrade(&since));
        std::thread::spawn(move || {
            while let Some(since) = watched.upgrade() {
                if is_late(epoch, since.load(Ordering::SeqCst)) {
                    kicker.kick();
                }
                drop(since);
                std::thread::sleep(LOOK);
            }
        });
        Free { port: EndPort(vcpu.kicker()), epoch, since }
    }

    /// Runs until `is_done` says that a handler was reached.
    pub(crate) fn run(&self, vcpu: &mut dyn Vcpu, is_done: impl Fn(&dyn Vcpu) -> Result<bool>) -> Result<()> {
        let started = self.epoch.elapsed().as_millis() as u64 + 1;
        self.since.store(started, Ordering::SeqCst);
        let result = loop {
            match vcpu.run(&self.port) {
                VmExit::Kicked if is_done(vcpu)? => break Ok(()),
                // The watchdog's kick, for this case or, late, for the one before.
                VmExit::Kicked if !is_late(self.epoch, started) => {}
                VmExit::Kicked => break Err(anyhow::anyhow!("the code does not end")),
                other => bail!("the engine answered {other:?}"),
            }
        };
        self.since.store(0, Ordering::SeqCst);
        result
    }
}

fn is_late(epoch: Instant, since: u64) -> bool {
    since != 0 && epoch.elapsed() > Duration::from_millis(since) + PATIENCE
}
