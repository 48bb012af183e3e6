//! The console device (virtio 5.3): one port, a terminal.
//!
//! Output goes to a function at once. Input is pushed by the other end's own thread, which waits for room when the
//! guest does not read, so nothing that a person types or pastes is lost.

pub mod bits;
mod device;
mod state;
#[cfg(test)]
mod tests;

pub use state::ConsoleState;

use crate::queue::QueueError;
use crate::{Batch, Transport, VirtioDevice};
use ::device::{GuestViolations, Record, SaveError};
use bits::{CONTROL_LEN, CONTROL_RECEIVE, CONTROL_TRANSMIT, QUEUE_SIZE, RECEIVE, TRANSMIT, config, feature};
use device::Port;
use parking_lot::{Condvar, Mutex};
use state::{KIND, VERSION};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Where the guest's bytes go. Called on worker and vCPU threads: it drops or buffers what the other side does not
/// read, and never waits for it.
pub type Output = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Bytes of output that are copied at a time.
const CHUNK_LEN: usize = 4096;

#[derive(Default)]
struct Inner {
    port: Port,
    paused: bool,
    transport: Option<Weak<dyn Transport>>,
}

/// A console. Its [`VirtioDevice`] is a [`ConsoleDevice`].
pub struct Console {
    inner: Mutex<Inner>,
    room: Condvar,
    output: Output,
    violations: GuestViolations,
}

impl Console {
    /// A console whose other end is `output`.
    pub fn new(output: Output) -> Arc<Self> {
        Arc::new(Console {
            inner: Mutex::default(),
            room: Condvar::new(),
            output,
            violations: GuestViolations::default(),
        })
    }

    /// Offers input from any thread. Answers how many bytes were taken: fewer when much waits, none while the guest
    /// does not read the console or the machine is paused.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.inner.lock();
        if inner.paused {
            return 0;
        }
        let taken = inner.port.receive(bytes);
        let transport = inner.transport.clone();
        drop(inner);
        if taken > 0 {
            wake(transport, RECEIVE);
        }
        taken
    }

    /// Waits until [`Console::push_input`] would take a byte, at most `timeout` of host time. Answers whether it
    /// would.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let mut inner = self.inner.lock();
        let full = |inner: &mut Inner| inner.paused || inner.port.room() == 0;
        !self.room.wait_while_for(&mut inner, full, timeout).timed_out()
    }

    /// Tells the guest the terminal's size (virtio 5.3.5).
    pub fn resize(&self, columns: u16, rows: u16) {
        let transport = self.inner.lock().transport.clone().and_then(|weak| weak.upgrade());
        match transport {
            Some(transport) => {
                transport.change_config(&mut || self.inner.lock().port.resize(columns, rows));
                transport.wake(CONTROL_RECEIVE);
            }
            None => self.inner.lock().port.resize(columns, rows),
        }
    }

    /// Fills the driver's buffers with input.
    fn serve_input(&self, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        let multiport = batch.features() & feature::MULTIPORT != 0;
        loop {
            let waiting: Vec<u8> = {
                let mut inner = self.inner.lock();
                // Without ports, a driver that serves its queue reads the console.
                if !multiport {
                    inner.port.set_open(true);
                }
                inner.port.input().iter().copied().collect()
            };
            self.room.notify_all();
            if waiting.is_empty() {
                return Ok(());
            }
            let Some(chain) = batch.pop()? else { return Ok(()) };
            let written = chain.write(batch.memory(), &waiting)?;
            self.inner.lock().port.consume(written);
            batch.complete(chain.ticket, written as u32)?;
        }
    }

    /// Passes the driver's bytes on.
    fn serve_output(&self, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        let mut chunk = [0; CHUNK_LEN];
        while let Some(mut chain) = batch.pop()? {
            loop {
                let len = chain.read(batch.memory(), &mut chunk)?;
                if len == 0 {
                    break;
                }
                (self.output)(chunk.get(..len).unwrap_or_default());
            }
            batch.complete(chain.ticket, 0)?;
        }
        Ok(())
    }

    /// Sends what the driver has to know.
    fn serve_announcements(&self, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        loop {
            let Some((event, message)) = self.inner.lock().port.announcement() else { return Ok(()) };
            let Some(chain) = batch.pop()? else { return Ok(()) };
            let written = chain.write(batch.memory(), &message)?;
            self.inner.lock().port.announced(event);
            batch.complete(chain.ticket, written as u32)?;
        }
    }

    /// Takes the driver's control messages.
    fn serve_control(&self, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        while let Some(mut chain) = batch.pop()? {
            let mut message = [0; CONTROL_LEN];
            let whole = chain.read(batch.memory(), &mut message)? == CONTROL_LEN;
            let handled = match whole {
                true => self.inner.lock().port.handle(&message),
                false => Err("control message cut off"),
            };
            if let Err(what) = handled {
                self.violations.report(KIND, format_args!("{what}"));
            }
            batch.complete(chain.ticket, 0)?;
        }
        self.room.notify_all();
        let transport = self.inner.lock().transport.clone();
        wake(transport.clone(), CONTROL_RECEIVE);
        wake(transport, RECEIVE);
        Ok(())
    }
}

/// Has a queue served, if the transport still exists.
fn wake(transport: Option<Weak<dyn Transport>>, queue: usize) {
    if let Some(transport) = transport.and_then(|weak| weak.upgrade()) {
        transport.wake(queue);
    }
}

/// The console as its transport sees it.
pub struct ConsoleDevice(pub Arc<Console>);

impl VirtioDevice for ConsoleDevice {
    fn id(&self) -> u16 {
        3
    }
    fn class(&self) -> u32 {
        0x07_8000
    }
    fn features(&self) -> u64 {
        feature::SIZE | feature::MULTIPORT | feature::EMERGENCY_WRITE
    }
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 4]
    }
    fn workers(&self) -> usize {
        1
    }
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
    fn attach(&self, transport: Weak<dyn Transport>) {
        self.0.inner.lock().transport = Some(transport);
    }
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let space = self.0.inner.lock().port.config();
        data.fill(0);
        data.iter_mut().zip(space.iter().skip(offset)).for_each(|(to, from)| *to = *from);
    }
    /// An emergency write is output at any time, before features are negotiated too (virtio 5.3.6.3).
    fn config_write(&self, offset: usize, data: &[u8], _features: u64) {
        if let (config::EMERGENCY_WRITE, Some(byte)) = (offset, data.first()) {
            (self.0.output)(std::slice::from_ref(byte));
        }
    }

    fn serve(&self, index: usize, batch: &mut Batch<'_>) -> Result<(), QueueError> {
        match index {
            RECEIVE => self.0.serve_input(batch),
            TRANSMIT => self.0.serve_output(batch),
            CONTROL_RECEIVE => self.0.serve_announcements(batch),
            CONTROL_TRANSMIT => self.0.serve_control(batch),
            _ => Ok(()),
        }
    }

    fn pause(&self) {
        self.0.inner.lock().paused = true;
    }
    fn resume(&self) {
        self.0.inner.lock().paused = false;
        self.0.room.notify_all();
    }
    fn reset(&self) {
        self.0.inner.lock().port.reset();
    }
    fn save(&self, name: &str) -> Result<Record, SaveError> {
        Record::new(name, KIND, VERSION, &self.0.inner.lock().port.save())
    }
    fn restore(&self, record: &Record) -> Result<(), SaveError> {
        let state: ConsoleState = record.open(KIND, VERSION)?;
        let port = Port::restored(state).map_err(|reason| record.malformed(reason))?;
        self.0.inner.lock().port = port;
        self.0.room.notify_all();
        Ok(())
    }
}
