//! FXSAVE, FXRSTOR and the XSAVE family (SDM 1 10.5 and 13.7–13.12), for x87, SSE and AVX.
//!
//! ```text
//! 0     FCW FSW FTW FOP FIP FDP          component 0
//! 24    MXCSR, MXCSR_MASK                with component 1 or 2 (standard form)
//! 32    ST0–7                            component 0
//! 160   XMM0–15                          component 1
//! 512   XSTATE_BV, XCOMP_BV, zeros       header
//! 576   YMM0–15, upper halves            component 2; in both forms, as there is nothing before it
//! ```

use super::state::{MXCSR_RESET, MXCSR_VALID, field};
use crate::cpu::{Cpu, Fault, Flow, gpr};
use crate::insn::{Handler, Insn};
use crate::interp::x87::FpuState;
use iced_x86::{Instruction, Mnemonic};
use std::ops::Range;
use x86::{Cr0, Cr4, Exception, Vector};

/// Component bit of x87.
const X87: u64 = 1 << 0;
/// Component bit of SSE.
const SSE: u64 = 1 << 1;
/// Component bit of AVX.
const AVX: u64 = 1 << 2;
/// Components that a host may have beyond the machine's: the AVX-512 states, PKRU and the AMX tiles (SDM 1 13.1). All
/// are placed behind those of the machine.
const HOST_COMPONENTS: u64 = 7 << 5 | 1 << 9 | 3 << 17;
/// Bit 63 of XCOMP_BV: compacted.
const COMPACTED: u64 = 1 << 63;
/// Offset of the header.
const HEADER: usize = 512;
/// Offset of the AVX component.
const YMM: usize = 576;
/// Bytes of a register, and of everything else that is accessed at once.
const PIECE: usize = 16;
/// Bytes of an area with the AVX component.
const XSAVE_END: usize = 832;

/// A form of XSAVE.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Save {
    /// XSAVE.
    Standard,
    /// XSAVEOPT: does not write components in their initial configuration.
    Optimised,
    /// XSAVEC and XSAVES.
    Compacted,
}

/// The handler of a save or restore.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Fxsave => fxsave::<false>,
        M::Fxsave64 => fxsave::<true>,
        M::Fxrstor => fxrstor::<false>,
        M::Fxrstor64 => fxrstor::<true>,
        M::Xsave => |cpu, insn| xsave(cpu, insn, Save::Standard, false),
        M::Xsave64 => |cpu, insn| xsave(cpu, insn, Save::Standard, true),
        M::Xsaveopt => |cpu, insn| xsave(cpu, insn, Save::Optimised, false),
        M::Xsaveopt64 => |cpu, insn| xsave(cpu, insn, Save::Optimised, true),
        M::Xsavec => |cpu, insn| xsave(cpu, insn, Save::Compacted, false),
        M::Xsavec64 => |cpu, insn| xsave(cpu, insn, Save::Compacted, true),
        M::Xsaves => |cpu, insn| supervisor(cpu).and_then(|()| xsave(cpu, insn, Save::Compacted, false)),
        M::Xsaves64 => |cpu, insn| supervisor(cpu).and_then(|()| xsave(cpu, insn, Save::Compacted, true)),
        M::Xrstor => |cpu, insn| xrstor(cpu, insn, false, false),
        M::Xrstor64 => |cpu, insn| xrstor(cpu, insn, true, false),
        M::Xrstors => |cpu, insn| supervisor(cpu).and_then(|()| xrstor(cpu, insn, false, true)),
        M::Xrstors64 => |cpu, insn| supervisor(cpu).and_then(|()| xrstor(cpu, insn, true, true)),
        _ => return None,
    })
}

/// XSAVES and XRSTORS: CPL 0. There are no supervisor components (IA32_XSS is zero). #UD comes first.
fn supervisor(cpu: &mut Cpu) -> Flow {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.ud().into());
    }
    if cpu.cpl != 0 {
        return Err(cpu.gp(0).into());
    }
    Ok(())
}

/// #GP(0) for a misaligned area (#AC where alignment is checked), after the checks of the segment; its offset in the
/// segment otherwise. Whether the segment can be written is not among them: silicon sees that when it writes.
fn area(cpu: &mut Cpu, insn: &Insn, alignment: u64) -> Result<u64, Fault> {
    let offset = cpu.address(insn);
    let linear = cpu.linear_of(insn.segment, offset, if cpu.long64 { 1 } else { 4 }, false)?;
    cpu.check_operand_alignment(linear, 4)?;
    if linear & (alignment - 1) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(offset)
}

/// Faults as silicon does for an area of `len` bytes: it touches the last byte first.
fn probe_area(cpu: &mut Cpu, insn: &Insn, offset: u64, len: usize, write: bool) -> Result<(), Fault> {
    cpu.probe(insn.segment, piece(insn, offset, len - 1), 1, write)?;
    probe_range(cpu, insn, offset, 0..len, write)
}

/// Probes a part of an area.
fn probe_range(
    cpu: &mut Cpu,
    insn: &Insn,
    offset: u64,
    range: Range<usize>,
    write: bool,
) -> Result<(), Fault> {
    let start = piece(insn, offset, range.start);
    let len = range.len() as u64;
    if start.checked_add(len - 1).is_some_and(|last| last <= insn.address_mask()) {
        return cpu.probe(insn.segment, start, len as u32, write);
    }
    for at in range.step_by(PIECE) {
        cpu.probe(insn.segment, piece(insn, offset, at), PIECE as u32, write)?;
    }
    Ok(())
}

/// FIP is loaded as a canonical address of 57 bits, FDP as it is.
fn canonical(pointer: &mut [u8]) {
    if let Some(top) = pointer.last_mut() {
        *top = if *top & 1 != 0 { 0xff } else { 0 };
    }
}

fn not_available(cpu: &mut Cpu, bits: Cr0) -> Result<(), Fault> {
    if cpu.cr0.intersects(bits) {
        return Err(cpu.raise(Exception::plain(Vector::DeviceNotAvailable)));
    }
    Ok(())
}

/// Registers that exist in the current mode.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.long64 { 16 } else { 8 }
}

/// Offset of a piece of an area. Each piece is an access of its own: it wraps at the address size, in 64-bit mode too.
fn piece(insn: &Insn, offset: u64, at: usize) -> u64 {
    offset.wrapping_add(at as u64) & insn.address_mask()
}

/// Writes pieces of an area; all of it has been probed, so faults can no longer come.
struct Writer<'a> {
    cpu: &'a mut Cpu,
    insn: &'a Insn,
    offset: u64,
}

impl Writer<'_> {
    fn put<const N: usize>(&mut self, at: usize, value: [u8; N]) -> Result<(), Fault> {
        self.cpu.store::<[u8; N]>(self.insn.segment, piece(self.insn, self.offset, at), value)
    }

    /// Bytes 0–23 and the x87 registers.
    fn x87(&mut self, wide: bool) -> Result<(), Fault> {
        let (mut head, registers) = self.cpu.fpu.x87_bytes();
        if !wide {
            // FCS and FDS take the upper halves of the pointers, and are zero.
            head[12..16].fill(0);
            head[20..24].fill(0);
        }
        self.put::<24>(0, head)?;
        for index in 0..8 {
            self.put::<16>(32 + 16 * index, field(&registers, 16 * index))?;
        }
        Ok(())
    }

    fn mxcsr(&mut self) -> Result<(), Fault> {
        let value = self.cpu.vector.mxcsr;
        self.put(24, value.to_le_bytes())?;
        self.put(28, MXCSR_VALID.to_le_bytes())
    }

    /// Halves of the vector registers: `half` is 0 for XMM at 160, 16 for the upper parts at 576.
    fn vectors(&mut self, at: usize, half: usize) -> Result<(), Fault> {
        for index in 0..register_count(self.cpu) {
            let value = field::<16>(&self.cpu.vector.ymm[index], half);
            self.put(at + 16 * index, value)?;
        }
        Ok(())
    }
}

/// Reads `N` bytes of an area.
fn get<const N: usize>(cpu: &mut Cpu, insn: &Insn, offset: u64, at: usize) -> Result<[u8; N], Fault> {
    cpu.load::<[u8; N]>(insn.segment, piece(insn, offset, at))
}

/// The x87 component of an area.
fn get_x87(cpu: &mut Cpu, insn: &Insn, offset: u64, wide: bool) -> Result<FpuState, Fault> {
    let mut head = get::<24>(cpu, insn, offset, 0)?;
    if wide {
        canonical(&mut head[8..16]);
    } else {
        head[12..16].fill(0);
        head[20..24].fill(0);
    }
    let mut registers = [0; 128];
    for (index, register) in registers.chunks_exact_mut(16).enumerate() {
        register.copy_from_slice(&get::<16>(cpu, insn, offset, 32 + 16 * index)?);
        register[10..].fill(0);
    }
    let mut image = FpuState::default();
    image.load(&head, &registers);
    Ok(image)
}

/// Halves of the vector registers.
fn get_vectors(cpu: &mut Cpu, insn: &Insn, offset: u64, at: usize) -> Result<[[u8; 16]; 16], Fault> {
    let mut values = [[0; 16]; 16];
    let count = register_count(cpu);
    for (index, value) in values.iter_mut().enumerate().take(count) {
        *value = get::<16>(cpu, insn, offset, at + 16 * index)?;
    }
    Ok(values)
}

fn set_vectors(cpu: &mut Cpu, half: usize, values: &[[u8; 16]; 16]) {
    let count = register_count(cpu);
    for (register, value) in cpu.vector.ymm.iter_mut().zip(values).take(count) {
        register[half..half + 16].copy_from_slice(value);
    }
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    not_available(cpu, Cr0::EM | Cr0::TS)?;
    let offset = area(cpu, insn, 16)?;
    probe_area(cpu, insn, offset, 512, true)?;
    let mut writer = Writer { cpu, insn, offset };
    writer.x87(WIDE)?;
    writer.mxcsr()?;
    writer.vectors(160, 0)?;
    Ok(())
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Flow {
    not_available(cpu, Cr0::EM | Cr0::TS)?;
    let offset = area(cpu, insn, 16)?;
    probe_area(cpu, insn, offset, 512, false)?;
    let mxcsr = u32::from_le_bytes(get(cpu, insn, offset, 24)?);
    if mxcsr & !MXCSR_VALID != 0 {
        return Err(cpu.gp(0).into());
    }
    let image = get_x87(cpu, insn, offset, WIDE)?;
    let vectors = get_vectors(cpu, insn, offset, 160)?;
    cpu.fpu = image;
    cpu.vector.mxcsr = mxcsr;
    set_vectors(cpu, 0, &vectors);
    Ok(())
}

/// The components that an instruction asks for: EDX:EAX and XCR0.
fn requested(cpu: &Cpu) -> u64 {
    let mask = u64::from(cpu.reg::<u32>(gpr::RDX)) << 32 | u64::from(cpu.reg::<u32>(gpr::RAX));
    mask & cpu.xcr0 & (X87 | SSE | AVX)
}

/// The components that are not in their initial configuration.
fn in_use(cpu: &Cpu) -> u64 {
    let registers = &cpu.vector.ymm[..register_count(cpu)];
    let set = |half: usize| registers.iter().any(|register| register[half..half + 16] != [0; 16]);
    let mut components = 0;
    if cpu.fpu != FpuState::default() {
        components |= X87;
    }
    if set(0) {
        components |= SSE;
    }
    if set(16) {
        components |= AVX;
    }
    components
}

fn enabled(cpu: &mut Cpu) -> Result<(), Fault> {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.ud());
    }
    not_available(cpu, Cr0::TS)
}

fn xsave(cpu: &mut Cpu, insn: &Insn, form: Save, wide: bool) -> Flow {
    enabled(cpu)?;
    let offset = area(cpu, insn, 64)?;
    let wanted = requested(cpu);
    let mut used = in_use(cpu);
    if form == Save::Compacted && cpu.vector.mxcsr != MXCSR_RESET {
        used |= SSE;
    }
    let written = if form == Save::Standard { wanted } else { wanted & used };
    let len = if wanted & AVX != 0 { YMM + 256 } else { YMM };
    let with_mxcsr = if form == Save::Compacted { written & SSE != 0 } else { wanted & (SSE | AVX) != 0 };
    // The last byte comes first, whether it is written or not; of the others only what is written is touched, and the
    // start of x87 state that XSAVEOPT finds in its initial configuration.
    let x87 = if form == Save::Compacted { written } else { wanted } & X87 != 0;
    cpu.probe(insn.segment, piece(insn, offset, len - 1), 1, true)?;
    let vectors = PIECE * register_count(cpu);
    let touched = [
        (x87, 0..if written & X87 != 0 { 160 } else { PIECE }),
        (with_mxcsr, 24..32),
        (written & SSE != 0, 160..160 + vectors),
        (true, HEADER..HEADER + 16),
        (written & AVX != 0, YMM..YMM + vectors),
    ];
    for (_, range) in touched.into_iter().filter(|(touched, _)| *touched) {
        probe_range(cpu, insn, offset, range, true)?;
    }
    let old = u64::from_le_bytes(get(cpu, insn, offset, HEADER)?);
    let mut writer = Writer { cpu, insn, offset };
    if written & X87 != 0 {
        writer.x87(wide)?;
    }
    if with_mxcsr {
        writer.mxcsr()?;
    }
    if written & SSE != 0 {
        writer.vectors(160, 0)?;
    }
    if written & AVX != 0 {
        writer.vectors(YMM, 16)?;
    }
    if form == Save::Compacted {
        writer.put(HEADER, (wanted & used).to_le_bytes())?;
        writer.put(HEADER + 8, (wanted | COMPACTED).to_le_bytes())?;
    } else {
        writer.put(HEADER, (old & !wanted | wanted & used).to_le_bytes())?;
    }
    Ok(())
}

/// The checks of the header. Returns XSTATE_BV.
fn header(cpu: &mut Cpu, insn: &Insn, offset: u64, supervisor: bool) -> Result<(u64, bool), Fault> {
    // Silicon reads XCOMP_BV first. Components in it that nobody has are an error at once; then it finds and touches the
    // last byte of what may be loaded.
    let layout = u64::from_le_bytes(get::<8>(cpu, insn, offset, HEADER + 8)?);
    let compacted = layout & COMPACTED != 0;
    let components = layout & !COMPACTED;
    let known = cpu.xcr0 | if cpu.system.lenient_xrstor && !supervisor { HOST_COMPONENTS } else { 0 };
    if compacted && components & !known != 0 {
        return Err(cpu.gp(0));
    }
    if requested(cpu) & AVX != 0 && (!compacted || components & AVX != 0) {
        cpu.probe(insn.segment, piece(insn, offset, XSAVE_END - 1), 1, false)?;
    }
    let bytes = get::<64>(cpu, insn, offset, HEADER)?;
    let state = u64::from_le_bytes(field(&bytes, 0));
    let valid = if compacted {
        state & !(components & cpu.xcr0) == 0 && bytes[16..] == [0; 48]
    } else {
        !supervisor && state & !cpu.xcr0 == 0 && bytes[8..24] == [0; 16]
    };
    if !valid {
        return Err(cpu.gp(0));
    }
    Ok((state, compacted))
}

fn xrstor(cpu: &mut Cpu, insn: &Insn, wide: bool, supervisor: bool) -> Flow {
    enabled(cpu)?;
    let offset = area(cpu, insn, 64)?;
    let wanted = requested(cpu);
    let (state, compacted) = header(cpu, insn, offset, supervisor)?;
    let loaded = wanted & state;
    // Everything is read before anything is changed.
    let image = if loaded & X87 != 0 { get_x87(cpu, insn, offset, wide)? } else { FpuState::default() };
    let mxcsr = if compacted {
        (wanted & SSE != 0).then_some(loaded & SSE != 0)
    } else {
        (wanted & (SSE | AVX) != 0).then_some(true)
    };
    let low = if loaded & SSE != 0 { get_vectors(cpu, insn, offset, 160)? } else { [[0; 16]; 16] };
    let high = if loaded & AVX != 0 { get_vectors(cpu, insn, offset, YMM)? } else { [[0; 16]; 16] };
    let mxcsr = match mxcsr {
        None => cpu.vector.mxcsr,
        Some(false) => MXCSR_RESET,
        Some(true) => u32::from_le_bytes(get(cpu, insn, offset, 24)?),
    };
    if mxcsr & !MXCSR_VALID != 0 {
        if compacted {
            // Silicon has initialised components and loaded x87 and XMM by then.
            let initial = wanted & !state;
            if wanted & X87 != 0 {
                cpu.fpu = image;
            }
            if wanted & SSE != 0 {
                set_vectors(cpu, 0, &low);
            }
            if initial & AVX != 0 {
                set_vectors(cpu, 16, &high);
            }
        }
        return Err(cpu.gp(0).into());
    }
    if wanted & X87 != 0 {
        cpu.fpu = image;
    }
    cpu.vector.mxcsr = mxcsr;
    if wanted & SSE != 0 {
        set_vectors(cpu, 0, &low);
    }
    if wanted & AVX != 0 {
        set_vectors(cpu, 16, &high);
    }
    Ok(())
}
