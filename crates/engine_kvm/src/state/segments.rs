//! Segment registers.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use x86::{CpuState, DescriptorTable, Segment, SegmentAttributes, Segments};

const PRESENT: u16 = 1 << 7;

fn attributes(segment: &kvm_segment) -> SegmentAttributes {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let present = if segment.unusable != 0 { 0 } else { segment.present };
    SegmentAttributes(
        u16::from(segment.type_ & 0xf)
            | bit(segment.s, 4)
            | u16::from(segment.dpl & 3) << 5
            | bit(present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15),
    )
}

fn from_kvm(segment: &kvm_segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: attributes(segment),
    }
}

fn to_kvm(segment: &Segment) -> kvm_segment {
    let bits = segment.attributes.0;
    let bit = |at: u32| (bits >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.attributes.kind(),
        present: bit(7),
        dpl: segment.attributes.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(bits & PRESENT == 0),
        ..Default::default()
    }
}

fn table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: table.base, limit: table.limit }
}

/// Takes segments and descriptor tables out of KVM's registers.
pub(super) fn read(sregs: &kvm_sregs, state: &mut CpuState) {
    state.segments = Segments {
        es: from_kvm(&sregs.es),
        cs: from_kvm(&sregs.cs),
        ss: from_kvm(&sregs.ss),
        ds: from_kvm(&sregs.ds),
        fs: from_kvm(&sregs.fs),
        gs: from_kvm(&sregs.gs),
        ldtr: from_kvm(&sregs.ldt),
        tr: from_kvm(&sregs.tr),
    };
    state.gdtr = table(&sregs.gdt);
    state.idtr = table(&sregs.idt);
}

/// Puts segments and descriptor tables into KVM's registers.
pub(super) fn write(state: &CpuState, sregs: &mut kvm_sregs) {
    let Segments { es, cs, ss, ds, fs, gs, ldtr, tr } = &state.segments;
    sregs.es = to_kvm(es);
    sregs.cs = to_kvm(cs);
    sregs.ss = to_kvm(ss);
    sregs.ds = to_kvm(ds);
    sregs.fs = to_kvm(fs);
    sregs.gs = to_kvm(gs);
    sregs.ldt = to_kvm(ldtr);
    sregs.tr = to_kvm(tr);
    sregs.gdt = kvm_dtable { base: state.gdtr.base, limit: state.gdtr.limit, ..Default::default() };
    sregs.idt = kvm_dtable { base: state.idtr.base, limit: state.idtr.limit, ..Default::default() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_the_descriptor_bits_40_to_55() {
        // A flat 64-bit code descriptor as it stands in a GDT.
        let descriptor: u64 = 0x00af_9b00_0000_ffff;
        let bits = (descriptor >> 40) as u16 & 0xf0ff;
        let segment =
            Segment { selector: 8, base: 0, limit: 0xffff_ffff, attributes: SegmentAttributes(bits) };
        let kvm = to_kvm(&segment);
        assert_eq!((kvm.type_, kvm.s, kvm.dpl, kvm.present), (0xb, 1, 0, 1));
        assert_eq!((kvm.avl, kvm.l, kvm.db, kvm.g, kvm.unusable), (0, 1, 0, 1, 0));
        assert_eq!(from_kvm(&kvm), segment);
    }

    #[test]
    fn a_null_selector_is_unusable() {
        let kvm = to_kvm(&Segment::default());
        assert_eq!(kvm.unusable, 1);
        assert!(!from_kvm(&kvm).attributes.present());
    }
}
