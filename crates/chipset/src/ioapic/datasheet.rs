//! Tables of the 82093AA's data sheet (Intel 290566), chapter 3: which bits of which register stick, and what becomes of
//! an interrupt.

use super::tests::{Rig, rig};
use ::device::Device;
use Step::*;

/// Register, what is written, what is read back, section.
const REGISTERS: &[(u8, u32, u32, &str)] = &[
    (0x00, 0xffff_ffff, 0x0f00_0000, "3.2.1 IOAPICID: bits 27-24, the others are reserved"),
    (0x00, 0x0500_0000, 0x0500_0000, "3.2.1 IOAPICID"),
    (0x02, 0x0300_0000, 0x0500_0000, "3.2.3 IOAPICARB: read-only, loaded with the ID"),
    (0x01, 0xffff_ffff, 0x0017_0020, "3.2.2 IOAPICVER: read-only; entry 23 is the last"),
    (0x03, 0xffff_ffff, 0, "3.2: 03h-0Fh are reserved"),
    (0x0f, 0xffff_ffff, 0, "3.2: 03h-0Fh are reserved"),
    (0x3f, 0xffff_ffff, 0xff00_0000, "3.2.4 IOREDTBL23: the last register there is"),
    (0x40, 0xffff_ffff, 0, "3.2: behind the table"),
    (0xff, 0xffff_ffff, 0, "3.2: behind the table"),
    (0x11, 0xffff_ffff, 0xff00_0000, "3.2.4: destination, 55-32 are reserved"),
    (0x10, 0xfffe_ffff, 0x0000_afff, "3.2.4: 31-17 are reserved, delivery status and remote IRR read-only"),
    (0x10, 0x0001_0000, 0x0001_0000, "3.2.4: mask"),
    (0x10, 0x0000_1000, 0, "3.2.4: delivery status is read-only"),
    (0x10, 0x0000_c000, 0x0000_8000, "3.2.4: remote IRR is read-only"),
    (0x10, 0x0000_2000, 0x0000_2000, "3.2.4: polarity"),
    (0x10, 0x0000_0fff, 0x0000_0fff, "3.2.4: destination mode, delivery mode, vector"),
];

#[test]
fn registers_keep_the_bits_that_the_data_sheet_names() {
    let rig = rig();
    for &(register, written, expected, what) in REGISTERS {
        rig.write(register, written);
        assert_eq!(rig.read(register), expected, "{what}: {register:#x} <- {written:#x}");
    }
}

/// 3.1.1: the index has eight bits.
#[test]
fn the_index_register_has_eight_bits() {
    let rig = rig();
    let mut data = [0; 4];
    rig.ioapic.write(0, 0x00, &0xffff_ff01_u32.to_le_bytes());
    rig.ioapic.read(0, 0x00, &mut data);
    assert_eq!(u32::from_le_bytes(data), 1);
    rig.ioapic.read(0, 0x10, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x0017_0020);
    for offset in [0x04, 0x08, 0x0c, 0x14, 0x20, 0xffc] {
        rig.ioapic.write(0, offset, &[0xff; 4]);
        rig.ioapic.read(0, offset, &mut data);
        assert_eq!(data, [0; 4], "{offset:#x}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The low half of the entry is written.
    Entry(u32),
    Rise,
    Fall,
    /// End of interrupt of a vector, by the processor's message.
    Eoi(u8),
    /// The same by the register at 40h (version 20h).
    EoiRegister(u8),
    /// So many messages came, with this data.
    Messages(usize, u32),
    /// Remote IRR reads as this.
    RemoteIrr(bool),
}

const PIN: u8 = 17;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// 3.2.4: masks, trigger modes and remote IRR. Messages: SDM 3A, 11.11.2 (bit 15 level, bit 14 assert).
#[rustfmt::skip]
const INTERRUPTS: &[(&str, &[Step])] = &[
    (
        "edge: one message a rising edge",
        &[
            Entry(0x31), Rise, Messages(1, 0x31), Rise, Messages(0, 0), Fall, Messages(0, 0), Rise,
            Messages(1, 0x31), RemoteIrr(false),
        ],
    ),
    (
        "mask: edges at a masked input are neither delivered nor held",
        &[Entry(0x31 | MASKED), Rise, Fall, Entry(0x31), Messages(0, 0), Rise, Messages(1, 0x31)],
    ),
    (
        "mask: an edge input that stays high through the mask is no new edge",
        &[Entry(0x31 | MASKED), Rise, Entry(0x31), Messages(0, 0), Fall, Rise, Messages(1, 0x31)],
    ),
    (
        "delivery mode travels with the message",
        &[
            Entry(0x131), Rise, Messages(1, 0x131), Fall, Entry(0x431), Rise, Messages(1, 0x431), Fall, Entry(0x700),
            Rise, Messages(1, 0x700),
        ],
    ),
    (
        "level: one message until its EOI; a level that stays interrupts again",
        &[
            Entry(0x41 | LEVEL), Rise, Messages(1, 0xc041), RemoteIrr(true), Rise, Messages(0, 0), Eoi(0x41),
            Messages(1, 0xc041), RemoteIrr(true), Fall, Eoi(0x41), Messages(0, 0), RemoteIrr(false),
        ],
    ),
    (
        "level: the EOI of another vector is not its own",
        &[Entry(0x41 | LEVEL), Rise, Messages(1, 0xc041), Eoi(0x40), Messages(0, 0), RemoteIrr(true)],
    ),
    (
        "level: the EOI register is an EOI",
        &[
            Entry(0x41 | LEVEL), Rise, Messages(1, 0xc041), EoiRegister(0x41), Messages(1, 0xc041), Fall,
            EoiRegister(0x41), RemoteIrr(false),
        ],
    ),
    (
        "level: a level that came and went under the mask has no effect",
        &[Entry(0x41 | LEVEL | MASKED), Rise, Fall, Entry(0x41 | LEVEL), Messages(0, 0), RemoteIrr(false)],
    ),
    (
        "level: one that stays is delivered when the mask goes",
        &[
            Entry(0x41 | LEVEL | MASKED), Rise, Messages(0, 0), Entry(0x41 | LEVEL), Messages(1, 0xc041),
            RemoteIrr(true),
        ],
    ),
    (
        "level: masking during service keeps remote IRR; the EOI clears it and delivers nothing",
        &[
            Entry(0x41 | LEVEL), Rise, Messages(1, 0xc041), Entry(0x41 | LEVEL | MASKED), RemoteIrr(true), Eoi(0x41),
            Messages(0, 0), RemoteIrr(false), Entry(0x41 | LEVEL), Messages(1, 0xc041),
        ],
    ),
    (
        "level: a rewritten entry does not deliver again while remote IRR is set",
        &[
            Entry(0x41 | LEVEL), Rise, Messages(1, 0xc041), Entry(0x41 | LEVEL), Messages(0, 0), RemoteIrr(true),
        ],
    ),
    (
        "remote IRR means nothing for edges: switching to edge clears it",
        &[
            Entry(0x41 | LEVEL), Rise, Messages(1, 0xc041), Entry(0x41 | MASKED), RemoteIrr(false),
            Entry(0x41 | LEVEL), Messages(1, 0xc041),
        ],
    ),
    ("an EOI means nothing for edges", &[Entry(0x41), Rise, Messages(1, 0x41), Eoi(0x41), Messages(0, 0)]),
];

impl Rig {
    fn follow(&self, what: &str, steps: &[Step]) {
        let low = 0x10 + 2 * PIN;
        for (at, &step) in steps.iter().enumerate() {
            let place = format!("{what}, step {at} {step:x?}");
            match step {
                Entry(value) => self.write(low, value),
                Rise => self.ioapic.set_irq(PIN, true),
                Fall => self.ioapic.set_irq(PIN, false),
                Eoi(vector) => self.ioapic.end_of_interrupt(vector),
                EoiRegister(vector) => self.ioapic.write(0, 0x40, &u32::from(vector).to_le_bytes()),
                Messages(count, data) => {
                    let sent: Vec<_> = self.take().iter().map(|message| message.data).collect();
                    assert_eq!(sent, vec![data; count], "{place}");
                }
                RemoteIrr(set) => assert_eq!(self.read(low) & 1 << 14 != 0, set, "{place}"),
            }
        }
    }
}

#[test]
fn interrupts_go_the_way_of_the_data_sheet() {
    for (what, steps) in INTERRUPTS {
        rig().follow(what, steps);
    }
}
