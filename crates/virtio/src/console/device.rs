//! The port and its control messages: no queues, threads or locks.

use super::bits::{CONTROL_LEN, INPUT_LEN, config, event};
use super::state::ConsoleState;
use std::collections::VecDeque;

/// Of the port, for tools in the guest.
const NAME: &[u8] = b"console";

/// The order in which a driver learns of a port. Each is due at most once, so that a driver that asks again and again
/// without taking the answers makes nothing grow.
const ORDER: [u16; 5] =
    [event::DEVICE_ADD, event::CONSOLE_PORT, event::PORT_NAME, event::RESIZE, event::PORT_OPEN];

/// Port 0, the console.
#[derive(Debug, Default)]
pub(super) struct Port {
    input: VecDeque<u8>,
    open: bool,
    columns: u16,
    rows: u16,
    announcements: u16,
}

impl Port {
    /// What a device reset clears: all but the terminal's size.
    pub fn reset(&mut self) {
        *self = Port { columns: self.columns, rows: self.rows, ..Port::default() };
    }

    /// How much input is taken now: none before the guest reads the port, so that nothing typed early is lost.
    pub fn room(&self) -> usize {
        if self.open { INPUT_LEN.saturating_sub(self.input.len()) } else { 0 }
    }

    /// Takes input; answers how many bytes.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.input.extend(bytes.iter().take(taken));
        taken
    }

    /// Input that waits.
    pub fn input(&self) -> &VecDeque<u8> {
        &self.input
    }

    /// Forgets input that the guest got.
    pub fn consume(&mut self, count: usize) {
        self.input.drain(..count.min(self.input.len()));
    }

    /// The guest reads the port, or does not.
    pub fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// The terminal has another size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        (self.columns, self.rows) = (columns, rows);
        if self.open {
            self.announce(&[event::RESIZE]);
        }
    }

    fn announce(&mut self, events: &[u16]) {
        for event in events {
            self.announcements |= 1 << event;
        }
    }

    /// A message of the driver (virtio 5.3.6.2). Errors are what no driver sends.
    pub fn handle(&mut self, message: &[u8; CONTROL_LEN]) -> Result<(), &'static str> {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = *message;
        let (id, value) = (u32::from_le_bytes([i0, i1, i2, i3]), u16::from_le_bytes([v0, v1]));
        let event = u16::from_le_bytes([e0, e1]);
        match (event, id, value) {
            (event::DEVICE_READY, _, 1) => self.announce(&[event::DEVICE_ADD]),
            (event::PORT_READY, 0, 1) => {
                self.announce(&[event::CONSOLE_PORT, event::PORT_NAME, event::RESIZE, event::PORT_OPEN]);
            }
            // The driver could not set up the device or the port.
            (event::DEVICE_READY, _, 0) | (event::PORT_READY, 0, 0) => {}
            (event::PORT_OPEN, 0, 0 | 1) => self.open = value == 1,
            _ => return Err("control message that is unknown or for no port"),
        }
        Ok(())
    }

    /// The next message to the driver, and its event.
    pub fn announcement(&self) -> Option<(u16, Vec<u8>)> {
        let event = ORDER.into_iter().find(|event| self.announcements & 1 << event != 0)?;
        let mut message = 0_u32.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(u16::from(event != event::RESIZE).to_le_bytes());
        match event {
            event::PORT_NAME => message.extend(NAME),
            event::RESIZE => {
                message.extend(self.columns.to_le_bytes());
                message.extend(self.rows.to_le_bytes());
            }
            _ => {}
        }
        Some((event, message))
    }

    /// The message was sent.
    pub fn announced(&mut self, event: u16) {
        self.announcements &= !(1 << event);
    }

    /// struct virtio_console_config.
    pub fn config(&self) -> [u8; config::LEN] {
        let mut space = [0; config::LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            space.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(config::COLUMNS, &self.columns.to_le_bytes());
        put(config::ROWS, &self.rows.to_le_bytes());
        put(config::PORTS, &1_u32.to_le_bytes());
        space
    }

    /// For saving.
    pub fn save(&self) -> ConsoleState {
        let Port { input, open, columns, rows, announcements } = self;
        ConsoleState {
            input: input.iter().copied().collect(),
            open: *open,
            columns: *columns,
            rows: *rows,
            announcements: *announcements,
        }
    }

    /// A saved port, if there can be such a one.
    pub fn restored(state: ConsoleState) -> Result<Self, &'static str> {
        let ConsoleState { input, open, columns, rows, announcements } = state;
        let known = ORDER.into_iter().fold(0, |mask, event| mask | 1 << event);
        if input.len() > INPUT_LEN || announcements & !known != 0 {
            return Err("its input or messages are not a console's");
        }
        Ok(Port { input: input.into(), open, columns, rows, announcements })
    }
}
