//! What a translator tells of its work.

use super::Translator;
use super::unit::PAGE;
use crate::code::LONGEST_INSN;
use guest_memory::GuestMemory;
use std::collections::HashMap;

/// Before the name of an instruction that translated code knows, and whose memory access it left to the interpreter.
const SLOW: &str = "slow_";
/// Instructions named among those that were interpreted most.
const NAMED: usize = 12;

impl Translator {
    /// Counters by name; the most interpreted instructions are `interpreted_…`.
    pub fn counts(&self, memory: &GuestMemory) -> Vec<(String, u64)> {
        let counts = &self.counts;
        let mut all = vec![
            ("translated_entries".to_owned(), counts.entries),
            ("translated_blocks".to_owned(), counts.blocks),
            ("translated_blocks_legacy".to_owned(), counts.legacy),
            ("translated_instructions".to_owned(), counts.insns),
            ("stored_blocks_used".to_owned(), counts.installed),
            ("translated_bytes".to_owned(), self.memory.used() as u64),
            ("links".to_owned(), counts.links),
            ("stale_pages".to_owned(), counts.stale),
            ("translation_flushes".to_owned(), counts.flushes),
            ("blocks_interpreted".to_owned(), counts.single),
            ("page_rests".to_owned(), counts.rests),
            ("blocks_verified".to_owned(), counts.verified),
            ("hints_given_up".to_owned(), counts.hints_given_up),
            ("call_outs".to_owned(), self.call_outs()),
        ];
        all.extend(self.most_interpreted(memory));
        all
    }

    /// Instructions of translated code that the interpreter ran.
    pub(crate) fn call_outs(&self) -> u64 {
        self.gone_call_outs + self.sites.iter().map(|site| u64::from(site.count)).sum::<u64>()
    }

    fn most_interpreted(&self, memory: &GuestMemory) -> Vec<(String, u64)> {
        let mut by_name: HashMap<String, u64> = HashMap::new();
        for site in self.sites.iter().filter(|site| site.count > 0) {
            let Some(unit) = self.units.get(site.unit as usize) else { continue };
            let mut bytes = [0; LONGEST_INSN];
            let room = bytes.len().min(PAGE - usize::from(site.offset));
            if !unit.is_current()
                || memory.read(unit.page + u64::from(site.offset), &mut bytes[..room]).is_err()
            {
                continue;
            }
            let mut decoder = iced_x86::Decoder::new(u32::from(unit.kind.code_size()), &bytes, 0);
            let instruction = decoder.decode();
            let slow = if super::copy::is_known_form(&instruction)
                || super::x87::is_known_form(&instruction)
                || super::string::is_known(&instruction)
            {
                SLOW
            } else {
                "interpreted_"
            };
            let name = format!("{slow}{:?}", instruction.mnemonic()).to_lowercase();
            *by_name.entry(name).or_default() += u64::from(site.count);
        }
        let slow = by_name.iter().filter(|(name, _)| name.starts_with(SLOW)).map(|(_, count)| count).sum();
        let mut names: Vec<_> = by_name.into_iter().collect();
        names.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        names.truncate(NAMED);
        names.push(("call_outs_of_memory".to_owned(), slow));
        names
    }
}
