//! The GSI routing table: fictitious IOAPIC routes for EOIs, and one route for each irqfd.
//!
//! With the split irqchip KVM reports the EOI of a vector when a route on a reserved IOAPIC pin names that
//! vector as level-triggered and can reach the processor. Nobody raises these pins: the table is only the set
//! of vectors. Each is routed to every processor, so that it does not matter where the guest sends it.

use engine::MsiMessage;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry, kvm_irq_routing_msi};
use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// Level-triggered vectors that can be reported: the pins of one IOAPIC.
const LEVEL_PINS: u32 = 24;
/// Pins to reserve at `KVM_CAP_SPLIT_IRQCHIP`: one set that reaches everybody in xAPIC terms (destination
/// 0xff), one in x2APIC terms (0xffff_ffff), for machines where 0xff is an ordinary processor.
pub(crate) const RESERVED_PINS: u32 = 2 * LEVEL_PINS;

const MSI_BASE: u64 = 0xfee0_0000;
const XAPIC_EVERYBODY: u64 = MSI_BASE | 0xff << 12;
const X2APIC_EVERYBODY: u64 = 0xffff_ff00 << 32 | XAPIC_EVERYBODY;
/// Trigger mode bit of MSI data (SDM 3A 10.11.2).
const LEVEL: u32 = 1 << 15;

/// What is routed.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    level_vectors: Vec<u8>,
    irqfds: BTreeMap<RawFd, (u32, MsiMessage)>,
}

impl Routing {
    /// Takes over the level-triggered vectors; says whether something changed.
    pub(crate) fn set_level_vectors(&mut self, vectors: &[bool; 256]) -> bool {
        let new: Vec<u8> =
            (0..=255).filter(|&vector: &u8| vectors[usize::from(vector)]).take(LEVEL_PINS as usize).collect();
        let changed = new != self.level_vectors;
        self.level_vectors = new;
        changed
    }

    /// The GSI of an irqfd.
    pub(crate) fn gsi(&self, event: RawFd) -> Option<u32> {
        self.irqfds.get(&event).map(|(gsi, _)| *gsi)
    }

    /// Routes an event, on its old GSI if it has one. Returns the GSI.
    pub(crate) fn bind(&mut self, event: RawFd, message: MsiMessage) -> u32 {
        let gsi = self.gsi(event).unwrap_or_else(|| self.free_gsi());
        self.irqfds.insert(event, (gsi, message));
        gsi
    }

    /// Forgets an event.
    pub(crate) fn unbind(&mut self, event: RawFd) {
        self.irqfds.remove(&event);
    }

    fn free_gsi(&self) -> u32 {
        let taken = |gsi: &u32| self.irqfds.values().any(|(used, _)| used == gsi);
        (RESERVED_PINS..).find(|gsi| !taken(gsi)).unwrap_or(u32::MAX)
    }

    /// The table for `KVM_SET_GSI_ROUTING`. `many` says that processor 0xff exists.
    pub(crate) fn entries(&self, many: bool) -> Vec<kvm_irq_routing_entry> {
        let level = |address, vector: u8| MsiMessage { address, data: LEVEL | u32::from(vector) };
        let mut entries = Vec::new();
        for (pin, &vector) in (0..).zip(&self.level_vectors) {
            entries.push(entry(pin, level(XAPIC_EVERYBODY, vector)));
            if many {
                entries.push(entry(pin + LEVEL_PINS, level(X2APIC_EVERYBODY, vector)));
            }
        }
        entries.extend(self.irqfds.values().map(|(gsi, message)| entry(*gsi, *message)));
        entries
    }
}

/// High destination bits live in bits 31–8 of the high half; KVM refuses others.
pub(crate) fn address_hi(address: u64) -> u32 {
    (address >> 32) as u32 & 0xffff_ff00
}

fn entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: address_hi(message.address),
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_vectors_and_events_never_share_a_gsi() {
        let mut routing = Routing::default();
        let mut vectors = [false; 256];
        (0x30..0x60).for_each(|vector: usize| vectors[vector] = true);
        assert!(routing.set_level_vectors(&vectors));
        assert!(!routing.set_level_vectors(&vectors));
        let message = MsiMessage { address: MSI_BASE, data: 0x41 };
        assert_eq!(routing.bind(7, message), RESERVED_PINS);
        assert_eq!(routing.bind(8, message), RESERVED_PINS + 1);
        assert_eq!(routing.bind(7, message), RESERVED_PINS, "rebinding keeps the GSI");
        let mut gsis: Vec<u32> = routing.entries(true).iter().map(|entry| entry.gsi).collect();
        gsis.sort_unstable();
        assert_eq!(gsis, (0..RESERVED_PINS + 2).collect::<Vec<_>>());
        routing.unbind(7);
        assert_eq!(routing.bind(9, message), RESERVED_PINS, "a free GSI is used again");
    }
}
