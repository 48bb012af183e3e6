//! Control and debug registers (SDM 2B MOV CRn, SDM 3A 2.5, 17.2).

use crate::cpu::{Cpu, Fault, Flow, Stop, seg};
use crate::insn::Insn;
use engine::cpu_model::{CpuidTable, FeatureSet};
use x86::{Cr0, Cr4, Efer, Exception, Vector};

/// Which bits of the control registers the model has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub cr4: Cr4,
    pub efer: Efer,
    pub xcr0: u64,
}

impl Allowed {
    /// From the model's features.
    pub fn of(features: FeatureSet, cpuid: &CpuidTable) -> Self {
        let list = [
            ("vme", Cr4::VME.union(Cr4::PVI)),
            ("tsc", Cr4::TSD),
            ("de", Cr4::DE),
            ("pse", Cr4::PSE),
            ("pae", Cr4::PAE),
            ("mce", Cr4::MCE),
            ("pge", Cr4::PGE),
            ("fxsr", Cr4::OSFXSR),
            ("sse", Cr4::OSXMMEXCPT),
            ("umip", Cr4::UMIP),
            ("la57", Cr4::LA57),
            ("fsgsbase", Cr4::FSGSBASE),
            ("pcid", Cr4::PCIDE),
            ("xsave", Cr4::OSXSAVE),
            ("smep", Cr4::SMEP),
            ("smap", Cr4::SMAP),
            ("pku", Cr4::PKE),
        ];
        let offered = list.iter().filter(|entry| features.has(entry.0));
        let cr4 = offered.fold(Cr4::PCE, |bits, entry| bits | entry.1);
        let mut efer = Efer::empty();
        efer.set(Efer::SCE, features.has("syscall"));
        efer.set(Efer::LME | Efer::LMA, features.has("lm"));
        efer.set(Efer::NXE, features.has("nx"));
        Allowed { cr4, efer, xcr0: cpuid.xcr0_mask() }
    }
}

/// DR6.BD: a debug register was accessed under DR7.GD.
const DR6_ACCESS: u64 = 1 << 13;
/// DR6 bits that are always one.
const DR6_FIXED: u64 = 0xffff_0ff0;
/// CR3 bits of the address, above bit 12.
const CR3_NO_FLUSH: u64 = 1 << 63;

fn require_supervisor(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// MOV from a control register.
pub fn mov_from_cr(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let value = match insn.src {
        0 => cpu.cr0.bits(),
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4.bits(),
        8 => match &cpu.system.lapic {
            Some(lapic) => lapic.cr8(),
            None => return leave_apic(cpu),
        },
        _ => return Err(cpu.ud().into()),
    };
    cpu.write_gpr(insn.dst, if insn.code_size() == 64 { 8 } else { 4 }, value);
    Ok(())
}

/// The instruction belongs to whoever has the local APIC; nothing has changed.
pub(super) fn leave_apic(cpu: &mut Cpu) -> Flow {
    cpu.leave_to_owner_of_apic();
    Err(Stop::Exit)
}

/// MOV to a control register.
pub fn mov_to_cr(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let value = cpu.read_gpr(insn.src, if insn.code_size() == 64 { 8 } else { 4 });
    match insn.dst {
        0 => cpu.set_cr0(value)?,
        2 => cpu.cr2 = value,
        3 => cpu.set_cr3(value)?,
        4 => cpu.set_cr4(value)?,
        8 => {
            if value > 15 {
                return Err(cpu.gp(0).into());
            }
            match &mut cpu.system.lapic {
                Some(lapic) => lapic.set_cr8(value),
                None => return leave_apic(cpu),
            }
        }
        _ => return Err(cpu.ud().into()),
    }
    Err(Stop::Done)
}

impl Cpu {
    /// Writes CR0 with all that hangs on it.
    pub(crate) fn set_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let known = Cr0::all().bits();
        let new = Cr0::from_bits_truncate(value) | Cr0::ET;
        let old = self.cr0;
        let illegal = new.contains(Cr0::PG) && !new.contains(Cr0::PE)
            || new.contains(Cr0::NW) && !new.contains(Cr0::CD)
            || value & !known >> 32 << 32 != 0;
        if illegal {
            return Err(self.gp(0));
        }
        let cs = self.segments[usize::from(seg::CS)].attributes;
        let mut efer = self.efer;
        if new.contains(Cr0::PG) && !old.contains(Cr0::PG) && efer.contains(Efer::LME) {
            // A 16-bit TSS has no place in IA-32e mode (SDM 3A 9.8.5).
            let small_task = self.segments[usize::from(seg::TR)].attributes.kind() & 0xd == 1;
            if !self.cr4.contains(Cr4::PAE) || cs.long() || small_task {
                return Err(self.gp(0));
            }
            efer |= Efer::LMA;
        } else if !new.contains(Cr0::PG) && old.contains(Cr0::PG) {
            if self.long64 || self.cr4.contains(Cr4::PCIDE) {
                return Err(self.gp(0));
            }
            efer -= Efer::LMA;
        }
        let pae = new.contains(Cr0::PG) && self.cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA);
        let loads = Cr0::PG | Cr0::CD | Cr0::NW;
        if pae && (old ^ new).intersects(loads) {
            self.load_pdptes(self.cr3)?;
        }
        (self.cr0, self.efer) = (new, efer);
        if (old ^ new).contains(Cr0::PE) {
            self.cpl = 0;
        }
        if (old ^ new).intersects(Cr0::PG | Cr0::WP | Cr0::PE) {
            self.flush_tlb(false);
        }
        self.mode_changed();
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), Fault> {
        let pcid = self.cr4.contains(Cr4::PCIDE);
        let keep = pcid && value & CR3_NO_FLUSH != 0;
        let value = if pcid { value & !CR3_NO_FLUSH } else { value };
        if self.is_long() && value >> self.system.physical_bits != 0 {
            return Err(self.gp(0));
        }
        if self.is_pae_paging() {
            self.load_pdptes(value)?;
        }
        self.cr3 = value;
        self.cr3_loaded(keep);
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), Fault> {
        let new = Cr4::from_bits_retain(value);
        let old = self.cr4;
        let changed = old ^ new;
        let sets_pcid = changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE);
        let illegal = !self.system.allowed.cr4.contains(new)
            || self.is_long() && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57))
            || sets_pcid && (!self.is_long() || self.cr3 & 0xfff != 0);
        if illegal {
            return Err(self.gp(0));
        }
        let paging = Cr4::PAE | Cr4::PSE | Cr4::PGE | Cr4::SMEP;
        let pae = self.cr0.contains(Cr0::PG) && new.contains(Cr4::PAE) && !self.is_long();
        if pae && changed.intersects(paging) {
            self.load_pdptes(self.cr3)?;
        }
        self.cr4 = new;
        if changed.intersects(paging | Cr4::PCIDE | Cr4::SMAP | Cr4::LA57 | Cr4::PKE) {
            self.flush_tlb(false);
        }
        self.mode_changed();
        Ok(())
    }
}

/// LMSW: PE can be set, not cleared.
pub fn lmsw(cpu: &mut Cpu, insn: &Insn) -> Flow {
    require_supervisor(cpu)?;
    let value = if insn.has_memory() { cpu.load_operand::<u16>(insn)? } else { cpu.reg::<u16>(insn.dst) };
    let keep = cpu.cr0.bits() & !0xe;
    cpu.set_cr0(keep | u64::from(value & 0xf))?;
    Err(Stop::Done)
}

/// CLTS.
pub fn clts(cpu: &mut Cpu, _: &Insn) -> Flow {
    require_supervisor(cpu)?;
    cpu.cr0 -= Cr0::TS;
    cpu.mode_changed();
    Err(Stop::Done)
}

/// Checks of MOV DR: privilege, DR4 and DR5, general detect.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<u8, Fault> {
    let number = match number {
        4 | 5 if cpu.cr4.contains(Cr4::DE) => return Err(cpu.ud()),
        4 | 5 => number + 2,
        0..8 => number,
        _ => return Err(cpu.ud()),
    };
    require_supervisor(cpu)?;
    if cpu.dr7 & 1 << 13 != 0 {
        return Err(cpu.raise(Exception { vector: Vector::Debug, error_code: 0, payload: DR6_ACCESS }));
    }
    Ok(number)
}

/// MOV from a debug register.
pub fn mov_from_dr(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let value = match debug_register(cpu, insn.src)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        number => cpu.dr[usize::from(number & 3)],
    };
    cpu.write_gpr(insn.dst, if insn.code_size() == 64 { 8 } else { 4 }, value);
    Ok(())
}

/// MOV to a debug register.
pub fn mov_to_dr(cpu: &mut Cpu, insn: &Insn) -> Flow {
    let number = debug_register(cpu, insn.dst)?;
    let value = cpu.read_gpr(insn.src, if insn.code_size() == 64 { 8 } else { 4 });
    if number >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0).into());
    }
    match number {
        6 => cpu.dr6 = value & 0xe00f | DR6_FIXED,
        7 => cpu.dr7 = value & 0xffff_2bff | 0x400,
        _ => cpu.dr[usize::from(number & 3)] = value,
    }
    cpu.update_translation_mode();
    Err(Stop::Done)
}

/// XSETBV.
pub fn xsetbv(cpu: &mut Cpu, _: &Insn) -> Flow {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.ud().into());
    }
    require_supervisor(cpu)?;
    let value = u64::from(cpu.regs[2] as u32) << 32 | u64::from(cpu.regs[0] as u32);
    let avx_without_sse = value & 6 == 4;
    if cpu.regs[1] as u32 != 0 || value & 1 == 0 || avx_without_sse || value & !cpu.system.allowed.xcr0 != 0 {
        return Err(cpu.gp(0).into());
    }
    cpu.xcr0 = value;
    Err(Stop::Done)
}

/// XGETBV: XCR0, and XCR0 & XINUSE as register 1.
pub fn xgetbv(cpu: &mut Cpu, _: &Insn) -> Flow {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.ud().into());
    }
    let value = match cpu.regs[1] as u32 {
        0 => cpu.xcr0,
        // Saying that everything is in use is always allowed.
        1 if cpu.system.features.has("xgetbv1") => cpu.xcr0,
        _ => return Err(cpu.gp(0).into()),
    };
    cpu.write_gpr(crate::cpu::gpr::RAX, 4, value & 0xffff_ffff);
    cpu.write_gpr(crate::cpu::gpr::RDX, 4, value >> 32);
    Ok(())
}
