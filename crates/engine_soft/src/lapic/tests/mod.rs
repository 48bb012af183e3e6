mod tables;

use super::register as r;
use super::*;
use engine::MsiMessage;

fn machine(cpus: u32) -> (Arc<ApicBus>, Vec<Lapic>) {
    let bus = Arc::new(ApicBus::new(cpus));
    let mut lapics: Vec<_> = (0..cpus).map(|index| Lapic::new(&bus, index).unwrap()).collect();
    for lapic in &mut lapics {
        lapic.write(r::SVR, 0x1ff, 0);
    }
    (bus, lapics)
}

fn requested(lapic: &Lapic, vector: u8) -> bool {
    lapic.read(r::IRR + u32::from(vector >> 5), 0).unwrap() >> (vector & 31) & 1 != 0
}

fn msi(destination: u64, logical: bool, data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000 | destination << 12 | u64::from(logical) << 2, data }
}

#[test]
fn priorities_nest_and_equal_classes_wait() {
    let (bus, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    for vector in [0x31, 0x41, 0x45] {
        bus.deliver_msi(msi(0, false, vector));
    }
    assert_eq!(lapic.acknowledge(), Some(0x45));
    assert_eq!(lapic.read(r::PPR, 0), Some(0x40));
    assert_eq!(lapic.acknowledge(), None, "same class as the one in service");
    bus.deliver_msi(msi(0, false, 0x51));
    assert_eq!(lapic.acknowledge(), Some(0x51));
    assert_eq!(lapic.write(r::EOI, 0, 0), None);
    assert_eq!(lapic.write(r::EOI, 0, 0), None);
    lapic.set_cr8(4);
    assert_eq!(lapic.acknowledge(), None, "task priority class 4 blocks vector 0x41");
    lapic.set_cr8(3);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    lapic.write(r::EOI, 0, 0);
    lapic.write(r::TPR, 0, 0);
    assert_eq!(lapic.acknowledge(), Some(0x31));
}

#[test]
fn events_tell_of_deliverable_interrupts() {
    let (bus, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    lapic.set_cr8(15);
    bus.deliver_msi(msi(0, false, 0x80));
    lapic.port().events.store(0, Ordering::SeqCst);
    lapic.set_cr8(0);
    assert_ne!(lapic.port().events.load(Ordering::SeqCst) & event::INTR, 0);
}

#[test]
fn logical_destinations_flat_and_cluster() {
    let (bus, mut cpus) = machine(3);
    for (number, lapic) in cpus.iter_mut().enumerate() {
        lapic.write(r::LDR, 1 << (24 + number), 0);
    }
    bus.deliver_msi(msi(0b101, true, 0x40));
    assert_eq!(cpus.iter().map(|lapic| requested(lapic, 0x40)).collect::<Vec<_>>(), [true, false, true]);
    for (lapic, id) in cpus.iter_mut().zip([0x11, 0x12, 0x21_u32]) {
        lapic.write(r::DFR, 0, 0);
        lapic.write(r::LDR, id << 24, 0);
    }
    bus.deliver_msi(msi(0x13, true, 0x41));
    assert_eq!(cpus.iter().map(|lapic| requested(lapic, 0x41)).collect::<Vec<_>>(), [true, true, false]);
    bus.deliver_msi(msi(0xff, false, 0x42));
    assert!(cpus.iter().all(|lapic| requested(lapic, 0x42)));
}

#[test]
fn lowest_priority_goes_to_the_idle_one() {
    let (bus, mut cpus) = machine(2);
    cpus[0].set_cr8(5);
    bus.deliver_msi(msi(0xff, false, 0x150));
    assert_eq!((requested(&cpus[0], 0x50), requested(&cpus[1], 0x50)), (false, true));
}

#[test]
fn shorthands() {
    let (_, mut cpus) = machine(3);
    let sent = |cpus: &[Lapic], vector| cpus.iter().map(|lapic| requested(lapic, vector)).collect::<Vec<_>>();
    cpus[1].write(r::ICR, 0x4_0050, 0);
    assert_eq!(sent(&cpus, 0x50), [false, true, false]);
    cpus[1].write(r::ICR, 0x8_0051, 0);
    assert_eq!(sent(&cpus, 0x51), [true; 3]);
    cpus[1].write(r::ICR, 0xc_0052, 0);
    assert_eq!(sent(&cpus, 0x52), [true, false, true]);
    cpus[1].write(r::ICR_HIGH, 2 << 24, 0);
    cpus[1].write(r::ICR, 0x53, 0);
    assert_eq!(sent(&cpus, 0x53), [false, false, true]);
}

#[test]
fn init_and_start_up_reach_the_event_word() {
    let (_, mut cpus) = machine(2);
    cpus[0].write(r::ICR_HIGH, 1 << 24, 0);
    cpus[0].write(r::ICR, 0xc500, 0);
    let take = |lapic: &Lapic| lapic.port().events.swap(0, Ordering::SeqCst);
    assert_eq!(take(&cpus[1]), event::INIT);
    cpus[0].write(r::ICR, 0x8500, 0);
    assert_eq!(take(&cpus[1]), 0, "level de-assert is ignored");
    cpus[0].write(r::ICR, 0x4699, 0);
    assert_eq!((take(&cpus[1]), cpus[1].start_vector()), (event::SIPI, 0x99));
}

#[test]
fn level_interrupts_are_reported_at_eoi() {
    let (bus, mut cpus) = machine(1);
    bus.deliver_msi(msi(0, false, 0x8060));
    assert_eq!(cpus[0].acknowledge(), Some(0x60));
    assert_eq!(cpus[0].write(r::EOI, 0, 0), Some(0x60));
    bus.deliver_msi(msi(0, false, 0x60));
    assert_eq!(cpus[0].acknowledge(), Some(0x60));
    assert_eq!(cpus[0].write(r::EOI, 0, 0), None);
}

#[test]
fn timer_counts_with_the_divider() {
    let (_, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    lapic.write(r::LVT_TIMER, 0x2_0040, 0);
    lapic.write(r::TIMER_DIVIDE, 0x3, 1000); // divide by 16
    lapic.write(r::TIMER_INITIAL, 100, 1000);
    assert_eq!(lapic.read(r::TIMER_CURRENT, 1160), Some(90));
    assert_eq!(lapic.advance(2599), Some(2600));
    assert!(!requested(lapic, 0x40));
    assert_eq!(lapic.advance(2600), Some(4200));
    assert!(requested(lapic, 0x40));
    assert_eq!(lapic.advance(1000 + 1600 * 10 + 5), Some(1000 + 1600 * 11), "missed periods are skipped");
    lapic.write(r::TIMER_DIVIDE, 0xb, 20_000); // divide by 1
    lapic.write(r::LVT_TIMER, 0x40, 20_000);
    lapic.write(r::TIMER_INITIAL, 100, 20_000);
    assert_eq!(lapic.advance(20_100), None, "one shot");
    assert_eq!(lapic.read(r::TIMER_CURRENT, 20_200), Some(0));
}

#[test]
fn tsc_deadline_fires_once() {
    let (_, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    lapic.set_tsc_deadline(500, Some(500));
    assert_eq!(lapic.tsc_deadline(), 0, "ignored in another mode");
    lapic.write(r::LVT_TIMER, 0x4_0040, 0);
    lapic.set_tsc_deadline(500, Some(500));
    assert_eq!(lapic.advance(499), Some(500));
    assert_eq!(lapic.advance(500), None);
    assert!(requested(lapic, 0x40));
    assert_eq!(lapic.tsc_deadline(), 0);
}

#[test]
fn software_disable_masks_and_drops() {
    let (bus, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    lapic.write(r::LVT_TIMER, 0x40, 0);
    lapic.write(r::SVR, 0xff, 0);
    assert_eq!(lapic.read(r::LVT_TIMER, 0), Some(0x1_0040));
    lapic.write(r::LVT_TIMER, 0x40, 0);
    assert_eq!(lapic.read(r::LVT_TIMER, 0), Some(0x1_0040), "the mask cannot be cleared");
    bus.deliver_msi(msi(0, false, 0x40));
    assert!(!requested(lapic, 0x40));
}

#[test]
fn base_allows_only_legal_transitions() {
    let (_, mut cpus) = machine(20);
    let lapic = &mut cpus[19];
    let page = 0xfee0_0000;
    let mut set = |bits: u64| lapic.set_base(page | bits, 46, true).is_ok();
    assert!(!set(base::X2APIC));
    assert!(set(base::ENABLE | base::X2APIC));
    assert!(!set(base::ENABLE));
    assert!(set(0));
    assert!(!set(base::ENABLE | base::X2APIC));
    assert!(set(base::ENABLE));
    assert!(!set(base::ENABLE | 1 << 46));
    assert!(set(base::ENABLE | base::X2APIC));
    assert_eq!(lapic.read_msr(r::ID, 0), Ok(19));
    assert_eq!(lapic.read_msr(r::LDR, 0), Ok(1 << 16 | 1 << 3));
    assert_eq!(lapic.read_msr(r::DFR, 0), Err(Rejected));
    assert_eq!(lapic.write_msr(r::ID, 0, 0), Err(Rejected));
    assert_eq!(lapic.write_msr(r::EOI, 1, 0), Err(Rejected));
    assert_eq!(lapic.write_msr(r::SELF_IPI, 0x70, 0), Ok(None));
}

#[test]
fn illegal_vectors_are_errors() {
    let (bus, mut cpus) = machine(1);
    cpus[0].write(r::LVT_ERROR, 0x45, 0);
    cpus[0].write(r::ICR, 0x4_0005, 0);
    assert!(requested(&cpus[0], 0x45));
    bus.deliver_msi(msi(0, false, 0x05));
    cpus[0].write(r::ESR, 0, 0);
    assert_eq!(cpus[0].read(r::ESR, 0), Some(0x60));
}

#[test]
fn state_survives_a_round_trip() {
    let (bus, mut cpus) = machine(1);
    let lapic = &mut cpus[0];
    bus.deliver_msi(msi(0, false, 0x8060));
    bus.deliver_msi(msi(0, false, 0x41));
    lapic.acknowledge();
    lapic.write(r::LVT_TIMER, 0x2_0040, 0);
    lapic.write(r::TIMER_DIVIDE, 0xb, 0);
    lapic.write(r::TIMER_INITIAL, 1000, 0);
    let saved = lapic.save(300);
    let (_, mut others) = machine(1);
    others[0].load(&saved, lapic.base(), 5000);
    assert_eq!(others[0].save(5000), saved);
    assert_eq!(others[0].advance(5000), Some(5700));
}
