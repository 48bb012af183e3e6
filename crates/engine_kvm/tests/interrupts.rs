//! Interrupts from outside: MSI, PIC, EOI, irqfd.

mod support;

use engine::{MsiMessage, VmExit};
use support::{Call, DONE, Machine, machine};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const HANDLER: u64 = 0x9000;
/// Enables the local APIC by its spurious vector register, then `sti; hlt; jmp $-1`.
const ENABLE_AND_HALT: [u8; 15] = [0xbb, 0, 0, 0xe0, 0xfe, 0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0];
const HALT: [u8; 4] = [0xfb, 0xf4, 0xeb, 0xfd];

fn halting(machine: &mut Machine, vector: u8) -> x86::CpuState {
    let state = machine.long_mode(&[&ENABLE_AND_HALT[..], &HALT].concat());
    machine.gate(vector, HANDLER);
    // mov [rbx+0xb0],eax (EOI); mov dx,DONE; out dx,al; iretq
    let handler = [0x89, 0x83, 0xb0, 0, 0, 0, 0x66, 0xba, DONE as u8, 0, 0xee, 0x48, 0xcf];
    machine.memory.write(HANDLER, &handler).unwrap();
    state
}

fn after_a_while(act: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        act();
    })
}

#[test]
fn an_msi_wakes_a_halted_processor() {
    let Some(mut machine) = machine() else { return };
    let state = halting(&mut machine, 0x41);
    let vm = machine.vm.clone();
    let sender = after_a_while(move || vm.signal_msi(MsiMessage { address: 0xfee0_0000, data: 0x41 }));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    sender.join().unwrap();
    assert_eq!(machine.io.take(), [], "an edge has no EOI to tell");
}

#[test]
fn the_end_of_a_level_interrupt_is_told() {
    let Some(mut machine) = machine() else { return };
    let state = halting(&mut machine, 0x42);
    let mut level = [false; 256];
    level[0x42] = true;
    machine.vm.set_level_vectors(&level);
    let vm = machine.vm.clone();
    let message = MsiMessage { address: 0xfee0_0000, data: 1 << 15 | 1 << 14 | 0x42 };
    let sender = after_a_while(move || vm.signal_msi(message));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    sender.join().unwrap();
    // A KVM that emulates many instructions in a row tells it only after them.
    let kicker = machine.vcpu.kicker();
    let stop = after_a_while(move || kicker.kick());
    assert_eq!(machine.resume(), VmExit::Kicked);
    stop.join().unwrap();
    assert_eq!(machine.io.take(), [Call::Eoi(0x42)]);
}

#[test]
fn the_pic_wakes_a_halted_processor() {
    let Some(mut machine) = machine() else { return };
    let state = halting(&mut machine, 0x21);
    *machine.io.pic_line.lock().unwrap() = Some(machine.vm.clone());
    let vm = machine.vm.clone();
    let sender = after_a_while(move || vm.set_pic_line(true));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    sender.join().unwrap();
    assert_eq!(machine.io.take(), [Call::AcknowledgePic]);
}

#[test]
fn the_pic_waits_until_interrupts_are_enabled() {
    let Some(mut machine) = machine() else { return };
    // A loop with interrupts off, then as before: the line is up all the time.
    let wait = [0xb9, 0xe8, 3, 0, 0, 0xff, 0xc9, 0x75, 0xfc];
    let state = halting(&mut machine, 0x21);
    machine.memory.write(support::CODE, &[&wait[..], &ENABLE_AND_HALT, &HALT].concat()).unwrap();
    *machine.io.pic_line.lock().unwrap() = Some(machine.vm.clone());
    machine.vm.set_pic_line(true);
    assert_eq!(machine.run(&state), VmExit::Kicked);
    assert_eq!(machine.io.take(), [Call::AcknowledgePic]);
    assert_eq!(machine.vcpu.state().unwrap().gprs[1], 0, "the loop ran to its end first");
}

#[test]
fn an_irqfd_reaches_the_processor_without_us() {
    let Some(mut machine) = machine() else { return };
    let state = halting(&mut machine, 0x43);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let bind = |vector| {
        let fd = event.borrow_fd();
        machine.vm.bind_irqfd(fd, Some(MsiMessage { address: 0xfee0_0000, data: vector }))
    };
    if !bind(0x55) {
        eprintln!("skipped: this KVM has no irqfd");
        return;
    }
    assert!(bind(0x43), "a route can change");
    let copy = event.try_clone().unwrap();
    let sender = after_a_while(move || copy.write(1).unwrap());
    assert_eq!(machine.run(&state), VmExit::Kicked);
    sender.join().unwrap();
    assert!(machine.vm.bind_irqfd(event.borrow_fd(), None));
}

#[test]
fn an_ioeventfd_takes_the_doorbell() {
    let Some(mut machine) = machine() else { return };
    // mov ebx,0xd0000000; mov [rbx],eax; mov [rbx+4],eax; mov dx,DONE; out dx,al
    let state = machine
        .long_mode(&[0xbb, 0, 0, 0, 0xd0, 0x89, 0x03, 0x89, 0x43, 4, 0x66, 0xba, DONE as u8, 0, 0xee, 0xf4]);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    if !machine.vm.bind_ioeventfd(event.borrow_fd(), 0xd000_0000, 4, true) {
        eprintln!("skipped: this KVM has no ioeventfd");
        return;
    }
    assert_eq!(machine.run(&state), VmExit::Kicked);
    assert_eq!(event.read().unwrap(), 1);
    assert!(matches!(machine.io.take()[..], [Call::Store(0xd000_0004, _)]));
    assert!(machine.vm.bind_ioeventfd(event.borrow_fd(), 0xd000_0000, 4, false));
    assert_eq!(machine.run(&state), VmExit::Kicked);
    assert_eq!(machine.io.take().len(), 2);
}

/// `EventFd` has no `AsFd`.
trait Borrow {
    fn borrow_fd(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl Borrow for EventFd {
    #[expect(unsafe_code, reason = "the only way to borrow a descriptor from this type")]
    fn borrow_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: the descriptor is open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}
