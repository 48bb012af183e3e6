//! The local APIC.

use kvm_bindings::kvm_lapic_state;
use x86::{CpuState, LapicState};

/// Register numbers: byte offset in the page divided by 16 (SDM 3A table 10-1).
const ID: usize = 0x02;
const VERSION: usize = 0x03;
const DFR: usize = 0x0e;
const SVR: usize = 0x0f;
const LVT_FIRST: usize = 0x32;
const LVT_TIMER: usize = 0x32;
const LVT_LINT0: usize = 0x35;
const LVT_LAST: usize = 0x37;
const TIMER_INITIAL: usize = 0x38;
const TIMER_CURRENT: usize = 0x39;
const TIMER_DIVIDE: usize = 0x3e;
const LVT_MASKED: u32 = 1 << 16;
const LVT_EXTINT: u32 = 7 << 8;
/// Timer mode bits of the timer's LVT entry: one-shot, periodic, deadline.
const TIMER_MODE_SHIFT: u32 = 17;
const TIMER_PERIODIC: u32 = 1;
const TIMER_DEADLINE: u32 = 2;
/// Version 0x14, six LVT entries, as KVM's.
const VERSION_VALUE: u32 = 0x0005_0014;
/// x2APIC mode in IA32_APIC_BASE.
const X2APIC: u64 = 1 << 10;
/// KVM's local APIC timer counts nanoseconds before the divider.
const NS_PER_TICK: u64 = 1;

pub(super) fn from_kvm(kvm: &kvm_lapic_state) -> LapicState {
    let registers: Vec<u32> = kvm
        .regs
        .chunks_exact(16)
        .map(|cell| u32::from_le_bytes([cell[0] as u8, cell[1] as u8, cell[2] as u8, cell[3] as u8]))
        .collect();
    let timer_elapsed_ns = elapsed(&registers);
    LapicState { registers, timer_elapsed_ns, ..LapicState::default() }
}

/// Nanoseconds of one count of the timer.
fn tick_ns(registers: &[u32]) -> u64 {
    let code = registers[TIMER_DIVIDE];
    // Bits 0, 1 and 3: 0 divides by 2, 6 by 128, 7 by 1 (SDM 3A 10.5.4).
    let power = ((code & 3 | code >> 1 & 4) + 1) & 7;
    NS_PER_TICK << power
}

fn elapsed(registers: &[u32]) -> u64 {
    let counted = registers[TIMER_INITIAL].saturating_sub(registers[TIMER_CURRENT]);
    if registers[TIMER_INITIAL] == 0 || registers[TIMER_CURRENT] == 0 {
        return 0;
    }
    u64::from(counted) * tick_ns(registers)
}

pub(super) fn to_kvm(state: &CpuState, index: u32) -> kvm_lapic_state {
    let mut registers = state.lapic.registers.clone();
    registers.resize(64, 0);
    if registers[VERSION] == 0 {
        registers = after_reset(index, state.apic_base & X2APIC != 0);
    }
    registers[TIMER_CURRENT] = current_count(&registers, state.lapic.timer_elapsed_ns);
    let mut kvm = kvm_lapic_state::default();
    for (cell, register) in kvm.regs.chunks_exact_mut(16).zip(&registers) {
        for (byte, value) in cell.iter_mut().zip(register.to_le_bytes()) {
            *byte = value as std::os::raw::c_char;
        }
    }
    kvm
}

/// Whether an interrupt waits in IRR (registers 0x20 to 0x27).
pub(crate) fn requests_interrupt(kvm: &kvm_lapic_state) -> bool {
    from_kvm(kvm).registers[0x20..0x28].iter().any(|word| *word != 0)
}

/// The count that remains, from the time that passed.
fn current_count(registers: &[u32], elapsed_ns: u64) -> u32 {
    let initial = registers[TIMER_INITIAL];
    let counted = elapsed_ns / tick_ns(registers);
    match registers[LVT_TIMER] >> TIMER_MODE_SHIFT & 3 {
        TIMER_DEADLINE => 0,
        _ if initial == 0 => 0,
        TIMER_PERIODIC => initial - (counted % u64::from(initial)) as u32,
        // The source stopped a one-shot that ran out at zero elapsed; nothing else says that it is over.
        _ if elapsed_ns == 0 => registers[TIMER_CURRENT],
        _ => u64::from(initial).saturating_sub(counted) as u32,
    }
}

/// A state without a local APIC (no real one has version 0) means the one after reset (SDM 3A 10.4.7.1),
/// with LINT0 of processor 0 open for the PIC, as firmware for uniprocessor boards leaves it.
fn after_reset(index: u32, x2apic: bool) -> Vec<u32> {
    let mut registers = vec![0; 64];
    registers[ID] = if x2apic { index } else { index << 24 };
    registers[VERSION] = VERSION_VALUE;
    registers[DFR] = u32::MAX;
    registers[SVR] = 0xff;
    registers[LVT_FIRST..=LVT_LAST].fill(LVT_MASKED);
    if index == 0 {
        registers[LVT_LINT0] = LVT_EXTINT;
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divider_is_decoded_as_the_manual_says() {
        let mut registers = vec![0; 64];
        for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
            registers[TIMER_DIVIDE] = code;
            assert_eq!(tick_ns(&registers), divisor, "{code:#x}");
        }
    }

    #[test]
    fn elapsed_time_and_remaining_count_are_each_others_inverse() {
        let mut registers = after_reset(0, false);
        registers[TIMER_DIVIDE] = 3;
        registers[TIMER_INITIAL] = 1000;
        registers[TIMER_CURRENT] = 400;
        assert_eq!(elapsed(&registers), 600 * 16);
        assert_eq!(current_count(&registers, 600 * 16), 400);
        registers[LVT_TIMER] = TIMER_PERIODIC << TIMER_MODE_SHIFT;
        assert_eq!(current_count(&registers, 1600 * 16), 400);
    }
}
