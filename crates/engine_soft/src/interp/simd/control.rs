//! LDMXCSR, STMXCSR and EMMS.

use super::checks;
use super::state::MXCSR_VALID;
use crate::cpu::{Cpu, Flow};
use crate::insn::{Handler, Insn};
use iced_x86::{Instruction, Mnemonic};

/// The handler of a control instruction.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Ldmxcsr => ldmxcsr::<false>,
        Mnemonic::Vldmxcsr => ldmxcsr::<true>,
        Mnemonic::Stmxcsr => stmxcsr::<false>,
        Mnemonic::Vstmxcsr => stmxcsr::<true>,
        Mnemonic::Emms => emms,
        _ => return None,
    })
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, VEX)?;
    let value = cpu.load_operand::<u32>(insn)?;
    if value & !MXCSR_VALID != 0 {
        return Err(cpu.gp(0).into());
    }
    cpu.vector.mxcsr = value;
    Ok(())
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, VEX)?;
    cpu.store_operand::<u32>(insn, cpu.vector.mxcsr)?;
    Ok(())
}

/// Marks all registers empty; TOP becomes zero as with every MMX instruction.
fn emms(cpu: &mut Cpu, _: &Insn) -> Flow {
    checks::mmx(cpu)?;
    cpu.fpu.enter_mmx();
    cpu.fpu.set_abridged_tags(0);
    Ok(())
}
