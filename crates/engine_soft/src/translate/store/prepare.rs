//! Static translation: translations of code that has not run yet, or not by this version of the program.

use super::{StoreError, TranslationStore, file};
use crate::cpu::Cpu;
use crate::translate::kind::CodeKind;
use crate::translate::lookup::reach;
use crate::translate::portable::Portable;
use crate::translate::share::PLAIN;
use crate::translate::unit::{PAGE, Unit};
use crate::translate::{BlockPlace, TranslationSettings};
use crate::vm::lone_processor;
use engine::EngineError;
use engine::cpu_model::CpuModel;
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Code memory: it is emptied when it is full.
const CODE_MEMORY: usize = 16 << 20;
/// Size of code in bits; the only one whose translations are kept.
const MODE: CodeKind = CodeKind::LONG;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Places where blocks begin, as far as can be seen.
    pub starts: u64,
    /// Blocks translated.
    pub translated: u64,
    /// Blocks that the store had.
    pub known: u64,
    /// Blocks that the store had no room for: it keeps [`LARGEST`](super::LARGEST) bytes.
    pub left_out: u64,
    /// Blocks that the store has now.
    pub stored: usize,
    /// Bytes of these.
    pub stored_bytes: usize,
}

/// Why nothing was prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The model, or a processor, is not to be had.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A store or profile cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The generation of pages that no guest has.
static NO_GENERATION: AtomicU32 = AtomicU32::new(0);

/// Translates code into a store.
pub struct Preparation {
    store: Arc<TranslationStore>,
    cpu: Box<Cpu>,
    starts: u64,
}

impl Preparation {
    /// For machines with a CPU model.
    ///
    /// # Errors
    /// When this host cannot offer the model, or has no memory for code.
    pub fn new(store: Arc<TranslationStore>, model: &CpuModel) -> Result<Self, PrepareError> {
        let settings = TranslationSettings {
            cache_size: CODE_MEMORY,
            store: Some(Arc::clone(&store)),
            ..TranslationSettings::default()
        };
        Ok(Preparation { cpu: lone_processor(model, settings)?, store, starts: 0 })
    }

    /// Translates 64-bit code that will be at `address`, of which only the place in a page matters.
    pub fn add_code(&mut self, code: &[u8], address: u64) {
        let lead = (address % PAGE as u64) as usize;
        let starts = block_starts(code, lead as u64);
        let mut pages: BTreeMap<u64, Vec<u16>> = BTreeMap::new();
        for start in starts {
            pages.entry(start / PAGE as u64).or_default().push((start % PAGE as u64) as u16);
        }
        for (number, starts) in pages {
            let mut page = [0; PAGE];
            let first = number as usize * PAGE;
            for (at, byte) in page.iter_mut().enumerate() {
                *byte = (first + at).checked_sub(lead).and_then(|at| code.get(at)).copied().unwrap_or(0);
            }
            for start in starts {
                self.translate(&page, start);
            }
        }
    }

    /// Translates what is in a file of a store, whichever version of the program wrote it.
    ///
    /// # Errors
    /// When it is no such file, damaged, or somebody else could have written it.
    pub fn add_profile(&mut self, path: &Path) -> Result<(), PrepareError> {
        file::read_any(path, |record| {
            let Ok(block) = postcard::from_bytes::<Portable<'_>>(record) else { return };
            let mut page = [0; PAGE];
            for (from, bytes) in [(block.start & !PLAIN, block.head), (block.from, block.guest)] {
                let from = usize::from(from);
                let Some(place) = page.get_mut(from..from + bytes.len()) else { return };
                place.copy_from_slice(bytes);
            }
            if block.mode == MODE.bits() {
                self.translate(&page, block.start);
            }
        })?;
        Ok(())
    }

    /// Writes the store.
    ///
    /// # Errors
    /// When that fails.
    pub fn finish(self) -> Result<Prepared, PrepareError> {
        self.store.save()?;
        let counts = self.cpu.translator.as_ref().map(|translator| translator.counts).unwrap_or_default();
        let (stored, stored_bytes) = self.store.size();
        let (translated, known, left_out) = (counts.blocks, counts.installed, self.store.left_out());
        Ok(Prepared { starts: self.starts, translated, known, left_out, stored, stored_bytes })
    }

    /// Translates a block, as it is when it is first met in a run.
    fn translate(&mut self, page: &[u8; PAGE], start: u16) {
        let Some(translator) = &mut self.cpu.translator else { return };
        let Some(there) = page.get(reach(start)) else { return };
        let mut seen = [0; PAGE];
        seen[reach(start)].copy_from_slice(there);
        if translator.is_full() {
            translator.flush();
        }
        if translator.units.is_empty() {
            let generation = (&raw const NO_GENERATION, 0);
            translator.units.push(Unit::new(0, MODE, generation));
        }
        self.starts += 1;
        let place = BlockPlace { unit: 0, offset: start, page: &seen, rip_page: 0 };
        translator.block(&self.cpu.system, None, &place);
    }
}

/// Where blocks of code that lies behind `lead` bytes of a page begin, in order: what is jumped to or called, what
/// follows a call, a jump or a return, and what the limits of a block leave. Data among the code may be taken for code:
/// its translations are never used.
fn block_starts(code: &[u8], lead: u64) -> Vec<u64> {
    use crate::translate::block::LONGEST_BLOCK;
    let end = lead + code.len() as u64;
    let mut starts = vec![lead];
    let mut decoder = Decoder::with_ip(u32::from(MODE.code_size()), code, lead, DecoderOptions::NONE);
    let (mut begin, mut length) = (true, 0);
    while decoder.can_decode() {
        let i = decoder.decode();
        let page = |address: u64| address / PAGE as u64;
        let crosses = page(i.ip()) != page(i.next_ip() - 1);
        if begin || length == LONGEST_BLOCK {
            starts.push(i.ip());
            length = 0;
        }
        length += 1;
        let transfer = i.flow_control() != FlowControl::Next;
        let target = i.near_branch_target();
        if transfer && (lead..end).contains(&target) {
            starts.push(target);
        }
        begin = crosses
            || page(i.ip()) != page(i.next_ip())
            || transfer && i.flow_control() != FlowControl::ConditionalBranch
            || i.is_invalid();
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}
