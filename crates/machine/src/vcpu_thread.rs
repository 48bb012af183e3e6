//! A thread for each processor.
//!
//! A processor is locked by its thread while it runs. Whoever wants all processors to stand asks the [`Herd`]:
//! it kicks them, waits until each thread has parked, and then the locks are free.

use engine::{DebugStop, Kick, Vcpu, VcpuIo, VmExit};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What all threads should do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

struct HerdState {
    order: Order,
    parked: usize,
    /// Which stand while the others run.
    held: Vec<bool>,
    /// Why processors stopped for the debugger.
    stops: Vec<(u32, DebugStop)>,
}

impl HerdState {
    fn order_for(&self, index: usize) -> Order {
        match self.order {
            Order::Run if self.held.get(index).is_some_and(|held| *held) => Order::Park,
            order => order,
        }
    }
}

/// What a thread says when its processor cannot simply go on.
pub(crate) type ExitHandler = dyn Fn(u32, VmExit) + Send + Sync;

/// All processors of a machine.
pub(crate) struct Herd {
    state: Mutex<HerdState>,
    changed: Condvar,
    vcpus: Vec<Mutex<Option<Box<dyn Vcpu>>>>,
    kickers: Mutex<Vec<Arc<dyn Kick>>>,
    io: Arc<dyn VcpuIo + Send + Sync>,
}

impl Herd {
    /// Parked processors without threads.
    pub fn new(count: u32, io: Arc<dyn VcpuIo + Send + Sync>) -> Arc<Self> {
        Arc::new(Herd {
            state: Mutex::new(HerdState {
                order: Order::Park,
                parked: 0,
                held: Vec::new(),
                stops: Vec::new(),
            }),
            changed: Condvar::new(),
            vcpus: (0..count).map(|_| Mutex::new(None)).collect(),
            kickers: Mutex::default(),
            io,
        })
    }

    /// Puts in (or replaces) the processors. All threads are parked.
    pub fn set_vcpus(&self, vcpus: Vec<Box<dyn Vcpu>>) {
        *self.kickers.lock() = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
        for (place, vcpu) in self.vcpus.iter().zip(vcpus) {
            *place.lock() = Some(vcpu);
        }
    }

    /// Takes the processors out. All threads are parked.
    pub fn clear(&self) {
        self.kickers.lock().clear();
        self.vcpus.iter().for_each(|place| *place.lock() = None);
    }

    /// Calls `visit` for each processor. All threads are parked.
    pub fn for_each<E>(&self, mut visit: impl FnMut(u32, &mut dyn Vcpu) -> Result<(), E>) -> Result<(), E> {
        for (index, place) in self.vcpus.iter().enumerate() {
            if let Some(vcpu) = place.lock().as_mut() {
                visit(index as u32, vcpu.as_mut())?;
            }
        }
        Ok(())
    }

    /// Calls `visit` for one processor, if there is one. All threads are parked.
    pub fn visit(&self, index: u32, visit: impl FnOnce(&mut dyn Vcpu)) {
        if let Some(place) = self.vcpus.get(index as usize)
            && let Some(vcpu) = place.lock().as_mut()
        {
            visit(vcpu.as_mut());
        }
    }

    /// From now on these (by index) do not run with the others. All threads are parked.
    pub fn hold(&self, held: Vec<bool>) {
        self.state.lock().held = held;
    }

    /// Why processors stopped for the debugger since this was asked last.
    pub fn take_stops(&self) -> Vec<(u32, DebugStop)> {
        std::mem::take(&mut self.state.lock().stops)
    }

    /// Starts the threads, parked.
    pub fn spawn(self: &Arc<Self>, on_exit: &Arc<ExitHandler>) -> std::io::Result<Vec<JoinHandle<()>>> {
        let spawn_one = |index: usize| {
            let herd = Arc::clone(self);
            let on_exit = Arc::clone(on_exit);
            let builder = std::thread::Builder::new().name(format!("vcpu{index}"));
            builder.spawn(move || herd.serve(index, on_exit.as_ref()))
        };
        (0..self.vcpus.len()).map(spawn_one).collect()
    }

    /// Lets all run.
    pub fn run(&self) {
        self.give(Order::Run);
    }

    /// Parks all and waits until they stand. Never called from a vCPU thread.
    pub fn park(&self) {
        self.give(Order::Park);
        let mut state = self.state.lock();
        while state.parked < self.vcpus.len() {
            self.changed.wait(&mut state);
        }
    }

    /// Ends the threads.
    pub fn end(&self) {
        self.give(Order::End);
    }

    fn give(&self, order: Order) {
        self.state.lock().order = order;
        self.changed.notify_all();
        self.kick();
    }

    /// Lets all look up from their work for a moment.
    pub fn kick(&self) {
        self.kickers.lock().iter().for_each(|kicker| kicker.kick());
    }

    fn wait_for_order(&self, index: usize) -> Order {
        let mut state = self.state.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.order_for(index) == Order::Park {
            self.changed.wait(&mut state);
        }
        state.parked -= 1;
        state.order
    }

    fn parked_or_ended(&self) -> bool {
        self.state.lock().order != Order::Run
    }

    fn serve(&self, index: usize, on_exit: &ExitHandler) {
        while self.wait_for_order(index) != Order::End {
            let mut place = self.vcpus[index].lock();
            let Some(vcpu) = place.as_mut() else { continue };
            let mut standing = false;
            while !standing {
                match vcpu.run(self.io.as_ref()) {
                    VmExit::Kicked => standing = self.parked_or_ended(),
                    exit => {
                        if let VmExit::Debug(stop) = exit {
                            self.state.lock().stops.push((index as u32, stop));
                        }
                        on_exit(index as u32, exit);
                        standing = true;
                    }
                }
            }
            drop(place);
            self.stand_after_exit();
        }
    }

    /// A processor that reported an exit does not run again by itself: it waits for the order that the report
    /// leads to.
    fn stand_after_exit(&self) {
        let mut state = self.state.lock();
        if state.order != Order::Run {
            return;
        }
        state.parked += 1;
        self.changed.notify_all();
        while state.order == Order::Run {
            self.changed.wait(&mut state);
        }
        state.parked -= 1;
    }
}
