//! From an address to its translation: jump cache, unit of the page, the page's blocks, the store, the builder.

use super::block::LONGEST_BLOCK;
use super::share::PLAIN;
use super::unit::{CodePage, Entries, PAGE, Unit};
use super::{BlockPlace, Step, Translator, Warmth};
use crate::code::LONGEST_INSN;
use crate::cpu::{Cpu, Fault, seg};
use std::ops::Range;
use std::time::Instant;

/// Bytes before a block that are read with it: where short loops lead back to.
const LOOK_BACK: usize = 256;

/// Bytes of a page that a block from an address in it on, or a look back from it, can reach.
pub(super) fn reach(offset: u16) -> Range<usize> {
    let first = usize::from(offset & !PLAIN);
    first.saturating_sub(LOOK_BACK)..PAGE.min(first + LONGEST_BLOCK * LONGEST_INSN)
}

impl Cpu {
    pub(super) fn next_step(&mut self) -> Result<Step, Fault> {
        let linear = self.code_address();
        let key = self.mmu.fetch_key;
        self.shared.rip_page = self.page_of_rip(linear);
        if !self.long64 && self.rip() > u64::from(self.segments[usize::from(seg::CS)].limit) {
            return Ok(Step::Interpret);
        }
        if let Some(host) = self.translator.as_ref().and_then(|t| t.jumps.get(linear, key))
            && self.last_stale != linear
        {
            self.last_stale = linear;
            return Ok(Step::Enter(host));
        }
        self.last_stale = u64::MAX;
        let physical = self.fetch_physical(linear)?;
        let Some(mut translator) = self.translator.take() else { return Ok(Step::Interpret) };
        let entries = self.unit_at(&mut translator, physical).and_then(|unit| {
            let offset = (physical & 0xfff) as u16;
            translator.known_block(unit, offset).or_else(|| {
                let warmth = translator.warmth(physical);
                self.made(&mut translator, unit, offset, warmth)
            })
        });
        let host = entries.map(|entries| translator.memory.start() + u64::from(entries.outer));
        if let Some(host) = host {
            translator.jumps.set(linear, self.mmu.fetch_key, host);
        }
        self.translator = Some(translator);
        Ok(host.map_or(Step::Interpret, Step::Enter))
    }

    /// The unit of a physical address; `None` outside RAM, or if the page is to be interpreted.
    fn unit_at(&mut self, translator: &mut Translator, physical: u64) -> Option<u32> {
        if translator.is_full() {
            translator.flush();
        }
        let key = physical & !0xfff | u64::from(self.kind.bits());
        if let Some(page) = translator.pages.get_mut(&key) {
            if translator.units.get(page.unit as usize).is_some_and(Unit::is_current) {
                return Some(page.unit);
            }
            if page.unit != u32::MAX {
                page.became_stale(translator.calm);
                translator.counts.stale += 1;
            }
            if page.rests() {
                translator.counts.rests += 1;
                return None;
            }
        }
        self.memory.find(physical)?;
        let generation = self.mark_code(physical);
        let unit = translator.units.len() as u32;
        translator.units.push(Unit::new(physical & !0xfff, self.kind, generation));
        translator.pages.entry(key).or_insert_with(|| CodePage::new(unit)).unit = unit;
        Some(unit)
    }

    /// The block at an address in a unit, perhaps with [`PLAIN`], translated if need be. `None` if it cannot be.
    pub(super) fn translated(
        &mut self,
        translator: &mut Translator,
        unit: u32,
        offset: u16,
    ) -> Option<Entries> {
        translator.known_block(unit, offset).or_else(|| self.made(translator, unit, offset, Warmth::Warm))
    }

    /// A block that was not known: if its code was never run before, only if the store has it; if it is cold, none.
    fn made(
        &mut self,
        translator: &mut Translator,
        unit: u32,
        offset: u16,
        warmth: Warmth,
    ) -> Option<Entries> {
        let only_stored = match warmth {
            Warmth::New if translator.store.is_some() => true,
            Warmth::New | Warmth::Cold => return None,
            Warmth::Warm => false,
        };
        let (mut bytes, needed) = ([0; PAGE], reach(offset));
        let page = translator.units.get(unit as usize)?.page;
        self.memory.read(page + needed.start as u64, bytes.get_mut(needed)?).ok()?;
        // What was read is of the unit's generation, or of a store that is just going to end it.
        if !translator.units.get(unit as usize)?.is_current() {
            return None;
        }
        let place = BlockPlace { unit, offset, page: &bytes, rip_page: self.shared.rip_page };
        let since = Instant::now();
        let entries = if only_stored {
            translator.stored_block(self.cuts(), &place)
        } else {
            translator.block(&self.system, self.cuts(), &place)
        };
        self.times.translating += since.elapsed();
        entries
    }
}
