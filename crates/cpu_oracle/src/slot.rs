//! A case and its outcome in the fixed layout that the native child shares with its parent.

use crate::case::{Case, ENDLESS, Outcome, Selectors};
use crate::{CODE_SIZE, DATA_SIZE, XSAVE_SIZE, layout};

/// What is loaded, and what is left. Offsets of the fields before `code` are known to the assembly in
/// [`crate::native`].
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub xsave: [u8; XSAVE_SIZE],
    pub gprs: [u64; 16],
    /// Frame of IRETQ: RIP, CS, RFLAGS, RSP, SS.
    pub frame: [u64; 5],
    /// ES, DS, FS, GS.
    pub selectors: [u64; 4],
    pub fs_base: u64,
    pub gs_base: u64,
    /// Whether the bases are loaded, rather than taken from the segments.
    pub load_bases: u64,
    pub vector: u64,
    pub error_code: u64,
    pub cr2: u64,
    pub memory: [u8; DATA_SIZE + CODE_SIZE],
}

impl Slot {
    pub(crate) fn load(&mut self, case: &Case) {
        self.xsave.copy_from_slice(&case.xsave[..XSAVE_SIZE]);
        self.gprs = case.gprs;
        let [es, ss, ds, fs, gs] = case.selectors.map(u64::from);
        let cs = u64::from(layout::code_selector(case.mode));
        self.frame = [case.rip(), cs, case.rflags, case.gprs[4], ss];
        self.selectors = [es, ds, fs, gs];
        (self.fs_base, self.gs_base) = (case.fs_base, case.gs_base);
        self.load_bases = u64::from(case.mode.bits() == 64);
        self.vector = u64::MAX;
        let (data, code) = self.memory.split_at_mut(DATA_SIZE);
        case.fill_data(data);
        code.fill(0xf4);
        code[case.code_offset..][..case.code.len()].copy_from_slice(&case.code);
    }

    /// Whether a timer ended the case.
    pub(crate) fn is_endless(&self) -> bool {
        self.vector == u64::from(ENDLESS)
    }

    /// The outcome; `None` if the child never got to it.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        if self.vector == u64::MAX {
            return None;
        }
        let [rip, cs, rflags, _, ss] = self.frame;
        let [es, ds, fs, gs] = self.selectors;
        let selectors: Selectors = [es, ss, ds, fs, gs].map(|selector| selector as u16);
        Some(Outcome {
            gprs: self.gprs,
            rip,
            cs: cs as u16,
            rflags,
            selectors,
            fs_base: self.fs_base,
            gs_base: self.gs_base,
            xsave: self.xsave.to_vec(),
            memory: self.memory.to_vec(),
            vector: self.vector as u8,
            error_code: self.error_code as u32,
            cr2: if self.vector == 14 { self.cr2 } else { 0 },
        })
    }
}
