//! The description is what GDB's manual asks for, and each register is read where it was written.

use super::*;

/// A state in which nothing is zero by chance.
fn state() -> CpuState {
    let mut state = CpuState::reset(true);
    state.gprs = std::array::from_fn(|n| 0x1111_0000 + n as u64);
    state.rip = 0xffff_ffff_8100_0000;
    state.xsave.bytes[512] = 7;
    state.xsave.bytes[32..42].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    state.xsave.bytes[160..176].copy_from_slice(&0xabcd_u128.to_le_bytes());
    state
}

fn number_of(name: &str) -> Number {
    Number(REGISTERS.iter().position(|register| register.name == name).unwrap())
}

fn value(state: &mut CpuState, name: &str) -> u128 {
    let mut buffer = [0; 16];
    let len = read(state, number_of(name), &mut buffer).unwrap();
    value_of(&buffer[..len])
}

#[test]
fn the_order_is_that_of_gdb() {
    // GDB numbers x86-64's registers: 0–15 general (RAX, RBX, RCX, RDX, …), 16 RIP, 17 EFLAGS, 24 ST0, 32 FCTRL,
    // 40 XMM0, 56 MXCSR.
    for (number, name) in [
        (1, "rbx"),
        (3, "rdx"),
        (7, "rsp"),
        (16, "rip"),
        (17, "eflags"),
        (24, "st0"),
        (40, "xmm0"),
        (56, "mxcsr"),
    ] {
        assert_eq!(REGISTERS[number].name, name);
    }
}

#[test]
fn each_register_holds_what_was_written_and_no_other_changes() {
    for (at, register) in REGISTERS.iter().enumerate() {
        let mut state = state();
        let before = Image::of(&mut state);
        let old = register.place.get(&mut state);
        // Within the reserved bits of flags and tags, and of selectors in four bytes.
        let new = match register.name.as_str() {
            "eflags" => 0x246,
            "ftag" => 0xfffc,
            _ => old ^ 1,
        };
        assert!(write(&mut state, Number(at), &new.to_le_bytes()[..register.len()]));
        assert_eq!(register.place.get(&mut state), new, "{}", register.name);
        let mut there_and_back = state.clone();
        before.apply(&mut there_and_back);
        assert_eq!(Image::of(&mut there_and_back), before, "{}", register.name);
        let others = REGISTERS.iter().filter(|other| other.name != register.name && other.name != "ftag");
        let mut untouched = super::tests::state();
        for other in others {
            assert_eq!(other.place.get(&mut state), other.place.get(&mut untouched), "{}", other.name);
        }
    }
}

#[test]
fn initial_components_have_their_initial_values() {
    let mut state = state();
    state.xsave.bytes[512] = 0;
    assert_eq!((value(&mut state, "fctrl"), value(&mut state, "ftag")), (0x37f, 0xffff));
    assert_eq!((value(&mut state, "st0"), value(&mut state, "xmm0")), (0, 0));
    assert!(write(&mut state, number_of("xmm1"), &5_u128.to_le_bytes()));
    assert_eq!((value(&mut state, "xmm0"), value(&mut state, "xmm1")), (0, 5));
    assert_eq!(state.xsave.bytes[512], 2);
}

#[test]
fn tags_tell_what_the_stack_holds() {
    let mut state = state();
    // TOP is 7: ST(0) is the physical register 7, which holds 1.0; 0 holds zero, 1 an infinity.
    state.xsave.bytes[2..4].copy_from_slice(&(7_u16 << 11).to_le_bytes());
    state.xsave.bytes[4] = 1 << 7 | 1 << 0 | 1 << 1;
    state.xsave.bytes[64..74].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]);
    // Valid 0, zero 1, special 2, empty 3 (SDM 1 8.1.7).
    assert_eq!(value(&mut state, "ftag"), 0b00_11_11_11_11_11_10_01);
}

#[test]
fn an_image_of_another_length_is_refused() {
    let mut image = Image::of(&mut state());
    assert_eq!(image.pc(), state().rip);
    assert!(image.gdb_deserialize(&[0; 8]).is_err());
}
