//! Start-up of application processors (SDM 3A 8.4.4.1) through the public traits: messages may come long before
//! the target's thread gets to run.

mod bench;

use engine::{MsiMessage, Vcpu, VcpuIo, Vm, VmExit};
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::MpState;

/// Nothing but RAM.
struct Nothing;

impl VcpuIo for Nothing {}

const INIT: u32 = 0x500;
const START_UP: u32 = 0x600;

/// Two processors; RAM holds `mov ax, 0x1234; hlt` at 0x8000.
fn machine() -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
    memory.write(0x8000, &[0xb8, 0x34, 0x12, 0xf4]).unwrap();
    let vm = bench::machine(&memory, 2, Arc::default());
    let second = vm.create_vcpu(1).unwrap();
    (vm, second)
}

fn send(vm: &Arc<dyn Vm>, data: u32) {
    vm.signal_msi(MsiMessage { address: 0xfee0_1000, data });
}

#[test]
fn a_start_up_message_right_after_init_counts() {
    let (vm, mut second) = machine();
    for data in [INIT, START_UP | 8, START_UP | 8] {
        send(&vm, data);
    }
    assert_eq!(second.run_steps(&Nothing, 10), VmExit::Halted);
    let state = second.state().unwrap();
    assert_eq!((state.mp_state, state.segments.cs.base, state.gprs[0]), (MpState::Halted, 0x8000, 0x1234));
}

#[test]
fn a_start_up_message_before_init_is_void() {
    let (vm, mut second) = machine();
    for data in [START_UP | 8, INIT] {
        send(&vm, data);
    }
    assert_eq!(second.run_steps(&Nothing, 10), VmExit::Halted);
    assert_eq!(second.state().unwrap().mp_state, MpState::InitReceived);
    send(&vm, START_UP | 8);
    assert_eq!(second.run_steps(&Nothing, 10), VmExit::Halted);
    assert_eq!(second.state().unwrap().gprs[0], 0x1234);
}

/// A processor is moved between the messages' arrival and its next instruction: nothing is lost.
#[test]
fn waiting_start_up_messages_move_with_the_state() {
    for (sent, end) in [
        (&[INIT][..], MpState::InitReceived),
        (&[INIT, START_UP | 8], MpState::Halted),
        (&[START_UP | 8, INIT], MpState::InitReceived),
    ] {
        let (vm, second) = machine();
        sent.iter().for_each(|data| send(&vm, *data));
        let saved = second.state().unwrap();
        assert!(saved.events.init);
        let (_vm, mut other) = machine();
        other.set_state(&saved).unwrap();
        assert_eq!(other.state().unwrap(), saved);
        assert_eq!(other.run_steps(&Nothing, 10), VmExit::Halted);
        assert_eq!(other.state().unwrap().mp_state, end, "{sent:x?}");
    }
}

/// An INIT that is taken in the state is the INIT that the processor takes.
#[test]
fn the_state_takes_init_as_the_processor_does() {
    let (vm, mut second) = machine();
    let mut start = second.state().unwrap();
    (start.gprs, start.cr0, start.cr2, start.dr7) = ([7; 16], 0x6000_0031, 0x123, 0x401);
    (start.mp_state, start.events.nmi_pending) = (MpState::Runnable, true);
    start.lapic.registers[0x0f] = 0x1ff;
    start.lapic.registers[0x21] = 0x10;
    second.set_state(&start).unwrap();
    [INIT, START_UP | 8].iter().for_each(|data| send(&vm, *data));
    let mut state = second.state().unwrap();
    state.take_start_up();
    // No instruction: the messages are all that happens.
    second.kicker().kick();
    assert_eq!(second.run_steps(&Nothing, 1), VmExit::Kicked);
    assert_eq!(second.run_steps(&Nothing, 1), VmExit::StepsDone);
    let taken = second.state().unwrap();
    assert_eq!((state.rip, state.segments.cs.base, state.cr0), (0, 0x8000, 0x6000_0010));
    // One instruction was executed: MOV AX; and RDX has the model's signature.
    (state.rip, state.gprs[0], state.gprs[2]) = (taken.rip, taken.gprs[0], taken.gprs[2]);
    assert_eq!(taken, state);
}

/// What was under way comes before what waits: an interrupt that was acknowledged already, then the NMI.
#[test]
fn a_delivery_under_way_comes_first() {
    let (_vm, mut second) = machine();
    let mut state = second.state().unwrap();
    state.segments.cs = x86::Segment { selector: 0, base: 0, ..state.segments.cs };
    (state.rip, state.gprs[4], state.mp_state) = (0x8000, 0x7000, MpState::Runnable);
    state.idtr.limit = 0x3ff;
    state.events.interrupt = Some(x86::PendingInterrupt { vector: 0x30, software: false });
    state.events.nmi_pending = true;
    second.set_state(&state).unwrap();
    assert_eq!(second.state().unwrap(), state);
    // The vectors are 0000:0000, where there are zeros: ADD [BX+SI], AL.
    assert_eq!(second.run_steps(&Nothing, 1), VmExit::StepsDone);
    let after = second.state().unwrap();
    assert_eq!((after.gprs[4], after.events.nmi_masked), (0x7000 - 12, true), "two frames");
    assert_eq!(after.events.interrupt, None);
}
