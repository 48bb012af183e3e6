//! The system part against the tables of SDM 3A.

mod debug;
mod delivery;
mod far_transfers;
mod gates;
mod long;
mod ports;
mod real_mode;
mod rig;
mod selectors;
mod tasks;
mod virtual_8086;

use super::deliver::{Combined, combine};
use crate::interp::harness;
use x86::{DescriptorTable, Exception, RFlags, Vector};

/// SDM 3A table 6-5, over the classes of table 6-4.
#[test]
fn second_exceptions_combine_by_the_table() {
    use Vector as V;
    let benign = [
        V::Debug,
        V::Nmi,
        V::Breakpoint,
        V::Overflow,
        V::Bound,
        V::InvalidOpcode,
        V::DeviceNotAvailable,
        V::X87,
        V::Alignment,
        V::MachineCheck,
        V::Simd,
    ];
    let contributory = [V::Divide, V::InvalidTss, V::SegmentNotPresent, V::Stack, V::GeneralProtection];
    let class = |v: V| {
        if benign.contains(&v) {
            0
        } else if contributory.contains(&v) {
            1
        } else {
            2
        }
    };
    let table = [
        [Combined::Second, Combined::Second, Combined::Second],
        [Combined::Second, Combined::Double, Combined::Second],
        [Combined::Second, Combined::Double, Combined::Double],
    ];
    let all: Vec<V> = benign.into_iter().chain(contributory).chain([V::PageFault]).collect();
    for &first in &all {
        for &second in &all {
            assert_eq!(
                combine(first, second),
                table[class(first)][class(second)],
                "{first:?} then {second:?}"
            );
        }
    }
    for second in contributory.into_iter().chain([V::PageFault]) {
        assert_eq!(combine(V::DoubleFault, second), Combined::Triple);
    }
}

/// SDM 3A figure 6-9: the frame of a fault with an error code in 64-bit mode, on a stack aligned to 16 bytes.
#[test]
fn a_page_fault_in_64_bit_mode_pushes_the_manuals_frame() {
    let memory = harness::memory();
    let put = |address: u64, value: u64| memory.write(address, &value.to_le_bytes()).unwrap();
    let (gdt, idt, handler) = (0x1000_u64, 0x2000_u64, 0x5000_u64);
    put(gdt + 8, 0x00af_9b00_0000_ffff);
    put(idt + 14 * 16, handler & 0xffff | 8 << 16 | 0x8e00 << 32);
    put(idt + 14 * 16 + 8, 0);
    let mut state = harness::long_state();
    state.gdtr = DescriptorTable { base: gdt, limit: 0xf };
    state.idtr = DescriptorTable { base: idt, limit: 0xfff };
    state.rflags = 0x202;
    state.gprs[4] = harness::STACK - 8;
    let mut cpu = harness::cpu_in(memory, &state);
    cpu.deliver_exception(Exception::page_fault(2, 0x1234)).unwrap();
    assert_eq!((cpu.rip(), cpu.cr2, cpu.gpr(4)), (handler, 0x1234, harness::STACK - 16 - 48));
    assert!(!cpu.has_flag(RFlags::IF));
    let frame: [u64; 6] = std::array::from_fn(|at| cpu.system_load(cpu.gpr(4) + 8 * at as u64).unwrap());
    assert_eq!(frame, [2, harness::CODE, 8, 0x1_0202, harness::STACK - 8, 0x10]);
    // A vector beyond the descriptor table's gates: #GP, then #DF, then shutdown.
    assert!(cpu.deliver_exception(Exception::ud()).is_err());
    assert_eq!(cpu.exit, Some(engine::VmExit::TripleFault));
}
