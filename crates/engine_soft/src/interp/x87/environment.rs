//! FNSTENV, FLDENV, FNSAVE and FRSTOR: the formats that predate FXSAVE (SDM 1 8.1.10, figures 8-9 to 8-12).
//!
//! ```text
//!          32-bit protected    32-bit real          16-bit protected  16-bit real
//!  word 0  FCW                 FCW                  FCW               FCW
//!  word 1  FSW                 FSW                  FSW               FSW
//!  word 2  FTW                 FTW                  FTW               FTW
//!  word 3  FIP                 FIP 15:0             FIP 15:0          FIP 15:0
//!  word 4  FOP << 16 | FCS     FIP 31:16<<12 | FOP  FCS               FIP 19:16<<12 | FOP
//!  word 5  FDP                 FDP 15:0             FDP 15:0          FDP 15:0
//!  word 6  FDS                 FDP 31:16<<12        FDS               FDP 19:16<<12
//! ```
//! A word takes two or four bytes; FNSAVE appends ST0–7, ten bytes each. FCS and FDS are zero.

use super::exec::{available, waiting};
use super::image::{EXCEPTIONS, FpuState};
use super::stubs;
use crate::cpu::{Cpu, Fault, Flow};
use crate::insn::Insn;

/// Bytes of the longest form.
const MAX_LEN: usize = 108;
/// Bytes of the registers.
const REGISTERS_LEN: usize = 80;

/// How an environment is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// 32-bit operand size.
    pub wide: bool,
    /// Protected mode (not virtual-8086).
    pub protected: bool,
}

impl Layout {
    fn of(cpu: &Cpu, insn: &Insn) -> Self {
        // The memory operand has 14 or 28 bytes, or 94 or 108 with registers.
        Layout { wide: matches!(insn.extra, 28 | 108), protected: cpu.is_protected() }
    }

    /// Bytes of the environment.
    pub(super) fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// Builds the environment.
    pub(super) fn encode(self, image: &FpuState, bytes: &mut [u8; MAX_LEN]) {
        let (fip, fdp, fop) = (image.fip() as u32, image.fdp() as u32, u32::from(image.fop()));
        let words = [
            u32::from(image.fcw()),
            u32::from(image.fsw()),
            u32::from(image.full_tags()),
            if self.wide && self.protected { fip } else { fip & 0xffff },
            match (self.wide, self.protected) {
                (true, true) => fop << 16,
                (false, true) => 0,
                (true, false) => (fip >> 16) << 12 | fop,
                (false, false) => (fip >> 16 & 0xf) << 12 | fop,
            },
            if self.wide && self.protected { fdp } else { fdp & 0xffff },
            match (self.wide, self.protected) {
                (_, true) => 0,
                (true, false) => (fdp >> 16) << 12,
                (false, false) => (fdp >> 16 & 0xf) << 12,
            },
        ];
        for (index, word) in words.into_iter().enumerate() {
            if self.wide {
                // The upper halves of words that hold 16 bits read as ones.
                let reserved =
                    if self.protected { matches!(index, 0..=2 | 6) } else { matches!(index, 0..=3 | 5) };
                let word = if reserved { word | 0xffff_0000 } else { word };
                bytes[4 * index..][..4].copy_from_slice(&word.to_le_bytes());
            } else {
                bytes[2 * index..][..2].copy_from_slice(&(word as u16).to_le_bytes());
            }
        }
    }

    /// Loads the environment.
    pub(super) fn decode(self, bytes: &[u8; MAX_LEN], image: &mut FpuState) {
        let word = |index: usize| {
            let stride = if self.wide { 4 } else { 2 };
            let at = stride * index;
            let low = u32::from(bytes[at]) | u32::from(bytes[at + 1]) << 8;
            if self.wide {
                low | u32::from(bytes[at + 2]) << 16 | u32::from(bytes[at + 3]) << 24
            } else {
                low
            }
        };
        let top = usize::from(word(1) as u16 >> 11 & 7);
        image.rotate_to(top);
        image.set_fcw(word(0) as u16);
        image.set_fsw(word(1) as u16);
        image.set_full_tags(word(2) as u16);
        let high = |index| if self.wide { word(index) >> 12 & 0xffff } else { word(index) >> 12 & 0xf };
        let (fip, fdp, fop) = match (self.wide, self.protected) {
            (true, true) => (word(3), word(5), word(4) >> 16),
            (false, true) => (word(3), word(5), 0),
            _ => (word(3) & 0xffff | high(4) << 16, word(5) & 0xffff | high(6) << 16, word(4)),
        };
        image.set_fip(u64::from(fip));
        image.set_fdp(u64::from(fdp));
        image.set_fop(fop as u16);
        stubs::normalise(image);
    }
}

fn write(cpu: &mut Cpu, insn: &Insn, bytes: &[u8]) -> Result<(), Fault> {
    let base = cpu.address(insn);
    probe(cpu, insn, base, bytes.len(), true)?;
    for (at, pair) in bytes.chunks_exact(2).enumerate() {
        let offset = cpu.part(insn, base, 2 * at);
        cpu.store::<[u8; 2]>(insn.segment, offset, [pair[0], pair[1]])?;
    }
    Ok(())
}

/// Faults as silicon does: it touches the first word, then the last byte, then the others. Where alignment is checked,
/// it is that of the words, after the segment's limit for the first of them.
fn probe(cpu: &mut Cpu, insn: &Insn, base: u64, len: usize, write: bool) -> Result<(), Fault> {
    let word = if matches!(len, 28 | 108) { 4 } else { 2 };
    let linear = cpu.linear_of(insn.segment, base, if cpu.long64 { 1 } else { word as u32 }, write)?;
    cpu.check_operand_alignment(linear, word)?;
    cpu.probe(insn.segment, base, word as u32, write)?;
    cpu.probe(insn.segment, cpu.part(insn, base, len - 1), 1, write)?;
    cpu.probe(insn.segment, base, len as u32, write)
}

fn read(cpu: &mut Cpu, insn: &Insn, bytes: &mut [u8]) -> Result<(), Fault> {
    let base = cpu.address(insn);
    probe(cpu, insn, base, bytes.len(), false)?;
    for (at, pair) in bytes.chunks_exact_mut(2).enumerate() {
        let offset = cpu.part(insn, base, 2 * at);
        pair.copy_from_slice(&cpu.load::<[u8; 2]>(insn.segment, offset)?);
    }
    Ok(())
}

/// FNSTENV: stores, then masks all exceptions.
pub(super) fn fnstenv(cpu: &mut Cpu, insn: &Insn) -> Flow {
    available(cpu)?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; MAX_LEN];
    layout.encode(&cpu.fpu, &mut bytes);
    write(cpu, insn, &bytes[..layout.len()])?;
    cpu.fpu.set_fcw(cpu.fpu.fcw() | EXCEPTIONS);
    cpu.fpu.update_error_summary();
    Ok(())
}

/// FLDENV.
pub(super) fn fldenv(cpu: &mut Cpu, insn: &Insn) -> Flow {
    waiting(cpu)?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; MAX_LEN];
    read(cpu, insn, &mut bytes[..layout.len()])?;
    layout.decode(&bytes, &mut cpu.fpu);
    Ok(())
}

/// FNSAVE: stores, then initialises.
pub(super) fn fnsave(cpu: &mut Cpu, insn: &Insn) -> Flow {
    available(cpu)?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; MAX_LEN];
    layout.encode(&cpu.fpu, &mut bytes);
    let start = layout.len();
    for index in 0..8 {
        bytes[start + 10 * index..][..10].copy_from_slice(&cpu.fpu.st(index));
    }
    write(cpu, insn, &bytes[..start + REGISTERS_LEN])?;
    cpu.fpu.init();
    Ok(())
}

/// FRSTOR.
pub(super) fn frstor(cpu: &mut Cpu, insn: &Insn) -> Flow {
    waiting(cpu)?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; MAX_LEN];
    let start = layout.len();
    read(cpu, insn, &mut bytes[..start + REGISTERS_LEN])?;
    layout.decode(&bytes, &mut cpu.fpu);
    for index in 0..8 {
        let mut value = [0; 10];
        value.copy_from_slice(&bytes[start + 10 * index..][..10]);
        cpu.fpu.set_st(index, &value);
    }
    Ok(())
}
