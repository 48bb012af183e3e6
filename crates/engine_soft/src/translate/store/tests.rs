//! A store gives what translating gives, survives damage, and is not for others.

use super::{Preparation, StoreError, TranslationStore, file};
use crate::cpu::Cpu;
use crate::interp::harness::{self, CODE};
use crate::translate::tests::{
    NoDevices, Random, codes, differential_with, program, vector_codes, x87_codes,
};
use crate::translate::{TranslationCounts, TranslationSettings};
use engine::{DebugStops, VmExit};
use iced_x86::code_asm::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn settings(store: &Arc<TranslationStore>) -> TranslationSettings {
    TranslationSettings { store: Some(Arc::clone(store)), ..TranslationSettings::default() }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("the host has room")
}

fn open(path: &Path) -> Arc<TranslationStore> {
    TranslationStore::open(path).expect("is ours")
}

/// The only file of a store.
fn only_file(directory: &Path) -> PathBuf {
    let mut files = directory.read_dir().expect("is there").map(|entry| entry.expect("can be read").path());
    let file = files.next().expect("was written");
    assert_eq!(files.next(), None, "nothing else is left there");
    file
}

/// Sums the numbers below RCX, by a loop and a call.
fn sum(count: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let (mut again, mut add) = (a.create_label(), a.create_label());
    let assembled = (|| {
        a.mov(rcx, count)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.call(add)?;
        a.dec(rcx)?;
        a.jne(again)?;
        a.hlt()?;
        a.set_label(&mut add)?;
        a.add(rax, rcx)?;
        a.push(rax)?;
        a.pop(rdx)?;
        a.ret()?;
        a.assemble(CODE)
    })();
    assembled.expect("the program assembles")
}

/// Runs [`sum`] and tells what the translator counted.
fn run_sum(count: u64, store: &Arc<TranslationStore>) -> TranslationCounts {
    let state = harness::long_state();
    let mut cpu: Cpu = harness::cpu_in(harness::memory(), &state);
    cpu.enable_translation(settings(store)).expect("the host has memory");
    cpu.memory.write(CODE, &sum(count)).expect("is RAM");
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    assert_eq!(cpu.save().gprs[2], count * (count + 1) / 2, "the sum");
    cpu.translator.as_ref().map(|translator| translator.counts).unwrap_or_default()
}

#[test]
fn stored_translations_do_what_new_ones_do() {
    let directory = directory();
    let mut all = codes(64);
    all.extend(vector_codes(64));
    all.extend(x87_codes(64));
    let run = |store: &Arc<TranslationStore>| {
        let program = |random: &mut Random| program(random, &all);
        differential_with(1500, 0x5151_5678_9abc_def1, program, settings(store))
    };
    let store = open(directory.path());
    let first = run(&store);
    assert!(first.blocks > 1000, "{first:?}");
    store.save().expect("there is room");
    let second = run(&open(directory.path()));
    assert_eq!(second.blocks, 0, "everything was there: {second:?}");
    assert!(second.installed > 1000, "{second:?}");
}

#[test]
fn what_the_store_has_is_not_interpreted_first() {
    let directory = directory();
    let store = open(directory.path());
    run_sum(100, &store);
    let mut cpu = harness::cpu_in(harness::memory(), &harness::long_state());
    cpu.enable_translation(TranslationSettings { warm_up: 8, ..settings(&store) }).expect("there is memory");
    cpu.memory.write(CODE, &sum(100)).expect("is RAM");
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    let counts = cpu.translator.as_ref().map(|translator| translator.counts).unwrap_or_default();
    assert_eq!((counts.single, counts.blocks), (0, 0), "{counts:?}");
}

#[test]
fn what_the_store_has_does_not_pass_over_breakpoints() {
    let directory = directory();
    let store = open(directory.path());
    run_sum(100, &store);
    for warm_up in [0, 8] {
        let mut cpu = harness::cpu_in(harness::memory(), &harness::long_state());
        let settings = TranslationSettings { warm_up, ..settings(&store) };
        cpu.enable_translation(settings).expect("there is memory");
        cpu.memory.write(CODE, &sum(100)).expect("is RAM");
        // The `push rax` in the middle of the function's block.
        let code = sum(100);
        let push = code.iter().rposition(|&byte| byte == 0x50).expect("is there") as u64;
        let breakpoints = vec![CODE + push];
        cpu.set_debug_stops(&DebugStops { breakpoints, ..DebugStops::default() });
        assert!(matches!(cpu.run(&NoDevices, None), VmExit::Debug(_)), "stops on the way, warm-up {warm_up}");
        let state = cpu.save();
        assert_eq!(
            (state.rip, state.gprs[0]),
            (CODE + push, 100),
            "before the first push, warm-up {warm_up}"
        );
    }
}

#[test]
fn other_bytes_are_not_taken_for_those_of_a_translation() {
    let directory = directory();
    let store = open(directory.path());
    assert!(run_sum(100, &store).blocks > 3);
    let other = run_sum(77, &store);
    assert!(other.blocks >= 1, "the block with the number is another: {other:?}");
    assert!(other.installed >= 3, "the others are the same: {other:?}");
}

#[test]
fn damaged_files_are_refused_and_replaced() {
    let directory = directory();
    let store = open(directory.path());
    run_sum(100, &store);
    store.save().expect("there is room");
    let path = only_file(directory.path());
    let good = std::fs::read(&path).expect("was written");
    let mut random = Random(7);
    let mut bad: Vec<Vec<u8>> = (0..200)
        .map(|_| {
            let mut bytes = good.clone();
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            bytes
        })
        .collect();
    bad.extend((0..good.len()).step_by(61).map(|len| good[..len].to_vec()));
    bad.push([&good[..], b"more"].concat());
    for bytes in bad {
        std::fs::write(&path, &bytes).expect("there is room");
        let error = file::read_any(&path, |_| {}).expect_err("was damaged");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
    let store = open(directory.path());
    let counts = run_sum(100, &store);
    assert_eq!(counts.installed, 0, "nothing of it was used");
    store.save().expect("there is room");
    let counts = run_sum(100, &open(directory.path()));
    assert_eq!(counts.blocks, 0, "the file is good again");
}

#[test]
fn stores_of_others_are_refused() {
    let directory = directory();
    let mode = |mode| std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(mode));
    for bits in [0o770, 0o707, 0o777] {
        mode(bits).expect("is ours");
        let error = TranslationStore::open(directory.path()).expect_err("others may write");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
    mode(0o755).expect("is ours");
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("there is room");
    TranslationStore::open(&file).expect_err("is a file");
    match std::os::unix::fs::chown(directory.path(), Some(12345), None) {
        Ok(()) => {
            let error = TranslationStore::open(directory.path()).expect_err("is another's");
            assert!(error.to_string().contains("belongs to user 12345"), "{error}");
        }
        Err(error) => println!("another user's directory was not tried, chown is not allowed: {error}"),
    }
}

#[test]
fn files_that_others_could_have_written_are_refused() {
    let directory = directory();
    let store = open(directory.path());
    run_sum(100, &store);
    store.save().expect("there is room");
    let path = only_file(directory.path());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("is ours");
    assert_eq!(run_sum(100, &open(directory.path())).installed, 0, "others may write to it");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("is ours");
    assert_eq!(run_sum(100, &open(directory.path())).blocks, 0);
    let elsewhere = directory.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).expect("is ours");
    std::os::unix::fs::symlink(&elsewhere, &path).expect("is ours");
    assert_eq!(run_sum(100, &open(directory.path())).installed, 0, "a link is not followed");
}

#[test]
fn machines_that_end_together_keep_both_works() {
    let directory = directory();
    let stores = [open(directory.path()), open(directory.path())];
    for (store, count) in stores.iter().zip([100, 77]) {
        run_sum(count, store);
    }
    stores.iter().for_each(|store| store.save().expect("there is room"));
    let both = open(directory.path());
    for count in [100, 77] {
        assert_eq!(run_sum(count, &both).blocks, 0, "{count}");
    }
}

/// Calls two functions in turn, the second one first if RDI is odd: the same blocks, met in another order.
fn calls_in_turn(first: u64, store: &Arc<TranslationStore>) -> TranslationCounts {
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    let (mut again, mut odd, mut on) = (a.create_label(), a.create_label(), a.create_label());
    let (mut even_function, mut odd_function) = (a.create_label(), a.create_label());
    let assembled = (|| {
        a.mov(ecx, 2)?;
        a.set_label(&mut again)?;
        a.test(edi, 1)?;
        a.jne(odd)?;
        a.call(even_function)?;
        a.jmp(on)?;
        a.set_label(&mut odd)?;
        a.call(odd_function)?;
        a.set_label(&mut on)?;
        a.inc(edi)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()?;
        a.set_label(&mut even_function)?;
        a.add(dword_ptr(rsp - 64), 1)?;
        a.ret()?;
        a.set_label(&mut odd_function)?;
        a.push(rcx)?;
        a.add(qword_ptr(rsp - 64), 2)?;
        a.add(qword_ptr(rsp - 72), 2)?;
        a.pop(rcx)?;
        a.ret()?;
        a.assemble(CODE)
    })();
    let mut state = harness::long_state();
    state.gprs[7] = first;
    let mut cpu: Cpu = harness::cpu_in(harness::memory(), &state);
    cpu.enable_translation(settings(store)).expect("the host has memory");
    cpu.memory.write(CODE, &assembled.expect("the program assembles")).expect("is RAM");
    assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
    assert_eq!(cpu.save().gprs[7], first + 2, "both turns were taken");
    cpu.translator.as_ref().map(|translator| translator.counts).unwrap_or_default()
}

#[test]
fn whoever_translated_a_block_it_is_kept_once() {
    let directory = directory();
    let stores = [open(directory.path()), open(directory.path())];
    for (store, first) in stores.iter().zip([0, 1]) {
        let counts = calls_in_turn(first, store);
        assert!(counts.blocks >= 7 && counts.installed == 0, "{counts:?}");
    }
    let sizes = stores.each_ref().map(|store| store.size());
    assert_eq!(sizes[0], sizes[1], "the same blocks");
    let mut lengths = stores.iter().map(|store| {
        store.save().expect("there is room");
        std::fs::metadata(only_file(directory.path())).expect("was written").len()
    });
    let one = lengths.next();
    assert_eq!(one, Some(sizes[0].1 as u64));
    assert_eq!(lengths.next(), one, "nothing new came");
    assert_eq!(calls_in_turn(1, &open(directory.path())).blocks, 0, "and it is whole");
}

#[test]
fn processors_that_translate_the_same_at_once_keep_it_once() {
    let directory = directory();
    let store = open(directory.path());
    calls_in_turn(0, &store);
    let alone = store.size();
    let opened = store.opened.get().expect("was used");
    let mut records = opened.records.write();
    let again: Vec<(u64, Vec<u8>)> = {
        let starts = records.index.values();
        let each = starts.filter_map(|&start| file::record(&records.bytes, start as usize));
        each.map(|(key, translation)| (key, translation.to_vec())).collect()
    };
    for (key, translation) in again {
        assert!(!records.add(key, &translation), "it is there");
    }
    drop(records);
    assert_eq!(store.size(), alone);
}

#[test]
fn code_translated_ahead_is_not_translated_again() {
    let directory = directory();
    let model = crate::system::SystemState::default().model;
    let mut preparation = Preparation::new(open(directory.path()), &model).expect("is the host's");
    preparation.add_code(&sum(100), CODE);
    let done = preparation.finish().expect("there is room");
    assert!(done.translated >= 4, "{done:?}");
    let counts = run_sum(100, &open(directory.path()));
    assert_eq!(counts.blocks, 0, "{counts:?}");
}

#[test]
fn what_has_no_room_is_left_out_and_told() {
    let (all, some) = (directory(), directory());
    let model = crate::system::SystemState::default().model;
    let prepare = |directory: &Path, room: Option<usize>| {
        let store = open(directory);
        let mut preparation = Preparation::new(Arc::clone(&store), &model).expect("is the host's");
        if let Some(room) = room {
            store.opened.get().expect("was opened").records.write().room = room;
        }
        preparation.add_code(&sum(100), CODE);
        preparation.finish().expect("there is room")
    };
    let everything = prepare(all.path(), None);
    assert_eq!((everything.left_out, everything.stored as u64), (0, everything.translated));
    let room = everything.stored_bytes / 2;
    let half = prepare(some.path(), Some(room));
    assert!(half.stored > 0 && half.left_out > 0, "{half:?}");
    assert_eq!(half.stored as u64 + half.left_out, half.translated, "each is kept or told of: {half:?}");
    assert!(half.stored_bytes <= file::HEAD + room, "{half:?}");
}

#[test]
fn profiles_of_other_versions_are_translated_anew() {
    let (old, new) = (directory(), directory());
    let store = open(old.path());
    run_sum(100, &store);
    let mut records = store.opened.get().expect("was used").records.write();
    file::write(old.path(), &[7; 32], &mut records).expect("there is room");
    drop(records);
    let model = crate::system::SystemState::default().model;
    let mut preparation = Preparation::new(open(new.path()), &model).expect("is the host's");
    preparation.add_profile(&only_file(old.path())).expect("is whole");
    let done = preparation.finish().expect("there is room");
    assert!(done.translated > 3, "{done:?}");
    let counts = run_sum(100, &open(new.path()));
    assert_eq!(counts.blocks, 0, "{counts:?}");
}
