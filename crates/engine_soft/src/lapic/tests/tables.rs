//! The tables of SDM 3A chapter 10, row by row.

use super::*;
use crate::lapic::bus::delivery as d;

const PAGE: u64 = 0xfee0_0000;
const LVT_FIRST: u32 = r::LVT_TIMER;

fn x2apic(lapic: &mut Lapic) {
    lapic.set_base(PAGE | base::ENABLE | base::X2APIC, 46, true).unwrap();
}

fn events_of(lapics: &[Lapic]) -> Vec<u32> {
    lapics.iter().map(|lapic| lapic.port().events.swap(0, Ordering::SeqCst)).collect()
}

/// Figure 10-27: which of (EN, EXTD) may follow which.
#[test]
fn transitions_of_the_base_register() {
    let (off, xapic, invalid, x2apic) = (0, base::ENABLE, base::X2APIC, base::ENABLE | base::X2APIC);
    let table = [
        (off, off, true),
        (off, xapic, true),
        (off, invalid, false),
        (off, x2apic, false),
        (xapic, off, true),
        (xapic, xapic, true),
        (xapic, invalid, false),
        (xapic, x2apic, true),
        (x2apic, off, true),
        (x2apic, xapic, false),
        (x2apic, invalid, false),
        (x2apic, x2apic, true),
    ];
    for (from, to, legal) in table {
        let (_, mut cpus) = machine(2);
        let lapic = &mut cpus[1];
        if from != xapic {
            lapic.set_base(PAGE | from, 46, true).unwrap();
        }
        assert_eq!(lapic.set_base(PAGE | to, 46, true).is_ok(), legal, "{from:#x} to {to:#x}");
        assert_eq!(lapic.base(), PAGE | if legal { to } else { from });
        assert_eq!(lapic.set_base(PAGE | base::ENABLE | base::X2APIC, 46, false), Err(Rejected));
    }
}

/// Leaving x2APIC mode by way of the disabled state gives back the initial state, entering it keeps registers
/// (10.12.5.1).
#[test]
fn what_transitions_keep() {
    let (_, mut cpus) = machine(3);
    let lapic = &mut cpus[2];
    lapic.write(r::ID, 9 << 24, 0);
    lapic.write(r::TPR, 0x20, 0);
    lapic.write(r::LVT_TIMER, 0x40, 0);
    x2apic(lapic);
    assert_eq!(lapic.read_msr(r::ID, 0), Ok(2), "the ID that was written in xAPIC mode is gone");
    assert_eq!(lapic.read_msr(r::TPR, 0), Ok(0x20));
    assert_eq!(lapic.read_msr(r::LVT_TIMER, 0), Ok(0x40));
    lapic.set_base(PAGE, 46, true).unwrap();
    lapic.set_base(PAGE | base::ENABLE, 46, true).unwrap();
    let read = |register| lapic.read(register, 0).unwrap();
    assert_eq!([read(r::ID), read(r::TPR), read(r::LVT_TIMER)], [2 << 24, 0, 0x1_0000]);
    assert_eq!([read(r::SVR), read(r::LDR), read(r::DFR)], [0xff, 0, u32::MAX]);
}

/// Table 10-6: which registers x2APIC mode reads and writes; everything else is `#GP`.
#[test]
fn registers_of_x2apic_mode() {
    let (_, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    x2apic(lapic);
    let arrays = (0x10..0x28).collect::<Vec<u32>>();
    let readable: Vec<u32> = [0x02, 0x03, 0x08, 0x0a, 0x0d, 0x0f, 0x28, 0x30]
        .into_iter()
        .chain(arrays)
        .chain(0x32..=0x37)
        .chain([0x38, 0x39, 0x3e])
        .collect();
    let writable = [0x08, 0x0b, 0x0f, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x3e, 0x3f];
    for register in 0..0x400 {
        assert_eq!(lapic.read_msr(register, 0).is_ok(), readable.contains(&register), "RDMSR {register:#x}");
        // Zero is legal in each, but as a vector to send.
        let value = if register == 0x30 || register == 0x3f { 0x40 } else { 0 };
        let written = lapic.write_msr(register, value, 0).is_ok();
        assert_eq!(written, writable.contains(&register), "WRMSR {register:#x}");
    }
    lapic.set_base(PAGE, 46, true).unwrap();
    lapic.set_base(PAGE | base::ENABLE, 46, true).unwrap();
    assert_eq!(lapic.read_msr(r::ID, 0), Err(Rejected), "no MSRs in xAPIC mode");
}

/// Reserved bits of x2APIC registers are `#GP` (10.12.1.3).
#[test]
fn reserved_bits_of_x2apic_mode() {
    let (_, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    x2apic(lapic);
    for (register, legal) in [
        (r::TPR, 0xff),
        (r::SVR, 0x11ff),
        (r::EOI, 0),
        (r::ESR, 0),
        (r::TIMER_INITIAL, 0xffff_ffff),
        (r::TIMER_DIVIDE, 0xb),
        (r::SELF_IPI, 0xff),
        // Bit 12 is read-only and may be written with what was read.
        (r::LVT_TIMER, 0x7_10ff),
        (r::LVT_LINT0, 0x1_b7ff),
        (r::LVT_ERROR, 0x1_10ff),
    ] {
        for bit in 0..64 {
            let value = 1_u64 << bit;
            let vector = if register == r::SELF_IPI { 0x40 } else { 0 };
            let written = lapic.write_msr(register, value | vector, 0).is_ok();
            assert_eq!(written, legal & value != 0, "{register:#x} bit {bit}");
        }
    }
    for bit in [12, 13, 16, 17, 20, 31] {
        assert_eq!(lapic.write_msr(r::ICR, 0x40 | 1 << bit, 0), Err(Rejected), "ICR bit {bit}");
    }
}

/// Bits of the LVT entries that a write reaches (figure 10-8), and those that stay read-only.
#[test]
fn entries_of_the_local_vector_table() {
    let (_, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    for (number, writable) in (0_u32..).zip([0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff]) {
        lapic.write(LVT_FIRST + number, u32::MAX, 0);
        assert_eq!(lapic.read(LVT_FIRST + number, 0), Some(writable), "LVT entry {number}");
    }
    lapic.write(r::SVR, 0xff, 0);
    for number in 0..6 {
        lapic.write(LVT_FIRST + number, 0x40, 0);
        assert_eq!(lapic.read(LVT_FIRST + number, 0), Some(0x1_0040), "masked while the APIC is off");
    }
}

/// The interrupt command register's delivery modes (figure 10-12), from processor 0 to processor 1.
#[test]
fn kinds_of_interrupts_that_are_sent() {
    let level = 1 << 14;
    let table = [
        (d::FIXED, 0x50, event::INTR),
        (d::LOWEST_PRIORITY, 0x50, event::INTR),
        // There is no system-management mode.
        (d::SMI, 0, 0),
        (3, 0x50, 0),
        (d::NMI, 0, event::NMI),
        (d::INIT, 0, event::INIT),
        (d::START_UP, 0x9f, event::SIPI),
        (d::EXT_INT, 0, 0),
    ];
    for wide in [false, true] {
        for (mode, vector, wanted) in table {
            let (_, mut cpus) = machine(2);
            let command = u32::from(mode) << 8 | vector | level;
            if wide {
                cpus.iter_mut().for_each(x2apic);
                cpus[0].write_msr(r::ICR, 1 << 32 | u64::from(command), 0).unwrap();
            } else {
                cpus[0].write(r::ICR_HIGH, 1 << 24, 0);
                cpus[0].write(r::ICR, command, 0);
            }
            assert_eq!(events_of(&cpus), [0, wanted], "delivery mode {mode}, x2APIC {wide}");
            assert_eq!(requested(&cpus[1], 0x50), wanted == event::INTR);
        }
    }
}

/// Destinations (10.6.2, 10.12.10): whom a fixed interrupt reaches of four processors.
#[test]
fn destinations() {
    // x2APIC, logical, destination, receivers.
    let table: [(bool, bool, u32, [u8; 4]); 14] = [
        (false, false, 2, [0, 0, 1, 0]),
        (false, false, 0xff, [1; 4]),
        (false, false, 9, [0; 4]),
        (false, true, 0b1010, [0, 1, 0, 1]),
        (false, true, 0xff, [1; 4]),
        (false, true, 0, [0; 4]),
        (true, false, 2, [0, 0, 1, 0]),
        (true, false, 0xff, [0; 4]),
        (true, false, u32::MAX, [1; 4]),
        (true, true, 0b1010, [0, 1, 0, 1]),
        (true, true, 0xffff, [1; 4]),
        (true, true, 0x1_000f, [0; 4]),
        (true, true, u32::MAX, [1; 4]),
        (true, true, 0, [0; 4]),
    ];
    for (wide, logical, destination, wanted) in table {
        let (_, mut cpus) = machine(4);
        let command = 0x50 | u32::from(logical) << 11;
        if wide {
            cpus.iter_mut().for_each(x2apic);
            cpus[0].write_msr(r::ICR, u64::from(destination) << 32 | u64::from(command), 0).unwrap();
        } else {
            for (number, lapic) in cpus.iter_mut().enumerate() {
                lapic.write(r::LDR, 1 << (24 + number), 0);
            }
            cpus[0].write(r::ICR_HIGH, destination << 24, 0);
            cpus[0].write(r::ICR, command, 0);
        }
        let got: Vec<u8> = cpus.iter().map(|lapic| u8::from(requested(lapic, 0x50))).collect();
        assert_eq!(got, wanted, "x2APIC {wide}, logical {logical}, {destination:#x}");
    }
}

/// The error status register (figure 10-9): what sets which bit, and that a write latches.
#[test]
fn errors() {
    type Cause = fn(&mut Lapic, &ApicBus);
    fn write(lapic: &mut Lapic, register: u32, value: u32) {
        lapic.write(register, value, 0);
    }
    let table: [(Cause, u32); 6] = [
        (|lapic, _| write(lapic, r::ICR, 0x4_000f), 1 << 5),
        (|lapic, _| write(lapic, r::ICR, 0x10f), 1 << 5),
        (|_, bus| bus.deliver_msi(msi(0, false, 0x0f)), 1 << 6),
        (|lapic, _| lapic.read_page(0x40, &mut [0; 4], 0), 1 << 7),
        (|lapic, _| assert_eq!(lapic.write_page(0x2f0, &[0; 4], 0), None), 1 << 7),
        // NMIs and INITs have no vector that could be illegal.
        (|lapic, _| write(lapic, r::ICR, 0x8_4400), 0),
    ];
    for (number, (cause, bit)) in table.into_iter().enumerate() {
        let (bus, mut cpus) = machine(1);
        let lapic = &mut cpus[0];
        lapic.write(r::LVT_ERROR, 0x45, 0);
        cause(lapic, &bus);
        lapic.report_errors();
        assert_eq!(requested(lapic, 0x45), bit != 0, "row {number}");
        assert_eq!(lapic.read(r::ESR, 0), Some(0), "row {number}: not before it is written");
        lapic.write(r::ESR, 0, 0);
        assert_eq!(lapic.read(r::ESR, 0), Some(bit), "row {number}");
        lapic.write(r::ESR, 0, 0);
        assert_eq!(lapic.read(r::ESR, 0), Some(0), "row {number}: written twice");
    }
    let (_, mut cpus) = machine(1);
    x2apic(&mut cpus[0]);
    cpus[0].write_msr(r::SELF_IPI, 0x0f, 0).unwrap();
    cpus[0].write(r::ESR, 0, 0);
    assert_eq!(cpus[0].read(r::ESR, 0), Some(1 << 5), "a self IPI with an illegal vector");
}

/// EOI-broadcast suppression (10.8.5): version bit 24 offers it, SVR bit 12 turns it on.
#[test]
fn ends_of_level_interrupts_can_be_kept_from_the_ioapics() {
    for (suppress, heard) in [(0, Some(0x60)), (1 << 12, None)] {
        let (bus, mut cpus) = machine(1);
        let lapic = &mut cpus[0];
        assert_ne!(lapic.read(r::VERSION, 0).unwrap() & 1 << 24, 0);
        lapic.write(r::SVR, 0x1ff | suppress, 0);
        assert_eq!(lapic.read(r::SVR, 0), Some(0x1ff | suppress));
        bus.deliver_msi(msi(0, false, 0x8060));
        assert_eq!(lapic.acknowledge(), Some(0x60));
        assert_eq!(lapic.write(r::EOI, 0, 0), heard);
        assert_eq!(lapic.acknowledge(), None, "the EOI counts in the APIC itself");
        assert_eq!(lapic.read(r::ISR + 3, 0), Some(0));
    }
}

/// The processor priority (10.8.3.1) by task priority and the vector in service.
#[test]
fn processor_priority() {
    for (tpr, serviced, wanted) in [
        (0, None, 0),
        (0x35, None, 0x35),
        (0, Some(0x52), 0x50),
        (0x41, Some(0x52), 0x50),
        (0x63, Some(0x52), 0x63),
    ] {
        let (bus, mut cpus) = machine(1);
        let lapic = &mut cpus[0];
        if let Some(vector) = serviced {
            bus.deliver_msi(msi(0, false, vector));
            assert_eq!(lapic.acknowledge(), Some(vector as u8));
        }
        lapic.write(r::TPR, tpr, 0);
        assert_eq!(lapic.read(r::PPR, 0), Some(wanted));
        assert_eq!(lapic.cr8(), u64::from(tpr >> 4));
    }
}

/// The divide configuration register (figure 10-10).
#[test]
fn dividers() {
    for (code, divider) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
        let (_, mut cpus) = machine(1);
        let lapic = &mut cpus[0];
        lapic.write(r::TIMER_DIVIDE, code, 0);
        lapic.write(r::TIMER_INITIAL, 10, 0);
        assert_eq!(lapic.read(r::TIMER_CURRENT, 4 * divider), Some(6), "code {code}");
        assert_eq!(lapic.advance(10 * divider - 1), Some(10 * divider), "code {code}");
        assert_eq!(lapic.advance(10 * divider), None, "code {code}");
    }
}

/// What the timer's modes do with counts, masks and each other (10.5.4).
#[test]
fn modes_of_the_timer() {
    let (_, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    lapic.write(r::TIMER_DIVIDE, 0xb, 0);
    lapic.write(r::LVT_TIMER, 0x3_0040, 0);
    lapic.write(r::TIMER_INITIAL, 100, 0);
    assert_eq!(lapic.advance(100), Some(200), "it counts while it is masked");
    assert!(!requested(lapic, 0x40));
    lapic.write(r::LVT_TIMER, 0x2_0040, 150);
    assert_eq!(lapic.advance(200), Some(300));
    assert!(requested(lapic, 0x40));
    lapic.write(r::TIMER_INITIAL, 0, 250);
    assert_eq!((lapic.advance(250), lapic.read(r::TIMER_CURRENT, 250)), (None, Some(0)), "zero stops it");
    lapic.write(r::TIMER_INITIAL, 100, 300);
    lapic.write(r::LVT_TIMER, 0x4_0040, 300);
    assert_eq!(lapic.advance(1000), None, "a change to TSC-deadline mode disarms");
    lapic.write(r::TIMER_INITIAL, 100, 300);
    assert_eq!(lapic.advance(1000), None, "which ignores the initial count");
    assert_eq!(lapic.read(r::TIMER_CURRENT, 1000), Some(0));
    lapic.set_tsc_deadline(5000, Some(5000));
    lapic.write(r::LVT_TIMER, 0x40, 1000);
    assert_eq!((lapic.advance(6000), lapic.tsc_deadline()), (None, 0), "and so does a change from it");
}

/// A count that ended while nobody looked still fires after the state was moved.
#[test]
fn a_timer_that_is_due_fires_after_a_move() {
    for entry in [0x40, 0x2_0040] {
        let (_, mut cpus) = machine(1);
        let lapic = &mut cpus[0];
        lapic.write(r::TIMER_DIVIDE, 0xb, 0);
        lapic.write(r::LVT_TIMER, entry, 0);
        lapic.write(r::TIMER_INITIAL, 100, 0);
        let saved = lapic.save(170);
        let (_, mut others) = machine(1);
        others[0].load(&saved, lapic.base(), 9000);
        others[0].advance(9000);
        assert!(requested(&others[0], 0x40), "{entry:#x}");
    }
}

/// Errors that no ESR write has latched, and those whose interrupt is still to come.
#[test]
fn errors_survive_a_move() {
    let (bus, mut cpus) = machine(1);
    bus.deliver_msi(msi(0, false, 0x05));
    cpus[0].write(r::LVT_ERROR, 0x45, 0);
    let saved = cpus[0].save(0);
    assert_eq!((saved.errors, saved.errors_unreported), (1 << 6, true));
    let (_, mut others) = machine(1);
    others[0].load(&saved, cpus[0].base(), 0);
    assert_ne!(events_of(&others)[0] & event::APIC_ERROR, 0);
    others[0].report_errors();
    assert!(requested(&others[0], 0x45));
}
