//! Silicon and interpreter side by side.

use crate::case::Case;
use crate::{compare, guest, native};
use anyhow::Result;
use engine::cpu_model::CpuModel;
use engine::{Engine, VmSettings};
use guest_clock::{HostEntropy, ManualClock};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::fmt::Write;
use std::sync::Arc;

/// Cases a batch.
pub const BATCH: usize = 512;

/// Both sides.
pub struct Oracle {
    native: native::Native,
    guest: guest::Guest,
}

impl Oracle {
    /// Silicon against the interpreter with every feature it offers on this host.
    pub fn new() -> Result<Self> {
        let memory = guest::memory()?;
        let engine = engine_soft::SoftEngine::new();
        let vm = engine.create_vm(VmSettings {
            memory: memory.clone(),
            cpus: 1,
            model: CpuModel::named("max")?,
            clock: Arc::new(ManualClock::default()),
            entropy: Arc::new(HostEntropy),
        })?;
        Ok(Oracle {
            native: native::Native::new(BATCH)?,
            guest: guest::Guest::new(memory, vm.create_vcpu(0)?)?,
        })
    }

    /// For each case what differs, in words; empty where both agree.
    pub fn compare(&mut self, cases: &[Case]) -> Result<Vec<String>> {
        let silicon = self.native.run(cases)?;
        let both = cases.iter().zip(&silicon);
        both.map(|(case, silicon)| {
            Ok(match self.guest.run(case) {
                Ok(engine) => compare::differences(case, silicon, &engine),
                Err(error) => format!("  {error:#}\n"),
            })
        })
        .collect()
    }
}

/// The code of a case, one instruction a line.
pub fn disassemble(case: &Case) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    for instruction in Decoder::with_ip(64, &case.code, crate::CODE_ADDRESS, DecoderOptions::NONE) {
        let start = (instruction.ip() - crate::CODE_ADDRESS) as usize;
        let bytes = &case.code[start..start + instruction.len()];
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let _ = writeln!(text, "    {line:<50} {bytes:02x?}");
    }
    text
}
