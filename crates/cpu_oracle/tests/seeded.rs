//! A seeded share of the comparison with silicon, and every case that once disagreed. Run more with
//! `cargo run --release -p cpu_oracle -- --cases N`.

use cpu_oracle::executor::{Candidate, Executor};
use cpu_oracle::generate::{self, Group};
use cpu_oracle::guest::Guest;
use cpu_oracle::processor;
use cpu_oracle::regression;
use cpu_oracle::run::{BATCH, Oracle, disassemble};
use std::path::Path;

fn agree(group: Group, first_seed: u64, cases: u64) {
    compare(Candidate::Interpreter, group, first_seed, cases);
}

fn compare(candidate: Candidate, group: Group, first_seed: u64, cases: u64) {
    let on = processor::described();
    println!("{candidate:?}: {cases} cases of {group:?} from seed {first_seed} on {on}");
    let mut oracle = Oracle::against(candidate.executor().unwrap()).unwrap();
    let seeds: Vec<u64> = (first_seed..first_seed + cases).collect();
    let mut wrong = Vec::new();
    for batch in seeds.chunks(BATCH) {
        let cases: Vec<_> = batch.iter().map(|&seed| generate::case(seed, group).0).collect();
        let differences = oracle.compare(&cases).unwrap();
        let told = batch.iter().zip(&cases).zip(differences).filter(|(_, text)| !text.is_empty());
        wrong.extend(told.map(|((seed, case), text)| format!("seed {seed}:\n{}{text}", disassemble(case))));
    }
    assert!(wrong.is_empty(), "{} of {cases} cases differ, the first:\n{}", wrong.len(), wrong[0]);
}

#[test]
fn integer_code_agrees_with_silicon() {
    agree(Group::Integer, 1, 20_000);
}

#[test]
fn x87_and_mmx_code_agrees_with_silicon() {
    agree(Group::X87, 1, 10_000);
}

#[test]
fn vector_code_agrees_with_silicon() {
    agree(Group::Simd, 1, 20_000);
}

#[test]
fn state_saving_agrees_with_silicon() {
    agree(Group::State, 1, 8_000);
}

#[test]
fn segments_far_transfers_and_flags_agree_with_silicon() {
    agree(Group::System, 1, 8_000);
}

#[test]
fn compatibility_mode_agrees_with_silicon() {
    agree(Group::Compat, 1, 10_000);
}

#[test]
fn undefined_encodings_agree_with_silicon() {
    agree(Group::Invalid, 1, 6_000);
}

/// What is compared as the translator does translate, and takes its fast ways to memory.
#[test]
fn the_translator_translates_the_cases() {
    let mut guest = Guest::translator().unwrap();
    let cases: Vec<_> = (0..400).map(|seed| generate::case(seed, Group::Integer).0).collect();
    guest.run(&cases).unwrap().into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    let counts = guest.counts().counts;
    let count = |name: &str| counts.iter().find(|(key, _)| *key == name).map_or(0, |(_, count)| *count);
    let (blocks, instructions) = (count("translated_blocks"), count("translated_instructions"));
    assert!(
        blocks >= 400 && instructions >= 800,
        "{blocks} blocks of {instructions} instructions: {counts:?}"
    );
}

/// Other seeds than the interpreter's. Only 64-bit code is translated.
#[test]
fn translated_code_agrees_with_silicon() {
    for (group, cases) in [
        (Group::Integer, 10_000),
        (Group::Simd, 8_000),
        (Group::X87, 3_000),
        (Group::State, 2_000),
        (Group::System, 3_000),
    ] {
        compare(Candidate::Translator, group, 1_000_000, cases);
    }
}

#[test]
fn cases_that_once_disagreed_agree() {
    kept_cases_agree(Candidate::Interpreter);
}

#[test]
fn cases_that_once_disagreed_agree_when_translated() {
    kept_cases_agree(Candidate::Translator);
}

fn kept_cases_agree(candidate: Candidate) {
    let mut oracle = Oracle::against(candidate.executor().unwrap()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/regressions.jsonl");
    let kept = regression::read(&path).unwrap();
    assert!(kept.len() > 100, "the file holds only {} cases", kept.len());
    println!("{} kept cases on {}", kept.len(), processor::described());
    let mut wrong = Vec::new();
    for (line, regression) in kept.iter().enumerate() {
        let case = regression.case().unwrap();
        let difference = oracle.compare_one(&case).unwrap();
        if !difference.is_empty() {
            let code = disassemble(&case);
            wrong.push(format!(
                "line {}:\n{code}was once: {}\nis now:\n{difference}",
                line + 1,
                regression.wrong
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), kept.len(), wrong.join("\n"));
}
