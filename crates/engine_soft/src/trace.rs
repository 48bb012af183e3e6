//! A trace of executed instructions, to find where a guest goes wrong.
//!
//! While a processor is traced it runs one instruction at a time in the interpreter. Each has a line: number of the
//! processor, RIP, bytes, disassembly, and the registers that it changed, of the general ones, RFLAGS, segment
//! selectors, CR0, CR2, CR3, CR4 and YMM. An instruction that faults shows what the delivery changed. Where the next
//! instruction is not where the last one went, an interrupt came between, and a line that begins with `#` says so.

use crate::code::LONGEST_INSN;
use crate::cpu::Cpu;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use parking_lot::Mutex;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use x86::PAGE_SIZE;

/// The file has at most this many bytes, whatever the number of instructions.
pub const LARGEST_FILE: u64 = 4 << 30;

/// Where a trace begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceStart {
    /// When a processor is about to execute the instruction at this linear address.
    Address(u64),
    /// When a processor has executed so many instructions.
    Count(u64),
}

struct TraceFile {
    out: BufWriter<File>,
    bytes: u64,
}

/// A trace, of all processors of a machine.
pub struct Trace {
    start: TraceStart,
    /// Instructions still to be written.
    left: AtomicU64,
    file: Mutex<TraceFile>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("start", &self.start).field("left", &self.left).finish_non_exhaustive()
    }
}

impl Trace {
    /// Makes the file, which must not be there, for at most `count` instructions.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn create(path: &Path, start: TraceStart, count: u64) -> io::Result<Arc<Self>> {
        let out = BufWriter::new(File::create_new(path)?);
        let file = Mutex::new(TraceFile { out, bytes: 0 });
        Ok(Arc::new(Trace { start, left: AtomicU64::new(count), file }))
    }

    /// Takes one instruction of those that are left.
    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn write(&self, line: &str) {
        let mut file = self.file.lock();
        file.bytes += line.len() as u64;
        let fits = file.bytes <= LARGEST_FILE;
        let written = if fits { file.out.write_all(line.as_bytes()) } else { Ok(()) };
        if !fits || written.is_err() {
            self.left.store(0, Ordering::Relaxed);
            if let Err(error) = written {
                tracing::error!(%error, "the trace ends: its file cannot be written");
            }
        }
    }

    /// Writes out what is there. Called when a processor stands.
    pub fn flush(&self) {
        if let Err(error) = self.file.lock().out.flush() {
            tracing::error!(%error, "the trace is not complete: its file cannot be written");
        }
    }
}

/// What a processor was like.
#[derive(Clone, PartialEq)]
struct Seen {
    numbers: [u64; NAMES.len()],
    ymm: [[u8; 32]; 16],
}

const NAMES: [&str; 27] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rflags", "es", "cs", "ss", "ds", "fs", "gs", "cr0", "cr2", "cr3", "cr4",
];

/// One processor's part in a trace.
pub(crate) struct Tracer {
    trace: Arc<Trace>,
    number: u32,
    begun: bool,
    /// Where the last instruction went.
    next: Option<u64>,
}

/// An instruction that is about to be executed.
pub(crate) struct Traced {
    line: String,
    before: Box<Seen>,
}

impl Tracer {
    /// The part of processor `number`.
    pub fn new(trace: Arc<Trace>, number: u32) -> Box<Self> {
        Box::new(Tracer { trace, number, begun: false, next: None })
    }

    /// Whether the next instruction, at `rip`, is traced.
    fn wants(&mut self, rip: u64, executed: u64) -> bool {
        self.begun |= match self.trace.start {
            TraceStart::Address(address) => rip == address,
            TraceStart::Count(count) => executed >= count,
        };
        self.begun && self.trace.take()
    }

    /// Whether nothing more will be traced.
    fn is_over(&self) -> bool {
        self.trace.left.load(Ordering::Relaxed) == 0
    }
}

impl Cpu {
    /// Traces this processor, if it is not traced yet.
    pub(crate) fn set_trace(&mut self, trace: Arc<Trace>, number: u32) {
        self.tracer = Some(Tracer::new(trace, number));
    }

    /// Before an instruction is executed by itself.
    pub(crate) fn trace_before(&mut self) -> Option<Traced> {
        let mut tracer = self.tracer.take()?;
        if tracer.is_over() {
            tracer.trace.flush();
            return None;
        }
        let linear = self.code_address();
        let traced = tracer.wants(linear, self.instructions).then(|| {
            let mut line = String::with_capacity(160);
            if tracer.next.is_some_and(|next| next != linear) {
                line.push_str(&format!("# {} is interrupted\n", tracer.number));
            }
            self.write_instruction(&mut line, tracer.number, linear);
            Traced { line, before: Box::new(self.seen()) }
        });
        self.tracer = Some(tracer);
        traced
    }

    /// After it.
    pub(crate) fn trace_after(&mut self, traced: Option<Traced>) {
        let Some(Traced { mut line, before }) = traced else { return };
        let after = self.seen();
        for ((name, before), after) in NAMES.iter().zip(before.numbers).zip(after.numbers) {
            if before != after {
                line.push_str(&format!(" {name}={after:x}"));
            }
        }
        for (number, (before, after)) in before.ymm.iter().zip(&after.ymm).enumerate() {
            if before != after {
                line.push_str(&format!(" ymm{number}="));
                after.iter().rev().for_each(|byte| line.push_str(&format!("{byte:02x}")));
            }
        }
        line.push('\n');
        let linear = self.code_address();
        if let Some(tracer) = &mut self.tracer {
            tracer.next = Some(linear);
            tracer.trace.write(&line);
        }
    }

    /// Whether instructions run one at a time because of a trace.
    pub(crate) fn is_traced(&self) -> bool {
        self.tracer.is_some()
    }

    /// Writes out what was traced.
    pub(crate) fn flush_trace(&self) {
        if let Some(tracer) = &self.tracer {
            tracer.trace.flush();
        }
    }

    fn seen(&self) -> Seen {
        let mut numbers = [0; NAMES.len()];
        let selectors = (0..6).map(|number| u64::from(self.segments[number].selector));
        let all = self.regs[..16].iter().copied().chain([self.rflags()]).chain(selectors);
        let all = all.chain([self.cr0.bits(), self.cr2, self.cr3, self.cr4.bits()]);
        numbers.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        Seen { numbers, ymm: std::array::from_fn(|number| self.vector.ymm[number]) }
    }

    /// Number, address, bytes and disassembly. The bytes are fetched as the instruction's execution does next.
    fn write_instruction(&mut self, line: &mut String, number: u32, linear: u64) {
        let mut bytes = [0; LONGEST_INSN];
        let room = (PAGE_SIZE - linear % PAGE_SIZE).min(LONGEST_INSN as u64) as usize;
        let mut len = self.fetch_for_trace(linear, &mut bytes[..room]);
        let mut decoder =
            Decoder::with_ip(self.code_size.into(), &bytes[..len], linear, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes && len == room && room < LONGEST_INSN {
            let next = linear.wrapping_add(room as u64);
            len += self.fetch_for_trace(next, &mut bytes[room..]);
            instruction =
                Decoder::with_ip(self.code_size.into(), &bytes[..len], linear, DecoderOptions::NONE).decode();
        }
        let shown = if instruction.is_invalid() { len } else { instruction.len() };
        let hex = bytes[..shown].iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let mut words = String::new();
        match len {
            0 => words.push_str("(not fetched)"),
            _ => IntelFormatter::new().format(&instruction, &mut words),
        }
        let _ = write!(line, "{number} {linear:016x} {hex:<30} {words:<40}");
    }

    /// Reads code of one page; how many bytes there were.
    fn fetch_for_trace(&mut self, linear: u64, bytes: &mut [u8]) -> usize {
        let Ok(physical) = self.fetch_physical(linear) else { return 0 };
        if self.memory.read(physical, bytes).is_ok() { bytes.len() } else { 0 }
    }
}

#[cfg(test)]
mod tests;
