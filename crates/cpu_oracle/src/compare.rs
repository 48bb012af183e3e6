//! What counts as agreement.

use crate::case::{Case, ENDLESS, Outcome};
use crate::native::FRAME_STACK;
use std::fmt::Write;

/// RFLAGS bits that the guest's own kernel entry or the host's changes: RF and IF.
const FLAGS_IGNORED: u64 = 1 << 16 | 1 << 9;

/// What differs, in words; empty when both sides agree.
pub fn differences(case: &Case, silicon: &Outcome, engine: &Outcome) -> String {
    let mut text = String::new();
    if silicon.vector == ENDLESS && !is_taken_for_a_split_lock(engine) {
        let _ = writeln!(text, "  silicon: {}\n  engine: {}", silicon.summary(), engine.summary());
        return text;
    }
    let mut number = |name: &str, a: u64, b: u64| {
        if a != b {
            let _ = writeln!(text, "  {name}: silicon {a:#x}, engine {b:#x}");
        }
    };
    if silicon.vector != ENDLESS {
        number("vector", silicon.vector.into(), engine.vector.into());
        number("error code", told(silicon), told(engine));
    }
    number("rip", silicon.rip, engine.rip);
    number("cs", silicon.cs.into(), engine.cs.into());
    number("cr2", silicon.cr2, engine.cr2);
    let mask = !(case.undefined_flags | FLAGS_IGNORED);
    number("rflags", silicon.rflags & mask, engine.rflags & mask);
    for (i, (a, b)) in silicon.gprs.iter().zip(&engine.gprs).enumerate() {
        number(&format!("gpr {i}"), *a, *b);
    }
    let names = ["es", "ss", "ds", "fs", "gs"];
    for (name, (a, b)) in names.iter().zip(silicon.selectors.iter().zip(&engine.selectors)) {
        // The host's kernel returns by IRET, which clears RPL in null selectors (SDM 2A, IRET: data segments whose DPL
        // is below the new CPL, as a null one's is).
        let told = |selector: u16| if selector < 4 { 0 } else { u64::from(selector) };
        number(name, told(*a), told(*b));
    }
    number("fs base", silicon.fs_base, engine.fs_base);
    number("gs base", silicon.gs_base, engine.gs_base);
    bytes(&mut text, "memory", &silicon.memory, &engine.memory);
    bytes(&mut text, "vector state", &comparable(&silicon.xsave), &comparable(&engine.xsave));
    text
}

/// Whether the host's kernel does not tell of an exception but runs the instruction again and again, which then shows the
/// state from before it: Linux takes any #AC while AC is clear for a split lock's. IRET makes such ones: it checks RSP
/// and SS by the AC that it has popped.
fn is_taken_for_a_split_lock(outcome: &Outcome) -> bool {
    const ALIGNMENT: u8 = 17;
    const AC: u64 = 1 << 18;
    outcome.vector == ALIGNMENT && outcome.rflags & AC == 0
}

/// The error code as the host's kernel tells it: for addresses of its own half it always claims that the page is
/// present, to hide its layout. And one page is indeed present there that the guest has not: the harness's stack.
fn told(outcome: &Outcome) -> u64 {
    const KERNEL_HALF: u64 = 0x7fff_ffff_f000;
    let harness = outcome.cr2 & !0xfff == FRAME_STACK & !0xfff;
    let hidden = outcome.vector == 14 && (outcome.cr2 >= KERNEL_HALF || harness);
    u64::from(outcome.error_code) | u64::from(hidden)
}

/// The parts of the area that are architectural: without the MXCSR mask and the padding of the ten-byte x87 registers.
fn comparable(xsave: &[u8]) -> Vec<u8> {
    let mut bytes = xsave.to_vec();
    bytes[5] = 0;
    bytes[28..32].fill(0);
    for register in 0..8 {
        bytes[32 + register * 16 + 10..48 + register * 16].fill(0);
    }
    bytes
}

fn bytes(text: &mut String, name: &str, silicon: &[u8], engine: &[u8]) {
    if silicon == engine {
        return;
    }
    let Some(first) = silicon.iter().zip(engine).position(|(a, b)| a != b) else { return };
    let start = first & !15;
    let end = (start + 16).min(silicon.len());
    let _ = writeln!(
        text,
        "  {name} at {start:#x}: silicon {:02x?}, engine {:02x?}",
        &silicon[start..end],
        &engine[start..end]
    );
}
