//! Execution on an engine: a 64-bit guest that is nothing but page tables, descriptor tables and the case's user code.
//!
//! Exceptions are delivered for real, through the IDT to CPL 0, where each vector has a `hlt` of its own. The
//! outcome is read from the frame that delivery pushed.

use crate::case::{Case, Mode, Outcome, fill_initial};
use crate::executor::Executor;
use crate::free::{self, END_PORT, Free, TOUCH_ADDRESS};
use crate::layout::{self, KERNEL_CS, KERNEL_TR};
use crate::{CODE_ADDRESS, CODE_SIZE, DATA_ADDRESS, DATA_SIZE, XSAVE_SIZE};
use anyhow::{Context, Result, bail};
use engine::cpu_model::CpuModel;
use engine::{Engine, ExitCounts, Vcpu, VcpuIo, VmExit, VmSettings};
use engine_soft::SoftEngine;
use engine_soft::translate::TranslationSettings;
use guest_clock::{HostEntropy, ManualClock};
use guest_memory::GuestMemory;
use std::sync::Arc;
use x86::{CpuState, Cr0, Cr4, DescriptorTable, Efer, MpState, Segment, SegmentAttributes, XsaveArea, msr};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const LDT: u64 = 0x3800;
const STACK_TOP: u64 = 0x5000;
const HANDLERS: u64 = 0x6000;
const ENTER: u64 = 0x7000;
const ENTER_BLOCK: u64 = 0x7800;
const TOUCH: u64 = 0x8000;
const PAGE_TABLES: u64 = 0x1_0000;
const CODE_FRAME: u64 = 0x8_0000;
const DATA_FRAME: u64 = 0x9_0000;
const RAM: u64 = 0x10_0000;
/// Where RAM is mapped for CPL 0: in the upper half, as the host's kernel is, so that stray user addresses meet the
/// same absence of pages on both sides.
const KERNEL: u64 = 0xffff_8000_0000_0000;
/// Vectors that have a handler of their own.
const VECTORS: u64 = 32;
/// Gates that user code may call, in Linux as here: `int3` and `into`.
const USER_GATES: [u64; 2] = [3, 4];

/// Instructions at a time, and how often: together they allow for `rep` and for a LOOP whose counter has 16 bits. Code
/// that takes longer does not end.
const STEPS: u64 = 1000;
const ROUNDS: u64 = 500;

/// Nothing is outside of this guest's RAM.
struct NoDevices;

impl VcpuIo for NoDevices {}

/// RAM for [`Guest`].
pub fn memory() -> Result<Arc<GuestMemory>> {
    Ok(Arc::new(GuestMemory::new(&[(0, RAM)])?))
}

/// A guest on one vCPU.
pub struct Guest {
    name: &'static str,
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
    start: CpuState,
    /// How cases run without a limit of steps; `None` where steps are counted.
    free: Option<Free>,
}

impl Executor for Guest {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome>>> {
        Ok(cases.iter().map(|case| self.run_case(case)).collect())
    }
}

impl Guest {
    /// The interpreter, with every feature that it offers on this host.
    pub fn interpreter() -> Result<Self> {
        Guest::software("interpreter", SoftEngine::new())
    }

    /// The translator, which translates all 64-bit code the first time that it runs.
    pub fn translator() -> Result<Self> {
        // However often the cases change their page, it is translated.
        let settings = TranslationSettings { warm_up: 0, calm: u32::MAX, ..TranslationSettings::default() };
        let mut guest = Guest::software("translator", SoftEngine::new().with_translation(Some(settings)))?;
        guest.free = Some(Free::new(&*guest.vcpu));
        Ok(guest)
    }

    fn software(name: &'static str, engine: SoftEngine) -> Result<Self> {
        let memory = memory()?;
        let vm = engine.create_vm(VmSettings {
            memory: memory.clone(),
            cpus: 1,
            model: CpuModel::named("max")?,
            tsc_khz: None,
            lenient_xrstor: false,
            clock: Arc::new(ManualClock::default()),
            entropy: Arc::new(HostEntropy),
        })?;
        Guest::new(name, memory, vm.create_vcpu(0)?)
    }

    /// What the engine has counted.
    pub fn counts(&self) -> ExitCounts {
        self.vcpu.counts()
    }

    /// Builds tables in `memory` (from [`memory`]) for a processor fresh from reset.
    pub fn new(name: &'static str, memory: Arc<GuestMemory>, vcpu: Box<dyn Vcpu>) -> Result<Self> {
        let mut guest = Guest { name, start: vcpu.state()?, memory, vcpu, free: None };
        guest.write_descriptors()?;
        guest.write_page_tables()?;
        guest.write_entry()?;
        guest.prepare_state();
        Ok(guest)
    }

    fn put(&self, address: u64, value: u64) -> Result<()> {
        Ok(self.memory.write(address, &value.to_le_bytes())?)
    }

    fn write_descriptors(&self) -> Result<()> {
        for (at, descriptor) in (0..).zip(layout::GDT) {
            self.put(GDT + at * 8, descriptor)?;
        }
        for (at, entry) in (0..).zip(layout::LDT) {
            self.put(LDT + at * 8, entry.descriptor())?;
        }
        // A busy TSS and an LDT in the global table, as the kernel has them; user code only sees that they are not its.
        self.put(GDT + u64::from(KERNEL_TR), 0x0000_8b00_0000_0067)?;
        self.put(GDT + 0x50, 0x0000_8200_0000_005f)?;
        self.put(TSS + 4, KERNEL + STACK_TOP)?;
        self.memory.write(TSS + 0x66, &0xffff_u16.to_le_bytes())?; // I/O bitmap beyond the limit: no ports
        for vector in 0..256 {
            let handler = KERNEL + HANDLERS + vector.min(VECTORS) * 16;
            // out END_PORT, al; hlt
            self.memory.write(HANDLERS + vector.min(VECTORS) * 16, &[0xe6, END_PORT as u8, 0xf4])?;
            let (low, middle) = (handler & 0xffff, handler >> 16 & 0xffff);
            let access = if USER_GATES.contains(&vector) { 0xee00_u64 } else { 0x8e00 };
            self.put(IDT + vector * 16, low | u64::from(KERNEL_CS) << 16 | access << 32 | middle << 48)?;
            self.put(IDT + vector * 16 + 8, handler >> 32)?;
        }
        Ok(())
    }

    /// The code that touches the data pages, and the one that enters cases from there.
    fn write_entry(&self) -> Result<()> {
        self.memory.write(TOUCH, &free::touch())?;
        Ok(self.memory.write(ENTER, &free::enter(KERNEL + ENTER_BLOCK))?)
    }

    /// RAM for CPL 0 at [`KERNEL`], user pages for code and data.
    fn write_page_tables(&self) -> Result<()> {
        let [top, pointers, directory, low, code, data, upper_pointers, upper_directory, touch] =
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
        self.put(directory + (TOUCH_ADDRESS >> 21) * 8, touch | 7)?;
        self.put(touch + (TOUCH_ADDRESS >> 12 & 511) * 8, TOUCH | 7)?;
        for page in 0..DATA_SIZE as u64 >> 12 {
            self.put(data + page * 8, (DATA_FRAME + (page << 12)) | 7 | 1 << 63)?;
        }
        Ok(())
    }

    fn prepare_state(&mut self) {
        let system = |selector, base, limit, attributes| Segment {
            selector,
            base,
            limit,
            attributes: SegmentAttributes(attributes),
        };
        let state = &mut self.start;
        let ldt_limit = layout::LDT.len() as u32 * 8 - 1;
        state.segments.tr = system(KERNEL_TR, KERNEL + TSS, 0x67, 0x008b);
        state.segments.ldtr = system(0x50, KERNEL + LDT, ldt_limit, 0x0082);
        state.gdtr = DescriptorTable { base: KERNEL + GDT, limit: layout::GDT.len() as u16 * 8 - 1 };
        state.idtr = DescriptorTable { base: KERNEL + IDT, limit: 256 * 16 - 1 };
        state.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG).bits();
        let features = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::UMIP;
        state.cr4 = features.bits();
        state.cr3 = PAGE_TABLES;
        state.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
        state.xcr0 = 7;
        state.mp_state = MpState::Runnable;
        state.set_msr(msr::STAR, u64::from(KERNEL_CS) << 32);
        state.set_msr(msr::LSTAR, KERNEL + ENTER);
    }

    fn run_case(&mut self, case: &Case) -> Result<Outcome> {
        let mut code = [0xf4; CODE_SIZE];
        code[case.code_offset..][..case.code.len()].copy_from_slice(&case.code);
        self.memory.write(CODE_FRAME, &code)?;
        let mut data = [0; DATA_SIZE];
        case.fill_data(&mut data);
        self.memory.write(DATA_FRAME, &data)?;
        let mut state = self.start.clone();
        state.gprs = case.gprs;
        state.rip = case.rip();
        state.rflags = case.rflags;
        let segments = &mut state.segments;
        segments.cs = segment(layout::code_selector(case.mode));
        let [es, ss, ds, fs, gs] = case.selectors.map(segment);
        (segments.es, segments.ss, segments.ds, segments.fs, segments.gs) = (es, ss, ds, fs, gs);
        if case.mode.bits() == 64 {
            (segments.fs.base, segments.gs.base) = (case.fs_base, case.gs_base);
        }
        let mut xsave = case.xsave.clone();
        xsave[512] = 7;
        state.xsave = XsaveArea { bytes: xsave };
        if let Some(free) = &self.free {
            if case.mode == Mode::Long && case.data_seed & 1 == 0 {
                self.memory.write(ENTER_BLOCK, &free::block(case))?;
                (state.rip, state.rflags) = (TOUCH_ADDRESS, 0x202);
            }
            self.vcpu.set_state(&state)?;
            let is_done = |vcpu: &dyn Vcpu| Ok(handler(vcpu.state()?.rip).is_some());
            free.run(&mut *self.vcpu, is_done)?;
            return self.outcome();
        }
        self.vcpu.set_state(&state)?;
        for _ in 0..ROUNDS {
            let exit = self.vcpu.run_steps(&NoDevices, STEPS);
            match exit {
                VmExit::StepsDone => {}
                VmExit::Halted => return self.outcome(),
                other => bail!("the engine answered {other:?}"),
            }
        }
        bail!("the code does not end")
    }

    fn outcome(&self) -> Result<Outcome> {
        let state = self.vcpu.state()?;
        let Some(vector) = handler(state.rip) else {
            bail!("the guest halts at {:#x}, outside its handlers", state.rip)
        };
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
        let mut memory = vec![0; DATA_SIZE + CODE_SIZE];
        self.memory.read(DATA_FRAME, &mut memory[..DATA_SIZE])?;
        self.memory.read(CODE_FRAME, &mut memory[DATA_SIZE..])?;
        let segments = &state.segments;
        let mut xsave = state.xsave.bytes;
        xsave.resize(XSAVE_SIZE, 0);
        fill_initial(&mut xsave);
        Ok(Outcome {
            gprs,
            rip: words[0],
            cs: words[1] as u16,
            rflags: words[2],
            selectors: [
                segments.es.selector,
                words[4] as u16,
                segments.ds.selector,
                segments.fs.selector,
                segments.gs.selector,
            ],
            fs_base: segments.fs.base,
            gs_base: segments.gs.base,
            xsave,
            memory,
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

/// The exception in whose handler the processor is.
fn handler(rip: u64) -> Option<u64> {
    let vector = rip.wrapping_sub(KERNEL + HANDLERS) / 16;
    (vector < VECTORS).then_some(vector)
}

/// A segment register loaded with a selector of the tables.
fn segment(selector: u16) -> Segment {
    if selector < 4 {
        return Segment { selector, ..Segment::default() };
    }
    let index = usize::from(selector >> 3);
    let descriptor = if selector & 4 == 0 {
        layout::GDT.get(index).copied()
    } else {
        layout::LDT.get(index).map(|entry| entry.descriptor())
    };
    let descriptor = descriptor.unwrap_or_default();
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    let granular = descriptor >> 55 & 1 != 0;
    Segment {
        selector,
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 56 << 24,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        attributes: SegmentAttributes((descriptor >> 40) as u16 & 0xf0ff),
    }
}
