//! Dynamic translation of 64-bit code to itself.
//!
//! | file | holds |
//! |---|---|
//! | [`block`] | translation of one block: decoding, slow ways |
//! | [`copy`], [`vector`], [`transfer`] | instructions that are copied; branches, calls, stack |
//! | [`memory`] | the check of each memory operand |
//! | [`operand`], [`flags`] | where guest registers and flags live |
//! | [`mod@unit`], [`jumps`] | what leads to code: pages of blocks, the jump cache |
//! | [`thunks`], [`runtime`] | ways in and out, calls to the interpreter |
//! | [`cache`], [`asm`], [`shared`] | memory for code, bytes of code, fields that code reaches |
//!
//! # Model
//! A block is keyed by guest-physical page, generation and address in the page. It does not know its linear
//! address: what depends on that adds to `Shared::rip_page`. It does not know privilege or address space,
//! either: memory goes through the TLB array that is current, and whatever else depends on the processor's
//! state is the interpreter's, called for that one instruction with all registers stored. An instruction
//! whose memory access needs more than a TLB hit is interpreted in the same way, before it has changed
//! anything; so faults, devices, page-crossing and watched accesses have one definition.
//!
//! # Isolation
//! Guest code runs as the host's user code, in this process. What keeps it in:
//! * Only instructions of a list ([`copy`]) are copied; none of them can transfer control, change segments,
//!   stacks, RFLAGS beyond the six arithmetic flags, or enter the kernel.
//! * Each memory operand is replaced by one that was checked (see [`memory`]). Implicit memory operands
//!   (stack, strings) are never copied.
//! * The host's RSP is no guest register; scratch registers are never visible to guest instructions but as
//!   the replaced operands.
//! * Control leaves a block only through links and the jump cache, whose targets are ours. Guest addresses
//!   are only compared, never jumped to.
//! * Code memory is never writable where it is executable.
#![expect(unsafe_code, reason = "runs generated code")]

mod asm;
mod block;
mod cache;
mod copy;
mod flags;
mod jumps;
mod memory;
mod operand;
mod runtime;
pub(crate) mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod thunks;
pub(crate) mod timer;
mod transfer;
mod unit;
mod vector;
pub(crate) mod verify;

use crate::cpu::{Cpu, Fault, Stop};
use crate::decode::{self, Decoded};
use crate::insn::Insn;
use crate::system::SystemState;
use block::{Builder, Context};
use cache::CodeMemory;
use jumps::JumpCache;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use thunks::{Exit, Thunks};
use timer::Deadline;
use unit::{Entries, Link, Next, PAGE, Site, Unit};

/// Sites and links after which everything is translated anew.
const MOST_SITES: usize = 1 << 21;

/// What a translator is made with.
#[derive(Clone, Copy, Debug)]
pub struct TranslationSettings {
    /// Bytes of code memory.
    pub cache_size: usize,
    /// Times that code is interpreted before it is translated.
    pub warm_up: u32,
    /// Compare every so-many-th block with the interpreter; zero for none.
    pub verify: u32,
}

impl Default for TranslationSettings {
    fn default() -> Self {
        TranslationSettings { cache_size: 32 << 20, warm_up: 0, verify: 0 }
    }
}

/// Counters of the translator.
#[derive(Clone, Copy, Debug, Default)]
pub struct TranslationCounts {
    /// Times translated code was entered.
    pub entries: u64,
    /// Blocks translated.
    pub blocks: u64,
    /// Guest instructions in them.
    pub insns: u64,
    /// Direct jumps linked.
    pub links: u64,
    /// Pages whose translations were stale.
    pub stale: u64,
    /// Times the code memory was full.
    pub flushes: u64,
    /// Blocks interpreted in between.
    pub single: u64,
    /// Blocks compared with the interpreter.
    pub verified: u64,
}

/// The translator of one processor.
pub struct Translator {
    memory: CodeMemory,
    thunks: Thunks,
    jumps: JumpCache,
    units: Vec<Unit>,
    pages: HashMap<u64, u32>,
    sites: Vec<Site>,
    links: Vec<Link>,
    deadline: Deadline,
    warm_up: u32,
    verify: u32,
    /// Blocks until the next that is compared.
    until_verified: u32,
    /// Instructions, and undefined flags, of blocks that only have copied ones, by outer entry, if blocks are compared.
    copied: HashMap<u64, (u32, u64)>,
    /// An empty jump cache, for running block by block.
    no_jumps: JumpCache,
    /// Times that untranslated code was entered, by physical address.
    visits: HashMap<u64, u32>,
    /// Whether WRGSBASE may be used.
    fsgsbase: bool,
    /// Counters.
    pub counts: TranslationCounts,
}

/// Whether the kernel lets processes write their GS base.
fn has_fsgsbase() -> bool {
    const FSGSBASE: u64 = 1 << 1;
    // SAFETY: a plain query.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & FSGSBASE != 0 }
}

impl Translator {
    /// A translator for the processor whose event word is `events`.
    pub fn new(settings: TranslationSettings, events: Arc<AtomicU32>) -> io::Result<Self> {
        let mut memory = CodeMemory::new(settings.cache_size.clamp(1 << 20, 1 << 30))?;
        let fsgsbase = has_fsgsbase();
        let thunks = thunks::build(&mut memory, fsgsbase)?;
        Ok(Translator {
            memory,
            thunks,
            jumps: JumpCache::new(),
            units: Vec::new(),
            pages: HashMap::new(),
            sites: Vec::new(),
            links: Vec::new(),
            deadline: Deadline::new(events),
            warm_up: settings.warm_up,
            verify: settings.verify,
            until_verified: settings.verify,
            no_jumps: JumpCache::new(),
            copied: HashMap::new(),
            visits: HashMap::new(),
            fsgsbase,
            counts: TranslationCounts::default(),
        })
    }

    /// The deadline's bit was seen.
    pub(crate) fn timer_fired(&mut self) {
        self.deadline.fired();
    }

    /// Forgets all translations. Only while none runs.
    fn flush(&mut self) {
        self.counts.flushes += 1;
        self.memory.clear();
        self.jumps.clear();
        self.units.clear();
        self.pages.clear();
        self.sites.clear();
        self.links.clear();
        self.visits.clear();
        self.copied.clear();
    }

    /// The instruction of a site and its address in the page.
    fn site_insn(&mut self, system: &SystemState, number: usize) -> Option<(u64, Insn)> {
        let site = self.sites.get_mut(number)?;
        site.count += 1;
        let offset = site.offset;
        if let Some(insn) = &site.insn {
            return Some((u64::from(offset), **insn));
        }
        let unit = self.units.get(site.unit as usize)?;
        let insn = match decode::decode(system, &unit.bytes[usize::from(offset)..], unit.code_size) {
            Decoded::Insn { insn, .. } => insn,
            _ => return None,
        };
        site.insn = Some(Box::new(insn));
        Some((u64::from(offset), insn))
    }

    fn site_next(&self, number: usize) -> Next {
        self.sites.get(number).map_or(Next::InPage(0), |site| site.next)
    }

    /// The block at an address in a unit, translated if need be. `None` if it cannot be.
    fn block(&mut self, system: &SystemState, unit_number: u32, offset: u16) -> Option<Entries> {
        let unit = self.units.get_mut(unit_number as usize)?;
        if let Some(&entries) = unit.blocks.get(&offset) {
            return Some(entries);
        }
        let context = Context {
            thunks: self.thunks,
            sites: &mut self.sites,
            links: &mut self.links,
            system,
            unit: unit_number,
            page: &unit.bytes,
            generation: unit.generation(),
        };
        let built = Builder::new(self.memory.next_address(), context).build(offset)?;
        if !self.memory.add(&built.code) {
            return None;
        }
        unit.blocks.insert(offset, built.entries);
        if self.verify > 0 && built.all_copied {
            self.copied.insert(built.entries.outer, (built.insns, built.undefined));
        }
        self.counts.blocks += 1;
        self.counts.insns += u64::from(built.insns);
        Some(built.entries)
    }

    /// Whether code is to be interpreted once more, which is noted.
    fn is_cold(&mut self, unit: u32, offset: u16, physical: u64) -> bool {
        if self.warm_up == 0
            || self.units.get(unit as usize).is_some_and(|unit| unit.blocks.contains_key(&offset))
        {
            return false;
        }
        let visits = self.visits.entry(physical).or_default();
        *visits += 1;
        *visits <= self.warm_up
    }

    fn is_full(&self) -> bool {
        self.memory.is_almost_full() || self.sites.len() > MOST_SITES || self.links.len() > MOST_SITES
    }
}

/// What the loop does next.
enum Step {
    /// Run the code.
    Enter(u64),
    /// Interpret a block.
    Interpret,
}

impl Cpu {
    /// Gives the processor a translator.
    pub fn enable_translation(&mut self, settings: TranslationSettings) -> io::Result<()> {
        self.translator = Some(Box::new(Translator::new(settings, Arc::clone(&self.events))?));
        Ok(())
    }

    /// Has translated code left when the local APIC's timer is due.
    pub(crate) fn set_deadline(&mut self, due_ns: Option<u64>, now_ns: u64) {
        if let Some(translator) = &mut self.translator {
            translator.deadline.set(due_ns, now_ns);
        }
    }

    /// Whether code of the current mode is translated.
    pub(crate) fn can_translate(&self) -> bool {
        self.long64 && self.translator.is_some()
    }

    /// Runs translated code until an event waits or an instruction asks to look around.
    pub(crate) fn run_translated(&mut self) -> Result<(), Stop> {
        self.shared.own = self;
        self.shared.events = Arc::as_ptr(&self.events);
        let connect = self.translator.as_ref().is_some_and(|translator| translator.verify == 0);
        while !self.event_waiting() {
            let step = match self.next_step() {
                Ok(step) => step,
                Err(_) => return self.deliver_stashed(),
            };
            let exit = match step {
                Step::Enter(host) => match self.insns_to_verify(host) {
                    Some((insns, undefined)) => self.enter_verified(host, insns, undefined)?,
                    None => self.enter(host),
                },
                Step::Interpret => {
                    self.interpret_block()?;
                    continue;
                }
            };
            match exit {
                Exit::Lookup | Exit::Continue => {}
                Exit::Link => self.follow_link(connect),
                Exit::EventAtLink => self.follow_link(false),
                Exit::InPage => self.set_rip(self.shared.rip_page.wrapping_add(self.shared.argument)),
                Exit::Interpret => {
                    self.set_rip(self.shared.rip_page.wrapping_add(self.shared.argument));
                    self.interpret_block()?;
                }
                Exit::Fault => return self.deliver_stashed(),
                Exit::Stop => return Err(Stop::Exit),
                Exit::Done => return Ok(()),
            }
            if !self.long64 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn interpret_block(&mut self) -> Result<(), Stop> {
        if let Some(translator) = &mut self.translator {
            translator.counts.single += 1;
        }
        let Ok(block) = self.find_block() else { return self.deliver_stashed() };
        // SAFETY: valid until the next lookup.
        let block = unsafe { &*block };
        self.block_end = block.insns.as_ptr_range().end as usize;
        match self.run_block(block.insns.as_ptr()) {
            Ok(()) | Err(Stop::Jump) => Ok(()),
            Err(stop) => {
                self.settle(stop)?;
                // Looked at by the caller's caller.
                Err(Stop::Again)
            }
        }
    }

    /// Instructions and undefined flags of the block at an outer entry, if it is its turn to be compared.
    fn insns_to_verify(&mut self, host: u64) -> Option<(u32, u64)> {
        let translator = self.translator.as_mut().filter(|translator| translator.verify > 0)?;
        translator.until_verified = translator.until_verified.saturating_sub(1);
        if translator.until_verified > 0 {
            return None;
        }
        let &block = translator.copied.get(&host)?;
        translator.until_verified = translator.verify;
        Some(block)
    }

    /// Runs code from an entry that expects saved flags.
    fn enter(&mut self, host: u64) -> Exit {
        let Some(translator) = &mut self.translator else { return Exit::Done };
        translator.counts.entries += 1;
        let jumps = if translator.verify == 0 { &translator.jumps } else { &translator.no_jumps };
        self.shared.jumps = jumps.as_ptr();
        self.shared.vector = 0;
        let (enter, fsgsbase) = (translator.thunks.enter, translator.fsgsbase);
        self.shared.set_arithmetic(self.flags.bits());
        let own: *mut Cpu = self;
        // SAFETY: the thunk has this signature and keeps the ABI; the code it runs reaches this processor only
        // through GS, and nobody else uses GS in user mode on Linux x86-64.
        let exit = unsafe {
            if !fsgsbase {
                const ARCH_SET_GS: libc::c_int = 0x1001;
                libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, own);
            }
            let enter: unsafe extern "sysv64" fn(*mut Cpu, u64) -> u64 =
                std::mem::transmute(enter as *const ());
            enter(own, host)
        };
        self.flags.set_bits(self.shared.arithmetic());
        Exit::of(exit)
    }

    /// Sets RIP to a link's target, and links it if asked to.
    fn follow_link(&mut self, connect: bool) {
        let number = self.shared.argument as usize;
        let page = self.shared.rip_page;
        let Some(mut translator) = self.translator.take() else { return };
        if let Some(&link) = translator.links.get(number) {
            self.set_rip(page.wrapping_add(u64::from(link.target)));
            let current = translator.units.get(link.unit as usize).is_some_and(Unit::is_current);
            if connect
                && current
                && !translator.is_full()
                && let Some(entries) = translator.block(&self.system, link.unit, link.target)
            {
                translator.memory.link(link.at, entries.inner(link.flags));
                translator.counts.links += 1;
            }
        }
        self.translator = Some(translator);
    }

    fn next_step(&mut self) -> Result<Step, Fault> {
        let linear = self.rip();
        let key = self.mmu.fetch_key;
        self.shared.rip_page = linear & !0xfff;
        if let Some(host) = self.translator.as_ref().and_then(|t| t.jumps.get(linear, key))
            && self.last_stale != linear
        {
            self.last_stale = linear;
            return Ok(Step::Enter(host));
        }
        self.last_stale = u64::MAX;
        let physical = self.fetch_physical(linear)?;
        let Some(mut translator) = self.translator.take() else { return Ok(Step::Interpret) };
        let host = self.translated(&mut translator, physical);
        if let Some(host) = host {
            translator.jumps.set(linear, self.mmu.fetch_key, host);
        }
        self.translator = Some(translator);
        Ok(host.map_or(Step::Interpret, Step::Enter))
    }

    /// Outer entry of the block at a physical address.
    fn translated(&mut self, translator: &mut Translator, physical: u64) -> Option<u64> {
        if translator.is_full() {
            translator.flush();
        }
        let key = physical & !0xfff | u64::from(self.code_size >> 5);
        let known = translator.pages.get(&key).copied();
        let unit = match known {
            Some(unit) if translator.units.get(unit as usize).is_some_and(Unit::is_current) => unit,
            _ => {
                translator.counts.stale += u64::from(known.is_some());
                let (cell, generation) = self.mark_code(physical);
                self.memory.find(physical)?;
                let mut bytes = Box::new([0; PAGE]);
                self.read_physical(physical & !0xfff, &mut bytes[..]);
                translator.units.push(Unit::new(self.code_size, (cell, generation), bytes));
                let unit = translator.units.len() as u32 - 1;
                translator.pages.insert(key, unit);
                unit
            }
        };
        let offset = (physical & 0xfff) as u16;
        if translator.is_cold(unit, offset, physical) {
            return None;
        }
        translator.block(&self.system, unit, offset).map(|entries| entries.outer)
    }
}
