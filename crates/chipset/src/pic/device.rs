//! One 8259A and the cascade of two, without locks and wires.

use super::bits::*;
use super::state::{ChipState, PicState};

/// One chip. Its runtime form is what is saved: there is nothing else to an 8259A.
#[derive(Clone, Debug)]
struct Chip(ChipState);

impl Chip {
    fn new() -> Self {
        Chip(ChipState {
            irr: 0,
            imr: 0,
            isr: 0,
            lines: 0,
            elcr: 0,
            vector_base: 0,
            expects: 0,
            icw1: 0,
            icw4: 0,
            first: 0,
            read_isr: false,
            poll: false,
            special_mask: false,
            auto_rotate: false,
        })
    }

    fn set_line(&mut self, line: u8, level: bool) {
        let chip = &mut self.0;
        let bit = 1_u8 << (line & 7);
        if level {
            // A level-triggered input requests while it is high; the other needs a rising edge, and keeps it.
            if chip.elcr & bit != 0 || chip.lines & bit == 0 {
                chip.irr |= bit;
            }
            chip.lines |= bit;
        } else {
            if chip.elcr & bit != 0 {
                chip.irr &= !bit;
            }
            chip.lines &= !bit;
        }
    }

    /// The input of highest priority among some.
    fn best(&self, inputs: u8) -> Option<u8> {
        let distance = inputs.rotate_right(u32::from(self.0.first)).trailing_zeros() as u8;
        (inputs != 0).then_some((distance + self.0.first) & 7)
    }

    fn distance(&self, input: u8) -> u8 {
        input.wrapping_sub(self.0.first) & 7
    }

    /// The input that requests and beats what is in service.
    fn pending(&self) -> Option<u8> {
        let chip = &self.0;
        if chip.expects != 0 {
            return None;
        }
        if chip.special_mask {
            // Whatever is not in service itself may interrupt, whatever else is.
            return self.best(chip.irr & !chip.imr & !self.blocking(chip.isr));
        }
        let request = self.best(chip.irr & !chip.imr)?;
        let mut serving = chip.isr;
        if request == CASCADE {
            serving = self.blocking(serving);
        }
        let busy = self.best(serving).map_or(8, |input| self.distance(input));
        (self.distance(request) < busy).then_some(request)
    }

    /// Levels in service that keep themselves out: in special fully nested mode the slave may interrupt its own service.
    fn blocking(&self, serving: u8) -> u8 {
        if self.0.icw4 & ICW4_FULLY_NESTED != 0 { serving & !(1 << CASCADE) } else { serving }
    }

    /// Takes an input into service.
    fn accept(&mut self, input: u8) {
        let bit = 1 << input;
        if self.0.icw4 & ICW4_AUTO_EOI == 0 {
            self.0.isr |= bit;
        } else if self.0.auto_rotate {
            self.0.first = (input + 1) & 7;
        }
        if self.0.elcr & bit == 0 {
            self.0.irr &= !bit;
        }
    }

    fn acknowledge(&mut self) -> (u8, u8) {
        let input = self.pending();
        if let Some(input) = input {
            self.accept(input);
        }
        let input = input.unwrap_or(SPURIOUS);
        (input, self.0.vector_base | input)
    }

    fn read(&mut self, offset: u64) -> u8 {
        if std::mem::take(&mut self.0.poll) {
            let input = self.pending();
            if let Some(input) = input {
                self.accept(input);
            }
            return input.map_or(0, |input| 0x80 | input);
        }
        match (offset, self.0.read_isr) {
            (COMMAND, false) => self.0.irr,
            (COMMAND, true) => self.0.isr,
            _ => self.0.imr,
        }
    }

    fn write(&mut self, offset: u64, value: u8) {
        if offset == COMMAND {
            if value & ICW1 != 0 {
                self.initialize(value);
            } else if value & OCW3 != 0 {
                self.write_ocw3(value);
            } else {
                self.write_ocw2(value);
            }
            return;
        }
        let chip = &mut self.0;
        let icw4_or_done = if chip.icw1 & ICW1_NEEDS_ICW4 != 0 { 4 } else { 0 };
        match chip.expects {
            2 => {
                chip.vector_base = value & 0xf8;
                chip.expects = if chip.icw1 & ICW1_SINGLE == 0 { 3 } else { icw4_or_done };
            }
            // ICW3 says where the slave is wired; the board says so too.
            3 => chip.expects = icw4_or_done,
            4 => {
                chip.icw4 = value & 0x1f;
                chip.expects = 0;
            }
            _ => chip.imr = value,
        }
    }

    fn initialize(&mut self, icw1: u8) {
        let ChipState { lines, elcr, vector_base, .. } = self.0;
        *self = Chip::new();
        // Edges before now are forgotten, levels are not.
        let (irr, expects) = (lines & elcr, 2);
        self.0 = ChipState { lines, elcr, vector_base, irr, icw1, expects, ..self.0.clone() };
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        let served = if self.0.special_mask { self.0.isr & !self.0.imr } else { self.0.isr };
        let current = self.best(served);
        match value >> 5 {
            OCW2_CLEAR_AUTO_ROTATE => self.0.auto_rotate = false,
            OCW2_SET_AUTO_ROTATE => self.0.auto_rotate = true,
            OCW2_EOI => self.end(current, false),
            OCW2_ROTATE_EOI => self.end(current, true),
            OCW2_SPECIFIC_EOI => self.end(Some(input), false),
            OCW2_ROTATE_SPECIFIC_EOI => self.end(Some(input), true),
            OCW2_SET_PRIORITY => self.0.first = (input + 1) & 7,
            _ => {}
        }
    }

    fn end(&mut self, input: Option<u8>, rotate: bool) {
        if let Some(input) = input {
            self.0.isr &= !(1 << input);
            if rotate {
                self.0.first = (input + 1) & 7;
            }
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        self.0.poll = value & OCW3_POLL != 0;
        if value & OCW3_READ != 0 {
            self.0.read_isr = value & OCW3_READ_ISR != 0;
        }
        if value & OCW3_SET_SPECIAL_MASK != 0 {
            self.0.special_mask = value & OCW3_SPECIAL_MASK != 0;
        }
    }

    fn set_elcr(&mut self, elcr: u8) {
        let now_level = elcr & !self.0.elcr;
        self.0.elcr = elcr;
        // A level-triggered input requests exactly while it is high.
        self.0.irr = self.0.irr & !now_level | self.0.lines & elcr;
    }

    /// A saved chip whose fields are within their ranges.
    fn restored(state: &ChipState, elcr_mask: u8) -> Self {
        let mut state = state.clone();
        state.first &= 7;
        state.vector_base &= 0xf8;
        state.elcr &= elcr_mask;
        Chip(state)
    }
}

/// Master and slave.
#[derive(Clone, Debug)]
pub struct Cascade {
    master: Chip,
    slave: Chip,
}

impl Cascade {
    /// Both before initialization.
    pub fn new() -> Self {
        Cascade { master: Chip::new(), slave: Chip::new() }
    }

    /// Power-on state; the levels of the inputs are others' business and stay.
    pub fn reset(&mut self) {
        for chip in [&mut self.master, &mut self.slave] {
            let lines = chip.0.lines;
            *chip = Chip::new();
            chip.0.lines = lines;
        }
        self.update();
    }

    /// The INTR output.
    pub fn interrupt(&self) -> bool {
        self.master.pending().is_some()
    }

    /// Sets input 0–15.
    pub fn set_irq(&mut self, line: u8, level: bool) {
        match line {
            CASCADE => {}
            0..8 => self.master.set_line(line, level),
            8..16 => self.slave.set_line(line - 8, level),
            _ => {}
        }
        self.update();
    }

    /// The two INTA cycles: takes the most urgent interrupt into service and answers its vector. One that vanished
    /// is reported as input 7 of the chip that lost it.
    pub fn acknowledge(&mut self) -> u8 {
        let (input, vector) = self.master.acknowledge();
        let from_slave = input == CASCADE;
        let vector = if from_slave { self.slave.acknowledge().1 } else { vector };
        self.update();
        vector
    }

    /// Reads port `offset` of window 0 (master), 1 (slave) or 2 (edge/level registers).
    pub fn read(&mut self, window: usize, offset: u64) -> u8 {
        let value = match (window, offset) {
            (0, _) => self.master.read(offset),
            (1, _) => self.slave.read(offset),
            (2, 0) => self.master.0.elcr,
            (2, 1) => self.slave.0.elcr,
            _ => 0xff,
        };
        self.update();
        value
    }

    /// Writes, as [`Cascade::read`].
    pub fn write(&mut self, window: usize, offset: u64, value: u8) {
        match (window, offset) {
            (0, _) => self.master.write(offset, value),
            (1, _) => self.slave.write(offset, value),
            (2, 0) => self.master.set_elcr(value & ELCR_MASKS[0]),
            (2, 1) => self.slave.set_elcr(value & ELCR_MASKS[1]),
            _ => {}
        }
        self.update();
    }

    /// What is saved.
    pub fn save(&self) -> PicState {
        let Cascade { master: Chip(master), slave: Chip(slave) } = self;
        PicState { master: master.clone(), slave: slave.clone() }
    }

    /// A saved pair.
    pub fn restored(state: &PicState) -> Self {
        let PicState { master, slave } = state;
        Cascade { master: Chip::restored(master, ELCR_MASKS[0]), slave: Chip::restored(slave, ELCR_MASKS[1]) }
    }

    /// The slave's output is an input of the master that requests exactly while it is high.
    fn update(&mut self) {
        let bit = 1 << CASCADE;
        let master = &mut self.master.0;
        if self.slave.pending().is_some() {
            master.lines |= bit;
            master.irr |= bit;
        } else {
            master.lines &= !bit;
            master.irr &= !bit;
        }
    }
}
