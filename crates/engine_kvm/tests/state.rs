//! The state that is loaded is the state that is read.

mod support;

use engine_kvm::canonical_xsave;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{Machine, machine};
use x86::{
    CpuState, Exception, MpState, PendingEvents, PendingException, PendingInterrupt, Vector, XsaveArea, msr,
};

/// Random numbers and choices of which a state is built.
#[derive(Clone, Debug)]
struct Seeds {
    words: Vec<u64>,
    vector_bytes: Vec<u8>,
    flags: u64,
    mode: Mode,
    event: u8,
    mp_state: MpState,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Real,
    Long,
}

fn seeds() -> impl Strategy<Value = Seeds> {
    (
        prop::collection::vec(any::<u64>(), 48),
        prop::collection::vec(any::<u8>(), 512),
        any::<u64>(),
        prop_oneof![Just(Mode::Real), Just(Mode::Long)],
        0_u8..8,
        prop_oneof![Just(MpState::Runnable), Just(MpState::Halted)],
    )
        .prop_map(|(words, vector_bytes, flags, mode, event, mp_state)| Seeds {
            words,
            vector_bytes,
            flags,
            mode,
            event,
            mp_state,
        })
}

fn canonical_address(value: u64) -> u64 {
    ((value << 16) as i64 >> 16) as u64
}

/// CF, PF, AF, ZF, SF, DF, OF, NT, AC and ID; interrupts off.
const FREE_FLAGS: u64 = 0x24_4cd5;

fn build(machine: &mut Machine, seeds: &Seeds) -> CpuState {
    let mut state = match seeds.mode {
        Mode::Real => machine.real_mode(&[0xf4]),
        Mode::Long => machine.long_mode(&[0xf4]),
    };
    let words = &seeds.words;
    state.gprs.copy_from_slice(&words[..16]);
    state.rflags = seeds.flags & FREE_FLAGS | 2;
    state.cr2 = words[16];
    state.cr8 = words[17] & 15;
    state.lapic.registers[8] = (state.cr8 as u32) << 4;
    for (register, word) in state.dr.iter_mut().zip(&words[18..22]) {
        *register = canonical_address(*word);
    }
    state.dr6 = 0xffff_0ff0 | words[22] & 0xe00f;
    state.dr7 = 0x400 | words[23] & 0xff;
    if let Mode::Long = seeds.mode {
        state.rip = canonical_address(words[24]);
        state.segments.fs.base = canonical_address(words[25]);
        state.segments.gs.base = canonical_address(words[26]);
        state.segments.ldtr.selector = words[27] as u16 & 0xfff8;
    } else {
        state.segments.es.selector = words[27] as u16;
        state.segments.es.base = u64::from(words[27] as u16) << 4;
    }
    state.gdtr.limit = words[28] as u16;
    state.idtr.base = canonical_address(words[29]);
    let registers = [msr::STAR, msr::FMASK, msr::TSC_AUX, msr::SYSENTER_CS];
    for (register, word) in registers.into_iter().zip(&words[30..]) {
        state.set_msr(register, word & 0xffff_ffff);
    }
    let addresses = [msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE, msr::SYSENTER_EIP, msr::SYSENTER_ESP];
    for (register, word) in addresses.into_iter().zip(&words[34..]) {
        state.set_msr(register, canonical_address(*word));
    }
    // Spurious vector register, timer LVT (masked), LVT error.
    state.lapic.registers[0xf] = 0x1ff;
    state.lapic.registers[0x32] = 0x1_0000 | words[39] as u32 & 0xff;
    state.lapic.registers[0x37] = words[40] as u32 & 0xff;
    // IRR: vectors 16 and above.
    state.lapic.registers[0x21] = words[41] as u32;
    state.xsave = vectors(&seeds.vector_bytes, words[42]);
    state.xcr0 = 7;
    state.cr4 |= 1 << 18;
    state.events = events(seeds, words[43]);
    state.mp_state = seeds.mp_state;
    state
}

fn vectors(bytes: &[u8], present: u64) -> XsaveArea {
    let mut area = XsaveArea::default();
    area.bytes[160..416].copy_from_slice(&bytes[..256]);
    area.bytes[576..832].copy_from_slice(&bytes[256..]);
    area.bytes[512] = (present & 7) as u8;
    // Rounding control in both control words.
    area.bytes[1] |= (present >> 8 & 0xc) as u8;
    area.bytes[25] |= (present >> 16 & 0x60) as u8;
    canonical_xsave(&area)
}

fn events(seeds: &Seeds, word: u64) -> PendingEvents {
    let exception = |exception| PendingEvents {
        exception: Some(PendingException { exception }),
        ..PendingEvents::default()
    };
    match seeds.event {
        0 => exception(Exception::page_fault((word & 7) as u32, canonical_address(word))),
        1 => exception(Exception::gp((word & 0xfff8) as u32)),
        2 => exception(Exception { vector: Vector::Debug, error_code: 0, payload: 0x4000 }),
        // KVM executes an unfinished INT n again instead of reporting it.
        3 => PendingEvents {
            interrupt: Some(PendingInterrupt { vector: word as u8, software: false }),
            ..PendingEvents::default()
        },
        4 => PendingEvents { nmi_pending: true, nmi_masked: true, ..PendingEvents::default() },
        5 => PendingEvents { sti_shadow: true, ..PendingEvents::default() },
        6 => PendingEvents { mov_ss_shadow: true, ..PendingEvents::default() },
        _ => PendingEvents::default(),
    }
}

/// Without what moves by itself, and the processor priority, which follows from the rest.
fn at_rest(mut state: CpuState) -> CpuState {
    if let Some(priority) = state.lapic.registers.get_mut(0xa) {
        *priority = 0;
    }
    state.msrs.retain(|entry| ![msr::TSC, msr::TSC_DEADLINE].contains(&entry.index));
    state.xsave = canonical_xsave(&state.xsave);
    state
}

/// The lines of the pretty form in which two states differ.
fn differences(read: &CpuState, loaded: &CpuState) -> Vec<String> {
    let (read, loaded) = (format!("{read:#x?}"), format!("{loaded:#x?}"));
    let pairs = read.lines().zip(loaded.lines()).enumerate();
    pairs.filter(|(_, (a, b))| a != b).map(|(line, (a, b))| format!("line {line}: {a} |{b}")).collect()
}

#[test]
fn random_states_come_back() {
    let Some(machine) = machine() else { return };
    let machine = std::cell::RefCell::new(machine);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let result = runner.run(&seeds(), |seeds| {
        let mut machine = machine.borrow_mut();
        let state = build(&mut machine, &seeds);
        machine.vcpu.set_state(&state).unwrap();
        let (read, loaded) = (at_rest(machine.vcpu.state().unwrap()), at_rest(state));
        prop_assert!(read == loaded, "{:#?}", differences(&read, &loaded));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn excursions_come_back_and_leave_the_local_apic() {
    let Some(machine) = machine() else { return };
    let machine = std::cell::RefCell::new(machine);
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(seeds(), seeds()), |(first, second)| {
        let mut machine = machine.borrow_mut();
        let base = build(&mut machine, &first);
        machine.vcpu.set_state(&base).unwrap();
        let mut moved = build(&mut machine, &second);
        moved.cr8 = base.cr8;
        machine.vcpu.set_excursion_state(&moved).unwrap();
        let whole = machine.vcpu.state().unwrap();
        prop_assert_eq!(&at_rest(whole.clone()).lapic, &at_rest(base.clone()).lapic);
        prop_assert_eq!(whole.apic_base, base.apic_base);
        let mut expected = CpuState { lapic: base.lapic, ..moved };
        // A waiting NMI stays with the local APIC.
        expected.events.nmi_pending |= base.events.nmi_pending;
        let (read, loaded) = (at_rest(whole), at_rest(expected));
        prop_assert!(read == loaded, "{:#?}", differences(&read, &loaded));
        let excursion = machine.vcpu.excursion_state().unwrap();
        prop_assert_eq!((excursion.rip, excursion.gprs), (moved_rip(&second), moved_gprs(&second)));
        prop_assert_eq!(excursion.lapic, x86::LapicState::default());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn moved_rip(seeds: &Seeds) -> u64 {
    match seeds.mode {
        Mode::Real => support::CODE,
        Mode::Long => canonical_address(seeds.words[24]),
    }
}

fn moved_gprs(seeds: &Seeds) -> [u64; 16] {
    std::array::from_fn(|at| seeds.words[at])
}

#[test]
fn a_fresh_processor_is_in_the_reset_state() {
    let Some(machine) = machine() else { return };
    let state = machine.vcpu.state().unwrap();
    let reset = CpuState::reset(true);
    assert_eq!((state.rip, state.segments), (reset.rip, reset.segments));
    assert_eq!((state.cr0, state.cr4, state.efer), (reset.cr0, reset.cr4, reset.efer));
    assert_eq!((state.apic_base, state.dr6, state.dr7), (reset.apic_base, reset.dr6, reset.dr7));
    assert_eq!(state.xsave, canonical_xsave(&reset.xsave));
    assert_eq!(state.msr(msr::PAT), reset.msr(msr::PAT));
    assert_eq!(state.lapic.registers[0x35], 0x700, "LINT0 is open for the PIC");
    assert_eq!(state.lapic.registers[0xf], 0xff);
}

#[test]
fn impossible_states_are_refused_with_a_reason() {
    let Some(mut machine) = machine() else { return };
    let mut state = machine.vcpu.state().unwrap();
    state.xcr0 = 6;
    let error = machine.vcpu.set_state(&state).unwrap_err();
    assert!(error.to_string().contains("XCR0"), "{error}");
}

#[test]
fn the_dirty_log_names_the_pages_that_the_guest_wrote() {
    let Some(mut machine) = machine() else { return };
    machine.memory.set_logging(true);
    machine.vm.set_dirty_log(true).unwrap();
    // mov [0x30000],eax; mov [0x45ffe],eax; mov dx,DONE; out dx,al
    let code =
        [0x89, 0x04, 0x25, 0, 0, 3, 0, 0x89, 0x04, 0x25, 0xfe, 0x5f, 4, 0, 0x66, 0xba, 0xf4, 0, 0xee, 0xf4];
    let state = machine.long_mode(&code);
    // Drop what the set-up wrote.
    machine.vm.sync_dirty_log().unwrap();
    machine.memory.regions()[0].tracker().take_dirty();
    assert_eq!(machine.run(&state), engine::VmExit::Kicked);
    machine.vm.sync_dirty_log().unwrap();
    let words = machine.memory.regions()[0].tracker().take_dirty();
    let dirty: Vec<usize> =
        (0..words.len() * 64).filter(|page| words[page / 64] >> (page % 64) & 1 != 0).collect();
    for page in [0x30, 0x45, 0x46] {
        assert!(dirty.contains(&page), "{dirty:x?}");
    }
    // Besides, page tables and descriptors get their accessed bits.
    assert!(dirty.iter().all(|page| [0x30, 0x45, 0x46].contains(page) || *page < 0x8), "{dirty:x?}");
    machine.vm.sync_dirty_log().unwrap();
    let again = machine.memory.regions()[0].tracker().take_dirty();
    assert!(again.iter().all(|word| *word == 0), "a page is told once");
    machine.vm.set_dirty_log(false).unwrap();
}
