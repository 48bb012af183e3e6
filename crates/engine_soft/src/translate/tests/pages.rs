//! More pages than the TLB's arrays begin with.

use super::NoDevices;
use crate::cpu::Cpu;
use crate::interp::harness;
use engine::VmExit;
use guest_memory::GuestMemory;
use iced_x86::code_asm::*;
use std::sync::Arc;

/// Pages of data: in RAM behind the first 4 MiB, each somewhere else than its neighbours.
const PAGES: u64 = 1 << 14;
const FIRST: u64 = 0x40_0000;
/// Where they are mapped.
pub(super) const LINEAR: u64 = 1 << 30;
/// Page tables of the harness, and of the data.
const TABLES: u64 = 0x30_0000;
const DATA_TABLES: u64 = 0x31_0000;
const ROUNDS: u64 = 300_000;
const FACTOR: u64 = 0x5851_f42d_4c95_7f2d;

pub(super) fn physical(page: u64) -> u64 {
    FIRST + (page * 0x2f35 % PAGES << 12)
}

fn put(memory: &GuestMemory, address: u64, value: u64) {
    memory.write(address, &value.to_le_bytes()).expect("is RAM");
}

/// RAM with the harness's tables, and the data's.
pub(super) fn memory() -> Arc<GuestMemory> {
    let memory = GuestMemory::new(&[(0, FIRST + (PAGES << 12))]).expect("the host has memory");
    put(&memory, TABLES, TABLES + 0x1003);
    put(&memory, TABLES + 0x1000, TABLES + 0x2003);
    put(&memory, TABLES + 0x1008, DATA_TABLES + 3);
    put(&memory, TABLES + 0x2000, TABLES + 0x3003);
    for page in 0..256 {
        put(&memory, TABLES + 0x3000 + 8 * page, page << 12 | 3);
    }
    for table in 0..PAGES / 512 {
        put(&memory, DATA_TABLES + 8 * table, DATA_TABLES + 0x1000 * (table + 1) + 3);
    }
    for page in 0..PAGES {
        put(&memory, entry_of(page), physical(page) | 3);
    }
    Arc::new(memory)
}

/// Address of a page's table entry.
fn entry_of(page: u64) -> u64 {
    DATA_TABLES + 0x1000 + 8 * page
}

/// Adds pseudo-random numbers to pseudo-random words of the data.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let mut assemble = || {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.imul_2(rax, rbx)?;
        a.inc(rax)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 38)?;
        a.and(rdx, -8)?;
        a.add(qword_ptr(r8 + rdx), rax)?;
        a.dec(rdi)?;
        a.jne(again)?;
        a.hlt()?;
        a.assemble(harness::CODE)
    };
    assemble().expect("the program assembles")
}

fn word(cpu: &Cpu, page: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.memory.read(physical(page), &mut bytes).expect("is RAM");
    u64::from_le_bytes(bytes)
}

fn run(cpu: &mut Cpu) {
    let mut state = harness::long_state();
    (state.gprs[0], state.gprs[3], state.gprs[7], state.gprs[8]) = (1, FACTOR, ROUNDS, LINEAR);
    cpu.memory.write(harness::CODE, &program()).expect("is RAM");
    cpu.restore(&state).expect("the state is legal");
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
}

/// What the program does, `times` times, to the words of the data.
fn model(times: usize) -> Vec<u64> {
    let mut words = vec![0_u64; (PAGES << 12 >> 3) as usize];
    for _ in 0..times {
        let mut number = 1_u64;
        for _ in 0..ROUNDS {
            number = number.wrapping_mul(FACTOR).wrapping_add(1);
            let word = &mut words[(number >> 38 >> 3) as usize];
            *word = word.wrapping_add(number);
        }
    }
    words
}

fn check(cpu: &Cpu, wanted: &[u64]) {
    let mut bytes = [0; 4096];
    for (page, words) in (0..).zip(wanted.chunks(512)) {
        cpu.memory.read(physical(page), &mut bytes).expect("is RAM");
        let same = bytes.chunks(8).zip(words).all(|(bytes, word)| bytes == word.to_le_bytes());
        assert!(same, "page {page} differs");
    }
}

#[test]
fn many_pages_are_found_where_the_tables_map_them() {
    for translate in [false, true] {
        let mut cpu = harness::cpu_in(memory(), &harness::long_state());
        if translate {
            cpu.enable_translation(Default::default()).expect("the host has memory");
        }
        run(&mut cpu);
        check(&cpu, &model(1));
        let walks = cpu.mmu.counts.walks;
        run(&mut cpu);
        check(&cpu, &model(2));
        // `restore` forgets the translations, so each page is walked for once, and little more.
        let walks = cpu.mmu.counts.walks - walks;
        assert!(walks < 2 * PAGES, "the TLB has room for all: {walks} walks");
    }
}

#[test]
fn a_grown_tlb_forgets_what_it_is_told_to() {
    let mut cpu = harness::cpu_in(memory(), &harness::long_state());
    run(&mut cpu);
    let (one, other) = (7, PAGES - 9);
    let look = |cpu: &mut Cpu, page: u64| {
        cpu.load::<u64>(crate::cpu::seg::DS, LINEAR + (page << 12)).expect("the page is mapped")
    };
    for page in [one, other] {
        put(&cpu.memory, physical(page), page);
        assert_eq!(look(&mut cpu, page), page);
    }
    put(&cpu.memory, entry_of(one), physical(other) | 3);
    assert_eq!(look(&mut cpu, one), one, "nobody said that the table changed");
    cpu.invalidate_page(LINEAR + (one << 12));
    assert_eq!(look(&mut cpu, one), other);
    put(&cpu.memory, entry_of(other), physical(one) | 3);
    cpu.flush_tlb(true);
    assert_eq!(look(&mut cpu, other), one);
    assert_eq!(word(&cpu, one), one);
}
