//! The controller's registers. Neither keyboard nor mouse is plugged in: their interface tests say so, and what is
//! sent to them gets no answer.

use super::bits::*;
use super::state::I8042State;

/// Bytes of controller RAM.
const RAM: usize = 32;

/// What a write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRequest;

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    ram: [u8; RAM],
    output: Option<u8>,
    from_aux: bool,
    last: u8,
    command: Option<u8>,
    wrote_command: bool,
    a20: bool,
}

impl Registers {
    /// After reset. The A20 gate is open, as all systems want it.
    pub fn new() -> Self {
        let mut ram = [0; RAM];
        ram[0] = COMMAND_BYTE;
        Registers {
            ram,
            output: None,
            from_aux: false,
            last: 0,
            command: None,
            wrote_command: false,
            a20: true,
        }
    }

    /// Puts a byte of the controller's or the keyboard's into the output buffer.
    fn answer(&mut self, value: u8) {
        (self.output, self.from_aux) = (Some(value), false);
    }

    /// Port 0x60.
    pub fn read_data(&mut self) -> u8 {
        self.last = self.output.take().unwrap_or(self.last);
        self.from_aux = false;
        self.last
    }

    /// Port 0x64.
    pub fn status(&self) -> u8 {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        bit(self.output.is_some(), STATUS_OUTPUT_FULL)
            | bit(self.ram[0] & COMMAND_SYSTEM != 0, STATUS_SYSTEM)
            | bit(self.wrote_command, STATUS_COMMAND)
            | bit(self.from_aux, STATUS_AUX_OUTPUT)
            | STATUS_UNLOCKED
    }

    /// Port 0x60.
    pub fn write_data(&mut self, value: u8) -> Option<ResetRequest> {
        self.wrote_command = false;
        match self.command.take() {
            Some(command) if WRITE_RAM.contains(&command) => {
                if let Some(byte) = self.ram.get_mut(usize::from(command & 0x1f)) {
                    *byte = value;
                }
            }
            Some(WRITE_OUTPUT) => {
                self.a20 = value & OUTPUT_A20 != 0;
                return (value & OUTPUT_NOT_RESET == 0).then_some(ResetRequest);
            }
            Some(WRITE_KEYBOARD_BUFFER) => self.answer(value),
            Some(WRITE_AUX_BUFFER) => {
                self.answer(value);
                self.from_aux = true;
            }
            // To the keyboard or the mouse.
            _ => {}
        }
        None
    }

    /// Port 0x64.
    pub fn write_command(&mut self, command: u8) -> Option<ResetRequest> {
        self.wrote_command = true;
        self.command = None;
        match command {
            _ if READ_RAM.contains(&command) => {
                self.answer(self.ram.get(usize::from(command & 0x1f)).copied().unwrap_or(0));
            }
            _ if WRITE_RAM.contains(&command) => self.command = Some(command),
            WRITE_OUTPUT | WRITE_KEYBOARD_BUFFER | WRITE_AUX_BUFFER | WRITE_AUX => {
                self.command = Some(command);
            }
            SELF_TEST => {
                self.ram[0] |= COMMAND_SYSTEM;
                self.answer(SELF_TEST_PASSED);
            }
            TEST_KEYBOARD | TEST_AUX => self.answer(INTERFACE_STUCK),
            DISABLE_KEYBOARD => self.ram[0] |= COMMAND_KEYBOARD_OFF,
            ENABLE_KEYBOARD => self.ram[0] &= !COMMAND_KEYBOARD_OFF,
            DISABLE_AUX => self.ram[0] |= COMMAND_AUX_OFF,
            ENABLE_AUX => self.ram[0] &= !COMMAND_AUX_OFF,
            READ_INPUT => self.answer(0x80),
            READ_OUTPUT => {
                let full = match (self.output, self.from_aux) {
                    (None, _) => 0,
                    (Some(_), false) => OUTPUT_FULL,
                    (Some(_), true) => OUTPUT_AUX_FULL,
                };
                self.answer(OUTPUT_NOT_RESET | self.fast_a20() | full);
            }
            _ if PULSE.contains(&command) => return (command & 1 == 0).then_some(ResetRequest),
            _ => {}
        }
        None
    }

    /// Port 0x92, and the A20 bit's place in the output port.
    pub fn fast_a20(&self) -> u8 {
        if self.a20 { FAST_A20 } else { 0 }
    }

    /// Port 0x92.
    pub fn write_fast(&mut self, value: u8) -> Option<ResetRequest> {
        self.a20 = value & FAST_A20 != 0;
        (value & FAST_RESET != 0).then_some(ResetRequest)
    }

    /// What is saved.
    pub fn save(&self) -> I8042State {
        let Registers { ram, output, from_aux, last, command, wrote_command, a20 } = *self;
        I8042State { ram: ram.to_vec(), output, from_aux, last, command, wrote_command, a20 }
    }

    /// Saved registers; `None` if the RAM's size is another.
    pub fn restored(state: &I8042State) -> Option<Self> {
        let I8042State { ref ram, output, from_aux, last, command, wrote_command, a20 } = *state;
        let ram = ram.as_slice().try_into().ok()?;
        let from_aux = from_aux && output.is_some();
        Some(Registers { ram, output, from_aux, last, command, wrote_command, a20 })
    }
}
