//! A machine between engines.
//!
//! All processors move at once, with the machine standing: then their local APICs are in one engine, messages between
//! them cannot be lost, and a new machine on KVM has no translations of its own that the software CPU could have
//! made void.

use crate::excursion::Carrier;
use crate::life::{EngineAdvice, Machine, MachineError, MachineEvent};
use crate::policy::{LOOK_EVERY, Stays};
use crate::vcpu_thread::Herd;
use engine::cpu_model::CpuModel;
use engine::{Engine, EngineError, EngineKind};
use guest_clock::{Clock, TimerHandler, TimerId, TimerQueue};
use parking_lot::Mutex;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// The model as every one of the engines can offer it, so that a machine may move between them. The first engine is
/// the one the machine starts on.
pub fn common_model(model: &CpuModel, engines: &[&dyn Engine]) -> Result<CpuModel, EngineError> {
    let Some((first, others)) = engines.split_first() else { return Ok(model.clone()) };
    let features = others.iter().fold(first.features(), |all, other| all.intersection(other.features()));
    let resolved = model.resolve(features, first.kind())?;
    let identity = engines.iter().find_map(|engine| engine.identity());
    Ok(identity.map_or(resolved.clone(), |identity| resolved.with_identity(&identity)))
}

struct ReturnTimer(Mutex<Sender<MachineEvent>>);

impl TimerHandler for ReturnTimer {
    fn expired(&self) {
        let _ = self.0.lock().send(MachineEvent::Engine(EngineAdvice::Return));
    }
}

/// Makes processors on a KVM that emulates kernels show what they are at.
struct Patrol {
    herd: Weak<Herd>,
    timers: Weak<TimerQueue>,
    timer: OnceLock<TimerId>,
}

impl Patrol {
    fn arm(&self) {
        if let (Some(timers), Some(timer)) = (self.timers.upgrade(), self.timer.get()) {
            timers.arm(*timer, timers.clock().now_ns().saturating_add(LOOK_EVERY.as_nanos() as u64));
        }
    }
}

impl TimerHandler for Patrol {
    fn expired(&self) {
        if let Some(herd) = self.herd.upgrade() {
            herd.kick();
            self.arm();
        }
    }
}

/// KVM and what carries it.
type Home = (Arc<dyn Engine>, Option<Carrier>);

/// Where the machine is at home, and when it goes back there.
pub(crate) struct Moves {
    /// KVM and what carries it, while the machine is on the software engine for a while.
    home: Option<Home>,
    stays: Option<Stays>,
    arrived: Instant,
    return_timer: TimerId,
    _return_handler: Arc<ReturnTimer>,
    patrol: Arc<Patrol>,
}

impl Moves {
    pub(crate) fn new(
        timers: &Arc<TimerQueue>,
        herd: &Arc<Herd>,
        sender: Mutex<Sender<MachineEvent>>,
    ) -> Self {
        let handler = Arc::new(ReturnTimer(sender));
        let weak: Weak<ReturnTimer> = Arc::downgrade(&handler);
        let return_timer = timers.add(weak);
        let patrol = Arc::new(Patrol {
            herd: Arc::downgrade(herd),
            timers: Arc::downgrade(timers),
            timer: OnceLock::new(),
        });
        let weak: Weak<Patrol> = Arc::downgrade(&patrol);
        patrol.timer.get_or_init(|| timers.add(weak));
        let arrived = Instant::now();
        Moves { home: None, stays: None, arrived, return_timer, _return_handler: handler, patrol }
    }
}

impl Machine {
    /// Moves all processors to another engine, where they remain. The machine is paused before and after; if the
    /// engine refuses, it is as it was.
    pub fn switch_engine(
        &mut self,
        engine: Arc<dyn Engine>,
        carrier: Option<Carrier>,
    ) -> Result<(), MachineError> {
        self.move_to(engine, carrier)?;
        self.moves.home = None;
        self.timers.disarm(self.moves.return_timer);
        Ok(())
    }

    fn move_to(&mut self, engine: Arc<dyn Engine>, carrier: Option<Carrier>) -> Result<(), MachineError> {
        // What devices send from now on waits for the other engine; what they sent is in the states.
        let vm = self.gate.disconnect();
        let states =
            self.save_processors().inspect_err(|_| vm.into_iter().for_each(|vm| self.gate.connect(vm)))?;
        self.retire_vcpus();
        let before =
            (std::mem::replace(&mut self.engine, engine), std::mem::replace(&mut self.carrier, carrier));
        let moved = self.install_vcpus(Some(&states));
        if moved.is_err() {
            (self.engine, self.carrier) = before;
            self.install_vcpus(Some(&states))?;
            return moved;
        }
        self.engine_switches += 1;
        Ok(())
    }

    /// Looks at the processors now and then if they are on a KVM that had better be left when kernels are at work.
    pub(crate) fn patrol(&self) {
        if self.carrier.is_some() && self.engine.worth().emulates_kernels {
            self.moves.patrol.arm();
        } else if let Some(timer) = self.moves.patrol.timer.get() {
            self.timers.disarm(*timer);
        }
    }

    /// Does what [`MachineEvent::Engine`] advises, if that still makes sense. The machine is paused. Tells whether
    /// the engine changed.
    pub fn follow_advice(&mut self, advice: EngineAdvice) -> Result<bool, MachineError> {
        let before = self.engine_switches;
        match advice {
            EngineAdvice::Leave => self.leave_home()?,
            EngineAdvice::Return => self.return_home(),
        }
        Ok(self.engine_switches != before)
    }

    fn leave_home(&mut self) -> Result<(), MachineError> {
        let Some(carrier) = self.carrier.clone() else { return Ok(()) };
        let home = (Arc::clone(&self.engine), self.carrier.clone());
        let on_kvm = self.moves.arrived.elapsed();
        self.move_to(carrier.machine, None)?;
        let stays = self.moves.stays.get_or_insert_with(|| Stays::new(home.0.worth().is_faithful));
        let stay = stays.leave(on_kvm);
        tracing::info!(?on_kvm, ?stay, "left KVM for the software engine");
        self.moves.home = Some(home);
        if let Some(stay) = stay {
            let due = self.clock.now_ns().saturating_add(stay.as_nanos() as u64);
            self.timers.arm(self.moves.return_timer, due);
        }
        Ok(())
    }

    fn return_home(&mut self) {
        let Some((engine, carrier)) = self.moves.home.take() else { return };
        if let Err(error) = self.move_to(engine, carrier) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the machine stays on the software engine"
            );
            if let Some(stays) = &mut self.moves.stays {
                stays.give_up();
            }
        }
        self.moves.arrived = Instant::now();
    }

    /// Which engine runs the processors.
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// How often the engine was changed.
    pub fn engine_switches(&self) -> u64 {
        self.engine_switches
    }
}
