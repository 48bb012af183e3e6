//! Dynamic translation of x86 code to itself.
//!
//! | file | holds |
//! |---|---|
//! | [`block`], [`cold`] | translation of one block; its rare ways |
//! | [`copy`], [`vector`], [`mod@x87`], [`mmx`] | instructions that are copied |
//! | [`transfer`], [`returns`], [`stack`], [`mod@string`] | branches, calls; their returns; stack; strings |
//! | [`mod@system`] | interrupt flag, SWAPGS, time-stamp counter |
//! | [`memory`], [`hints`], [`share`], [`watch`] | the check of memory operands, of one or of several at once; who watches stores |
//! | [`loops`], [`values`] | the second translation of a loop; what registers hold, as far as a block's code tells |
//! | [`mod@kind`] | modes: which kinds of code there are, and what of the legacy modes is brought into 64-bit form |
//! | [`operand`], [`flags`], [`dead`] | where guest registers and flags live, and when flags do not matter |
//! | [`lookup`], [`mod@unit`], [`jumps`] | what leads to code: pages of blocks, the jump cache |
//! | [`thunks`], [`runtime`] | ways in and out, calls to the interpreter |
//! | [`perf_map`], [`count`], [`stats`] | names of blocks for Linux perf; what ran, and what is told of it |
//! | [`portable`], [`store`] | translations for other runs |
//! | [`cache`], [`asm`], [`shared`] | memory for code, bytes of code, fields that code reaches |
//!
//! # Model
//! A block is keyed by guest-physical page, generation and address in the page. It does not know its linear
//! address: what depends on that adds to `Shared::rip_page`, the value of RIP where the page starts. It does
//! not know privilege or address space, either: memory goes through the TLB array that is current, and whatever
//! else depends on the processor's state is the interpreter's, called for that one instruction with all
//! registers stored. An instruction whose memory access needs more than a TLB hit is interpreted in the same
//! way, before it has changed anything; so faults, devices, page-crossing and watched accesses have one definition.
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
mod cold;
mod copy;
mod count;
mod dead;
mod flags;
mod hints;
mod jumps;
pub(crate) mod kind;
mod lookup;
mod loops;
mod memory;
mod mmx;
mod operand;
pub mod perf_map;
mod portable;
mod returns;
mod runtime;
mod share;
pub(crate) mod shared;
mod stack;
mod stats;
pub mod store;
mod string;
mod system;
#[cfg(test)]
mod tests;
mod thunks;
pub(crate) mod timer;
mod transfer;
mod unit;
mod values;
mod vector;
pub(crate) mod verify;
mod watch;
mod x87;

use crate::code::{AddressHasher, Block};
use crate::cpu::{Cpu, Stop};
use crate::debug::PageOffsets;
use crate::insn::Insn;
use crate::system::SystemState;
use block::{Builder, Context};
use cache::CodeMemory;
use hints::Strikes;
use jumps::JumpCache;
use perf_map::PerfMap;
use share::Share;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use store::TranslationStore;
use thunks::{Exit, Thunks};
use timer::Deadline;
use unit::{CodePage, Entries, Link, PAGE, Site, Unit};

/// Sites and links after which everything is translated anew.
const MOST_SITES: usize = 1 << 21;
/// Addresses whose visits are counted; others share their counters.
const VISITS: usize = 1 << 16;
/// Decoded instructions kept.
const DECODED: usize = 1024;

/// A map from addresses.
type AddressMap<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

/// What a translator is made with.
#[derive(Clone, Debug)]
pub struct TranslationSettings {
    /// Bytes of code memory.
    pub cache_size: usize,
    /// Times that code is interpreted before it is translated.
    pub warm_up: u32,
    /// Compare every so-many-th block with the interpreter; zero for none.
    pub verify: u32,
    /// Times a page may change before it is interpreted for a while.
    pub calm: u32,
    /// Write [`perf_map::PerfMap::of_process`].
    pub perf_map: bool,
    /// Where translations of earlier runs are.
    pub store: Option<Arc<TranslationStore>>,
    /// Count what translated code executes, and the time it takes: it becomes slower.
    pub counted: bool,
}

impl Default for TranslationSettings {
    fn default() -> Self {
        TranslationSettings {
            cache_size: 12 << 20,
            warm_up: 0,
            verify: 0,
            calm: 4,
            perf_map: false,
            store: None,
            counted: false,
        }
    }
}

/// Counters of the translator.
#[derive(Clone, Copy, Debug, Default)]
pub struct TranslationCounts {
    /// Times translated code was entered.
    pub entries: u64,
    /// Blocks translated.
    pub blocks: u64,
    /// 16-bit and 32-bit ones among them.
    pub legacy: u64,
    /// Guest instructions in them.
    pub insns: u64,
    /// Blocks taken from a store.
    pub installed: u64,
    /// Direct jumps linked.
    pub links: u64,
    /// Pages whose translations were stale.
    pub stale: u64,
    /// Times the code memory was full.
    pub flushes: u64,
    /// Blocks interpreted in between.
    pub single: u64,
    /// Times a page that changes all the time was not translated.
    pub rests: u64,
    /// Blocks compared with the interpreter.
    pub verified: u64,
    /// Call-outs that went on at another block.
    pub gotos: u64,
    /// Checks that no longer look at their hints.
    pub hints_given_up: u64,
}

/// The translator of one processor.
pub struct Translator {
    calm: u32,
    perf_map: Option<Arc<PerfMap>>,
    store: Option<Arc<TranslationStore>>,
    memory: CodeMemory,
    thunks: Thunks,
    jumps: JumpCache,
    /// For the next block's code.
    buffer: Vec<u8>,
    units: Vec<Unit>,
    pages: AddressMap<CodePage>,
    /// Blocks by unit and address in its page.
    blocks: AddressMap<Entries>,
    sites: Vec<Site>,
    /// Visits of sites that were forgotten.
    gone_call_outs: u64,
    /// Instructions of sites.
    decoded: Box<[(u32, Option<Insn>)]>,
    links: Vec<Link>,
    shares: Vec<Share>,
    strikes: Strikes,
    deadline: Deadline,
    warm_up: u32,
    counted: bool,
    verify: u32,
    /// Blocks until the next that is compared.
    until_verified: u32,
    /// A block was left in its middle, because there was no room for the rest of it without groups.
    left_in_middle: bool,
    /// Instructions, and undefined flags, of blocks that only have copied ones, by outer entry, if blocks are compared.
    copied: AddressMap<(u32, u64)>,
    /// An empty jump cache, for running block by block.
    no_jumps: JumpCache,
    /// Times that untranslated code was entered, by physical address.
    visits: Box<[u8]>,
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
        let thunks = thunks::build(&mut memory, fsgsbase, settings.counted)?;
        Ok(Translator {
            perf_map: settings.perf_map.then(PerfMap::of_process).transpose()?,
            memory,
            thunks,
            jumps: JumpCache::new(),
            buffer: Vec::new(),
            units: Vec::new(),
            pages: HashMap::default(),
            blocks: HashMap::default(),
            sites: Vec::new(),
            gone_call_outs: 0,
            decoded: vec![(0, None); DECODED].into_boxed_slice(),
            links: Vec::new(),
            shares: Vec::new(),
            strikes: Strikes::default(),
            deadline: Deadline::new(events),
            warm_up: settings.warm_up,
            counted: settings.counted,
            verify: settings.verify,
            // Code that counts what it executes, or is compared, is not for other runs.
            store: settings.store.filter(|_| !settings.counted && settings.verify == 0),
            calm: settings.calm,
            until_verified: settings.verify,
            left_in_middle: false,
            no_jumps: JumpCache::new(),
            copied: HashMap::default(),
            visits: vec![0; if settings.warm_up > 0 { VISITS } else { 0 }].into_boxed_slice(),
            fsgsbase,
            counts: TranslationCounts::default(),
        })
    }

    /// The deadline's bit was seen.
    pub(crate) fn timer_fired(&mut self) {
        self.deadline.fired();
    }

    /// Forgets all translations, if there are any. Only while none runs.
    pub(crate) fn forget(&mut self) {
        if !self.units.is_empty() {
            self.flush();
        }
    }

    /// Forgets all translations. Only while none runs.
    fn flush(&mut self) {
        self.counts.flushes += 1;
        self.gone_call_outs = self.call_outs();
        self.memory.clear();
        self.jumps.clear();
        self.units.clear();
        self.pages.clear();
        self.blocks.clear();
        self.sites.clear();
        self.decoded.fill((0, None));
        self.links.clear();
        self.shares.clear();
        self.strikes.clear();
        self.visits.fill(0);
        self.copied.clear();
    }

    /// The block at a place out of the store, if that has it.
    fn stored_block(&mut self, cuts: Option<&PageOffsets>, place: &BlockPlace<'_>) -> Option<Entries> {
        let mode = self.units.get(place.unit as usize)?.kind.bits();
        let store = self.store.clone().filter(|_| cuts.is_none())?;
        store.find(mode, place.offset, place.page, |block| self.install(block, place))?
    }

    /// The block at a place, out of the store or translated. `None` if it cannot be.
    fn block(
        &mut self,
        system: &SystemState,
        cuts: Option<&PageOffsets>,
        place: &BlockPlace<'_>,
    ) -> Option<Entries> {
        self.stored_block(cuts, place).or_else(|| self.new_block(system, cuts, place))
    }

    /// Translates the block at a place. `None` if it cannot be.
    fn new_block(
        &mut self,
        system: &SystemState,
        cuts: Option<&PageOffsets>,
        place: &BlockPlace<'_>,
    ) -> Option<Entries> {
        let before = self.counts_before();
        let unit = self.units.get(place.unit as usize)?;
        let kind = unit.kind;
        let store = self.store.clone().filter(|_| cuts.is_none());
        let context = Context {
            thunks: self.thunks,
            sites: &mut self.sites,
            links: &mut self.links,
            shares: &mut self.shares,
            verified: self.verify > 0,
            counted: self.counted,
            system,
            kind,
            unit: place.unit,
            page: place.page,
            generation: unit.generation(),
            hints: hints::are_worth_it(place.rip_page, kind.is_long()),
            memory_start: self.memory.start(),
            cuts,
            portable: store.is_some(),
        };
        let built = Builder::new(self.memory.next_address(), std::mem::take(&mut self.buffer), context)
            .build(place.offset)?;
        let host = self.memory.next_address();
        if !self.memory.add(&built.code) {
            self.buffer = built.code;
            return None;
        }
        if let Some(store) = &store
            && let Some(block) = self.portable(&built, place.page, (kind.bits(), place.offset), host, before)
        {
            store.add(place.page, &block);
        }
        if self.verify > 0 && built.all_copied {
            let outer = self.memory.start() + u64::from(built.entries.outer);
            self.copied.insert(outer, (built.insns, built.undefined));
        }
        self.counts.blocks += u64::from(built.insns > 0);
        self.counts.legacy += u64::from(built.insns > 0 && !kind.is_long());
        self.counts.insns += u64::from(built.insns);
        self.note_block(place, built.entries, host, built.code.len());
        self.buffer = built.code;
        Some(built.entries)
    }

    /// There is a block of a place now, with so many bytes at `host`.
    fn note_block(&mut self, place: &BlockPlace<'_>, entries: Entries, host: u64, len: usize) {
        self.blocks.insert(block_key(place.unit, place.offset), entries);
        if let Some(map) = &self.perf_map {
            map.add(host, len, place.rip_page.wrapping_add(u64::from(place.offset) & 0xfff));
        }
    }

    /// The block at an address in a unit, if there is one.
    fn known_block(&self, unit: u32, offset: u16) -> Option<Entries> {
        self.blocks.get(&block_key(unit, offset)).copied()
    }

    /// How warm code without a translation is; the visit is noted.
    fn warmth(&mut self, physical: u64) -> Warmth {
        let Some(visits) = self.visits.get_mut(Self::visit(physical)) else { return Warmth::Warm };
        let warmth = match u32::from(*visits) {
            visits if visits >= self.warm_up => Warmth::Warm,
            0 => Warmth::New,
            _ => Warmth::Cold,
        };
        *visits = visits.saturating_add(1);
        warmth
    }

    /// Where visits of an address are counted.
    fn visit(physical: u64) -> usize {
        (physical ^ physical >> 16) as usize % VISITS
    }

    fn is_full(&self) -> bool {
        self.memory.is_almost_full() || self.sites.len() > MOST_SITES || self.links.len() > MOST_SITES
    }
}

/// Key of [`Translator::blocks`].
fn block_key(unit: u32, offset: u16) -> u64 {
    u64::from(unit) << 16 | u64::from(offset)
}

/// Where code is that a block is wanted of.
struct BlockPlace<'a> {
    unit: u32,
    /// Address in the page, perhaps with [`share::PLAIN`].
    offset: u16,
    /// Bytes of the page within [`lookup::reach`]; elsewhere zeros.
    page: &'a [u8; PAGE],
    /// RIP at the start of the page, for names.
    rip_page: u64,
}

/// How often code without a translation was come to.
enum Warmth {
    /// Never.
    New,
    /// Not often enough to be translated.
    Cold,
    /// Often enough.
    Warm,
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
        if let Some(store) = &settings.store {
            store.load(&self.system);
        }
        self.times.detailed = settings.counted;
        self.translator = Some(Box::new(Translator::new(settings, Arc::clone(&self.events))?));
        Ok(())
    }

    /// Has translated code left when the local APIC's timer is due.
    pub(crate) fn set_deadline(&mut self, due_ns: Option<u64>, now_ns: u64) {
        if let Some(translator) = &mut self.translator {
            translator.deadline.set(due_ns, now_ns);
        }
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
                Exit::Lookup | Exit::Continue | Exit::Goto => {}
                Exit::Link => self.follow_link(connect),
                Exit::EventAtLink => self.follow_link(false),
                Exit::InPage => self.set_rip(self.shared.rip_page.wrapping_add(self.shared.argument)),
                Exit::Interpret => {
                    self.set_rip(self.shared.rip_page.wrapping_add(self.shared.argument));
                    self.interpret_block()?;
                }
                Exit::Fault => {
                    self.forget_hit();
                    return self.deliver_stashed();
                }
                Exit::Stop => return Err(Stop::Exit),
                Exit::Done => return Ok(()),
            }
            if !self.can_translate() {
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
        let range = unsafe { Block::insns(block) }.as_ptr_range();
        self.block_end = range.end as usize;
        if !self.long64 {
            self.check_code_limit(block)?;
        }
        match self.run_block(range.start) {
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
        (self.shared.vector, self.shared.x87) = (0, 0);
        let (enter, fsgsbase) = (translator.thunks.enter, translator.fsgsbase);
        self.shared.set_arithmetic(self.flags.bits());
        let since = self.times.if_detailed();
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
        self.times.entered_since(since);
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
            if connect
                && !translator.is_full()
                && let Some(entries) = self.translated(&mut translator, link.unit, link.target)
            {
                translator.memory.link(link.at, entries.inner(link.flags));
                translator.counts.links += 1;
            }
        }
        self.translator = Some(translator);
    }
}
