//! A seeded share of the comparison with silicon. Run more with `cargo run --release -p cpu_oracle -- --cases N`.

use cpu_oracle::generate::{self, Group};
use cpu_oracle::run::{BATCH, Oracle, disassemble};

fn agree(group: Group, first_seed: u64, cases: u64) {
    let mut oracle = Oracle::new().unwrap();
    let seeds: Vec<u64> = (first_seed..first_seed + cases).collect();
    let mut wrong = Vec::new();
    for batch in seeds.chunks(BATCH) {
        let cases: Vec<_> = batch.iter().map(|&seed| generate::case(seed, group)).collect();
        let differences = oracle.compare(&cases).unwrap();
        let told = batch.iter().zip(&cases).zip(differences).filter(|(_, text)| !text.is_empty());
        wrong.extend(told.map(|((seed, case), text)| format!("seed {seed}:\n{}{text}", disassemble(case))));
    }
    assert!(wrong.is_empty(), "{} of {cases} cases differ, the first:\n{}", wrong.len(), wrong[0]);
}

#[test]
fn integer_code_agrees_with_silicon() {
    agree(Group::Integer, 1, 60_000);
}

#[test]
fn x87_and_mmx_code_agrees_with_silicon() {
    agree(Group::X87, 1, 20_000);
}

#[test]
fn vector_code_agrees_with_silicon() {
    agree(Group::Simd, 1, 40_000);
}
