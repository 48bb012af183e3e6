//! Whole-register moves, in plain Rust: half of all vector instructions. Also the non-temporal stores,
//! which are ordinary stores here: guest RAM is write-back, and a stub would wait for its own store.

use super::checks;
use crate::cpu::{Cpu, Flow};
use crate::insn::{Handler, Insn};
use crate::mmu::Plain;
use iced_x86::{Code, Instruction};

/// The handler of a move, or of VZEROUPPER and VZEROALL.
pub(super) fn select(instruction: &Instruction, insn: &mut Insn) -> Option<Handler> {
    use Code as C;
    let memory = insn.has_memory();
    Some(match instruction.code() {
        C::Movups_xmm_xmmm128 | C::Movupd_xmm_xmmm128 | C::Movdqu_xmm_xmmm128 | C::Lddqu_xmm_m128
            if memory =>
        {
            load::<16, false, false>
        }
        C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128 | C::Movntdqa_xmm_m128
            if memory =>
        {
            load::<16, false, true>
        }
        C::Movups_xmmm128_xmm | C::Movupd_xmmm128_xmm | C::Movdqu_xmmm128_xmm if memory => {
            store::<16, false, false>
        }
        C::Movaps_xmmm128_xmm | C::Movapd_xmmm128_xmm | C::Movdqa_xmmm128_xmm if memory => {
            store::<16, false, true>
        }
        C::Movntps_m128_xmm | C::Movntpd_m128_xmm | C::Movntdq_m128_xmm => store::<16, false, true>,
        C::VEX_Vmovups_xmm_xmmm128
        | C::VEX_Vmovupd_xmm_xmmm128
        | C::VEX_Vmovdqu_xmm_xmmm128
        | C::VEX_Vlddqu_xmm_m128
            if memory =>
        {
            load::<16, true, false>
        }
        C::VEX_Vmovaps_xmm_xmmm128
        | C::VEX_Vmovapd_xmm_xmmm128
        | C::VEX_Vmovdqa_xmm_xmmm128
        | C::VEX_Vmovntdqa_xmm_m128
            if memory =>
        {
            load::<16, true, true>
        }
        C::VEX_Vmovups_xmmm128_xmm | C::VEX_Vmovupd_xmmm128_xmm | C::VEX_Vmovdqu_xmmm128_xmm if memory => {
            store::<16, true, false>
        }
        C::VEX_Vmovaps_xmmm128_xmm | C::VEX_Vmovapd_xmmm128_xmm | C::VEX_Vmovdqa_xmmm128_xmm if memory => {
            store::<16, true, true>
        }
        C::VEX_Vmovntps_m128_xmm | C::VEX_Vmovntpd_m128_xmm | C::VEX_Vmovntdq_m128_xmm => {
            store::<16, true, true>
        }
        C::VEX_Vmovups_ymm_ymmm256
        | C::VEX_Vmovupd_ymm_ymmm256
        | C::VEX_Vmovdqu_ymm_ymmm256
        | C::VEX_Vlddqu_ymm_m256
            if memory =>
        {
            load::<32, true, false>
        }
        C::VEX_Vmovaps_ymm_ymmm256
        | C::VEX_Vmovapd_ymm_ymmm256
        | C::VEX_Vmovdqa_ymm_ymmm256
        | C::VEX_Vmovntdqa_ymm_m256
            if memory =>
        {
            load::<32, true, true>
        }
        C::VEX_Vmovups_ymmm256_ymm | C::VEX_Vmovupd_ymmm256_ymm | C::VEX_Vmovdqu_ymmm256_ymm if memory => {
            store::<32, true, false>
        }
        C::VEX_Vmovaps_ymmm256_ymm | C::VEX_Vmovapd_ymmm256_ymm | C::VEX_Vmovdqa_ymmm256_ymm if memory => {
            store::<32, true, true>
        }
        C::VEX_Vmovntps_m256_ymm | C::VEX_Vmovntpd_m256_ymm | C::VEX_Vmovntdq_m256_ymm => {
            store::<32, true, true>
        }
        C::Movntq_m64_mm => store_mmx,
        C::Movaps_xmm_xmmm128
        | C::Movups_xmm_xmmm128
        | C::Movapd_xmm_xmmm128
        | C::Movupd_xmm_xmmm128
        | C::Movdqa_xmm_xmmm128
        | C::Movdqu_xmm_xmmm128 => copy,
        _ => return select_zeroing(instruction),
    })
}

fn select_zeroing(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::VEX_Vzeroupper => vzeroupper,
        Code::VEX_Vzeroall => vzeroall,
        _ => return None,
    })
}

/// Register from memory. The VEX form zeroes what lies above.
fn load<const N: usize, const VEX: bool, const ALIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow
where
    [u8; N]: Plain,
{
    checks::vector(cpu, VEX)?;
    if ALIGNED {
        checks::aligned(cpu, insn, N as u64)?;
    }
    let value = cpu.load_operand::<[u8; N]>(insn)?;
    let register = &mut cpu.vector.ymm[usize::from(insn.dst & 15)];
    register[..N].copy_from_slice(&value);
    if VEX {
        register[N..].fill(0);
    }
    Ok(())
}

/// Memory from register.
fn store<const N: usize, const VEX: bool, const ALIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow
where
    [u8; N]: Plain,
{
    checks::vector(cpu, VEX)?;
    if ALIGNED {
        checks::aligned(cpu, insn, N as u64)?;
    }
    let mut value = [0; N];
    value.copy_from_slice(&cpu.vector.ymm[usize::from(insn.dst & 15)][..N]);
    cpu.store_operand::<[u8; N]>(insn, value)?;
    Ok(())
}

/// Legacy register to register.
fn copy(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::vector(cpu, false)?;
    let (dst, src) = (usize::from(insn.dst & 15), usize::from(insn.src & 15));
    let mut low = [0; 16];
    low.copy_from_slice(&cpu.vector.ymm[src][..16]);
    cpu.vector.ymm[dst][..16].copy_from_slice(&low);
    Ok(())
}

/// MOVNTQ.
fn store_mmx(cpu: &mut Cpu, insn: &Insn) -> Flow {
    checks::mmx(cpu)?;
    let mut image = cpu.fpu.clone();
    image.enter_mmx();
    let mut value = [0; 8];
    value.copy_from_slice(&image.st(usize::from(insn.dst))[..8]);
    if let Err(fault) = cpu.store_operand::<[u8; 8]>(insn, value) {
        // Silicon has moved TOP by then, but not marked the registers valid.
        cpu.fpu.rotate_to(0);
        return Err(fault.into());
    }
    cpu.fpu = image;
    Ok(())
}

/// The registers that exist: eight outside of 64-bit mode.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.long64 { 16 } else { 8 }
}

fn vzeroupper(cpu: &mut Cpu, _: &Insn) -> Flow {
    checks::vector(cpu, true)?;
    let count = register_count(cpu);
    for register in &mut cpu.vector.ymm[..count] {
        register[16..].fill(0);
    }
    Ok(())
}

fn vzeroall(cpu: &mut Cpu, _: &Insn) -> Flow {
    checks::vector(cpu, true)?;
    let count = register_count(cpu);
    cpu.vector.ymm[..count].fill([0; 32]);
    Ok(())
}
