//! The debugger's stops on KVM: single steps and the four debug registers, which KVM keeps apart from the guest's
//! (KVM API 4.87, `KVM_SET_GUEST_DEBUG`).

use crate::host::host;
use engine::{DebugStop, DebugStops, EngineError, EngineKind, WatchKind, Watchpoint};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;

/// Debug registers with addresses.
const REGISTERS: usize = 4;
/// DR6.BS: single step (SDM 3B 17.2.3).
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// Bits of DR7 that are always set.
const DR7_FIXED: u64 = 0x400;

/// One debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    address: u64,
    /// What it belongs to; `None` is a breakpoint.
    watch: Option<Watchpoint>,
    /// R/W and LEN fields of DR7 (SDM 3B 17.2.4).
    fields: u64,
}

/// What is loaded into KVM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Debug {
    registers: Vec<Register>,
    single_step: bool,
}

impl Debug {
    /// Fits stops into debug registers.
    pub fn new(stops: &DebugStops) -> Result<Self, EngineError> {
        let breakpoint = |&address: &u64| Register { address, watch: None, fields: 0 };
        let mut registers: Vec<Register> = stops.breakpoints.iter().map(breakpoint).collect();
        stops.watchpoints.iter().for_each(|watch| split(watch, &mut registers));
        if registers.len() > REGISTERS {
            let reason = format!(
                "{} debug registers would be needed, and there are {REGISTERS}; the software engine has no such bound",
                registers.len()
            );
            return Err(EngineError::Debugger { engine: EngineKind::Kvm, reason });
        }
        Ok(Debug { registers, single_step: stops.single_step })
    }

    /// Loads KVM. `step` steps in any case; `hold_interrupts` lets them wait meanwhile, where KVM can do that.
    pub fn load(&self, fd: &VcpuFd, step: bool, hold_interrupts: bool) -> Result<(), EngineError> {
        let step = step || self.single_step;
        let mut debug = kvm_guest_debug::default();
        if step {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        if !self.registers.is_empty() {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[7] = DR7_FIXED;
        }
        for (number, register) in self.registers.iter().enumerate().take(REGISTERS) {
            debug.arch.debugreg[number] = register.address;
            // Enabled in every task.
            debug.arch.debugreg[7] |= 2 << (2 * number) | register.fields << (16 + 4 * number);
        }
        if step && hold_interrupts {
            let holding = kvm_guest_debug { control: debug.control | KVM_GUESTDBG_BLOCKIRQ, ..debug };
            if fd.set_guest_debug(&holding).is_ok() {
                return Ok(());
            }
        }
        fd.set_guest_debug(&debug).map_err(host("KVM_SET_GUEST_DEBUG"))
    }

    /// Why it stopped.
    pub fn stop(&self, dr6: u64) -> DebugStop {
        let hit = self.registers.iter().enumerate().find(|(number, _)| dr6 >> number & 1 != 0);
        match hit {
            Some((_, Register { watch: Some(watch), .. })) => DebugStop::Watchpoint(*watch),
            Some(_) => DebugStop::Breakpoint,
            None if dr6 & DR6_SINGLE_STEP != 0 || self.single_step => DebugStop::Step,
            None if self.registers.is_empty() => DebugStop::Step,
            None => DebugStop::Breakpoint,
        }
    }
}

/// Naturally aligned pieces of 8, 4, 2 and 1 bytes. There are no debug registers for loads alone: those tell of stores
/// as well.
fn split(watch: &Watchpoint, registers: &mut Vec<Register>) {
    let access = if watch.kind == WatchKind::Write { 1 } else { 3 };
    let (mut address, mut left) = (watch.address, watch.len);
    while left > 0 && registers.len() <= REGISTERS {
        let size: u64 = 1 << address.trailing_zeros().min(left.ilog2()).min(3);
        let len = [0, 1, 3, 2][size.ilog2() as usize];
        registers.push(Register { address, watch: Some(*watch), fields: access | len << 2 });
        (address, left) = (address.wrapping_add(size), left - size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(address: u64, len: u64) -> DebugStops {
        let watch = Watchpoint { address, len, kind: WatchKind::Write };
        DebugStops { watchpoints: vec![watch], ..DebugStops::default() }
    }

    #[test]
    fn watched_data_are_covered_exactly() {
        // LEN is 0 for one byte, 1 for two, 3 for four, 2 for eight (SDM 3B, table 17-2).
        for (address, len, wanted) in [
            (0x1000, 8, vec![(0x1000, 2)]),
            (0x1004, 8, vec![(0x1004, 3), (0x1008, 3)]),
            (0x1001, 4, vec![(0x1001, 0), (0x1002, 1), (0x1004, 0)]),
            (0x1000, 3, vec![(0x1000, 1), (0x1002, 0)]),
        ] {
            let debug = Debug::new(&watch(address, len)).unwrap();
            let found: Vec<_> = debug.registers.iter().map(|r| (r.address, r.fields >> 2)).collect();
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Debug::new(&watch(0x1000, 33)).is_err());
        assert!(Debug::new(&watch(1, u64::MAX)).is_err());
        let five = DebugStops { breakpoints: vec![1, 2, 3, 4, 5], ..DebugStops::default() };
        let error = Debug::new(&five).unwrap_err().to_string();
        assert!(error.contains("software engine"), "{error}");
    }
}
