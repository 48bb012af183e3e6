//! Rust functions that translated code calls.
#![expect(unsafe_code, reason = "called from generated code with a raw processor pointer")]

use super::share::{PLAIN, Share};
use super::shared::vector;
use super::thunks::Exit;
use super::unit::{Next, PAGE};
use super::{DECODED, Translator};
use crate::code::LONGEST_INSN;
use crate::cpu::{Cpu, Stop, shadow};
use crate::decode::{self, Decoded};
use crate::insn::Insn;
use std::sync::atomic::AtomicU8;
use x86::{Cr0, Cr4};

/// Runs the interpreter on the instruction of a site.
pub(super) extern "sysv64" fn run_site(cpu: *mut Cpu, site: u64, _: u64) -> u64 {
    // SAFETY: `Shared::own`, which `Cpu::run_translated` has set to the processor that it borrows.
    let cpu = unsafe { &mut *cpu };
    let exit = cpu.interpret_site(site as usize);
    cpu.keep_vector(exit) as u64
}

/// After a store to a page that somebody watches.
pub(super) extern "sysv64" fn note_store(cpu: *mut Cpu, flags: *const AtomicU8, site: u64) -> u64 {
    // SAFETY: as above.
    let cpu = unsafe { &mut *cpu };
    let exit = cpu.note_site_store(flags, site as usize);
    cpu.keep_vector(exit) as u64
}

/// Before the first vector instruction of a block.
pub(super) extern "sysv64" fn want_vector(cpu: *mut Cpu, site: u64, level: u64) -> u64 {
    // SAFETY: as above.
    let cpu = unsafe { &mut *cpu };
    let exit = cpu.vector_or_interpret(site as usize, level);
    cpu.keep_vector(exit) as u64
}

/// Before the first x87 instruction of a block.
pub(super) extern "sysv64" fn want_x87(cpu: *mut Cpu, site: u64, _: u64) -> u64 {
    // SAFETY: as above.
    let cpu = unsafe { &mut *cpu };
    let exit = cpu.x87_or_interpret(site as usize);
    cpu.keep_vector(exit) as u64
}

/// After the check of a group failed.
pub(super) extern "sysv64" fn fill_share(cpu: *mut Cpu, share: u64, linear: u64) -> u64 {
    // SAFETY: as above.
    let cpu = unsafe { &mut *cpu };
    let exit = cpu.share_or_go_plain(share as usize, linear);
    cpu.keep_vector(exit) as u64
}

/// The time-stamp counter.
pub(super) extern "sysv64" fn time_stamp(cpu: *const Cpu) -> u64 {
    // SAFETY: as above.
    unsafe { &*cpu }.system.tsc()
}

/// After a hint missed, now and then.
pub(super) extern "sysv64" fn note_missed_hint(cpu: *mut Cpu, place: u64) {
    // SAFETY: as above.
    unsafe { &mut *cpu }.note_missed_hint(place);
}

impl Cpu {
    /// Whether x87 instructions may run as the host's: not while an exception is unmasked, because that would be
    /// the host's.
    fn x87_allowed(&self) -> bool {
        const MASKED: u16 = 0x3f;
        !self.cr0.intersects(Cr0::EM | Cr0::TS)
            && self.fpu.fcw() & MASKED == MASKED
            && !self.fpu.error_pending()
    }

    fn x87_or_interpret(&mut self, site: usize) -> Exit {
        if self.x87_allowed() {
            (self.shared.x87, self.shared.fip) = (1, self.fpu.fip());
            return Exit::Continue;
        }
        match self.interpret_site(site) {
            Exit::Continue => Exit::Done,
            exit => exit,
        }
    }

    /// How far the guest may use vector registers as the host does: not at all while an exception is
    /// unmasked, because that would be the host's.
    fn vector_level(&self) -> u64 {
        const MASKS: u32 = 0x1f80;
        let blocked = self.cr0.intersects(Cr0::EM | Cr0::TS) || !self.cr4.contains(Cr4::OSFXSR);
        if blocked || self.vector.mxcsr & MASKS != MASKS {
            return 0;
        }
        let avx = self.cr4.contains(Cr4::OSXSAVE) && self.xcr0 & 6 == 6;
        u64::from(if avx { vector::AVX } else { vector::SSE })
    }

    fn vector_or_interpret(&mut self, site: usize, level: u64) -> Exit {
        let allowed = self.vector_level();
        if allowed >= level {
            self.shared.vector = allowed;
            return Exit::Continue;
        }
        self.shared.vector = 0;
        match self.interpret_site(site) {
            Exit::Continue => Exit::Done,
            exit => exit,
        }
    }

    /// After a call: whether code that relied on vector and x87 registers can go on.
    fn keep_vector(&mut self, exit: Exit) -> Exit {
        let mut lost = false;
        if self.shared.x87 != 0 {
            lost = !self.x87_allowed();
            self.shared.x87 = u64::from(!lost);
            self.shared.fip = self.fpu.fip();
        }
        if self.shared.vector != 0 && self.vector_level() < self.shared.vector {
            lost = true;
            self.shared.vector = 0;
        }
        if exit == Exit::Continue && lost { Exit::Done } else { exit }
    }

    /// Brings the page at `linear` into the TLB, so that the check of a group succeeds. If it will not, goes on in a
    /// translation without groups, now and whenever the check fails again.
    fn share_or_go_plain(&mut self, number: usize, linear: u64) -> Exit {
        let Some(mut translator) = self.translator.take() else { return Exit::Done };
        let exit = match translator.shares.get(number).copied() {
            Some(share) if self.fill_for(&share, linear) => Exit::Continue,
            Some(share) => self.go_plain(&mut translator, &share),
            None => Exit::Done,
        };
        self.translator = Some(translator);
        exit
    }

    /// Whether the check would succeed, once the page of the first access was looked up as by the access itself.
    fn fill_for(&mut self, share: &Share, linear: u64) -> bool {
        let first = linear.wrapping_add(u64::from(share.first));
        // A fault is the access's, which comes next in the other translation.
        let _ = self.probe(crate::cpu::seg::DS, first, u32::from(share.first_size), share.first_stores);
        self.may_share(linear, share.span, share.store) && linear.is_multiple_of(u64::from(share.alignment))
    }

    fn go_plain(&mut self, translator: &mut super::Translator, share: &Share) -> Exit {
        self.shared.argument = u64::from(share.offset);
        if translator.is_full() {
            translator.left_in_middle = true;
            return Exit::InPage;
        }
        let Some(entries) = self.translated(translator, share.unit, share.offset | PLAIN) else {
            translator.left_in_middle = true;
            return Exit::Interpret;
        };
        translator.counts.gotos += 1;
        translator.memory.link(share.at, entries.saved);
        self.shared.spare = translator.memory.start() + u64::from(entries.saved);
        Exit::Goto
    }

    /// The instruction of a site, to which RIP is set. `None` if its code has changed meanwhile.
    fn site_insn(&mut self, number: usize) -> Option<Insn> {
        let mut translator = self.translator.take()?;
        let found = self.find_site_insn(&mut translator, number);
        self.translator = Some(translator);
        found
    }

    fn find_site_insn(&mut self, translator: &mut Translator, number: usize) -> Option<Insn> {
        let site = translator.sites.get_mut(number)?;
        site.count = site.count.saturating_add(1);
        let site = *site;
        self.set_rip(self.shared.rip_page.wrapping_add(u64::from(site.offset)));
        let held = &mut translator.decoded[number % DECODED];
        if held.0 == number as u32
            && let Some(insn) = held.1
        {
            return Some(insn);
        }
        let unit = translator.units.get(site.unit as usize)?;
        let mut bytes = [0; LONGEST_INSN];
        let room = bytes.len().min(PAGE - usize::from(site.offset));
        self.memory.read(unit.page + u64::from(site.offset), &mut bytes[..room]).ok()?;
        match decode::decode(&self.system, &bytes[..room], unit.kind.code_size()) {
            Decoded::Insn { insn, .. } if unit.is_current() => {
                *held = (number as u32, Some(insn));
                Some(insn)
            }
            _ => None,
        }
    }

    fn interpret_site(&mut self, number: usize) -> Exit {
        let since = self.times.if_detailed();
        let exit = self.interpret_site_now(number);
        self.times.called_out_since(since);
        if exit != Exit::Continue {
            self.leave_stretch(number);
        }
        if exit == Exit::Goto
            && let Some(translator) = &mut self.translator
        {
            translator.counts.gotos += 1;
        }
        exit
    }

    fn interpret_site_now(&mut self, number: usize) -> Exit {
        let Some(insn) = self.site_insn(number) else {
            // Changed meanwhile, or too long to be one: the interpreter looks at what is there now.
            self.shared.argument = self.rip().wrapping_sub(self.shared.rip_page);
            return Exit::Interpret;
        };
        self.flags.set_bits(self.shared.arithmetic());
        let key = self.mmu.fetch_key;
        // Anything but zero: a store to code, or a device, sets it to zero.
        self.block_end = 1;
        let result = (insn.handler)(self, &insn);
        self.instructions += 1;
        let exit = match result {
            Ok(()) | Err(Stop::Done) => {
                self.set_rip(self.rip().wrapping_add(u64::from(insn.len)));
                if result.is_err() && self.shadow == shadow::STI {
                    self.end_shadow(number);
                }
                // A segment that was loaded may have changed the kind of the code.
                let calm = self.block_end != 0
                    && if result.is_ok() { self.mmu.fetch_key == key } else { self.can_go_on(key) };
                match (calm, self.mmu.fetch_key == key) {
                    (true, _) => Exit::Continue,
                    (false, true) => Exit::Done,
                    (false, false) => self.go_on_elsewhere(Exit::Done),
                }
            }
            Err(Stop::Jump) => self.go_on_elsewhere(Exit::Lookup),
            Err(Stop::Again) => Exit::Done,
            Err(Stop::Exit) => Exit::Stop,
            Err(Stop::Fault) => Exit::Fault,
        };
        self.shared.set_arithmetic(self.flags.bits());
        exit
    }

    /// After STI: the next instruction of the block runs before anybody looks at events, so the shadow is over if
    /// nothing waits now.
    fn end_shadow(&mut self, number: usize) {
        let inside = self
            .translator
            .as_ref()
            .and_then(|translator| translator.sites.get(number))
            .is_some_and(|site| site.inside);
        if inside && !self.event_waiting() {
            self.shadow = 0;
        }
    }

    /// Goes on at RIP without leaving translated code, if that is known and nothing else is to be done.
    fn go_on_elsewhere(&mut self, otherwise: Exit) -> Exit {
        let linear = self.code_address();
        if !self.can_translate() || self.must_look_around() || self.event_waiting() {
            return otherwise;
        }
        let known = self.translator.as_ref().filter(|translator| translator.verify == 0);
        match known.and_then(|translator| translator.jumps.get(linear, self.mmu.fetch_key)) {
            Some(host) => {
                (self.shared.rip_page, self.shared.spare) = (self.page_of_rip(linear), host);
                Exit::Goto
            }
            None => otherwise,
        }
    }

    /// After an instruction that may have changed anything: whether it has not.
    fn can_go_on(&self, key: u64) -> bool {
        self.mmu.fetch_key == key && !self.event_waiting() && !self.must_look_around()
    }

    /// A block is left behind a site: what was counted of it and comes later does not count.
    fn leave_stretch(&mut self, number: usize) {
        let site = self.translator.as_ref().and_then(|translator| translator.sites.get(number));
        let counted = &mut self.shared.counted.insns;
        *counted = counted.saturating_sub(site.map_or(0, |site| site.rest.into()));
    }

    fn note_site_store(&mut self, flags: *const AtomicU8, number: usize) -> Exit {
        let mut stale = false;
        for region in self.memory.regions() {
            let Some(first) = region.tracker().flag_byte(0) else { continue };
            let page = (flags as usize).wrapping_sub(&raw const *first as usize);
            if (page as u64) < region.size() >> 12 {
                stale = region.tracker().note_write(page);
            }
        }
        let Some(site) = self.translator.as_ref().and_then(|translator| translator.sites.get(number)) else {
            return Exit::Done;
        };
        let rip = match site.next {
            Next::Behind(len) => self.shared.rip_page.wrapping_add(u64::from(site.offset) + u64::from(len)),
            Next::Spare => self.shared.spare,
        };
        self.set_rip(rip);
        if stale {
            self.leave_stretch(number);
            Exit::Lookup
        } else {
            Exit::Continue
        }
    }
}
