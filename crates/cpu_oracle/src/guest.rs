//! Execution on an engine: a 64-bit guest that is nothing but page tables, an IDT and the case's user code.
//!
//! Exceptions are delivered for real, through the IDT to CPL 0, where each vector has a `hlt` of its own. The
//! outcome is read from the frame that delivery pushed.

use crate::case::{Case, Outcome};
use crate::{CODE_ADDRESS, CODE_MAX, DATA_ADDRESS, DATA_SIZE, XSAVE_SIZE};
use anyhow::{Context, Result, bail};
use engine::{Vcpu, VcpuIo, VmExit};
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::{CpuState, Cr0, Cr4, DescriptorTable, Efer, MpState, Segment, SegmentAttributes, XsaveArea};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const STACK_TOP: u64 = 0x5000;
const HANDLERS: u64 = 0x6000;
const PAGE_TABLES: u64 = 0x1_0000;
const CODE_FRAME: u64 = 0x8_0000;
const DATA_FRAME: u64 = 0x9_0000;
const RAM: u64 = 0x10_0000;
/// Where RAM is mapped for CPL 0: in the upper half, as the host's kernel is, so that stray user addresses meet the
/// same absence of pages on both sides.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const KERNEL_CS: u16 = 0x08;
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;

/// Nothing is outside of this guest's RAM.
struct NoDevices;

impl VcpuIo for NoDevices {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn eoi(&self, _vector: u8) {}
    fn acknowledge_pic(&self) -> u8 {
        0xff
    }
}

/// RAM for [`Guest`].
pub fn memory() -> Result<Arc<GuestMemory>> {
    Ok(Arc::new(GuestMemory::new(&[(0, RAM)])?))
}

/// A guest on one vCPU.
pub struct Guest {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
    start: CpuState,
}

impl Guest {
    /// Builds tables in `memory` (from [`memory`]) for a processor fresh from reset.
    pub fn new(memory: Arc<GuestMemory>, vcpu: Box<dyn Vcpu>) -> Result<Self> {
        let mut guest = Guest { start: vcpu.state()?, memory, vcpu };
        guest.write_descriptors()?;
        guest.write_page_tables()?;
        guest.prepare_state();
        Ok(guest)
    }

    fn put(&self, address: u64, value: u64) -> Result<()> {
        Ok(self.memory.write(address, &value.to_le_bytes())?)
    }

    fn write_descriptors(&self) -> Result<()> {
        self.put(GDT + u64::from(KERNEL_CS), 0x00af_9b00_0000_ffff)?;
        self.put(GDT + 0x28, 0x00cf_f300_0000_ffff)?;
        self.put(GDT + 0x30, 0x00af_fb00_0000_ffff)?;
        self.put(TSS + 4, KERNEL + STACK_TOP)?;
        self.memory.write(TSS + 0x66, &0xffff_u16.to_le_bytes())?; // I/O bitmap beyond the limit: no ports
        for vector in 0..32 {
            let handler = KERNEL + HANDLERS + vector * 16;
            self.memory.write(HANDLERS + vector * 16, &[0xf4])?;
            // #BP and #OF gates must be reachable from CPL 3; DPL 3 for all makes INT n legal, but none is generated.
            let middle = handler >> 16 & 0xffff;
            let low = handler & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee00_u64 << 32 | middle << 48;
            self.put(IDT + vector * 16, low)?;
            self.put(IDT + vector * 16 + 8, handler >> 32)?;
        }
        Ok(())
    }

    /// RAM for CPL 0 at [`KERNEL`], user pages for code and data.
    fn write_page_tables(&self) -> Result<()> {
        let [top, pointers, directory, low, code, data, upper_pointers, upper_directory] =
            std::array::from_fn(|i| PAGE_TABLES + i as u64 * 0x1000);
        self.put(top + 256 * 8, upper_pointers | 3)?;
        self.put(upper_pointers, upper_directory | 3)?;
        self.put(upper_directory, low | 3)?;
        self.put(top, pointers | 7)?;
        self.put(pointers, directory | 7)?;
        self.put(directory + (CODE_ADDRESS >> 21) * 8, code | 7)?;
        self.put(directory + (DATA_ADDRESS >> 21) * 8, data | 7)?;
        for page in 0..RAM >> 12 {
            self.put(low + page * 8, page << 12 | 3)?;
        }
        self.put(code, CODE_FRAME | 7)?;
        for page in 0..DATA_SIZE as u64 >> 12 {
            self.put(data + page * 8, (DATA_FRAME + (page << 12)) | 7 | 1 << 63)?;
        }
        Ok(())
    }

    fn prepare_state(&mut self) {
        let segment = |selector, limit, attributes| Segment {
            selector,
            base: 0,
            limit,
            attributes: SegmentAttributes(attributes),
        };
        let state = &mut self.start;
        let data = segment(USER_SS, u32::MAX, 0xc0f3);
        let segments = &mut state.segments;
        segments.cs = segment(USER_CS, u32::MAX, 0xa0fb);
        (segments.ss, segments.ds, segments.es, segments.fs, segments.gs) = (data, data, data, data, data);
        segments.tr = Segment { base: KERNEL + TSS, ..segment(0x40, 0x67, 0x008b) };
        segments.ldtr = segment(0, 0, 0);
        state.gdtr = DescriptorTable { base: KERNEL + GDT, limit: 0x37 };
        state.idtr = DescriptorTable { base: KERNEL + IDT, limit: 32 * 16 - 1 };
        state.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG).bits();
        let features = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::UMIP;
        state.cr4 = features.bits();
        state.cr3 = PAGE_TABLES;
        state.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
        state.xcr0 = 7;
        state.mp_state = MpState::Runnable;
    }

    /// Runs a case.
    pub fn run(&mut self, case: &Case) -> Result<Outcome> {
        let mut code = [0xf4; CODE_MAX];
        code[..case.code.len()].copy_from_slice(&case.code);
        self.memory.write(CODE_FRAME, &code)?;
        self.memory.write(DATA_FRAME, &case.data())?;
        let mut state = self.start.clone();
        state.gprs = case.gprs;
        state.rip = CODE_ADDRESS;
        state.rflags = case.rflags;
        let mut xsave = case.xsave.clone();
        xsave[512] = 7;
        state.xsave = XsaveArea { bytes: xsave };
        self.vcpu.set_state(&state)?;
        // A `rep` may take many steps; loops are not generated, so a few thousand means that something hangs.
        for _ in 0..40 {
            let exit = self.vcpu.run_steps(&NoDevices, 1000);
            match exit {
                VmExit::StepsDone => {}
                VmExit::Halted => return self.outcome(),
                other => bail!("the engine answered {other:?} for code {:02x?}", case.code),
            }
        }
        bail!("code {:02x?} does not end", case.code)
    }

    fn outcome(&self) -> Result<Outcome> {
        let state = self.vcpu.state()?;
        let vector = state.rip.wrapping_sub(KERNEL + HANDLERS) / 16;
        if vector >= 32 {
            bail!("the guest halts at {:#x}, outside its handlers", state.rip);
        }
        let frame: Vec<u64> = (state.gprs[4].wrapping_sub(KERNEL)..STACK_TOP)
            .step_by(8)
            .map(|at| self.get(at))
            .collect::<Result<_>>()?;
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let expected = if has_code { 6 } else { 5 };
        if frame.len() != expected {
            bail!("vector {vector} pushed {} words", frame.len());
        }
        let words = &frame[usize::from(has_code)..];
        let mut gprs = state.gprs;
        gprs[4] = words[3];
        let mut data = vec![0; DATA_SIZE];
        self.memory.read(DATA_FRAME, &mut data)?;
        Ok(Outcome {
            gprs,
            rip: words[0],
            rflags: words[2],
            xsave: normalised(&state.xsave),
            data,
            vector: vector as u8,
            error_code: if has_code { frame[0] as u32 } else { 0 },
            cr2: if vector == 14 { state.cr2 } else { 0 },
        })
    }

    fn get(&self, address: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.memory.read(address, &mut bytes).context("the stack left RAM")?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The area with components in their initial state filled in and the header cleared.
fn normalised(area: &XsaveArea) -> Vec<u8> {
    let mut bytes = area.bytes.clone();
    bytes.resize(XSAVE_SIZE, 0);
    let present = bytes[512];
    if present & 1 == 0 {
        bytes[0..24].fill(0);
        bytes[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        bytes[32..160].fill(0);
    }
    if present & 2 == 0 {
        bytes[160..416].fill(0);
    }
    if present & 4 == 0 {
        bytes[576..XSAVE_SIZE].fill(0);
    }
    bytes[416..576].fill(0);
    bytes
}
