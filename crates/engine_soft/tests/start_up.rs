//! Start-up of application processors (SDM 3A 8.4.4.1) through the public traits: messages may come long before
//! the target's thread gets to run.

use engine::cpu_model::CpuModel;
use engine::{Engine, MsiMessage, Vcpu, VcpuIo, Vm, VmExit, VmSettings};
use engine_soft::SoftEngine;
use guest_clock::{HostEntropy, ManualClock};
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::MpState;

struct Nothing;

impl VcpuIo for Nothing {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn eoi(&self, _: u8) {}
    fn acknowledge_pic(&self) -> u8 {
        0
    }
}

const INIT: u32 = 0x500;
const START_UP: u32 = 0x600;

/// Two processors; RAM holds `mov ax, 0x1234; hlt` at 0x8000.
fn machine() -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
    memory.write(0x8000, &[0xb8, 0x34, 0x12, 0xf4]).unwrap();
    let settings = VmSettings {
        memory,
        cpus: 2,
        model: CpuModel::named("max").unwrap(),
        clock: Arc::new(ManualClock::default()),
        entropy: Arc::new(HostEntropy),
    };
    let vm = SoftEngine::new().create_vm(settings).unwrap();
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
