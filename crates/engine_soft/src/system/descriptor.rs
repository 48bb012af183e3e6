//! Descriptors (SDM 3A 3.4.5, 5.8).

use crate::cpu::{Cpu, Fault, seg};
use x86::{Exception, Segment, SegmentAttributes, Vector};

/// A segment or system descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

/// Types of system descriptors (SDM 3A table 3-2).
pub mod system_type {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK: u8 = 5;
    pub const INTERRUPT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    pub const TSS: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL: u8 = 12;
    pub const INTERRUPT: u8 = 14;
    pub const TRAP: u8 = 15;
}

impl Descriptor {
    /// Attributes as the hidden part holds them.
    pub fn attributes(self) -> SegmentAttributes {
        SegmentAttributes((self.0 >> 40) as u16 & 0xf0ff)
    }
    /// Base, 32 bits.
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }
    /// Limit in bytes.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.attributes().granular() { raw << 12 | 0xfff } else { raw }
    }
    /// Type.
    pub fn kind(self) -> u8 {
        self.attributes().kind()
    }
    /// Privilege level.
    pub fn dpl(self) -> u8 {
        self.attributes().dpl()
    }
    /// Present.
    pub fn present(self) -> bool {
        self.attributes().present()
    }
    /// Code segment.
    pub fn is_code(self) -> bool {
        self.attributes().is_code_or_data() && self.kind() & 8 != 0
    }
    /// Conforming code segment.
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    /// Writable data segment.
    pub fn is_writable_data(self) -> bool {
        self.attributes().is_code_or_data() && self.kind() & 0xa == 2
    }
    /// Data, or code that can be read.
    pub fn is_readable(self) -> bool {
        self.attributes().is_code_or_data() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    /// System descriptor.
    pub fn is_system(self) -> bool {
        !self.attributes().is_code_or_data()
    }
    /// Whether both 64-bit code and 32-bit default size are asked for: reserved in IA-32e mode.
    pub fn has_long_and_big(self) -> bool {
        self.attributes().long() && self.attributes().big()
    }
    /// Gate: selector.
    pub fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// Gate: offset, 32 bits.
    pub fn gate_offset(self) -> u64 {
        self.0 & 0xffff | self.0 >> 32 & 0xffff_0000
    }
    /// The register contents of a segment with this descriptor.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), attributes: self.attributes() }
    }
}

/// Error-code form of a selector.
pub fn code_of(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// Whether a selector is null.
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Cpu {
    /// `#NP(code)`.
    pub(crate) fn np(&mut self, code: u32) -> Fault {
        self.raise(Exception::with_code(Vector::SegmentNotPresent, code))
    }
    /// `#TS(code)`.
    pub(crate) fn ts(&mut self, code: u32) -> Fault {
        self.raise(Exception::with_code(Vector::InvalidTss, code))
    }

    /// Linear address of `len` bytes of a selector's descriptor; `None` beyond the table.
    pub(crate) fn descriptor_address(&self, selector: u16, len: u32) -> Option<u64> {
        let index = u32::from(selector & !7);
        let (base, limit) = if selector & 4 != 0 {
            let ldt = self.segments[usize::from(seg::LDTR)];
            if !ldt.attributes.present() || is_null(ldt.selector) {
                return None;
            }
            (ldt.base, ldt.limit)
        } else {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        };
        (index + len - 1 <= limit).then(|| base.wrapping_add(u64::from(index)))
    }

    /// A selector's descriptor; `None` beyond the table.
    pub(crate) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Fault> {
        match self.descriptor_address(selector, 8) {
            Some(address) => Ok(Some(Descriptor(self.system_load(address)?))),
            None => Ok(None),
        }
    }

    /// A selector's descriptor, or `#GP(selector | ext)`.
    pub(crate) fn descriptor(&mut self, selector: u16, ext: u32) -> Result<Descriptor, Fault> {
        match self.find_descriptor(selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.gp(code_of(selector) | ext)),
        }
    }

    /// Bits 32–63 of the base, or offset, of a 16-byte descriptor; `#GP(selector | ext)` beyond the table or
    /// if the upper type field is not zero.
    pub(crate) fn descriptor_upper(&mut self, selector: u16, ext: u32) -> Result<u64, Fault> {
        let Some(address) = self.descriptor_address(selector, 16) else {
            return Err(self.gp(code_of(selector) | ext));
        };
        let upper = self.system_load::<u64>(address.wrapping_add(8))?;
        if upper >> 40 & 0x1f != 0 {
            return Err(self.gp(code_of(selector) | ext));
        }
        Ok(upper << 32)
    }

    /// Sets the accessed bit of a code or data segment's descriptor, in memory and in the returned copy.
    pub(crate) fn mark_accessed(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
    ) -> Result<Descriptor, Fault> {
        if descriptor.kind() & 1 != 0 {
            return Ok(descriptor);
        }
        self.set_descriptor_type(selector, descriptor, descriptor.kind() | 1)
    }

    /// Changes a descriptor's type (accessed and busy bits).
    pub(crate) fn set_descriptor_type(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        kind: u8,
    ) -> Result<Descriptor, Fault> {
        let changed = Descriptor(descriptor.0 & !(0xf << 40) | u64::from(kind) << 40);
        if let Some(address) = self.descriptor_address(selector, 8) {
            self.system_store::<u8>(address.wrapping_add(5), (changed.0 >> 40) as u8)?;
        }
        Ok(changed)
    }

    /// A stack segment for privilege `cpl`: every fault is `fault(selector)`, a null selector's too, but not present is
    /// `#SS`.
    pub(crate) fn stack_descriptor(
        &mut self,
        selector: u16,
        cpl: u8,
        ext: u32,
        fault: Vector,
    ) -> Result<Descriptor, Fault> {
        let bad = Exception::with_code(fault, code_of(selector) | ext);
        let found = if is_null(selector) { None } else { self.find_descriptor(selector)? };
        let Some(descriptor) = found else { return Err(self.raise(bad)) };
        if selector as u8 & 3 != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return Err(self.raise(bad));
        }
        if !descriptor.present() {
            return Err(self.ss(code_of(selector) | ext));
        }
        Ok(descriptor)
    }
}
