//! Save areas: offsets, forms, header checks (SDM 1 13.4–13.12).

use super::{DATA, cpu, faults, run};
use crate::cpu::Cpu;
use x86::{Cr0, Cr4, Vector, XsaveArea};

const FXSAVE: &[u8] = &[0x0f, 0xae, 0x07];
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x07];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0f];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x27];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x37];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x27];
const XSAVES: &[u8] = &[0x0f, 0xc7, 0x2f];
const XRSTORS: &[u8] = &[0x0f, 0xc7, 0x1f];

/// A processor with something in every component, EDX:EAX all ones, and RDI at an area of 0xcc.
fn full() -> Cpu {
    let mut cpu = cpu();
    for (index, register) in cpu.vector.ymm.iter_mut().enumerate() {
        register[..16].fill(0x40 + index as u8);
        register[16..].fill(0x80 + index as u8);
    }
    cpu.vector.mxcsr = 0x1fa0;
    assert_eq!(run(&mut cpu, &[0xd9, 0xeb]), Ok(())); // FLDPI
    cpu.fpu.set_fip(0x1234_5678_9abc);
    cpu.regs[0] = u64::MAX;
    cpu.regs[2] = u64::MAX;
    cpu.regs[7] = DATA;
    for at in (0..1024).step_by(64) {
        cpu.store(3, DATA + at, [0xcc_u8; 64]).expect("guest memory is there");
    }
    cpu
}

fn clear_header(cpu: &mut Cpu) {
    cpu.store(3, DATA + 512, [0_u8; 64]).expect("guest memory is there");
}

fn word(cpu: &mut Cpu, at: u64) -> u64 {
    cpu.load(3, DATA + at).expect("guest memory is there")
}

fn put(cpu: &mut Cpu, at: u64, value: u64) {
    cpu.store(3, DATA + at, value).expect("guest memory is there");
}

fn bytes<const N: usize>(cpu: &mut Cpu, at: u64) -> [u8; N] {
    cpu.load(3, DATA + at).expect("guest memory is there")
}

const PI: [u8; 10] = [0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40];

#[test]
fn fxsave_has_the_offsets_of_the_manual() {
    let mut cpu = full();
    assert_eq!(run(&mut cpu, FXSAVE64), Ok(()));
    assert_eq!(bytes::<5>(&mut cpu, 0), [0x7f, 0x03, 0x00, 0x38, 0x80]);
    assert_eq!(word(&mut cpu, 8), 0x1234_5678_9abc);
    assert_eq!(word(&mut cpu, 24), 0xffff_0000_1fa0);
    assert_eq!(bytes::<10>(&mut cpu, 32), PI);
    assert_eq!(bytes::<16>(&mut cpu, 160), [0x40; 16]);
    assert_eq!(bytes::<16>(&mut cpu, 400), [0x4f; 16]);
    assert_eq!(bytes::<16>(&mut cpu, 416), [0xcc; 16]);
    assert_eq!(run(&mut cpu, FXSAVE), Ok(()));
    assert_eq!(word(&mut cpu, 8), 0x5678_9abc, "FCS is deprecated");
    cpu.regs[7] = DATA + 8;
    faults(&mut cpu, FXSAVE, Vector::GeneralProtection);
    cpu.cr0.insert(Cr0::EM);
    faults(&mut cpu, FXSAVE, Vector::DeviceNotAvailable);
}

#[test]
fn fxrstor_brings_back_what_fxsave_saved() {
    let mut cpu = full();
    assert_eq!(run(&mut cpu, FXSAVE64), Ok(()));
    let (vector, fpu) = (cpu.vector.clone(), cpu.fpu.clone());
    cpu.vector.ymm.iter_mut().for_each(|register| register[..16].fill(0));
    cpu.vector.mxcsr = 0x1f80;
    cpu.fpu = Default::default();
    assert_eq!(run(&mut cpu, &[0x48, 0x0f, 0xae, 0x0f]), Ok(()));
    assert_eq!((cpu.vector.clone(), cpu.fpu.clone()), (vector.clone(), fpu));
    put(&mut cpu, 24, 0x8000_1f80);
    faults(&mut cpu, FXRSTOR, Vector::GeneralProtection);
    assert_eq!(cpu.vector, vector);
}

#[test]
fn fxsave_outside_of_64_bit_mode_has_eight_registers() {
    let mut cpu = full();
    cpu.long64 = false;
    assert_eq!(run(&mut cpu, FXSAVE), Ok(()));
    assert_eq!(bytes::<16>(&mut cpu, 272), [0x47; 16]);
    assert_eq!(bytes::<16>(&mut cpu, 288), [0xcc; 16]);
}

#[test]
fn xsave_and_xrstor_are_inverse() {
    for restored in 0..8 {
        let mut cpu = full();
        clear_header(&mut cpu);
        assert_eq!(run(&mut cpu, XSAVE64), Ok(()));
        assert_eq!(word(&mut cpu, 512), 7);
        assert_eq!(bytes::<16>(&mut cpu, 576), [0x80; 16]);
        assert_eq!(bytes::<16>(&mut cpu, 816), [0x8f; 16]);
        let saved = (cpu.vector.clone(), cpu.fpu.clone());
        cpu.vector = Default::default();
        cpu.fpu = Default::default();
        cpu.regs[0] = restored;
        assert_eq!(run(&mut cpu, XRSTOR64), Ok(()));
        assert_eq!(cpu.fpu == saved.1, restored & 1 != 0);
        assert_eq!(cpu.vector.ymm[3][0] == 0x43, restored & 2 != 0);
        assert_eq!(cpu.vector.ymm[3][16] == 0x83, restored & 4 != 0);
        assert_eq!(cpu.vector.mxcsr == 0x1fa0, restored & 6 != 0);
    }
}

#[test]
fn xsave_keeps_header_bits_that_were_not_asked_for() {
    let mut cpu = full();
    clear_header(&mut cpu);
    put(&mut cpu, 512, 4);
    cpu.regs[0] = 1;
    assert_eq!(run(&mut cpu, XSAVE64), Ok(()));
    assert_eq!(word(&mut cpu, 512), 5);
    assert_eq!(bytes::<8>(&mut cpu, 24), [0xcc; 8], "MXCSR belongs to SSE and AVX");
    assert_eq!(bytes::<16>(&mut cpu, 160), [0xcc; 16]);
}

#[test]
fn optimised_and_compacted_forms_skip_initial_components() {
    let mut cpu = full();
    clear_header(&mut cpu);
    cpu.vector.ymm.iter_mut().for_each(|register| register[16..].fill(0));
    assert_eq!(run(&mut cpu, XSAVEOPT), Ok(()));
    assert_eq!(word(&mut cpu, 512), 3);
    assert_eq!(bytes::<16>(&mut cpu, 576), [0xcc; 16]);
    for form in [XSAVEC, XSAVES] {
        let mut cpu = full();
        cpu.fpu = Default::default();
        cpu.vector.ymm = [[0; 32]; 16];
        assert_eq!(run(&mut cpu, form), Ok(()));
        assert_eq!(word(&mut cpu, 512), 2, "MXCSR is not in its reset state");
        assert_eq!(word(&mut cpu, 520), 7 | 1 << 63);
        assert_eq!(bytes::<16>(&mut cpu, 32), [0xcc; 16]);
        assert_eq!(bytes::<4>(&mut cpu, 24), [0xa0, 0x1f, 0, 0]);
    }
}

#[test]
fn the_compacted_form_resets_what_is_not_in_it() {
    let mut cpu = full();
    let image = cpu.clone_vectors();
    assert_eq!(run(&mut cpu, XSAVEC), Ok(()));
    clear_rest(&mut cpu);
    put(&mut cpu, 512, 4);
    assert_eq!(run(&mut cpu, XRSTORS), Ok(()));
    assert_eq!(cpu.fpu, Default::default());
    assert_eq!(cpu.vector.mxcsr, 0x1f80);
    assert_eq!(cpu.vector.ymm[5][..16], [0; 16]);
    assert_eq!(cpu.vector.ymm[5][16..], image[5][16..]);
}

/// The instruction wrote the first sixteen bytes of the header; the rest must be zero to load it.
fn clear_rest(cpu: &mut Cpu) {
    cpu.store(3, DATA + 528, [0_u8; 48]).expect("guest memory is there");
}

trait CloneVectors {
    fn clone_vectors(&self) -> [[u8; 32]; 16];
}
impl CloneVectors for Cpu {
    fn clone_vectors(&self) -> [[u8; 32]; 16] {
        self.vector.ymm
    }
}

#[test]
fn bad_headers_are_refused() {
    // (offset, value, form)
    let bad: [(u64, u64, &[u8]); 9] = [
        (512, 8, XRSTOR64),                 // not in XCR0
        (520, 1, XRSTOR64),                 // XCOMP_BV without bit 63
        (528, 1, XRSTOR64),                 // reserved
        (520, 1 << 63 | 8, XRSTOR64),       // not in XCR0
        (520, 1 << 63 | 1 << 62, XRSTOR64), // a component that does not exist
        (536, 1, XRSTORS),                  // standard form
        (568, 1 << 40, XRSTORS),            // standard form
        (512, 0, XRSTORS),                  // standard form
        (24, 0x1_0000, XRSTOR64),           // MXCSR
    ];
    for (at, value, form) in bad {
        let mut cpu = full();
        clear_header(&mut cpu);
        put(&mut cpu, 24, 0x1f80);
        put(&mut cpu, at, value);
        faults(&mut cpu, form, Vector::GeneralProtection);
    }
    let mut cpu = full();
    clear_header(&mut cpu);
    put(&mut cpu, 512, 2);
    put(&mut cpu, 520, 1 << 63 | 1);
    faults(&mut cpu, XRSTOR64, Vector::GeneralProtection);
}

#[test]
fn images_from_an_engine_that_shows_the_hosts_xcr0_are_accepted_where_the_machine_knows_it() {
    let image = |state: u64, layout: u64| {
        let mut cpu = full();
        cpu.system.lenient_xrstor = true;
        clear_header(&mut cpu);
        put(&mut cpu, 24, 0x1f80);
        put(&mut cpu, 512, state);
        put(&mut cpu, 520, 1 << 63 | layout);
        cpu
    };
    let zmm = 7 << 5;
    assert!(run(&mut image(7, 7 | zmm), XRSTOR64).is_ok());
    // Contents of such a component cannot be loaded, and unknown components remain unknown.
    faults(&mut image(7 | 1 << 6, 7 | zmm), XRSTOR64, Vector::GeneralProtection);
    faults(&mut image(7, 7 | 1 << 62), XRSTOR64, Vector::GeneralProtection);
    faults(&mut image(7, 7 | zmm), XRSTORS, Vector::GeneralProtection);
}

#[test]
fn the_family_needs_osxsave_alignment_and_privilege() {
    for form in [XSAVE64, XRSTOR64, XSAVEOPT, XSAVEC, XSAVES, XRSTORS] {
        let mut cpu = full();
        cpu.regs[7] = DATA + 32;
        faults(&mut cpu, form, Vector::GeneralProtection);
        cpu.cr0.insert(Cr0::TS);
        faults(&mut cpu, form, Vector::DeviceNotAvailable);
        cpu.cr4.remove(Cr4::OSXSAVE);
        faults(&mut cpu, form, Vector::InvalidOpcode);
    }
    for form in [XSAVES, XRSTORS] {
        let mut cpu = full();
        clear_header(&mut cpu);
        put(&mut cpu, 520, 1 << 63);
        cpu.cpl = 3;
        faults(&mut cpu, form, Vector::GeneralProtection);
    }
}

#[test]
fn saved_states_are_loaded_back() {
    let cpu = full();
    let mut area = XsaveArea::default();
    cpu.save_vector(&mut area);
    assert_eq!(area.bytes[512], 7);
    let mut other = super::cpu();
    other.load_vector(&area);
    assert_eq!(other.vector, cpu.vector);
    assert_eq!(other.fpu, cpu.fpu);
    let mut again = XsaveArea::default();
    other.save_vector(&mut again);
    assert_eq!(area, again);
    other.load_vector(&XsaveArea { bytes: vec![0xff; 7] });
}
