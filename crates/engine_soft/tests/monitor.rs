//! MONITOR and MWAIT between processors, on threads of their own: a wait ends by a store, by an NMI and by a kick.

mod bench;

use engine::{MsiMessage, VcpuIo, Vm, VmExit};
use guest_memory::GuestMemory;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// The byte that is waited for.
const FLAG: u64 = 0x7000;
/// Where the code starts.
const CODE: u64 = 0x8000;
/// Handler of NMI: tells of itself by another port.
const NMI: u64 = 0x9000;
/// Longer than anything may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// Passes on which ports are written.
struct Ports(Sender<u16>);

impl VcpuIo for Ports {
    fn pio_write(&self, port: u16, _: &[u8]) {
        let _ = self.0.send(port);
    }
}

/// Real-mode code: `again: monitor [0x7000]; cmp byte [0x7000], 0; jne done; out 0x81, al; mwait; jmp again;
/// done: out 0x80, al; hlt`.
const WAITER: &[u8] = &[
    0xb8, 0x00, 0x70, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xc8, 0x80, 0x3e, 0x00, 0x70, 0x00, 0x75, 0x09,
    0xe6, 0x81, 0x31, 0xc0, 0x0f, 0x01, 0xc9, 0xeb, 0xe6, 0xe6, 0x80, 0xf4,
];

/// Runs the code on a thread until it goes to MWAIT, lets `act` act, and ends it by a kick.
fn run(act: impl FnOnce(&GuestMemory, &dyn Vm, &Receiver<u16>)) {
    let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
    memory.write(CODE, WAITER).unwrap();
    // NMI is vector 2 of the table at 0; `out 0x82, al; iret`.
    memory.write(2 * 4, &(NMI as u32).to_le_bytes()).unwrap();
    memory.write(NMI, &[0xe6, 0x82, 0xcf]).unwrap();
    let vm = bench::machine(&memory, 1, Arc::default());
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut state = vcpu.state().unwrap();
    (state.segments.cs.selector, state.segments.cs.base) = (0, 0);
    (state.rip, state.gprs[4]) = (CODE, 0x6000);
    vcpu.set_state(&state).unwrap();
    let kicker = vcpu.kicker();
    let (sender, ports) = channel();
    let thread = std::thread::spawn(move || (vcpu.run(&Ports(sender)), vcpu.state().unwrap()));
    assert_eq!(ports.recv_timeout(PATIENCE), Ok(0x81));
    act(&memory, &*vm, &ports);
    kicker.kick();
    let (exit, _) = thread.join().unwrap();
    assert_eq!(exit, VmExit::Kicked);
}

/// The next port written that is not the one before each MWAIT.
fn next(ports: &Receiver<u16>) -> u16 {
    loop {
        match ports.recv_timeout(PATIENCE) {
            Ok(0x81) => {}
            other => return other.expect("the guest goes on"),
        }
    }
}

#[test]
fn a_store_ends_the_wait() {
    run(|memory, _, ports| {
        memory.write(FLAG, &[1]).unwrap();
        assert_eq!(next(ports), 0x80);
    });
}

#[test]
fn an_nmi_ends_the_wait() {
    run(|memory, vm, ports| {
        vm.signal_msi(MsiMessage { address: 0xfee0_0000, data: 0x400 });
        assert_eq!(next(ports), 0x82);
        memory.write(FLAG, &[1]).unwrap();
        assert_eq!(next(ports), 0x80);
    });
}

#[test]
fn a_kick_ends_the_wait() {
    run(|_, _, _| {});
}
