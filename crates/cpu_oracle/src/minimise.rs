//! Makes a disagreeing case small: fewer instructions, plainer state, and still the same disagreement.

use crate::case::{Case, Mode};
use crate::layout::USER_DS;
use crate::run::Oracle;
use crate::{DATA_ADDRESS, XSAVE_SIZE};
use anyhow::Result;
use iced_x86::{Decoder, DecoderOptions};

/// The XSAVE area that small cases start from: everything initial.
pub fn plain_xsave() -> Vec<u8> {
    let mut bytes = vec![0; XSAVE_SIZE];
    bytes[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    bytes[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    bytes[512] = 7;
    bytes
}

/// The kinds of a difference: which things differ, without their values.
pub fn kinds(difference: &str) -> Vec<&str> {
    difference.lines().map(|line| line.trim_start().split([':', ' ']).next().unwrap_or_default()).collect()
}

/// Shrinks `case`, whose difference is `difference`. Returns the smallest found, with its difference.
pub fn minimise(oracle: &mut Oracle, case: &Case, difference: &str) -> Result<(Case, String)> {
    let (mut case, mut difference) = (case.clone(), difference.to_owned());
    // Each round changes one thing; there are fewer than a hundred.
    for _ in 0..100 {
        let candidates = simpler(&case);
        let results = oracle.compare(&candidates)?;
        let wanted = kinds(&difference).first().map(ToString::to_string);
        let same = |text: &String| kinds(text).first().map(ToString::to_string) == wanted;
        let better = candidates.into_iter().zip(results).find(|(_, text)| !text.is_empty() && same(text));
        let Some((candidate, text)) = better else { break };
        (case, difference) = (candidate, text);
    }
    Ok((case, difference))
}

/// Variants of a case that are simpler in one respect.
fn simpler(case: &Case) -> Vec<Case> {
    let mut variants = Vec::new();
    let mut add = |change: &dyn Fn(&mut Case)| {
        let mut variant = case.clone();
        change(&mut variant);
        if variant != *case {
            variants.push(variant);
        }
    };
    for (start, end) in boundaries(case) {
        if end - start < case.code.len() {
            add(&|case| {
                case.code.drain(start..end);
                case.instructions = case.instructions.saturating_sub(1).max(1);
                if case.code_offset + 0x80 > crate::CODE_SIZE {
                    case.code_offset += end - start;
                }
            });
        }
    }
    add(&|case| case.xsave = plain_xsave());
    add(&|case| case.xsave[..160].copy_from_slice(&plain_xsave()[..160]));
    add(&|case| case.xsave[32..160].fill(0));
    add(&|case| case.xsave[160..416].fill(0));
    add(&|case| case.xsave[576..].fill(0));
    add(&|case| case.rflags = 0x202);
    for bit in [0, 2, 4, 6, 7, 8, 10, 11, 14, 18, 21] {
        add(&|case| case.rflags &= !(1 << bit));
    }
    add(&|case| case.code_offset = 0);
    add(&|case| case.data_seed = 0);
    add(&|case| case.patches.clear());
    for at in 0..case.patches.len() {
        add(&|case| {
            case.patches.remove(at);
        });
    }
    if case.mode == Mode::Long {
        add(&|case| case.selectors = [0, USER_DS, 0, 0, 0]);
    }
    add(&|case| (case.fs_base, case.gs_base) = (0, 0));
    for register in 0..16 {
        let plain = if register == 4 && case.mode == Mode::Long { DATA_ADDRESS + 0x800 } else { 0 };
        add(&|case| case.gprs[register] = plain);
    }
    variants
}

fn boundaries(case: &Case) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut decoder = Decoder::with_ip(case.mode.bits(), &case.code, case.rip(), DecoderOptions::NONE);
    while decoder.can_decode() {
        let start = decoder.position();
        if decoder.decode().is_invalid() {
            break;
        }
        found.push((start, decoder.position()));
    }
    found
}

/// The instructions of a case and what differs, as one line: disagreements of one cause mostly share it.
pub fn signature(case: &Case, difference: &str) -> String {
    let mut decoder = Decoder::with_ip(case.mode.bits(), &case.code, case.rip(), DecoderOptions::NONE);
    let mut names = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        names.push(format!("{:?}", instruction.code()));
        if instruction.is_invalid() {
            break;
        }
    }
    let mut kinds = kinds(difference);
    kinds.dedup();
    format!(
        "{} [{}]{}",
        names.join(" "),
        kinds.join(" "),
        if case.mode == Mode::Long { "" } else { " compat" }
    )
}
