//! The threads that serve a device's queues.

use super::bits::status;
use super::function::Function;
use crate::device_type::Batch;
use device::{Doorbell, Event};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker waits when the host does not let it wait for events.
const POLL_AGAIN: Duration = Duration::from_millis(1);

/// What a worker is asked to do.
#[derive(Debug, Default)]
struct Work {
    /// Queues to serve, one bit each.
    doorbells: u64,
    /// Queues whose last batch ended early: they rest, then they are served.
    resting: u64,
    /// When the rest is over, if there is one.
    rest_until: Option<Instant>,
    paused: bool,
    busy: bool,
    stop: bool,
    /// It waits for its event and for doorbells, not for the condition variable.
    polling: bool,
}

/// One thread's orders.
#[derive(Debug, Default)]
pub(super) struct Worker {
    work: Mutex<Work>,
    changed: Condvar,
    /// Wakes it while it polls.
    event: Event,
}

pub(super) fn spawn(function: &Arc<Function>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let start = |index: usize| {
        let function = Arc::clone(function);
        let name = format!("{}/{index}", function.name);
        std::thread::Builder::new().name(name).spawn(move || function.run_worker(index))
    };
    (0..function.workers.len()).map(start).collect()
}

impl Function {
    /// Has a queue served: its doorbell, from a vCPU or from the device itself.
    pub fn ring(&self, index: usize) {
        if index >= self.queues.len() {
            return self.violations.report(&self.name, format_args!("doorbell of queue {index}"));
        }
        if let Some(worker) = self.workers.get(index % self.workers.len().max(1)) {
            let mut work = worker.work.lock();
            work.doorbells |= 1 << index;
            worker.wake(&work);
        }
    }

    /// Whether the worker of a queue can wait for doorbells.
    pub fn can_poll(&self, index: usize) -> bool {
        let worker = self.workers.get(index % self.workers.len().max(1));
        worker.is_some_and(|worker| worker.event.descriptor().is_ok())
    }

    /// Has all workers look at what they wait for.
    pub fn wake_workers(&self) {
        self.workers.iter().for_each(|worker| worker.wake(&worker.work.lock()));
    }

    /// Has all queues served.
    pub fn ring_all(&self) {
        (0..self.queues.len()).for_each(|index| self.ring(index));
    }

    /// Stops serving; nothing is in flight when this returns.
    pub fn pause(&self) {
        for worker in &self.workers {
            let mut work = worker.work.lock();
            work.paused = true;
            worker.wake(&work);
        }
        self.queues.iter().for_each(|queue| queue.recalled.store(true, Ordering::SeqCst));
        for worker in &self.workers {
            let mut work = worker.work.lock();
            while work.busy {
                worker.changed.wait(&mut work);
            }
        }
        self.device.pause();
    }

    /// Goes on serving.
    pub fn resume(&self) {
        self.device.resume();
        self.clear_doorbells();
        self.queues.iter().for_each(|queue| queue.recalled.store(false, Ordering::SeqCst));
        for worker in &self.workers {
            let mut work = worker.work.lock();
            work.paused = false;
            worker.wake(&work);
        }
        // A device may have put a request back, for which no driver rings again; and what doorbells counted until
        // now is forgotten.
        self.ring_all();
    }

    /// Ends the threads, each after the request it is at.
    pub fn stop(&self) {
        self.queues.iter().for_each(|queue| queue.recalled.store(true, Ordering::SeqCst));
        for worker in &self.workers {
            let mut work = worker.work.lock();
            work.stop = true;
            worker.wake(&work);
        }
    }

    fn run_worker(&self, index: usize) {
        let Some(worker) = self.workers.get(index) else { return };
        while let Some(queues) = self.wait(index, worker) {
            self.serve_queues(worker, queues);
        }
    }

    /// Serves what the doorbells rang for, on the calling thread, one batch a queue. Answers whether there was any.
    /// For tests and fuzzing, where no threads run.
    pub fn serve_now(&self) -> bool {
        let mut any = false;
        for (index, worker) in self.workers.iter().enumerate() {
            let taken = {
                let mut work = worker.work.lock();
                if work.paused {
                    continue;
                }
                let rung = self.take_doorbells(index);
                rung | std::mem::take(&mut work.doorbells) | std::mem::take(&mut work.resting)
            };
            any |= taken != 0;
            self.serve_queues(worker, taken);
        }
        any
    }

    fn serve_queues(&self, worker: &Worker, queues: u64) {
        let mut unfinished = 0;
        for index in (0..self.queues.len()).filter(|index| queues & (1 << index) != 0) {
            if self.serve_queue(index) {
                unfinished |= 1 << index;
            }
        }
        let rest = self.device.rest();
        let mut work = worker.work.lock();
        if unfinished != 0 {
            work.resting |= unfinished;
            work.rest_until = (!rest.is_zero()).then(|| Instant::now() + rest);
        }
        work.busy = false;
        worker.changed.notify_all();
    }

    /// Serves a batch of a queue. Answers whether there may be more.
    fn serve_queue(&self, index: usize) -> bool {
        let Some(place) = self.queues.get(index) else { return false };
        let mut enabled = place.enabled.lock();
        let Some(of_driver) = enabled.as_mut().filter(|queue| self.is_live(index, queue.session)) else {
            return false;
        };
        let session = of_driver.session;
        let mut batch = Batch::new(&mut of_driver.queue, &self.memory, of_driver.features, &place.recalled);
        // The queue and the device are not used again after a panic, until a reset made them anew.
        let served = catch_unwind(AssertUnwindSafe(|| {
            self.device.serve(index, &mut batch)?;
            batch.finish()
        }));
        drop(enabled);
        match served {
            Ok(Ok((interrupt, more))) => {
                if interrupt {
                    self.interrupt_queue(index, session);
                }
                more
            }
            Ok(Err(error)) => {
                self.violations.report(&self.name, format_args!("queue {index}: {error}"));
                self.need_reset(index, session);
                false
            }
            Err(panic) => {
                tracing::error!(device = self.name, queue = index, "device failed: {}", words(&panic));
                self.need_reset(index, session);
                false
            }
        }
    }

    fn is_live(&self, index: usize, session: u64) -> bool {
        const LIVE: u8 = status::DRIVER_OK | status::FEATURES_OK;
        let registers = self.registers.lock();
        let current = registers.queues.get(index).is_some_and(|queue| queue.session == session);
        current && registers.status & (LIVE | status::NEEDS_RESET) == LIVE && registers.config.bus_master()
    }

    /// Interrupts for a used queue, unless it was reset since.
    fn interrupt_queue(&self, index: usize, session: u64) {
        self.with_registers(|registers| {
            if registers.queues.get(index).is_some_and(|queue| queue.session == session) {
                registers.interrupt_queue(index);
            }
        });
    }

    /// The driver broke a rule, or the device failed: nothing is served until the driver resets it (virtio 2.1.2).
    fn need_reset(&self, index: usize, session: u64) {
        self.with_registers(|registers| {
            if registers.queues.get(index).is_some_and(|queue| queue.session == session) {
                registers.status |= status::NEEDS_RESET;
                registers.interrupt_config();
            }
        });
    }
}

impl Function {
    /// Waits for something to do; none at the end.
    fn wait(&self, index: usize, worker: &Worker) -> Option<u64> {
        let mut work = worker.work.lock();
        loop {
            if work.stop {
                return None;
            }
            if !work.paused {
                if work.rest_until.is_none_or(|until| Instant::now() >= until) {
                    work.rest_until = None;
                    work.doorbells |= std::mem::take(&mut work.resting);
                }
                work.doorbells |= self.take_doorbells(index);
                // A doorbell does not shorten a rest.
                let ready = work.doorbells & !work.resting;
                if ready != 0 {
                    work.doorbells &= !ready;
                    work.busy = true;
                    return Some(ready);
                }
            }
            let until = work.rest_until.filter(|_| !work.paused);
            let doorbells = if work.paused { Vec::new() } else { self.bound_doorbells(index) };
            if !doorbells.is_empty() {
                work.polling = true;
                MutexGuard::unlocked(&mut work, || worker.poll(&doorbells, until));
                work.polling = false;
                continue;
            }
            match until {
                Some(until) => drop(worker.changed.wait_until(&mut work, until)),
                None => worker.changed.wait(&mut work),
            }
        }
    }
}

impl Worker {
    /// Has it look at its orders, which are locked.
    fn wake(&self, work: &Work) {
        self.changed.notify_all();
        if work.polling {
            self.event.signal();
        }
    }

    /// Waits until a doorbell or its event is signalled, or until a moment; or less.
    fn poll(&self, doorbells: &[&Doorbell], until: Option<Instant>) {
        let events = doorbells.iter().map(|doorbell| doorbell.event()).chain([&self.event]);
        let descriptors: Vec<_> = events.filter_map(|event| event.descriptor().ok()).collect();
        let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        if let Err(error) = poll(&mut polled, left.as_ref())
            && error != Errno::INTR
        {
            // The host is short of something; what is asked for is looked at meanwhile.
            std::thread::sleep(POLL_AGAIN);
        }
        self.event.take();
    }
}

/// What a panic said.
fn words(panic: &Box<dyn Any + Send>) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}
