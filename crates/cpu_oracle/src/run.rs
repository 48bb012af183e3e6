//! Two executors side by side.

use crate::case::{Case, ENDLESS, Outcome};
use crate::compare;
use crate::executor::Executor;
use crate::native::Native;
use anyhow::{Context, Result};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::fmt::Write;

/// Cases a batch.
pub const BATCH: usize = 512;

/// Silicon, and what is compared with it.
pub struct Oracle {
    silicon: Native,
    engine: Box<dyn Executor>,
}

impl Oracle {
    /// Silicon against any executor.
    pub fn against(engine: Box<dyn Executor>) -> Result<Self> {
        Ok(Oracle { silicon: Native::new(BATCH)?, engine })
    }

    /// For each case what differs, in words; empty where both agree. Cases that neither ends agree.
    pub fn compare(&mut self, cases: &[Case]) -> Result<Vec<String>> {
        let mut texts = Vec::with_capacity(cases.len());
        for cases in cases.chunks(BATCH) {
            let (silicon, engine) = (self.silicon.run(cases)?, self.engine.run(cases)?);
            for (case, pair) in cases.iter().zip(silicon.iter().zip(&engine)) {
                texts.push(match pair {
                    (Ok(silicon), Ok(engine)) => compare::differences(case, silicon, engine),
                    (Ok(silicon), Err(_)) if silicon.vector == ENDLESS => String::new(),
                    (Err(_), Err(_)) => String::new(),
                    (Err(error), Ok(_)) => format!("  {}: {error:#}\n", self.silicon.name()),
                    (Ok(_), Err(error)) => format!("  {}: {error:#}\n", self.engine.name()),
                });
            }
        }
        Ok(texts)
    }

    /// How one case ends on silicon; an error of its own if it kills its process.
    pub fn silicon(&mut self, case: &Case) -> Result<Result<Outcome>> {
        let outcome = self.silicon.run(std::slice::from_ref(case))?.pop();
        outcome.context("Silicon told nothing about a case")
    }

    /// What differs in one case.
    pub fn compare_one(&mut self, case: &Case) -> Result<String> {
        Ok(self.compare(std::slice::from_ref(case))?.pop().unwrap_or_default())
    }
}

/// The code of a case, one instruction a line.
pub fn disassemble(case: &Case) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    let mut at = 0;
    let mut decoder = Decoder::with_ip(case.mode.bits(), &case.code, case.rip(), DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let end = if instruction.is_invalid() { decoder.max_position() } else { decoder.position() };
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let _ = writeln!(text, "    {line:<50} {:02x?}", &case.code[at..end]);
        if instruction.is_invalid() {
            break;
        }
        at = end;
    }
    let special = case.rflags & 0x4_4500;
    if case.mode != crate::case::Mode::Long || special != 0 {
        let _ = writeln!(text, "    ({:?}, segments {:x?}, flags {special:#x})", case.mode, case.selectors);
    }
    text
}
