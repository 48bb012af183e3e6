//! Sequences of the 8259A's data sheet (Intel 231468) and, for the edge/level registers, of the 82371AB's: each row names
//! its section and says what the bus sees.

use super::tests::{ELCR, MASTER, Rig, SLAVE, rig, rig_with};
use Step::*;

/// What happens on the bus or at an input.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Command port (A0 = 0) of a chip.
    Command(usize, u8),
    /// Data port (A0 = 1) of a chip.
    Data(usize, u8),
    /// The command port reads as this.
    Reads(usize, u8),
    /// The data port reads as this.
    ReadsData(usize, u8),
    /// An input rises and falls.
    Pulse(u8),
    Rise(u8),
    Fall(u8),
    /// The level of INTR.
    Intr(bool),
    /// The processor acknowledges and gets this vector.
    Vector(u8),
}

impl Rig {
    fn follow(&self, what: &str, steps: &[Step]) {
        for (at, &step) in steps.iter().enumerate() {
            let place = format!("{what}, step {at} {step:x?}");
            match step {
                Command(chip, value) => self.write(chip, 0, value),
                Data(chip, value) => self.write(chip, 1, value),
                Reads(chip, value) => assert_eq!(self.read(chip, 0), value, "{place}"),
                ReadsData(chip, value) => assert_eq!(self.read(chip, 1), value, "{place}"),
                Pulse(line) => self.pulse(line),
                Rise(line) => self.pic.set_irq(line, true),
                Fall(line) => self.pic.set_irq(line, false),
                Intr(level) => assert_eq!(self.intr(), level, "{place}"),
                Vector(vector) => assert_eq!(self.pic.acknowledge(), vector, "{place}"),
            }
        }
    }
}

const M: usize = MASTER;
const S: usize = SLAVE;
const READ_IRR: u8 = 0x0a;
const READ_ISR: u8 = 0x0b;
const POLL: u8 = 0x0c;
const SET_SPECIAL_MASK: u8 = 0x68;
const CLEAR_SPECIAL_MASK: u8 = 0x48;
const EOI: u8 = 0x20;

/// After ICW1–ICW4 with vectors 20h and 28h, normal EOI.
#[rustfmt::skip]
const INITIALIZED: &[(&str, &[Step])] = &[
    (
        "fully nested mode: IR0 is the highest",
        &[
            Pulse(7), Pulse(3), Vector(0x23), Intr(false), Pulse(5), Intr(false), Pulse(0), Intr(true), Vector(0x20),
            Command(M, READ_ISR), Reads(M, 0x09), Command(M, EOI), Reads(M, 0x08), Intr(false), Command(M, EOI),
            Vector(0x25), Command(M, EOI), Vector(0x27), Command(M, EOI), Reads(M, 0),
        ],
    ),
    (
        "ICW1: edges, IMR, special mask and rotation are forgotten, IRR is read",
        &[
            Command(M, 0xc0 | 3), Command(M, SET_SPECIAL_MASK), Data(M, 0x55), Command(M, READ_ISR), Pulse(1),
            Command(M, 0x11), Data(M, 0x20), Data(M, 0x04), Data(M, 0x01), ReadsData(M, 0), Intr(false), Pulse(4),
            Pulse(1), Reads(M, 0x12), Vector(0x21), Data(M, 0x02), Intr(false),
        ],
    ),
    (
        "ICW1 begins again in the middle of a sequence",
        &[
            Command(M, 0x11), Data(M, 0x40), Command(M, 0x11), Data(M, 0x60), Data(M, 0x04), Data(M, 0x01),
            Data(M, 0xfe), ReadsData(M, 0xfe), Pulse(0), Vector(0x60),
        ],
    ),
    (
        "ICW1, SNGL and IC4: ICW3 and ICW4 are asked for or not",
        &[
            Command(M, 0x13), Data(M, 0x40), Data(M, 0x01), Data(M, 0x0f), ReadsData(M, 0x0f), Command(M, 0x12),
            Data(M, 0x48), Data(M, 0xf0), ReadsData(M, 0xf0), Pulse(1), Vector(0x49), Command(M, 0x10),
            Data(M, 0x50), Data(M, 0x04), Data(M, 0xaa), ReadsData(M, 0xaa),
        ],
    ),
    (
        "ICW1, IC4 = 0: all functions of ICW4 are off",
        &[
            Command(M, 0x11), Data(M, 0x20), Data(M, 0x04), Data(M, 0x03), Pulse(1), Vector(0x21),
            Command(M, READ_ISR), Reads(M, 0), Command(M, 0x10), Data(M, 0x20), Data(M, 0x04), Pulse(1),
            Vector(0x21), Command(M, READ_ISR), Reads(M, 0x02),
        ],
    ),
    (
        "ICW2: only T7-T3 count",
        &[Command(M, 0x11), Data(M, 0x47), Data(M, 0x04), Data(M, 0x01), Pulse(0), Vector(0x40)],
    ),
    (
        "OCW1: masks hold requests back without losing them, and without masking others",
        &[
            Data(M, 0x09), Pulse(0), Pulse(3), Intr(false), Reads(M, 0x09), Pulse(5), Vector(0x25), Command(M, EOI),
            Data(M, 0x01), Vector(0x23), Data(M, 0), Vector(0x20),
        ],
    ),
    (
        "OCW1 on the slave's input masks the slave",
        &[Data(M, 0x04), Pulse(8), Intr(false), Data(M, 0), Vector(0x28)],
    ),
    (
        "OCW2, specific EOI: only the named one ends",
        &[
            Pulse(4), Vector(0x24), Pulse(2 - 1), Vector(0x21), Command(M, 0x60 | 4), Command(M, READ_ISR),
            Reads(M, 0x02), Pulse(4), Intr(false), Command(M, 0x60 | 1), Vector(0x24),
        ],
    ),
    (
        "OCW2, non-specific EOI with nothing in service does nothing",
        &[Command(M, EOI), Command(M, 0xa0), Pulse(0), Pulse(1), Vector(0x20)],
    ),
    (
        "OCW2, automatic rotation: what was served becomes the lowest",
        &[
            Pulse(4), Pulse(6), Vector(0x24), Command(M, 0xa0), Vector(0x26), Pulse(4), Pulse(5), Command(M, 0xa0),
            Vector(0x24), Command(M, 0xa0), Vector(0x25),
        ],
    ),
    (
        "OCW2, rotation on a specific EOI",
        &[
            Pulse(3), Vector(0x23), Command(M, 0xe0 | 3), Pulse(3), Pulse(4), Vector(0x24), Command(M, EOI),
            Vector(0x23),
        ],
    ),
    (
        "OCW2, set priority: IR5 at the bottom makes IR6 the top",
        &[
            Command(M, 0xc0 | 5), Pulse(0), Pulse(5), Pulse(6), Vector(0x26), Intr(false), Command(M, EOI),
            Vector(0x20), Command(M, EOI), Vector(0x25), Pulse(4), Intr(true), Vector(0x24),
        ],
    ),
    ("OCW2, no operation", &[Pulse(1), Vector(0x21), Command(M, 0x40), Command(M, READ_ISR), Reads(M, 0x02)]),
    (
        "OCW3: the choice between IRR and ISR stays until changed",
        &[
            Pulse(2 - 1), Vector(0x21), Pulse(1), Command(M, READ_ISR), Reads(M, 0x02), Reads(M, 0x02),
            Command(M, 0x08), Reads(M, 0x02), Command(M, READ_IRR), Reads(M, 0x02), Command(M, EOI),
            Command(M, READ_ISR), Reads(M, 0),
        ],
    ),
    (
        "special mask mode: a masked level in service lets lower ones in",
        &[
            Pulse(3), Vector(0x23), Pulse(6), Intr(false), Data(M, 0x08), Intr(false), Command(M, SET_SPECIAL_MASK),
            Vector(0x26), Pulse(1), Vector(0x21), Command(M, 0x60 | 1), Command(M, 0x60 | 6), Pulse(3), Intr(false),
            Command(M, CLEAR_SPECIAL_MASK), Pulse(6), Intr(false), Command(M, 0x60 | 3), Vector(0x26),
        ],
    ),
    (
        "special mask mode: a level in service that requests again keeps nobody else out",
        &[
            Pulse(3), Vector(0x23), Command(M, SET_SPECIAL_MASK), Pulse(3), Intr(false), Pulse(6), Intr(true),
            Vector(0x26), Intr(false), Command(M, 0x60 | 3), Vector(0x23),
        ],
    ),
    (
        "special mask mode: a non-specific EOI spares what is masked",
        &[
            Pulse(3), Vector(0x23), Data(M, 0x08), Command(M, SET_SPECIAL_MASK), Pulse(6), Vector(0x26),
            Command(M, EOI), Command(M, READ_ISR), Reads(M, 0x08), Command(M, EOI), Reads(M, 0x08),
            Command(M, 0x60 | 3), Reads(M, 0),
        ],
    ),
    (
        "OCW3 with ESMM = 0 leaves the special mask alone",
        &[
            Pulse(3), Vector(0x23), Data(M, 0x08), Command(M, SET_SPECIAL_MASK), Command(M, 0x08), Pulse(6),
            Intr(true), Command(M, 0x28), Intr(true), Command(M, CLEAR_SPECIAL_MASK), Intr(false),
        ],
    ),
    (
        "poll command: the next read acknowledges, with bit 7 and the level",
        &[
            Pulse(6), Pulse(4), Command(M, POLL), Reads(M, 0x84), Intr(false), Command(M, READ_ISR), Reads(M, 0x10),
            Command(M, POLL), ReadsData(M, 0), ReadsData(M, 0), Command(M, EOI), Command(M, POLL),
            ReadsData(M, 0x86), Command(M, READ_ISR), Reads(M, 0x40),
        ],
    ),
    (
        "poll command and register read together: poll comes first, the choice stays",
        &[Pulse(4), Command(M, POLL | READ_ISR), Reads(M, 0x84), Reads(M, 0x10)],
    ),
    (
        "poll command over the cascade: the master names the slave, the slave its level",
        &[
            Pulse(12), Command(M, POLL), Reads(M, 0x82), Command(S, POLL), Reads(S, 0x84), Command(M, READ_ISR),
            Reads(M, 0x04), Command(S, READ_ISR), Reads(S, 0x10),
        ],
    ),
    (
        "cascade: two EOIs, and the slave's levels nest in the master's IR2",
        &[
            Pulse(14), Vector(0x2e), Pulse(5), Intr(false), Pulse(1), Vector(0x21), Command(M, EOI), Pulse(9),
            Intr(false), Command(S, EOI), Command(M, EOI), Vector(0x29),
        ],
    ),
    (
        "default IR7: nothing requests, nothing is in service after",
        &[Vector(0x27), Command(M, READ_ISR), Reads(M, 0), Pulse(7), Vector(0x27), Reads(M, 0x80)],
    ),
    (
        "edge triggered mode: a high input requests once",
        &[Rise(5), Vector(0x25), Command(M, EOI), Intr(false), Fall(5), Rise(5), Vector(0x25)],
    ),
    (
        "edge triggered mode: an edge during service is kept",
        &[Rise(5), Vector(0x25), Fall(5), Rise(5), Reads(M, 0x20), Command(M, EOI), Vector(0x25)],
    ),
    (
        "ELCR (82371AB 4.2.5): inputs 0, 1, 2, 8 and 13 are edges always",
        &[Command(ELCR, 0xff), Data(ELCR, 0xff), Reads(ELCR, 0xf8), ReadsData(ELCR, 0xde)],
    ),
    (
        "level triggered mode (ELCR): a level that goes before INTA was the default IR7's",
        &[
            Command(ELCR, 0x20), Rise(5), Intr(true), Fall(5), Intr(false), Vector(0x27), Command(M, READ_ISR),
            Reads(M, 0),
        ],
    ),
    (
        "level triggered mode (ELCR): a level that stays requests again after EOI",
        &[
            Command(ELCR, 0x20), Rise(5), Vector(0x25), Reads(M, 0x20), Intr(false), Command(M, EOI), Intr(true),
            Vector(0x25), Fall(5), Command(M, EOI), Intr(false),
        ],
    ),
    (
        "ICW1's LTIM is the ELCR's here (82371AB 4.2.1): edges stay edges",
        &[
            Command(M, 0x19), Data(M, 0x20), Data(M, 0x04), Data(M, 0x01), Rise(5), Vector(0x25), Command(M, EOI),
            Intr(false),
        ],
    ),
];

#[test]
fn commands_do_as_the_data_sheet_says() {
    for (what, steps) in INITIALIZED {
        rig().follow(what, steps);
    }
}

/// ICW4 with automatic EOI, and with the special fully nested mode.
#[rustfmt::skip]
const MODES: &[(&str, u8, &[Step])] = &[
    (
        "automatic EOI: nothing is in service, lower levels come at once",
        0x03,
        &[
            Pulse(3), Pulse(6), Vector(0x23), Command(M, READ_ISR), Reads(M, 0), Vector(0x26), Pulse(3), Intr(true),
        ],
    ),
    (
        "rotate in automatic EOI, set and cleared",
        0x03,
        &[
            Command(M, 0x80), Pulse(3), Vector(0x23), Pulse(3), Pulse(4), Vector(0x24), Vector(0x23),
            Command(M, 0x00), Pulse(4), Vector(0x24), Pulse(4), Pulse(5), Vector(0x24),
        ],
    ),
    (
        "the special fully nested mode: a higher level of the slave in service interrupts",
        0x11,
        &[
            Pulse(14), Vector(0x2e), Pulse(15), Intr(false), Pulse(9), Intr(true), Vector(0x29), Command(S, EOI),
            Command(S, READ_ISR), Reads(S, 0x40), Pulse(3), Intr(false), Pulse(1), Vector(0x21),
        ],
    ),
];

#[test]
fn modes_of_icw4_do_as_the_data_sheet_says() {
    for (what, icw4, steps) in MODES {
        rig_with(*icw4).follow(what, steps);
    }
}
