//! The commands of the keyboard controller, as the IBM PC/AT and PS/2 technical references list them.

use super::tests::{Rig, rig};
use Step::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Port 64h.
    Command(u8),
    /// Port 60h.
    Data(u8),
    /// The output buffer is full, by the controller or the keyboard, and holds this.
    Answers(u8),
    /// The same by the auxiliary device.
    AuxAnswers(u8),
    /// The output buffer is empty.
    Silent,
    /// Port 64h reads as this.
    Status(u8),
    /// Port 92h is written, reads.
    Fast(u8),
    ReadsFast(u8),
    /// So many resets were asked for since the last time.
    Resets(u32),
}

#[rustfmt::skip]
const SEQUENCES: &[(&str, &[Step])] = &[
    ("status after power-on: unlocked, system flag by the command byte", &[Status(0x14)]),
    ("AAh, self-test: 55h, and the system flag", &[
        Command(0x60), Data(0x00), Status(0x10), Command(0xaa), Status(0x1d), Answers(0x55), Status(0x1c), Silent,
    ]),
    ("bit 3 of the status tells where the last write went", &[
        Command(0xae), Status(0x1c), Data(0xf4), Status(0x14), Silent,
    ]),
    ("20h and 60h: the command byte", &[Command(0x60), Data(0x65), Command(0x20), Answers(0x65)]),
    ("21h-3Fh and 61h-7Fh: the controller's RAM", &[
        Command(0x61), Data(0x11), Command(0x7f), Data(0x77), Command(0x21), Answers(0x11), Command(0x3f), Answers(0x77),
        Command(0x20), Answers(0x34),
    ]),
    ("ADh, AEh, A7h, A8h: the interfaces' disable bits in the command byte", &[
        Command(0x60), Data(0x00), Command(0xad), Command(0x20), Answers(0x10), Command(0xa7), Command(0x20),
        Answers(0x30), Command(0xae), Command(0x20), Answers(0x20), Command(0xa8), Command(0x20), Answers(0x00),
    ]),
    ("ABh, A9h: interface tests; the clock lines are where nothing is plugged in", &[
        Command(0xab), Answers(0x01), Command(0xa9), Answers(0x01),
    ]),
    ("C0h: the input port; bit 7, the lock is open", &[Command(0xc0), Answers(0x80)]),
    ("D0h: the output port: no reset, A20, buffer empty", &[Command(0xd0), Answers(0x03)]),
    ("D0h with the keyboard's byte in the output buffer: bit 4", &[
        Command(0xd2), Data(0x1c), Command(0xd0), Answers(0x13),
    ]),
    ("D0h with the auxiliary device's byte in the output buffer: bit 5", &[
        Command(0xd3), Data(0x1c), Command(0xd0), Answers(0x23),
    ]),
    ("D1h: A20 and reset", &[
        Command(0xd1), Data(0xdd), ReadsFast(0x00), Resets(0), Command(0xd1), Data(0xdf), ReadsFast(0x02), Resets(0),
        Command(0xd1), Data(0xde), Resets(1),
    ]),
    ("D2h: as if the keyboard had sent it", &[Command(0xd2), Data(0x5a), Answers(0x5a), Silent]),
    ("D3h: as if the auxiliary device had sent it", &[Command(0xd3), Data(0x5a), AuxAnswers(0x5a), Silent]),
    ("an answer of the controller's is not the auxiliary device's", &[
        Command(0xd3), Data(0x5a), Command(0xaa), Answers(0x55),
    ]),
    ("D4h and bytes without a command go to devices that are not there", &[
        Command(0xd4), Data(0xff), Silent, Data(0xff), Silent,
    ]),
    ("a command forgets the one that waited for its data", &[
        Command(0x60), Command(0xae), Data(0x00), Command(0x20), Answers(0x24),
    ]),
    ("F0h-FFh: pulses; only line 0 is the reset", &[
        Command(0xff), Command(0xfd), Command(0xf1), Resets(0), Command(0xfe), Resets(1), Command(0xf0), Resets(1),
    ]),
    ("92h: A20, and a reset when bit 0 is set", &[
        Fast(0x00), ReadsFast(0x00), Resets(0), Fast(0x02), ReadsFast(0x02), Fast(0x03), Resets(1), ReadsFast(0x02),
    ]),
    ("unknown commands do nothing", &[Command(0x00), Command(0x8f), Command(0xb5), Command(0xe0), Silent, Resets(0)]),
];

impl Rig {
    fn follow(&self, what: &str, steps: &[Step]) {
        let mut resets = 0;
        for (at, &step) in steps.iter().enumerate() {
            let place = format!("{what}, step {at} {step:x?}");
            match step {
                Command(value) => self.write(1, value),
                Data(value) => self.write(0, value),
                Answers(value) => {
                    assert_eq!(self.read(1) & 0x21, 0x01, "{place}");
                    assert_eq!(self.read(0), value, "{place}");
                }
                AuxAnswers(value) => {
                    assert_eq!(self.read(1) & 0x21, 0x21, "{place}");
                    assert_eq!(self.read(0), value, "{place}");
                }
                Silent => assert_eq!(self.read(1) & 0x21, 0, "{place}"),
                Status(value) => assert_eq!(self.read(1), value, "{place}"),
                Fast(value) => self.write(2, value),
                ReadsFast(value) => assert_eq!(self.read(2), value, "{place}"),
                Resets(count) => {
                    assert_eq!(self.resets() - resets, count, "{place}");
                    resets = self.resets();
                }
            }
        }
    }
}

#[test]
fn commands_do_as_the_references_say() {
    for (what, steps) in SEQUENCES {
        rig().follow(what, steps);
    }
}
